"""A MISP that publishes what a test says, over ZeroMQ or Kafka, and a bus that listens to it."""

from __future__ import annotations

import copy
import itertools
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import confluent_kafka
import zmq
from helpers.buses import Buses, OpenApp
from helpers.waiting import SOON, eventually

import threatbus
from threatbus.queues import MessageQueue

CAPTURES = Path(__file__).parents[1] / "data/misp/zmq"
EVENT = "f2aa1394-d4b7-4208-b85c-277e07d99db2"


def captured(name: str, topic: str | None = None) -> dict[str, Any]:
    """Give what a running MISP sent: the first message of a capture, or the first of a topic."""
    for line in (CAPTURES / f"{name}.txt").read_text().splitlines():
        found, _, body = line.partition(" ")
        if topic in (None, found):
            document: dict[str, Any] = json.loads(body)
            return document
    raise LookupError(topic)


def changed(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Give a copy with other values in its ``Attribute``."""
    copied = copy.deepcopy(document)
    copied["Attribute"].update(changes)
    return copied


def attribute_message(action: str = "add", **changes: Any) -> dict[str, Any]:
    """Give the message of a new attribute."""
    fresh = {"uuid": str(uuid.uuid4()), "id": str(next(_NUMBERS)), **changes}
    return changed(captured("attribute_add"), **fresh) | {"action": action}


_NUMBERS = itertools.count(1000)


class Stream(Protocol):
    """Where MISP's messages go."""

    section: dict[str, Any]

    def send(self, topic: str, document: Any) -> None:
        """Publish one message; `document` is JSON, or the bytes that stand in its place."""

    def close(self) -> None:
        """End."""


def encoded(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


class ZmqStream:
    """MISP's ZeroMQ publisher."""

    def __init__(
        self,
        port: int = 0,
        *,
        plain: bool = False,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._context = context or zmq.Context()
        # An XPUB is a PUB that tells when somebody listens.
        self._pub = self._context.socket(zmq.XPUB)
        if plain:
            self._pub.setsockopt(zmq.PLAIN_SERVER, 1)
        # Also of one that comes before another has gone.
        self._pub.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._pub.setsockopt(zmq.SNDHWM, 0)
        if port:
            self._pub.bind(f"tcp://127.0.0.1:{port}")
        else:
            port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self.port = port
        self.section: dict[str, Any] = {"zmq": {"host": "127.0.0.1", "port": port}}
        self._heard = False

    def send(self, topic: str, document: Any) -> None:
        """Publish one frame, once somebody listens."""
        self.heard()
        self._pub.send(topic.encode() + b" " + encoded(document))

    def heard(self, *, anew: bool = False) -> None:
        """Wait until somebody listens, or somebody else than before."""
        while anew or not self._heard:
            assert self._pub.poll(int(SOON * 1000)), "nobody subscribes"
            self._heard = self._pub.recv() == b"\x01misp_json"
            anew = anew and not self._heard

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


class KafkaStream:
    """The Kafka that MISP writes to: librdkafka's mock of one."""

    TOPICS: ClassVar = {
        "misp_json": "misp_event_publish",
        "misp_json_event": "misp_event",
        "misp_json_attribute": "misp_attribute",
        "misp_json_tag": "misp_tag",
        "misp_json_sighting": "misp_sighting",
    }

    def __init__(self) -> None:
        self._producer = confluent_kafka.Producer({"test.mock.num.brokers": 1})
        (broker,) = self._producer.list_topics(timeout=SOON).brokers.values()
        self.servers = f"{broker.host}:{broker.port}"
        self.section: dict[str, Any] = {
            "kafka": {
                "topics": sorted(self.TOPICS.values()),
                "poll_interval": 0.1,
                "config": {
                    "bootstrap.servers": self.servers,
                    "auto.offset.reset": "earliest",
                    "group.protocol": "consumer",
                    # A mock has nobody to spare.
                    "fetch.wait.max.ms": 10,
                    "fetch.error.backoff.ms": 10,
                },
            }
        }
        for topic in self.TOPICS.values():
            # A topic exists once something was written to it; this is no JSON and is rejected.
            self._producer.produce(topic, b'{"Nothing": 1}', partition=0)
        self._producer.flush(SOON)

    def send(self, topic: str, document: Any) -> None:
        """Produce one message. To one partition: MISP's order holds within one only."""
        document = document if isinstance(document, bytes) else dict(document)
        if topic == "misp_json":
            document = {**document, "action": "publish"}
        self._producer.produce(self.TOPICS[topic], encoded(document), partition=0)
        assert self._producer.flush(SOON) == 0

    def close(self) -> None:
        """Let go of it."""
        del self._producer


class MispBus:
    """A bus with the MISP plugin, and a subscriber to everything."""

    def __init__(
        self, start_bus: Buses, app: OpenApp, section: dict[str, Any], **core: Any
    ) -> None:
        # It subscribes before MISP's plugin runs, so that it misses nothing.
        self.outq: MessageQueue

        def subscribe() -> None:
            self.outq = app.services.outq("reader")
            app.subscribe("stix2", self.outq)

        app.on_run = subscribe
        self.bus: threatbus.ThreatBus = start_bus({"open": None, "misp": section}, **core)

    def receive(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for `count` objects."""
        found: list[dict[str, Any]] = []

        def complete() -> bool:
            batch = self.outq.get_many(count - len(found))
            found.extend(json.loads(m.data) for m in batch if m.topic.startswith("stix2/"))
            return len(found) >= count

        eventually(complete, 3 * SOON, f"{count} objects from MISP")
        return found

    def rejected(self) -> int:
        """Say how many messages were rejected."""
        return sum(self.bus.rejects.counts.values())

    @property
    def instance(self) -> Any:
        """The plugin's inside."""
        (plugin,) = [app for app in self.bus._apps if app.name == "misp"]
        implementation: Any = plugin._manager.get_plugin("misp")
        return implementation._instances[0]

    def healed(self) -> None:
        """Wait until nothing is known to be missing."""
        eventually(lambda: self.instance.missing.nothing, 3 * SOON, "everything is known")


def shown(objects: Iterable[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Give pattern and whether withdrawn of indicators."""
    return [(found["pattern"], found.get("revoked", False)) for found in objects]
