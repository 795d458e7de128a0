"""Full queues: the three policies, the gate, and who notices."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp
from helpers.documents import indicators
from helpers.waiting import SOON, eventually, finished, wait_for

from threatbus.messages import Message

APPS = {"open": None}


def limits(overflow: str, **more: int) -> dict[str, Any]:
    return {"overflow": overflow, "outq_messages": 10, **more}


def test_disconnect_ends_the_subscription_and_frees_its_memory_and_the_others_go_on(
    start_bus: Buses, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start_bus(APPS, queues=limits("disconnect"))
    told = threading.Event()
    slow = open_app.services.outq("slow", on_overflow=told.set)
    quick = open_app.services.outq("quick")
    for outq in (slow, quick):
        open_app.subscribe("stix2", outq)
    batch = indicators(25)
    got = []
    for message in batch:
        open_app.inq.put_many([message])
        got += quick.get_many(10)
    assert got == batch
    wait_for(told)
    assert slow.closed
    assert slow.stats().bytes == 0
    eventually(lambda: list(bus.stats()["subscribers"]) == ["quick"])
    assert "slow was full and is closed: 11 messages let go" in caplog.text
    eventually(lambda: "slow is unsubscribed" in caplog.text)


def test_a_plugin_may_unsubscribe_and_subscribe_anew_when_it_is_told_of_an_overflow(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS, queues=limits("disconnect"))
    second = open_app.services.outq("second")

    def again() -> None:
        open_app.unsubscribe("stix2", first)
        open_app.subscribe("stix2", second)

    first = open_app.services.outq("first", on_overflow=again)
    open_app.subscribe("stix2", first)
    finished(open_app.source(15))
    assert second.qsize() == 4
    assert list(bus.stats()["subscribers"]) == ["second"]


def test_drop_oldest_keeps_the_newest_and_counts_the_rest(
    start_bus: Buses, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start_bus(APPS, queues=limits("drop_oldest"))
    outq = open_app.services.outq("slow")
    open_app.subscribe("stix2", outq)
    batch = indicators(100)
    for message in batch:
        open_app.inq.put_many([message])
    assert bus.stats()["subscribers"]["slow"]["dropped"] == 90
    assert outq.get_many(100) == batch[-10:]
    assert caplog.text.count("slow is full: the oldest messages make room") == 1


def test_block_lets_sources_wait_until_the_slowest_has_read(
    start_bus: Buses, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    start_bus(APPS, queues=limits("block"))
    told = threading.Event()
    open_app.inq.on_writable(told.set)
    outq = open_app.services.outq("slow")
    open_app.subscribe("stix2", outq)
    source = open_app.source(200)
    eventually(lambda: not open_app.inq.writable)
    assert not told.is_set()
    got: list[Message] = []
    while len(got) < 200:
        batch = outq.get_many(3, SOON)
        assert batch
        got += batch
    finished(source)
    assert got == source.messages
    wait_for(told)
    assert open_app.inq.writable
    assert outq.stats().high_water <= 11
    assert "slow is full: sources wait" in caplog.text


@pytest.mark.parametrize("how", ["unsubscribe", "close"])
def test_a_full_queue_that_goes_away_lets_the_sources_go_on(
    how: str, start_bus: Buses, open_app: OpenApp
) -> None:
    start_bus(APPS, queues=limits("block"))
    outq = open_app.services.outq("slow")
    open_app.subscribe("stix2", outq)
    open_app.inq.put_many(indicators(10))
    assert not open_app.inq.writable
    if how == "close":
        outq.close()
    else:
        open_app.unsubscribe("stix2", outq)
    assert open_app.inq.writable


def test_policies_hold_for_foreign_queues_too(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus(APPS, queues=limits("block"))
    foreign: queue.Queue[Any] = queue.Queue(1)
    open_app.subscribe("stix2", foreign)
    source = open_app.source(600)
    got = [foreign.get(timeout=SOON).name for _ in range(600)]
    finished(source)
    assert got == [str(number) for number in range(600)]
    assert bus.stats()["subscribers"]["foreign queue 1"]["dropped"] == 0


def test_a_bus_whose_sources_wait_can_be_stopped(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus(APPS, queues=limits("block"))
    outq = open_app.services.outq("slow")
    open_app.subscribe("stix2", outq)
    source = open_app.source(20)
    eventually(lambda: not open_app.inq.writable)
    bus.stop()
    wait_for(source.refused)
    finished(source)
