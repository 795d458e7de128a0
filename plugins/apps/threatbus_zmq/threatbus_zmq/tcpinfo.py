"""What the kernel knows of a TCP connection: ``struct tcp_info`` of Linux (linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

#: Milliseconds since the peer's machine last acknowledged anything.
_LAST_ACK: Final = (56, struct.Struct("=I"))
#: Bytes that it takes further; since Linux 5.4.
_WINDOW: Final = (228, struct.Struct("=I"))
_BYTES: Final = 232


class TcpInfo(NamedTuple):
    """How the peer's machine fares; what the kernel does not tell is 0."""

    silent_secs: float
    window: int


def tcp_info(tcp: socket.socket) -> TcpInfo:
    """Give what the kernel knows; nothing but zeros of a connection that has ended."""
    try:
        answer = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
    except OSError:
        answer = b""
    answer = answer.ljust(_BYTES, b"\0")
    (silent_ms,), (window,) = (form.unpack_from(answer, at) for at, form in (_LAST_ACK, _WINDOW))
    return TcpInfo(silent_ms / 1000, window)
