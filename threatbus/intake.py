"""The shared inq: where every app plugin puts what it accepted."""

from __future__ import annotations

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
    from threatbus.observe.observer import PluginRecord
    from threatbus.rejects import RejectStore

logger = logging.getLogger("threatbus.intake")


class Acceptance:
    """What the intakes of all plugins have in common: the ids, the inqs, and the end."""

    def __init__(self) -> None:
        self.queues: tuple[MessageQueue, ...] = ()
        self._log = RateLimited(logger)
        # Guards the fields below; close() waits until nothing is under way.
        self._lock = threading.Lock()
        self._handed_on = threading.Condition(self._lock)
        self.closed = False
        # Also the id of the newest message: they grow in the order of acceptance.
        self.accepted = 0
        # Calls of take() that are handing on what they accepted.
        self._under_way = 0
        self.refused = 0

    def take(self, batch: Sequence[Message], record: PluginRecord | None) -> None:
        """Give each message its id and hand all to every inq; `Overflow` after `close`."""
        size = size_of(batch)
        with self._lock:
            if self.closed:
                self.refused += len(batch)
                raise Overflow("the bus is stopping and takes no more messages")
            first_id = self.accepted + 1
            self.accepted += len(batch)
            self._under_way += 1
            if record is not None:
                record.accepted(batch, first_id, size)
        try:
            for number, message in enumerate(batch, first_id):
                message.id = number
            for inq in self.queues:
                self._hand_over(inq, batch, size)
        finally:
            self._end_of_take()

    def close(self, retire: Callable[[], None], timeout: float | None) -> None:
        """Take no more, then `retire` the gate; waits until all that was accepted is on its way."""
        with self._handed_on:
            self.closed = True
            retire()
            self._handed_on.wait_for(lambda: not self._under_way, timeout)

    def _end_of_take(self) -> None:
        with self._lock:
            self._under_way -= 1
            if self.closed:
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


class Intake:
    """Gives each message its id and hands it to the inq of every backbone.

    With several backbones each of them sees every message. Sources that may wait call `put_many`
    or `put`, which block while `gate` is shut; event loops must not wait: they ask `writable`
    before they read from their sockets, then call ``put_many(batch, wait=False)``.

    Each app plugin has one of its own (`of_plugin`), by which it is told who put what.
    """

    def __init__(
        self,
        gate: Gate,
        rejects: RejectStore,
        acceptance: Acceptance | None = None,
        record: PluginRecord | None = None,
    ) -> None:
        self.gate = gate
        self._rejects = rejects
        self._acceptance = acceptance or Acceptance()
        self._record = record
        self._log = RateLimited(logger)

    def of_plugin(self, record: PluginRecord) -> Intake:
        """Make another way to the same inqs, for one plugin."""
        return Intake(self.gate, self._rejects, self._acceptance, record)

    def attach(self, inq: MessageQueue) -> None:
        """Let `inq` have every message from now on; called by the bus before sources start."""
        self._acceptance.queues = (*self._acceptance.queues, inq)

    @property
    def accepted(self) -> int:
        """How many messages have been accepted, whoever put them."""
        return self._acceptance.accepted

    @property
    def refused(self) -> int:
        """How many messages came when the bus was stopping and took no more."""
        return self._acceptance.refused

    @property
    def writable(self) -> bool:
        """Whether an event loop may read more from its sources now."""
        return self.gate.is_open and not self._acceptance.closed

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from any thread, when `writable` becomes true again."""
        self.gate.on_open(callback)

    def put_many(self, batch: Sequence[Message], *, wait: bool = True) -> None:
        """Accept `batch`, in order. With `wait`, blocks while something behind is full.

        The bus keeps `batch` for a while; nobody changes it from now on. Raises `Overflow` when
        the bus takes nothing any more, because it is stopping.
        """
        if wait:
            self.gate.wait()
        self._acceptance.take(batch, self._record)

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
        self._acceptance.close(self.gate.retire, timeout)

    def qsize(self) -> int:
        """Give the largest number of messages that waits for a backbone."""
        return max((inq.qsize() for inq in self._acceptance.queues), default=0)

    def empty(self) -> bool:
        """Say whether every backbone has taken every message."""
        return all(inq.empty() for inq in self._acceptance.queues)

    def full(self) -> bool:
        """Say whether sources have to wait."""
        return not self.gate.is_open

    def task_done(self) -> None:
        """Do nothing; here because a `queue.Queue` has it."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every backbone has dealt with what it was given."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for inq in self._acceptance.queues:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not inq.join(left):
                return False
        return True


def _shown(item: object) -> bytes:
    """Give what the operator gets to see of something that is no message."""
    try:
        return repr(item).encode(errors="backslashreplace")
    except Exception:  # noqa: BLE001 (it is the item's own code)
        return f"a {type(item).__name__} that cannot be shown".encode()
