"""The endpoint: three sockets and the one loop that serves them.

One thread does it all (manage, receive, deliver), because a hand-over between threads costs more
than what would be handed over. Nothing in it waits: back-pressure means not reading the SUB
socket, a slow reader means trying again later, a slow document goes to the `SlowLane`.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import zmq

from threatbus.config import FREE
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.logger import RateLimited
from threatbus.observe.report import PluginReport
from threatbus.services import Services
from threatbus.wakeup import Wakeup
from threatbus.workers import StoppableWorker
from threatbus_zmq.config import ZmqConfig
from threatbus_zmq.connections import Connection, hang_up, source_of
from threatbus_zmq.gatekeeper import Gatekeeper
from threatbus_zmq.limits import RateLimit
from threatbus_zmq.manager import Manager
from threatbus_zmq.mapping import FrameReader, encode_reply
from threatbus_zmq.monitor import Monitor
from threatbus_zmq.pace import Pace
from threatbus_zmq.peers import Peer
from threatbus_zmq.publisher import Publisher
from threatbus_zmq.receiver import Receiver
from threatbus_zmq.zmtp import Null, Session

logger = logging.getLogger("threatbus.zmq")

#: Seconds between two looks for subscribers that have been away too long.
HOUSEKEEPING_SECS: Final = 1.0
#: Requests that one turn of the loop answers.
REQUESTS_PER_TURN: Final = 50
#: Bytes of a management request; a larger one closes the connection.
MAX_REQUEST_BYTES: Final = 1024 * 1024
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

    Started by the plugin's `run`. It blocks in one poll on the sockets and on `Wakeup`, which
    whoever puts into an outq, opens the gate, or calls `stop` triggers. It ends after `stop`.
    A failure closes the sockets; the supervision calls `run` again, which opens them anew, and
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
        self._rejects = services.rejects
        self._log = RateLimited(logger)
        # Two threads of ZeroMQ, so that what comes in and what goes out need not share one.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=2)
        if ":" in config.host:
            self._context.setsockopt(zmq.IPV6, 1)
        self._wakeup = Wakeup()
        # Work for the loop from other threads: outqs that overflowed, steps of stopping.
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Asks for keys; None: anybody may take part.
        self.gatekeeper = (
            Gatekeeper(self._context, config.curve, clock) if config.curve.secret_key else None
        )
        # How often the keys had changed when subscriptions were last held against them.
        self._changes_of_keys = 0
        self._requests = RateLimit(config.max_requests_per_second, clock)
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
        self.receiver = Receiver(
            FrameReader(services.border), inq, services.rejects, self._wakeup, self.gatekeeper
        )
        inq.on_writable(self._wakeup)
        self._state = services.report.connection("endpoint")
        self._report_to(services.report)
        self._manage: zmq.Socket[bytes] | None = None
        self._manage_monitor: Monitor | None = None
        self._poller = zmq.Poller()
        # Whether the poller watches the SUB socket; not while something behind it is full.
        self._reading = False
        self._pace = Pace()
        # Whether every subscriber had its turn, so that more may be taken in.
        self._caught_up = True
        self._next_housekeeping = 0.0
        # When stopping: until when SUB is read out, at most and if it stays quiet; when that is
        # done; until when subscribers are served; what remains for them then.
        self._last_read_until: float | None = None
        self._quiet_until = 0.0
        self._read_out = threading.Event()
        self._drain_until: float | None = None
        self._drained = threading.Event()
        self._leftovers: list[tuple[str, int]] = []
        self._linger_secs = 0.0

    # Called by the plugin, from other threads than the loop's.

    def open(self) -> None:
        """Bind the three sockets; raises `InvalidConfig` naming each address that cannot be had."""
        errors: list[ConfigError] = []
        for key, bind in self._doors().items():
            address = f"tcp://{_bracketed(self._config.host)}:{getattr(self._config, key)}"
            try:
                bind(address)
            except (zmq.ZMQError, OSError) as error:
                # pyzmq says the address again.
                reason = str(error.strerror).partition(" (addr=")[0]
                found = f"{address}, which cannot be bound ({reason})"
                errors.append(ConfigError(f"plugins.apps.zmq.{key}", found, FREE))
        if errors:
            self._close_sockets()
            raise InvalidConfig(errors)
        config = self._config
        self._state.up(
            f"listening on {config.host}: manage {config.manage}, pub {config.pub}, "
            f"sub {config.sub}"
        )
        self._poller = zmq.Poller()
        self._poller.register(self._wakeup.fileno(), zmq.POLLIN)
        monitors = [monitor.socket for monitor in self._monitors()]
        keeper = [] if self.gatekeeper is None else [self.gatekeeper.socket]
        for socket in (self._manage, *monitors, *keeper):
            self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self.publisher.door.fileno(), zmq.POLLIN)
        self._reading = False

    def start(self) -> None:
        """Start the loop and the worker for slow documents."""
        self.receiver.slow_lane.start()
        super().start()

    def stop_intake(self) -> None:
        """Stop reading SUB, after what publishers have sent so far; returns when that is done."""
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
        self._close_sockets(self._linger_secs)
        if self.gatekeeper is not None:
            self.gatekeeper.close()
        self._context.term()
        self._wakeup.close()

    # The loop.

    def run(self) -> None:
        """Serve the sockets until stopped."""
        self._wakeup.own()
        if self._manage is None:
            self.open()
            logger.info("the endpoint is open again")
        try:
            while self._running():
                self._turn()
        except BaseException:
            self._close_sockets()
            self._state.down("its loop has failed and begins again; the log says why")
            raise

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        self._watch_sub(self.receiver.open and not self._pace.until)
        ready = dict(self._poller.poll(self._timeout_ms()))
        if self._wakeup.fileno() in ready:
            self._wakeup.clear()
        self._serve_calls()
        if self.gatekeeper is not None:
            self._keep_keys(self.gatekeeper, asked=self.gatekeeper.socket in ready)
        if self._manage in ready:
            self._serve_requests()
        if self.publisher.door.fileno() in ready:
            self.publisher.door.serve()
        for monitor in self._monitors():
            if monitor.socket in ready:
                monitor.take()
        frames = self._take()
        self._caught_up = self.publisher.flush()
        self._keep_house()
        if self._last_read_until is not None:
            self._go_on_reading_out(frames)
        if self._drain_until is not None:
            self._go_on_draining()

    def _take(self) -> int:
        """Take frames in; gives their number, -1 if it is not the time to."""
        if not (self.receiver.open and self._caught_up):
            self._pace.reset()
            return -1
        now = self._clock()
        if now < self._pace.until:
            return -1
        # Also when the poll did not say so: under load there are some by now.
        frames = self.receiver.take()
        self._pace.note(frames, now)
        return frames

    def _timeout_ms(self) -> int:
        """Give the milliseconds until something is due, rounded up so as not to wake too early."""
        if not self._calls.empty():
            # Of this thread's own making, which wakes nobody.
            return 0
        now = self._clock()
        due = self.publisher.due(now)
        if self._pace.until:
            due = min(due, self._pace.until)
        if len(self.manager) or self.publisher.door.busy:
            due = min(due, self._next_housekeeping)
        if self._last_read_until is not None:
            due = min(due, self._last_read_until, self._quiet_until)
        if self._drain_until is not None:
            due = min(due, self._drain_until)
        return -1 if due == math.inf else max(0, math.ceil((due - now) * 1000))

    def _watch_sub(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        socket = self.receiver.socket
        if wanted and socket is not None:
            self._poller.register(socket, zmq.POLLIN)
        elif socket is not None:
            self._poller.unregister(socket)
        self._reading = wanted

    def _serve_requests(self) -> None:
        manage = self._manage
        for _ in range(REQUESTS_PER_TURN):
            if manage is None:
                return
            try:
                parts = manage.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            manage.send(self._reply_to(parts), zmq.NOBLOCK)

    def _reply_to(self, parts: list[zmq.Frame]) -> bytes:
        """Answer a request, if whoever makes it may, and has not made too many."""
        source = source_of(parts[0], self._config.manage)
        client = None
        if self.gatekeeper is not None:
            client = self.gatekeeper.client_of(parts[0])
            if client is None:
                hang_up(source)
                return encode_reply("error", reason="your key is no longer authorised")
        peer = Peer(client, source.host if source is not None else "")
        # Many who have no keys come from one host, such as this machine.
        identity = peer.key or source
        if not self._requests.take(identity):
            self._on_flood(peer, source, cut=self._requests.is_flooding(identity))
            limit = self._config.max_requests_per_second
            return encode_reply(
                "error", reason=f"more than {limit} requests a second (max_requests_per_second)"
            )
        return self.manager.handle(parts[0].bytes if len(parts) == 1 else b"", peer)

    def _on_flood(self, peer: Peer, source: Connection | None, *, cut: bool) -> None:
        self._log.log(
            peer.identity, logging.WARNING, "%s makes too many management requests", peer.name
        )
        if cut:
            hang_up(source)

    def _keep_keys(self, gatekeeper: Gatekeeper, *, asked: bool) -> None:
        """Look for changed keys, before anything is done on their strength; let in and out."""
        gatekeeper.ring.refresh()
        if asked:
            gatekeeper.answer()
        if gatekeeper.ring.changes != self._changes_of_keys:
            self._changes_of_keys = gatekeeper.ring.changes
            self.manager.end_unauthorised(gatekeeper.ring)
            self.publisher.door.cut_off_others(gatekeeper.may_read)

    def _serve_calls(self) -> None:
        while not self._calls.empty():
            self._calls.get_nowait()()

    def _keep_house(self) -> None:
        now = self._clock()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING_SECS
        self.publisher.keep_house(now)
        for p2p in self.publisher.expired(now, self._config.grace):
            self.manager.end(p2p, f"it has been away for more than {self._config.grace:.0f} s")
        for p2p in self.publisher.overfull():
            self.manager.end(p2p, "all outqs together hold too much, and its holds the most")

    # Inside.

    def _doors(self) -> dict[str, Callable[[str], object]]:
        """Give what binds each socket, by the key of its port."""
        size = self._config.max_message_size
        doors: dict[str, Callable[[str], object]] = {
            "manage": self._bind_manage,
            "pub": lambda _: self.publisher.door.bind(self._config.host, self._config.pub),
        }
        if not self._read_out.is_set():
            doors["sub"] = lambda address: self.receiver.bind(self._context, address, size)
        return doors

    def _new_session(self, host: str) -> Session:
        return self.gatekeeper.new_session(host) if self.gatekeeper else Session(Null())

    def _monitors(self) -> list[Monitor]:
        found = (self._manage_monitor, self.receiver.monitor)
        return [monitor for monitor in found if monitor is not None]

    def _bind_manage(self, address: str) -> None:
        socket = self._context.socket(zmq.REP)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
            if self.gatekeeper is not None:
                self.gatekeeper.guard(socket, "manage")
            monitor = Monitor(socket, self._on_cut_request)
        except zmq.ZMQError:
            socket.close(0)
            raise
        self._manage, self._manage_monitor = socket, monitor
        try:
            socket.bind(address)
        except zmq.ZMQError:
            self._close_manage()
            raise

    def _on_cut_request(self, host: str) -> None:
        self._rejects.add(
            "zmq manage",
            f"connection closed by the bus: {host} sent a request of more than "
            f"{MAX_REQUEST_BYTES} bytes or broke the protocol",
            b"",
        )

    def _close_manage(self) -> None:
        if self._manage_monitor is not None:
            self._manage_monitor.close()
        if self._manage is not None:
            self._manage.close(0)
        self._manage = self._manage_monitor = None

    def _close_sockets(self, linger_secs: float = 0.0) -> None:
        self._close_manage()
        self.receiver.close()
        self.publisher.close(linger_secs)

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
        """Close SUB when nothing has come for a moment, or for too long something has.

        A connected PUB keeps what it is given from then on, for a bus that comes back in time.
        """
        now = self._clock()
        if frames:
            # Or nothing can be read now, so that it is unknown whether there is something.
            self._quiet_until = now + QUIET_SECS
        if now >= min(self._quiet_until, self._last_read_until or now):
            self._watch_sub(False)
            if self.receiver.monitor is not None:
                self._poller.unregister(self.receiver.monitor.socket)
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
    """Give an IPv6 address as ZeroMQ wants it in an address."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
