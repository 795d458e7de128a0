"""Buses on a RabbitMQ, and a peer that speaks AMQP itself."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pika
import pika.exceptions
import pytest
from helpers.buses import OpenApp
from helpers.waiting import SOON, eventually

import threatbus
from testbed.rabbit import RabbitNode
from threatbus.queues import MessageQueue

#: The apps of a bus that a test takes part in itself.
APPS = {"open": None}


class Cluster:
    """What the nodes of one test share: an exchange of their own on a broker."""

    def __init__(self, broker: RabbitNode, exchange: str) -> None:
        self.broker = broker
        self.exchange = exchange[:150]
        self._numbers = itertools.count(1)

    def queue(self, node: int | str) -> str:
        """Give the name of a node's queue."""
        return f"threatbus.{self.exchange}-{node}"

    def section(self, node: int | str | None = None, **more: Any) -> dict[str, Any]:
        """Give the section of a new node, or of the one with this number."""
        queue = {"name_suffix": f"{self.exchange}-{node or next(self._numbers)}"}
        return {
            "port": self.broker.port,
            "exchange_name": self.exchange,
            **more,
            "queue": queue | more.pop("queue", {}),
        }

    def backbones(self, node: int | str | None = None, **more: Any) -> dict[str, Any]:
        """Give the backbones of a node that has RabbitMQ alone."""
        return {"rabbitmq": self.section(node, **more)}

    def messages(self, node: int | str) -> int:
        """Say how many messages a node's queue holds, acknowledged by nobody."""
        return self.broker.messages(self.queue(node))


class Peer:
    """Somebody else at the exchange, with a queue of its own, as pika's user would write it."""

    def __init__(self, cluster: Cluster) -> None:
        self._exchange = cluster.exchange
        self._connection = pika.BlockingConnection(
            pika.ConnectionParameters("127.0.0.1", cluster.broker.port)
        )
        self.channel = self._connection.channel()
        self.queue = ""

    def declare(self, **arguments: Any) -> Peer:
        """Declare the exchange in its own way."""
        self.channel.exchange_declare(self._exchange, "fanout", **arguments)
        return self

    def bind(self) -> Peer:
        """Make a queue and bind it."""
        self.queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(self.queue, self._exchange)
        return self

    def publish(self, body: bytes, properties: pika.BasicProperties | None = None) -> None:
        """Publish a body, by default with no properties."""
        self.channel.basic_publish(self._exchange, "", body, properties)

    def receive(self) -> tuple[bytes, pika.BasicProperties]:
        """Wait for the next message."""

        def got() -> Any:
            method, properties, body = self.channel.basic_get(self.queue, auto_ack=True)
            return (body, properties) if method is not None else None

        body, properties = eventually(got, SOON, "a message is in the peer's queue")
        return body, properties

    def close(self) -> None:
        """Disconnect."""
        if self._connection.is_open:
            self._connection.close()

    def holds(self, queue: str) -> bool:
        """Make a queue that nobody else may use, unless somebody else has it."""
        if not self.channel.is_open:
            self.channel = self._connection.channel()
        try:
            self.channel.queue_declare(queue, exclusive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True


class OldNode(Peer):
    """A node of 2022.5.16: a non-durable exchange, bare bodies, no properties."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.declare(durable=False)
        self.bind()


def received(outq: MessageQueue, count: int) -> list[bytes]:
    """Wait for messages in an outq."""
    found: list[bytes] = []

    def complete() -> bool:
        found.extend(message.data for message in outq.get_many(count))
        return len(found) >= count

    eventually(complete, what=f"{count} messages in {outq.name}")
    return found


def subscribed(app: OpenApp, topic: str = "stix2") -> MessageQueue:
    """Give an outq that is subscribed."""
    outq = app.services.outq("reader")
    app.subscribe(topic, outq)
    return outq


def backbone_of(bus: threatbus.ThreatBus) -> Any:
    """Give the plugin's inside, to look at what nobody outside can see."""
    (plugin,) = [each for each in bus._backbones if each.name == "rabbitmq"]
    return plugin._manager.get_plugin("rabbitmq")


def exchange_of(request: pytest.FixtureRequest) -> str:
    """Give a name for the exchange of a test."""
    return str(request.node.name).replace("[", "-").replace("]", "")


def documents(bodies: list[bytes]) -> list[Any]:
    """Decode bodies."""
    return [json.loads(body) for body in bodies]
