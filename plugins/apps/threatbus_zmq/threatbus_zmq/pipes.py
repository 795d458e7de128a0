"""Bounds on what ZeroMQ itself holds in memory for one connection."""

from __future__ import annotations

from typing import Final

import zmq

#: Bytes that the pipe of one connection may hold, about.
PIPE_BYTES: Final = 8 * 1024 * 1024
#: The high-water mark for ordinary messages, and the least that it is lowered to.
MOST_MESSAGES: Final = 1000
LEAST_MESSAGES: Final = 8


class PipeLimit:
    """Adapts a socket's high-water mark, which counts messages, to how large they are.

    `option` is ``zmq.SNDHWM`` or ``zmq.RCVHWM``; libzmq applies it to existing connections too.
    Belongs to the thread that uses the socket.
    """

    def __init__(self, socket: zmq.Socket[bytes], option: int) -> None:
        self._socket = socket
        self._option = option
        # The high-water mark that is set: no pipe holds more messages than that after a send.
        self.mark = 0
        self._set(MOST_MESSAGES)

    def note(self, messages: int, size: int) -> None:
        """Adapt to a batch of `messages` with `size` bytes in all."""
        wanted = max(LEAST_MESSAGES, min(MOST_MESSAGES, PIPE_BYTES * messages // (size or 1)))
        if wanted < self.mark or wanted >= 2 * self.mark:
            self._set(wanted)

    def tighten(self) -> None:
        """Hold as little as possible: for a while in which nobody reads."""
        self._set(LEAST_MESSAGES)

    def _set(self, mark: int) -> None:
        if mark != self.mark:
            self._socket.setsockopt(self._option, mark)
            self.mark = mark
