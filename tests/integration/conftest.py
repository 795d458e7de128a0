"""Fixtures for tests with real peers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.buses import Buses, OpenApp

from integration.zeek_helpers import Zeeks
from integration.zmq_helpers import App, Apps, ZmqBus


@pytest.fixture
def zmq_apps(start_bus: Buses) -> Iterator[Apps]:
    """Makes buses with a ZeroMQ endpoint, and apps that use it; closes the apps."""
    apps = Apps(start_bus)
    yield apps
    apps.close()


@pytest.fixture
def long_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bus wait a minute for whatever does not end when it is told to.

    So a test tells what ends at once from what does not, however busy the machine is.
    """
    monkeypatch.setattr("threatbus.bus.STOP_TIMEOUT_SECS", 60.0)
    monkeypatch.setattr("threatbus_misp.instance.JOIN_SECS", 60.0)
    monkeypatch.setattr("threatbus_web.plugin.JOIN_SECS", 60.0)


@pytest.fixture
def bus(zmq_apps: Apps) -> ZmqBus:
    """Give a bus with a ZeroMQ endpoint."""
    return zmq_apps.bus()


@pytest.fixture
def app(zmq_apps: Apps, bus: ZmqBus) -> App:
    """Give an app of `bus`."""
    return zmq_apps.app(bus)


@pytest.fixture
def publisher(zmq_apps: Apps, bus: ZmqBus) -> App:
    """Give another app of `bus`."""
    return zmq_apps.app(bus)


@pytest.fixture
def zeeks(start_bus: Buses, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zeeks]:
    """Makes buses with a Zeek endpoint, and Zeeks; closes the Zeeks."""
    # What the old script is given to subscribe in; these Zeeks are near.
    monkeypatch.setattr("threatbus_zeek.subscriptions.SETTLE_SECS", 0.2)
    found = Zeeks(start_bus, open_app)
    yield found
    # Nothing is to be delivered any more.
    monkeypatch.setattr("threatbus_zeek.broker_transport.LINGER_SECS", 0.0)
    start_bus.close()
    found.close()
