"""RabbitMQ dies, refuses, hangs and cuts connections: nothing is lost, nothing comes twice."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp
from helpers.documents import indicator_bytes, indicator_message, indicators
from helpers.services import rabbit_node
from helpers.waiting import SCALE, SOON, eventually, finished, in_threads, wait_for
from threatbus_rabbitmq.publisher import WINDOW_BYTES

from integration.rabbit_helpers import (
    APPS,
    Cluster,
    Peer,
    backbone_of,
    exchange_of,
    received,
    subscribed,
)
from integration.zmq_helpers import (
    App,
    Apps,
    ZmqBus,
    connections_to,
    number_of,
    numbered,
    rss_bytes,
)
from testbed.ports import free_port
from testbed.proxy import Proxy, proxy
from testbed.rabbit import RabbitNode
from threatbus.errors import Overflow

#: Messages a second while something breaks.
RATE = 500
#: Seconds in which delivery goes on once the broker is ready.
RESUME_SECS = 5.0 * SCALE


@pytest.fixture(scope="module")
def mortal() -> Iterator[RabbitNode]:
    """A broker that tests kill and start again; each leaves it running."""
    with rabbit_node() as node:
        yield node


class Ways:
    """Proxies in front of the broker; they are there until the buses of a test are down."""

    def __init__(self, broker: RabbitNode, stack: contextlib.ExitStack) -> None:
        self._broker = broker
        self._stack = stack

    def open(self, listen_on: int = 0) -> Proxy:
        return self._stack.enter_context(proxy(self._broker.port, listen_on))


# Before `zmq_apps`, so that it outlives them.
@pytest.fixture(autouse=True)
def ways(mortal: RabbitNode) -> Iterator[Ways]:
    with contextlib.ExitStack() as stack:
        yield Ways(mortal, stack)


@pytest.fixture
def cluster(mortal: RabbitNode, request: pytest.FixtureRequest) -> Cluster:
    return Cluster(mortal, exchange_of(request))


@pytest.fixture
def somebody(cluster: Cluster) -> Iterator[Peer]:
    """Somebody who has no queue."""
    made = Peer(cluster)
    yield made
    made.close()


class Stream(threading.Thread):
    """Publishes numbered indicators at `RATE`, whatever happens meanwhile."""

    def __init__(self, app: App, count: int) -> None:
        super().__init__(daemon=True)
        self._app = app
        self._count = count
        self.sent = 0
        # Made before, in the test's thread: a socket belongs to one thread at a time.
        self._pub = app.pub

    def run(self) -> None:
        start = time.monotonic()
        for number in range(self._count):
            time.sleep(max(0.0, start + number / RATE - time.monotonic()))
            self._pub.send(b"stix2/indicator " + numbered(number))
            self.sent = number + 1

    def has_sent(self, count: int) -> None:
        eventually(lambda: self.sent >= count, 3 * SOON, f"{count} are sent")


def connected(zmq_apps: Apps, bus: ZmqBus) -> tuple[App, App]:
    """A subscriber and a publisher."""
    reader = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    return reader, zmq_apps.app(bus)


def failures_of(bus: ZmqBus) -> int:
    """How often the workers have raised: a broken connection is no failure."""
    backbone = backbone_of(bus.bus)
    return int(backbone._publisher.failures + backbone._consumer.failures)


def test_a_broker_that_is_killed_in_mid_stream_costs_no_message_and_doubles_none(
    zmq_apps: Apps, cluster: Cluster, mortal: RabbitNode
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones())
    other = zmq_apps.bus(backbones=cluster.backbones())
    reader, publisher = connected(zmq_apps, bus)
    elsewhere, _ = connected(zmq_apps, other)
    count = 3000
    stream = Stream(publisher, count)
    stream.start()
    stream.has_sent(500)
    mortal.kill()
    stream.has_sent(1000)
    mortal.start()
    ready = time.monotonic()
    # What was confirmed before the kill may be with the reader already; the next is not.
    before = backbone_of(bus.bus)._publisher.confirmed
    eventually(
        lambda: backbone_of(bus.bus)._publisher.confirmed > before, what="the broker confirms again"
    )
    assert time.monotonic() - ready < RESUME_SECS
    finished(stream, 3 * SOON)
    assert reader.receive_until(count - 1) == list(range(count))
    assert elsewhere.receive_until(count - 1) == list(range(count))
    assert failures_of(bus) == failures_of(other) == 0


def test_a_broker_that_refuses_connections_for_a_while_costs_nothing(
    ways: Ways, zmq_apps: Apps, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    way = ways.open()
    bus = zmq_apps.bus(backbones=cluster.backbones(port=way.port))
    reader, publisher = connected(zmq_apps, bus)
    stream = Stream(publisher, 2000)
    stream.start()
    stream.has_sent(300)
    with caplog.at_level(logging.WARNING):
        way.close()
        stream.has_sent(900)
        eventually(lambda: f"no connection to 127.0.0.1:{way.port}" in caplog.text)
    problem = f"rabbitmq: publisher is down: trying 127.0.0.1:{way.port} again, attempt "
    eventually(lambda: any(each.startswith(problem) for each in bus.bus.view.problems()))
    assert bus.bus.view.unready_plugins() == ["rabbitmq"]
    ways.open(way.port)
    finished(stream, 3 * SOON)
    assert reader.receive_until(1999) == list(range(2000))
    eventually(lambda: not bus.bus.view.problems())
    report = bus.bus.observer.plugin("rabbitmq", "backbone").report
    assert [each.reconnects for each in report.connections()] == [1, 1]


@pytest.mark.parametrize("place", [1, 7, 1000, 4096, 54_321])
def test_a_connection_that_is_cut_in_the_middle_of_a_frame_costs_nothing(
    ways: Ways, zmq_apps: Apps, cluster: Cluster, place: int
) -> None:
    way = ways.open()
    bus = zmq_apps.bus(backbones=cluster.backbones(port=way.port))
    reader, publisher = connected(zmq_apps, bus)
    publisher.publish_numbered(0, 100)
    assert reader.receive_until(99) == list(range(100))
    before = backbone_of(bus.bus)._publisher.connects
    way.cut_after(place)
    publisher.publish_numbered(100, 900)
    assert reader.receive_until(999) == list(range(100, 1000))
    assert backbone_of(bus.bus)._publisher.connects > before
    assert failures_of(bus) == 0


def test_a_bus_that_starts_before_its_broker_waits_and_says_so(
    ways: Ways, zmq_apps: Apps, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with caplog.at_level(logging.INFO):
        bus = zmq_apps.bus(backbones=cluster.backbones(port=port))
        reader, publisher = connected(zmq_apps, bus)
        publisher.publish_numbered(0, 50)
        bus.accepted(50)
    assert f"no connection to 127.0.0.1:{port}: Connection refused" in caplog.text
    ways.open(port)
    assert reader.receive_until(49) == list(range(50))


def test_without_a_broker_inq_fills_up_to_its_bound_and_then_sources_wait(
    ways: Ways, zmq_apps: Apps, cluster: Cluster
) -> None:
    port = free_port()
    bound = 2000
    bus = zmq_apps.bus(backbones=cluster.backbones(port=port), queues={"inq_messages": bound})
    reader, publisher = connected(zmq_apps, bus)
    publisher.publish_numbered(0, bound)
    bus.accepted(bound)
    before = rss_bytes()
    publisher.publish_numbered(bound, 20_000)
    eventually(lambda: not bus.bus.intake.writable, what="sources wait")
    # What was read when it became full is still taken.
    with pytest.raises(AssertionError, match="more is accepted"):
        eventually(lambda: bus.bus.intake.accepted > bound + 1000, 0.5, "more is accepted")
    # This process is the publisher as well: what waits there is its own memory.
    assert rss_bytes() - before < 20_000 * 1000 + 20 * 2**20
    ways.open(port)
    assert reader.receive_until(bound + 20_000 - 1) == list(range(bound + 20_000))


def test_a_broker_that_hangs_is_noticed_by_its_heartbeats_and_costs_nothing(
    ways: Ways, zmq_apps: Apps, cluster: Cluster
) -> None:
    way = ways.open()
    bus = zmq_apps.bus(backbones=cluster.backbones(port=way.port, heartbeat=1))
    reader, publisher = connected(zmq_apps, bus)
    publisher.publish_numbered(0, 100)
    assert reader.receive_until(99) == list(range(100))
    way.freeze()
    publisher.publish_numbered(100, 100)
    assert reader.receive_until(199, 6 * SOON) == list(range(100, 200))


def test_a_broker_short_of_memory_is_said_so_and_what_waits_goes_out_when_it_is_over(
    zmq_apps: Apps, cluster: Cluster, mortal: RabbitNode, caplog: pytest.LogCaptureFixture
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones())
    reader, publisher = connected(zmq_apps, bus)
    with caplog.at_level(logging.INFO):
        mortal.control("set_vm_memory_high_watermark", "0.000001")
        try:
            publisher.publish_numbered(0, 3000)
            eventually(lambda: "takes no messages for now" in caplog.text)
        finally:
            mortal.control("set_vm_memory_high_watermark", "0.4")
        assert reader.receive_until(2999) == list(range(3000))
        eventually(lambda: "takes messages again" in caplog.text)


def test_stopping_without_a_broker_ends_at_the_drain_timeout_and_counts_what_is_lost(
    zmq_apps: Apps, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones(port=free_port()), drain_timeout=0.5)
    bus.bus.intake.put_many(indicators(7))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        bus.bus.stop()
    assert time.monotonic() - began < SOON / 2
    assert "7 messages remain in backbone rabbitmq" in caplog.text
    with pytest.raises(Overflow):
        bus.bus.intake.put_many(indicators(1))


def test_a_broker_that_hangs_does_not_hold_up_the_end(
    zmq_apps: Apps, cluster: Cluster, mortal: RabbitNode
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones(), drain_timeout=0.5)
    mortal.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        bus.bus.stop()
        assert time.monotonic() - began < 0.5 + SOON / 2
        assert connections_to(mortal.port) == 0
    finally:
        mortal.signal(signal.SIGCONT)


def test_what_others_send_while_a_bus_stops_waits_for_its_next_start(
    zmq_apps: Apps, cluster: Cluster
) -> None:
    here, there = (zmq_apps.bus(backbones=cluster.backbones(node)) for node in (1, 2))
    reader, _ = connected(zmq_apps, here)
    stream = Stream(zmq_apps.app(there), 900)
    stream.start()
    stream.has_sent(500)
    here.bus.stop()
    stream.has_sent(600)
    finished(stream, 3 * SOON)
    there.accepted(900)
    before = [number_of(frame) for frame in reader.receive_rest()]
    again = zmq_apps.bus(backbones=cluster.backbones(1))
    back, _ = connected(zmq_apps, again)
    assert before + back.receive_until(899) == list(range(900))


def test_a_queue_that_is_deleted_is_made_anew(
    zmq_apps: Apps, cluster: Cluster, mortal: RabbitNode
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones(1))
    reader, publisher = connected(zmq_apps, bus)
    before = backbone_of(bus.bus)._consumer.connects
    mortal.control("delete_queue", cluster.queue(1))
    eventually(lambda: backbone_of(bus.bus)._consumer.connects > before)
    publisher.publish_numbered(0, 10)
    assert reader.receive_until(9) == list(range(10))


def test_an_exchange_that_is_deleted_is_made_anew_and_no_message_is_lost(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, somebody: Peer
) -> None:
    start_bus(APPS, cluster.backbones())
    outq = subscribed(open_app)
    somebody.channel.exchange_delete(cluster.exchange)
    batch = indicators(10)
    open_app.inq.put_many(batch)
    assert received(outq, 10) == [message.data for message in batch]


def test_a_bus_whose_queue_is_not_bound_any_more_binds_it_before_it_publishes_on(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, somebody: Peer
) -> None:
    start_bus(APPS, cluster.backbones(1))
    outq = subscribed(open_app)
    somebody.channel.queue_unbind(cluster.queue(1), cluster.exchange)
    batch = indicators(10)
    open_app.inq.put_many(batch)
    assert received(outq, 10) == [message.data for message in batch]


def test_a_bus_that_publishes_nothing_binds_its_queue_again_as_well(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, somebody: Peer
) -> None:
    start_bus(APPS, cluster.backbones(heartbeat=1))
    outq = subscribed(open_app)
    somebody.channel.exchange_delete(cluster.exchange)
    somebody.declare(durable=True)

    def arrives() -> bool:
        somebody.publish(indicator_bytes())
        return bool(outq.get_many(1))

    eventually(arrives)


def test_a_message_that_is_too_large_for_the_broker_holds_nothing_up(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, mortal: RabbitNode
) -> None:
    limit = mortal.control("eval", "application:get_env(rabbit, max_message_size).")
    mortal.control("eval", "application:set_env(rabbit, max_message_size, 100000).")
    try:
        bus = start_bus(APPS, cluster.backbones())
        outq = subscribed(open_app)
        large = indicator_message(description="x" * 100_000)
        batch = [*indicators(5), large, *indicators(5)]
        open_app.inq.put_many(batch)
        assert received(outq, 10) == [each.data for each in batch if each is not large]
        assert bus.rejects.counts == {("rabbitmq", "larger than RabbitMQ's max_message_size"): 1}
    finally:
        mortal.control("eval", f"application:set_env(rabbit, max_message_size, {limit[4:-2]}).")


def test_large_messages_that_the_broker_does_not_take_wait_in_inq(
    ways: Ways, start_bus: Buses, open_app: OpenApp, cluster: Cluster
) -> None:
    way = ways.open()
    bus = start_bus(APPS, cluster.backbones(port=way.port), drain_timeout=0.2)
    publisher = backbone_of(bus)._publisher
    way.freeze()
    size = 1_000_000
    for _ in range(60):
        open_app.inq.put_many([indicator_message(description="x" * size)])
    eventually(lambda: publisher._unconfirmed_bytes >= WINDOW_BYTES)
    assert publisher._unconfirmed_bytes < WINDOW_BYTES + 2**20 + 2 * size
    assert publisher._inq.stats().bytes > 40 * size


def test_a_channel_that_the_broker_closes_over_an_acknowledgement_is_opened_again(
    zmq_apps: Apps, cluster: Cluster
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones())
    reader, publisher = connected(zmq_apps, bus)
    consumer = backbone_of(bus.bus)._consumer
    # The broker says PRECONDITION_FAILED, as when an acknowledgement takes longer than it allows.
    consumer.call(lambda: consumer.channel.basic_ack(99_999))
    eventually(lambda: consumer.connects == 2)
    publisher.publish_numbered(0, 10)
    assert reader.receive_until(9) == list(range(10))


def test_an_exclusive_queue_that_somebody_still_holds_after_a_broken_connection_is_waited_for(
    ways: Ways, zmq_apps: Apps, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    way = ways.open()
    section = cluster.backbones(1, port=way.port, queue={"exclusive": True})
    bus = zmq_apps.bus(backbones=section)
    reader, publisher = connected(zmq_apps, bus)
    way.close()
    # As the broker does for a connection of whose end it has not heard yet.
    holder = Peer(cluster)
    eventually(lambda: holder.holds(cluster.queue(1)))
    ways.open(way.port)
    before = backbone_of(bus.bus)._consumer.connects
    eventually(lambda: backbone_of(bus.bus)._consumer.connects > before)
    holder.close()
    eventually(lambda: backbone_of(bus.bus)._publisher._permitted)
    publisher.publish_numbered(0, 10)
    assert reader.receive_until(9) == list(range(10))
    assert "gives up" not in caplog.text


def test_what_could_not_be_handed_on_is_not_acknowledged_and_comes_again(
    zmq_apps: Apps, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones())
    reader, publisher = connected(zmq_apps, bus)
    consumer = backbone_of(bus.bus)._consumer
    delivers = consumer._deliver
    failures = iter([True])

    def broken(batch: Any) -> None:
        if next(failures, False):
            raise MemoryError
        delivers(batch)

    monkeypatch.setattr(consumer, "_deliver", broken)
    publisher.publish_numbered(0, 100)
    assert reader.receive_until(99) == list(range(100))
    assert consumer.failures == 1


def test_while_its_own_queue_is_not_bound_a_bus_publishes_nothing(
    start_bus: Buses, open_app: OpenApp, cluster: Cluster, somebody: Peer
) -> None:
    bus = start_bus(APPS, cluster.backbones(), drain_timeout=0.2)
    publisher, consumer = backbone_of(bus)._publisher, backbone_of(bus)._consumer
    # Somebody else would get the message, so that the broker would not send it back.
    somebody.bind()
    consumer.stop()
    finished(consumer)
    open_app.inq.put_many(indicators(1))
    looked = threading.Event()
    publisher.call(looked.set)
    wait_for(looked)
    assert publisher.last_number == 0
    assert publisher._inq.qsize() == 1


def test_a_connection_that_breaks_before_a_planned_handover_stops_no_later_one(
    zmq_apps: Apps, cluster: Cluster
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones())
    reader, publisher = connected(zmq_apps, bus)
    consumer = backbone_of(bus.bus)._consumer

    def break_it() -> None:
        consumer._flush_planned = True
        consumer.hang_up()

    consumer.call(break_it)
    eventually(lambda: consumer.connects == 2)
    publisher.publish_numbered(0, 1)
    assert reader.receive_until(0) == [0]


def test_a_worker_that_fails_connects_again_and_nothing_is_lost(
    zmq_apps: Apps, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = zmq_apps.bus(backbones=cluster.backbones())
    reader, publisher = connected(zmq_apps, bus)
    consumer = backbone_of(bus.bus)._consumer
    reads = consumer._read
    failures = iter([True, False, True])

    def broken(message_id: str | None, body: bytes) -> None:
        if next(failures, False):
            raise RuntimeError("a bug")
        reads(message_id, body)

    monkeypatch.setattr(consumer, "_read", broken)
    in_threads(lambda: publisher.publish_numbered(0, 500))
    assert reader.receive_until(499) == list(range(500))
    assert consumer.failures == 2
