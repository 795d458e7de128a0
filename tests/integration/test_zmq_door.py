"""The door at which subscribers connect: peers of ZeroMQ's, old and new, and those that are odd."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from helpers.waiting import SOON, eventually
from threatbus_zmq.door import (
    ANSWER_SECS,
    EXHAUSTED_SECS,
    HANDSHAKE_SECS,
    SILENCE_SECS,
    Door,
    _address_of,
)

from integration.zmq_helpers import App, Apps, ZmqBus, number_of, numbered

#: The greeting of a peer that speaks ZMTP 3.0, as libzmq 4.0 to 4.2 do; and its READY.
GREETING_3_0 = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB"
GREETING_BYTES = 64
READY_BYTES = 28


class RawSub:
    """A SUB without ZeroMQ, which says what a test wants it to."""

    def __init__(self, port: int) -> None:
        self.tcp = socket.create_connection(("127.0.0.1", port), timeout=SOON)

    def read(self, count: int) -> bytes:
        """Read so many bytes; fewer if the connection ends."""
        data = b""
        while len(data) < count and (more := self.tcp.recv(count - len(data))):
            data += more
        return data

    def come_to_terms(self) -> None:
        """Do greeting and handshake."""
        self.tcp.sendall(GREETING_3_0)
        assert len(self.read(GREETING_BYTES)) == GREETING_BYTES
        self.tcp.sendall(READY)
        assert self.read(READY_BYTES)[3:8] == b"READY"

    def subscribe(self, prefix: bytes) -> None:
        """Subscribe as version 3.0 does: in a message."""
        body = b"\x01" + prefix
        self.tcp.sendall(b"\0" + bytes((len(body),)) + body)

    def frame(self) -> tuple[int, bytes]:
        """Read one frame: its flags and what it holds."""
        (flags,) = self.read(1)
        size = int.from_bytes(self.read(8 if flags & 2 else 1), "big")
        return flags, self.read(size)

    def is_ended(self) -> bool:
        """Wait until the bus has ended the connection; fails if it does not."""
        with contextlib.suppress(ConnectionResetError):
            while self.tcp.recv(1000):
                pass
        return True


@pytest.fixture
def raw(bus: ZmqBus) -> Iterator[RawSub]:
    made = RawSub(bus.pub)
    yield made
    made.tcp.close()


def links(bus: ZmqBus) -> int:
    return len(bus.endpoint.publisher.door._links)


def test_a_subscriber_of_version_3_0_gets_frames_with_no_flag_but_that_of_their_length(
    bus: ZmqBus, app: App, publisher: App, raw: RawSub
) -> None:
    app.subscribe("stix2")
    raw.come_to_terms()
    raw.subscribe(app.p2p.encode())
    app.connected()
    publisher.publish_numbered(0, 3)
    for number in range(3):
        flags, body = raw.frame()
        assert flags == 2
        assert body == app.p2p.encode() + b"indicator " + numbered(number)


def test_a_short_message_goes_in_a_short_frame(
    bus: ZmqBus, app: App, publisher: App, raw: RawSub
) -> None:
    app.subscribe("threatbus")
    raw.come_to_terms()
    raw.subscribe(app.p2p.encode())
    app.connected()
    publisher.subscribe("stix2/indicator", snapshot=1)
    flags, body = raw.frame()
    assert flags == 0
    assert body.startswith(app.p2p.encode() + b"snapshotrequest ")


def test_heartbeats_of_an_app_are_answered(bus: ZmqBus, app: App, publisher: App) -> None:
    app.subscribe("stix2")
    sub = app.socket(zmq.SUB, HEARTBEAT_IVL=20, HEARTBEAT_TIMEOUT=200)
    sub.setsockopt(zmq.SUBSCRIBE, app.p2p.encode())
    ends = app.ends_of(sub)
    sub.connect(bus.address("pub"))
    app.connected()
    assert not ends.poll(600), "it was left without an answer"
    publisher.publish_numbered(0, 1)
    assert sub.poll(int(SOON * 1000))
    assert number_of(sub.recv()) == 0


def test_a_silent_subscriber_is_asked_for_a_sign_of_life_and_let_go_without_one(
    bus: ZmqBus, app: App, raw: RawSub
) -> None:
    app.subscribe("stix2").connect().connected()
    raw.come_to_terms()
    eventually(lambda: links(bus) == 2)
    bus.time_passes(SILENCE_SECS + 1)
    assert raw.frame() == (4, b"\x04PING\0\0")
    # The other has answered its ping, as ZeroMQ does by itself.
    door = bus.endpoint.publisher.door
    eventually(lambda: sum(each.pinged_at is not None for each in door._links.values()) == 1)
    bus.time_passes(ANSWER_SECS + 1)
    assert raw.is_ended()
    assert app.delivery().connected


def test_who_does_not_come_to_terms_in_time_is_let_go(
    bus: ZmqBus, raw: RawSub, caplog: pytest.LogCaptureFixture
) -> None:
    raw.tcp.sendall(GREETING_3_0)
    eventually(lambda: links(bus) == 1)
    bus.time_passes(HANDSHAKE_SECS - 1)
    raw.read(GREETING_BYTES)
    assert links(bus) == 1
    bus.time_passes(HANDSHAKE_SECS + 1)
    assert raw.is_ended()
    assert "it has not come to terms in time" in caplog.text


def test_a_socket_of_the_wrong_type_is_told_to_the_log(
    bus: ZmqBus, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = app.socket(zmq.REQ, bus.address("pub"))
    eventually(lambda: "a socket of type REQ connects where a SUB should" in caplog.text)
    app.close_socket(wrong)


def test_a_peer_whose_zeromq_is_too_old_is_told_to_the_log(
    bus: ZmqBus, raw: RawSub, caplog: pytest.LogCaptureFixture
) -> None:
    raw.tcp.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x01")
    assert raw.is_ended()
    assert "its ZeroMQ is older than version 4" in caplog.text


def test_answers_that_nobody_reads_end_the_connection_and_take_no_memory(
    bus: ZmqBus, raw: RawSub
) -> None:
    raw.come_to_terms()
    ping = b"\x04\x17\x04PING\0\0" + b"x" * 16

    def goes_on() -> bool:
        with contextlib.suppress(OSError):
            raw.tcp.sendall(ping * 20_000)
        return links(bus) == 0

    eventually(goes_on)


def test_when_no_descriptor_is_left_the_door_waits_and_says_so(
    bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    door = bus.endpoint.publisher.door
    listener: Any = door._listener

    class Exhausted:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

    monkeypatch.setattr(door, "_listener", Exhausted())
    turns = []
    serve = Door.serve

    def counted(self: Door) -> None:
        turns.append(self)
        serve(self)

    monkeypatch.setattr(Door, "serve", counted)
    app.subscribe("stix2").connect()
    eventually(lambda: door._accept_at is not None)
    assert "Too many open files; allow the bus more descriptors" in caplog.text
    assert app.heartbeat() == "success"
    assert len(turns) < 20, "the loop does not spin meanwhile"
    monkeypatch.setattr(door, "_listener", listener)
    bus.time_passes(EXHAUSTED_SECS)
    app.connected()


def test_a_subscriber_that_reads_at_the_end_gets_everything_before_the_bus_is_gone(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    app = zmq_apps.app(bus).subscribe("stix2")
    # It always has something to say.
    sub = app.socket(zmq.SUB, RCVHWM=0, HEARTBEAT_IVL=1, HEARTBEAT_TIMEOUT=60_000)
    sub.setsockopt(zmq.SUBSCRIBE, app.p2p.encode())
    sub.connect(bus.address("pub"))
    app.sub = sub
    app.connected()
    publisher.publish_numbered(0, 5000)
    bus.accepted(5000)
    bus.bus.stop()
    assert app.receive_until(4999) == list(range(5000))


@pytest.mark.parametrize(
    ("host", "found", "bound"),
    [
        ("localhost", ["::1", "127.0.0.1"], "127.0.0.1"),
        ("::1", ["::1"], "::1"),
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1"),
    ],
)
def test_a_name_stands_for_the_address_that_the_other_doors_are_bound_to(
    host: str, found: list[str], bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_zmq.door.addresses_of", lambda _: found)
    assert _address_of(host) == bound


def test_a_host_that_cannot_be_looked_up_cannot_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threatbus_zmq.door.addresses_of", lambda _: [])
    with pytest.raises(OSError, match="No such device"):
        _address_of("nobody.invalid")
