"""Delivery: what arrives at an app's SUB, and that nothing is lost or goes astray on the way."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest
import zmq
from helpers.documents import encode, indicator, indicator_bytes, sighting_bytes
from helpers.waiting import SCALE, SOON, eventually
from threatbus_zmq.delivery import Delivery
from threatbus_zmq.link import Link
from threatbus_zmq.publisher import HALF_OPEN_SECS

from integration.zmq_helpers import App, Apps, ZmqBus, descriptors, number_of, numbered
from testbed.proxy import proxy
from threatbus.queues import BATCH_BYTES, MESSAGE_OVERHEAD_BYTES

# The frames.


def spaced(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=3).encode() + b" \r\n\t"


@pytest.mark.parametrize(
    "document",
    [
        indicator_bytes(),
        b" " + indicator_bytes(),
        spaced(indicator(x_mine={"a": [1, 2.50, None]}, x_other="\u00e4\u2028\U0001f40d")),
        json.dumps(indicator(name="ä🐍\u2028"), ensure_ascii=False).encode(),
        encode(indicator()).replace(b'"type": "indicator"', b'"t\\u0079pe":"indicator"'),
        encode(indicator(pattern="[ipv4-addr:value = '1.2.3.4' AND url:value = 'http://a/ b']")),
        encode(indicator(x_number=0)).replace(b'"x_number": 0', b'"x_number": 1.000E+2'),
    ],
)
def test_a_frame_is_topic_type_blank_and_the_very_bytes_that_came_in(
    app: App, document: bytes
) -> None:
    app.subscribe("stix2").connect().connected()
    app.publish("stix2/indicator", document)
    assert app.receive() == app.p2p.encode() + b"indicator " + document


def test_the_type_is_that_of_the_object(app: App) -> None:
    app.subscribe("stix2").connect().connected()
    document = sighting_bytes()
    app.publish("stix2/sighting", document)
    assert app.receive() == app.p2p.encode() + b"sighting " + document


def test_a_sub_on_one_type_receives_that_type_alone(app: App) -> None:
    app.subscribe("stix2").connect(prefixes=("sighting",)).connected()
    app.publish("stix2/indicator", indicator_bytes())
    document = sighting_bytes()
    app.publish("stix2/sighting", document)
    assert app.receive() == app.p2p.encode() + b"sighting " + document
    app.receives_nothing()


def test_types_that_are_named_one_after_the_other_lose_nothing_to_each_other(
    bus: ZmqBus, app: App
) -> None:
    app.subscribe("stix2")
    for number in range(100):
        app.publish("stix2/indicator", numbered(number))
        app.publish("stix2/sighting", sighting_bytes(summary=True))
    bus.accepted(200)
    app.connect(prefixes=("indicator",)).connected()
    assert app.sub is not None
    app.sub.setsockopt(zmq.SUBSCRIBE, f"{app.p2p}sighting".encode())
    kinds = Counter(frame[32:40] for frame in app.receive_all(200))
    assert kinds == {b"indicato": 100, b"sighting": 100}


def test_a_type_that_only_a_foreign_backbone_knows_is_delivered_under_its_name(
    bus: ZmqBus, app: App
) -> None:
    from threatbus.messages import Message  # noqa: PLC0415

    app.subscribe("stix2").connect().connected()
    (subscriber,) = bus.bus.subscriptions.current()
    subscriber.put_many([Message("stix2/malware", b"{}"), Message("stix2/indicator", b"[]")])
    assert app.receive() == app.p2p.encode() + b"malware {}"
    assert app.receive() == app.p2p.encode() + b"indicator []"


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("stix2", {"indicator", "sighting"}),
        ("stix2/", {"indicator", "sighting"}),
        ("", {"indicator", "sighting"}),
        ("stix2/indicator", {"indicator"}),
        ("stix2/sighting", {"sighting"}),
        (["stix2/indicator", "stix2/sighting"], {"indicator", "sighting"}),
        ("stix2/ind", {"indicator"}),
        ("stix2/malware", set()),
        ("threatbus", set()),
    ],
)
def test_topics_match_by_prefix(
    app: App, publisher: App, topic: str | list[str], expected: set[str]
) -> None:
    app.subscribe(topic).connect().connected()
    publisher.subscribe("stix2").connect().connected()
    publisher.publish("stix2/indicator", indicator_bytes())
    publisher.publish("stix2/sighting", sighting_bytes())
    publisher.receive_all(2)
    received = {app.receive()[32:].split(b" ")[0].decode() for _ in expected}
    assert received == expected
    app.receives_nothing(0.05)


def test_overlapping_topics_deliver_once(app: App) -> None:
    app.subscribe(["stix2", "stix2/", "stix2/indicator", "stix2/indicator", ""])
    app.connect().connected()
    app.publish_numbered(0, 100)
    assert [number_of(frame) for frame in app.receive_all(100)] == list(range(100))
    app.receives_nothing()


# Late and slow subscribers.


def test_a_sub_that_comes_late_gets_everything_in_order_and_once(
    bus: ZmqBus, app: App, publisher: App
) -> None:
    app.subscribe("stix2/indicator")
    publisher.publish_numbered(0, 3000)
    bus.accepted(3000)
    publisher.publish_numbered(3000, 3000)
    app.connect()
    assert [number_of(frame) for frame in app.receive_all(6000)] == list(range(6000))
    app.receives_nothing()


def test_a_slow_reader_gets_everything_and_holds_up_nobody(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    slow = zmq_apps.app(bus, rcvhwm=10).subscribe("stix2").connect().connected()
    fast = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 20_000)
    began = time.monotonic()
    assert [number_of(frame) for frame in fast.receive_all(20_000)] == list(range(20_000))
    assert time.monotonic() - began < 10 * SCALE
    assert slow.delivery().waiting > 5000, "it has not read, so most of it waits"
    assert [number_of(frame) for frame in slow.receive_all(20_000)] == list(range(20_000))
    slow.receives_nothing(0.05)
    eventually(lambda: slow.delivery().sent == 20_000)


def test_stalled_subscribers_cost_no_processor_to_speak_of(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    context: zmq.Context[Any] = zmq.Context()
    for _ in range(20):
        zmq_apps.app(bus, context=context, rcvhwm=1).subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 20_000)
    bus.accepted(20_000)
    eventually(lambda: all(d.blocked for d in deliveries(bus)))
    began, used = time.monotonic(), time.process_time()
    time.sleep(0.5)
    share = (time.process_time() - used) / (time.monotonic() - began)
    assert share < 0.1, f"{share:.0%} of a processor"
    zmq_apps.close()
    context.term()


def deliveries(bus: ZmqBus) -> list[Delivery]:
    return list(bus.endpoint.publisher._deliveries.values())


def test_an_idle_bus_with_subscribers_uses_no_processor(zmq_apps: Apps, bus: ZmqBus) -> None:
    for _ in range(20):
        zmq_apps.app(bus).subscribe("stix2").connect().connected()
    began, used = time.monotonic(), time.process_time()
    time.sleep(1.0)
    share = (time.process_time() - used) / (time.monotonic() - began)
    assert share < 0.02, f"{share:.1%} of a processor"


def test_more_subscribers_than_a_select_could_watch(zmq_apps: Apps, bus: ZmqBus) -> None:
    count = 1100
    context: zmq.Context[Any] = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    context.set(zmq.MAX_SOCKETS, 2 * count)
    apps = [zmq_apps.app(bus, context=context) for _ in range(count)]
    req = apps[0].socket(zmq.REQ, bus.address("manage"))
    for app in apps:
        req.send(b'{"action":"subscribe","topic":"stix2"}')
        app.p2p = json.loads(req.recv())["topic"]
        app.connect()
    eventually(lambda: all(d.connected for d in deliveries(bus)), 3 * SOON)
    assert descriptors() > 2 * count
    apps[-1].publish_numbered(0, 20)
    for app in apps:
        assert [number_of(frame) for frame in app.receive_all(20)] == list(range(20))
    zmq_apps.close()
    context.term()
    eventually(lambda: not any(d.connected for d in deliveries(bus)), 3 * SOON)


def test_with_many_subscribers_management_is_still_answered_at_once(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    # One connection for all: what is to be measured is the bus, not a thousand readers.
    reader = zmq_apps.app(bus)
    req = reader.socket(zmq.REQ, bus.address("manage"))
    sub = reader.socket(zmq.SUB, bus.address("pub"), RCVHWM=0)
    for _ in range(500):
        req.send(b'{"action":"subscribe","topic":"stix2"}')
        sub.subscribe(json.loads(req.recv())["topic"])
    eventually(lambda: all(d.connected for d in deliveries(bus)))
    publisher.publish_numbered(0, 1000)
    taken: list[float] = []
    received = 0
    while received < 500 * 1000:
        began = time.monotonic()
        req.send(b'{"action":"heartbeat","topic":"x"}')
        while not req.poll(0):
            received += drained(sub, 200)
        req.recv()
        taken.append(time.monotonic() - began)
    # A busy machine holds up one of them; a bus that is busy itself all of them.
    assert statistics.median(taken) < 1.0 * SCALE, taken


def drained(sub: zmq.Socket[bytes], limit: int) -> int:
    for count in range(limit):
        try:
            sub.recv(zmq.NOBLOCK)
        except zmq.Again:
            return count
    return limit


def test_large_and_small_messages_in_turn_keep_flowing(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    # A mark that is adapted to the size makes both ends of a pipe wait for each other.
    app = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    number = 0
    for small, large in ((700, 3), (130, 1), (501, 12), (999, 8), (64, 20), (1, 1)):
        publisher.publish_numbered(number, small)
        number += small
        assert app.receive_until(number - 1)[-1] == number - 1
        for _ in range(large):
            document = numbered(number).replace(b"xxx", b"x" * 1_000_000, 1)
            publisher.publish("stix2/indicator", document)
            number += 1
        assert app.receive_until(number - 1)[-1] == number - 1
    eventually(lambda: app.delivery().sent == number)


def test_a_reader_that_stalls_keeps_few_large_messages_in_memory(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    app = zmq_apps.app(bus, rcvhwm=1).subscribe("stix2").connect().connected()
    document = indicator_bytes(name="1", description="x" * 1_000_000)
    for _ in range(150):
        publisher.publish("stix2/indicator", document)
    bus.accepted(150)
    delivery = app.stalled().delivery()
    # Of what has left the outq, the rest is in kernel buffers and with the reader.
    assert delivery.sent * len(document) < BATCH_BYTES + 16 * 1024 * 1024
    assert len(app.receive_all(150)) == 150


# Subscribers that are gone.


def test_a_vanished_subscriber_is_let_go_after_the_grace_time_and_its_memory_with_it(
    bus: ZmqBus, app: App
) -> None:
    app.subscribe("stix2").connect().connected()
    delivery = app.delivery()
    app.disconnect()
    eventually(lambda: not delivery.connected)
    app.publish_numbered(0, 1000)
    bus.accepted(1000)
    assert delivery.waiting == 1000, "within the grace time everything waits"
    bus.time_passes(61)
    eventually(lambda: bus.bus.subscriptions.current() == [])
    assert app.heartbeat() == "error"
    assert delivery.waiting == 0
    assert bus.bus.subscriptions.current() == []
    assert deliveries(bus) == []
    app.publish_numbered(1000, 1)
    bus.accepted(1001)
    assert delivery.waiting == 0


def test_a_subscriber_that_never_came_is_let_go_too(bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2")
    bus.time_passes(61)
    eventually(lambda: bus.bus.subscriptions.current() == [])
    assert app.heartbeat() == "error"


def test_heartbeats_extend_the_grace_time(bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2")
    for _ in range(3):
        bus.time_passes(50)
        # The loop looks for who is away before it serves the next request.
        assert app.heartbeat() == "success"
    app.publish_numbered(0, 5)
    app.connect()
    assert app.receive_until(4) == [0, 1, 2, 3, 4]


def test_a_connected_subscriber_needs_no_heartbeats(bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2").connect().connected()
    bus.time_passes(61)
    for number in range(2):  # the loop has looked for who is away before the second one
        app.publish_numbered(number, 1)
        assert number_of(app.receive()) == number


def test_a_sub_that_subscribes_twice_is_noticed_to_be_gone(bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2").connect().connected()
    assert app.sub is not None
    app.sub.setsockopt(zmq.SUBSCRIBE, app.p2p.encode())
    app.publish_numbered(0, 3)
    assert app.receive_until(2) == [0, 1, 2]
    app.receives_nothing(0.05)
    delivery = app.delivery()
    app.disconnect()
    eventually(lambda: not delivery.connected)


def test_a_sub_that_unsubscribes_and_comes_back_gets_what_came_in_between(
    bus: ZmqBus, app: App
) -> None:
    app.subscribe("stix2").connect().connected()
    assert app.sub is not None
    app.sub.setsockopt(zmq.UNSUBSCRIBE, app.p2p.encode())
    eventually(lambda: not app.delivery().connected)
    app.publish_numbered(0, 10)
    bus.accepted(10)
    app.sub.setsockopt(zmq.SUBSCRIBE, app.p2p.encode())
    assert app.receive_until(9) == list(range(10))


# Who must not listen.


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_sub_on_a_short_prefix_gets_nothing_and_holds_nobody_up(
    zmq_apps: Apps, bus: ZmqBus, app: App, length: int
) -> None:
    app.subscribe("stix2").connect().connected()
    eavesdropper = zmq_apps.app(bus, rcvhwm=1)
    eavesdropper.p2p = app.p2p[:length]
    eavesdropper.connect()
    eventually(lambda: bus.endpoint.publisher.refused == 1)
    app.publish_numbered(0, 10_000)
    assert app.receive_until(9999) == list(range(10_000))
    eavesdropper.receives_nothing(0.05)


def test_a_sub_on_a_guess_gets_nothing(zmq_apps: Apps, bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2").connect().connected()
    eavesdropper = zmq_apps.app(bus)
    eavesdropper.p2p = "a" * 32
    eavesdropper.connect()
    eventually(lambda: bus.endpoint.publisher.refused == 1)
    app.publish_numbered(0, 10)
    assert app.receive_until(9) == list(range(10))
    eavesdropper.receives_nothing(0.05)


def test_an_ended_subscription_delivers_nothing_more(zmq_apps: Apps, bus: ZmqBus) -> None:
    ended = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    app = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    assert ended.ask(action="unsubscribe", topic=ended.p2p)["status"] == "success"
    app.publish_numbered(0, 10)
    assert app.receive_until(9) == list(range(10))
    ended.receives_nothing(0.05)


def test_what_is_no_subscription_cannot_turn_anothers_traffic_to_its_sender(
    zmq_apps: Apps, bus: ZmqBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = zmq_apps.app(bus).subscribe("stix2")
    attacker = zmq_apps.app(bus).subscribe("stix2/sighting")
    xsub = attacker.socket(zmq.XSUB, bus.address("pub"))
    victim = app.socket(zmq.XSUB, bus.address("pub"))
    door = bus.endpoint.publisher.door
    # The frames of both are to wait for the loop together, in this order.
    serve, held = door.serve, threading.Event()
    eventually(lambda: len(door._links) == 2 and all(x.session.ready for x in door._links.values()))
    held.set()
    monkeypatch.setattr(door, "serve", lambda: None if held.is_set() else serve())
    for sender, frame in (
        (xsub, b"something else"),
        (victim, b"\x01" + app.p2p.encode()),
        (xsub, b"\x01" + attacker.p2p.encode()),
    ):
        eventually(partial(sender.poll, 0, zmq.POLLOUT))
        sender.send(frame)
        time.sleep(0.1)  # nothing can tell when it has arrived, as long as nobody reads it
    held.clear()
    app.publish_numbered(0, 10)
    assert [number_of(frame) for frame in received(victim, 10)] == list(range(10))
    assert not xsub.poll(100), xsub.recv()


def received(sub: zmq.Socket[bytes], count: int) -> list[bytes]:
    frames = []
    for _ in range(count):
        assert sub.poll(int(SOON * 1000))
        frames.append(sub.recv())
    return frames


# Connections that break.


def test_a_sub_that_comes_back_gets_everything_at_least_once_and_in_order(
    bus: ZmqBus, app: App
) -> None:
    app.subscribe("stix2").connect().connected()
    app.publish_numbered(0, 5000)
    first = [number_of(frame) for frame in app.receive_all(100)]
    assert first == list(range(100))
    app.disconnect()
    app.publish_numbered(5000, 100)
    app.connect()
    rest = app.receive_until(5099)
    assert rest == list(range(rest[0], 5100)), "without a gap, in order"
    assert rest[0] <= 100


def test_nothing_is_lost_over_connections_that_break_by_force(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    app = zmq_apps.app(bus).subscribe("stix2")
    with proxy(bus.pub) as between:
        app.connect(between.port).connected()
        numbers: list[int] = []
        for part in range(5):
            publisher.publish_numbered(part * 3000, 3000)
            while not numbers or numbers[-1] < part * 3000 + 1000:
                numbers.append(number_of(app.receive()))
            between.cut()
        numbers += app.receive_until(14_999)
        assert set(numbers) == set(range(15_000))
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts), "in order, but for what was sent again"
        app.close()


def test_a_paused_reader_loses_nothing_when_its_connection_breaks(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    app = zmq_apps.app(bus, rcvhwm=1).subscribe("stix2")
    with proxy(bus.pub) as between:
        app.connect(between.port).connected()
        publisher.publish_numbered(0, 20_000)
        bus.accepted(20_000)
        app.stalled()
        between.cut()
        numbers = app.receive_until(19_999)
        firsts = list(dict.fromkeys(numbers))
        assert firsts == list(range(20_000))
        app.close()


def test_large_messages_survive_a_broken_connection(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    app = zmq_apps.app(bus, rcvhwm=1).subscribe("stix2")
    with proxy(bus.pub) as between:
        app.connect(between.port).connected()
        for number in range(60):
            document = indicator(name=str(number), description="x" * 1_000_000)
            publisher.publish("stix2/indicator", document)
        bus.accepted(60)
        app.stalled()
        between.cut()
        numbers = app.receive_until(59)
        assert list(dict.fromkeys(numbers)) == list(range(60))
        app.close()


def test_a_half_open_old_connection_does_not_keep_a_new_one_from_its_messages(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    app = zmq_apps.app(bus).subscribe("stix2")
    with proxy(bus.pub) as between:
        app.connect(between.port).connected()
        publisher.publish_numbered(0, 1)
        app.receive()
        between.freeze()
        app.connect()  # the app's machine is back; the bus does not know that the old one is gone
        eventually(lambda: len(app.delivery().links) == 2)
        publisher.publish_numbered(1, 10_000)
        eventually(lambda: app.delivery().idle(time.monotonic()) > 0)
        bus.time_passes(HALF_OPEN_SECS)
        numbers = app.receive_until(10_000)
        assert list(dict.fromkeys(numbers)) == list(range(10_001))
        app.close()


@pytest.mark.parametrize("newer_ends", [False, True])
def test_of_two_connections_the_one_that_ends_is_taken_off(app: App, *, newer_ends: bool) -> None:
    app.subscribe("stix2").connect().connected()
    old = app.sub
    app.connect()
    eventually(lambda: len(app.delivery().links) == 2)
    assert old is not None
    if newer_ends:
        old, app.sub = app.sub, old
    assert old is not None
    app.close_socket(old)
    eventually(lambda: len(app.delivery().links) == 1)
    (left,) = app.delivery().links
    assert left.open
    app.publish_numbered(0, 10)
    assert app.receive_until(9) == list(range(10))
    delivery = app.delivery()
    app.disconnect()
    eventually(lambda: not delivery.connected)


def test_a_loop_that_crashes_starts_again_and_nothing_queued_is_lost(
    bus: ZmqBus, app: App, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = app
    late.subscribe("stix2")
    publisher.subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 1000)
    bus.accepted(1000)
    publisher.receive_until(999)
    flush = bus.endpoint.publisher.flush

    def crash_once() -> bool:
        monkeypatch.setattr(bus.endpoint.publisher, "flush", flush)
        raise RuntimeError("a bug")

    monkeypatch.setattr(bus.endpoint.publisher, "flush", crash_once)
    bus.endpoint._wakeup()
    eventually(lambda: bus.endpoint.failures == 1)
    late.connect()
    assert late.receive_until(999) == list(range(1000))
    # The others' sockets connect again by themselves; ZeroMQ subscribes again when they are used.
    eventually(lambda: publisher.is_in_use() and publisher.delivery().connected)

    def is_taken() -> bool:
        # A PUB says nothing of when it is connected again, and drops what comes before.
        publisher.publish_numbered(1000, 1)
        return bus.bus.intake.accepted > 1000

    eventually(is_taken)
    numbers = publisher.receive_until(1000)
    assert list(dict.fromkeys(numbers)) == list(range(1001))
    assert late.heartbeat() == "success"


def test_an_error_when_a_batch_is_to_be_sent_loses_none_of_it(
    bus: ZmqBus, app: App, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.subscribe("stix2")
    publisher.publish_numbered(0, 300)
    bus.accepted(300)
    send, calls = Link.send, itertools.count()

    def broken(*arguments: Any) -> None:
        if next(calls) == 0:
            raise RuntimeError("a bug")
        send(*arguments)

    monkeypatch.setattr(Link, "send", broken)
    app.connect()
    numbers = app.receive_until(299)
    assert list(dict.fromkeys(numbers)) == list(range(300))
    assert bus.endpoint.failures == 1


# Full outqs.


def overflow(zmq_apps: Apps, policy: str) -> tuple[ZmqBus, App]:
    queues = {"outq_messages": 1000, "overflow": policy}
    bus = zmq_apps.bus(queues=queues)
    return bus, zmq_apps.app(bus).subscribe("stix2", name="slow")


def test_a_full_outq_ends_its_subscription_by_default(
    zmq_apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    bus, app = overflow(zmq_apps, "disconnect")
    other = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    other.publish_numbered(0, 1500)
    other.receive_all(1500)
    eventually(lambda: app.heartbeat() == "error")
    assert "slow #1 is unsubscribed" in caplog.text
    app.subscribe("stix2").connect().connected()
    other.publish_numbered(1500, 10)
    assert app.receive_until(1509) == list(range(1500, 1510))


def test_an_overflow_is_noticed_without_anything_else_happening(zmq_apps: Apps) -> None:
    bus, app = overflow(zmq_apps, "disconnect")
    app.publish_numbered(0, 1500)
    eventually(lambda: len(bus.endpoint.manager) == 0, 3)


def test_a_full_outq_may_drop_its_oldest_messages(zmq_apps: Apps) -> None:
    bus, app = overflow(zmq_apps, "drop_oldest")
    app.publish_numbered(0, 1500)
    bus.accepted(1500)
    app.connect()
    assert app.receive_until(1499) == list(range(500, 1500))
    assert bus.bus.stats()["subscribers"]["slow #1"]["dropped"] == 500


def test_a_full_outq_may_hold_up_its_sources(zmq_apps: Apps) -> None:
    bus, app = overflow(zmq_apps, "block")
    app.publish_numbered(0, 20_000)
    eventually(lambda: not bus.bus.intake.writable)
    assert bus.bus.intake.accepted < 2500
    assert app.heartbeat() == "success", "management is served all the same"
    app.connect()
    assert app.receive_until(19_999) == list(range(20_000))


def test_all_outqs_together_are_bounded(
    zmq_apps: Apps, bus: ZmqBus, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_zmq.publisher.MAX_WAITING", 5000)
    waiting = [zmq_apps.app(bus).subscribe("stix2") for _ in range(8)]
    reader = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 1000)
    assert reader.receive_until(999) == list(range(1000))
    eventually(lambda: len(deliveries(bus)) == 6)
    assert bus.endpoint.publisher.remaining() == 5000
    assert reader.heartbeat() == "success"
    assert [app.heartbeat() for app in waiting].count("error") == 3


def test_a_message_that_waits_costs_its_bytes_and_little_more(bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2")
    app.publish_numbered(0, 1000)
    bus.accepted(1000)
    gc.collect()
    stats = app.delivery().outq.stats()
    assert stats.bytes == 1000 * MESSAGE_OVERHEAD_BYTES + sum(len(numbered(n)) for n in range(1000))
