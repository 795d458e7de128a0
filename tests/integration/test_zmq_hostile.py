"""Bad input at the doors of the ZeroMQ endpoint costs nobody else anything."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import statistics
import time
from typing import Any

import pytest
import zmq
from helpers.documents import encode, indicator, indicator_bytes
from helpers.waiting import SCALE, SOON, eventually

from integration.zmq_helpers import App, Apps, ZmqBus, numbered, rss_bytes

GARBAGE = {
    "random bytes": random.Random(7).randbytes(2000),
    "no blank": b"stix2/indicator",
    "an empty frame": b"",
    "wrong JSON": b'stix2/indicator {"type": "indicator"',
    "deep nesting": b"stix2/indicator " + b"[" * 100_000,
    "deep nesting in a property": b'stix2/indicator {"type":"indicator","x_a":' + b'{"a":' * 50_000,
    "invalid UTF-8": b'stix2/indicator {"type": "\xff\xfe"}',
    "wrong types": b'stix2/indicator {"type": 5, "id": []}',
    "a topic that nobody has": b"weather/today {}",
    "a broken bundle": b'stix2/bundle {"type": "bundle", "objects": 5}',
    "a broken envelope": b'threatbus/snapshotenvelope {"type": "snapshotenvelope", "body": 1}',
    "a pattern that blows parsers up": b"stix2/indicator "
    + json.dumps(
        {
            **json.loads(indicator_bytes()),
            "pattern": "(" * 5000 + "[a:b = 'c']" + ")" * 5000,
        }
    ).encode(),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_bad_frame_is_counted_and_kept_and_the_next_good_one_arrives(
    kind: str, bus: ZmqBus, publisher: App
) -> None:
    publisher.subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 1)
    publisher.pub.send(GARBAGE[kind])
    publisher.publish_numbered(1, 1)
    assert publisher.receive_until(1) == [0, 1]
    assert publisher.heartbeat() == "success"
    assert bus.bus.rejects.total == 1
    (line,) = eventually(bus.reject_lines)
    assert line["origin"] == "zmq sub"
    assert line["reason"]
    assert line["size"] == len(GARBAGE[kind]) or kind == "a broken bundle"


def test_a_flood_of_garbage_delays_no_heartbeat_and_loses_no_good_message(
    bus: ZmqBus, publisher: App
) -> None:
    publisher.subscribe("stix2").connect().connected()
    for number in range(2000):
        publisher.pub.send(b"stix2/indicator {%d" % number)
    publisher.publish_numbered(0, 100)
    assert json.loads(publisher.ask_raw(b"{"))["status"] == "error"
    assert publisher.receive_until(99) == list(range(100))
    assert bus.bus.rejects.total == 2000


@pytest.mark.parametrize("door", ["manage", "pub", "sub"])
def test_a_frame_of_100_mb_closes_its_connection_and_nobody_elses(
    door: str, bus: ZmqBus, app: App, publisher: App
) -> None:
    publisher.subscribe("stix2").connect().connected()
    kind = {"manage": zmq.DEALER, "pub": zmq.XSUB, "sub": zmq.PUSH}[door]
    if door == "sub":
        kind = zmq.XPUB
    attacker = app.socket(kind, bus.address(door))
    if door == "sub":
        assert attacker.poll(5000), "the subscription of the bus has arrived"
        attacker.recv()
    attacker.send(b"\x05" * 100_000_000, zmq.NOBLOCK if door == "pub" else 0)
    publisher.publish_numbered(0, 10)
    assert publisher.receive_until(9) == list(range(10))
    assert publisher.heartbeat() == "success"
    if door != "pub":
        eventually(lambda: bus.rejected("connection closed by the bus") >= 1)


# Floods.


def test_ten_thousand_garbage_frames_delay_no_heartbeat(bus: ZmqBus, app: App) -> None:
    app.subscribe("stix2")
    for number in range(10_000):
        app.pub.send(b"stix2/indicator {%d" % number)
    taken = [0.0]
    while bus.bus.rejects.total < 10_000:
        began = time.monotonic()
        assert app.heartbeat() == "success"
        taken.append(time.monotonic() - began)
    # A busy machine holds up one of them; garbage that goes first would hold up all.
    assert statistics.median(taken) < 1.0 * SCALE, taken


def test_a_flood_of_garbage_takes_no_memory(bus: ZmqBus, app: App) -> None:
    def flood(count: int) -> None:
        before = bus.bus.rejects.total
        for _ in range(count):
            app.pub.send(b"stix2/indicator " + b"\xff" * 100_000)
        eventually(lambda: bus.bus.rejects.total == before + count, 3 * SOON)

    flood(300)
    before = rss_bytes()
    flood(3000)
    assert rss_bytes() - before < 60_000_000


def test_patterns_too_large_for_the_grammar_are_rejected_at_once(bus: ZmqBus, app: App) -> None:
    terms = " OR ".join(f"a:b = '{number}'" for number in range(200_000))
    app.publish("stix2/indicator", indicator(pattern=f"[{terms}]"))
    app.publish("stix2/indicator", indicator(pattern="[a:b = '" + "'" * 1_000_000 + "]"))
    eventually(lambda: bus.rejected("pattern") == 2, 3 * SCALE)


# The door for receiving.


def test_a_sub_that_sends_other_things_is_cut_off(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    publisher.subscribe("stix2").connect().connected()
    attacker = zmq_apps.app(bus)
    xsub = attacker.socket(zmq.XSUB, bus.address("pub"))
    ends = attacker.ends_of(xsub)
    for frames in ([b"junk"], [b""], [b"\x02" * 1000], [b"\x01a", b"b"], [b"\x00"], [b"\x01"]):
        xsub.send_multipart(frames)
    assert ends.poll(int(SOON * 1000)), "it is still connected"
    publisher.publish_numbered(0, 10)
    assert publisher.receive_until(9) == list(range(10))


def test_prefixes_without_end_are_not_remembered_for_ever(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    publisher.subscribe("stix2").connect().connected()
    attacker = zmq_apps.app(bus).subscribe("stix2/sighting")
    xsub = attacker.socket(zmq.XSUB, bus.address("pub"), SNDHWM=0)
    ends = attacker.ends_of(xsub)
    for number in range(1000):
        # With its own topic in front, and without.
        xsub.send(b"\x01" + attacker.p2p.encode() + b"%d" % number * 30)
        xsub.send(b"\x01" + b"%d" % number * 30)
    assert ends.poll(int(SOON * 1000)), "it is still connected"
    delivery = attacker.delivery()
    assert sum(len(link.wanted[attacker.p2p]) for link in delivery.links) <= 16
    attacker.close()
    eventually(lambda: not delivery.connected)
    publisher.publish_numbered(0, 10)
    assert publisher.receive_until(9) == list(range(10))


def test_a_sub_with_many_topics_of_times_gone_by_keeps_its_connection(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    # As an app has that lives for months and never unsubscribes its SUB.
    app = zmq_apps.app(bus).subscribe("stix2")
    app.connect()
    assert app.sub is not None
    for number in range(500):
        app.sub.setsockopt(zmq.SUBSCRIBE, f"{number:032}".encode())
    app.connected()
    eventually(lambda: bus.endpoint.publisher.refused == 500)
    publisher.publish_numbered(0, 10)
    assert app.receive_until(9) == list(range(10))


# What speaks no ZeroMQ at all.


@pytest.mark.parametrize("door", ["manage", "pub", "sub"])
@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\xff" * 5000, bytes(100), b""]
)
def test_a_peer_that_speaks_no_zeromq_disturbs_nobody(
    door: str, data: bytes, bus: ZmqBus, publisher: App
) -> None:
    publisher.subscribe("stix2").connect().connected()
    with socket.create_connection(("127.0.0.1", getattr(bus, door))) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(data)
        publisher.publish_numbered(0, 10)
        assert publisher.receive_until(9) == list(range(10))
        assert publisher.heartbeat() == "success"
    # A hundred zeros are the greeting of the oldest protocol, and then a frame that breaks it.
    assert bus.bus.rejects.total == bus.rejected("connection closed by the bus")
    assert bus.endpoint.failures == 0


def test_random_frames_at_all_doors_end_no_worker(bus: ZmqBus, app: App, publisher: App) -> None:
    publisher.subscribe("stix2").connect().connected()
    chance = random.Random(11)
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    sockets: list[Any] = [dealer, app.pub]
    for _ in range(500):
        frames = [chance.randbytes(chance.choice((0, 1, 10, 300))) for _ in range(3)]
        chance.choice(sockets).send_multipart(frames[: chance.randint(1, 3)])
        mutated = bytearray(b"stix2/indicator " + numbered(5))
        mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        app.pub.send(bytes(mutated))
    app.publish("stix2/indicator", encode(indicator(name="99")))
    publisher.receive_until(99)
    assert publisher.heartbeat() == "success"
    assert bus.endpoint.failures == 0
    assert bus.endpoint.receiver.slow_lane.failures == 0
