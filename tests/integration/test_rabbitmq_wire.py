"""What stands in AMQP messages, who else may be at the exchange, and what RabbitMQ is asked for."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pika
import pika.exceptions
import pytest
from helpers.buses import Buses, OpenApp, reject_lines
from helpers.documents import encode, indicator, indicator_bytes, indicators, sighting_bytes
from helpers.waiting import eventually
from pika.adapters.utils import io_services_utils
from threatbus_rabbitmq.connection import BrokerRefusal

from integration.rabbit_helpers import (
    APPS,
    Cluster,
    OldNode,
    Peer,
    backbone_of,
    exchange_of,
    received,
    subscribed,
)
from integration.zmq_helpers import Apps
from testbed.rabbit import RabbitNode
from threatbus.messages import INDICATOR, SIGHTING

Caplog = pytest.LogCaptureFixture


@pytest.fixture
def cluster(broker: RabbitNode, request: pytest.FixtureRequest) -> Cluster:
    return Cluster(broker, exchange_of(request))


@pytest.fixture
def peer(cluster: Cluster) -> Iterator[Peer]:
    """A peer that makes the exchange as ours does."""
    made = Peer(cluster).declare(durable=True).bind()
    yield made
    made.close()


# Messages.


def test_a_message_is_persistent_has_an_id_of_its_own_and_the_bytes_that_came(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    start_bus(APPS, cluster.backbones())
    batch = indicators(3)
    open_app.inq.put_many(batch)
    ids = []
    for message in batch:
        body, properties = peer.receive()
        assert body == message.data
        assert properties.delivery_mode == 2
        assert properties.content_type == "application/json"
        assert properties.app_id == "threatbus"
        assert (properties.timestamp or 0) > 0
        ids.append(properties.message_id or "")
    assert len(set(ids)) == 3
    assert len({found.partition(":")[0] for found in ids}) == 1


def test_messages_that_go_out_together_are_sent_in_one_piece(
    start_bus: Buses,
    open_app: OpenApp,
    cluster: Cluster,
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces: list[int] = []
    transport: Any = io_services_utils._AsyncPlaintextTransport
    write = transport.write

    def counted(self: Any, data: bytes) -> None:
        pieces.append(len(data))
        write(self, data)

    monkeypatch.setattr(transport, "write", counted)
    start_bus(APPS, cluster.backbones())
    batch = indicators(100)
    open_app.inq.put_many(batch)
    assert [peer.receive()[0] for _ in batch] == [message.data for message in batch]
    assert max(pieces) > sum(len(message.data) for message in batch)


def test_exchange_and_queue_survive_a_restart_of_the_broker(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster
) -> None:
    start_bus(APPS, cluster.backbones(1))
    exchanges = {
        name: rest
        for name, *rest in cluster.broker.rows(
            "exchanges", "name", "type", "durable", "auto_delete"
        )
    }
    queues = {name: rest for name, *rest in cluster.broker.rows("queues", "name", "durable")}
    assert exchanges[cluster.exchange] == ["fanout", "true", "false"]
    assert queues[cluster.queue(1)] == ["true"]


def test_a_body_that_is_no_stix_is_kept_in_the_reject_store_and_costs_nobody_else_anything(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    bus = start_bus(APPS, cluster.backbones(1))
    outq = subscribed(open_app)
    bad = [b"", b"\xff\xfe", b"[" * 5000, b"{}", encode(indicator(pattern="nonsense"))]
    good = indicator_bytes()
    for body in (*bad, good):
        peer.publish(body)
    assert received(outq, 1) == [good]
    eventually(lambda: len(reject_lines(bus)) == len(bad))
    kept = reject_lines(bus)
    assert {line["origin"] for line in kept} == {"rabbitmq"}
    assert all(line["reason"] for line in kept)
    eventually(lambda: cluster.messages(1) == 0, what="nothing comes again and again")


def test_a_message_that_comes_again_with_its_id_is_dropped(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    start_bus(APPS, cluster.backbones())
    outq = subscribed(open_app)
    first, second = indicator_bytes(), indicator_bytes()
    for number, body in ((1, first), (1, first), (2, second)):
        peer.publish(body, pika.BasicProperties(message_id=f"node:{number}"))
    assert received(outq, 2) == [first, second]
    # Without an id it is a message of its own: the same object may well be published twice.
    peer.publish(first)
    peer.publish(first)
    assert received(outq, 2) == [first, first]


def test_with_the_in_memory_backbone_beside_it_everything_comes_once(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    start_bus(APPS, {"inmem": None, **cluster.backbones()})
    outq = subscribed(open_app)
    batch = indicators(200)
    open_app.inq.put_many(batch)
    foreign = indicator_bytes()
    peer.publish(foreign)
    got = received(outq, 201)
    assert sorted(got) == sorted([*(message.data for message in batch), foreign])


class HugeTimeHeader(pika.BasicProperties):
    """A header with a time that no calendar has."""

    def encode(self) -> list[bytes]:
        table = b"\x04timeT" + (2**63).to_bytes(8, "big")
        return [(1 << 13).to_bytes(2, "big"), len(table).to_bytes(4, "big"), table]


@pytest.mark.parametrize(
    "properties",
    [
        pika.BasicProperties(message_id=cast("str", b"\xff\xfe")),
        pika.BasicProperties(message_id=""),
        pika.BasicProperties(message_id="x" * 255),
        HugeTimeHeader(),
    ],
    ids=["id that is no text", "empty id", "long id", "header that pika cannot decode"],
)
def test_a_message_is_taken_whatever_its_properties_are(
    start_bus: Buses,
    open_app: OpenApp,
    cluster: Cluster,
    peer: Peer,
    properties: pika.BasicProperties,
) -> None:
    start_bus(APPS, cluster.backbones(1))
    outq = subscribed(open_app)
    bodies = [indicator_bytes() for _ in range(3)]
    peer.publish(bodies[0])
    peer.publish(bodies[1], properties)
    peer.publish(bodies[2])
    assert received(outq, 3) == bodies
    eventually(lambda: cluster.messages(1) == 0, what="nothing comes again and again")


# Nodes of the old kind.


@pytest.mark.parametrize("first", ["old", "ours"])
def test_a_node_of_the_old_kind_takes_part_whoever_came_first(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, first: str
) -> None:
    # Where an old node may come second, the exchange has to be made as it will ask for it.
    section = {} if first == "old" else {"exchange_durable": False}
    if first == "old":
        old = OldNode(cluster)
        start_bus(APPS, cluster.backbones(**section))
    else:
        start_bus(APPS, cluster.backbones(**section))
        old = OldNode(cluster)
    outq = subscribed(open_app)
    theirs = [indicator_bytes(), sighting_bytes()]
    for body in theirs:
        old.publish(body)
    assert received(outq, 2) == theirs
    ours = indicators(2)
    open_app.inq.put_many(ours)
    from_us: list[bytes] = []
    while len(from_us) < 2:
        body, _ = old.receive()
        if body not in theirs:
            from_us.append(body)
    assert from_us == [message.data for message in ours]
    old.close()


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_an_exchange_of_another_kind_that_is_there_serves_as_well(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, kind: str
) -> None:
    other = Peer(cluster)
    other.channel.exchange_declare(cluster.exchange, kind)
    other.close()
    start_bus(APPS, cluster.backbones(1))
    outq = subscribed(open_app)
    (message,) = indicators(1)
    open_app.inq.put_many([message])
    assert received(outq, 1) == [message.data]


def test_an_old_node_that_takes_the_exchange_as_it_is_takes_part_in_a_durable_one(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster
) -> None:
    start_bus(APPS, cluster.backbones())
    outq = subscribed(open_app)
    old = Peer(cluster).bind()
    body = indicator_bytes()
    old.publish(body)
    assert received(outq, 1) == [body]
    assert old.receive()[0] == body
    old.close()


# Subscribers.


def test_nothing_is_consumed_before_somebody_listens(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    start_bus(APPS, cluster.backbones(1))
    bodies = [indicator_bytes() for _ in range(5)]
    for body in bodies:
        peer.publish(body)
    eventually(lambda: cluster.messages(1) == 5)
    assert received(subscribed(open_app), 5) == bodies


def test_the_hold_ends_by_itself(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    start_bus(APPS, cluster.backbones(1, hold=0.3))
    peer.publish(indicator_bytes())
    eventually(lambda: cluster.messages(1) == 0)


def test_a_full_outq_that_blocks_holds_the_consumer_up_and_the_broker_keeps_the_rest(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    queues = {"overflow": "block", "outq_messages": 300}
    start_bus(APPS, cluster.backbones(1, prefetch=100), queues=queues)
    outq = subscribed(open_app)
    bodies = [indicator_bytes() for _ in range(1000)]
    for body in bodies:
        peer.publish(body)
    eventually(outq.full)
    assert outq.qsize() < 600
    assert cluster.messages(1) >= 400
    assert received(outq, 1000) == bodies


def test_large_messages_for_a_full_outq_that_blocks_stay_with_the_broker(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    queues = {"overflow": "block", "outq_messages": 1}
    bus = start_bus(APPS, cluster.backbones(1), queues=queues)
    consumer = backbone_of(bus)._consumer
    outq = subscribed(open_app)
    bodies = [indicator_bytes(description="x" * 1_000_000) for _ in range(30)]
    for body in bodies:
        peer.publish(body)
    eventually(lambda: consumer.connects == 2)
    assert consumer._batch_bytes == 0
    assert received(outq, 30) == bodies


def test_messages_that_the_broker_refuses_come_later_and_in_order(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, caplog: Caplog
) -> None:
    start_bus(APPS, cluster.backbones(1))
    full = json.dumps({"max-length": 5, "overflow": "reject-publish"})
    cluster.broker.control("set_policy", "full", f"^{cluster.queue(1)}$", full)
    batch = indicators(20)
    open_app.inq.put_many(batch)
    # Nobody listens yet, so they stay in the queue.
    eventually(lambda: "the broker refuses messages" in caplog.text)
    got = received(subscribed(open_app), 20)
    assert got == [message.data for message in batch]


def test_messages_are_sorted_by_topic(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer
) -> None:
    start_bus(APPS, cluster.backbones())
    of_indicators, of_sightings = subscribed(open_app, INDICATOR), subscribed(open_app, SIGHTING)
    found, seen = indicator_bytes(), sighting_bytes()
    for body in (found, seen):
        peer.publish(body)
    assert received(of_indicators, 1) == [found]
    assert received(of_sightings, 1) == [seen]


# What the configuration asks for.


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        ({"lazy": True}, {"x-queue-mode": "lazy"}),
        ({"max_items": 10}, {"x-max-length": 10}),
        ({"max_items": 0}, {}),
        ({"expires": 90}, {"x-expires": 90_000}),
        ({"type": "quorum"}, {"x-queue-type": "quorum"}),
        ({"exclusive": True}, {}),
        ({"auto_delete": True, "durable": False}, {}),
    ],
)
def test_the_queue_is_as_configured_and_works(
    start_bus: Buses,
    open_app: OpenApp,
    cluster: Cluster,
    queue: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    start_bus(APPS, cluster.backbones(1, queue=queue))
    outq = subscribed(open_app)
    batch = indicators(5)
    open_app.inq.put_many(batch)
    assert received(outq, 5) == [message.data for message in batch]
    listed = cluster.broker.control(
        "list_queues",
        "name",
        "arguments",
        "durable",
        "auto_delete",
        "exclusive",
        "--formatter",
        "json",
    )
    (found,) = [row for row in json.loads(listed) if row["name"] == cluster.queue(1)]
    set_here = {row[0]: row[2] for row in found["arguments"]}
    for key, value in arguments.items():
        assert set_here[key] == value
    # An exclusive queue is never durable, and of a quorum queue it is not said to be exclusive.
    exclusive = queue.get("exclusive", False)
    assert found["durable"] is (queue.get("durable", True) and not exclusive)
    assert found["auto_delete"] is queue.get("auto_delete", False)
    assert bool(found["exclusive"]) is exclusive


def test_two_buses_that_share_a_queue_by_mistake_are_told_so(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, caplog: Caplog
) -> None:
    for _ in range(2):
        start_bus(APPS, cluster.backbones(1, heartbeat=1, hold=0))
    eventually(lambda: caplog.text.count("every bus needs a queue.name_suffix of its own") == 2)


@pytest.mark.parametrize("queue", [{"exclusive": True}, {"durable": False}, {"lazy": True}])
def test_a_queue_that_rabbitmq_cannot_make_is_said_so_and_leaves_nothing_running(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, queue: dict[str, Any]
) -> None:
    before = set(threading.enumerate())
    with pytest.raises(BrokerRefusal, match="cannot be made as the configuration says") as caught:
        start_bus(APPS, cluster.backbones(1, queue={"type": "quorum", **queue}))
    assert "is there" not in str(caught.value)
    assert set(threading.enumerate()) <= before


def test_wrong_credentials_are_said_so_without_the_password(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, caplog: Caplog
) -> None:
    with caplog.at_level(logging.DEBUG):
        bus = start_bus(APPS, cluster.backbones(username="nobody", password="sesame-open"))
        eventually(lambda: "refuses username or password" in caplog.text)
    assert "sesame-open" not in caplog.text
    assert bus.running


def test_a_broker_that_ends_every_connection_is_not_stormed_and_its_reason_is_logged(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, peer: Peer, caplog: Caplog
) -> None:
    cluster.broker.control("add_user", "reader", "secret")
    may_bind_but_not_publish = ("reader", ".*", r"^threatbus\.", ".*")
    cluster.broker.control("set_permissions", "-p", "/", *may_bind_but_not_publish)
    section = cluster.backbones(username="reader", password="secret")
    bus = start_bus(APPS, section, drain_timeout=0.2)
    publisher = backbone_of(bus)._publisher
    first, began = publisher.connects, time.monotonic()
    with caplog.at_level(logging.INFO):
        open_app.inq.put_many(indicators(1))
        eventually(lambda: publisher.connects >= first + 5)
    # The pauses double from 0.1 s and are at least half of that.
    assert time.monotonic() - began > 0.05 + 0.1 + 0.2 + 0.4 + 0.8
    said = [each.getMessage() for each in caplog.records if each.levelno > logging.DEBUG]
    assert sum("ACCESS_REFUSED - access to exchange" in line for line in said) == 1
    assert sum("publisher is connected to" in line for line in said) <= 1


def test_a_vhost_that_is_not_there_is_named(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, caplog: Caplog
) -> None:
    start_bus(APPS, cluster.backbones(vhost="nowhere"))
    assert "access to the vhost: NOT_ALLOWED - vhost nowhere not found" in caplog.text


def test_a_vhost_of_its_own_is_used(start_bus: Buses, open_app: OpenApp, cluster: Cluster) -> None:
    cluster.broker.control("add_vhost", "tools")
    cluster.broker.control("add_user", "bus", "secret")
    cluster.broker.control("set_permissions", "-p", "tools", "bus", ".*", ".*", ".*")
    section = cluster.backbones(1, vhost="tools", username="bus", password="secret")
    start_bus(APPS, section)
    names = [row[0] for row in cluster.broker.rows("queues", "-p", "tools", "name")]
    assert names == [cluster.queue(1)]


def test_the_zmq_way_in_and_out_passes_through_the_broker(zmq_apps: Apps, cluster: Cluster) -> None:
    here, there = (zmq_apps.bus(backbones=cluster.backbones()) for _ in range(2))
    reader = zmq_apps.app(there).subscribe("stix2").connect().connected()
    publisher = zmq_apps.app(here)
    publisher.publish_numbered(0, 1000)
    assert reader.receive_until(999) == list(range(1000))
