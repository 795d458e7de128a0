"""`threatbus doctor` looks at a RabbitMQ, and leaves it as it is."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.buses import Buses, OpenApp
from helpers.documents import indicators
from helpers.waiting import eventually

import threatbus
from integration.doctor_helpers import Findings, plain_server, tls_server
from integration.rabbit_helpers import APPS, Cluster, Peer
from testbed.ports import free_port
from testbed.rabbit import RabbitNode

SECTION = "plugins.backbones.rabbitmq"


@pytest.fixture
def cluster(broker: RabbitNode, request: pytest.FixtureRequest) -> Cluster:
    return Cluster(broker, request.node.name)


def test_before_the_first_start_nothing_is_there_and_nothing_is_made(
    start_bus: Buses, cluster: Cluster
) -> None:
    found = Findings(start_bus.config(backbones=cluster.backbones(1)))
    assert found.failed == []
    assert "guest is let into vhost /" in found("connection").detail
    assert "not there yet" in found("exchange").detail
    assert "not there yet" in found("queue").detail
    assert [cluster.exchange] not in cluster.broker.rows("exchanges", "name")
    assert [cluster.queue(1)] not in cluster.broker.rows("queues", "name")


def test_beside_a_bus_that_runs_no_message_is_taken_from_its_queue(
    start_bus: Buses, cluster: Cluster, open_app: OpenApp
) -> None:
    config = start_bus.config(APPS, cluster.backbones(1))
    bus = threatbus.start(config)
    # Nobody has subscribed, so what is published waits in the queue.
    Peer(cluster).publish(indicators(1)[0].data)
    eventually(lambda: cluster.messages(1) == 1)
    found = Findings(config)
    assert found.failed == []
    assert found("exchange").detail.endswith("is there")
    assert "is there as configured" in found("queue").detail
    assert cluster.messages(1) == 1
    bus.stop()
    assert cluster.messages(1) == 1


def test_a_queue_of_another_kind_is_told_with_what_differs(
    start_bus: Buses, cluster: Cluster, open_app: OpenApp
) -> None:
    start_bus(APPS, cluster.backbones(1))
    found = Findings(start_bus.config(backbones=cluster.backbones(1, queue={"durable": False})))
    assert found.failed == ["queue"]
    assert "durable" in found("queue").detail
    assert f"rabbitmqctl delete_queue {cluster.queue(1)}" in found("queue").next_step


def test_a_queue_that_another_bus_consumes_is_told(
    start_bus: Buses, cluster: Cluster, open_app: OpenApp
) -> None:
    start_bus(APPS, cluster.backbones(1, hold=0))
    eventually(
        lambda: [cluster.queue(1), "1"] in cluster.broker.rows("queues", "name", "consumers")
    )
    # Of another state directory, so of another bus.
    found = Findings(start_bus.config(backbones=cluster.backbones(1)))
    assert "consumed by somebody else" in found("queue").detail
    assert "name_suffix" in found("queue").next_step


def test_an_exchange_that_does_not_hand_to_all_is_told(start_bus: Buses, cluster: Cluster) -> None:
    peer = Peer(cluster)
    peer.channel.exchange_declare(cluster.exchange, "direct")
    found = Findings(start_bus.config(backbones=cluster.backbones(1)))
    assert found.failed == ["exchange"]
    assert "exchange_name" in found("exchange").next_step
    peer.channel.exchange_delete(cluster.exchange)
    # Durable or not is all the same to a bus.
    peer.declare(durable=False)
    assert Findings(start_bus.config(backbones=cluster.backbones(1))).failed == []


@pytest.mark.parametrize(
    ("wrong", "detail", "next_step"),
    [
        ({"password": "hunter2"}, "refuses username or password", f"{SECTION}.username"),
        ({"vhost": "nowhere"}, "vhost", f"{SECTION}.vhost"),
        ({"tls": {"enabled": True}}, "SSL", f"{SECTION}.tls.enabled: false"),
        ({"host": "nowhere.invalid"}, "no host", f"{SECTION}.host"),
    ],
)
def test_why_the_broker_lets_nobody_in_is_told(
    wrong: dict[str, Any], detail: str, next_step: str, start_bus: Buses, cluster: Cluster
) -> None:
    found = Findings(start_bus.config(backbones=cluster.backbones(1, **wrong)))
    assert detail in found("connection").detail
    assert next_step in found("connection").next_step
    assert found("queue").next_step == "mend that first"
    assert "hunter2" not in repr(found.all)


def test_what_is_no_broker_is_told(start_bus: Buses) -> None:
    def connection(port: int, **more: Any) -> Any:
        section = {"port": port, **more}
        return Findings(start_bus.config(backbones={"rabbitmq": section}))("connection")

    assert "nothing listens" in connection(free_port()).detail
    with plain_server() as plain:
        assert not connection(plain).ok
    with tls_server() as tls:
        refused = connection(tls, tls={"enabled": True})
        assert "certificate verify failed" in refused.detail
        assert f"{SECTION}.tls.ca" in refused.next_step
