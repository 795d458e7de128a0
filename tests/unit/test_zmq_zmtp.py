"""ZMTP as the bus speaks it at its doors: greeting, handshake, subscriptions, frames."""

from __future__ import annotations

import itertools

import pytest
from threatbus_zmq.publisher import ROLE
from threatbus_zmq.zmtp import (
    MAX_COMMAND_BYTES,
    MAX_PARTS,
    BrokenProtocol,
    Frames,
    FrameTooLarge,
    Null,
    Role,
    Session,
    count_unsent,
    header,
)

#: What libzmq 4.3 sends first, byte for byte: signature, version 3.1, mechanism, no server.
GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB"
TOPIC = b"p" * 32


#: The other two doors.
SUB = Role("SUB", ("PUB", "XPUB"), 10_000, begins_with=b"\x01")
REP = Role("REP", ("REQ", "DEALER"), 10_000)


def new(role: Role = ROLE) -> Session:
    return Session(Null(role), role)


def said(session: Session, data: bytes, limit: int = 100) -> list[bytes]:
    """Let the peer say something; gives the frames of messages in it."""
    session.receive(data)
    found: list[bytes] = []
    while session.unread:
        found += session.read(limit)
    return found


def asked(session: Session, data: bytes) -> list[list[bytes]]:
    """Let the peer say something; gives the messages in it."""
    session.receive(data)
    found: list[list[bytes]] = []
    while session.unread:
        found += session.read_messages(100)
    return found


def greeted(greeting: bytes = GREETING, role: Role = ROLE) -> Session:
    session = new(role)
    session.take_replies()
    assert said(session, greeting) == []
    return session


def ready(role: Role = ROLE) -> Session:
    session = greeted(role=role)
    peer = role.peers[0].encode()
    body = b"\x05READY\x0bSocket-Type" + len(peer).to_bytes(4, "big") + peer
    assert said(session, header(4, len(body)) + body) == []
    assert session.ready
    session.take_replies()
    return session


# Greeting and handshake.


def test_the_bus_greets_at_once_as_version_3_1_and_says_that_it_publishes() -> None:
    session = new()
    greeting = session.take_replies()
    assert len(greeting) == 64
    assert greeting[:12] == b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01"
    assert greeting[12:32].rstrip(b"\0") == b"NULL"
    assert greeting[32:] == bytes(32)
    said(session, GREETING)
    assert session.take_replies() == b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04XPUB"
    assert session.take_replies() == b""
    assert not session.ready


def test_bytes_may_come_one_by_one() -> None:
    session = new()
    assert said(session, b"") == []
    stream = GREETING + READY + b"\0\x04\x01abc" + b"\x04\x0d\x09SUBSCRIBExyz"
    found = [frame for byte in stream for frame in said(session, bytes((byte,)))]
    assert found == [b"\x01abc", b"\x01xyz"]


@pytest.mark.parametrize("kind", [b"SUB", b"XSUB"])
@pytest.mark.parametrize("name", [b"Socket-Type", b"socket-type", b"SOCKET-TYPE"])
def test_a_subscriber_is_let_in_whatever_else_it_says_of_itself(kind: bytes, name: bytes) -> None:
    session = greeted()
    own = b"\x08Identity\0\0\0\x02me" + bytes((len(name),)) + name
    body = b"\x05READY" + own + len(kind).to_bytes(4, "big") + kind + b"\x01x\0\0\0\0"
    said(session, header(4, len(body)) + body)
    assert session.ready


@pytest.mark.parametrize("kind", [b"PUB", b"REQ", b"", b"SUBS", b"\xff" * 300])
def test_what_is_no_subscriber_is_named(kind: bytes) -> None:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    with pytest.raises(BrokenProtocol, match=r"a socket of type .* connects where a SUB should"):
        said(greeted(), header(4, len(body)) + body)


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
        (GREETING + READY + b"\x04\x05\x04JOIN", "a command that has no place here: JOIN"),
        (GREETING + READY + b"\x06" + (1025).to_bytes(8, "big"), "a frame of 1025"),
        (GREETING + b"\x06" + (MAX_COMMAND_BYTES + 1).to_bytes(8, "big"), "a frame of 1025"),
        (GREETING + READY + b"\x02\xff" + bytes(7), "a frame of"),
    ],
)
def test_what_breaks_the_protocol_is_told(first: bytes, reason: str) -> None:
    session = new()
    with pytest.raises(BrokenProtocol, match=reason):
        said(session, first)


# Subscriptions.


def test_subscriptions_of_both_versions_read_alike() -> None:
    session = ready()
    stream = b"\0\x02\x01a" + b"\0\x02\0a" + b"\x04\x0b\x09SUBSCRIBEb" + b"\x04\x08\x06CANCELb"
    assert said(session, stream) == [
        b"\x01a",
        b"\0a",
        b"\x01b",
        b"\0b",
    ]


def test_a_long_frame_may_hold_a_short_subscription() -> None:
    assert said(ready(), b"\x02" + (2).to_bytes(8, "big") + b"\x01a") == [b"\x01a"]


def test_a_ping_is_answered_with_its_context() -> None:
    session = ready()
    assert said(session, b"\x04\x0a\x04PING\0\x64ctx") == []
    assert session.take_replies() == b"\x04\x08\x04PONGctx"
    assert session.take_replies() == b""


def test_of_many_pings_the_last_is_answered_so_that_answers_never_pile_up() -> None:
    session = ready()
    said(session, b"".join(b"\x04\x08\x04PING\0\0%d" % number for number in range(10)))
    assert session.take_replies() == b"\x04\x06\x04PONG9"


def test_a_ping_that_is_longer_than_the_protocol_allows_ends_the_connection() -> None:
    said(ready(), b"\x04\x17\x04PING\0\0" + b"x" * 16)
    with pytest.raises(BrokenProtocol, match="too long"):
        said(ready(), b"\x04\x18\x04PING\0\0" + b"x" * 17)


def test_a_pong_to_nobodys_ping_is_nothing() -> None:
    session = ready()
    assert said(session, b"\x04\x05\x04PONG") == []
    assert session.take_replies() == b""


# What comes in.


def message(body: bytes, flags: int = 0) -> bytes:
    return header(flags, len(body)) + body


def test_a_publisher_is_asked_for_everything_as_soon_as_it_is_known() -> None:
    session = greeted(role=SUB)
    assert session.take_replies() == b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB"
    said(session, b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB")
    assert session.take_replies() == b"\0\x01\x01"


@pytest.mark.parametrize("size", [1, 3, 255, 256, 1000, 100_000])
def test_messages_come_whole_however_they_are_cut_up(size: int) -> None:
    bodies = [b"x" * length for length in (0, 1, 254, 255, 256, 257, 5000, 10_000, 0, 0, 3)]
    stream = b"".join(map(message, bodies))
    session = ready(SUB)
    found = []
    for start in range(0, len(stream), size):
        found += said(session, stream[start : start + size], limit=2)
    assert found == bodies
    assert session.begun == 0


def test_no_more_is_read_than_is_asked_for_and_what_is_left_comes_next() -> None:
    session = ready(SUB)
    session.receive(b"".join(message(b"%d" % number) for number in range(5)) + b"\0\x03ab")
    assert (session.read(2), session.unread) == ([b"0", b"1"], True)
    assert (session.read(2), session.unread) == ([b"2", b"3"], True)
    assert (session.read(2), session.unread) == ([b"4"], False)
    assert said(session, b"c") == [b"abc"]


def test_pings_without_end_are_not_read_all_at_once() -> None:
    session = ready(SUB)
    session.receive(b"\x04\x07\x04PING\0\0" * 100 + message(b"a"))
    for _ in range(10):
        assert session.read(10) == []
        assert session.unread
    assert session.read(10) == [b"a"]


def test_what_came_before_the_protocol_was_broken_is_given_first() -> None:
    session = ready(SUB)
    session.receive(message(b"a") + message(b"b") + header(0, 10_001))
    assert session.read(10) == [b"a", b"b"]
    assert session.unread
    with pytest.raises(FrameTooLarge, match="a frame of 10001 bytes"):
        session.read(10)


def test_the_largest_frame_is_taken() -> None:
    assert said(ready(SUB), message(b"x" * 10_000)) == [b"x" * 10_000]


def test_a_frame_that_is_too_large_is_refused_by_its_length_alone() -> None:
    session = ready(SUB)
    session.receive(header(0, 2**63))
    with pytest.raises(FrameTooLarge):
        session.read(1)


def test_a_publisher_that_subscribes_breaks_the_protocol() -> None:
    with pytest.raises(BrokenProtocol, match="SUBSCRIBE"):
        said(ready(SUB), b"\x04\x0b\x09SUBSCRIBEb")


def test_frames_of_one_message_can_be_had_together_and_one_by_one() -> None:
    stream = message(b"way", 1) + message(b"", 1) + message(b"body") + message(b"alone")
    for size in (1, 4, 1000):
        session = ready(REP)
        found = []
        for start in range(0, len(stream), size):
            found += asked(session, stream[start : start + size])
        assert found == [[b"way", b"", b"body"], [b"alone"]]
    assert said(ready(SUB), stream) == [b"way", b"", b"body", b"alone"]


@pytest.mark.parametrize("parts", [[b""] * MAX_PARTS, [b"x" * 4000] * 3])
def test_a_message_of_frames_without_end_breaks_the_protocol(parts: list[bytes]) -> None:
    session = ready(REP)
    whole = message(b"a", 1) + message(b"b")
    stream = b"".join(message(part, 1) for part in parts)
    session.receive(whole + stream)
    assert session.read_messages(100) == [[b"a", b"b"]]
    with pytest.raises(BrokenProtocol, match="too many frames"):
        session.read_messages(100)


def test_an_answer_has_its_frames_marked() -> None:
    assert ready(REP).message(b"way", b"", b"x" * 300) == (
        b"\x01\x03way" + b"\x01\x00" + b"\x02" + (300).to_bytes(8, "big") + b"x" * 300
    )


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
