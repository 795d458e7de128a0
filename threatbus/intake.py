"""The shared inq: where every app plugin puts what it accepted."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from threatbus.errors import Overflow, Rejected
from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.queues import MessageQueue, size_of

if TYPE_CHECKING:
    from threatbus.gate import Gate
    from threatbus.rejects import RejectStore

logger = logging.getLogger("threatbus.intake")


class Intake:
    """Gives each message its id and hands it to the inq of every backbone.

    With several backbones each of them sees every message. Sources that may wait call `put_many`
    or `put`, which block while `gate` is shut; event loops must not wait: they ask `writable`
    before they read from their sockets, then call ``put_many(batch, wait=False)``.
    """

    def __init__(self, gate: Gate, rejects: RejectStore) -> None:
        self.gate = gate
        self._rejects = rejects
        self._queues: tuple[MessageQueue, ...] = ()
        # next() on it is atomic: ids are unique and grow in the order of acceptance.
        self._ids = itertools.count(1)
        self._log = RateLimited(logger)
        # Guards the fields below; close() waits until nothing is under way.
        self._lock = threading.Lock()
        self._handed_on = threading.Condition(self._lock)
        self._closed = False
        self._accepted = 0
        # Calls of put_many that are handing on what they accepted.
        self._under_way = 0
        self._refused = 0

    def attach(self, inq: MessageQueue) -> None:
        """Let `inq` have every message from now on; called by the bus before sources start."""
        self._queues = (*self._queues, inq)

    @property
    def accepted(self) -> int:
        """How many messages have been accepted."""
        return self._accepted

    @property
    def refused(self) -> int:
        """How many messages came when the bus was stopping and took no more."""
        return self._refused

    @property
    def writable(self) -> bool:
        """Whether an event loop may read more from its sources now."""
        return self.gate.is_open and not self._closed

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from any thread, when `writable` becomes true again."""
        self.gate.on_open(callback)

    def put_many(self, batch: Sequence[Message], *, wait: bool = True) -> None:
        """Accept `batch`, in order. With `wait`, blocks while something behind is full.

        Raises `Overflow` when the bus takes nothing any more, because it is stopping.
        """
        if wait:
            self.gate.wait()
        with self._lock:
            if self._closed:
                self._refused += len(batch)
                raise Overflow("the bus is stopping and takes no more messages")
            self._accepted += len(batch)
            self._under_way += 1
        try:
            ids = self._ids
            for message in batch:
                message.id = next(ids)
            size = size_of(batch)
            for inq in self._queues:
                self._hand_over(inq, batch, size)
        finally:
            self._end_of_put()

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Accept one stix2 object, snapshot data class or message; `queue.Full` as a queue has it.

        Anything else is rejected: logged, counted and kept in the reject store.
        """
        try:
            message = Message.from_object(item)
        except Rejected as error:
            self._rejects.add("inq", error.reason, _shown(item))
            return
        if not self.gate.wait(timeout if block else 0):
            raise queue.Full
        try:
            # A copy: what comes back through a foreign plugin is a new message, with a new id.
            self.put_many([Message(message.topic, message.data)], wait=False)
        except Overflow as error:
            # A plugin of the old kind does not expect its queue to refuse for good.
            self._log.log("closed", logging.WARNING, "a message is not taken: %s", error)

    def put_nowait(self, item: object) -> None:
        """Do what `put` does, but raise `queue.Full` instead of waiting."""
        self.put(item, block=False)

    def close(self, timeout: float | None = None) -> None:
        """Take no more; sources that wait at the gate are let through to hear so. Idempotent.

        On return all that was accepted is on its way, unless that took longer than `timeout`.
        """
        with self._handed_on:
            self._closed = True
            self.gate.retire()
            self._handed_on.wait_for(lambda: not self._under_way, timeout)

    def qsize(self) -> int:
        """Give the largest number of messages that waits for a backbone."""
        return max((inq.qsize() for inq in self._queues), default=0)

    def empty(self) -> bool:
        """Say whether every backbone has taken every message."""
        return all(inq.empty() for inq in self._queues)

    def full(self) -> bool:
        """Say whether sources have to wait."""
        return not self.gate.is_open

    def task_done(self) -> None:
        """Do nothing; here because a `queue.Queue` has it."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every backbone has dealt with what it was given."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for inq in self._queues:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not inq.join(left):
                return False
        return True

    def _end_of_put(self) -> None:
        with self._lock:
            self._under_way -= 1
            if self._closed:
                self._handed_on.notify_all()

    def _hand_over(self, inq: MessageQueue, batch: Sequence[Message], size: int) -> None:
        try:
            inq.put_many(batch, size)
        # A backbone that takes messages in this thread must cost the others nothing.
        except Exception:  # noqa: BLE001 (logged)
            self._log.log(
                inq.name,
                logging.ERROR,
                "%d messages lost by %s",
                len(batch),
                inq.name,
                exc_info=True,
            )


def _shown(item: object) -> bytes:
    """Give what the operator gets to see of something that is no message."""
    try:
        return repr(item).encode(errors="backslashreplace")
    except Exception:  # noqa: BLE001 (it is the item's own code)
        return f"a {type(item).__name__} that cannot be shown".encode()
