"""Queues that are none of ours: what plugins of the old kind subscribe, and who feeds them."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.queues import MessageQueue
from threatbus.workers import StoppableWorker

logger = logging.getLogger("threatbus.foreign")

#: Messages that a foreign queue holds before its feeder waits: each is a whole stix2 object.
FOREIGN_AHEAD = 10_000
#: Messages that a feeder takes at once.
FEED_BATCH = 500
#: Seconds after which a feeder looks again at a foreign queue that takes nothing.
FOREIGN_POLL_SECS = 0.05
#: Seconds in which a foreign queue that was unsubscribed gets what had come before.
FINISH_SECS = 10.0

# Ends a feeder when it comes to it; no such topic exists.
_END = Message("", b"")


class ForeignQueue(Protocol):
    """What a plugin of the old kind subscribes: a `queue.Queue` or `multiprocessing` queue."""

    def put(self, item: object, block: bool, timeout: float) -> None:
        """Append one plain object, or raise `queue.Full` after `timeout` seconds."""

    def qsize(self) -> int:
        """Give the number of waiting objects."""


class ForeignFeeder(StoppableWorker):
    """Moves messages from an outq to a queue of a foreign plugin, as plain objects.

    Started by the bus when such a queue subscribes. Blocks on the outq, which `stop` closes and
    `finish` ends, and on the foreign queue, for moments only: while that is full, or holds
    `FOREIGN_AHEAD` objects, the outq fills and follows its policy. A queue that refuses (closed
    by its plugin) ends the feeder.
    """

    def __init__(self, outq: MessageQueue, target: ForeignQueue, on_refused: Callable[[], None]):
        super().__init__(name=f"feeder of {outq.name}")
        self._outq = outq
        self._foreign = target
        self._on_refused = on_refused
        self._log = RateLimited(logger)
        # Set by finish(): monotonic time after which what is left is let go.
        self._finish_by: float | None = None

    @property
    def waiting(self) -> int:
        """How many messages the plugin has not taken yet."""
        return self._outq.unfinished + self._backlog()

    def run(self) -> None:
        """Feed until stopped, finished or refused."""
        try:
            while self._goes_on():
                if self._backlog() >= FOREIGN_AHEAD:
                    self._stop_asked.wait(FOREIGN_POLL_SECS)
                elif not self._feed(self._outq.get_many(FEED_BATCH, timeout=None, finish=False)):
                    return
        finally:
            self._outq.close()
            _forget_at_exit(self._foreign)

    def finish(self) -> None:
        """Let the plugin have what came before this, for `FINISH_SECS`, then end."""
        self._finish_by = time.monotonic() + FINISH_SECS
        self._outq.put_many([_END])

    def stop(self) -> None:
        """Ask the feeder to end and wake it. From now on it does not hold the process."""
        super().stop()
        self._outq.close()
        # Not left to the thread, which may get no turn before the process ends.
        _forget_at_exit(self._foreign)

    def _goes_on(self) -> bool:
        in_time = self._finish_by is None or time.monotonic() < self._finish_by
        return in_time and self._running() and not self._outq.closed

    def _feed(self, batch: Sequence[Message]) -> bool:
        """Hand over a batch; say whether there is more to come."""
        for message in batch:
            if message is _END or not self._hand_over(message):
                return False
            self._outq.task_done()
        return True

    def _hand_over(self, message: Message) -> bool:
        """Put one message into the foreign queue; say whether that is done."""
        try:
            plain = message.to_object()
        # A foreign queue wants objects; one that cannot be made costs only itself.
        except Exception:  # noqa: BLE001 (logged)
            self._log.log(
                "object",
                logging.ERROR,
                "a message for %s is left out",
                self._outq.name,
                exc_info=True,
            )
            return True
        while self._goes_on():
            try:
                self._foreign.put(plain, True, FOREIGN_POLL_SECS)
                return True
            except queue.Full:
                continue
            except Exception as error:  # noqa: BLE001 (queues differ in what they raise)
                logger.warning("%s takes nothing any more: %r", self._outq.name, error)
                self._on_refused()
                return False
        return False

    def _backlog(self) -> int:
        try:
            return self._foreign.qsize()
        except Exception:  # noqa: BLE001 (not every queue knows, and none that is closed)
            return 0


def _forget_at_exit(foreign: ForeignQueue) -> None:
    """Let the process end although nobody reads what is left in a multiprocessing queue."""
    cancel = getattr(foreign, "cancel_join_thread", None)
    if cancel is not None:
        cancel()
