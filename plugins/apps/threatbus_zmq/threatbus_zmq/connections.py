"""The TCP connections behind a ZeroMQ socket.

ZeroMQ hides them, but some things can only be told or done there: whether two frames came over
the same connection, whether it still stands, and how to get rid of a peer that misbehaves.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import zmq

#: The state of a TCP connection that nobody has closed (first byte of TCP_INFO).
_ESTABLISHED: Final = 1


class Connection(NamedTuple):
    """One connection: descriptors are used again, but not with the same peer's address."""

    descriptor: int
    host: str
    port: int


def source_of(frame: zmq.Frame, door: int) -> Connection | None:
    """Give the connection that `frame` came over; None if it is gone, or came from none.

    `door` is the port that the socket of `frame` is bound to. A frame knows the descriptor of its
    connection alone: once that is closed, whoever connects next may have the same one, at this
    door or another. One at another door is told by its port. One at the same door is not, so what
    is done to a source may meet a neighbour: only what a peer of that door can bear.
    """
    try:
        descriptor = int(frame.get(zmq.SRCFD))
        with _borrowed(descriptor) as tcp:
            if tcp.getsockname()[1] != door:
                return None
            host, port = tcp.getpeername()[:2]
    except (zmq.ZMQError, ValueError, OSError):
        return None
    return Connection(descriptor, host, port)


def port_of(bound: zmq.Socket[bytes]) -> int:
    """Give the TCP port that a socket is bound to."""
    return int(bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def connection(descriptor: int) -> Connection | None:
    """Give the connection behind a descriptor of ZeroMQ's; None if there is none any more."""
    try:
        with _borrowed(descriptor) as tcp:
            host, port = tcp.getpeername()[:2]
    except OSError:
        return None
    return Connection(descriptor, host, port)


def stands(found: Connection) -> bool:
    """Say whether a connection still stands."""
    return connection(found.descriptor) == found


def hang_up(found: Connection | None) -> None:
    """Break a connection, if it still stands. A ZeroMQ peer connects again by itself."""
    if found is None or not stands(found):
        return
    try:
        with _borrowed(found.descriptor) as tcp:
            tcp.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def is_established(tcp: socket.socket) -> bool:
    """Say whether neither the peer nor the network has ended a connection."""
    try:
        return tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == bytes((_ESTABLISHED,))
    except OSError:
        return False


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Give a socket object for a descriptor that ZeroMQ owns and goes on to own."""
    with socket.socket(fileno=os.dup(descriptor)) as tcp:
        yield tcp
