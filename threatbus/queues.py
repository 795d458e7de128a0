"""The one queue of the bus: inq and every outq are a `MessageQueue`.

Bounded in messages and bytes, handed over in batches, with counters and with what a foreign
plugin expects of a `queue.Queue`. Two faces: `put_many`/`get_many` carry messages, `put`/`get`
carry plain stix2 objects and data classes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

from threatbus.errors import Overflow
from threatbus.logger import RateLimited
from threatbus.messages import Message

if TYPE_CHECKING:
    from threatbus.gate import Gate
    from threatbus.messages import PlainObject

logger = logging.getLogger("threatbus.queues")

#: Bytes after which a batch ends, so that few large messages are not handed over as one lump.
BATCH_BYTES = 1024 * 1024

#: What a waiting message costs besides its bytes: two object headers, its id, its slot.
MESSAGE_OVERHEAD_BYTES = 130


#: Seconds after which a queue times another message: often enough, and no burden to a quick one.
TIMING_SECS = 0.01


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
    lag_seconds: float = 0.0
    """How long a message has waited that is still there: the oldest, or one not much newer."""


class Stopwatch(Protocol):
    """Knows when a message was accepted, and hears how long it took until it was taken."""

    def started(self, message_id: int | str) -> float | None:
        """Give the monotonic time at which a message was accepted, if it is known."""

    def stopped(self, started: float) -> None:
        """Note that a message that was accepted at `started` has been taken just now."""


Consumer: TypeAlias = Callable[[Sequence[Message], int], None]
"""Takes a batch, and what `size_of` it gives."""


def size_of(batch: Sequence[Message]) -> int:
    """Give the bytes that `batch` counts for in a queue."""
    return sum([len(message.data) for message in batch]) + MESSAGE_OVERHEAD_BYTES * len(batch)


class MessageQueue:
    """A bounded FIFO of messages between threads.

    `name` is for logs and counters, `label` (by default the same) what monitoring calls it and
    others like it. `on_ready` is called, in the thread that puts, when the
    queue was empty and no longer is: a publisher that also waits on sockets is woken by it.
    `on_overflow` is called once, in the thread that puts, when the policy `DISCONNECT` has closed
    the queue. Both are called while a backbone delivers and may hold locks of its own, so they
    take a note, wake somebody, and return. With the policy `BLOCK` the full queue keeps `gate`
    shut.
    """

    def __init__(
        self,
        name: str,
        bounds: Bounds | None = None,
        policy: OverflowPolicy = OverflowPolicy.DISCONNECT,
        *,
        label: str | None = None,
        gate: Gate | None = None,
        on_ready: Callable[[], None] | None = None,
        on_overflow: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.label = name if label is None else label
        self.bounds = bounds or Bounds()
        self.policy = policy
        self._gate = gate if policy is OverflowPolicy.BLOCK else None
        self._on_ready = [on_ready] if on_ready is not None else []
        self._on_overflow = [on_overflow] if on_overflow is not None else []
        self._log = RateLimited(logger)
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
        # Callers that wait in get() and in join(): to notify nobody costs, too.
        self._getters = 0
        self._joiners = 0
        self._closed = False
        # Set by consume(): batches go straight to it instead of into the deque.
        self._consumer: Consumer | None = None
        # Set by time_with(). One message at a time is followed: its id, and how many are before it
        # plus itself, 0 while none is. If it is timed, too, since when; when the next one may be.
        self._stopwatch: Stopwatch | None = None
        self._timed_id: int | str = 0
        self._timed_place = 0
        self._timed_since = 0.0
        self._next_timing = 0.0

    # Messages in batches: how the parts of the bus talk to each other.

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Append `batch`, in order. Never blocks; a closed queue takes nothing and says nothing.

        `size` is `size_of(batch)`, for callers that hand one batch to several queues.
        """
        if not batch:
            return
        if size is None:
            size = size_of(batch)
        full = became_ready = False
        with self._lock:
            if self._closed:
                self._dropped += len(batch)
                return
            consumer = self._consumer
            if consumer is not None:
                self._put += len(batch)
            else:
                if self._exceeds(len(batch), size):
                    full = self.policy is not OverflowPolicy.BLOCK
                    batch, size = self._make_room(batch, size)
                if batch:
                    became_ready = not self._messages
                    self._messages.extend(batch)
                    self._bytes += size
                    self._put += len(batch)
                    self._unfinished += len(batch)
                    self._high_water = max(self._high_water, len(self._messages))
                    if self._stopwatch is not None and not self._timed_place:
                        self._begin_timing(self._stopwatch, batch)
                    if self._getters:
                        self._filled.notify(len(batch))
                # Inside the lock: whoever takes the last message opens the gate after this.
                if self._gate is not None and self._is_full():
                    full = self._gate.shut(self)
        if consumer is not None:
            consumer(batch, size)
            return
        if full:
            self._tell_full()
        if became_ready:
            for callback in self._on_ready:
                self._call(callback)

    def get_many(
        self, limit: int, timeout: float | None = 0, *, finish: bool = True
    ) -> list[Message]:
        """Take up to `limit` messages: what is there, else the first to come in `timeout` seconds.

        Empty when the time is over or the queue is closed. `timeout` None waits for ever. With
        `finish` False they count as unfinished until the caller says `task_done`.
        """
        return self.get_sized(limit, timeout, finish=finish)[0]

    def get_sized(
        self, limit: int, timeout: float | None = 0, *, finish: bool = True
    ) -> tuple[list[Message], int]:
        """Do what `get_many` does, and give `size_of` the batch too, which is mostly known here."""
        with self._lock:
            if not self._messages and timeout != 0:
                self._wait_filled(timeout)
            batch, size = self._take(limit)
            if finish:
                self._finish(len(batch))
            timed = self._timed_place and self._end_timing(len(batch))
            opened = self._gate is not None and self._open_gate()
        if timed and self._stopwatch is not None:
            self._stopwatch.stopped(timed)
        if opened:
            self._announce()
        return batch, size

    def consume(self, consumer: Consumer) -> None:
        """Have every batch handed to `consumer` in the thread that puts it, with no thread between.

        For a backbone that has nothing to wait for. What is in the queue already goes first.
        """
        while True:
            with self._lock:
                waiting = list(self._messages)
                self._clear()
                # Only once nothing waits: what is put meanwhile must not overtake.
                if not waiting:
                    self._consumer = consumer
                opened = self._gate is not None and self._open_gate()
            if opened:
                self._announce()
            if not waiting:
                return
            consumer(waiting, size_of(waiting))

    def close(self) -> None:
        """Let go of all messages and take no more; whoever waits in `get` wakes. Idempotent."""
        with self._lock:
            self._shut_down()
            opened = self._gate is not None and self._gate.open(self)
        if opened:
            self._announce()

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Have `callback` called as well when the queue was empty and no longer is."""
        self._on_ready.append(callback)

    def when_overflowed(self, callback: Callable[[], None]) -> None:
        """Have `callback` called as well when the policy `DISCONNECT` has closed the queue."""
        self._on_overflow.append(callback)

    def time_with(self, stopwatch: Stopwatch) -> None:
        """Have a message timed until it is taken, and another every `TIMING_SECS`."""
        self._stopwatch = stopwatch

    @property
    def given(self) -> int:
        """How many messages have been put since it was made."""
        return self._put

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
                lag_seconds=self._lag(),
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
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            batch = self.get_many(1, left if block else 0, finish=False)
            if not batch:
                raise queue.Empty
            try:
                return batch[0].to_object()
            # It is not the reader's fault, who would end its worker over it.
            except Exception:  # noqa: BLE001 (logged)
                self._log.log(
                    "object", logging.ERROR, "%s: a message is left out", self.name, exc_info=True
                )
                self.task_done()

    def get_nowait(self) -> PlainObject:
        """Take one message as a plain object, or raise `queue.Empty` at once."""
        return self.get(block=False)

    def put_nowait(self, item: object) -> None:
        """Do what `put` does, which never blocks."""
        self.put(item)

    def task_done(self, count: int = 1) -> None:
        """Say that `count` messages that were got have been dealt with; ValueError if too many."""
        with self._lock:
            if self._closed:
                # What waited was let go, and with it the count.
                count = min(count, self._unfinished)
            if self._unfinished - count < len(self._messages):
                raise ValueError("task_done() called more often than get()")
            self._finish(count)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all that was put has been dealt with, at most `timeout` seconds."""
        with self._all_done:
            self._joiners += 1
            try:
                return self._all_done.wait_for(
                    lambda: not self._unfinished or self._closed, timeout
                )
            finally:
                self._joiners -= 1

    @property
    def unfinished(self) -> int:
        """How many messages wait, or were got and are not dealt with."""
        return self._unfinished

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

    def _make_room(self, batch: Sequence[Message], size: int) -> tuple[Sequence[Message], int]:
        """Apply the policy to a batch that does not fit; give what is to be appended of it."""
        if self.policy is OverflowPolicy.BLOCK:
            return batch, size
        if self.policy is OverflowPolicy.DISCONNECT:
            self._dropped += len(batch)
            self._shut_down()
            return (), 0
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
        self._timed_place = 0
        while self._messages and self._exceeds(len(kept), kept_size):
            self._finish(len(self._take(1)[0]))
            self._dropped += 1
        return kept, kept_size

    def _take(self, limit: int) -> tuple[list[Message], int]:
        messages = self._messages
        if len(messages) <= limit:
            batch, size = list(messages), self._bytes
            messages.clear()
        else:
            batch = [messages.popleft() for _ in range(limit)]
            size = size_of(batch)
        if size > BATCH_BYTES and len(batch) > 1:
            size = self._put_back_excess(batch)
        self._bytes -= size
        return batch, size

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

    def _open_gate(self) -> bool:
        """Let sources go on if there is room again; say whether the gate has opened."""
        gate = self._gate
        return gate is not None and not gate.is_open and self._is_roomy() and gate.open(self)

    def _shut_down(self) -> None:
        self._closed = True
        self._dropped += len(self._messages)
        self._clear()
        self._filled.notify_all()
        self._all_done.notify_all()

    def _clear(self) -> None:
        self._finish(len(self._messages))
        self._messages.clear()
        self._bytes = 0
        self._timed_place = 0

    def _begin_timing(self, stopwatch: Stopwatch, batch: Sequence[Message]) -> None:
        """Follow the first of `batch`, which has just been appended; now and then time it."""
        self._timed_id = batch[0].id
        self._timed_place = len(self._messages) - len(batch) + 1
        self._timed_since = 0.0
        now = time.monotonic()
        if now >= self._next_timing:
            self._next_timing = now + TIMING_SECS
            self._timed_since = stopwatch.started(self._timed_id) or 0.0

    def _end_timing(self, taken: int) -> float:
        """Give since when the timed message was under way; 0 if none that was taken is timed."""
        self._timed_place = max(0, self._timed_place - taken)
        return 0.0 if self._timed_place else self._timed_since

    def _lag(self) -> float:
        if not self._timed_place or self._stopwatch is None:
            return 0.0
        since = self._timed_since or self._stopwatch.started(self._timed_id)
        return round(time.monotonic() - since, 3) if since else 0.0

    def _finish(self, count: int) -> None:
        self._unfinished -= count
        if self._joiners and not self._unfinished:
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

    # The rest is called without the lock.

    def _announce(self) -> None:
        if self._gate is not None:
            self._gate.announce()

    def _tell_full(self) -> None:
        """Log what the policy has done, and call back if it has closed the queue."""
        if self.policy is OverflowPolicy.BLOCK:
            self._log.log("full", logging.WARNING, "%s is full: sources wait", self.name)
        elif self.policy is OverflowPolicy.DROP_OLDEST:
            self._log.log(
                "full",
                logging.WARNING,
                "%s is full: the oldest messages make room (%d dropped so far)",
                self.name,
                self._dropped,
            )
        else:
            logger.error("%s was full and is closed: %d messages let go", self.name, self._dropped)
            for callback in self._on_overflow:
                self._call(callback)

    def _call(self, callback: Callable[[], None]) -> None:
        """Call back, and let no failure of the reader reach the one who puts."""
        try:
            callback()
        except Exception:  # noqa: BLE001 (logged)
            self._log.log(
                "callback", logging.ERROR, "a reader of %s failed", self.name, exc_info=True
            )
