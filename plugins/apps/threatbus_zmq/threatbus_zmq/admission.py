"""Admission: which SUBs are let in at the XPUB socket, and what is noted of the others.

ZeroMQ would let a SUB name any prefix, the empty one included, and so read everybody's traffic.
With XPUB_MANUAL it asks: only who names a topic that was issued hears anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import zmq

from threatbus_zmq import mapping
from threatbus_zmq.connections import Connection, hang_up, port_of, source_of, stands
from threatbus_zmq.delivery import Delivery
from threatbus_zmq.gatekeeper import user_of

logger = logging.getLogger("threatbus.zmq.admission")

#: What comes from a SUB in one frame: a topic of a few letters, or a handshake of ZMTP.
MAX_UPSTREAM_BYTES: Final = 1024
#: Such frames that one turn of the loop deals with.
UPSTREAM_PER_TURN: Final = 1000
#: Letters of a P2P topic by which ZeroMQ finds its pipe: it goes letter by letter, for each frame.
#: Enough that no two are the same; if they were, the app's SUB would still tell them apart.
ROUTE_LENGTH: Final = 8
#: Prefixes that SUBs of one subscriber may name.
MAX_PREFIXES: Final = 16
#: Bytes of prefixes without an issued topic that one connection may name; ZeroMQ keeps them.
MAX_STRAY_BYTES: Final = 64 * 1024

_SUBSCRIBES: Final = b"\x01"
_UNSUBSCRIBES: Final = b"\x00"


class Admission:
    """What comes in at the XPUB socket. Belongs to the loop.

    `deliveries` are those of the issued topics, by topic. `arrived` hears of a SUB that was let in
    (its delivery, the prefix that it named, its connection if that is known) and `departed` of one
    that has unsubscribed or, with no connection, whose connection has ended.
    """

    def __init__(
        self,
        deliveries: Mapping[str, Delivery],
        arrived: Callable[[Delivery, bytes, Connection | None], None],
        departed: Callable[[Delivery, bytes, Connection | None], None],
    ) -> None:
        self._deliveries = deliveries
        self._arrived = arrived
        self._departed = departed
        self._socket: zmq.Socket[bytes] | None = None
        # The port that it is bound to.
        self._door = 0
        # Whether ZeroMQ knows which connection the next subscription comes from, see read().
        self._aligned = True
        self._strays = Strays()

    @property
    def refused(self) -> int:
        """How many SUBs were not admitted, since they named no topic that was issued."""
        return self._strays.count

    def open(self, socket: zmq.Socket[bytes]) -> None:
        """Begin to read `socket`, which is bound."""
        self._socket = socket
        self._door = port_of(socket)

    def close(self) -> None:
        """Forget the socket and its connections."""
        self._socket = None
        self._aligned = True
        self._strays.forget()

    def read(self) -> None:
        """Read what SUBs have come and gone; only those that name an issued topic are let in.

        ZeroMQ lets in the connection that it thinks the last frame came from. A frame that is no
        subscription puts it one ahead until there is nothing more to read: with what comes in
        between, a subscriber's traffic would go to another's connection. So the sender of such a
        frame is cut off, and so is who subscribes right after it; the latter comes again.
        """
        socket = self._socket
        if socket is None:
            return
        for _ in range(UPSTREAM_PER_TURN):
            try:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._aligned = True
                return
            data, source = frame.bytes, source_of(frame, self._door)
            kind, prefix = data[:1], data[1:]
            delivery = self._deliveries.get(prefix[: mapping.P2P_LENGTH].decode("latin-1"))
            if delivery is not None and not _is_of(frame, kind, delivery):
                logger.warning("a SUB of another client names the topic of %s", delivery.name)
                delivery = None
            if kind == _SUBSCRIBES:
                self._on_arrival(socket, prefix, source, delivery)
            elif kind == _UNSUBSCRIBES:
                if source is not None and self._aligned:
                    socket.setsockopt(zmq.UNSUBSCRIBE, _route(prefix))
                if delivery is not None:
                    self._departed(delivery, prefix, source)
            else:
                self._aligned = False
                logger.debug("a SUB that sends other things than subscriptions is cut off")
                hang_up(source)

    def _on_arrival(
        self,
        socket: zmq.Socket[bytes],
        prefix: bytes,
        source: Connection | None,
        delivery: Delivery | None,
    ) -> None:
        if delivery is None or len(delivery.subscribed) >= MAX_PREFIXES:
            logger.debug("a SUB that names no issued topic is not admitted")
            self._strays.note(prefix, source)
            return
        if not self._aligned:
            hang_up(source)
            return
        socket.setsockopt(zmq.SUBSCRIBE, _route(prefix))
        if source is not None and (prefix, source) in delivery.subscribed:
            # The same SUB says it once more; when it goes, this is reported once.
            return
        self._arrived(delivery, prefix, source)


class Strays:
    """Prefixes with no issued topic. ZeroMQ remembers them, so who names too many is cut off."""

    def __init__(self) -> None:
        #: How many were named.
        self.count = 0
        # Their bytes, by the connection that named them.
        self._bytes: dict[Connection, int] = {}
        # When there are more than this, those whose connection has ended are forgotten.
        self._most = 1000

    def note(self, prefix: bytes, source: Connection | None) -> None:
        """Note one; `source` None cannot be cut off."""
        self.count += 1
        if source is None:
            return
        named = self._bytes.pop(source, 0) + len(prefix) + 1
        if named > MAX_STRAY_BYTES:
            hang_up(source)
            return
        self._bytes[source] = named
        if len(self._bytes) > self._most:
            self._bytes = {found: size for found, size in self._bytes.items() if stands(found)}
            self._most = 2 * len(self._bytes) + 1000

    def forget(self) -> None:
        """Forget the connections: they have ended."""
        self._bytes.clear()


def _route(prefix: bytes) -> bytes:
    """Give what ZeroMQ is to look for in a frame, for a SUB that is let in with `prefix`."""
    return prefix[:ROUTE_LENGTH] if len(prefix) == mapping.P2P_LENGTH else prefix


def _is_of(frame: zmq.Frame, kind: bytes, delivery: Delivery) -> bool:
    """Say whether a frame about the topic of `delivery` comes from the client that has it.

    What ZeroMQ itself says, when a connection has ended, comes from nobody.
    """
    if delivery.key is None:
        return True
    user = user_of(frame)
    return user == delivery.key or (kind == _UNSUBSCRIBES and not user)
