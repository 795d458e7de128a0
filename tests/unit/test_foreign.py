"""Queues that plugins of the old kind bring, and who feeds them."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import stix2
from helpers.documents import (
    indicator_message,
    indicators,
)
from helpers.waiting import SOON, eventually, finished, wait_for

from threatbus.foreign import ForeignFeeder
from threatbus.messages import INDICATOR, Message
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy


class Feeding:
    """A feeder and its two queues."""

    def __init__(
        self,
        foreign: Any,
        bounds: Bounds | None = None,
        stop_asked: threading.Event | None = None,
    ) -> None:
        self.outq = MessageQueue("outq", bounds, OverflowPolicy.DROP_OLDEST)
        self.refused = threading.Event()
        self.feeder = ForeignFeeder(self.outq, foreign, self.refused.set)
        if stop_asked is not None:
            self.feeder._stop_asked = stop_asked
        self.feeder.start()


@pytest.mark.parametrize(
    "make",
    [queue.Queue, queue.LifoQueue, multiprocessing.JoinableQueue, multiprocessing.Queue],
    ids=["Queue", "LifoQueue", "JoinableQueue", "mp.Queue"],
)
def test_a_foreign_queue_gets_plain_objects(make: Callable[[], Any]) -> None:
    foreign = make()
    feeding = Feeding(foreign)
    feeding.outq.put_many([indicator_message(name="1")])
    got = foreign.get(block=True, timeout=SOON)
    assert type(got) is stix2.Indicator
    assert got.name == "1"
    eventually(lambda: feeding.feeder.waiting == 0)
    feeding.feeder.stop()
    finished(feeding.feeder)


def test_the_order_is_kept_and_one_message_without_an_object_costs_only_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign: queue.Queue[Any] = queue.Queue()
    feeding = Feeding(foreign)
    batch = indicators(20)
    feeding.outq.put_many([*batch[:10], Message(INDICATOR, b"{}"), *batch[10:]])
    assert [foreign.get(timeout=SOON).name for _ in range(20)] == [str(n) for n in range(20)]
    assert "a message for outq is left out" in caplog.text
    feeding.feeder.stop()


def test_a_foreign_queue_that_is_not_read_fills_and_then_the_outq_follows_its_policy() -> None:
    foreign: queue.Queue[Any] = queue.Queue(3)
    feeding = Feeding(foreign, Bounds(5))
    eventually(lambda: feeding.outq._getters)

    def is_full() -> bool:
        # The feeder takes a batch in hand before it meets the full queue.
        feeding.outq.put_many(indicators(10))
        return foreign.full() and feeding.outq.qsize() == 5

    eventually(is_full)
    assert feeding.feeder.waiting >= 8
    feeding.feeder.stop()
    finished(feeding.feeder)


def test_a_feeder_runs_only_so_far_ahead_of_a_queue_without_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threatbus.foreign.FOREIGN_AHEAD", 10)
    monkeypatch.setattr("threatbus.foreign.FEED_BATCH", 5)
    foreign: queue.Queue[Any] = queue.Queue()
    waiting = threading.Event()

    class Telling(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.set()
            return super().wait(timeout)

    feeding = Feeding(foreign, stop_asked=Telling())
    feeding.outq.put_many(indicators(100))
    wait_for(waiting, "the feeder waits")
    assert 10 <= foreign.qsize() <= 15
    assert [foreign.get(timeout=SOON).name for _ in range(100)] == [str(n) for n in range(100)]
    feeding.feeder.stop()


def test_a_queue_that_was_closed_by_its_plugin_ends_the_feeder() -> None:
    foreign: Any = multiprocessing.JoinableQueue()
    foreign.close()
    feeding = Feeding(foreign)
    feeding.outq.put_many(indicators(1))
    wait_for(feeding.refused)
    finished(feeding.feeder)
    assert feeding.outq.closed


def test_a_feeder_that_is_finished_hands_over_what_had_come_and_ends() -> None:
    foreign: queue.Queue[Any] = queue.Queue()
    feeding = Feeding(foreign)
    feeding.outq.put_many(indicators(700))
    feeding.feeder.finish()
    finished(feeding.feeder)
    assert foreign.qsize() == 700
    assert feeding.outq.closed


def test_a_feeder_that_cannot_finish_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threatbus.foreign.FINISH_SECS", 0.05)
    feeding = Feeding(queue.Queue(1))
    feeding.outq.put_many(indicators(10))
    feeding.feeder.finish()
    finished(feeding.feeder)
    assert feeding.outq.closed


def test_a_feeder_that_waits_for_either_queue_ends_at_once_when_stopped() -> None:
    idle = Feeding(queue.Queue())
    stuck = Feeding(queue.Queue(1))
    stuck.outq.put_many(indicators(10))
    eventually(lambda: stuck.feeder.waiting >= 2)
    for feeding in (idle, stuck):
        began = time.monotonic()
        feeding.feeder.stop()
        finished(feeding.feeder)
        assert time.monotonic() - began < SOON / 2, "and not after FINISH_SECS"


def test_a_feeder_that_is_stopped_holds_no_process_before_its_thread_has_a_turn() -> None:
    class Multiprocessing(queue.Queue[Any]):
        """A queue whose own thread the interpreter waits for, unless it is told not to."""

        forgotten = False
        turn = threading.Event()

        def put(self, *_: Any) -> None:
            wait_for(self.turn)

        def cancel_join_thread(self) -> None:
            self.forgotten = True

    foreign = Multiprocessing()
    feeding = Feeding(foreign)
    feeding.outq.put_many(indicators(1))
    feeding.feeder.stop()
    assert foreign.forgotten
    foreign.turn.set()
    finished(feeding.feeder)
