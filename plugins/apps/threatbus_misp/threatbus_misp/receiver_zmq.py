"""What MISP publishes over ZeroMQ.

Source: docs/protocol-misp.md. One frame a message: topic, blank, JSON. A PUB drops what it cannot
send, so whoever was away has missed something: each new connection, and each silence, is a gap.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import zmq
import zmq.utils.monitor

from threatbus.logger import RateLimited
from threatbus.observe.report import Connection
from threatbus.wakeup import Wakeup
from threatbus.workers import StoppableWorker
from threatbus_misp.config import ZmqConfig
from threatbus_misp.missing import Missing

logger = logging.getLogger("threatbus.misp.zmq")

#: The topics that tell of changes. ZeroMQ matches prefixes, so ``misp_json`` brings them all.
TOPICS: Final = frozenset(
    {
        b"misp_json",
        b"misp_json_event",
        b"misp_json_attribute",
        b"misp_json_tag",
        b"misp_json_sighting",
    }
)
#: Frames that are handed over together.
BATCH: Final = 1000
#: Frames that may wait here: MISP drops what it cannot send at once.
RECEIVE_MARK: Final = 100_000
RECONNECT_MS: Final = 100
RECONNECT_CAP_MS: Final = 30_000

#: Events of a monitor that say that the publisher does not let us in.
HANDSHAKE_REFUSED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class ZmqSource(StoppableWorker):
    """Receives from one MISP's publisher.

    Started by the instance. It blocks in one poll on the SUB socket, its monitor and a `Wakeup`
    that `stop` triggers; `take` blocks while the bus cannot take more. `missing` hears of gaps, in
    which messages may have been missed, and when none come any more. It ends after `stop`; a
    failure opens the sockets anew.
    """

    def __init__(
        self,
        name: str,
        config: ZmqConfig,
        take: Callable[[Sequence[bytes]], None],
        missing: Missing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"{name} zmq")
        self._config = config
        self._take = take
        self._missing = missing
        self._clock = clock
        self._wakeup = Wakeup()
        self._last_heard = 0.0
        self._silent = False
        self._log = RateLimited(logger)
        #: Whether MISP's publisher is connected.
        self.connected = False
        #: Where it is said how the connection is; the instance sets its own before the start.
        self.state = Connection("zmq")

    @property
    def address(self) -> str:
        """Where MISP publishes."""
        return address_of(self._config)

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self._wakeup()

    def run(self) -> None:
        """Receive until stopped."""
        self._wakeup.own()
        self.state.down(f"connecting to {self.address}")
        with zmq.Context() as context, self._open(context) as sub:
            monitor = sub.get_monitor_socket()
            try:
                sub.connect(self.address)
                self._receive(sub, monitor)
            finally:
                sub.disable_monitor()
                monitor.close(0)
                self.connected = False
                self._missing.lost()

    def _open(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        sub = context.socket(zmq.SUB)
        sub.setsockopt(zmq.LINGER, 0)
        sub.setsockopt(zmq.RCVHWM, RECEIVE_MARK)
        sub.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        sub.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_CAP_MS)
        sub.setsockopt(zmq.IPV6, 1)
        # A machine that has vanished is noticed, although nothing is ever sent to it.
        sub.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sub.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        sub.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
        sub.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        if self._config.username:
            sub.setsockopt_string(zmq.PLAIN_USERNAME, self._config.username)
            sub.setsockopt_string(zmq.PLAIN_PASSWORD, self._config.password)
        sub.setsockopt(zmq.SUBSCRIBE, b"misp_json")
        return sub

    def _receive(self, sub: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        for socket in (sub, monitor, self._wakeup.fileno()):
            poller.register(socket, zmq.POLLIN)
        self._last_heard = self._clock()
        while self._running():
            ready = dict(poller.poll(self._timeout_ms()))
            if self._wakeup.fileno() in ready:
                self._wakeup.clear()
            if monitor in ready:
                self._note_event(monitor)
            if sub in ready:
                self._hand_over(sub)
            self._listen_for_silence()

    def _timeout_ms(self) -> int:
        if self._silent:
            return -1
        left = self._last_heard + self._config.silence - self._clock()
        return max(0, int(left * 1000) + 1)

    def _hand_over(self, sub: zmq.Socket[bytes]) -> None:
        frames: list[bytes] = []
        try:
            while len(frames) < BATCH:
                frames.append(sub.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        self._last_heard = self._clock()
        if self._silent:
            self._silent = False
            self._missing.gap("MISP speaks again")
            self.state.up(f"connected to {self.address}")
        documents = []
        for frame in frames:
            topic, _, document = frame.partition(b" ")
            if topic in TOPICS:
                documents.append(document)
        # As long as the socket gives that much, what it holds may have waited.
        self._missing.behind(len(frames) == BATCH)
        if documents:
            self._take(documents)

    def _note_event(self, monitor: zmq.Socket[bytes]) -> None:
        event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected = True
            self.state.up(f"connected to {self.address}")
            logger.info("%s is connected to %s", self.name, self.address)
            self._missing.gap("connected")
        elif event == zmq.EVENT_DISCONNECTED and self.connected:
            self.connected = False
            self.state.down(f"trying {self.address} again: the connection was lost")
            logger.warning("%s has lost %s; it tries again", self.name, self.address)
            self._missing.lost()
        elif event & HANDSHAKE_REFUSED:
            self.state.down(f"{self.address} refuses username or password")
            self._log.log(
                "refused",
                logging.ERROR,
                "%s is refused by %s: zmq.username or zmq.password is wrong, or missing, or MISP "
                "wants none; it tries again",
                self.name,
                self.address,
            )

    def _listen_for_silence(self) -> None:
        if self._silent or self._clock() < self._last_heard + self._config.silence:
            return
        self._silent = True
        self._missing.lost()
        if self.connected:
            self.state.down(f"{self.address} has been silent for {self._config.silence:.0f} s")
            logger.warning(
                "%s has heard nothing from %s for %.0f s, not even a sign of life",
                self.name,
                self.address,
                self._config.silence,
            )
        else:
            logger.warning("%s has no connection to %s", self.name, self.address)


def address_of(config: ZmqConfig) -> str:
    """Give the address of a publisher, as ZeroMQ writes it."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"tcp://{host}:{config.port}"
