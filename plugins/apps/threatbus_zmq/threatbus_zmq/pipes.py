"""Bounds on what ZeroMQ itself holds in memory for one connection.

Its high-water marks count messages, however large they are, and must not be changed while
connections stand: each end of a pipe hears of the other's progress only every half a mark, so
that after a change both can wait for ever. Hence fixed marks, and a look at the kernel's buffer
before large messages are sent.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Iterable
from typing import Final

from threatbus_zmq.connections import Connection, stands

#: Messages that the pipe to one subscriber may hold.
SEND_MARK: Final = 1000
#: Messages that the pipe from one publisher may hold: few, since each may be as large as a frame
#: can be, and TCP holds up the publisher as soon as it is full; with fewer still, the loop and
#: ZeroMQ's threads wait for each other (measured beside the forwarder: 100 cost a quarter).
RECEIVE_MARK: Final = 256
#: Bytes that the pipe to one subscriber may hold, but for the batch that exceeds them.
PIPE_BYTES: Final = 8 * 1024 * 1024
#: Bytes of the kernel's send buffer; few, as what is in it is lost when a connection breaks.
SEND_BUFFER_BYTES: Final = 128 * 1024


class Outflow:
    """Bounds the bytes in the pipe to one subscriber. Belongs to the loop.

    ZeroMQ does not tell how full a pipe is, but it fills the kernel's buffer from it whenever
    there is room. So when that is not full, the pipe is empty.
    """

    def __init__(self) -> None:
        # Bytes of large messages sent since the pipe was last seen empty.
        self._unseen = 0

    def admits(self, messages: int, size: int, connections: Iterable[Connection | None]) -> bool:
        """Say whether `messages` with `size` bytes in all may be sent over `connections` now."""
        if size <= messages * (PIPE_BYTES // SEND_MARK):
            # The mark bounds them.
            return True
        if self._unseen >= PIPE_BYTES:
            if not all(map(_has_room, connections)):
                return False
            self._unseen = 0
        self._unseen += size
        return True


def _has_room(connection: Connection | None) -> bool:
    """Say whether the kernel's send buffer is half empty; True for a connection that is gone."""
    if connection is None or not stands(connection):
        return True
    try:
        answer = fcntl.ioctl(connection.descriptor, termios.TIOCOUTQ, b"\0" * 4)
    except OSError:
        return True
    (unsent,) = struct.unpack("i", answer)
    return bool(unsent < SEND_BUFFER_BYTES // 2)
