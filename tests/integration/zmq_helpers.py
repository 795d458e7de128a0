"""A bus with the ZeroMQ plugin, and apps as they are written against 2022.5.16."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import time
from pathlib import Path
from typing import Any

import zmq
from helpers.buses import Buses, reject_lines
from helpers.documents import encode, indicator
from helpers.waiting import SOON, eventually
from threatbus_zmq.delivery import Delivery
from threatbus_zmq.endpoint import Endpoint as BusEndpoint
from threatbus_zmq.plugin import ZmqPlugin

import threatbus
from testbed.ports import Doors, free_ports
from threatbus.client import Endpoint
from threatbus.keyfiles import ClientKeys

Socket = zmq.Socket[bytes]


class ZmqBus(Doors):
    """A bus in this process whose ZeroMQ endpoint is on free ports."""

    def __init__(self, start_bus: Buses, apps: dict[str, Any] | None = None, **options: Any):
        """Start it; `options` go into the plugin's section, but for those of the core."""
        core = {
            key: options.pop(key)
            for key in ("queues", "drain_timeout", "rejected", "snapshot_timeout", "backbones")
            if key in options
        }
        super().__init__(*free_ports(3), host=options.get("host", "127.0.0.1"))
        section = {**self.section, **options}
        self.bus: threatbus.ThreatBus = start_bus(apps={"zmq": section, **(apps or {})}, **core)

    @property
    def plugin(self) -> ZmqPlugin:
        """The plugin of this bus."""
        (plugin,) = [app for app in self.bus._apps if app.name == "zmq"]
        implementation = plugin._manager.get_plugin("zmq")
        assert isinstance(implementation, ZmqPlugin)
        return implementation

    @property
    def endpoint(self) -> BusEndpoint:
        """The plugin's inside, to break things there and to look at what no app can see."""
        assert self.plugin._endpoint is not None, "the bus is stopped"
        return self.plugin._endpoint

    def time_passes(self, seconds: float) -> None:
        """Put the endpoint's clock forward, and have its loop look at it."""
        clock = self.endpoint._clock

        def later() -> float:
            return clock() + seconds

        publisher = self.endpoint.publisher
        parts: list[Any] = [self.endpoint, self.endpoint.manager, publisher, self.endpoint.requests]
        parts += self.endpoint._doors.values()
        if self.endpoint.gatekeeper is not None:
            parts.append(self.endpoint.gatekeeper.ring)
        for part in parts:
            part._clock = later
        self.endpoint._wakeup()

    def accepted(self, count: int) -> None:
        """Wait until the bus has accepted `count` messages."""
        eventually(lambda: self.bus.intake.accepted >= count, what=f"{count} messages accepted")

    def rejected(self, text: str) -> int:
        """Say how many messages were rejected for reasons that contain `text`."""
        counts = self.bus.rejects.counts
        return sum(number for (_, reason), number in counts.items() if text in reason)

    def reject_lines(self) -> list[dict[str, Any]]:
        """Give what the reject store has on disk."""
        return reject_lines(self.bus)


class App:
    """An app: a REQ for management, a SUB to receive, a PUB to publish.

    Give it a `context` if there are to be many apps, and the port of a proxy as `pub_port`.
    """

    def __init__(
        self,
        bus: Doors,
        *,
        context: zmq.Context[Socket] | None = None,
        rcvhwm: int = 1000,
        keys: ClientKeys | None = None,
    ) -> None:
        self.bus = bus
        self._keys = keys
        self._own_context = context is None
        self.context: zmq.Context[Socket] = context or zmq.Context()
        self._rcvhwm = rcvhwm
        self._sockets: list[Socket] = []
        self.p2p = ""
        self.sub: Socket | None = None
        self._pub: Socket | None = None

    # Management.

    def socket(self, kind: int, address: str | None = None, **options: int) -> Socket:
        """Give a new socket that is closed with the app."""
        created: Socket = self.context.socket(kind)
        created.setsockopt(zmq.LINGER, 0)
        if ":" in self.bus.host:
            created.setsockopt(zmq.IPV6, 1)
        for name, value in options.items():
            created.setsockopt(getattr(zmq, name), value)
        Endpoint(self.bus.host, self.bus.manage, self._keys).secure(created)
        if address is not None:
            created.connect(address)
        self._sockets.append(created)
        return created

    def is_refused(self, door: str, kind: int) -> bool:
        """Say whether ZeroMQ does not come to terms with the bus at this door."""
        trying = self.socket(kind)
        monitor: Socket = trying.get_monitor_socket(
            int(
                zmq.EVENT_HANDSHAKE_SUCCEEDED
                | zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            )
        )
        self._sockets.append(monitor)
        trying.connect(self.bus.address(door))
        assert monitor.poll(int(SOON * 1000)), "neither let in nor refused"
        (event,) = struct.unpack_from("=H", monitor.recv_multipart()[0])
        trying.disable_monitor()
        self.close_socket(trying)
        return bool(event != zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def ends_of(self, watched: Socket) -> Socket:
        """Give a socket at which the ends of the connections of `watched` can be read."""
        monitor: Socket = watched.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._sockets.append(monitor)
        return monitor

    def ask_raw(self, *frames: bytes, timeout: float = SOON) -> bytes:
        """Send one request and give the reply, byte for byte."""
        req = self.socket(zmq.REQ, self.bus.address("manage"))
        try:
            req.send_multipart(frames)
            assert req.poll(int(timeout * 1000)), f"no answer to {frames[0][:100]!r}"
            return req.recv()
        finally:
            self.close_socket(req)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and give the reply."""
        reply = json.loads(self.ask_raw(json.dumps(request).encode()))
        assert isinstance(reply, dict)
        return reply

    def subscribe(self, topic: str | list[str], snapshot: float = 0, **more: Any) -> App:
        """Subscribe, without connecting a SUB."""
        reply = self.ask(action="subscribe", topic=topic, snapshot=snapshot, **more)
        assert reply["status"] == "success", reply
        self.p2p = reply["topic"]
        return self

    def heartbeat(self) -> str:
        """Give a sign of life and return the status that is answered."""
        return str(self.ask(action="heartbeat", topic=self.p2p)["status"])

    # Receiving.

    def connect(self, port: int | None = None, prefixes: tuple[str, ...] = ("",)) -> App:
        """Connect the SUB; `prefixes` follow the point-to-point topic."""
        address = self.bus.address("pub") if port is None else f"tcp://127.0.0.1:{port}"
        sub = self.socket(zmq.SUB, RCVHWM=self._rcvhwm)
        for prefix in prefixes:
            sub.setsockopt(zmq.SUBSCRIBE, (self.p2p + prefix).encode())
        sub.connect(address)
        self.sub = sub
        return self

    def connected(self) -> App:
        """Wait until the bus knows of the SUB."""
        eventually(lambda: self.delivery().connected, what="the SUB has arrived")
        return self

    def stalled(self) -> App:
        """Wait until the bus has given up for now on a SUB that does not read."""
        eventually(lambda: self.delivery().blocked, what="it has stalled")
        return self

    def delivery(self) -> Delivery:
        """Give the publisher's side of this subscription; for a bus in this process."""
        assert isinstance(self.bus, ZmqBus)
        return self.bus.endpoint.publisher._deliveries[self.p2p]

    def is_in_use(self) -> bool:
        """Let ZeroMQ do what it does whenever an app looks for messages; True if there is a SUB."""
        return self.sub is not None and self.sub.poll(0) >= 0

    def receive(self, timeout: float = SOON) -> bytes:
        """Give the next frame."""
        assert self.sub is not None
        assert self.sub.poll(int(timeout * 1000)), f"nothing received within {timeout} s"
        return self.sub.recv()

    def receive_all(self, count: int, timeout: float = 3 * SOON) -> list[bytes]:
        """Give `count` frames."""
        assert self.sub is not None
        frames: list[bytes] = []
        deadline = time.monotonic() + timeout
        while len(frames) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(frames)} of {count} received within {timeout} s"
            if self.sub.poll(int(min(left, 1) * 1000)):
                with contextlib.suppress(zmq.Again):
                    while len(frames) < count:
                        frames.append(self.sub.recv(zmq.NOBLOCK))
        return frames

    def receive_until(self, last: int, timeout: float = 3 * SOON) -> list[int]:
        """Receive `numbered` documents up to the one with number `last`; gives all numbers."""
        numbers: list[int] = []
        deadline = time.monotonic() + timeout
        while not numbers or numbers[-1] != last:
            left = deadline - time.monotonic()
            assert left > 0, f"received up to {numbers[-1:]} of {last} within {timeout} s"
            numbers.append(number_of(self.receive(left)))
        return numbers

    def receive_rest(self) -> list[bytes]:
        """Give the frames that have arrived, once there are no more."""
        assert self.sub is not None
        frames: list[bytes] = []
        while self.sub.poll(200):
            frames.append(self.sub.recv())
        return frames

    def receives_nothing(self, for_secs: float = 0.2) -> None:
        """Fail if a frame arrives."""
        assert self.sub is not None
        assert not self.sub.poll(int(for_secs * 1000)), self.sub.recv()

    def disconnect(self) -> None:
        """Close the SUB."""
        assert self.sub is not None
        self.close_socket(self.sub)
        self.sub = None

    # Publishing.

    @property
    def pub(self) -> Socket:
        """The PUB, ready: the bus's subscription has reached it, so that it drops nothing."""
        if self._pub is None:
            # An XPUB is a PUB that can tell.
            self._pub = self.socket(zmq.XPUB, self.bus.address("sub"), SNDHWM=0)
            assert self._pub.poll(int(SOON * 1000)), "the bus's SUB does not answer"
            assert self._pub.recv() == b"\x01"
        return self._pub

    def publish(self, topic: str, document: bytes | dict[str, Any]) -> None:
        """Publish one document."""
        data = document if isinstance(document, bytes) else encode(document)
        self.pub.send(topic.encode() + b" " + data)

    def publish_numbered(self, first: int, count: int) -> None:
        """Publish `count` indicators that `number_of` tells apart."""
        for number in range(first, first + count):
            self.pub.send(b"stix2/indicator " + numbered(number))

    def close_socket(self, closed: Socket) -> None:
        """Close one of the app's sockets."""
        self._sockets.remove(closed)
        closed.close(0)

    def close(self) -> None:
        """Close everything."""
        for each in self._sockets:
            each.close(0)
        self._sockets.clear()
        if self._own_context:
            self.context.term()


class Apps:
    """Makes apps and closes them; also the factory of buses, so that a test needs one fixture."""

    def __init__(self, start_bus: Buses) -> None:
        self._start_bus = start_bus
        self._apps: list[App] = []

    def bus(self, **options: Any) -> ZmqBus:
        """Start a bus; see `ZmqBus`."""
        return ZmqBus(self._start_bus, **options)

    def app(self, bus: ZmqBus, **options: Any) -> App:
        """Make an app; see `App`."""
        made = App(bus, **options)
        self._apps.append(made)
        return made

    def close(self) -> None:
        """Close all apps."""
        for app in self._apps:
            app.close()


_TEMPLATE = encode(indicator(name="NUMBER", description="x" * 120))
_NUMBER = re.compile(rb'"name": "(\d+)"')


def numbered(number: int) -> bytes:
    """Give an indicator of about 500 bytes whose name is `number`."""
    return _TEMPLATE.replace(b"NUMBER", b"%d" % number, 1)


def number_of(frame: bytes) -> int:
    """Give the number that a `numbered` document has."""
    found = _NUMBER.search(frame)
    assert found, frame
    return int(found[1])


def rss_bytes() -> int:
    """Give the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Give the number of open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def connections_to(port: int) -> int:
    """Give the number of TCP connections to `port` that this process has open."""
    own = {str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and f"socket:[{row[9]}]" in own for row in rows)
