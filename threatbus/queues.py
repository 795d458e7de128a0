"""The one queue of the bus: inq and every outq are a `MessageQueue`.

Bounded in messages and bytes, handed over in batches, with counters and with what a foreign
plugin expects of a `queue.Queue`. Two faces: `put_many`/`get_many` carry messages, `put`/`get`
carry plain stix2 objects and data classes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from threatbus.errors import Overflow
from threatbus.messages import Message

if TYPE_CHECKING:
    from threatbus.gate import Gate
    from threatbus.messages import PlainObject

#: Bytes after which a batch ends, so that few large messages are not handed over as one lump.
BATCH_BYTES = 1024 * 1024

#: What a waiting message costs besides its bytes: two object headers, its id, its slot.
MESSAGE_OVERHEAD_BYTES = 130


class OverflowPolicy(StrEnum):
    """What happens when a queue is full."""

    DISCONNECT = "disconnect"
    """The queue closes and lets go of what it holds: its subscription ends."""
    DROP_OLDEST = "drop_oldest"
    """The oldest messages make room for the new ones."""
    BLOCK = "block"
    """Sources wait until there is room; a batch that is on its way is still taken."""


@dataclass(frozen=True)
class Bounds:
    """How much a queue holds at most."""

    messages: int = 1_000_000
    bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True)
class QueueStats:
    """Counters of one queue at one moment; totals since it was made."""

    messages: int
    bytes: int
    high_water: int
    put: int
    dropped: int
    closed: bool


def size_of(batch: Sequence[Message]) -> int:
    """Give the bytes that `batch` counts for in a queue."""
    return sum([len(message.data) for message in batch]) + MESSAGE_OVERHEAD_BYTES * len(batch)


class MessageQueue:
    """A bounded FIFO of messages between threads.

    `name` is for logs and counters. `on_ready` is called, in the thread that puts, when the
    queue was empty and no longer is: a publisher that also waits on sockets is woken by it.
    `on_overflow` is called once, in the thread that puts, when the policy `DISCONNECT` has closed
    the queue. With the policy `BLOCK` the full queue keeps `gate` shut.
    """

    def __init__(
        self,
        name: str,
        bounds: Bounds | None = None,
        policy: OverflowPolicy = OverflowPolicy.DISCONNECT,
        *,
        gate: Gate | None = None,
        on_ready: Callable[[], None] | None = None,
        on_overflow: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.bounds = bounds or Bounds()
        self.policy = policy
        self._gate = gate
        self._on_ready = on_ready
        self._on_overflow = on_overflow
        # Guards everything below; get() waits on it for messages, join() for their completion.
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._high_water = 0
        self._put = 0
        self._dropped = 0
        self._unfinished = 0
        self._getters = 0
        self._closed = False
        # Set by consume(): batches go straight to it instead of into the deque.
        self._consumer: Callable[[Sequence[Message]], None] | None = None

    # Messages in batches: how the parts of the bus talk to each other.

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Append `batch`, in order. Never blocks; a closed queue takes nothing and says nothing.

        `size` is `size_of(batch)`, for callers that hand one batch to several queues.
        """
        if not batch:
            return
        if self._consumer is not None:
            self._hand_through(self._consumer, batch)
            return
        if size is None:
            size = size_of(batch)
        overflowed = False
        with self._lock:
            if self._closed:
                self._dropped += len(batch)
                return
            if self._exceeds(len(batch), size):
                batch, size, overflowed = self._make_room(batch, size)
            was_empty = not self._messages
            if batch:
                self._messages.extend(batch)
                self._bytes += size
                self._put += len(batch)
                self._unfinished += len(batch)
                self._high_water = max(self._high_water, len(self._messages))
                if self._getters:
                    self._filled.notify(len(batch))
            # Inside the lock: whoever takes the last message opens the gate after it was shut.
            if self._gate is not None and self._is_full():
                self._gate.shut(self)
        if overflowed and self._on_overflow is not None:
            self._on_overflow()
        elif was_empty and self._on_ready is not None:
            self._on_ready()

    def get_many(self, limit: int, timeout: float | None = 0) -> list[Message]:
        """Take up to `limit` messages: what is there, else the first to come in `timeout` seconds.

        Empty when the time is over or the queue is closed. `timeout` None waits for ever.
        """
        with self._lock:
            if not self._messages and timeout != 0:
                self._wait_filled(timeout)
            batch = self._take(limit)
            self._finish(len(batch))
        return batch

    def consume(self, consumer: Callable[[Sequence[Message]], None]) -> None:
        """Have every batch handed to `consumer` in the thread that puts it, with no thread between.

        For a backbone that has nothing to wait for. What is in the queue already goes first.
        """
        with self._lock:
            waiting = list(self._messages)
            self._clear()
            self._consumer = consumer
        if waiting:
            consumer(waiting)

    def close(self) -> None:
        """Let go of all messages and take no more; whoever waits in `get` wakes. Idempotent."""
        with self._lock:
            self._closed = True
            self._dropped += len(self._messages)
            self._clear()
            self._filled.notify_all()
            self._all_done.notify_all()
        if self._gate is not None:
            self._gate.open(self)

    @property
    def closed(self) -> bool:
        """Whether the queue has been closed, by its owner or by its policy."""
        return self._closed

    def stats(self) -> QueueStats:
        """Give the counters."""
        with self._lock:
            return QueueStats(
                messages=len(self._messages),
                bytes=self._bytes,
                high_water=self._high_water,
                put=self._put,
                dropped=self._dropped,
                closed=self._closed,
            )

    # Plain objects one by one: what a foreign plugin expects of a queue.

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002
        """Append one plain object or message; `Rejected` for anything else, `Overflow` if closed.

        `block` and `timeout` are accepted and have no effect: a full queue follows its policy.
        """
        if self._closed:
            raise Overflow(f"{self.name} is closed")
        self.put_many([Message.from_object(item)])

    def get(self, block: bool = True, timeout: float | None = None) -> PlainObject:
        """Take one message as a plain object; raises `queue.Empty` like `queue.Queue.get`."""
        with self._lock:
            if not self._messages and block:
                self._wait_filled(timeout)
            batch = self._take(1)
        if not batch:
            raise queue.Empty
        return batch[0].to_object()

    def get_nowait(self) -> PlainObject:
        """Take one message as a plain object, or raise `queue.Empty` at once."""
        return self.get(block=False)

    def put_nowait(self, item: object) -> None:
        """Do what `put` does, which never blocks."""
        self.put(item)

    def task_done(self) -> None:
        """Say that one message got with `get` has been dealt with; ValueError if too often."""
        with self._lock:
            if self._unfinished <= len(self._messages):
                raise ValueError("task_done() called more often than get()")
            self._finish(1)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all that was put has been dealt with, at most `timeout` seconds."""
        with self._all_done:
            return self._all_done.wait_for(lambda: not self._unfinished or self._closed, timeout)

    def qsize(self) -> int:
        """Give the number of waiting messages."""
        return len(self._messages)

    def empty(self) -> bool:
        """Say whether no message waits."""
        return not self._messages

    def full(self) -> bool:
        """Say whether a further message would exceed the bounds."""
        return self._is_full()

    # Inside; each of these requires holding the lock, unless it says otherwise.

    def _exceeds(self, messages: int, size: int) -> bool:
        return (
            len(self._messages) + messages > self.bounds.messages
            or self._bytes + size > self.bounds.bytes
        )

    def _is_full(self) -> bool:
        return len(self._messages) >= self.bounds.messages or self._bytes >= self.bounds.bytes

    def _make_room(
        self, batch: Sequence[Message], size: int
    ) -> tuple[Sequence[Message], int, bool]:
        """Apply the policy to a batch that does not fit; give what is to be appended of it."""
        if self.policy is OverflowPolicy.BLOCK:
            return batch, size, False
        if self.policy is OverflowPolicy.DISCONNECT:
            self._closed = True
            self._dropped += len(batch)
            self._dropped += len(self._messages)
            self._clear()
            self._filled.notify_all()
            self._all_done.notify_all()
            return (), 0, True
        # Of the batch itself only the newest part that fits is of use.
        kept: deque[Message] = deque()
        kept_size = 0
        for message in reversed(batch):
            cost = size_of((message,))
            if len(kept) >= self.bounds.messages or kept_size + cost > self.bounds.bytes:
                break
            kept.appendleft(message)
            kept_size += cost
        self._dropped += len(batch) - len(kept)
        while self._messages and self._exceeds(len(kept), kept_size):
            self._finish(len(self._take(1)))
            self._dropped += 1
        return kept, kept_size, False

    def _take(self, limit: int) -> list[Message]:
        messages = self._messages
        batch = [messages.popleft() for _ in range(min(limit, len(messages)))]
        size = size_of(batch)
        if size > BATCH_BYTES and len(batch) > 1:
            size = self._put_back_excess(batch)
        self._bytes -= size
        # Inside the lock, so that a put that shuts the gate again comes before or after.
        if self._gate is not None and not self._gate.is_open and self._is_roomy():
            self._gate.open(self)
        return batch

    def _put_back_excess(self, batch: list[Message]) -> int:
        """Shorten a batch with large messages; give the size of what is left of it."""
        size = kept = 0
        for message in batch:
            size += size_of((message,))
            kept += 1
            if size > BATCH_BYTES:
                break
        self._messages.extendleft(reversed(batch[kept:]))
        del batch[kept:]
        return size

    def _clear(self) -> None:
        self._finish(len(self._messages))
        self._messages.clear()
        self._bytes = 0

    def _finish(self, count: int) -> None:
        self._unfinished -= count
        if not self._unfinished:
            self._all_done.notify_all()

    def _is_roomy(self) -> bool:
        """Say whether a tenth is free: sources and reader shall not take turns over each one."""
        return (
            len(self._messages) <= self.bounds.messages * 0.9
            and self._bytes <= self.bounds.bytes * 0.9
        )

    def _wait_filled(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._getters += 1
        try:
            while not self._messages and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._filled.wait(left)
        finally:
            self._getters -= 1

    def _hand_through(
        self, consumer: Callable[[Sequence[Message]], None], batch: Sequence[Message]
    ) -> None:
        with self._lock:
            if self._closed:
                self._dropped += len(batch)
                return
            self._put += len(batch)
        consumer(batch)
