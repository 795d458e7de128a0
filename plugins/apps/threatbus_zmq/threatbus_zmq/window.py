"""What a subscriber gets again when its connection breaks.

What was in the kernel's buffers at both ends is lost with the connection, and nobody tells how much
that was: so what may have been there is remembered, and sent again when the SUB is back.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from threatbus.messages import Message

#: Bytes that may be under way between this machine and the app: kernel buffers at both ends, of
#: which Linux lets the receiving one grow to 6 MiB. A proxy in between is not reckoned with.
UNDER_WAY_BYTES: Final = 8 * 1024 * 1024
#: Bytes of sent messages that are remembered together.
JOINED_BYTES: Final = 256 * 1024


class Window:
    """What was last sent to one subscriber, in case its connection breaks.

    Holds what can be in kernel buffers, besides the newest batch, which may not have got there.
    """

    def __init__(self) -> None:
        # In the order they were sent: (messages, their bytes). Small batches are joined, since at
        # a low rate each would hold one message.
        self._batches: deque[tuple[list[Message], int]] = deque()
        self._bytes = 0

    def add(self, batch: list[Message], size: int) -> None:
        """Take over `batch`, of `size` bytes, just sent; let go of what surely has arrived."""
        if self._batches and self._batches[-1][1] + size <= JOINED_BYTES:
            joined, joined_size = self._batches[-1]
            joined += batch
            self._batches[-1] = (joined, joined_size + size)
        else:
            self._batches.append((batch, size))
        self._bytes += size
        needed = UNDER_WAY_BYTES + size
        while len(self._batches) > 1 and self._bytes - self._batches[0][1] >= needed:
            self._bytes -= self._batches.popleft()[1]

    def take_all(self) -> list[list[Message]]:
        """Empty the window: gives its batches."""
        batches = [batch for batch, _ in self._batches]
        self._batches.clear()
        self._bytes = 0
        return batches
