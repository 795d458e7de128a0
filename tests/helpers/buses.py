"""Buses inside the test's process, with plugins that no distribution has installed."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import threatbus
from helpers.documents import indicators
from threatbus.errors import Overflow
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.services import Services


class TestPlugins:
    """Plugins of one test, found by their entry points like those of installed distributions.

    What tells `importlib.metadata` of a distribution is a ``*.dist-info`` directory on
    ``sys.path``; this makes one, and the modules that its entry points name.
    """

    __test__ = False
    _numbers = itertools.count(1)

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        self._points: dict[str, dict[str, str]] = {"threatbus.app": {}, "threatbus.backbone": {}}
        self._info = directory / "threatbus_test_plugins-1.0.dist-info"
        self._info.mkdir(parents=True)
        metadata = "Metadata-Version: 2.1\nName: threatbus-test-plugins\nVersion: 1.0\n"
        (self._info / "METADATA").write_text(metadata)
        monkeypatch.syspath_prepend(str(directory))

    def app(self, name: str, implementation: object) -> None:
        """Install an app plugin: a class, an object, or the name of a module (`module`)."""
        self._install("threatbus.app", name, implementation)

    def backbone(self, name: str, implementation: object) -> None:
        """Install a backbone plugin: a class, an object, or the name of a module (`module`)."""
        self._install("threatbus.backbone", name, implementation)

    def module(self, source: str) -> str:
        """Write a module, as the distribution of a plugin would bring it; gives its name."""
        name = f"threatbus_test_plugin_{next(self._numbers)}"
        (self.directory / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    def imported(self, module: str) -> Any:
        """Give a module that `module` wrote, to look at its globals."""
        return importlib.import_module(module)

    def _install(self, group: str, name: str, implementation: object) -> None:
        if isinstance(implementation, str):
            target = implementation
        else:
            home = types.ModuleType(f"threatbus_test_plugin_{next(self._numbers)}")
            vars(home)["plugin"] = implementation
            self._monkeypatch.setitem(sys.modules, home.__name__, home)
            target = f"{home.__name__}:plugin"
        self._points[group][name] = target
        lines = []
        for section, points in self._points.items():
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in points.items())]
        (self._info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()


class Buses:
    """Starts buses and stops what a test leaves running.

    Each has a state directory of its own, the in-memory backbone unless told otherwise, and logs
    everything to standard error, which pytest shows for tests that fail.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self.running: list[threatbus.ThreatBus] = []

    def config(
        self,
        apps: Mapping[str, Any] | None = None,
        backbones: Mapping[str, Any] | None = None,
        **core: Any,
    ) -> dict[str, Any]:
        """Give a configuration with these plugins; `core` is what stands at its top level."""
        return {
            "logging": {"console": True, "console_verbosity": "DEBUG"},
            "plugins": {"apps": apps or {}, "backbones": backbones or {"inmem": None}},
            "state_directory": str(self._directory / f"state-{next(self._numbers)}"),
            "drain_timeout": 5,
            **core,
        }

    def __call__(
        self,
        apps: Mapping[str, Any] | None = None,
        backbones: Mapping[str, Any] | None = None,
        **core: Any,
    ) -> threatbus.ThreatBus:
        """Start a bus with these plugins; see `config`."""
        bus = threatbus.start(self.config(apps, backbones, **core))
        self.running.append(bus)
        return bus

    def close(self) -> None:
        """Stop all buses, the last one first."""
        for bus in reversed(self.running):
            bus.stop()
        logger = logging.getLogger("threatbus")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(logging.NOTSET)


def reject_lines(bus: threatbus.ThreatBus) -> list[dict[str, Any]]:
    """Give what the reject store of a bus has on disk."""
    return [
        json.loads(line)
        for path in (bus.rejects.older_path, bus.rejects.path)
        if path.exists()
        for line in path.read_bytes().splitlines()
    ]


class Source(threading.Thread):
    """Puts new indicators on inq one by one; ends with the last one, or when it is refused."""

    def __init__(self, inq: Intake, count: int) -> None:
        super().__init__(name="source", daemon=True)
        self.inq = inq
        self.messages = indicators(count)
        #: Set when inq was closed.
        self.refused = threading.Event()

    def run(self) -> None:
        """Put them."""
        try:
            for message in self.messages:
                self.inq.put_many([message])
        except Overflow:
            self.refused.set()


class OpenApp:
    """An app plugin without an endpoint: a test holds it and does what apps would have it do."""

    def __init__(self) -> None:
        self.inq: Intake
        self.subscribe: SubscribeCallback
        self.unsubscribe: UnsubscribeCallback
        self.services: Services
        # What the bus has asked of it, in order.
        self.calls: list[str] = []
        # Called at the end of `run`.
        self.on_run: Callable[[], object] | None = None
        # Called with a snapshot request and the queue for answers.
        self.answer: Callable[[Any, Any], None] | None = None

    def source(self, count: int) -> Source:
        """Put `count` new indicators on inq, in a thread."""
        source = Source(self.inq, count)
        source.start()
        return source

    @threatbus.app
    def run(
        self,
        inq: Intake,
        subscribe_callback: SubscribeCallback,
        unsubscribe_callback: UnsubscribeCallback,
        services: Services,
    ) -> None:
        """Keep what the bus offers."""
        self.inq = inq
        self.subscribe = subscribe_callback
        self.unsubscribe = unsubscribe_callback
        self.services = services
        self.calls.append("run")
        if self.on_run is not None:
            self.on_run()

    @threatbus.app
    def snapshot(self, snapshot_request: Any, result_q: Any) -> None:
        """Let the test answer."""
        self.calls.append("snapshot")
        if self.answer is not None:
            self.answer(snapshot_request, result_q)

    @threatbus.app
    def drain(self) -> int:
        """Wait for nobody: what a test leaves in its queues it does not want."""
        return 0

    @threatbus.app
    def stop(self) -> None:
        """Note the call."""
        self.calls.append("stop")
