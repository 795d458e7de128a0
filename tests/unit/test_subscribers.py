"""Subscribers: second copies, snapshots that must not overwrite, and foreign queues."""

from __future__ import annotations

import multiprocessing
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import stix2
from helpers.documents import (
    indicator,
    indicator_message,
    indicators,
    sighting_message,
    stix_object,
    timestamp,
)
from helpers.waiting import SOON, eventually, finished, in_threads, wait_for

from threatbus import subscribers
from threatbus.messages import INDICATOR, Message
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.subscribers import ForeignFeeder, SeenIds, SnapshotGuard, Subscriber

LATER = time.monotonic() + 3600


def with_ids(*ids: int | str) -> list[Message]:
    return [Message(INDICATOR, b"{}", number) for number in ids]


def ids_of(batch: list[Message]) -> list[int | str]:
    return [message.id for message in batch]


def subscriber(*, several_backbones: bool = False, **more: Any) -> Subscriber:
    return Subscriber("sub", MessageQueue("q", **more), several_backbones=several_backbones)


# Second copies.


def test_the_second_copy_of_a_message_is_dropped() -> None:
    seen = SeenIds()
    assert ids_of(seen.first_copies(with_ids(1, 2, 2, 4))) == [1, 2, 4]
    assert ids_of(seen.first_copies(with_ids(1, 3, 4, 5))) == [3, 5]


def test_ids_of_other_nodes_and_of_objects_made_anew_always_count_as_new() -> None:
    seen = SeenIds()
    batch = with_ids("a", "a", 0, 0)
    assert seen.first_copies(batch) == batch


def test_an_id_that_left_the_window_counts_as_new() -> None:
    seen = SeenIds(window=64)
    seen.first_copies(with_ids(1, 100))
    assert ids_of(seen.first_copies(with_ids(1, 36, 37, 100))) == [1, 36, 37]
    assert ids_of(seen.first_copies(with_ids(37))) == []


def test_a_bit_of_an_old_id_does_not_hide_a_new_one() -> None:
    seen = SeenIds(window=64)
    for number in range(1, 500, 3):
        assert ids_of(seen.first_copies(with_ids(number, number))) == [number]
    assert ids_of(seen.first_copies(with_ids(10_000, 10_000, 9_999))) == [10_000, 9_999]


def test_copies_are_told_apart_whatever_the_order_in_which_two_backbones_deliver() -> None:
    chance = random.Random(7)
    seen = SeenIds(window=1024)
    copies = [number for number in range(1, 2000) for _ in range(2)]
    # Each copy up to 200 places from where it belongs.
    copies.sort(key=lambda number: number + chance.uniform(0, 200))
    assert sorted(ids_of(seen.first_copies(with_ids(*copies))), key=int) == list(range(1, 2000))


def test_a_subscriber_of_one_backbone_gets_everything() -> None:
    found = subscriber()
    batch = with_ids(1, 1)
    found.put_many(batch)
    assert found.queue.get_many(10) == batch


def test_a_subscriber_of_several_backbones_gets_each_message_once() -> None:
    found = subscriber(several_backbones=True)
    batch = indicators(200)
    for number, message in enumerate(batch, 1):
        message.id = number

    def deliver() -> None:
        for message in batch:
            found.put_many([message])

    in_threads(deliver, deliver)
    assert found.queue.get_many(1000) == batch
    assert found.queue.stats().put == 200


# Snapshots.


def test_a_body_is_let_pass_unless_something_as_new_came_live() -> None:
    guard = SnapshotGuard(LATER)
    live = indicator(modified=timestamp(10))
    guard.remember([indicator_message(**live)])
    assert not guard.lets_pass(indicator_message(**{**live, "modified": timestamp(9.999)}))
    assert not guard.lets_pass(indicator_message(**live))
    assert guard.lets_pass(indicator_message(**{**live, "modified": timestamp(10.001)}))
    assert guard.lets_pass(indicator_message(modified=timestamp(0))), "another id"


def test_time_zones_and_fractions_of_a_second_are_compared_as_times() -> None:
    guard = SnapshotGuard(LATER)
    live = indicator(modified="2026-11-24T12:00:00.1Z")
    guard.remember([indicator_message(**live)])
    same = {**live, "modified": "2026-11-24T12:00:00.100000Z"}
    assert not guard.lets_pass(indicator_message(**same))
    later = {**live, "modified": "2026-11-24T12:00:00.100001Z"}
    assert guard.lets_pass(indicator_message(**later))


def test_an_older_live_message_does_not_make_the_guard_forget_a_newer_one() -> None:
    guard = SnapshotGuard(LATER)
    document = indicator()
    for seconds in (20, 10):
        guard.remember([indicator_message(**{**document, "modified": timestamp(seconds)})])
    assert not guard.lets_pass(indicator_message(**{**document, "modified": timestamp(15)}))


def test_sightings_are_guarded_as_well() -> None:
    guard = SnapshotGuard(LATER)
    live = sighting_message()
    guard.remember([live])
    assert not guard.lets_pass(live)


def test_what_has_no_modified_is_as_of_now() -> None:
    guard = SnapshotGuard(LATER)
    bare = Message(INDICATOR, b'{"type": "indicator", "id": "indicator--1"}')
    old = Message(INDICATOR, b'{"id": "indicator--1", "modified": "2020-01-01T00:00:00Z"}')
    guard.remember([bare])
    assert not guard.lets_pass(old)
    assert guard.lets_pass(bare), "its now is later"


def test_a_body_is_taken_only_while_a_snapshot_is_open() -> None:
    found = subscriber()
    body = indicator_message()
    assert not found.put_snapshot_body(body, LATER)
    found.open_snapshot(LATER)
    assert found.put_snapshot_body(body, LATER)
    found.close_snapshots()
    assert not found.put_snapshot_body(body, LATER)
    assert found.queue.get_many(10) == [body]


def test_a_body_that_is_outdated_is_counted() -> None:
    found = subscriber()
    found.open_snapshot(LATER)
    live = indicator_message()
    found.put_many([live])
    assert not found.put_snapshot_body(live, LATER)
    assert found.outdated_bodies == 1
    assert found.queue.get_many(10) == [live]


def test_a_snapshot_is_over_after_its_deadline_and_bodies_postpone_it() -> None:
    found = subscriber()
    found.open_snapshot(time.monotonic() - 1)
    found.put_many([indicator_message()])
    assert not found.put_snapshot_body(indicator_message(), LATER)
    found.open_snapshot(time.monotonic() + 3600)
    assert found.put_snapshot_body(indicator_message(), LATER + 3600)
    assert found._guard is not None
    assert found._guard.deadline == LATER + 3600


def test_too_much_that_comes_live_ends_the_snapshots_instead_of_overwriting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscribers, "MAX_REMEMBERED_OBJECTS", 10)
    found = subscriber()
    found.open_snapshot(LATER)
    live = indicators(11)
    found.put_many(live)
    found.put_many(indicators(11))
    assert found._guard is not None
    assert found._guard._live == {}
    # A second snapshot of the same subscriber must not make it forget.
    found.open_snapshot(LATER)
    assert not found.put_snapshot_body(live[0], LATER)
    assert caplog.text.count("snapshots of sub end early") == 1


# What an old backbone puts, and callbacks.


def test_an_old_backbone_puts_plain_objects() -> None:
    found = subscriber()
    found.put(stix_object(indicator(name="plain")))
    got: Any = found.queue.get(timeout=1)
    assert got.name == "plain"


def test_what_an_old_backbone_must_not_put_is_left_out_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = subscriber()
    for _ in range(10):
        found.put({"type": "indicator"})
    assert found.queue.empty()
    assert caplog.text.count("not for sub: a dict is no STIX") == 1


def test_a_plugin_may_use_its_subscriber_when_the_queue_overflows() -> None:
    opened: list[str] = []
    found = subscriber(bounds=Bounds(1))

    def again() -> None:
        found.open_snapshot(LATER)
        opened.append("opened")

    found.queue.when_overflowed(again)
    thread = threading.Thread(target=found.put_many, args=(indicators(2),), daemon=True)
    thread.start()
    finished(thread)
    assert opened == ["opened"]


# Foreign queues.


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
    monkeypatch.setattr(subscribers, "FOREIGN_AHEAD", 10)
    monkeypatch.setattr(subscribers, "FEED_BATCH", 5)
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


def test_the_process_may_end_as_soon_as_a_feeder_was_stopped() -> None:
    class Unread(queue.Queue[Any]):
        waited_for = True

        def cancel_join_thread(self) -> None:
            self.waited_for = False

    foreign = Unread()
    # Its thread has not come to its end; here it has not even begun.
    ForeignFeeder(MessageQueue("outq"), foreign, lambda: None).stop()
    assert not foreign.waited_for


def test_a_feeder_that_is_finished_hands_over_what_had_come_and_ends() -> None:
    foreign: queue.Queue[Any] = queue.Queue()
    feeding = Feeding(foreign)
    feeding.outq.put_many(indicators(700))
    feeding.feeder.finish()
    finished(feeding.feeder)
    assert foreign.qsize() == 700
    assert feeding.outq.closed


def test_a_feeder_that_cannot_finish_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "FINISH_SECS", 0.05)
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
        assert time.monotonic() - began < 1
