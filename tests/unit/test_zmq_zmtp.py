"""ZMTP as the publishing side speaks it: greeting, handshake, subscriptions, frames."""

from __future__ import annotations

import itertools

import pytest
from threatbus_zmq.zmtp import (
    MAX_UPSTREAM_BYTES,
    BrokenProtocol,
    Change,
    Frames,
    Null,
    Session,
    count_unsent,
    header,
)

#: What libzmq 4.3 sends first, byte for byte: signature, version 3.1, mechanism, no server.
GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB"
TOPIC = b"p" * 32


def greeted(greeting: bytes = GREETING) -> Session:
    session = Session(Null())
    session.take_replies()
    assert list(session.receive(greeting)) == []
    return session


def ready() -> Session:
    session = greeted()
    assert list(session.receive(READY)) == []
    assert session.ready
    session.take_replies()
    return session


# Greeting and handshake.


def test_the_bus_greets_at_once_as_version_3_1_and_says_that_it_publishes() -> None:
    session = Session(Null())
    greeting = session.take_replies()
    assert len(greeting) == 64
    assert greeting[:12] == b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01"
    assert greeting[12:32].rstrip(b"\0") == b"NULL"
    assert greeting[32:] == bytes(32)
    list(session.receive(GREETING))
    assert session.take_replies() == b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04XPUB"
    assert session.take_replies() == b""
    assert not session.ready


def test_bytes_may_come_one_by_one() -> None:
    session = Session(Null())
    assert list(session.receive(b"")) == []
    stream = GREETING + READY + b"\0\x04\x01abc" + b"\x04\x0d\x09SUBSCRIBExyz"
    found = [change for byte in stream for change in session.receive(bytes((byte,)))]
    assert found == [Change(True, b"abc"), Change(True, b"xyz")]


@pytest.mark.parametrize("kind", [b"SUB", b"XSUB"])
@pytest.mark.parametrize("name", [b"Socket-Type", b"socket-type", b"SOCKET-TYPE"])
def test_a_subscriber_is_let_in_whatever_else_it_says_of_itself(kind: bytes, name: bytes) -> None:
    session = greeted()
    own = b"\x08Identity\0\0\0\x02me" + bytes((len(name),)) + name
    body = b"\x05READY" + own + len(kind).to_bytes(4, "big") + kind + b"\x01x\0\0\0\0"
    list(session.receive(header(4, len(body)) + body))
    assert session.ready


@pytest.mark.parametrize("kind", [b"PUB", b"REQ", b"", b"SUBS", b"\xff" * 300])
def test_what_is_no_subscriber_is_named(kind: bytes) -> None:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    with pytest.raises(BrokenProtocol, match=r"a socket of type .* connects where a SUB should"):
        list(greeted().receive(header(4, len(body)) + body))


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "does not speak ZeroMQ"),
        (b"\xff" * 10, "does not speak ZeroMQ"),
        (bytes(10), "does not speak ZeroMQ"),
        (b"\xff\0\0\0\0\0\0\0\x01\x00", "does not speak ZeroMQ"),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\x01", "older than version 4"),
        (GREETING.replace(b"NULL", b"PLAI"), "mechanism is PLAI, the bus's NULL"),
        (GREETING.replace(b"NULL\0", b"\nBAD\xff"), r"mechanism is \\nBAD\\xff, "),
        (GREETING + b"\0\x01\x01", "before the handshake is over"),
        (GREETING + b"\x04\x06\x05HELLO", "something else than READY"),
        (GREETING + b"\x04\x00", "something else than READY"),
        (GREETING + b"\x04\x08\x05READY\x0bS", "cut short"),
        (GREETING + READY + b"\0\0", "something else than subscriptions"),
        (GREETING + READY + b"\0\x03abc", "something else than subscriptions"),
        (GREETING + READY + b"\x04\x05\x04JOIN", "something else than subscriptions"),
        (GREETING + b"\x06" + (MAX_UPSTREAM_BYTES + 1).to_bytes(8, "big"), "a frame of 1025"),
        (GREETING + READY + b"\x02\xff" + bytes(7), "a frame of"),
    ],
)
def test_what_breaks_the_protocol_is_told(first: bytes, reason: str) -> None:
    session = Session(Null())
    with pytest.raises(BrokenProtocol, match=reason):
        list(session.receive(first))


# Subscriptions.


def test_subscriptions_of_both_versions_are_changes() -> None:
    session = ready()
    stream = b"\0\x02\x01a" + b"\0\x02\0a" + b"\x04\x0b\x09SUBSCRIBEb" + b"\x04\x08\x06CANCELb"
    assert list(session.receive(stream)) == [
        Change(True, b"a"),
        Change(False, b"a"),
        Change(True, b"b"),
        Change(False, b"b"),
    ]


def test_a_long_frame_may_hold_a_short_subscription() -> None:
    assert list(ready().receive(b"\x02" + (2).to_bytes(8, "big") + b"\x01a")) == [
        Change(True, b"a")
    ]


def test_a_ping_is_answered_with_its_context() -> None:
    session = ready()
    assert list(session.receive(b"\x04\x0a\x04PING\0\x64ctx")) == []
    assert session.take_replies() == b"\x04\x08\x04PONGctx"
    assert session.take_replies() == b""


def test_of_many_pings_the_last_is_answered_so_that_answers_never_pile_up() -> None:
    session = ready()
    list(session.receive(b"".join(b"\x04\x08\x04PING\0\0%d" % number for number in range(10))))
    assert session.take_replies() == b"\x04\x06\x04PONG9"


def test_a_ping_that_is_longer_than_the_protocol_allows_ends_the_connection() -> None:
    list(ready().receive(b"\x04\x17\x04PING\0\0" + b"x" * 16))
    with pytest.raises(BrokenProtocol, match="too long"):
        list(ready().receive(b"\x04\x18\x04PING\0\0" + b"x" * 17))


def test_a_pong_to_nobodys_ping_is_nothing() -> None:
    session = ready()
    assert list(session.receive(b"\x04\x05\x04PONG")) == []
    assert session.take_replies() == b""


# Frames.


@pytest.mark.parametrize("count", [1, 2, 50])
def test_frames_for_several_subscribers_differ_in_the_topic_alone(count: int) -> None:
    documents = [b"{%d}" % number * (number + 1) * 9 for number in range(count)]
    frames = Frames([b"indicator "] * count, documents)
    for topic in (TOPIC, b"q" * 32):
        expected = b""
        for document in documents:
            body = topic + b"indicator " + document
            short = len(body) < 256
            size = bytes((len(body),)) if short else len(body).to_bytes(8, "big")
            expected += (b"\0" if short else b"\x02") + size + body
        assert ready().messages(topic, frames) == expected


def test_frames_can_be_had_of_some_kinds_alone() -> None:
    frames = Frames([b"indicator ", b"sighting ", b"indicator "], [b"1", b"2", b"3"])
    assert frames.beginning_with([b"sighting"]).bodies == [b"sighting 2"]
    assert frames.beginning_with([b"sighting", b"ind"]).bodies == frames.bodies
    assert frames.beginning_with([b"indicator 3"]).bodies == [b"indicator 3"]
    assert not frames.beginning_with([b"x"])
    assert len(frames) == 3


def test_frames_that_are_sent_in_part_are_counted_as_unsent() -> None:
    sizes = [0, 5, 255, 256, 1000, 70_000]
    pieces = [header(0, size) + b"x" * size for size in sizes]
    whole = b"".join(pieces)
    ends = list(itertools.accumulate(map(len, pieces)))
    for sent in sorted({0, 1, *ends, *(end - 1 for end in ends)}):
        assert count_unsent(whole, sent) == sum(end > sent for end in ends)
