"""Several nodes on one RabbitMQ are one bus; each node here is a process of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from helpers.documents import encode, indicator
from helpers.waiting import SOON, eventually

from integration.cli_helpers import BusProcess, Process, run, write_config
from integration.rabbit_helpers import Cluster, exchange_of
from testbed.ports import Doors
from testbed.rabbit import RabbitNode

Nodes = Callable[..., BusProcess]


@pytest.fixture
def cluster(broker: RabbitNode, request: pytest.FixtureRequest) -> Cluster:
    """Give what the nodes of this test share."""
    return Cluster(broker, exchange_of(request))


@pytest.fixture
def node(cluster: Cluster, tmp_path: Path) -> Iterator[Nodes]:
    """Starts nodes, ``node(1)``, and kills those that a test leaves running."""
    started: list[BusProcess] = []

    def start(number: int, **more: Any) -> BusProcess:
        directory = tmp_path / f"start-{len(started) + 1}"
        started.append(BusProcess(directory, backbones=cluster.backbones(number, **more)))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts ``threatbus tail`` at nodes."""
    started: list[Process] = []

    def start(at: BusProcess, *options: str) -> Process:
        directory = tmp_path / f"tail-{len(started) + 1}"
        count = at.stderr.count(" subscribes") + 1
        started.append(Process(directory, "tail", "--json", "--endpoint", at.endpoint, *options))
        eventually(lambda: at.stderr.count(" subscribes") == count, what="the tail subscribes")
        return started[-1]

    yield start
    for each in started:
        each.kill()


def publish(at: BusProcess, *objects: dict[str, Any]) -> None:
    lines = b"\n".join(encode(each) for each in objects)
    done = run("publish", "-", "--endpoint", at.endpoint, stdin=lines)
    assert done.returncode == 0, done.stderr


def ids(found: Process, count: int) -> list[str]:
    return [json.loads(line)["id"] for line in found.lines(count)]


def test_what_one_of_three_nodes_takes_in_reaches_the_subscribers_of_all_once(
    node: Nodes, tail: Callable[..., Process]
) -> None:
    nodes = [node(number) for number in (1, 2, 3)]
    tails = [tail(each) for each in nodes]
    sent = [indicator(name=str(number)) for number in range(300)]
    for number, each in enumerate(nodes):
        publish(each, *sent[number::3])
    for receiving in tails:
        got = ids(receiving, len(sent))
        assert sorted(got) == sorted(document["id"] for document in sent)
        for number in range(3):
            of_one_node = [document["id"] for document in sent[number::3]]
            assert [found for found in got if found in set(of_one_node)] == of_one_node


def test_a_snapshot_is_answered_from_another_node_and_goes_to_who_asked_alone(
    node: Nodes, tail: Callable[..., Process]
) -> None:
    asked, answering = node(1), node(2)
    bystanders = [tail(asked), tail(answering)]
    history = [indicator(name=f"history {number}") for number in range(20)]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        sub = subscribe_raw(context, answering, "stix2/indicator")
        requester = tail(asked, "--snapshot", "1")
        assert sub.poll(int(SOON * 1000)), "the request has not come"
        head, _, body = sub.recv().partition(b" ")
        assert head.endswith(b"snapshotrequest")
        request = json.loads(body)
        pub = context.socket(zmq.XPUB)
        pub.connect(answering.doors.address("sub"))
        pub.recv()
        for document in history:
            envelope = {
                "type": "snapshotenvelope",
                "snapshot_type": request["snapshot_type"],
                "snapshot_id": request["snapshot_id"],
                "body": document,
            }
            pub.send(b"threatbus/snapshotenvelope " + encode(envelope))
        assert ids(requester, 20) == [document["id"] for document in history]
        live = indicator(name="live")
        publish(asked, live)
        assert ids(requester, 21)[-1] == live["id"]
        for each in bystanders:
            assert ids(each, 1) == [live["id"]]
    finally:
        context.destroy(linger=0)


def test_what_a_killed_node_had_not_acknowledged_waits_for_its_return(
    node: Nodes, tail: Callable[..., Process], cluster: Cluster
) -> None:
    there = node(1)
    here = node(2)
    first = [indicator(name="before")]
    before = tail(here)
    publish(there, *first)
    assert ids(before, 1) == [first[0]["id"]]
    here.end(signal.SIGKILL)
    meanwhile = [indicator(name=f"meanwhile {number}") for number in range(200)]
    publish(there, *meanwhile)
    eventually(lambda: cluster.messages(2) == 200, what="the queue has them all")
    here = node(2)
    # Nobody listens yet, so nothing is poured out.
    here.says("waiting up to 60 s for a first subscriber")
    assert cluster.messages(2) == 200
    assert ids(tail(here), 200) == [document["id"] for document in meanwhile]
    eventually(lambda: cluster.messages(2) == 0, what="all are acknowledged")


def test_stopping_has_the_broker_confirm_everything_and_leaves_nothing_connected(
    node: Nodes, tail: Callable[..., Process], cluster: Cluster
) -> None:
    here, there = node(1), node(2)
    watching = tail(there)
    sent = [indicator(name=str(number)) for number in range(2000)]
    publish(here, *sent)
    assert here.end() == 0
    assert here.accepted == 2000
    assert "0 not delivered" in here.stderr
    assert ids(watching, 2000) == [document["id"] for document in sent]
    assert there.end() == 0
    mine = [
        row
        for row in cluster.broker.rows("connections", "client_properties")
        if cluster.exchange in row[0]
    ]
    assert mine == []


def test_a_queue_with_other_arguments_stops_the_start_with_one_message_and_the_way_out(
    node: Nodes, cluster: Cluster, tmp_path: Path
) -> None:
    node(1).end()
    backbones = cluster.backbones(1, queue={"max_items": 5})
    config = write_config(tmp_path / "other", Doors.free(), backbones)
    done = run("-c", str(config))
    said = done.stderr.decode()
    assert done.returncode != 0
    assert said.count("PRECONDITION_FAILED") == 1, said
    for part in ("x-max-length", cluster.queue(1), "name_suffix", "rabbitmqctl delete_queue"):
        assert part in said
    assert "Traceback" not in said


def subscribe_raw(
    context: zmq.Context[zmq.Socket[bytes]], at: BusProcess, topic: str
) -> zmq.Socket[bytes]:
    """Subscribe as an app that can answer snapshot requests."""
    with context.socket(zmq.REQ) as req:
        req.connect(at.endpoint)
        req.send_json({"action": "subscribe", "topic": topic})
        reply: Any = req.recv_json()
    sub = context.socket(zmq.SUB)
    sub.subscribe(reply["topic"].encode())
    sub.connect(at.doors.address("pub"))
    return sub
