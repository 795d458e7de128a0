"""The doors: peers of ZeroMQ's, old and new, and those that are odd."""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import zmq
from helpers.documents import indicator_bytes
from helpers.waiting import SOON, eventually
from threatbus_zmq.door import (
    EXHAUSTED_SECS,
    GONE_SECS,
    HANDSHAKE_SECS,
    LOOK_SECS,
    READ_BYTES,
    STALLED_SECS,
    Door,
    _address_of,
)
from threatbus_zmq.endpoint import Endpoint as BusEndpoint
from threatbus_zmq.pace import CROWD
from threatbus_zmq.publisher import MAX_LINKS
from threatbus_zmq.receiver import AHEAD_BYTES, BATCH, Receiver
from threatbus_zmq.requests import FRAMES, UNREAD_SECS
from threatbus_zmq.tcpinfo import TcpInfo, tcp_info
from threatbus_zmq.zmtp import Null, Role, Session, header

from integration.zmq_helpers import App, Apps, ZmqBus, number_of, numbered
from threatbus.errors import InvalidConfig

#: The greeting of a peer that speaks ZMTP 3.0, as libzmq 4.0 to 4.2 do; and its READY.
GREETING_3_0 = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32)
GREETING_BYTES = 64


class RawPeer:
    """A SUB, PUB or REQ without ZeroMQ, which says what a test wants it to."""

    def __init__(self, port: int, tcp: socket.socket | None = None) -> None:
        self.tcp = tcp or socket.create_connection(("127.0.0.1", port), timeout=SOON)

    def read(self, count: int) -> bytes:
        """Read so many bytes; fewer if the connection ends."""
        data = b""
        while len(data) < count and (more := self.tcp.recv(count - len(data))):
            data += more
        return data

    def come_to_terms(self, kind: bytes = b"SUB") -> None:
        """Do greeting and handshake."""
        self.tcp.sendall(GREETING_3_0)
        assert len(self.read(GREETING_BYTES)) == GREETING_BYTES
        self.tcp.sendall(_ready(kind))
        assert self.frame()[1][:6] == b"\x05READY"

    def send(self, body: bytes, flags: int = 0) -> None:
        """Send a frame."""
        self.tcp.sendall(header(flags, len(body)) + body)

    def subscribe(self, prefix: bytes) -> None:
        """Subscribe as version 3.0 does: in a message."""
        self.send(b"\x01" + prefix)

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
def raw(bus: ZmqBus) -> Iterator[RawPeer]:
    made = RawPeer(bus.pub)
    yield made
    made.tcp.close()


def _ready(kind: bytes) -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return header(4, len(body)) + body


def links(bus: ZmqBus) -> int:
    return len(bus.endpoint.publisher.door._links)


def test_a_subscriber_of_version_3_0_gets_frames_with_no_flag_but_that_of_their_length(
    bus: ZmqBus, app: App, publisher: App, raw: RawPeer
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
    bus: ZmqBus, app: App, publisher: App, raw: RawPeer
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


def test_a_subscriber_whose_machine_answers_stays_however_silent_it_is(
    bus: ZmqBus, app: App, publisher: App
) -> None:
    app.subscribe("stix2").connect().connected()
    for _ in range(3):
        bus.time_passes(GONE_SECS)
    publisher.publish_numbered(0, 1)
    assert number_of(app.receive()) == 0


def test_a_subscriber_whose_machine_does_not_answer_is_let_go(
    bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app.subscribe("stix2").connect().connected()
    silent = TcpInfo(True, GONE_SECS + 1, 0)
    monkeypatch.setattr("threatbus_zmq.door.tcp_info", lambda _: silent)
    bus.time_passes(LOOK_SECS + 1)
    eventually(lambda: "is cut off: its machine does not answer" in caplog.text)


def test_who_has_said_what_it_had_to_say_and_acknowledged_all_is_not_asked_for_more(
    bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.subscribe("stix2").connect().connected()
    looks = itertools.count()

    def silent(_: socket.socket) -> TcpInfo:
        next(looks)
        return TcpInfo(False, GONE_SECS + 1, 0)

    monkeypatch.setattr("threatbus_zmq.door.tcp_info", silent)
    bus.time_passes(LOOK_SECS + 1)
    eventually(lambda: next(looks) > 1)
    assert app.delivery().connected


def test_the_kernel_tells_of_a_connection_how_long_it_is_silent_and_what_it_takes(
    bus: ZmqBus, raw: RawPeer
) -> None:
    raw.come_to_terms()
    (link,) = bus.endpoint.publisher.door._links.values()
    eventually(lambda: 0.2 < tcp_info(link.tcp).silent_secs < 5)
    raw.tcp.sendall(b"\x04\x05\x04PONG")
    eventually(lambda: tcp_info(link.tcp).silent_secs < 0.2)
    assert 10_000 < tcp_info(link.tcp).window < 64 * 1024 * 1024
    raw.tcp.close()
    eventually(lambda: links(bus) == 0)
    assert tcp_info(link.tcp) == TcpInfo(False, 0, 0)


def test_who_does_not_come_to_terms_in_time_is_let_go(
    bus: ZmqBus, raw: RawPeer, caplog: pytest.LogCaptureFixture
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
    bus: ZmqBus, raw: RawPeer, caplog: pytest.LogCaptureFixture
) -> None:
    raw.tcp.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x01")
    assert raw.is_ended()
    assert "its ZeroMQ is older than version 4" in caplog.text


def test_answers_that_nobody_reads_take_no_memory(bus: ZmqBus) -> None:
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        tcp.connect(("127.0.0.1", bus.pub))
        raw = RawPeer(bus.pub, tcp)
        raw.come_to_terms()
        (link,) = bus.endpoint.publisher.door._links.values()
        link.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        ping = b"\x04\x17\x04PING\0\0" + b"x" * 16

        def goes_on() -> bool:
            # With buffers this small, the kernels at both ends come to a halt themselves.
            with contextlib.suppress(BlockingIOError):
                raw.tcp.send(ping * 1000, socket.MSG_DONTWAIT)
            return link.blocked

        eventually(goes_on)
        for _ in range(200):
            goes_on()
        assert sum(len(piece.data) for piece in link._unsent) < 100


def test_a_paused_reader_with_heartbeats_keeps_its_connection(
    bus: ZmqBus, app: App, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.subscribe("stix2")
    app.sub = app.socket(zmq.SUB, RCVHWM=10, HEARTBEAT_IVL=5, HEARTBEAT_TIMEOUT=600_000)
    app.sub.setsockopt(zmq.SUBSCRIBE, app.p2p.encode())
    app.sub.connect(bus.address("pub"))
    app.connected()
    publisher.publish_numbered(0, 30_000)
    bus.accepted(30_000)
    app.stalled()
    (link,) = app.delivery().links
    pings, receive = itertools.count(), link.session.receive

    def counted(data: memoryview) -> None:
        next(pings)
        receive(data)

    monkeypatch.setattr(link.session, "receive", counted)
    eventually(lambda: next(pings) > 300, what="it goes on sending pings")
    assert app.receive_until(29_999) == list(range(30_000))
    assert link.open


def test_what_is_under_way_is_remembered_however_large_the_apps_buffer_is(
    bus: ZmqBus, app: App, publisher: App
) -> None:
    app.subscribe("stix2")
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024 * 1024)
        tcp.connect(("127.0.0.1", bus.pub))
        raw = RawPeer(bus.pub, tcp)
        raw.come_to_terms()
        raw.subscribe(app.p2p.encode())
        app.connected()
        (link,) = app.delivery().links
        publisher.publish_numbered(0, 1)
        for part in range(4):
            publisher.publish_numbered(1 + part * 10_000, 10_000)
        bus.accepted(40_001)
        eventually(lambda: app.delivery().sent == 40_001 or link.blocked)
    # It had nothing of it.
    app.connect()
    assert app.receive_until(40_000, timeout=60) == list(range(40_001))


def test_connections_that_are_dead_keep_no_new_one_from_its_messages(
    bus: ZmqBus, app: App, publisher: App
) -> None:
    app.subscribe("stix2")
    dead = [RawPeer(bus.pub) for _ in range(20)]
    for each in dead:
        each.come_to_terms()
        each.subscribe(app.p2p.encode())
    app.connect()
    eventually(lambda: links(bus) <= MAX_LINKS)
    for each in dead:
        each.tcp.close()
    publisher.publish_numbered(0, 10)
    assert app.receive_until(9) == list(range(10))


def test_a_sub_that_lives_long_leaves_nothing_of_its_ended_subscriptions(
    bus: ZmqBus, app: App, raw: RawPeer
) -> None:
    raw.come_to_terms()
    for _ in range(20):
        app.subscribe("stix2")
        raw.subscribe(app.p2p.encode())
        app.connected()
        app.ask(action="unsubscribe", topic=app.p2p)
    (link,) = bus.endpoint.publisher.door._links.values()
    assert link.wanted == {}


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

    def counted(self: Door[Any]) -> None:
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


def test_a_host_that_nobody_knows_stops_the_start_and_is_named_for_each_door(
    zmq_apps: Apps, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        zmq_apps.bus(host="nobody.invalid", allow_insecure=True)
    named = [error.key for error in caught.value.errors]
    assert named == [f"plugins.apps.zmq.{door}" for door in ("manage", "pub", "sub")]


# Publishers.


@pytest.fixture
def raw_publisher(bus: ZmqBus) -> Iterator[RawPeer]:
    made = RawPeer(bus.sub)
    made.come_to_terms(b"PUB")
    yield made
    made.tcp.close()


def test_a_publisher_of_version_3_0_is_asked_for_everything_and_heard(
    app: App, raw_publisher: RawPeer
) -> None:
    app.subscribe("stix2").connect().connected()
    assert raw_publisher.frame() == (0, b"\x01")
    for number in range(3):
        raw_publisher.send(b"stix2/indicator " + numbered(number))
    assert app.receive_until(2) == [0, 1, 2]


def test_a_message_that_comes_byte_by_byte_is_one_message(app: App, raw_publisher: RawPeer) -> None:
    app.subscribe("stix2").connect().connected()
    raw_publisher.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = b"stix2/indicator " + numbered(0)
    for byte in header(0, len(body)) + body:
        raw_publisher.tcp.send(bytes((byte,)))
    assert app.receive_until(0) == [0]


def test_what_a_publisher_sent_before_it_broke_the_protocol_arrives(
    bus: ZmqBus, app: App, raw_publisher: RawPeer
) -> None:
    app.subscribe("stix2").connect().connected()
    body = b"stix2/indicator " + numbered(0)
    raw_publisher.tcp.sendall(header(0, len(body)) + body + header(0, 2**40))
    assert app.receive_until(0) == [0]
    assert raw_publisher.is_ended()
    eventually(lambda: bus.rejected("connection closed by the bus") == 1)


def test_what_a_publisher_sent_before_it_vanished_arrives(
    bus: ZmqBus, app: App, raw_publisher: RawPeer
) -> None:
    app.subscribe("stix2").connect().connected()
    for number in range(500):
        raw_publisher.send(b"stix2/indicator " + numbered(number))
    # It ends with a reset, not with a farewell.
    raw_publisher.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    bus.accepted(500)
    raw_publisher.tcp.close()
    assert app.receive_until(499) == list(range(500))
    eventually(lambda: not bus.endpoint.receiver.door._links)
    assert bus.bus.rejects.total == 0


def test_who_connects_while_the_bus_takes_nothing_is_known_before_it_does(
    zmq_apps: Apps,
) -> None:
    bus = zmq_apps.bus(queues={"overflow": "block", "outq_messages": 1000})
    slow, first = zmq_apps.app(bus).subscribe("stix2"), zmq_apps.app(bus)
    first.publish_numbered(0, 1500)
    eventually(lambda: not bus.bus.intake.writable, what="everybody waits")
    late = zmq_apps.app(bus)
    # Its property waits for the bus's subscription; what is sent before that is dropped.
    late.publish_numbered(1500, 500)
    slow.connect()
    numbers = [number_of(frame) for frame in slow.receive_all(2000)]
    assert sorted(numbers) == list(range(2000))


def test_large_frames_that_never_come_whole_take_no_memory_without_bound(
    bus: ZmqBus, app: App, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = bus.endpoint.receiver.door
    monkeypatch.setattr(door, "_most_begun", 10_000_000)
    app.subscribe("stix2").connect().connected()
    peers = [RawPeer(bus.sub) for _ in range(20)]
    for peer in peers:
        peer.come_to_terms(b"PUB")
        peer.tcp.setblocking(False)
    body = b"x" * 5_000_000

    def go_on() -> bool:
        for peer in peers:
            with contextlib.suppress(BlockingIOError):
                peer.tcp.send(body[:100_000])
        return len(door._crowded) > 5

    for peer in peers:
        peer.tcp.send(header(0, 9_000_000) + body[:10_000])
    eventually(go_on)
    held = sum(link.session.begun for link in door.links)
    assert held <= 10_000_000 + 20 * READ_BYTES
    publisher.publish_numbered(0, 10)
    assert app.receive_until(9) == list(range(10))
    # Who began first sends nothing more, and is let go so that the others can go on.
    lost = bus.rejected("connection closed by the bus")
    bus.time_passes(STALLED_SECS + 1)
    eventually(lambda: bus.rejected("connection closed by the bus") > lost)
    for peer in peers:
        peer.tcp.close()
    eventually(lambda: door._begun_bytes == 0)
    assert door._crowded == {}


def test_large_messages_that_come_at_the_same_time_all_arrive(
    zmq_apps: Apps, bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus.endpoint.receiver.door, "_most_begun", 5_000_000)
    app.subscribe("stix2").connect().connected()
    publishers = [zmq_apps.app(bus) for _ in range(8)]
    assert all(publisher.pub for publisher in publishers)
    for number, publisher in enumerate(publishers):
        publisher.publish(
            "stix2/indicator", indicator_bytes(name=str(number), description="x" * 3_000_000)
        )
    assert sorted(number_of(frame) for frame in app.receive_all(8)) == list(range(8))
    assert bus.bus.rejects.total == 0


def test_what_is_more_than_a_turn_takes_waits_for_the_next_and_no_longer(
    app: App, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_zmq.receiver.BATCH", CROWD)
    monkeypatch.setattr("threatbus_zmq.endpoint.HOUSEKEEPING_SECS", 60.0)
    app.subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 1000)
    assert app.receive_until(999, timeout=SOON) == list(range(1000))


def test_a_bus_that_takes_nothing_reads_nothing_and_does_not_spin_over_it(
    zmq_apps: Apps, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = zmq_apps.bus(queues={"overflow": "block", "outq_messages": 1000})
    slow, publisher = zmq_apps.app(bus).subscribe("stix2"), zmq_apps.app(bus)
    publisher.publish_numbered(0, 5000)
    eventually(lambda: not bus.bus.intake.writable, what="everybody waits")
    turns = []
    turn = BusEndpoint._turn

    def counted(self: BusEndpoint) -> None:
        turns.append(self)
        turn(self)

    monkeypatch.setattr(BusEndpoint, "_turn", counted)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 0.3)
    assert len(turns) < 100
    assert slow.delivery().waiting <= 1000 + BATCH
    slow.connect()
    assert slow.receive_until(4999) == list(range(5000))


def test_each_publisher_has_its_share_of_a_turn_whatever_the_others_send() -> None:
    class Inq:
        writable = True

    def session(role: Role, _: str) -> Session:
        return Session(Null(role), role)

    receiver = Receiver(
        cast("Any", None), cast("Any", Inq()), cast("Any", None), lambda: None, session, 1000
    )
    door = receiver.door
    door.bind("127.0.0.1", 0)
    assert door._listener is not None
    port = door._listener.getsockname()[1]
    peers = {}
    for name in (b"a", b"b", b"c"):
        peer = peers[name] = RawPeer(port)
        peer.tcp.sendall(GREETING_3_0 + _ready(b"PUB"))

    def are_there() -> bool:
        door.serve()
        return sum(link.session.ready for link in door._links.values()) == 3

    eventually(are_there)
    peers[b"a"].tcp.sendall(header(0, 1) + b"a")
    for name in (b"b", b"c"):
        peers[name].tcp.sendall((header(0, 1) + name) * 10_000)
    found: list[bytes] = []

    def has_come() -> bool:
        door.serve()
        found.extend(receiver._read()[0].frames)
        return {b"a", b"b", b"c"} <= set(found)

    eventually(has_come)
    batch, count = receiver._read()
    assert count == len(batch.frames) <= BATCH
    assert batch.frames.count(b"b") == batch.frames.count(b"c") == BATCH // 2
    door.close()
    for peer in peers.values():
        peer.tcp.close()


# Requests.


def test_a_request_that_has_no_empty_frame_in_front_is_told_to_the_log(
    bus: ZmqBus, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    dealer.send(b'{"action": "heartbeat", "topic": "a"}')
    eventually(lambda: "its requests have no empty frame in front" in caplog.text)
    assert app.ask(action="heartbeat", topic="a")["status"] == "error"


def test_a_reply_goes_back_the_way_that_the_request_came(
    bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_zmq.endpoint.HOUSEKEEPING_SECS", 60.0)
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    # More than are answered in one turn of the loop, so that some wait for the next.
    for number in range(900):
        dealer.send_multipart([b"way %d" % number, b"there", b"", b"{"])
    for number in range(900):
        assert dealer.poll(int(SOON * 1000))
        *way, reply = dealer.recv_multipart()
        assert way == [b"way %d" % number, b"there", b""]
        assert b'"error"' in reply


def test_who_reads_no_answers_is_asked_for_nothing_more_and_then_let_go(
    zmq_apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    bus = zmq_apps.bus(max_requests_per_second=10_000_000)
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        tcp.connect(("127.0.0.1", bus.manage))
        raw = RawPeer(bus.manage, tcp)
        raw.come_to_terms(b"DEALER")
        (link,) = bus.endpoint.requests.door.links
        link.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        request = header(1, 0) + header(0, 1) + b"{"
        sent = 0

        def goes_on() -> bool:
            nonlocal sent
            with contextlib.suppress(BlockingIOError):
                # From where the kernel has stopped taking it.
                rest = (request * 1000)[sent % len(request) :]
                sent += raw.tcp.send(rest, socket.MSG_DONTWAIT)
            return bool(link.paused_by)

        eventually(goes_on)
        waiting = len(link._unsent)
        assert waiting <= FRAMES
        for _ in range(20):
            goes_on()
        assert zmq_apps.app(bus).ask(action="heartbeat", topic="a")["status"] == "error"
        assert len(link._unsent) <= waiting
        # Once it reads, it is heard again.
        tcp.setblocking(True)
        for _ in range(1000):
            assert raw.frame() == (1, b"")
            assert b"error" in raw.frame()[1]
        eventually(goes_on)

        def is_let_go() -> bool:
            # The kernels may still be passing something on.
            bus.time_passes(UNREAD_SECS + 1)
            return "it does not read what it is answered" in caplog.text

        eventually(is_let_go)
    assert zmq_apps.app(bus).ask(action="heartbeat", topic="a")["status"] == "error"


@pytest.mark.parametrize("parts", [[b"x" * 2000, b"", b"{"], [b"x" * 200_000] * 8])
def test_what_comes_before_a_request_is_short(bus: ZmqBus, app: App, parts: list[bytes]) -> None:
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    ends = app.ends_of(dealer)
    dealer.send_multipart(parts)
    assert ends.poll(int(SOON * 1000)), "it is still connected"


def test_the_parts_of_a_request_that_is_not_whole_are_counted(bus: ZmqBus) -> None:
    raw = RawPeer(bus.manage)
    raw.come_to_terms(b"DEALER")
    door = bus.endpoint.requests.door
    for _ in range(4):
        raw.send(b"x" * 200_000, 1)
    eventually(lambda: door._begun_bytes == 800_000)
    raw.tcp.close()
    eventually(lambda: door._begun_bytes == 0)


# While nothing can be taken.


class Paused:
    """A bus whose outqs make everybody wait, one of which is full."""

    def __init__(self, zmq_apps: Apps) -> None:
        self.bus = zmq_apps.bus(queues={"overflow": "block", "outq_messages": 100})
        self.slow = zmq_apps.app(self.bus).subscribe("stix2")
        zmq_apps.app(self.bus).publish_numbered(0, 150)
        eventually(lambda: not self.bus.bus.intake.writable, what="everybody waits")
        self.door = self.bus.endpoint.receiver.door

    def numbers(self, count: int) -> list[int]:
        """Let it read; gives what has come."""
        self.slow.connect()
        return [number_of(frame) for frame in self.slow.receive_all(count)]


@pytest.fixture
def paused(zmq_apps: Apps) -> Paused:
    return Paused(zmq_apps)


def test_who_publishes_and_goes_meanwhile_takes_no_descriptor_and_loses_nothing(
    zmq_apps: Apps, paused: Paused
) -> None:
    before = len(paused.door.links)
    for number in range(30):
        app = zmq_apps.app(paused.bus)
        app.publish_numbered(150 + 5 * number, 5)
        app.pub.close(linger=1000)
    eventually(lambda: len(paused.door.links) <= before, what="their connections are closed")
    assert sorted(paused.numbers(300)) == list(range(300))
    assert paused.bus.bus.rejects.total == 0


def test_a_publisher_is_read_ahead_to_a_bound_and_its_order_stays(
    zmq_apps: Apps, paused: Paused
) -> None:
    receiver = paused.bus.endpoint.receiver
    zmq_apps.app(paused.bus).publish_numbered(150, 5000)
    eventually(lambda: receiver._paused, what="enough is ahead")
    assert receiver._ahead_bytes < AHEAD_BYTES + READ_BYTES
    assert paused.numbers(5150) == list(range(5150))
    assert (receiver._ahead, receiver._ahead_bytes, receiver._paused) == ({}, 0, set())


def test_all_publishers_together_are_read_ahead_to_a_bound(
    zmq_apps: Apps, paused: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_zmq.receiver.ALL_AHEAD_BYTES", 50_000)
    receiver = paused.bus.endpoint.receiver
    for number in range(5):
        zmq_apps.app(paused.bus).publish_numbered(1000 * number, 150)
    eventually(lambda: len(receiver._paused) >= 4)
    assert receiver._ahead_bytes < 50_000 + 5 * 150 * 600
    assert len(paused.numbers(900)) == 900


def test_heartbeats_are_answered_meanwhile(zmq_apps: Apps, paused: Paused) -> None:
    app = zmq_apps.app(paused.bus)
    xpub = app.socket(zmq.XPUB, None, HEARTBEAT_IVL=20, HEARTBEAT_TIMEOUT=100)
    ends = app.ends_of(xpub)
    xpub.connect(paused.bus.address("sub"))
    assert xpub.poll(int(SOON * 1000))
    for number in range(20):
        xpub.send(b"stix2/indicator " + numbered(150 + number))
        assert not ends.poll(25), "it has lost its connection"
    assert paused.numbers(170) == list(range(170))


def test_what_was_read_ahead_and_cannot_be_taken_any_more_is_told(
    zmq_apps: Apps, paused: Paused, caplog: pytest.LogCaptureFixture
) -> None:
    zmq_apps.app(paused.bus).publish_numbered(150, 50)
    receiver = paused.bus.endpoint.receiver
    eventually(lambda: sum(len(each.frames) for each in receiver._ahead.values()) >= 50)
    paused.bus.bus.stop()
    assert "messages of publishers could not be taken in time" in caplog.text


# When the kernel says no.


def test_a_connection_that_the_kernel_does_not_watch_is_let_go_and_no_other(
    zmq_apps: Apps, bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.subscribe("stix2").connect().connected()
    door = bus.endpoint.receiver.door
    speaking: Any = door._speaking

    class Full:
        def register(self, *_: object) -> None:
            monkeypatch.setattr(door, "_speaking", speaking)
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(speaking, name)

    monkeypatch.setattr(door, "_speaking", Full())
    # ZeroMQ connects again.
    zmq_apps.app(bus).publish_numbered(0, 1)
    assert app.receive_until(0) == [0]
    assert bus.endpoint.failures == 0


def test_an_endpoint_that_fails_whatever_it_fails_at_opens_all_its_doors_again(
    bus: ZmqBus, app: App, publisher: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.subscribe("stix2").connect().connected()
    assert publisher.pub

    close = bus.endpoint.requests.door.close

    def fail(*_: object) -> None:
        raise RuntimeError("by intention")

    def close_and_fail(*_: object) -> None:
        monkeypatch.undo()
        close()
        fail()

    monkeypatch.setattr(bus.endpoint.requests.door, "close", close_and_fail)
    monkeypatch.setattr(bus.endpoint, "_serve_calls", fail)
    bus.endpoint._wakeup()
    eventually(lambda: bus.endpoint.failures == 1)
    eventually(lambda: all(door.open for door in bus.endpoint._doors.values()))
    eventually(lambda: app.heartbeat() == "success")
