"""The batches that passed last: references, nothing decoded, bounded in messages and bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from threatbus.messages import Message
from threatbus.queues import size_of

#: Subscribers that one batch remembers by name; of further ones it remembers how many.
MAX_NAMED: Final = 50
#: Bytes that a batch, and a named subscriber of it, take beside the messages.
PASSAGE_BYTES: Final = 400
NAMED_BYTES: Final = 100


class Passage(msgspec.Struct, eq=False):
    """One batch on its way; of a batch that is parted by topic there are several."""

    first: int
    """How many messages had been recorded before its first one: grows, and never comes again."""
    at: float
    """Monotonic time."""
    plugin: str
    """Who put it on the bus; empty for a part, or a batch that a backbone has brought."""
    batch: Sequence[Message]
    size: int
    to: list[tuple[str, int]] = []
    """Outqs that have it, each with how many messages it had been given by then."""
    more: int = 0
    """How many outqs have it besides."""


class Ring:
    """What passed last. Recorded from any thread; readers get a copy of the references."""

    def __init__(self, messages: int, size: int) -> None:
        self.max_messages = messages
        self.max_bytes = size
        # Guards the fields below, but for what a passage says of its outqs.
        self._lock = threading.Lock()
        self._passages: deque[Passage] = deque()
        self._newest = Passage(0, 0.0, "", (), 0)
        self._messages = 0
        self._bytes = 0
        self._recorded = 0

    def accepted(self, batch: Sequence[Message], plugin: str, size: int, now: float) -> None:
        """Record that `plugin` has put `batch`, of `size` bytes, on the bus."""
        with self._lock:
            self._append(batch, plugin, size, now)

    def delivered(self, batch: Sequence[Message], outq: str, given: int) -> None:
        """Record that the queue `outq` has got `batch`, which made it `given` messages in all."""
        newest = self._newest
        if newest.batch is not batch:
            with self._lock:
                newest = self._append(batch, "", size_of(batch), time.monotonic())
        # Without the lock, since it is done for each outq: appending is one step.
        if len(newest.to) < MAX_NAMED:
            newest.to.append((outq, given))
        else:
            newest.more += 1

    def passages(self, since: int = 0) -> list[Passage]:
        """Give what is there, the oldest first, from the first that ends after number `since`."""
        with self._lock:
            if since >= self._recorded:
                return []
            found = list(self._passages)
        first = next(
            (n for n, each in enumerate(found) if each.first + len(each.batch) > since), len(found)
        )
        return found[first:]

    @property
    def recorded(self) -> int:
        """How many messages have been recorded since the start."""
        return self._recorded

    @property
    def messages(self) -> int:
        """How many messages are there; at most `max_messages`."""
        return self._messages

    @property
    def bytes(self) -> int:
        """How many bytes they keep in memory; at most `max_bytes`."""
        return self._bytes

    def _append(self, batch: Sequence[Message], plugin: str, size: int, now: float) -> Passage:
        """Append a passage and let go of the oldest ones. Requires holding the lock.

        It is charged for as many outqs as the one before went to.
        """
        size += PASSAGE_BYTES + NAMED_BYTES * len(self._newest.to)
        passage = Passage(self._recorded, now, plugin, batch, size)
        self._newest = passage
        self._passages.append(passage)
        count = len(batch)
        self._recorded += count
        self._messages += count
        self._bytes += size
        while self._messages > self.max_messages or self._bytes > self.max_bytes:
            oldest = self._passages.popleft()
            self._messages -= len(oldest.batch)
            self._bytes -= oldest.size
        return passage
