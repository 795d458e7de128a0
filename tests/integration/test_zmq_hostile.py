"""Bad input at the doors of the ZeroMQ endpoint costs nobody else anything."""

from __future__ import annotations

import json
import random

import pytest
import zmq
from helpers.documents import indicator_bytes
from helpers.waiting import eventually
from zmq_helpers import App, ZmqBus

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
    assert json.loads(publisher.ask_raw(b"{", timeout=1))["status"] == "error"
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
