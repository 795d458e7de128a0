"""The shared inq: where every app plugin puts what it accepted."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from threatbus.errors import Overflow, Rejected
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
        self._closed = False
        # Guards the counter below.
        self._lock = threading.Lock()
        self._accepted = 0

    def attach(self, queue: MessageQueue) -> None:
        """Let `queue` have every message from now on; called by the bus before sources start."""
        self._queues = (*self._queues, queue)

    @property
    def accepted(self) -> int:
        """How many messages have been accepted."""
        return self._accepted

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
        if self._closed:
            raise Overflow("the bus is stopping and takes no more messages")
        ids = self._ids
        for message in batch:
            # A message that comes back through a foreign plugin is a new one, with a new id.
            message.id = next(ids)
        with self._lock:
            self._accepted += len(batch)
        size = size_of(batch)
        for queue in self._queues:
            queue.put_many(batch, size)

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002
        """Accept one stix2 object, snapshot data class or message.

        Anything else is rejected: logged, counted and kept in the reject store.
        """
        try:
            message = Message.from_object(item)
        except Rejected as error:
            self._rejects.add("inq", error.reason, repr(item).encode(errors="replace"))
            return
        try:
            self.put_many([Message(message.topic, message.data)])
        except Overflow as error:
            # A plugin of the old kind does not expect its queue to refuse.
            logger.warning("a message is not taken: %s", error)

    def put_nowait(self, item: object) -> None:
        """Do what `put` does."""
        self.put(item)

    def close(self) -> None:
        """Take no more; sources that wait at the gate are let through to hear so. Idempotent."""
        self._closed = True
        self.gate.retire()

    def qsize(self) -> int:
        """Give the largest number of messages that waits for a backbone."""
        return max((queue.qsize() for queue in self._queues), default=0)

    def empty(self) -> bool:
        """Say whether every backbone has taken every message."""
        return all(queue.empty() for queue in self._queues)

    def full(self) -> bool:
        """Say whether sources have to wait."""
        return not self.gate.is_open

    def task_done(self) -> None:
        """Do nothing; here because a `queue.Queue` has it."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every backbone has dealt with what it was given."""
        return all([queue.join(timeout) for queue in self._queues])
