"""The endpoint: three sockets and the one loop that serves them.

One thread does it all (manage, receive, deliver), because a hand-over between threads costs more
than what would be handed over. Nothing in it waits: back-pressure means not reading the SUB
socket, a slow reader means trying again later, a slow document goes to the `SlowLane`.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import zmq

from threatbus.errors import ConfigError, InvalidConfig
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.services import Services
from threatbus.workers import StoppableWorker
from threatbus_zmq.config import ZmqConfig
from threatbus_zmq.manager import Manager
from threatbus_zmq.mapping import FrameReader
from threatbus_zmq.publisher import Publisher
from threatbus_zmq.receiver import Receiver

logger = logging.getLogger("threatbus.zmq")

#: Seconds between two looks for subscribers that have been away too long.
HOUSEKEEPING_SECS: Final = 1.0
#: Requests that one turn of the loop answers.
REQUESTS_PER_TURN: Final = 50
#: Bytes of a management request; a larger one closes the connection.
MAX_REQUEST_BYTES: Final = 1024 * 1024
#: Seconds that stopping spends on what publishers have sent and the bus has not read yet.
LAST_READ_SECS: Final = 1.0


class Wakeup:
    """Lets other threads end the loop's wait: an event counter that a poller can watch."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # The loop's thread, which need not wake itself.
        self._owner = 0

    def fileno(self) -> int:
        """Give the descriptor to poll."""
        return self._descriptor

    def own(self) -> None:
        """Make the calling thread the one that waits."""
        self._owner = threading.get_ident()

    def __call__(self) -> None:
        """Wake the loop, from any thread."""
        if threading.get_ident() != self._owner:
            os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Be ready to be woken again."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


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
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wakeup = Wakeup()
        # Work for the loop from other threads: outqs that overflowed, steps of stopping.
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.publisher = Publisher(services.outq, self._wakeup, self._overflowed, clock)
        self.manager = Manager(
            (config.pub, config.sub),
            config.max_subscribers,
            self.publisher,
            subscribe,
            unsubscribe,
            clock,
        )
        self.receiver = Receiver(FrameReader(services.border), inq, services.rejects, self._wakeup)
        inq.on_writable(self._wakeup)
        self._manage: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        # Whether the poller watches the SUB socket; not while something behind it is full.
        self._reading = False
        # When stopping: until when SUB is read out, and whether that is done.
        self._last_read_until: float | None = None
        self._intake_stopped = False
        self._read_out = threading.Event()
        self._next_housekeeping = 0.0
        # Set by the loop when nothing waits for a connected subscriber; see drain().
        self._drained = threading.Event()
        self._draining = False
        self._linger_ms = 0

    # Called by the plugin, from other threads than the loop's.

    def open(self) -> None:
        """Bind the three sockets; raises `InvalidConfig` naming each address that cannot be had."""
        errors: list[ConfigError] = []
        poller = zmq.Poller()
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        steps: dict[str, Callable[[str], zmq.Socket[bytes]]] = {
            "manage": self._bind_manage,
            "pub": lambda address: self.publisher.bind(self._context, address),
            "sub": lambda address: self.receiver.bind(
                self._context, address, self._config.max_message_size
            ),
        }
        for key, bind in steps.items():
            address = f"tcp://{_bracketed(self._config.host)}:{getattr(self._config, key)}"
            try:
                socket = bind(address)
            except zmq.ZMQError as error:
                found = f"{address}, which cannot be bound ({error.strerror})"
                errors.append(ConfigError(f"plugins.apps.zmq.{key}", found, "free and ours"))
                continue
            if key != "sub":
                poller.register(socket, zmq.POLLIN)
        if errors:
            self._close_sockets()
            raise InvalidConfig(errors)
        self._poller = poller
        self._reading = False

    def start(self) -> None:
        """Start the loop and the worker for slow documents."""
        self.receiver.slow_lane.start()
        super().start()

    def stop_intake(self) -> None:
        """Stop reading SUB, after what publishers have sent so far; returns when that is done."""
        self._calls.put(self._begin_last_read)
        self._wakeup()
        self._read_out.wait(LAST_READ_SECS + 1)
        lane = self.receiver.slow_lane
        lane.stop()
        lane.join(LAST_READ_SECS)

    def drain(self, deadline: float) -> int:
        """Deliver what waits for connected subscribers until `deadline`; give what remains."""
        self._drained.clear()
        self._calls.put(self._begin_draining)
        self._wakeup()
        self._drained.wait(max(0.0, deadline - time.monotonic()))
        for name, count in self.publisher.leftovers():
            logger.warning("%d messages for %s remain undelivered", count, name)
        # What was sent a moment ago is still in ZeroMQ's pipes.
        self._linger_ms = max(200, int((deadline - time.monotonic()) * 1000))
        return self.publisher.remaining()

    def stop(self) -> None:
        """Ask the loop to end and wake it."""
        super().stop()
        self._wakeup()

    def close(self) -> None:
        """Give everything back; after the loop has ended."""
        self._close_sockets(self._linger_ms)
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
            raise

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        self._watch_sub(self.receiver.open and not self._intake_stopped)
        ready = dict(self._poller.poll(self._timeout_ms()))
        if self._wakeup.fileno() in ready:
            self._wakeup.clear()
            self._serve_calls()
        if self._manage in ready:
            self._serve_requests()
        self.publisher.admit()
        frames = self.receiver.take() if self._reading else -1
        self.publisher.flush()
        if self._last_read_until is not None and not self._intake_stopped:
            # Read out: the socket is empty. While the slow lane is busy it cannot be known.
            if frames == 0 or self._clock() > self._last_read_until:
                self._end_last_read()
        self._keep_house()
        if self._draining and self.publisher.is_drained():
            self._drained.set()

    def _timeout_ms(self) -> int:
        now = self._clock()
        wait = max(0.0, self._next_housekeeping - now)
        due = self.publisher.timeout(now)
        if due is not None:
            wait = min(wait, due)
        return -(-int(wait * 1_000_000) // 1000)

    def _watch_sub(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        socket = self.receiver.socket
        if wanted and socket is not None:
            self._poller.register(socket, zmq.POLLIN)
        elif socket is not None:
            self._poller.unregister(socket)
        self.receiver.pause(not wanted)
        self._reading = wanted

    def _serve_requests(self) -> None:
        manage = self._manage
        for _ in range(REQUESTS_PER_TURN):
            if manage is None:
                return
            try:
                parts = manage.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            reply = self.manager.handle(parts[0] if len(parts) == 1 else b"")
            manage.send(reply, zmq.NOBLOCK)

    def _serve_calls(self) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call()

    def _keep_house(self) -> None:
        now = self._clock()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING_SECS
        for p2p in self.publisher.expired(now, self._config.grace):
            self.manager.end(p2p, f"it has been away for more than {self._config.grace:.0f} s")

    # Inside.

    def _bind_manage(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REP)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
            socket.bind(address)
        except zmq.ZMQError:
            socket.close(0)
            raise
        self._manage = socket
        return socket

    def _close_sockets(self, linger_ms: int = 0) -> None:
        if self._manage is not None:
            self._manage.close(0)
            self._manage = None
        self.receiver.close()
        self.publisher.close(linger_ms)

    def _overflowed(self, p2p: str) -> None:
        """Called from the thread that put: an outq has followed the policy `disconnect`."""
        self._calls.put(lambda: self._end_overflowed(p2p))
        self._wakeup()

    def _end_overflowed(self, p2p: str) -> None:
        self.manager.end(p2p, "it did not keep up and its outq was full")

    def _begin_last_read(self) -> None:
        self.receiver.unbind()
        self._last_read_until = self._clock() + LAST_READ_SECS

    def _end_last_read(self) -> None:
        self._watch_sub(False)
        self._intake_stopped = True
        self._read_out.set()

    def _begin_draining(self) -> None:
        self._draining = True


def _bracketed(host: str) -> str:
    """Give an IPv6 address as ZeroMQ wants it in an address."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
