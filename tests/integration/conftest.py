"""Fixtures for tests with real peers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.buses import Buses
from zmq_helpers import Apps


@pytest.fixture
def zmq_apps(start_bus: Buses) -> Iterator[Apps]:
    """Makes buses with a ZeroMQ endpoint, and apps that use it; closes the apps."""
    apps = Apps(start_bus)
    yield apps
    apps.close()
