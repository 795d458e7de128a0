"""CURVE's server, step by step, with a client that can do each step wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nacl.bindings as sodium
import pytest
from threatbus_zmq.curve import Curve, ServerKeys
from threatbus_zmq.publisher import ROLE
from threatbus_zmq.zmtp import BrokenProtocol, Frames, Refused, Session
from zmq.utils import z85

GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
METADATA = b"\x0bSocket-Type\0\0\0\x03SUB"
SERVER_PUBLIC, SERVER_SECRET = sodium.crypto_box_keypair()
KEYS = ServerKeys(z85.encode(SERVER_SECRET).decode())


def seal(plain: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    return bytes(sodium.crypto_box(plain, nonce, public, secret))


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


class Client:
    """The client's side as rfc.zeromq.org/spec/26 has it; what is in `changes` it does wrong."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.public, self.secret = sodium.crypto_box_keypair()
        self.short_public, self.short_secret = sodium.crypto_box_keypair()
        self.server_short = b""
        self.sent = 2

    def or_else(self, name: str, right: bytes) -> bytes:
        return bytes(self.changes.get(name, right))

    def hello(self) -> bytes:
        server = self.or_else("server", SERVER_PUBLIC)
        zeros = self.or_else("zeros", bytes(64))
        signature = seal(zeros, b"CurveZMQHELLO---" + number(1), server, self.short_secret)
        short_public = self.or_else("short_public", self.short_public)
        version = self.or_else("version", b"\x01\0")
        return b"\x05HELLO" + version + bytes(72) + short_public + number(1) + signature

    def initiate(self, welcome: bytes) -> bytes:
        assert welcome[:8] == b"\x07WELCOME"
        assert len(welcome) == 168
        opened = sodium.crypto_box_open(
            welcome[24:], b"WELCOME-" + welcome[8:24], SERVER_PUBLIC, self.short_secret
        )
        self.server_short, cookie = opened[:32], self.or_else("cookie", opened[32:])
        vouched = self.or_else("vouched", self.short_public + SERVER_PUBLIC)
        voucher = self.or_else("voucher", self.secret)
        vouch = seal(vouched, b"VOUCH---" + b"v" * 16, self.server_short, voucher)
        inner = self.public + b"v" * 16 + vouch + self.or_else("metadata", METADATA)
        nonce = number(2)
        box = seal(inner, b"CurveZMQINITIATE" + nonce, self.server_short, self.short_secret)
        return b"\x08INITIATE" + cookie + nonce + self.or_else("box", box)

    def message(self, flags: int, body: bytes) -> bytes:
        self.sent += 1
        nonce = number(self.changes.get("sent", self.sent))
        box = seal(
            bytes((flags,)) + body,
            b"CurveZMQMESSAGEC" + nonce,
            self.server_short,
            self.short_secret,
        )
        return b"\x07MESSAGE" + nonce + box

    def read(self, frame: bytes) -> bytes:
        """Decrypt a message of the server's."""
        assert frame[:8] == b"\x07MESSAGE"
        nonce = b"CurveZMQMESSAGES" + frame[8:16]
        return bytes(
            sodium.crypto_box_open(frame[16:], nonce, self.server_short, self.short_secret)
        )


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | 2,)) + len(body).to_bytes(8, "big") + body


def bodies(stream: bytes) -> list[bytes]:
    found = []
    while stream:
        long = stream[0] & 2
        size = int.from_bytes(stream[1:9], "big") if long else stream[1]
        start = 9 if long else 2
        found.append(stream[start : start + size])
        stream = stream[start + size :]
    return found


def new(objection: Callable[[str], str] = lambda _: "") -> Session:
    return Session(Curve(KEYS, ROLE, objection), ROLE)


def said(session: Session, data: bytes) -> list[bytes]:
    """Let the client say something; gives the frames of messages in it."""
    session.receive(data)
    found: list[bytes] = []
    while session.unread:
        found += session.read(100)
    return found


def meet(client: Client, objection: Callable[[str], str] = lambda _: "") -> Session:
    """Go through the handshake."""
    session = new(objection)
    greeting = session.take_replies()
    assert greeting[12:33] == b"CURVE".ljust(20, b"\0") + b"\x01"
    said(session, GREETING)
    said(session, frame(client.hello(), 4))
    (welcome,) = bodies(session.take_replies())
    said(session, frame(client.initiate(welcome), 4))
    return session


def test_a_client_with_a_key_comes_in_and_its_key_is_known() -> None:
    client = Client()
    asked: list[str] = []
    session = meet(client, lambda key: asked.append(key) or "")  # type: ignore[func-returns-value]
    assert session.ready
    assert asked == [session.key] == [z85.encode(client.public).decode()]
    (ready,) = bodies(session.take_replies())
    assert ready[:6] == b"\x05READY"
    nonce = b"CurveZMQREADY---" + ready[6:14]
    plain = sodium.crypto_box_open(ready[14:], nonce, client.server_short, client.short_secret)
    assert plain == b"\x0bSocket-Type\0\0\0\x04XPUB"


def test_what_follows_is_encrypted_both_ways_and_numbered() -> None:
    client = Client()
    session = meet(client)
    session.take_replies()
    came = frame(client.message(0, b"\x01abc")) + frame(client.message(2, b"\x09SUBSCRIBExyz"))
    assert said(session, came) == [b"\x01abc", b"\x01xyz"]
    said(session, frame(client.message(2, b"\x04PING\0\0ctx")))
    (pong,) = bodies(session.take_replies())
    assert client.read(pong) == b"\x02\x04PONGctx"
    sent = bodies(session.messages(b"p" * 32, Frames([b"indicator "] * 2, [b"{}", b"[]" * 300])))
    assert [client.read(each) for each in sent] == [
        b"\0" + b"p" * 32 + b"indicator {}",
        b"\0" + b"p" * 32 + b"indicator " + b"[]" * 300,
    ]
    assert len({each[8:16] for each in (pong, *sent)}) == 3
    assert b"indicator" not in b"".join(sent)


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": sodium.crypto_box_keypair()[0]},
        {"zeros": b"\x01" * 64},
        {"version": b"\x02\0"},
        {"short_public": bytes(32)},
        {"cookie": bytes(96)},
        {"vouched": bytes(64)},
        {"vouched": sodium.crypto_box_keypair()[0] + SERVER_PUBLIC},
        {"voucher": sodium.crypto_box_keypair()[1]},
        {"box": b""},
        {"box": b"x" * 100},
        {"metadata": b""},
        {"metadata": METADATA.replace(b"SUB", b"PUB")},
    ],
)
def test_a_step_that_is_wrong_ends_the_handshake_before_anybody_is_asked(wrong: Any) -> None:
    def asked(_: str) -> str:
        raise AssertionError("nobody is to be asked about a key that is not proved")

    with pytest.raises(BrokenProtocol):
        meet(Client(**wrong), asked)


def test_who_may_not_come_in_is_told_so_and_nothing_else() -> None:
    client = Client()
    session = new(lambda _: "not authorised")
    session.take_replies()
    said(session, GREETING)
    said(session, frame(client.hello(), 4))
    (welcome,) = bodies(session.take_replies())
    with pytest.raises(Refused):
        said(session, frame(client.initiate(welcome), 4))
    assert bodies(session.take_replies()) == [b"\x05ERROR\x03400"]
    assert not session.ready
    assert session.key is None


@pytest.mark.parametrize("command", [b"", b"\x05READY", b"\x05HELLO", b"\x08INITIATE" + bytes(300)])
@pytest.mark.parametrize("after_hello", [False, True])
def test_steps_out_of_order_or_cut_short_end_the_handshake(
    command: bytes, after_hello: bool
) -> None:
    session = new()
    said(session, GREETING)
    if after_hello:
        said(session, frame(Client().hello(), 4))
    with pytest.raises(BrokenProtocol):
        said(session, frame(command, 4))


def test_what_is_sent_a_second_time_ends_the_connection() -> None:
    client = Client()
    session = meet(client)
    once = frame(client.message(0, b"\x01abc"))
    said(session, once)
    with pytest.raises(BrokenProtocol, match="a second time"):
        said(session, once)


@pytest.mark.parametrize(
    "body",
    [
        b"\x01abc",
        b"\x07MESSAGE",
        b"\x07MESSAGE" + number(9),
        b"\x07MESSAGE" + number(9) + bytes(40),
        b"\x07MESSAGE" + b"\xff" * 3,
    ],
)
def test_what_is_not_encrypted_ends_the_connection(body: bytes) -> None:
    session = meet(Client())
    with pytest.raises(BrokenProtocol):
        said(session, frame(body))


def test_an_empty_box_ends_the_connection() -> None:
    client = Client()
    session = meet(client)
    nonce = number(9)
    box = seal(b"", b"CurveZMQMESSAGEC" + nonce, client.server_short, client.short_secret)
    with pytest.raises(BrokenProtocol, match="empty"):
        said(session, frame(b"\x07MESSAGE" + nonce + box))


def test_the_keys_of_the_bus_belong_together() -> None:
    assert KEYS.public == SERVER_PUBLIC
    assert KEYS.public_text == z85.encode(SERVER_PUBLIC).decode()


def test_frames_of_one_message_are_marked_inside_of_their_boxes() -> None:
    client = Client()
    session = meet(client)
    session.take_replies()
    session.receive(frame(client.message(1, b"way")) + frame(client.message(0, b"body")))
    assert session.read_messages(10) == [[b"way", b"body"]]
    answer = bodies(session.message(b"way", b"body"))
    assert [client.read(each) for each in answer] == [b"\x01way", b"\0body"]


def test_a_frame_is_as_large_as_one_that_is_not_encrypted() -> None:
    client = Client()
    session = meet(client)
    assert said(session, frame(client.message(0, b"x" * ROLE.max_frame))) == [b"x" * ROLE.max_frame]
    with pytest.raises(BrokenProtocol, match="a frame of"):
        said(session, frame(client.message(0, b"x" * (ROLE.max_frame + 1))))
