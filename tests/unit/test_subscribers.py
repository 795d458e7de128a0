"""Subscribers: second copies, and snapshots that must not overwrite."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from helpers.documents import (
    indicator,
    indicator_message,
    indicators,
    sighting_message,
    stix_object,
    timestamp,
)
from helpers.waiting import finished, in_threads

from threatbus import subscribers
from threatbus.messages import INDICATOR, Message
from threatbus.queues import Bounds, MessageQueue
from threatbus.subscribers import SeenIds, SnapshotGuard, Subscriber

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
