"""Plugins written for 2022.5.16, unmodified, on today's bus."""

from __future__ import annotations

import queue
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import JoinableQueue
from pathlib import Path
from typing import Any

import pytest
import stix2
from helpers import old_plugins
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.documents import indicator, indicator_message, indicators, stix_object
from helpers.waiting import SOON, eventually

import threatbus
from threatbus.data import MessageType, SnapshotRequest
from threatbus.errors import InvalidConfig
from threatbus.messages import INTERNAL_PREFIX, SIGHTING

DAY = timedelta(days=1)
OLD = {"port": 4711}


@pytest.fixture
def old_app(plugins: TestPlugins) -> Any:
    """The module of an old app plugin, installed as ``old``."""
    name = plugins.module(old_plugins.APP)
    plugins.app("old", name)
    return plugins.imported(name)


@pytest.fixture(params=["inmem", "oldmem", "both"])
def backbones(request: pytest.FixtureRequest, plugins: TestPlugins) -> dict[str, None]:
    """Ours, an old one, or both at once."""
    plugins.backbone("oldmem", plugins.module(old_plugins.BACKBONE))
    return dict.fromkeys(["inmem", "oldmem"] if request.param == "both" else [request.param])


def test_an_old_plugin_receives_reports_and_stops(
    start_bus: Buses, open_app: OpenApp, old_app: Any, backbones: dict[str, None]
) -> None:
    bus = start_bus({"open": None, "old": OLD}, backbones)
    outq = open_app.services.outq("sightings")
    open_app.subscribe("stix2/sighting", outq)
    batch = indicators(30)
    open_app.inq.put_many(batch)
    eventually(lambda: outq.qsize() >= 30)
    assert [each.name for each in old_app.received] == [str(number) for number in range(30)]
    assert {type(each) for each in old_app.received} == {stix2.Indicator}
    sightings: list[Any] = [message.to_object() for message in outq.get_many(100)]
    assert [each.sighting_of_ref for each in sightings] == [each.id for each in old_app.received]
    assert sightings[0]["x_threatbus_source"] == "localhost:4711"
    assert len(sightings) == 30
    bus.stop()
    assert not any(worker.is_alive() for worker in old_app.workers)


def test_an_old_plugin_answers_snapshots_and_hears_of_those_of_others(
    start_bus: Buses, open_app: OpenApp, old_app: Any, backbones: dict[str, None]
) -> None:
    start_bus({"open": None, "old": OLD}, backbones)
    old_app.history.extend(stix_object(indicator(name=str(number))) for number in range(5))
    outq = open_app.services.outq("asking")
    open_app.subscribe("stix2/indicator", outq, DAY)
    eventually(lambda: outq.qsize() >= 5)
    names = [stix2.parse(message.data.decode()).name for message in outq.get_many(100)]
    assert names == [str(number) for number in range(5)]
    eventually(lambda: len(old_app.requests) == 1)
    assert type(old_app.requests[0]) is SnapshotRequest
    assert old_app.requests[0].snapshot == DAY


def test_a_backbone_may_pass_a_snapshot_request_on_under_the_lock_of_its_hooks(
    start_bus: Buses, open_app: OpenApp, plugins: TestPlugins
) -> None:
    class Locked:
        """Its `subscribe` waits until the thread that delivers lets go of their lock."""

        def __init__(self) -> None:
            self.internal: Any = None
            self.delivered = threading.Event()
            self.in_time = False

        @threatbus.backbone
        def run(self) -> None: ...

        @threatbus.backbone
        def subscribe(self, topic: str, q: Any) -> None:
            if topic == INTERNAL_PREFIX:
                self.internal = q
                return
            threading.Thread(target=self._deliver).start()
            self.in_time = self.delivered.wait(SOON)

        def _deliver(self) -> None:
            self.internal.put(SnapshotRequest(MessageType.INDICATOR, "an-id", DAY))
            self.delivered.set()

    backbone = Locked()
    plugins.backbone("locked", backbone)
    start_bus({"open": None}, {"locked": None})
    open_app.subscribe("stix2/indicator", open_app.services.outq("first"))
    assert backbone.in_time


def test_what_the_validators_of_an_old_plugin_say_stops_the_start(
    start_bus: Buses, old_app: Any
) -> None:
    with pytest.raises(InvalidConfig, match=r"plugins\.apps\.old\.port"):
        start_bus({"old": {"port": "many"}})
    assert old_app.workers == []


def test_a_worker_of_an_old_plugin_that_raises_begins_again(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    source = old_plugins.APP.replace(
        "            if type(msg) is Indicator:\n",
        "            if msg.get('name') == 'poison':\n"
        "                raise KeyError('no such field')\n"
        "            if type(msg) is Indicator:\n",
    )
    name = plugins.module(source)
    plugins.app("old", name)
    start_bus({"open": None, "old": OLD})
    open_app.inq.put_many([indicator_message(name="poison"), indicator_message(name="good")])
    module = plugins.imported(name)
    eventually(lambda: [each.name for each in module.received] == ["good"])
    assert "KeyError: 'no such field'" in caplog.text


def test_a_plugin_that_never_reads_its_bounded_queue_overflows_by_policy_and_alone(
    start_bus: Buses, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start_bus({"open": None}, queues={"outq_messages": 50})
    never_read: queue.Queue[Any] = queue.Queue(3)
    read: queue.Queue[Any] = queue.Queue()
    open_app.subscribe("stix2", never_read)
    open_app.subscribe("stix2", read)
    for number, message in enumerate(indicators(200)):
        open_app.inq.put_many([message])
        assert read.get(timeout=SOON).name == str(number)
    eventually(lambda: list(bus.stats()["subscribers"]) == ["foreign queue 2"])
    assert "foreign queue 1 was full and is closed" in caplog.text
    eventually(lambda: "foreign queue 1 is unsubscribed" in caplog.text)
    assert never_read.qsize() == 3
    feeder = next(t for t in threading.enumerate() if t.name == "feeder of foreign queue 2")
    eventually(lambda: "feeder of foreign queue 1" not in [t.name for t in threading.enumerate()])
    assert feeder.is_alive()


def test_a_queue_that_its_plugin_has_closed_is_unsubscribed(
    start_bus: Buses, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start_bus({"open": None})
    closed: Any = JoinableQueue()
    open_app.subscribe("stix2", closed)
    closed.close()
    open_app.inq.put_many(indicators(3))
    eventually(lambda: bus.stats()["subscribers"] == {})
    assert "takes nothing any more" in caplog.text


def test_a_queue_still_gets_what_came_before_it_was_unsubscribed(
    start_bus: Buses, open_app: OpenApp
) -> None:
    start_bus({"open": None})
    q: queue.Queue[Any] = queue.Queue()
    open_app.subscribe("stix2", q)
    open_app.inq.put_many(indicators(100))
    open_app.unsubscribe("stix2", q)
    open_app.inq.put_many(indicators(100))
    assert [q.get(timeout=SOON).name for _ in range(100)] == [str(n) for n in range(100)]
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)


def test_stopping_waits_for_an_old_plugin_that_reads_and_counts_for_one_that_does_not(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    slow = old_plugins.APP.replace("received.append(msg)", "received.append(msg); sleep(0.01)")
    name = plugins.module("from time import sleep\n" + slow)
    plugins.app("old", name)
    bus = start_bus({"open": None, "old": OLD})
    unread: queue.Queue[Any] = queue.Queue()
    open_app.subscribe(["stix2/indicator"], unread)
    open_app.inq.put_many(indicators(100))
    eventually(lambda: plugins.imported(name).received, what="it has begun to read")
    bus.stop()
    assert len(plugins.imported(name).received) == 100
    assert "messages for foreign queue" not in caplog.text, "its plugin drains it"


def test_stopping_waits_for_an_old_backbone_as_long_as_it_goes_on(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus.bus.STOP_TIMEOUT_SECS", 1.0)
    slow = old_plugins.BACKBONE.replace("lock.acquire()\n", "sleep(0.01); lock.acquire()\n", 1)
    plugins.backbone("slow", plugins.module("from time import sleep\n" + slow))
    bus = start_bus({"open": None}, {"slow": None})
    outq: queue.Queue[Any] = queue.Queue()
    open_app.subscribe("stix2", outq)
    open_app.inq.put_many(indicators(150))
    bus.stop()
    assert outq.qsize() == 150


def test_a_plugin_that_drains_a_queue_of_its_own_finds_all_of_its_messages_there(
    start_bus: Buses, open_app: OpenApp
) -> None:
    class Slow(queue.Queue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            threading.Event().wait(0.005)
            super().put(item, block, timeout)

    bus = start_bus({"open": None})
    slow = Slow()
    open_app.subscribe("stix2", slow)
    open_app.inq.put_many(indicators(50))
    bus.stop()
    assert slow.qsize() == 50


def test_what_remains_for_readers_that_do_not_read_is_told(
    start_bus: Buses, plugins: TestPlugins, caplog: pytest.LogCaptureFixture
) -> None:
    unread: queue.Queue[Any] = queue.Queue()

    class Careless:
        @threatbus.app
        def run(self, inq: Any, subscribe_callback: Callable[..., Any], services: Any) -> None:
            self.inq = inq
            self.outq = services.outq("native")
            subscribe_callback("stix2", unread)
            subscribe_callback("stix2", self.outq)

    app = Careless()
    plugins.app("careless", app)
    bus = start_bus({"careless": None})
    app.inq.put_many(indicators(30))
    began = time.monotonic()
    bus.stop()
    assert time.monotonic() - began < SOON / 2
    assert "30 messages for foreign queue 1 remain undelivered" in caplog.text
    assert "30 messages for native remain undelivered" in caplog.text
    assert "60 not delivered" in caplog.text


def test_old_plugins_find_inq_closed_at_the_end_and_do_not_fail_over_it(
    start_bus: Buses, open_app: OpenApp, old_app: Any
) -> None:
    bus = start_bus({"open": None, "old": OLD})
    bus.stop()
    open_app.inq.put(stix_object(indicator()))
    assert bus.stats()["refused"] == 1
    assert SIGHTING not in str(old_app.received)


def test_the_process_ends_although_nobody_reads_a_multiprocessing_queue(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from multiprocessing import JoinableQueue
        sys.path.insert(0, sys.argv[1])
        import threatbus
        from helpers.documents import indicators
        from helpers.waiting import eventually
        bus = threatbus.start({
            "plugins": {"apps": {}, "backbones": {"inmem": None}},
            "state_directory": sys.argv[2],
            "drain_timeout": 0.1,
        })
        q = JoinableQueue()
        bus.subscribe("stix2", q)
        bus.intake.put_many(indicators(500))
        try:
            # For the first of them the STIX library is loaded.
            eventually(lambda: q.qsize() == 500, 60)
        finally:
            bus.stop()
        print("stopped", flush=True)
        """
    )
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, tests, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "stopped\n", done.stderr
    assert done.returncode == 0, done.stderr
