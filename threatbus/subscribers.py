"""Who receives: one `Subscriber` around each queue that an app plugin subscribed.

It is what backbones hand messages to. In front of the queue it drops second copies when
several backbones are configured, and keeps an open snapshot from overwriting what is newer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from threatbus.errors import Rejected
from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.queues import MessageQueue

if TYPE_CHECKING:
    from threatbus.observe.observer import Outlet

logger = logging.getLogger("threatbus.subscribers")

#: Live objects that a subscriber's open snapshots remember; more than these end the snapshots.
MAX_REMEMBERED_OBJECTS = 200_000


class SeenIds:
    """Tells first copies from second ones, by message id, over the last `window` ids.

    A bit per id: numbers grow by one per message, so the ring is dense. An id that has left the
    window counts as new: at that distance a duplicate is better than a loss. Ids of other nodes
    (str) come through one backbone only and always count as new, and so does 0, the id of an
    object that a foreign backbone made anew.
    """

    def __init__(self, window: int = 1024 * 1024) -> None:
        self._window = window
        self._bits = bytearray(window // 8)
        self._newest = 0

    def first_copies(self, batch: Sequence[Message]) -> list[Message]:
        """Give those of `batch` that have not been seen, and remember them."""
        return [message for message in batch if self._is_new(message.id)]

    def _is_new(self, number: int | str) -> bool:
        if not isinstance(number, int) or number <= max(0, self._newest - self._window):
            return True
        if number > self._newest:
            self._forget(self._newest + 1, number)
            self._newest = number
        bits = self._bits
        position = number % self._window
        byte, bit = position >> 3, 1 << (position & 7)
        if bits[byte] & bit:
            return False
        bits[byte] |= bit
        return True

    def _forget(self, first: int, last: int) -> None:
        """Clear the bits that ids `first` to `last` take over from ids a window ago."""
        if last - first >= self._window:
            self._bits = bytearray(len(self._bits))
            return
        for number in range(first, last + 1):
            position = number % self._window
            self._bits[position >> 3] &= ~(1 << (position & 7)) & 0xFF


class _Version(msgspec.Struct):
    """What decides which of two states of one object is newer."""

    id: str
    modified: datetime | None = None


class SnapshotGuard:
    """Remembers what came live while snapshots are open, and drops older bodies."""

    def __init__(self, deadline: float) -> None:
        # Monotonic time at which the last open snapshot is forgotten.
        self.deadline = deadline
        # Object id -> newest `modified` that came live.
        self._live: dict[str, datetime] = {}
        # Whether too much came live to be remembered: then no body is let pass any more.
        self.exhausted = False
        self._decoder = msgspec.json.Decoder(_Version)

    def remember(self, batch: Iterable[Message]) -> None:
        """Note live messages."""
        if self.exhausted:
            return
        for message in batch:
            found = self._version(message)
            if found is None:
                continue
            object_id, modified = found
            known = self._live.get(object_id)
            if known is None or modified > known:
                self._live[object_id] = modified
        if len(self._live) > MAX_REMEMBERED_OBJECTS:
            self.exhausted = True
            self._live.clear()

    def lets_pass(self, body: Message) -> bool:
        """Say whether `body` is newer than what came live under its id, if anything did."""
        if self.exhausted:
            return False
        found = self._version(body)
        if found is None:
            return True
        object_id, modified = found
        known = self._live.get(object_id)
        return known is None or modified > known

    def _version(self, message: Message) -> tuple[str, datetime] | None:
        """Read id and time of a message; an object without `modified` is as of now."""
        try:
            version = self._decoder.decode(message.data)
        except msgspec.MsgspecError:
            return None
        modified = version.modified or datetime.now(UTC)
        return version.id, modified if modified.tzinfo else modified.replace(tzinfo=UTC)


class Subscriber:
    """One queue with its topics; `name` is how logs and counters call it.

    State: `topics` belongs to the thread that holds the bus's subscription lock; what `_lock`
    guards is touched by the backbones' threads and by snapshots.
    """

    def __init__(
        self,
        name: str,
        queue: MessageQueue,
        *,
        several_backbones: bool,
        outlet: Outlet | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.queue = queue
        # Where it is noted what the queue is given; called under the lock below.
        self.outlet = outlet
        self._clock = clock
        self.topics: set[str] = set()
        # Orders copies, live messages and snapshot bodies of this subscriber. Held while the queue
        # calls back, hence reentrant: a plugin may subscribe anew when its queue has overflowed.
        self._lock = threading.RLock()
        self._log = RateLimited(logger)
        self._seen = SeenIds() if several_backbones else None
        self._guard: SnapshotGuard | None = None
        # Snapshot bodies that were dropped because something newer had come live.
        self.outdated_bodies = 0

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Take live messages from a backbone."""
        with self._lock:
            if self._seen is not None:
                fresh = self._seen.first_copies(batch)
                if len(fresh) != len(batch):
                    batch, size = fresh, None
            if self._guard is not None:
                self._remember(self._guard, batch)
            self.queue.put_many(batch, size)
            if self.outlet is not None:
                self.outlet.passed(batch)

    def put(self, item: object) -> None:
        """Take one plain object from a backbone of the old kind."""
        try:
            message = Message.from_object(item)
        except Rejected as error:
            self._log.log("put", logging.WARNING, "not for %s: %s", self.name, error.reason)
            return
        self.put_many([message])

    def open_snapshot(self, deadline: float) -> None:
        """From now on keep snapshot bodies from overwriting what comes live, until `deadline`."""
        with self._lock:
            if self._guard is None:
                self._guard = SnapshotGuard(deadline)
            self._guard.deadline = max(self._guard.deadline, deadline)

    def close_snapshots(self) -> None:
        """Forget what was remembered for open snapshots."""
        with self._lock:
            self._guard = None

    def put_snapshot_body(self, body: Message, deadline: float) -> bool:
        """Take one object of a snapshot, unless something newer came live; say whether taken.

        Keeps the snapshot open until `deadline`. One that is over takes nothing: what has come
        live since its end is not known.
        """
        with self._lock:
            if self._guard is None:
                return False
            self._guard.deadline = max(self._guard.deadline, deadline)
            if not self._guard.lets_pass(body):
                self.outdated_bodies += 1
                if self.outlet is not None:
                    self.outlet.body_outdated()
                return False
            self.queue.put_many([body])
            if self.outlet is not None:
                self.outlet.passed_body(body)
            return True

    def _remember(self, guard: SnapshotGuard, batch: Sequence[Message]) -> None:
        if self._clock() > guard.deadline:
            self._guard = None
            return
        was_exhausted = guard.exhausted
        guard.remember(batch)
        if guard.exhausted and not was_exhausted:
            logger.warning(
                "snapshots of %s end early: more than %d objects came live meanwhile",
                self.name,
                MAX_REMEMBERED_OBJECTS,
            )

    def __repr__(self) -> str:
        return f"<subscriber {self.name}>"
