"""Measure a snapshot to a Zeek over native Broker, beside bare Broker with the same events.

The Zeek is a process with a Broker endpoint of its own, so it and what it measures do not share
an interpreter. It checks that all came, in order.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import selectors
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import zmq

from benchmarks import systems
from benchmarks.load import indicator
from testbed.ports import free_port

NAMESPACE = "Tenzir"
MANAGE = "threatbus/manage"
TOPIC = "stix2/indicator"


@dataclass(frozen=True)
class Received:
    """What a Zeek got: how many indicators, whether in order, in how many seconds."""

    count: int
    in_order: bool
    seconds: float

    @property
    def rate(self) -> float:
        """Indicators per second, from the first to the last."""
        return self.count / self.seconds if self.seconds else 0.0


def is_possible() -> bool:
    """Say whether Broker's Python module is here."""
    return importlib.util.find_spec("broker") is not None


def value(number: int) -> str:
    """Give the address that the indicator with this number is about."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _endpoint() -> Any:
    broker = importlib.import_module("broker")
    options = broker.BrokerOptions()
    options.forward = False
    return broker.Endpoint(broker.Configuration(options))


def _read(port: int, count: int, ours: bool, topic: str | None, results: Connection) -> None:
    """Be a Zeek: subscribe (unless `topic` is given), and receive `count` indicators."""
    broker = importlib.import_module("broker")
    endpoint = _endpoint()
    status = endpoint.make_status_subscriber(True)
    manage = endpoint.make_subscriber(MANAGE)
    own = topic or f"{TOPIC}{uuid.uuid4().hex}"
    subscriber = endpoint.make_subscriber(own)
    endpoint.peer_nosync("127.0.0.1", port, 1.0)
    selector = selectors.DefaultSelector()
    for each in (status, manage, subscriber):
        selector.register(each.fd(), selectors.EVENT_READ)

    def send(name: str, *args: Any) -> None:
        endpoint.publish(MANAGE, broker.zeek.Event(f"{NAMESPACE}::{name}", *args))

    values: list[str] = []
    began = ended = 0.0
    while len(values) < count and selector.select(30):
        if status.poll() and topic is None:
            if ours:
                send("join", own, TOPIC, timedelta(days=1), "benchmark")
            else:
                send("subscribe", TOPIC, timedelta(days=1))
        elif topic is not None and not values:
            results.send("ready")
            topic = None
        messages = manage.poll() + subscriber.poll()
        for _, (_, _, (name, args, *_)) in messages:
            match name.removeprefix(f"{NAMESPACE}::"):
                case "subscription_acknowledged":
                    subscriber = endpoint.make_subscriber(args[0])
                    selector.register(subscriber.fd(), selectors.EVENT_READ)
                case "joined":
                    send("received", own, broker.Count(0))
                case "intel":
                    values.append(args[0][3])
                case "intel_batch":
                    values += [item[1] for change in args[2] for item in change[2]]
                    send("received", own, args[1])
        ended = time.monotonic()
        if values and not began:
            began = ended
    results.send(Received(len(values), values == [value(n) for n in range(count)], ended - began))
    endpoint.shutdown()


@contextmanager
def _zeek(port: int, count: int, ours: bool, topic: str | None = None) -> Iterator[Connection]:
    mine, theirs = systems.spawn.Pipe()
    process = systems.spawn.Process(target=_read, args=(port, count, ours, topic, theirs))
    process.start()
    try:
        yield mine
    finally:
        process.join(60)
        process.kill()


def bare(count: int) -> Received:
    """Publish the events with nothing but Broker."""
    broker = importlib.import_module("broker")
    endpoint = _endpoint()
    port = endpoint.listen("127.0.0.1", 0)
    with _zeek(port, count, ours=False, topic="p2p") as zeek:
        zeek.recv()
        time.sleep(0.5)  # until its subscription has arrived
        for number in range(count):
            record = (datetime.now(UTC), f"indicator--{uuid.uuid4()}", "ADDR", value(number), "ADD")
            endpoint.publish("p2p", broker.zeek.Event(f"{NAMESPACE}::intel", record))
        received: Received = zeek.recv()
    endpoint.shutdown()
    return received


def snapshot(count: int, *, ours: bool) -> Received:
    """Have a Zeek ask for a snapshot, which an app with `count` indicators answers."""
    port = free_port()
    with (
        systems.bus([systems.EVERYTHING], apps=f"zeek: {{port: {port}}}") as system,
        _zeek(port, count, ours) as zeek,
    ):
        thread = threading.Thread(target=_answer, args=(system, count), daemon=True)
        thread.start()
        received: Received = zeek.recv()
        thread.join(60)
    return received


def _answer(system: systems.System, count: int) -> None:
    """Be an app that has a history: wait for the request, and answer it."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.subscribe(system.prefixes[0])
    sub.connect(system.receive_from)
    pub = context.socket(zmq.PUB)
    pub.setsockopt(zmq.SNDHWM, 0)
    pub.connect(system.publish_to)
    _, _, text = sub.recv().partition(b" ")
    request = json.loads(text)
    body = json.loads(indicator())
    for number in range(count):
        body |= {
            "id": f"indicator--{uuid.uuid4()}",
            "pattern": f"[ipv4-addr:value = '{value(number)}']",
        }
        envelope = {
            "type": "snapshotenvelope",
            "snapshot_type": request["snapshot_type"],
            "snapshot_id": request["snapshot_id"],
            "body": body,
        }
        pub.send(b"threatbus/snapshotenvelope " + json.dumps(envelope).encode())
    context.destroy(linger=30_000)
