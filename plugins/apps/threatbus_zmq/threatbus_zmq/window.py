"""What a subscriber gets again when its connection breaks.

What was in ZeroMQ's pipe and in kernel buffers is lost with the connection, and neither tells how
much that was: so what may have been there is remembered, and sent again when the SUB is back.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from threatbus.messages import Message
from threatbus_zmq.pipes import PIPE_BYTES, SEND_MARK

#: Bytes that may be under way between the pipe and the app: kernel buffers at both ends, of
#: which Linux lets the receiving one grow to 6 MiB. A proxy in between is not reckoned with.
UNDER_WAY_BYTES: Final = 8 * 1024 * 1024
#: Bytes that the window of one subscriber may hold in any case.
MAX_WINDOW_BYTES: Final = 64 * 1024 * 1024
#: Bytes of sent messages that are remembered together.
JOINED_BYTES: Final = 256 * 1024


class Window:
    """What was last handed to the socket for one subscriber, in case its connection breaks.

    Holds what can be in the pipe and in kernel buffers, besides the newest batch, which may have
    met no pipe at all. Only `MAX_WINDOW_BYTES` can make it hold less; what it then cannot cover
    is counted.
    """

    def __init__(self) -> None:
        # In the order they were sent: (messages, their bytes). Small batches are joined, since at
        # a low rate each would hold one message.
        self._batches: deque[tuple[list[Message], int]] = deque()
        self._messages = 0
        self._bytes = 0
        # The most bytes per message that a batch has had: what is in the pipe may be of these.
        self._largest = 0
        # Messages added since it was emptied, and how many of those had been added when one was
        # let go that may not have arrived.
        self._added = 0
        self._let_go_hot = 0
        # How many of the newest may be in the pipe, or be the batch that met none.
        self._hot = 0

    def add(self, batch: list[Message], size: int) -> None:
        """Take over `batch`, of `size` bytes, just sent; let go of what surely has arrived."""
        count = len(batch)
        if self._batches and self._batches[-1][1] + size <= JOINED_BYTES:
            joined, joined_size = self._batches[-1]
            joined += batch
            self._batches[-1] = (joined, joined_size + size)
        else:
            self._batches.append((batch, size))
        self._messages += count
        self._bytes += size
        self._added += count
        self._hot = SEND_MARK + count
        self._largest = max(self._largest, -(-size // count))
        # The pipe is bounded in messages and in bytes; the batch that exceeds the latter and the
        # newest one come on top.
        in_pipe = min(SEND_MARK * self._largest, 2 * PIPE_BYTES)
        needed = UNDER_WAY_BYTES + in_pipe + size
        while len(self._batches) > 1:
            oldest, oldest_size = self._batches[0]
            rest_messages = self._messages - len(oldest)
            rest_bytes = self._bytes - oldest_size
            if rest_bytes < needed:
                if self._bytes <= MAX_WINDOW_BYTES:
                    return
                self._let_go_hot = self._added - rest_messages
            self._batches.popleft()
            self._messages, self._bytes = rest_messages, rest_bytes

    def take_all(self) -> tuple[list[list[Message]], int]:
        """Empty the window: gives its batches, and how many that may be lost it cannot give."""
        batches = [batch for batch, _ in self._batches]
        given_from = self._added - self._messages
        uncovered = min(self._let_go_hot, given_from) - max(0, self._added - self._hot)
        self._batches.clear()
        self._messages = self._bytes = self._largest = 0
        self._added = self._let_go_hot = self._hot = 0
        return batches, max(0, uncovered)
