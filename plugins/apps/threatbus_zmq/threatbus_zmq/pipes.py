"""Bounds on what ZeroMQ itself holds in memory for one connection."""

from __future__ import annotations

from typing import Final

import zmq

#: Bytes that the pipe of one connection may hold, about.
PIPE_BYTES: Final = 8 * 1024 * 1024
#: The high-water mark for ordinary messages.
MOST_MESSAGES: Final = 1000


class PipeLimit:
    """Adapts a socket's high-water mark, which counts messages, to how large they are.

    `option` is ``zmq.SNDHWM`` or ``zmq.RCVHWM``; libzmq applies it to existing connections too.
    Belongs to the thread that uses the socket. The mark is never lowered below `least`.

    The mark of a receiving socket is only ever lowered. A writer that met a full pipe waits for
    word from the reader, which gives it after every half a mark of messages: were the mark raised
    meanwhile, the rest of the pipe could be less than that, and the writer would wait for ever.
    A sending socket is safe, since here the writer never writes into a full pipe.
    """

    def __init__(self, socket: zmq.Socket[bytes], option: int, least: int) -> None:
        self._socket = socket
        self._option = option
        self._least = least
        self._may_rise = option == zmq.SNDHWM
        # The high-water mark that is set: no pipe holds more messages than that after a send.
        self.mark = 0
        self._set(MOST_MESSAGES)

    def note(self, messages: int, size: int) -> None:
        """Adapt to a batch of `messages` with `size` bytes in all."""
        wanted = max(self._least, min(MOST_MESSAGES, PIPE_BYTES * messages // (size or 1)))
        if wanted < self.mark or (self._may_rise and wanted >= 2 * self.mark):
            self._set(wanted)

    def _set(self, mark: int) -> None:
        self._socket.setsockopt(self._option, mark)
        self.mark = mark
