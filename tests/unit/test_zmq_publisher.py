"""The parts of delivery that need no socket."""

from __future__ import annotations

import itertools
import os
import random
import socket
import tempfile
import threading
from math import inf
from typing import Any

import pytest
from helpers.documents import indicators
from helpers.waiting import Clock, in_threads
from threatbus_zmq import publisher as module
from threatbus_zmq.connections import Connection, connection, hang_up, is_established, stands
from threatbus_zmq.mapping import Heads
from threatbus_zmq.pipes import PIPE_BYTES, SEND_MARK, Outflow
from threatbus_zmq.publisher import Publisher
from threatbus_zmq.window import UNDER_WAY_BYTES, Window

from threatbus.messages import INDICATOR, Message
from threatbus.queues import MessageQueue, size_of
from threatbus.wakeup import Wakeup


def batch(count: int, size: int = 500) -> list[Message]:
    return [Message(INDICATOR, b"x" * size) for _ in range(count)]


def add(window: Window, messages: list[Message]) -> None:
    window.add(list(messages), size_of(messages))


def taken(window: Window) -> list[Message]:
    return list(itertools.chain.from_iterable(window.take_all()[0]))


# The window.


def test_an_empty_window_covers_nothing_and_lacks_nothing() -> None:
    assert Window().take_all() == ([], 0)


def test_a_window_gives_what_was_sent_in_order_and_once() -> None:
    window, messages = Window(), indicators(30)
    for first in range(0, 30, 10):
        add(window, messages[first : first + 10])
    assert taken(window) == messages
    assert window.take_all() == ([], 0)


@pytest.mark.parametrize("size", [50, 500, 5_000, 20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("count", [1, 7, 500])
def test_a_window_covers_pipe_kernel_buffers_and_the_newest_batch(size: int, count: int) -> None:
    window = Window()
    sent = [batch(min(count, max(1, 1_000_000 // size)), size) for _ in range(400)]
    for each in sent:
        add(window, each)
    batches, uncovered = window.take_all()
    assert uncovered == 0
    held = sum(map(len, batches))
    in_pipe = min(SEND_MARK * size, PIPE_BYTES + 1_000_000 + size)
    needed = len(sent[-1]) * size + in_pipe + 6_300_000
    assert held * (size + 130) >= min(needed, sum(map(size_of, sent)))


@pytest.mark.parametrize("size", [50, 500, 20_000, 1_000_000])
def test_a_window_does_not_grow_with_what_is_sent(size: int) -> None:
    window = Window()
    for _ in range(300):
        add(window, batch(max(1, 1_000_000 // (size + 130)), size))
    assert window._bytes <= UNDER_WAY_BYTES + 2 * PIPE_BYTES + 4_000_000


def test_a_window_costs_little_more_than_a_slot_per_message_at_a_low_rate() -> None:
    window = Window()
    for _ in range(20_000):
        add(window, batch(1))
    assert len(window._batches) < 100


def test_a_window_counts_what_it_could_not_keep() -> None:
    window = Window()
    for _ in range(20):
        add(window, batch(1, 10_000_000))
    _, uncovered = window.take_all()
    assert uncovered == 0, "24 MiB are enough for frames of ten million bytes"
    for _ in range(6):
        add(window, batch(2, 40_000_000))
    held, uncovered = window.take_all()
    assert len(held) < 6
    assert uncovered == 12 - sum(map(len, held))


def test_an_emptied_window_begins_anew() -> None:
    window = Window()
    for _ in range(6):
        add(window, batch(2, 40_000_000))
    assert window.take_all()[1] > 0
    add(window, batch(3))
    assert len(taken(window)) == 3
    assert window.take_all()[1] == 0


def test_the_window_agrees_with_its_description_for_random_sends() -> None:
    chance = random.Random(3)
    for _ in range(30):
        window, sent = Window(), list[Message]()
        for _ in range(chance.randint(1, 150)):
            size = chance.choice((50, 500, 5000, 300_000))
            messages = batch(chance.randint(1, max(1, 400_000 // size)), size)
            add(window, messages)
            sent += messages
        held = taken(window)
        assert held == sent[len(sent) - len(held) :]
        assert len(held) == len(sent) or size_of(held) >= UNDER_WAY_BYTES


# Bytes in the pipe.


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


def test_small_messages_are_bounded_by_the_mark_alone() -> None:
    outflow = Outflow()
    assert all(outflow.admits(500, 500 * 600, ()) for _ in range(1000))


def test_large_messages_wait_while_the_kernels_buffer_is_full() -> None:
    near, far = pair()
    with near, far:
        near.setblocking(False)
        outflow, found = Outflow(), connection(near.fileno())
        admitted = 0
        while outflow.admits(1, 1_000_000, [found]):
            admitted += 1
            # What ZeroMQ's thread does: it fills the kernel's buffer.
            try:
                while True:
                    near.send(b"x" * 100_000)
            except BlockingIOError:
                pass
            assert admitted < 20
        assert admitted == -(-PIPE_BYTES // 1_000_000)
        far.setblocking(False)
        while not outflow.admits(1, 1_000_000, [found]):
            far.recv(1_000_000)


def test_an_unknown_or_ended_connection_holds_nothing_up() -> None:
    near, far = pair()
    found = connection(near.fileno())
    near.close()
    far.close()
    outflow = Outflow()
    assert all(outflow.admits(1, 1_000_000, [found, None]) for _ in range(100))


# Connections.


def test_a_connection_is_told_by_descriptor_and_peer() -> None:
    near, far = pair()
    found = connection(near.fileno())
    assert found == Connection(near.fileno(), *near.getpeername())
    assert stands(found)
    assert is_established(near)
    hang_up(found)
    assert far.recv(1) == b""
    near.close()
    assert not stands(found)
    far.close()


def test_a_descriptor_that_is_used_again_is_not_taken_for_the_old_connection() -> None:
    near, far = pair()
    found = connection(near.fileno())
    assert found is not None
    other, other_far = pair()
    descriptor = near.fileno()
    os.dup2(other.fileno(), descriptor)
    assert not stands(found)
    hang_up(found)
    other.send(b"x")
    assert other_far.recv(1) == b"x"
    for each in (near, far, other, other_far):
        each.close()


@pytest.mark.parametrize("descriptor", [-1, 10_000_000])
def test_what_is_no_descriptor_is_no_connection(descriptor: int) -> None:
    assert connection(descriptor) is None
    hang_up(Connection(descriptor, "127.0.0.1", 1))
    hang_up(None)


# Heads.


def test_a_head_is_topic_type_and_blank() -> None:
    heads = Heads("p" * 32)
    assert heads[INDICATOR] == b"p" * 32 + b"indicator "
    assert heads["stix2/malware"] == b"p" * 32 + b"malware "
    assert "stix2/malware" not in heads, "foreign topics without end are not remembered"


# The publisher without its socket.


def make(wake: Any = lambda: None) -> tuple[Publisher, Clock]:
    def outq(name: str, **callbacks: Any) -> MessageQueue:
        return MessageQueue(name, **callbacks)

    clock = Clock()
    return Publisher(outq, wake, lambda _: None, clock), clock


def connect(publisher: Publisher, p2p: str) -> Any:
    delivery = publisher.add(p2p, p2p)
    delivery.subscribed.append((p2p.encode(), None))
    return delivery


def test_one_turn_of_the_loop_is_bounded_however_many_subscribers_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher, _ = make()
    sent: list[bytes] = []
    monkeypatch.setattr(publisher, "_send", lambda frame, _: sent.append(frame))
    deliveries = [connect(publisher, f"{number:032}") for number in range(100)]
    for delivery in deliveries:
        delivery.outq.put_many(batch(1000))
    turns = 0
    while any(delivery.waiting for delivery in deliveries):
        before = len(sent)
        complete = publisher.flush()
        assert len(sent) - before <= module.TURN + module.BATCH
        # Nobody gets a second batch before everybody has had the first.
        counts = {delivery.sent for delivery in deliveries}
        assert max(counts) - min(counts) <= module.BATCH
        assert complete == (len(sent) % 50_000 == 0)
        assert publisher.due(100.0) in ((100.0,) if not complete else (100.0, inf))
        turns += 1
    assert len(sent) == 100_000
    assert turns == 10


def test_a_stalled_subscriber_is_tried_again_after_growing_delays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher, clock = make()
    stalled = connect(publisher, "a" * 32)
    stalled.outq.put_many(batch(10))
    delays = []
    for _ in range(10):
        assert publisher.flush()
        due = publisher.due(clock.now)
        delays.append(round(due - clock.now, 4))
        clock.now = due
    assert delays == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05, 0.05, 0.05]
    assert stalled.waiting == 10
    monkeypatch.setattr(publisher, "_send", lambda *_: None)
    assert publisher.flush()
    assert stalled.waiting == 0
    assert publisher.due(clock.now) == inf


def test_no_message_is_stuck_when_many_threads_put_while_the_loop_flushes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken = threading.Event()
    publisher, _ = make(woken.set)
    monkeypatch.setattr(publisher, "_send", lambda *_: None)
    deliveries = [connect(publisher, f"{number:032}") for number in range(5)]
    total, rounds = 4 * 5 * 2000, range(2000)

    def put() -> None:
        for _ in rounds:
            for delivery in deliveries:
                delivery.outq.put_many(batch(1, 10))

    def loop() -> None:
        # As the endpoint waits: not at all, or until it is woken.
        while sum(delivery.sent for delivery in deliveries) < total:
            if publisher.due(100.0) == inf:
                assert woken.wait(5), "a message waits and nobody is told"
            woken.clear()
            publisher.flush()

    in_threads(loop, put, put, put, put, timeout=30)


def test_what_the_loop_puts_itself_is_served_without_anybody_waking_it() -> None:
    publisher, clock = make()
    delivery = connect(publisher, "a" * 32)
    assert publisher.flush()
    assert publisher.due(clock.now) == inf
    delivery.outq.put_many(batch(1))
    assert publisher.due(clock.now) == clock.now


def test_an_outq_that_closed_itself_is_served_no_more() -> None:
    publisher, _ = make()
    delivery = connect(publisher, "a" * 32)
    delivery.outq.put_many(batch(3))
    delivery.outq.close()
    assert publisher.flush()
    assert publisher.due(100.0) == inf


def test_those_with_the_most_waiting_go_first_when_all_together_have_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 100)
    publisher, _ = make()
    for name, count in (("a", 30), ("b", 60), ("c", 5), ("d", 50)):
        publisher.add(name * 32, name).outq.put_many(batch(count))
    assert publisher.overfull() == ["b" * 32]
    publisher.remove("b" * 32)
    assert publisher.overfull() == []


def test_looking_for_who_is_away_takes_no_time_with_ten_thousand_subscribers() -> None:
    publisher, clock = make()
    for number in range(10_000):
        publisher.add(f"{number:032}", "x")
    began = os.times().user
    assert publisher.expired(clock.now, 60) == []
    assert publisher.overfull() == []
    assert os.times().user - began < 0.1
    assert len(publisher.expired(clock.now + 61, 60)) == 10_000


# Waking the loop.


def test_a_wakeup_can_be_called_after_it_is_closed() -> None:
    wakeup = Wakeup()
    wakeup()
    wakeup.clear()
    wakeup.clear()
    wakeup.close()
    wakeup.close()
    # Whoever has the descriptor's number next gets nothing.
    with tempfile.TemporaryFile() as file:
        wakeup()
        assert os.fstat(file.fileno()).st_size == 0
