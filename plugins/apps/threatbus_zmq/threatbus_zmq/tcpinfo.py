"""What the kernel knows of a TCP connection: ``struct tcp_info`` of Linux (linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

# Where each number stands, of four bytes.
#: Segments that the peer's machine has not acknowledged, and bytes that were not sent yet.
_UNACKED: Final = 24
_NOT_SENT: Final = 144
#: Milliseconds since it last acknowledged anything.
_LAST_ACK: Final = 56
#: Bytes that it takes further; since Linux 5.4.
_WINDOW: Final = 228
_BYTES: Final = 232
_NUMBER: Final = struct.Struct("=I")


class TcpInfo(NamedTuple):
    """How the peer's machine fares; what the kernel does not tell is 0."""

    waiting: bool
    """Whether it has not acknowledged everything that is to be sent to it."""
    silent_secs: float
    window: int


def tcp_info(tcp: socket.socket) -> TcpInfo:
    """Give what the kernel knows; nothing but zeros of a connection that has ended."""
    try:
        answer = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
    except OSError:
        answer = b""
    answer = answer.ljust(_BYTES, b"\0")
    unacked, not_sent, silent_ms, window = (
        _NUMBER.unpack_from(answer, at)[0] for at in (_UNACKED, _NOT_SENT, _LAST_ACK, _WINDOW)
    )
    return TcpInfo(bool(unacked or not_sent), silent_ms / 1000, window)
