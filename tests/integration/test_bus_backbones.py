"""Several backbones at once: each sees every message, every subscriber gets it once."""

from __future__ import annotations

import queue
import time
from datetime import timedelta
from typing import Any

import pytest
from helpers import old_plugins
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.documents import indicator, indicators, stix_object
from helpers.waiting import SOON, eventually

import threatbus
from threatbus.data import SnapshotEnvelope
from threatbus.messages import INDICATOR, SNAPSHOT_REQUEST
from threatbus.queues import Bounds, MessageQueue
from threatbus.routing import TopicTable

APPS = {"open": None}
DAY = timedelta(days=1)


class Worker(threatbus.StoppableWorker):
    """Delivers a little later than the messages come."""

    def __init__(self, inq: MessageQueue, table: TopicTable) -> None:
        super().__init__(name="late")
        self.inq = inq
        self.table = table

    def run(self) -> None:
        """Deliver until stopped."""
        while self._running():
            batch = self.inq.get_many(50, timeout=0.05, finish=False)
            time.sleep(0.002)
            self.table.deliver(batch)
            self.inq.task_done(len(batch))


class Late:
    """A backbone with a thread of its own, as one with a broker has."""

    def __init__(self) -> None:
        self.table = TopicTable()
        self.worker: Worker | None = None

    @threatbus.backbone
    def run(self, inq: MessageQueue) -> None:
        """Start the worker."""
        self.worker = Worker(inq, self.table)
        self.worker.start()

    @threatbus.backbone
    def subscribe(self, topic: str, q: Any) -> None:
        """Subscribe."""
        self.table.subscribe(topic, q)

    @threatbus.backbone
    def unsubscribe(self, topic: str, q: Any) -> None:
        """Unsubscribe."""
        self.table.unsubscribe(topic, q)

    @threatbus.backbone
    def stop(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.stop()
            self.worker.join()


@pytest.fixture(params=["late", "old", "all"])
def backbones(request: pytest.FixtureRequest, plugins: TestPlugins) -> dict[str, None]:
    """The in-memory backbone and others, one of them written for 2022.5.16."""
    plugins.backbone("late", Late)
    plugins.backbone("old", plugins.module(old_plugins.BACKBONE))
    others = ["late", "old"] if request.param == "all" else [request.param]
    return dict.fromkeys(["inmem", *others])


def everything_delivered(bus: threatbus.ThreatBus) -> bool:
    return all(inq["messages"] == 0 for inq in bus.stats()["inq"].values()) and bus.intake.join(0)


def test_every_subscriber_gets_each_message_once_and_in_order(
    backbones: dict[str, None], start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS, backbones)
    outqs = [open_app.services.outq(f"somebody {number}") for number in range(3)]
    foreign: queue.Queue[Any] = queue.Queue()
    for outq in outqs:
        open_app.subscribe(["stix2", "stix2/indicator"], outq)
    open_app.subscribe("stix2", foreign)
    batch = indicators(150)
    for start in range(0, 150, 7):
        open_app.inq.put_many(batch[start : start + 7])
    eventually(lambda: everything_delivered(bus))
    for outq in outqs:
        assert [message.data for message in outq.get_many(1000)] == [m.data for m in batch]
    names = [foreign.get(timeout=SOON).name for _ in range(150)]
    assert names == [str(number) for number in range(150)]
    assert foreign.empty()
    for inq in bus.stats()["inq"].values():
        assert inq["put"] == 150


def test_a_snapshot_is_asked_for_and_answered_once(
    backbones: dict[str, None], start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS, backbones)
    history = [stix_object(indicator(name=str(number))) for number in range(20)]

    def answer(request: Any, result_q: Any) -> None:
        for each in history:
            result_q.put(SnapshotEnvelope(request.snapshot_type, request.snapshot_id, each))

    open_app.answer = answer
    other, asking = open_app.services.outq("other"), open_app.services.outq("asking")
    open_app.subscribe("stix2", other)
    assert open_app.subscribe("stix2/indicator", asking, DAY)
    eventually(lambda: asking.qsize() >= 20)
    eventually(lambda: everything_delivered(bus))
    assert open_app.calls == ["run", "snapshot"]
    assert [message.topic for message in other.get_many(100)] == [SNAPSHOT_REQUEST]
    got = asking.get_many(100)
    assert len(got) == 20
    assert {message.topic for message in got} == {INDICATOR}


def test_an_old_backbone_alone_gives_one_copy_of_overlapping_topics(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp
) -> None:
    module = plugins.module(old_plugins.BACKBONE)
    plugins.backbone("old", module)
    bus = start_bus(APPS, {"old": None})
    outq = open_app.services.outq("somebody")
    open_app.subscribe("stix2/indicator", outq)
    open_app.subscribe(["stix2", "stix2/"], outq)
    batch = indicators(20)
    open_app.inq.put_many(batch)
    eventually(lambda: everything_delivered(bus))
    assert outq.get_many(100) == batch
    open_app.unsubscribe(["stix2", "stix2/"], outq)
    batch = indicators(20)
    open_app.inq.put_many(batch)
    eventually(lambda: everything_delivered(bus))
    assert outq.get_many(100) == batch
    open_app.unsubscribe("stix2/indicator", outq)
    left = plugins.imported(module).subscriptions
    assert set(left) == {"threatbus/"}


def test_an_old_backbone_that_delivers_under_its_lock_survives_queues_that_overflow(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp
) -> None:
    plugins.backbone("old", plugins.module(old_plugins.BACKBONE))
    bus = start_bus(APPS, {"old": None}, queues={"outq_messages": 5})
    steady: queue.Queue[Any] = queue.Queue()
    stuck: queue.Queue[Any] = queue.Queue(1)
    native = open_app.services.outq("native")
    open_app.subscribe("stix2", stuck)
    open_app.subscribe("stix2", native)
    open_app.subscribe("stix2", steady)
    got = []
    for message in indicators(30):
        open_app.inq.put_many([message])
        got.append(steady.get(timeout=SOON).name)
    assert got == [str(number) for number in range(30)]
    eventually(lambda: list(bus.stats()["subscribers"]) == ["foreign queue 2"])
    assert native.closed


def test_bounds_of_inq_hold_for_the_slowest_backbone(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp
) -> None:
    plugins.backbone("late", Late)
    bus = start_bus(APPS, {"inmem": None, "late": None}, queues={"inq_messages": 10})
    outq = open_app.services.outq("somebody")
    open_app.subscribe("stix2", outq)
    batch = indicators(300)
    for message in batch:
        open_app.inq.put_many([message])
    assert outq.get_many(1000) == batch
    assert bus.stats()["inq"]["late"]["high_water"] <= 11
    assert open_app.services.outq_bounds == Bounds()
