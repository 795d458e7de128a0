"""The TCP connections behind a ZeroMQ socket.

ZeroMQ hides them, but some things can only be told or done there: whether two frames came over
the same connection, whether the peer has ended it, and how to get rid of one that misbehaves.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final, NamedTuple

import zmq

#: The state of a TCP connection that nobody has closed (first byte of TCP_INFO).
_ESTABLISHED: Final = 1
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class Connection(NamedTuple):
    """One connection: descriptors are used again, but not with the same peer's address."""

    descriptor: int
    host: str
    port: int


def source_of(frame: zmq.Frame, door: int) -> Connection | None:
    """Give the connection that `frame` came over; None if it is gone, or came from none.

    `door` is the port that the socket of `frame` is bound to. A frame knows the descriptor of its
    connection and its peer's host: once the connection is closed, whoever connects next may have
    the same descriptor. One at another door is told by its port, one of another host by that. One
    of the same host at the same door is not, so what is done to a source may meet a neighbour:
    only what a peer of that door can bear.
    """
    try:
        descriptor = int(frame.get(zmq.SRCFD))
        with duplicate(descriptor) as tcp:
            if tcp.getsockname()[1] != door:
                return None
            found = _peer_of(tcp, descriptor)
        # ZeroMQ names the zone of a link-local address, too.
        host = str(frame.get("Peer-Address")).partition("%")[0]
    except (zmq.ZMQError, ValueError, OSError):
        return None
    return found if found.host == host else None


def port_of(bound: zmq.Socket[bytes]) -> int:
    """Give the TCP port that a socket is bound to."""
    return int(bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def hang_up(found: Connection | None) -> None:
    """Break a connection, if it still stands. A ZeroMQ peer connects again by itself."""
    if found is None:
        return
    try:
        with duplicate(found.descriptor) as tcp:
            if _peer_of(tcp, found.descriptor) == found:
                tcp.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def is_established(tcp: socket.socket) -> bool:
    """Say whether neither the peer nor the network has ended a connection."""
    try:
        return tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == bytes((_ESTABLISHED,))
    except OSError:
        return False


def duplicate(descriptor: int) -> socket.socket:
    """Give a socket object for a connection that ZeroMQ owns, with a descriptor of its own.

    Raises `OSError` if ZeroMQ has closed it; the number may have passed on to anything.
    """
    own = os.dup(descriptor)
    try:
        found = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise
    if found.family not in _FAMILIES:
        found.close()
        raise OSError(errno.ENOTSOCK, "not a socket of TCP")
    return found


def _peer_of(tcp: socket.socket, descriptor: int) -> Connection:
    host, port = tcp.getpeername()[:2]
    return Connection(descriptor, host, port)
