"""The thread that serves one transport."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from threatbus import StoppableWorker
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.services import Services
from threatbus_zeek.config import ZeekConfig
from threatbus_zeek.manager import Manager
from threatbus_zeek.transport import Transport

logger = logging.getLogger("threatbus.zeek")

#: Seconds in which the thread, when it is not blocked, deals with anything it is asked for.
PATIENCE_SECS = 1.0
#: Seconds that closing the transport may take.
CLOSE_SECS = 2.5


class Link(StoppableWorker):
    """One transport with its manager, and the thread that serves them.

    Started by the plugin's `run`. It opens and closes the transport, for some belong to the thread
    that made them. It blocks in `receive`, which whoever puts into an outq, opens the gate, or
    calls one of the methods below wakes; and in `publish`, while the other side does not read,
    which `end` interrupts. It ends after `end`. Transport and subscriptions survive a failure,
    after which the supervision calls `run` again.
    """

    def __init__(
        self,
        config: ZeekConfig,
        services: Services,
        inq: Intake,
        subscribe: SubscribeCallback,
        unsubscribe: UnsubscribeCallback,
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"link of {transport.name}")
        self._transport = transport
        self._inq = inq
        self._clock = clock
        self.manager = Manager(config, services, inq, subscribe, unsubscribe, transport, clock)
        # Set when the transport is open, or has failed to open, and what it failed with.
        self._begun = threading.Event()
        self._failure: Exception | None = None
        # Set by stop_intake(); the loop answers when what had come by then is on inq.
        self._intake_ends = threading.Event()
        self._intake_ended = threading.Event()
        # Set by drain(): monotonic time; the loop answers when nothing waits, or it is over.
        self._drain_until: float | None = None
        self._drained = threading.Event()

    # Called by the plugin, from other threads than this one.

    def start(self) -> None:
        """Start the thread, and wait until it has opened the transport; raises what that raised."""
        self._inq.on_writable(self._transport.wake)
        super().start()
        self._begun.wait()
        if self._failure is not None:
            raise self._failure

    def stop_intake(self) -> None:
        """Take no more sightings; on return those that have come are on inq."""
        self._intake_ends.set()
        self._transport.wake()
        if not self._intake_ended.wait(PATIENCE_SECS):
            logger.error("%s does not answer; what Zeek has sent is lost", self.name)

    def drain(self, deadline: float) -> int:
        """Deliver what waits to whoever takes it until `deadline`; give what remains."""
        self._drain_until = deadline
        self._transport.wake()
        if not self._drained.wait(max(0.0, deadline - self._clock()) + PATIENCE_SECS):
            logger.error("%s does not answer: Zeek does not read", self.name)
        leftovers = self.manager.leftovers()
        for name, count in leftovers:
            logger.warning("%d messages for %s remain undelivered", count, name)
        return sum(count for _, count in leftovers)

    def end(self) -> None:
        """End the thread, which closes the transport."""
        self.stop()
        self._transport.wake()
        self.join(PATIENCE_SECS)
        if self.is_alive():
            self._transport.interrupt()
            self.join(CLOSE_SECS)

    # The thread.

    def run(self) -> None:
        """Open the transport, serve it until stopped, close it."""
        if not self._begun.is_set() and not self._open():
            return
        try:
            while self._running():
                self._turn(self._timeout())
        finally:
            if not self._running():
                self._transport.close()

    def _open(self) -> bool:
        """Open the transport, and let `start` know; say whether it is open."""
        try:
            self._transport.open()
            return True
        # Whatever it is, whoever starts this thread is to have it.
        except Exception as error:  # noqa: BLE001 (raised by start)
            self._failure = error
            return False
        finally:
            self._begun.set()

    def _turn(self, timeout: float | None) -> None:
        for incoming in self._transport.receive(timeout, reading=self.manager.reading):
            self.manager.take(incoming)
        self.manager.serve()
        if self._intake_ends.is_set() and not self._intake_ended.is_set():
            for incoming in self._transport.receive(0, reading=self.manager.reading):
                self.manager.take(incoming)
            self.manager.stop_taking()
            self._intake_ended.set()
        if self._drain_until is not None and (
            self.manager.is_drained() or self._clock() >= self._drain_until
        ):
            self._drained.set()

    def _timeout(self) -> float | None:
        timeout = self.manager.timeout()
        if self._drain_until is None or self._drained.is_set():
            return timeout
        left = max(0.0, self._drain_until - self._clock())
        # Who goes silent meanwhile is not waited for: that is looked at now and then.
        return min(left, 0.1, left if timeout is None else timeout)
