"""The queue: order, bounds, policies, counters, and what a foreign plugin expects of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import stix2
from helpers.documents import (
    indicator,
    indicator_message,
    indicators,
    name_of,
    sighting,
    stix_object,
)
from helpers.waiting import SOON, eventually, finished, in_threads, wait_for

from threatbus.errors import Overflow, Rejected
from threatbus.gate import Gate
from threatbus.messages import INDICATOR, Message
from threatbus.queues import (
    BATCH_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    Bounds,
    MessageQueue,
    OverflowPolicy,
    size_of,
)


def names(batch: Sequence[Message]) -> list[str]:
    return [name_of(message) for message in batch]


def put_one_by_one(q: MessageQueue, count: int) -> None:
    for message in indicators(count):
        q.put_many([message])


def drop_oldest(messages: int = 1_000_000, size: int = 1 << 30) -> MessageQueue:
    return MessageQueue("q", Bounds(messages, size), OverflowPolicy.DROP_OLDEST)


# Putting and getting.


def test_messages_come_out_in_the_order_they_went_in() -> None:
    q = MessageQueue("q")
    batch = indicators(7)
    q.put_many(batch[:3])
    q.put_many(batch[3:])
    assert q.get_many(5) + q.get_many(5) == batch


def test_an_empty_batch_is_nothing() -> None:
    q = MessageQueue("q")
    q.put_many([])
    assert q.stats().put == 0
    assert q.get_many(10) == []


def test_get_many_waits_for_the_first_message_and_no_longer() -> None:
    q = MessageQueue("q")
    got: list[Message] = []
    thread = threading.Thread(target=lambda: got.extend(q.get_many(10, None)), daemon=True)
    thread.start()
    eventually(lambda: q._getters == 1, what="the reader waits")
    batch = indicators(2)
    q.put_many(batch)
    finished(thread)
    assert got == batch


def test_get_many_gives_nothing_when_its_time_is_over() -> None:
    assert MessageQueue("q").get_many(10, 0.01) == []


def test_a_reader_that_waits_is_woken_when_the_queue_is_closed() -> None:
    q = MessageQueue("q")
    thread = threading.Thread(target=q.get_many, args=(10, None), daemon=True)
    thread.start()
    eventually(lambda: q._getters == 1, what="the reader waits")
    q.close()
    finished(thread)


def test_every_waiting_reader_gets_one_of_the_messages_of_a_batch() -> None:
    q = MessageQueue("q")
    got: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=lambda: got.put(q.get_many(1, None)), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: q._getters == 4, what="four readers wait")
    q.put_many(indicators(4))
    for thread in threads:
        finished(thread)
    assert sorted(names([got.get()[0] for _ in range(4)])) == ["0", "1", "2", "3"]


def test_nothing_is_lost_or_doubled_between_many_writers_and_readers() -> None:
    q = MessageQueue("q")
    each, writers = 500, 4
    got: list[list[str]] = [[], []]

    def write(writer: int) -> None:
        for number in range(each):
            q.put_many([Message(INDICATOR, f"{writer} {number}".encode())])

    def read(into: list[str]) -> None:
        while batch := q.get_many(7, SOON):
            if batch[0].data == b"end":
                return
            into.extend(message.data.decode() for message in batch if message.data != b"end")
            if batch[-1].data == b"end":
                return

    readers = [threading.Thread(target=read, args=(into,), daemon=True) for into in got]
    for reader in readers:
        reader.start()
    in_threads(*[partial(write, writer) for writer in range(writers)])
    for _ in range(100):
        q.put_many([Message(INDICATOR, b"end")])
    for reader in readers:
        finished(reader)
    everything = got[0] + got[1]
    assert len(everything) == len(set(everything)) == each * writers
    for into in got:
        for writer in range(writers):
            numbers = [int(line.split()[1]) for line in into if line.startswith(f"{writer} ")]
            assert numbers == sorted(numbers)


def test_a_batch_of_large_messages_ends_early_and_loses_nothing() -> None:
    q = MessageQueue("q")
    large = [Message(INDICATOR, b"x" * (BATCH_BYTES // 2), number) for number in range(7)]
    q.put_many(large)
    sizes = []
    got: list[Message] = []
    while batch := q.get_many(100):
        sizes.append(len(batch))
        got += batch
    assert got == large
    assert max(sizes) == 2
    assert q.stats().bytes == 0


def test_a_message_larger_than_a_batch_still_comes_out() -> None:
    q = MessageQueue("q")
    huge = Message(INDICATOR, b"x" * (3 * BATCH_BYTES))
    q.put_many([huge, huge])
    assert q.get_many(10) == [huge]
    assert q.get_many(10) == [huge]


# Callbacks.


def test_a_reader_is_told_once_when_the_queue_is_no_longer_empty() -> None:
    calls: list[int] = []
    q = MessageQueue("q", on_ready=lambda: calls.append(1))
    q.put_many(indicators(1))
    q.put_many(indicators(1))
    assert len(calls) == 1
    q.get_many(10)
    q.put_many(indicators(1))
    assert len(calls) == 2


def test_a_callback_that_fails_costs_neither_the_putter_nor_the_messages() -> None:
    def fail() -> None:
        raise RuntimeError("the reader has a bug")

    q = MessageQueue("q", Bounds(2), on_ready=fail, on_overflow=fail)
    others: list[str] = []
    q.when_overflowed(lambda: others.append("told"))
    q.put_many(indicators(2))
    assert q.qsize() == 2
    q.put_many(indicators(1))
    assert q.closed
    assert others == ["told"]


def test_callbacks_may_use_the_queue() -> None:
    taken: list[Message] = []
    q = MessageQueue("q", on_ready=lambda: taken.extend(q.get_many(10)))
    batch = indicators(1)
    q.put_many(batch)
    assert taken == batch


# Bounds and policies.


def test_disconnect_closes_the_queue_lets_go_of_everything_and_says_so_once() -> None:
    calls: list[int] = []
    q = MessageQueue("q", Bounds(3), on_overflow=lambda: calls.append(1))
    q.put_many(indicators(3))
    q.put_many(indicators(2))
    q.put_many(indicators(1))
    stats = q.stats()
    assert (stats.closed, stats.messages, stats.bytes) == (True, 0, 0)
    assert (stats.put, stats.dropped) == (3, 6)
    assert len(calls) == 1
    assert q.get_many(10, None) == []


def test_disconnect_is_logged_with_the_number_of_messages(
    caplog: pytest.LogCaptureFixture,
) -> None:
    q = MessageQueue("outq of somebody", Bounds(3))
    q.put_many(indicators(4))
    assert "outq of somebody was full and is closed: 4 messages let go" in caplog.text


def test_drop_oldest_keeps_the_newest_in_order() -> None:
    q = drop_oldest(messages=5)
    batch = indicators(12)
    for message in batch:
        q.put_many([message])
    assert q.get_many(100) == batch[-5:]
    assert q.stats().dropped == 7


def test_drop_oldest_keeps_the_newest_part_of_a_batch_that_is_larger_than_the_queue() -> None:
    q = drop_oldest(messages=5)
    batch = indicators(12)
    q.put_many(batch)
    assert q.get_many(100) == batch[-5:]
    assert q.stats().dropped == 7
    assert q.unfinished == 0


def test_drop_oldest_is_bounded_in_bytes_as_well() -> None:
    message = indicator_message()
    q = drop_oldest(size=3 * size_of([message]))
    q.put_many([message] * 10)
    assert q.qsize() == 3
    q.put_many([Message(INDICATOR, b"x" * q.bounds.bytes)])
    assert q.qsize() == 3, "what never fits pushes nothing out"


def test_drop_oldest_says_so_but_not_for_each_message(caplog: pytest.LogCaptureFixture) -> None:
    q = drop_oldest(messages=1)
    for message in indicators(100):
        q.put_many([message])
    assert caplog.text.count("oldest messages make room") == 1


def test_block_takes_what_is_on_its_way_and_keeps_the_gate_shut_until_there_is_room() -> None:
    gate = Gate()
    q = MessageQueue("q", Bounds(10), OverflowPolicy.BLOCK, gate=gate)
    q.put_many(indicators(15))
    assert q.qsize() == 15
    assert not gate.is_open
    q.get_many(5)
    assert not gate.is_open, "a tenth has to be free first"
    q.get_many(1)
    assert gate.wait(0)
    assert q.stats().dropped == 0


def test_the_gate_is_announced_when_no_lock_is_held() -> None:
    gate = Gate()
    q = MessageQueue("q", Bounds(2), OverflowPolicy.BLOCK, gate=gate)
    sizes: list[int] = []

    def look_and_put() -> None:
        q.put_many(indicators(1))
        sizes.append(q.stats().messages)

    gate.on_open(look_and_put)
    q.put_many(indicators(2))
    assert len(q.get_many(2)) == 2
    assert sizes == [1]


def test_a_source_that_fails_when_the_gate_opens_does_not_cost_the_reader_its_messages() -> None:
    gate = Gate()
    q = MessageQueue("q", Bounds(2), OverflowPolicy.BLOCK, gate=gate)

    def fail() -> None:
        raise RuntimeError("the source has a bug")

    gate.on_open(fail)
    batch = indicators(2)
    q.put_many(batch)
    assert q.get_many(2) == batch


@pytest.mark.parametrize(
    "empty",
    [lambda q: q.close(), lambda q: q.get(block=False), lambda q: q.consume(lambda *_: None)],
    ids=["close", "get", "consume"],
)
def test_whatever_empties_a_full_queue_opens_the_gate(
    empty: Callable[[MessageQueue], object],
) -> None:
    gate = Gate()
    told: list[int] = []
    gate.on_open(lambda: told.append(1))
    q = MessageQueue("q", Bounds(1), OverflowPolicy.BLOCK, gate=gate)
    q.put_many([indicator_message()])
    assert not gate.is_open
    empty(q)
    assert gate.wait(0)
    assert told == [1]


def test_a_queue_that_was_closed_cannot_shut_the_gate() -> None:
    gate = Gate()
    q = MessageQueue("q", Bounds(1), OverflowPolicy.BLOCK, gate=gate)
    q.close()
    q.put_many(indicators(5))
    assert gate.is_open
    assert q.stats().dropped == 5


def test_only_the_policy_block_shuts_the_gate() -> None:
    gate = Gate()
    q = MessageQueue("q", Bounds(1), OverflowPolicy.DROP_OLDEST, gate=gate)
    q.put_many(indicators(5))
    assert gate.is_open


def test_blocked_sources_and_a_slow_reader_neither_lose_nor_wait_for_ever() -> None:
    gate = Gate()
    q = MessageQueue("q", Bounds(20), OverflowPolicy.BLOCK, gate=gate)
    each, sources = 500, 3
    got: list[Message] = []

    def write() -> None:
        for message in [Message(INDICATOR, b"x", number) for number in range(each)]:
            assert gate.wait(SOON)
            q.put_many([message])

    def read() -> None:
        while len(got) < each * sources:
            batch = q.get_many(7, SOON)
            assert batch
            got.extend(batch)

    in_threads(*[write] * sources, read)
    assert q.stats().high_water <= 20 + sources
    assert gate.is_open


def test_bytes_are_counted_with_what_a_message_costs_besides() -> None:
    q = MessageQueue("q")
    batch = [Message(INDICATOR, b"x" * 10), Message(INDICATOR, b"x" * 20)]
    q.put_many(batch)
    assert q.stats().bytes == 30 + 2 * MESSAGE_OVERHEAD_BYTES
    q.get_many(1)
    assert q.stats().bytes == 20 + MESSAGE_OVERHEAD_BYTES


def test_the_high_water_mark_stays() -> None:
    q = MessageQueue("q")
    q.put_many(indicators(5))
    q.get_many(5)
    q.put_many(indicators(2))
    assert q.stats().high_water == 5


def test_closing_is_idempotent_and_counts_what_was_let_go() -> None:
    q = MessageQueue("q")
    q.put_many(indicators(5))
    q.close()
    q.close()
    assert q.stats().dropped == 5


def test_putting_while_another_thread_closes_leaves_nothing_behind() -> None:
    for _ in range(50):
        q = MessageQueue("q")
        in_threads(partial(put_one_by_one, q, 20), q.close)
        stats = q.stats()
        assert (stats.messages, stats.bytes, q.unfinished) == (0, 0, 0)
        assert stats.dropped == 20


# A consumer instead of a reader.


def test_a_consumer_gets_each_batch_in_the_thread_that_puts() -> None:
    q = MessageQueue("q")
    seen: list[tuple[int, list[Message]]] = []
    q.consume(lambda batch, _: seen.append((threading.get_ident(), list(batch))))
    batch = indicators(3)
    q.put_many(batch)
    assert seen == [(threading.get_ident(), batch)]
    assert q.stats().put == 3
    assert q.empty()


def test_what_is_put_while_the_consumer_gets_what_waited_does_not_overtake() -> None:
    q = MessageQueue("q")
    waited, later = indicators(2)
    done: list[Message] = []

    def consume(batch: Sequence[Message], _: int) -> None:
        if waited in batch:
            in_threads(lambda: q.put_many([later]))
        done.extend(batch)

    q.put_many([waited])
    q.consume(consume)
    assert done == [waited, later]


def test_nothing_is_lost_or_reordered_when_a_consumer_is_set_under_load() -> None:
    q = MessageQueue("q")
    each = 300
    got: list[bytes] = []
    begun = threading.Event()

    def write() -> None:
        for number in range(each):
            q.put_many([Message(INDICATOR, str(number).encode())])
            if number == 20:
                begun.set()

    def consume() -> None:
        wait_for(begun)
        q.consume(lambda batch, _: got.extend(message.data for message in batch))

    in_threads(write, consume)
    assert got == [str(number).encode() for number in range(each)]


def test_a_closed_queue_hands_nothing_to_its_consumer() -> None:
    q = MessageQueue("q")
    got: list[Message] = []
    q.consume(lambda batch, _: got.extend(batch))
    q.close()
    q.put_many(indicators(3))
    assert got == []
    assert q.stats().dropped == 3


# What a foreign plugin expects of a queue.


def test_put_and_get_carry_stix2_objects() -> None:
    q = MessageQueue("q")
    given = stix_object(indicator())
    q.put(given)
    got = q.get(block=True, timeout=1)
    assert type(got) is stix2.Indicator
    assert got == given


def test_put_refuses_what_is_no_message() -> None:
    with pytest.raises(Rejected, match="a dict is no STIX"):
        MessageQueue("q").put(indicator())


def test_put_into_a_closed_queue_says_so() -> None:
    q = MessageQueue("q")
    q.close()
    with pytest.raises(Overflow, match="q is closed"):
        q.put(stix_object(indicator()))


def test_get_raises_empty_like_a_queue() -> None:
    q = MessageQueue("q")
    with pytest.raises(queue.Empty):
        q.get(block=True, timeout=0.01)
    with pytest.raises(queue.Empty):
        q.get(block=False)
    with pytest.raises(queue.Empty):
        q.get_nowait()


def test_get_leaves_out_what_no_object_can_be_made_of() -> None:
    q = MessageQueue("q")
    q.put_many([Message(INDICATOR, b"{}"), indicator_message(name="good")])
    got: Any = q.get(timeout=1)
    assert got.name == "good"
    q.task_done()
    assert q.unfinished == 0


def test_join_waits_until_all_that_was_got_is_done() -> None:
    q = MessageQueue("q")
    q.put(stix_object(indicator()))
    q.put(stix_object(sighting()))
    assert not q.join(0)
    q.get()
    q.task_done()
    assert not q.join(0)
    q.get()
    assert not q.join(0)
    thread = threading.Thread(target=q.join, daemon=True)
    thread.start()
    q.task_done()
    finished(thread)
    assert q.join(0)


def test_task_done_too_often_is_an_error_as_with_any_queue() -> None:
    q = MessageQueue("q")
    q.put_many(indicators(2))
    with pytest.raises(ValueError, match="more often"):
        q.task_done()
    q.get()
    q.task_done()
    with pytest.raises(ValueError, match="more often"):
        q.task_done()


def test_messages_taken_unfinished_count_until_they_are_done() -> None:
    q = MessageQueue("q")
    q.put_many(indicators(5))
    q.get_many(3, finish=False)
    assert (q.qsize(), q.unfinished) == (2, 5)
    q.task_done(3)
    assert q.unfinished == 2


def test_the_end_of_work_on_a_queue_that_was_closed_meanwhile_is_no_error() -> None:
    q = MessageQueue("q")
    q.put_many(indicators(5))
    q.get_many(3, finish=False)
    q.close()
    q.task_done(3)
    assert q.join(0)


def test_qsize_empty_and_full_tell_what_is_there() -> None:
    q = MessageQueue("q", Bounds(2))
    assert (q.qsize(), q.empty(), q.full()) == (0, True, False)
    q.put_many(indicators(2))
    assert (q.qsize(), q.empty(), q.full()) == (2, False, True)
