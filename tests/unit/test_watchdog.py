"""The service manager hears of a bus that is whole, and nothing of one that is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.buses import Buses, TestPlugins
from helpers.waiting import eventually, finished

import threatbus
from threatbus.watchdog import Watchdog


class Manager:
    """What a service manager hears."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hears(self, timeout: float) -> bytes:
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(100)
        except (TimeoutError, BlockingIOError):
            return b""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    yield found
    found.close()


class Worker(threatbus.StoppableWorker):
    """Runs until `leave` is set, although nobody has asked it to end."""

    def __init__(self) -> None:
        super().__init__(name="fragile")
        self.leave = threading.Event()

    def run(self) -> None:
        self.leave.wait()


class Fragile:
    def __init__(self) -> None:
        self.worker = Worker()

    @threatbus.app
    def run(self, services: Any) -> None:
        services.report.worker(self.worker)
        self.worker.start()

    @threatbus.app
    def stop(self) -> None:
        self.worker.leave.set()


def test_a_bus_that_is_whole_gives_a_sign_ten_seconds_apart(
    start_bus: Buses, manager: Manager
) -> None:
    watchdog = Watchdog(start_bus())
    assert watchdog.interval == 10
    watchdog.look()
    assert manager.hears(5) == b"WATCHDOG=1"


def test_a_bus_that_has_lost_a_worker_gives_none(
    start_bus: Buses, plugins: TestPlugins, manager: Manager
) -> None:
    fragile = Fragile()
    plugins.app("fragile", fragile)
    bus = start_bus({"fragile": None})
    watchdog = Watchdog(bus)
    watchdog.look()
    assert manager.hears(5) == b"WATCHDOG=1"
    fragile.worker.leave.set()
    eventually(lambda: bus.lost_workers == ["fragile"])
    watchdog.look()
    assert manager.hears(0) == b""


def test_a_lock_that_is_never_given_back_is_noticed(start_bus: Buses, manager: Manager) -> None:
    bus = start_bus()
    look = threading.Thread(target=Watchdog(bus).look)
    with bus.subscriptions._lock:
        look.start()
        assert manager.hears(0.2) == b""
    assert manager.hears(5) == b"WATCHDOG=1"
    finished(look)


@pytest.mark.parametrize(
    "environ", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1"}]
)
def test_a_manager_that_wants_no_signs_gets_none(
    environ: dict[str, str], start_bus: Buses, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    watchdog = Watchdog(start_bus())
    watchdog.look()
    assert watchdog.interval is None
    assert manager.hears(0) == b""
