"""The batches that passed last: references, nothing decoded, bounded in messages and bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from threatbus.messages import Message
from threatbus.queues import size_of

#: Subscribers that one batch remembers by name; of further ones it remembers how many.
MAX_NAMED: Final = 50
#: Bytes that a batch, and a named subscriber of it, take beside the messages.
PASSAGE_BYTES: Final = 400
NAMED_BYTES: Final = 100


@dataclass(slots=True, eq=False)
class Passage:
    """One batch on its way; of a batch that is parted by topic there are several."""

    first: int
    """How many messages had been recorded before its first one: grows, and never comes again."""
    at: float
    """Monotonic time."""
    plugin: str
    """Who put it on the bus; empty for a part, or a batch that a backbone has brought."""
    batch: Sequence[Message]
    size: int
    to: list[tuple[str, int]] = field(default_factory=list)
    """Outqs that have it, each with how many messages it had been given by then."""
    more: int = 0
    """How many outqs have it besides."""


class Ring:
    """What passed last. Recorded from any thread; readers get a copy of the references."""

    def __init__(self, messages: int, size: int) -> None:
        self.max_messages = messages
        self.max_bytes = size
        # Guards the fields below.
        self._lock = threading.Lock()
        self._passages: deque[Passage] = deque()
        self._messages = 0
        self._bytes = 0
        self._recorded = 0

    def accepted(self, batch: Sequence[Message], plugin: str, size: int, now: float) -> None:
        """Record that `plugin` has put `batch`, of `size` bytes, on the bus."""
        with self._lock:
            self._append(Passage(self._recorded, now, plugin, batch, size + PASSAGE_BYTES))
            self._let_go()

    def delivered(self, batch: Sequence[Message], outq: str, given: int) -> None:
        """Record that the queue `outq` has got `batch`, which made it `given` messages in all."""
        with self._lock:
            newest = self._passages[-1] if self._passages else None
            if newest is None or newest.batch is not batch:
                size = size_of(batch) + PASSAGE_BYTES
                newest = Passage(self._recorded, time.monotonic(), "", batch, size)
                self._append(newest)
            if len(newest.to) < MAX_NAMED:
                newest.to.append((outq, given))
                newest.size += NAMED_BYTES
                self._bytes += NAMED_BYTES
            else:
                newest.more += 1
            self._let_go()

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

    # Inside, with the lock held.

    def _append(self, passage: Passage) -> None:
        self._passages.append(passage)
        self._messages += len(passage.batch)
        self._recorded += len(passage.batch)
        self._bytes += passage.size

    def _let_go(self) -> None:
        while self._messages > self.max_messages or self._bytes > self.max_bytes:
            oldest = self._passages.popleft()
            self._messages -= len(oldest.batch)
            self._bytes -= oldest.size
