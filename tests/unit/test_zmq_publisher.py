"""The parts of delivery that need no socket."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import threading
from math import inf
from typing import Any, cast

import pytest
from helpers.documents import indicators
from helpers.waiting import Clock, in_threads
from threatbus_zmq import publisher as module
from threatbus_zmq.link import Accepted
from threatbus_zmq.mapping import KINDS
from threatbus_zmq.publisher import HALF_OPEN_SECS, ROLE, Publisher
from threatbus_zmq.reader import Reader
from threatbus_zmq.window import LEAST_BYTES, MOST_BYTES, Window
from threatbus_zmq.zmtp import Frames, Null, Role, Session

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


def test_an_empty_window_gives_nothing() -> None:
    assert Window().take_all() == ([], 0)


def test_a_window_gives_what_was_sent_in_order_and_once() -> None:
    window, messages = Window(), indicators(30)
    for first in range(0, 30, 10):
        add(window, messages[first : first + 10])
    assert taken(window) == messages
    assert window.take_all() == ([], 0)


@pytest.mark.parametrize("size", [50, 500, 5_000, 20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("count", [1, 7, 500])
def test_a_window_covers_kernel_buffers_and_the_newest_batch(size: int, count: int) -> None:
    window = Window()
    sent = [batch(min(count, max(1, 1_000_000 // size)), size) for _ in range(400)]
    for each in sent:
        add(window, each)
    # The bytes of the documents: fewer than those on the wire.
    held = sum(map(len, window.take_all()[0])) * size
    needed = len(sent[-1]) * size + 6_300_000 + 1_100_000
    assert held >= min(needed, sum(map(len, sent)) * size)


@pytest.mark.parametrize("size", [50, 500, 20_000, 1_000_000])
def test_a_window_does_not_grow_with_what_is_sent(size: int) -> None:
    window = Window()
    for _ in range(300):
        add(window, batch(max(1, 1_000_000 // (size + 130)), size))
    assert window._bytes <= LEAST_BYTES + 4_000_000
    assert window._bytes == size * sum(map(len, window.take_all()[0]))


@pytest.mark.parametrize("receiving", [8_000_000, 20_000_000, 50_000_000])
def test_a_window_covers_a_large_buffer_at_the_other_end(receiving: int) -> None:
    window = Window()
    for _ in range(800):
        messages = batch(200)
        window.add(messages, size_of(messages), receiving)
    assert window._bytes >= receiving + 1024 * 1024


def test_a_window_is_bounded_whatever_the_other_end_says_of_its_buffer() -> None:
    window = Window()
    for _ in range(1000):
        messages = batch(1, 100_000)
        window.add(messages, size_of(messages), 2**31)
    assert window._bytes <= MOST_BYTES + 400_000


def test_a_window_counts_what_it_could_not_keep_and_no_more() -> None:
    window = Window()
    for _ in range(800):
        window.add(batch(1, 100_000), 100_130, 8_000_000)
    assert window.take_all()[1] == 0
    # The other end holds a hundred million bytes; a third of that is not remembered.
    for _ in range(3000):
        window.add(batch(1, 100_000), 100_130, 100_000_000)
    batches, uncovered = window.take_all()
    kept = sum(map(len, batches))
    assert 1000 <= kept + uncovered <= 1020
    assert uncovered > 300
    assert window.take_all() == ([], 0)


def test_a_window_costs_little_more_than_a_slot_per_message_at_a_low_rate() -> None:
    window = Window()
    for _ in range(20_000):
        add(window, batch(1))
    assert len(window._batches) < 100


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
        assert len(held) == len(sent) or size_of(held) >= LEAST_BYTES


# Kinds.


def test_a_kind_is_type_and_blank() -> None:
    assert KINDS[INDICATOR] == b"indicator "
    assert KINDS["stix2/malware"] == b"malware "
    assert "stix2/malware" not in KINDS, "foreign topics without end are not remembered"


# The publisher without its socket.


class Peer:
    """The connection of a SUB whose machine takes `room` bytes at a time; keeps what was taken."""

    def __init__(self, room: float = inf) -> None:
        self.room = room
        self.taken = bytearray()
        self._open = True

    def fileno(self) -> int:
        return id(self) if self._open else -1

    def send(self, data: bytes) -> int:
        count = int(min(self.room, len(data)))
        if not count:
            raise BlockingIOError
        self.room -= count
        self.taken += data[:count]
        return count

    def shutdown(self, _: int) -> None:
        pass

    def getsockopt(self, *_: object) -> bytes:
        return b""

    def close(self) -> None:
        self._open = False

    def is_open(self) -> bool:
        return self._open


def make(wake: Any = lambda: None) -> tuple[Publisher, Clock]:
    def outq(name: str, **callbacks: Any) -> MessageQueue:
        return MessageQueue(name, **callbacks)

    def session(role: Role, _: str) -> Session:
        return Session(Null(role), role)

    clock = Clock()
    return Publisher(outq, wake, lambda _: None, session, clock), clock


def connect(publisher: Publisher, p2p: str, peer: Peer | None = None) -> Any:
    delivery = publisher._deliveries.get(p2p) or publisher.add(p2p, p2p)
    session = Session(Null(ROLE), ROLE)
    link = Reader(Accepted(cast("Any", peer or Peer()), ("", 0), session, 100.0, lambda _: None))
    publisher.door._links[link.tcp.fileno()] = link
    publisher.subscribe(link, p2p.encode())
    return delivery


def test_one_turn_of_the_loop_is_bounded_however_many_subscribers_there_are() -> None:
    publisher, _ = make()
    deliveries = [connect(publisher, f"{number:032}") for number in range(100)]
    for delivery in deliveries:
        delivery.outq.put_many(batch(1000))
    turns = sent = 0
    while any(delivery.waiting for delivery in deliveries):
        before = sent
        complete = publisher.flush()
        # Nobody gets a second batch before everybody has had the first.
        counts = {delivery.sent for delivery in deliveries}
        sent = sum(delivery.sent for delivery in deliveries)
        assert sent - before <= module.TURN + module.BATCH
        assert max(counts) - min(counts) <= module.BATCH
        assert complete == (sent % 50_000 == 0)
        assert publisher.due(100.0) in ((100.0,) if not complete else (100.0, inf))
        turns += 1
    assert sent == 100_000
    assert turns == 10


def test_a_subscriber_whose_machine_takes_no_more_waits_and_costs_nothing() -> None:
    publisher, clock = make()
    peer = Peer(room=1000)
    stalled = connect(publisher, "a" * 32, peer)
    stalled.outq.put_many(batch(600))
    assert publisher.flush()
    assert stalled.blocked
    assert publisher.due(clock.now) == inf, "the kernel tells when there is room"
    clock.now += 5
    assert stalled.idle(clock.now) == 5
    assert stalled.undelivered == 599, "one went whole, the next in part"
    peer.room = inf
    (link,) = stalled.links
    assert link.go_on(clock.now)
    publisher.on_room(link)
    assert stalled.idle(clock.now) == 0
    assert publisher.flush()
    assert not stalled.undelivered
    assert publisher.due(clock.now) == inf
    assert peer.taken.count(b"a" * 32 + b"indicator ") == 600


def test_of_two_connections_an_old_one_that_takes_nothing_is_cut_off() -> None:
    publisher, clock = make()
    old, new = Peer(room=0), Peer()
    delivery = connect(publisher, "a" * 32, old)
    connect(publisher, "a" * 32, new)
    delivery.outq.put_many(batch(600))
    assert publisher.flush()
    clock.now += HALF_OPEN_SECS
    publisher.keep_house(clock.now)
    assert old.is_open(), "it has so long"
    clock.now += 0.1
    publisher.keep_house(clock.now)
    assert not old.is_open()
    assert publisher.flush()
    assert new.taken.count(b"a" * 32 + b"indicator ") == 600


def test_a_newer_connection_that_takes_nothing_is_waited_for() -> None:
    publisher, clock = make()
    delivery = connect(publisher, "a" * 32, Peer())
    newest = Peer(room=0)
    connect(publisher, "a" * 32, newest)
    delivery.outq.put_many(batch(600))
    publisher.flush()
    clock.now += HALF_OPEN_SECS + 10
    publisher.keep_house(clock.now)
    assert newest.is_open()


def test_subscriptions_over_one_connection_wait_together_and_are_counted_apart() -> None:
    publisher, clock = make()
    peer = Peer(room=1000)
    a, b = connect(publisher, "a" * 32, peer), publisher.add("b" * 32, "b" * 32)
    (link,) = a.links
    publisher.subscribe(link, b"b" * 32)
    a.outq.put_many(batch(600))
    publisher.flush()
    b.outq.put_many(batch(600))
    for _ in range(3):
        publisher.flush()
    assert len(link._unsent) == 1, "no batch more than that of which the kernel has a part"
    assert publisher.leftovers() == [("a" * 32, 599), ("b" * 32, 600)]
    peer.room = inf
    for _ in range(10):
        assert link.go_on(clock.now)
        publisher.on_room(link)
        publisher.flush()
    assert publisher.leftovers() == []
    for letter in b"ab":
        assert peer.taken.count(bytes((letter,)) * 32 + b"indicator ") == 600


def test_what_a_connection_had_not_taken_when_it_ended_is_not_forgotten() -> None:
    publisher, _ = make()
    delivery = connect(publisher, "a" * 32, Peer(room=1000))
    delivery.outq.put_many(batch(300))
    publisher.flush()
    assert delivery.undelivered == 299
    publisher.door.cut_off(delivery.links[0])
    assert delivery.undelivered == 299
    connect(publisher, "a" * 32)
    assert delivery.undelivered == 300, "all of them are sent again"
    publisher.flush()
    assert delivery.undelivered == 0


def test_subscribers_that_get_the_same_share_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, _ = make()
    made: list[int] = []

    def counted(kinds: Any, documents: Any) -> Any:
        made.append(len(documents))
        return Frames(kinds, documents)

    monkeypatch.setattr("threatbus_zmq.publisher.Frames", counted)
    peers = [Peer() for _ in range(10)]
    messages, last = batch(300), batch(1)
    for number, peer in enumerate(peers):
        connect(publisher, f"{number:032}", peer).outq.put_many(messages)
    connect(publisher, "x" * 32).outq.put_many(last)
    publisher.flush()
    assert sorted(filter(None, made)) == [1, 300]
    assert {len(peer.taken) for peer in peers} == {len(peers[0].taken)}
    assert publisher._last_sent == [], "no message is kept longer than its turn"


def test_no_message_is_stuck_when_many_threads_put_while_the_loop_flushes() -> None:
    woken = threading.Event()
    publisher, _ = make(woken.set)
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
