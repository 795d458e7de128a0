"""Fixtures for tests of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.services import rabbit_node

from testbed.rabbit import RabbitNode


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestPlugins:
    """Plugins that exist for this test alone: ``plugins.app("name", implementation)``."""
    return TestPlugins(tmp_path / "plugins", monkeypatch)


@pytest.fixture
def start_bus(tmp_path: Path) -> Iterator[Buses]:
    """Starts buses, ``start_bus(apps={"zmq": {…}}, drain_timeout=1)``, and stops them."""
    buses = Buses(tmp_path)
    yield buses
    buses.close()


@pytest.fixture
def open_app(plugins: TestPlugins) -> OpenApp:
    """An app plugin, installed as ``open``, through which a test takes part itself."""
    app = OpenApp()
    plugins.app("open", app)
    return app


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitNode]:
    """A RabbitMQ that all tests share: each takes an exchange and queues of its own."""
    with rabbit_node() as node:
        yield node
