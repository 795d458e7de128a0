"""Sees the connections that ZeroMQ closes by itself, which it says to nobody.

A peer that sends a larger frame than the socket takes loses its connection and the frame, and
neither side hears why. ZeroMQ reports only that a connection has ended. Who ended it shows in the
TCP connection itself: if the peer did, or the network, it is no longer established when ZeroMQ
lets go of it. So this keeps a descriptor of each connection that it can look at afterwards.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Callable
from typing import Final

import zmq

from threatbus_zmq.connections import duplicate, is_established, port_of

#: Connections of one socket that are watched; each takes a descriptor.
MAX_WATCHED: Final = 1000
#: Events that one turn of the loop deals with.
EVENTS_PER_TURN: Final = 1000

_FAILED_HANDSHAKE: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
# The first frame of an event (zmq_socket_monitor(3)): its number and its value. pyzmq's own reader
# of it costs the start 18 ms, since it imports asyncio.
_EVENT: Final = struct.Struct("=HI")


class Monitor:
    """Watches a socket that is about to be bound. Belongs to the thread that uses the socket.

    `on_cut` is called with the peer's host for each connection that ZeroMQ has closed though its
    peer spoke the protocol: over the size of a frame, or because the framing was broken.
    """

    def __init__(self, watched: zmq.Socket[bytes], on_cut: Callable[[str], None]) -> None:
        self._watched = watched
        self._on_cut = on_cut
        # By ZeroMQ's descriptor: a second descriptor of the same connection.
        self._connections: dict[int, socket.socket] = {}
        # Whether the last event said that a handshake failed; the end that follows is its own.
        self._no_handshake = False
        address = f"inproc://monitor-{secrets.token_hex(8)}"
        watched.monitor(
            address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | int(_FAILED_HANDSHAKE)
        )
        self.socket: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        # With a bound ZeroMQ's own thread would wait for this one when there are many events.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)

    def take(self) -> None:
        """Deal with what has happened since the last call."""
        events = self._read()
        # A connection that has come and gone unseen has left its descriptor to another one.
        ends = {n: at for at, (event, n) in enumerate(events) if event == zmq.EVENT_DISCONNECTED}
        for position, (event, number) in enumerate(events):
            if event == zmq.EVENT_ACCEPTED:
                if ends.get(number, -1) < position:
                    self._watch(number)
            elif event == zmq.EVENT_DISCONNECTED:
                self._on_end(number)
            self._no_handshake = bool(event & _FAILED_HANDSHAKE)

    def close(self) -> None:
        """Give everything back; before the watched socket is closed."""
        self._watched.monitor(None, 0)
        self.socket.close(0)
        for tcp in self._connections.values():
            tcp.close()
        self._connections.clear()

    def _read(self) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = []
        try:
            while len(events) < EVENTS_PER_TURN:
                event, value = _EVENT.unpack(self.socket.recv_multipart(zmq.NOBLOCK)[0])
                events.append((event, value))
        except zmq.Again:
            pass
        return events

    def _watch(self, descriptor: int) -> None:
        if len(self._connections) >= MAX_WATCHED:
            return
        try:
            tcp = duplicate(descriptor)
        except OSError:
            # Gone already, or no descriptor is left: this one cannot be told about.
            return
        if tcp.getsockname()[1] == port_of(self._watched):
            self._connections[descriptor] = tcp
        else:
            # Gone already, and its descriptor is that of a connection at another door.
            tcp.close()

    def _on_end(self, descriptor: int) -> None:
        tcp = self._connections.pop(descriptor, None)
        if tcp is None:
            return
        with tcp:
            cut = not self._no_handshake and is_established(tcp)
            host = tcp.getpeername()[0] if cut else ""
        if cut:
            self._on_cut(host)
