"""Stopping, and starts that fail: everything comes down, in order and in time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.documents import indicators
from helpers.waiting import SOON, eventually, finished, in_threads, wait_for

import threatbus
from threatbus import bus as bus_module
from threatbus import subscriptions
from threatbus.errors import ConfigError, InvalidConfig, Overflow
from threatbus.queues import MessageQueue

APPS = {"open": None}


@pytest.fixture
def threads_before() -> set[threading.Thread]:
    return set(threading.enumerate())


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """An event that plugins of a test hang on until its end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "STOP_TIMEOUT_SECS", 0.1)
    monkeypatch.setattr(subscriptions, "STALLED_SECS", 0.1)


class Noting:
    """A plugin that notes when it is started and stopped."""

    def __init__(self, name: str, calls: list[str], error: BaseException | None = None) -> None:
        self.name = name
        self.calls = calls
        self.error = error

    @threatbus.app
    def run(self, subscribe_callback: Callable[..., Any]) -> None:
        self.calls.append(f"run {self.name}")
        if self.error is not None:
            raise self.error

        subscribe_callback("stix2", queue.Queue())

    @threatbus.app
    def snapshot(self) -> None:
        raise AssertionError

    @threatbus.app
    def stop(self) -> None:
        self.calls.append(f"stop {self.name}")


class Waiting(threatbus.StoppableWorker):
    """A worker with nothing to do."""

    def run(self) -> None:
        self._stop_asked.wait()


class NotingBackbone:
    """The same for a backbone."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    @threatbus.backbone
    def run(self, inq: MessageQueue) -> None:
        inq.consume(lambda *_: None)
        self.calls.append(f"run {self.name}")

    @threatbus.backbone
    def stop(self) -> None:
        self.calls.append(f"stop {self.name}")


def test_an_idle_bus_stops_in_well_under_a_second_and_leaves_no_thread(
    start_bus: Buses, open_app: OpenApp, threads_before: set[threading.Thread]
) -> None:
    bus = start_bus(APPS)
    open_app.subscribe("stix2", open_app.services.outq("somebody"))
    began = time.monotonic()
    bus.stop()
    assert time.monotonic() - began < 0.5
    for thread in set(threading.enumerate()) - threads_before:
        finished(thread)


def test_plugins_stop_in_reverse_order_apps_before_backbones(
    start_bus: Buses, plugins: TestPlugins
) -> None:
    calls: list[str] = []
    for name in ("a", "b"):
        plugins.app(name, Noting(name, calls))
    plugins.backbone("bone", NotingBackbone("bone", calls))
    bus = start_bus({"a": None, "b": None}, {"bone": None})
    bus.stop()
    assert calls == ["run bone", "run a", "run b", "stop b", "stop a", "stop bone"]


def test_stopping_twice_and_from_several_threads_stops_once(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS)
    in_threads(bus.stop, bus.stop, bus.stop)
    bus.stop()
    assert open_app.calls == ["run", "stop"]
    assert not bus.running


def test_every_call_of_stop_returns_only_when_the_bus_is_down(
    start_bus: Buses, plugins: TestPlugins
) -> None:
    stopping, go_on = threading.Event(), threading.Event()

    class Slow:
        @threatbus.app
        def stop(self) -> None:
            stopping.set()
            wait_for(go_on)

    plugins.app("slow", Slow)
    bus = start_bus({"slow": None})
    threads = [threading.Thread(target=bus.stop, daemon=True) for _ in range(2)]
    threads[0].start()
    wait_for(stopping)
    threads[1].start()
    assert bus.running
    go_on.set()
    for thread in threads:
        finished(thread)
    assert not bus.running


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("hook", ["stop_intake", "drain", "stop"])
def test_a_plugin_that_hangs_at_the_end_is_named_and_left_behind(
    hook: str,
    start_bus: Buses,
    plugins: TestPlugins,
    open_app: OpenApp,
    released: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hang(self: object) -> None:
        released.wait(60)

    plugins.app("hanging", type("Hanging", (), {hook: threatbus.app(hang)}))
    bus = start_bus({"open": None, "hanging": None}, drain_timeout=0.1)
    began = time.monotonic()
    bus.stop()
    assert time.monotonic() - began < SOON
    assert f"plugin hanging hangs in {hook}()" in caplog.text
    assert open_app.calls == ["run", "stop"]


@pytest.mark.parametrize("hook", ["stop_intake", "drain", "stop"])
def test_a_plugin_that_fails_at_the_end_is_named_and_the_others_are_stopped(
    hook: str,
    start_bus: Buses,
    plugins: TestPlugins,
    open_app: OpenApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("a bug at the end")

    plugins.app("failing", type("Failing", (), {hook: threatbus.app(fail)}))
    bus = start_bus({"open": None, "failing": None})
    bus.stop()
    assert f"plugin failing failed in {hook}()" in caplog.text
    assert "a bug at the end" in caplog.text
    assert open_app.calls == ["run", "stop"]
    assert not bus.running


def test_under_load_everything_that_was_accepted_is_delivered(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    class Reading:
        """Reads slowly, without a hook of its own for the end."""

        def __init__(self) -> None:
            self.got = 0
            self.outq: MessageQueue

        @threatbus.app
        def run(self, subscribe_callback: Callable[..., Any], services: Any) -> None:
            self.outq = services.outq("reader")
            subscribe_callback("stix2", self.outq)
            threading.Thread(target=self.read, daemon=True).start()

        def read(self) -> None:
            while not self.outq.closed:
                self.got += len(self.outq.get_many(50, timeout=None))
                time.sleep(0.001)

    reader = Reading()
    plugins.app("reader", reader)
    bus = start_bus({"open": None, "reader": None}, drain_timeout=30)
    stopped = threading.Event()

    def publish() -> None:
        batch = indicators(20)
        while not stopped.is_set():
            try:
                open_app.inq.put_many(
                    [type(message)(message.topic, message.data) for message in batch]
                )
            except Overflow:
                return

    sources = [threading.Thread(target=publish, daemon=True) for _ in range(3)]
    for source in sources:
        source.start()
    eventually(lambda: bus.intake.accepted > 5000)
    bus.stop()
    stopped.set()
    for source in sources:
        finished(source)
    assert reader.got == bus.intake.accepted
    assert ", 0 not delivered" in caplog.text


@pytest.mark.usefixtures("short_patience")
def test_a_source_that_waits_for_room_is_let_go(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck:
        """A backbone that takes nothing."""

        @threatbus.backbone
        def run(self) -> None:
            return

    plugins.backbone("stuck", Stuck)
    bus = start_bus(APPS, {"stuck": None}, queues={"inq_messages": 5}, drain_timeout=0.2)
    source = open_app.source(10)
    eventually(lambda: not bus.intake.writable)
    bus.stop()
    wait_for(source.refused)
    assert "5 messages remain in backbone stuck" in caplog.text
    assert "5 not delivered" in caplog.text


def test_after_the_stop_nobody_can_subscribe(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus(APPS)
    outq = open_app.services.outq("late")
    bus.stop()
    with pytest.raises(Overflow, match="stopping"):
        open_app.subscribe("stix2", outq)
    open_app.unsubscribe("stix2", outq)
    assert bus.stats()["subscribers"] == {}


# Starts that fail.


@pytest.mark.parametrize(
    "error",
    [
        InvalidConfig([ConfigError("plugins.apps.c.port", "80", "free")]),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_when_a_plugin_must_not_be_done_without_what_has_started_is_stopped_in_reverse_order(
    error: BaseException,
    start_bus: Buses,
    plugins: TestPlugins,
    threads_before: set[threading.Thread],
) -> None:
    calls: list[str] = []
    for name in ("a", "b"):
        plugins.app(name, Noting(name, calls))
    plugins.app("lost", Noting("lost", calls, OSError("port in use")))
    plugins.app("c", Noting("c", calls, error))
    plugins.app("d", Noting("d", calls))
    plugins.backbone("bone", NotingBackbone("bone", calls))
    with pytest.raises(type(error)):
        start_bus(dict.fromkeys(["a", "lost", "b", "c", "d"]), {"bone": None})
    assert calls[:4] == ["run bone", "run a", "run lost", "stop lost"]
    assert calls[4:] == ["run b", "run c", "stop c", "stop b", "stop a", "stop bone"]
    for thread in set(threading.enumerate()) - threads_before:
        finished(thread)


@pytest.mark.parametrize("group", ["app", "backbone"])
def test_a_plugin_that_fails_halfway_through_its_start_is_stopped_and_the_bus_goes_on(
    group: str, start_bus: Buses, plugins: TestPlugins, open_app: OpenApp
) -> None:
    worker = Waiting(name="halfway")

    def run(self: object) -> None:
        worker.start()
        raise OSError("no second port")

    def stop(self: object) -> None:
        worker.stop()
        worker.join()

    mark = getattr(threatbus, group)
    halfway = type("Halfway", (), {"run": mark(run), "stop": mark(stop)})
    getattr(plugins, group)("halfway", halfway)
    groups = {"apps": {"open": None}, "backbones": {"inmem": None}}
    groups[f"{group}s"]["halfway"] = None
    bus = start_bus(**groups)
    assert not worker.is_alive()
    assert bus.lost_parts == ["halfway"]
    outq = open_app.services.outq("somebody")
    open_app.subscribe("stix2", outq)
    open_app.inq.put_many(indicators(3))
    assert len(outq.get_many(10)) == 3


@pytest.mark.parametrize("error", [RuntimeError("nothing to stop"), SystemExit(1)])
def test_a_plugin_that_fails_at_its_start_and_its_stop_costs_the_others_nothing(
    error: BaseException,
    start_bus: Buses,
    plugins: TestPlugins,
    open_app: OpenApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        @threatbus.app
        def run(self) -> None:
            raise OSError("port in use")

        @threatbus.app
        def stop(self) -> None:
            raise error

    plugins.app("broken", Broken)
    bus = start_bus({"broken": None, "open": None})
    assert "plugin broken does not start" in caplog.text
    assert "plugin broken failed in stop()" in caplog.text
    bus.stop()
    assert caplog.text.count("plugin broken failed in stop()") == 1
    assert open_app.calls == ["run", "stop"]


@pytest.mark.usefixtures("short_patience")
def test_a_plugin_that_hangs_does_not_hold_up_a_start_that_fails(
    start_bus: Buses, plugins: TestPlugins, released: threading.Event
) -> None:
    class Hanging:
        @threatbus.app
        def stop(self) -> None:
            released.wait(60)

        @threatbus.app
        def run(self) -> None:
            return

    plugins.app("hanging", Hanging)
    error = InvalidConfig([ConfigError("plugins.apps.z.port", "80", "free")])
    plugins.app("z", Noting("z", [], error))
    began = time.monotonic()
    with pytest.raises(InvalidConfig):
        start_bus({"hanging": None, "z": None})
    assert time.monotonic() - began < SOON
