"""The client against real buses, buses of old, and what is no bus at all."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from helpers.buses import Buses
from helpers.documents import indicator_bytes
from helpers.waiting import SOON, eventually, wait_for

from integration.cli_helpers import FakeBus, OldBus
from testbed.ports import Doors, free_port
from threatbus.client import Endpoint, Publisher, Refused, Subscriber, Undelivered, silence
from threatbus.client import subscriber as subscriber_module
from threatbus.errors import BusUnreachable
from threatbus.messages import Message

SHORT = 0.3


def at(port: int) -> Endpoint:
    return Endpoint("127.0.0.1", port)


@pytest.fixture
def fake_bus() -> Iterator[Callable[[Callable[[dict[str, Any]], bytes | None]], FakeBus]]:
    with contextlib.ExitStack() as stack:

        def make(answer: Callable[[dict[str, Any]], bytes | None]) -> FakeBus:
            fake = FakeBus(answer)
            stack.callback(fake.close)
            return fake

        yield make


@pytest.fixture
def old_bus() -> Iterator[OldBus]:
    bus = OldBus()
    yield bus
    bus.close()


MakeFake = Callable[[Callable[[dict[str, Any]], bytes | None]], FakeBus]


# What is there when no bus answers.


def test_a_refused_connection_is_explained_with_what_to_check() -> None:
    port = free_port()
    with pytest.raises(BusUnreachable) as caught:
        Subscriber(at(port), ["stix2/"], timeout=SHORT)
    for part in (f"127.0.0.1:{port}", "0.3 s", "refused", "running", "plugins.apps.zmq", "manage"):
        assert part in str(caught.value)


def test_a_listener_that_says_nothing_is_told_apart_from_a_bus() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(BusUnreachable, match="says nothing"),
    ):
        Subscriber(at(server.getsockname()[1]), ["stix2/"], timeout=SHORT)


def test_another_port_of_a_bus_is_recognised_as_such(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "PROBE_SECS", SOON)
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    for key in ("pub", "sub"):
        with pytest.raises(BusUnreachable, match="another port of the bus"):
            Subscriber(at(getattr(doors, key)), ["stix2/"], timeout=SHORT)


@pytest.mark.parametrize("reply", [b"hello", b"[]", b'{"answer": 42}', b"\xff\xfe", b""])
def test_a_server_that_answers_something_else_is_no_bus(fake_bus: MakeFake, reply: bytes) -> None:
    fake = fake_bus(lambda _: reply)
    with pytest.raises(BusUnreachable, match="is no Threat Bus"):
        Subscriber(at(fake.port), ["stix2/"])


def test_an_unknown_host_is_said_to_be_unknown() -> None:
    with pytest.raises(BusUnreachable, match=r"no host 'nowhere\.invalid'"):
        Subscriber(Endpoint("nowhere.invalid"), ["stix2/"], timeout=SHORT)


def test_the_reason_of_a_refusal_is_passed_on(start_bus: Buses) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    with pytest.raises(Refused, match="snapshot must be between 0 and"):
        Subscriber(at(doors.manage), ["stix2/"], snapshot=-1)


def test_a_refusal_without_a_reason_is_one_too(fake_bus: MakeFake) -> None:
    fake = fake_bus(lambda _: b'{"status": "error"}')
    with pytest.raises(Refused, match="refuses the subscription: error"):
        Publisher(at(fake.port))


def test_a_port_for_publishing_that_cannot_be_reached_is_named(fake_bus: MakeFake) -> None:
    ports = {"pub_port": free_port(), "sub_port": free_port()}
    reply = json.dumps({"status": "success", "topic": "a" * 32, **ports}).encode()
    fake = fake_bus(lambda _: reply)
    with pytest.raises(BusUnreachable, match=f"port for publishing.*\n.*{ports['sub_port']}"):
        Publisher(at(fake.port), timeout=SHORT)
    assert "unsubscribe" in fake.actions


# Sending and receiving.


def received(subscriber: Subscriber, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        batch = subscriber.receive(timeout=5)
        assert batch, f"only {len(messages)} of {count} messages came"
        messages += batch
    return messages


def test_what_is_published_is_received_in_order_and_byte_for_byte(start_bus: Buses) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    endpoint = at(doors.manage)
    documents = [indicator_bytes(name=f"number {number}") for number in range(5000)]
    with Subscriber(endpoint, ["stix2/"]) as subscriber:
        with Publisher(endpoint) as publisher:
            for document in documents:
                publisher.publish("stix2/indicator", document)
            publisher.finish()
        messages = received(subscriber, len(documents))
    assert [message.data for message in messages] == documents
    assert {message.topic for message in messages} == {"stix2/indicator"}


def test_both_ends_unsubscribe_in_the_end(start_bus: Buses) -> None:
    doors = Doors.free()
    bus = start_bus({"zmq": doors.section})
    endpoint = at(doors.manage)
    with Subscriber(endpoint, ["stix2/"], name="me"), Publisher(endpoint) as publisher:
        assert len(bus.stats()["subscribers"]) == 2
        publisher.finish()
        assert len(bus.stats()["subscribers"]) == 1
    assert bus.stats()["subscribers"] == {}


def test_it_works_over_ipv6(fake_bus: MakeFake) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    rep = context.socket(zmq.REP)
    rep.setsockopt(zmq.IPV6, 1)
    try:
        port = rep.bind_to_random_port("tcp://[::1]")
    except zmq.ZMQError:
        context.destroy(linger=0)
        pytest.skip("this machine has no IPv6")
    rep.setsockopt(zmq.RCVTIMEO, 5000)
    answering = threading.Thread(
        target=lambda: (rep.recv(), rep.send(b'{"status": "error"}')), daemon=True
    )
    answering.start()
    with pytest.raises(Refused):
        Subscriber(Endpoint("::1", port), ["stix2/"])
    answering.join()
    context.destroy(linger=0)


def test_the_old_bus_is_spoken_to_as_well(old_bus: OldBus) -> None:
    endpoint = at(old_bus.port)
    document = indicator_bytes()
    with Subscriber(endpoint, ["stix2/"], snapshot=30.0) as subscriber:
        assert old_bus.manage.requests[0]["snapshot"] == 30

        def delivered() -> list[Message]:
            # A PUB drops what comes before its SUB.
            old_bus.deliver(document)
            return subscriber.receive(timeout=0.05)

        assert eventually(delivered)[0].data == document
    with Publisher(endpoint) as publisher:
        publisher.publish("stix2/indicator", document)
        publisher.finish()
    old_bus.manage.stop()
    assert old_bus.sub.poll(int(SOON * 1000))
    assert old_bus.sub.recv() == b"stix2/indicator " + document
    assert old_bus.topics == set()


# When the bus goes away.


def test_a_subscriber_shows_signs_of_life(old_bus: OldBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "HEARTBEAT_SECS", 0.05)
    began = time.monotonic()
    with Subscriber(at(old_bus.port), ["stix2/"]) as subscriber:

        def is_alive() -> bool:
            assert subscriber.receive(timeout=0.01) == []
            return old_bus.manage.actions.count("heartbeat") >= 4

        eventually(is_alive)
    # The first of them comes with the connection.
    assert time.monotonic() - began >= 3 * 0.05, "and no more often than it has to"


def test_a_subscription_that_the_bus_has_ended_is_made_again(
    old_bus: OldBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "HEARTBEAT_SECS", 0.05)
    changes: list[str] = []
    with Subscriber(at(old_bus.port), ["stix2/"], on_change=changes.append) as subscriber:
        old_bus.forget()

        def delivered() -> list[Message]:
            old_bus.deliver(b"{}")
            return subscriber.receive(timeout=0.05)

        assert eventually(delivered)[0].topic == "stix2/indicator"
    assert old_bus.manage.actions.count("subscribe") == 2
    assert len(changes) == 1
    assert "subscribed again" in changes[0]


def test_a_subscriber_notices_a_restart_of_the_bus_by_the_broken_connection(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by the next heartbeat.
    monkeypatch.setattr(subscriber_module, "HEARTBEAT_SECS", 3600)
    doors = Doors.free()
    endpoint = at(doors.manage)
    first = start_bus({"zmq": doors.section})
    changes: list[str] = []
    stopped, started = threading.Event(), threading.Event()

    def restart() -> None:
        first.stop()
        stopped.set()
        # Only once the subscriber has noticed.
        eventually(lambda: changes)
        start_bus({"zmq": doors.section})
        started.set()

    with Subscriber(endpoint, ["stix2/"], on_change=changes.append) as subscriber:
        other = threading.Thread(target=restart)
        other.start()
        eventually(lambda: subscriber.receive(timeout=0.05) or len(changes) == 2)
        other.join()
        wait_for(started)
        with Publisher(endpoint) as publisher:
            publisher.publish("stix2/indicator", document := indicator_bytes())
            publisher.finish()
        assert received(subscriber, 1)[0].data == document
    assert "nothing answers" in changes[0]
    assert "subscribed again" in changes[1]


def test_a_publisher_whose_bus_ends_says_how_many_it_had_handed_over(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = Doors.free()
    bus = start_bus({"zmq": doors.section})
    with Publisher(at(doors.manage)) as publisher:
        publisher.publish("stix2/indicator", indicator_bytes())
        bus.stop()
        # Nobody answers any more.
        monkeypatch.setattr(publisher, "_timeout", SHORT)
        with pytest.raises(Undelivered, match="1 objects were handed over") as caught:
            publisher.finish()
    assert caught.value.handed_over == 1


def test_a_publisher_notices_that_its_bus_was_replaced_by_another(start_bus: Buses) -> None:
    doors = Doors.free()
    bus = start_bus({"zmq": doors.section})
    with Publisher(at(doors.manage)) as publisher:
        publisher.publish("stix2/indicator", indicator_bytes())
        bus.stop()
        start_bus({"zmq": doors.section})
        with Publisher(at(doors.manage)) as other:
            other.finish()
        with pytest.raises(Undelivered, match="was lost"):
            publisher.finish()


@pytest.fixture
def slow_bus() -> Iterator[FakeBus]:
    """A bus that reads nothing of what is published, until it is closed."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, 1)
    sub.setsockopt(zmq.RCVBUF, 4096)
    sub.subscribe("")
    ports = {"pub_port": free_port(), "sub_port": sub.bind_to_random_port("tcp://127.0.0.1")}
    reply = json.dumps({"status": "success", "topic": "a" * 32, **ports}).encode()
    bus = FakeBus(lambda _: reply, sub)
    yield bus
    bus.close()
    context.destroy(linger=0)


def test_a_full_pipe_makes_the_publisher_wait_and_then_say_so(slow_bus: FakeBus) -> None:
    document = b"x" * 1_000_000
    with Publisher(at(slow_bus.port), max_stall=SHORT) as publisher:

        def publish_too_much() -> None:
            for _ in range(1000):
                publisher.publish("stix2/indicator", document)

        with pytest.raises(Undelivered, match=r"has taken nothing for"):
            publish_too_much()
        slow_bus.stop()
        # Nothing that was handed over is dropped.
        assert 0 < publisher.handed_over < 100
        assert slow_bus.sub is not None
        for _ in range(publisher.handed_over):
            assert slow_bus.sub.poll(int(SOON * 1000))
            slow_bus.sub.recv()
        assert not slow_bus.sub.poll(50)


def test_a_bus_that_does_not_take_the_last_ones_is_not_taken_for_success(
    slow_bus: FakeBus,
) -> None:
    with Publisher(at(slow_bus.port)) as publisher:
        for _ in range(12):
            publisher.publish("stix2/indicator", b"x" * 1_000_000)
        with pytest.raises(Undelivered, match=r"did not take all within 0\.3 s"):
            publisher.finish(linger=SHORT)


def test_a_bus_that_ends_while_the_last_ones_leave_is_not_taken_for_success() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.subscribe("")
    ports = {"pub_port": free_port(), "sub_port": sub.bind_to_random_port("tcp://127.0.0.1")}
    granted = json.dumps({"status": "success", "topic": "a" * 32, **ports}).encode()
    # Another bus has taken its place by then, which does not know the subscription.
    bus = FakeBus(
        lambda request: b'{"status": "error"}' if request["action"] == "unsubscribe" else granted,
        sub,
    )
    with Publisher(at(bus.port)) as publisher:
        publisher.publish("stix2/indicator", b"{}")
        with pytest.raises(Undelivered, match="ended or was restarted"):
            publisher.finish()
    bus.close()
    context.destroy(linger=0)


def test_an_object_too_large_for_the_bus_is_named_as_the_likely_reason(start_bus: Buses) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    with (
        Publisher(at(doors.manage)) as publisher,
        pytest.raises(Undelivered, match="max_message_size"),
    ):
        publisher.publish("stix2/indicator", b"x" * 11_000_000)
