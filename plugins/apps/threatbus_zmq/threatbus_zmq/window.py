"""What a subscriber gets again when its connection breaks.

What was in the kernels' buffers at both ends is lost with the connection, and what its SUB had
read, with the SUB: so what was last sent is remembered, and sent again when a SUB is back.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from threatbus.messages import Message
from threatbus.queues import MESSAGE_OVERHEAD_BYTES

#: Bytes of documents that are remembered at least: more than is in most kernels' buffers, and than
#: what a SUB has read before its app.
LEAST_BYTES: Final = 8 * 1024 * 1024
#: And at most, besides the newest batch.
MOST_BYTES: Final = 64 * 1024 * 1024
#: Bytes that the kernel at this end may hold.
SENDING_BYTES: Final = 1024 * 1024
#: Bytes of sent messages that are remembered together.
JOINED_BYTES: Final = 256 * 1024


class Window:
    """What was last sent to one subscriber: as much as may be under way, and the newest batch."""

    def __init__(self) -> None:
        # In the order they were sent: messages, and the bytes of their documents. Small batches
        # are joined, since at a low rate each would hold one message.
        self._batches: deque[tuple[list[Message], int]] = deque()
        self._bytes = 0
        # What `MOST_BYTES` has made it let go of although it may be under way: numbers of
        # messages, and their bytes.
        self._uncovered: deque[tuple[int, int]] = deque()
        self._uncovered_bytes = 0

    def add(self, batch: list[Message], size: int, receiving: int = 0) -> None:
        """Take over `batch`, of `size` bytes, just sent; let go of what surely has arrived.

        `receiving` is how many bytes the kernel at the other end may hold.
        """
        # The bytes of the documents: fewer than those on the wire.
        documents = size - MESSAGE_OVERHEAD_BYTES * len(batch)
        if self._batches and self._batches[-1][1] + documents <= JOINED_BYTES:
            joined, joined_bytes = self._batches[-1]
            joined += batch
            self._batches[-1] = (joined, joined_bytes + documents)
        else:
            self._batches.append((batch, documents))
        self._bytes += documents
        # The newest batch may not be under way at all yet.
        under_way = max(LEAST_BYTES, receiving + SENDING_BYTES) + documents
        needed = min(under_way, MOST_BYTES + documents)
        while len(self._batches) > 1 and self._bytes - self._batches[0][1] >= needed:
            oldest, oldest_bytes = self._batches.popleft()
            self._bytes -= oldest_bytes
            if self._bytes < under_way:
                self._uncovered.append((len(oldest), oldest_bytes))
                self._uncovered_bytes += oldest_bytes
        while self._uncovered and self._bytes + self._uncovered_bytes >= (
            under_way + self._uncovered[0][1]
        ):
            self._uncovered_bytes -= self._uncovered.popleft()[1]

    def take_all(self) -> tuple[list[list[Message]], int]:
        """Empty the window: gives its batches, and how many that may be lost it cannot give."""
        batches = [batch for batch, _ in self._batches]
        uncovered = sum(count for count, _ in self._uncovered)
        self._batches.clear()
        self._uncovered.clear()
        self._bytes = self._uncovered_bytes = 0
        return batches, uncovered
