"""The endpoint: three doors and the one loop that serves them.

One thread does it all (manage, receive, deliver), because a hand-over between threads costs more
than what would be handed over. Nothing in it waits: back-pressure means not reading what
publishers send, a slow reader means going on when there is room, a slow document goes to the
`SlowLane`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import select
import threading
import time
from collections.abc import Callable, Container
from typing import Any, Final

from threatbus.config import FREE
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.observe.report import PluginReport
from threatbus.services import Services
from threatbus.wakeup import Wakeup
from threatbus.workers import StoppableWorker
from threatbus_zmq.config import ZmqConfig
from threatbus_zmq.door import Door
from threatbus_zmq.gatekeeper import Gatekeeper
from threatbus_zmq.manager import Manager
from threatbus_zmq.mapping import FrameReader
from threatbus_zmq.pace import Pace
from threatbus_zmq.publisher import Publisher
from threatbus_zmq.receiver import Receiver
from threatbus_zmq.requests import Requests
from threatbus_zmq.zmtp import Null, Role, Session

logger = logging.getLogger("threatbus.zmq")

#: Seconds between two looks for subscribers that have been away too long.
HOUSEKEEPING_SECS: Final = 1.0
#: Seconds that stopping spends on what publishers have sent and the bus has not read yet: at
#: most, and after the last frame.
LAST_READ_SECS: Final = 1.0
QUIET_SECS: Final = 0.1
#: Seconds that subscribers have for reading the end of what was sent to them: those that do not
#: read get it from the kernel after the bus has ended.
LINGER_SECS: Final = 0.2
#: Seconds that another thread waits for the loop beyond what the loop was given for a step.
PATIENCE_SECS: Final = 1.0


class Endpoint(StoppableWorker):
    """Manage, pub and sub of one bus, and the thread that serves them.

    Started by the plugin's `run`. It blocks in one poll on the doors and on `Wakeup`, which
    whoever puts into an outq, opens the gate, or calls `stop` triggers. It ends after `stop`.
    A failure closes the doors; the supervision calls `run` again, which opens them anew, and
    apps reconnect by themselves. Subscriptions and outqs survive that.
    """

    def __init__(
        self,
        config: ZmqConfig,
        services: Services,
        inq: Intake,
        subscribe: SubscribeCallback,
        unsubscribe: UnsubscribeCallback,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="zmq endpoint")
        self._config = config
        self._clock = clock
        self._wakeup = Wakeup()
        # Work for the loop from other threads: outqs that overflowed, steps of stopping.
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Asks for keys; None: anybody may take part.
        self.gatekeeper = Gatekeeper(config.curve, clock) if config.curve.secret_key else None
        ring = None if self.gatekeeper is None else self.gatekeeper.ring
        # How often the keys had changed when subscriptions were last held against them.
        self._changes_of_keys = 0
        self.publisher = Publisher(
            services.outq, self._wakeup, self._overflowed, self._new_session, clock
        )
        self.manager = Manager(
            (config.pub, config.sub),
            config.max_subscribers,
            config.max_subscribers_per_peer,
            self.publisher,
            subscribe,
            unsubscribe,
            clock,
        )
        self.requests = Requests(
            self.manager,
            services.rejects,
            config.max_requests_per_second,
            self._new_session,
            ring,
            clock,
        )
        self.receiver = Receiver(
            FrameReader(services.border),
            inq,
            services.rejects,
            self._wakeup,
            self._new_session,
            config.max_message_size,
            ring,
            clock,
        )
        inq.on_writable(self._wakeup)
        self._state = services.report.connection("endpoint")
        self._report_to(services.report)
        # The doors by the keys of their ports.
        self._doors: dict[str, Door[Any]] = {
            "manage": self.requests.door,
            "pub": self.publisher.door,
            "sub": self.receiver.door,
        }
        self._epoll: select.epoll | None = None
        self._pace = Pace()
        # Whether every subscriber had its turn, so that more may be taken in.
        self._caught_up = True
        self._next_housekeeping = 0.0
        # When stopping: until when publishers are read out, at most and if it stays quiet; when
        # that is done; until when subscribers are served; what remains for them then.
        self._last_read_until: float | None = None
        self._quiet_until = 0.0
        self._read_out = threading.Event()
        self._drain_until: float | None = None
        self._drained = threading.Event()
        self._leftovers: list[tuple[str, int]] = []
        self._linger_secs = 0.0

    # Called by the plugin, from other threads than the loop's.

    def open(self) -> None:
        """Bind the three ports; raises `InvalidConfig` naming each address that cannot be had."""
        config = self._config
        errors: list[ConfigError] = []
        epoll = select.epoll()
        epoll.register(self._wakeup.fileno(), select.EPOLLIN)
        for key, door in self._doors.items():
            if door is self.receiver.door and self._read_out.is_set():
                continue
            port = getattr(config, key)
            try:
                door.bind(config.host, port)
                epoll.register(door.fileno(), select.EPOLLIN)
            except OSError as error:
                address = f"tcp://{_bracketed(config.host)}:{port}"
                found = f"{address}, which cannot be bound ({error.strerror})"
                errors.append(ConfigError(f"plugins.apps.zmq.{key}", found, FREE))
        self._epoll = epoll
        if errors:
            self._close_doors()
            raise InvalidConfig(errors)
        self._state.up(
            f"listening on {config.host}: manage {config.manage}, pub {config.pub}, "
            f"sub {config.sub}"
        )

    def start(self) -> None:
        """Start the loop and the worker for slow documents."""
        self.receiver.slow_lane.start()
        super().start()

    def stop_intake(self) -> None:
        """Read what publishers have sent so far, and no more; returns when that is done."""
        self._calls.put(self._begin_last_read)
        self._wakeup()
        if not self._read_out.wait(LAST_READ_SECS + PATIENCE_SECS):
            logger.error("the endpoint's loop does not answer; what publishers have sent is lost")
        lane = self.receiver.slow_lane
        lane.stop()
        lane.join(LAST_READ_SECS)

    def drain(self, deadline: float) -> int:
        """Deliver what waits for connected subscribers until `deadline`; give what remains."""
        self._calls.put(lambda: self._begin_draining(deadline))
        self._wakeup()
        if not self._drained.wait(max(0.0, deadline - self._clock()) + PATIENCE_SECS):
            logger.error("the endpoint's loop does not answer; nothing more is delivered")
            self._leftovers = self.publisher.leftovers()
        for name, count in self._leftovers:
            logger.warning("%d messages for %s remain undelivered", count, name)
        self._linger_secs = LINGER_SECS
        return sum(count for _, count in self._leftovers)

    def stop(self) -> None:
        """Ask the loop to end and wake it."""
        super().stop()
        self._wakeup()

    def close(self) -> None:
        """Give everything back; after the loop has ended."""
        self._close_doors(self._linger_secs)
        self._wakeup.close()

    # The loop.

    def run(self) -> None:
        """Serve the doors until stopped."""
        self._wakeup.own()
        if self._epoll is None:
            self.open()
            logger.info("the endpoint is open again")
        try:
            while self._running():
                self._turn()
        except BaseException:
            self._close_doors()
            self._state.down("its loop has failed and begins again; the log says why")
            raise

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        self.receiver.door.listen(not self._pace.until)
        ready = self._wait()
        if self._wakeup.fileno() in ready:
            self._wakeup.clear()
        self._serve_calls()
        if self.gatekeeper is not None:
            self._keep_keys(self.gatekeeper)
        for door in self._doors.values():
            if door.open and door.fileno() in ready:
                door.serve()
        if self.requests.door.has_come:
            self.requests.take()
        if self.publisher.door.has_come:
            self.publisher.take()
        frames = self._take()
        self._caught_up = self.publisher.flush()
        self._keep_house()
        if self._last_read_until is not None:
            self._go_on_reading_out(frames)
        if self._drain_until is not None:
            self._go_on_draining()

    def _wait(self) -> Container[int]:
        """Wait until something is to be done; gives the descriptors that say so."""
        if self._epoll is None:
            return ()
        return dict(self._epoll.poll(self._timeout_secs()))

    def _take(self) -> int:
        """Take frames in; gives their number, -1 if it is not the time to."""
        if not (self.receiver.open and self._caught_up):
            self._pace.reset()
            if not self.receiver.open:
                self.receiver.read_ahead()
            return -1
        now = self._clock()
        if now < self._pace.until:
            return -1
        # Also when the poll did not say so: under load there are some by now.
        frames = self.receiver.take()
        self._pace.note(frames, now)
        return frames

    def _timeout_secs(self) -> float | None:
        """Give the seconds until something is due; None for no time at all."""
        # Calls may be of this thread's own making, which wakes nobody.
        if not self._calls.empty() or self.requests.door.has_come or self.publisher.door.has_come:
            return 0
        now = self._clock()
        if self.receiver.has_come and self.receiver.open and now >= self._pace.until:
            return 0
        due = self.publisher.due(now)
        if self._pace.until:
            due = min(due, self._pace.until)
        if len(self.manager) or any(door.busy for door in self._doors.values()):
            due = min(due, self._next_housekeeping)
        if self._last_read_until is not None:
            due = min(due, self._last_read_until, self._quiet_until)
        if self._drain_until is not None:
            due = min(due, self._drain_until)
        # Rounded up to milliseconds, which is what it is counted in, so as not to wake too early.
        return None if due == math.inf else max(0.0, math.ceil((due - now) * 1000) / 1000)

    def _keep_keys(self, gatekeeper: Gatekeeper) -> None:
        """Look for changed keys, before anything is done on their strength."""
        gatekeeper.ring.refresh()
        if gatekeeper.ring.changes != self._changes_of_keys:
            self._changes_of_keys = gatekeeper.ring.changes
            self.manager.end_unauthorised(gatekeeper.ring)
            self.publisher.door.cut_off_others(gatekeeper.may_read, "its key may not read any more")

    def _serve_calls(self) -> None:
        while not self._calls.empty():
            self._calls.get_nowait()()

    def _keep_house(self) -> None:
        now = self._clock()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING_SECS
        for door in self._doors.values():
            door.keep_house(now)
        self.publisher.keep_house(now)
        self.requests.keep_house(now)
        for p2p in self.publisher.expired(now, self._config.grace):
            self.manager.end(p2p, f"it has been away for more than {self._config.grace:.0f} s")
        for p2p in self.publisher.overfull():
            self.manager.end(p2p, "all outqs together hold too much, and its holds the most")

    # Inside.

    def _new_session(self, role: Role, host: str) -> Session:
        if self.gatekeeper is not None:
            return self.gatekeeper.new_session(role, host)
        return Session(Null(role), role)

    def _close_doors(self, linger_secs: float = 0.0) -> None:
        epoll, self._epoll = self._epoll, None
        # Each whatever becomes of the others; the last one here is closed first.
        with contextlib.ExitStack() as closing:
            if epoll is not None:
                closing.callback(epoll.close)
            closing.callback(self.publisher.close, linger_secs)
            closing.callback(self.receiver.door.close)
            closing.callback(self.requests.door.close)

    def _report_to(self, report: PluginReport) -> None:
        """Offer what is to be seen of the endpoint from outside."""
        publisher = self.publisher
        report.worker(self)
        report.worker(self.receiver.slow_lane)
        report.readers(publisher.reader_states)
        report.counter(
            "sent_again",
            "Messages sent once more, since a subscriber's connection had broken.",
            lambda: publisher.sent_again,
        )
        report.counter(
            "possibly_lost",
            "Messages that a subscriber's machine may hold unread beyond what is remembered.",
            lambda: publisher.uncovered,
        )
        report.counter(
            "refused_subscriptions",
            "Subscriptions of SUBs to topics that the bus had issued to nobody.",
            lambda: publisher.refused,
        )

    def _overflowed(self, p2p: str) -> None:
        """Called from the thread that put: an outq has followed the policy `disconnect`."""
        self._calls.put(lambda: self.manager.end_overflowed(p2p))
        self._wakeup()

    def _begin_last_read(self) -> None:
        now = self._clock()
        self._last_read_until = now + LAST_READ_SECS
        self._quiet_until = now + QUIET_SECS

    def _go_on_reading_out(self, frames: int) -> None:
        """Close the door when nothing has come for a moment, or for too long something has.

        A connected PUB keeps what it is given from then on, for a bus that comes back in time.
        """
        now = self._clock()
        if frames or self.receiver.door.receiving:
            # Or nothing can be read now, so that it is unknown whether there is something.
            self._quiet_until = now + QUIET_SECS
        if now >= min(self._quiet_until, self._last_read_until or now):
            self.receiver.close()
            self._last_read_until = None
            self._read_out.set()

    def _begin_draining(self, deadline: float) -> None:
        self._drain_until = deadline

    def _go_on_draining(self) -> None:
        if self.publisher.is_drained() or self._clock() >= (self._drain_until or 0.0):
            self._drain_until = None
            self._leftovers = self.publisher.leftovers()
            self._drained.set()


def _bracketed(host: str) -> str:
    """Give an IPv6 address as it is written before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
