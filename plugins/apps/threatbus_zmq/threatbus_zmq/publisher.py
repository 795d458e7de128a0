"""Delivery: from the outqs to the XPUB socket, so that nothing is lost on the way.

XPUB tells when an app's SUB for its point-to-point topic has arrived and when it is gone; until
then the outq waits. Sends do not block: a full pipe says so, and only its subscriber waits. What
was last handed to the socket is remembered and sent again when the SUB returns, since what was
in pipe and kernel buffers when a connection broke is lost.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import zmq
import zmq.backend

from threatbus.messages import Message
from threatbus.queues import MessageQueue, size_of
from threatbus_zmq import mapping
from threatbus_zmq.pipes import MOST_MESSAGES, PipeLimit

logger = logging.getLogger("threatbus.zmq.publisher")

#: Bytes of the kernel's send buffer; few, for the same reason.
SEND_BUFFER_BYTES: Final = 128 * 1024
#: Messages that one turn of the loop sends to one subscriber.
BATCH: Final = 500
#: Bytes that may be under way between the pipe and the app: kernel buffers at both ends, of
#: which Linux lets the receiving one grow to 6 MiB.
UNDER_WAY_BYTES: Final = 8 * 1024 * 1024
#: Bytes that the window of one subscriber may hold in any case.
MAX_WINDOW_BYTES: Final = 64 * 1024 * 1024
#: Seconds until a stalled subscriber is tried again: at first, and at most.
FIRST_RETRY_SECS: Final = 0.001
MAX_RETRY_SECS: Final = 0.05


class Window:
    """What was last handed to the socket for one subscriber, in case its connection breaks.

    Holds at least the newest `MOST_MESSAGES` messages and the newest `UNDER_WAY_BYTES`: that is
    what can be in the pipe and in kernel buffers. Only `MAX_WINDOW_BYTES` can make it hold less;
    what it then cannot cover is counted.
    """

    def __init__(self) -> None:
        # In the order they were sent, in the batches they were sent in: (messages, bytes).
        self._batches: deque[tuple[Sequence[Message], int]] = deque()
        self._messages = 0
        self._bytes = 0
        # Messages ever added, and how many of those had been added when a hot one was let go.
        self._added = 0
        self._let_go_hot = 0

    def add(self, batch: Sequence[Message]) -> None:
        """Remember `batch`, which has just been sent, and let go of what surely has arrived."""
        size = size_of(batch)
        self._batches.append((batch, size))
        self._messages += len(batch)
        self._bytes += size
        self._added += len(batch)
        while len(self._batches) > 1:
            oldest, oldest_size = self._batches[0]
            rest_messages = self._messages - len(oldest)
            rest_bytes = self._bytes - oldest_size
            arrived = rest_messages >= MOST_MESSAGES and rest_bytes >= UNDER_WAY_BYTES
            if not arrived and self._bytes <= MAX_WINDOW_BYTES:
                return
            if not arrived:
                self._let_go_hot = self._added - rest_messages
            self._batches.popleft()
            self._messages, self._bytes = rest_messages, rest_bytes

    def take_all(self) -> tuple[list[Message], int]:
        """Empty the window: gives its messages, and how many that may be lost it cannot give."""
        messages = [message for batch, _ in self._batches for message in batch]
        oldest_in_pipe = self._added - MOST_MESSAGES
        uncovered = max(0, min(self._let_go_hot, self._added - len(messages)) - oldest_in_pipe)
        self._batches.clear()
        self._messages = self._bytes = 0
        self._let_go_hot = 0
        return messages, uncovered


class Delivery:
    """One subscriber as the publisher sees it. Belongs to the loop, but for its outq."""

    def __init__(self, p2p: str, name: str, now: float) -> None:
        self.p2p = p2p
        self.name = name
        # Set by the publisher right after construction: the outq calls back with this object.
        self.outq: MessageQueue
        self.heads = mapping.heads(p2p)
        # What has been taken from the outq, or from the window, and is not sent yet.
        self.pending: list[Message] = []
        self.window = Window()
        # The SUB's prefixes that have arrived and are not gone; it is connected if there is one.
        self.prefixes: list[bytes] = []
        self.was_connected = False
        self.last_sign = now
        # When a full pipe is tried again, and after which delay if it is still full then.
        self.retry_at = 0.0
        self.retry_delay = FIRST_RETRY_SECS
        # Messages sent, sent again after a reconnect, and possibly lost at one.
        self.sent = 0
        self.sent_again = 0
        self.uncovered = 0

    @property
    def connected(self) -> bool:
        """Whether a SUB for the topic is there."""
        return bool(self.prefixes)

    @property
    def waiting(self) -> int:
        """How many messages wait for this subscriber."""
        return len(self.pending) + self.outq.qsize()


class Publisher:
    """The XPUB socket's side of all subscriptions.

    Everything but `ready` belongs to the endpoint's loop. An outq that gets its first message
    notes its delivery in `ready` from whichever thread put it, and calls `wake`.
    """

    def __init__(
        self,
        make_outq: Callable[..., MessageQueue],
        wake: Callable[[], None],
        overflowed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_outq = make_outq
        self._wake = wake
        self._overflowed = overflowed
        self._clock = clock
        self._deliveries: dict[str, Delivery] = {}
        # Deliveries whose outq got something; appended to from any thread (a deque allows it).
        self._ready: deque[Delivery] = deque()
        # Deliveries with something to send that are connected, in the order of their turns.
        self._active: dict[str, Delivery] = {}
        self._socket: zmq.Socket[bytes] | None = None
        self._send: Callable[..., object] = _not_connected
        self._limit: PipeLimit | None = None
        # SUBs that were not admitted, since they named no topic that was issued.
        self.refused = 0

    def bind(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
        """Open the socket at `address`; raises `zmq.ZMQError`."""
        socket = context.socket(zmq.XPUB)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.XPUB_MANUAL, 1)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            self._limit = PipeLimit(socket, zmq.SNDHWM)
            socket.setsockopt(zmq.SNDBUF, SEND_BUFFER_BYTES)
            # What an app sends here is a topic of a few letters.
            socket.setsockopt(zmq.MAXMSGSIZE, 4096)
            _find_vanished_peers(socket)
            socket.bind(address)
        except zmq.ZMQError:
            socket.close(0)
            raise
        self._socket = socket
        # The backend's own method: pyzmq's wrapper around it costs as much as the call itself.
        self._send = zmq.backend.Socket.send.__get__(socket)
        return socket

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; what is in its pipes has `linger_ms` to leave. Idempotent."""
        if self._socket is None:
            return
        self._socket.close(linger_ms)
        self._socket = None
        self._limit = None
        self._send = _not_connected
        for delivery in self._deliveries.values():
            delivery.prefixes.clear()
            delivery.last_sign = self._clock()
        self._active.clear()

    # What the manager asks for.

    def add(self, p2p: str, name: str) -> Delivery:
        """Make ready to deliver to `p2p`; what comes before its SUB waits in the outq."""
        delivery = Delivery(p2p, name, self._clock())
        delivery.outq = self._make_outq(
            name,
            on_ready=lambda: self._note_ready(delivery),
            on_overflow=lambda: self._overflowed(p2p),
        )
        self._deliveries[p2p] = delivery
        return delivery

    def remove(self, p2p: str) -> None:
        """Deliver to `p2p` no more; its SUB, if it is there, hears nothing from now on."""
        self._deliveries.pop(p2p, None)
        self._active.pop(p2p, None)

    # What the loop calls.

    def admit(self) -> None:
        """Read what SUBs have come and gone; only those that name an issued topic are let in."""
        socket = self._socket
        while socket is not None:
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            delivery = self._deliveries.get(frame[1 : 1 + mapping.P2P_LENGTH].decode("latin-1"))
            if frame[:1] == b"\x01":
                self._on_arrival(socket, frame[1:], delivery)
            elif frame[:1] == b"\x00" and delivery is not None:
                self._on_departure(delivery, frame[1:])

    def flush(self) -> None:
        """Give each subscriber that has something to get, and can, one batch."""
        self._collect_ready()
        if not self._active:
            return
        now = self._clock()
        for delivery in list(self._active.values()):
            if delivery.retry_at <= now:
                self._send_batch(delivery, now)

    def timeout(self, now: float) -> float | None:
        """Give the seconds until a subscriber is to be served; 0 for at once, None for none."""
        if self._ready:
            return 0.0
        times = [delivery.retry_at for delivery in self._active.values()]
        return max(0.0, min(times) - now) if times else None

    def expired(self, now: float, grace: float) -> list[str]:
        """Give the topics of subscribers that have been away for more than `grace` seconds."""
        return [
            p2p
            for p2p, delivery in self._deliveries.items()
            if not delivery.connected and now - delivery.last_sign > grace
        ]

    def remaining(self) -> int:
        """Count the messages that wait, for anyone."""
        return sum(delivery.waiting for delivery in self._deliveries.values())

    def is_drained(self) -> bool:
        """Say whether nothing waits for a subscriber that is connected."""
        return not any(d.connected and d.waiting for d in self._deliveries.values())

    def leftovers(self) -> list[tuple[str, int]]:
        """Give name and number of waiting messages of each subscriber that has some."""
        return [(d.name, d.waiting) for d in self._deliveries.values() if d.waiting]

    # Inside.

    def _note_ready(self, delivery: Delivery) -> None:
        """Called from the thread that put: the outq was empty and no longer is."""
        self._ready.append(delivery)
        self._wake()

    def _collect_ready(self) -> None:
        while self._ready:
            self._activate(self._ready.popleft())

    def _activate(self, delivery: Delivery) -> None:
        if delivery.connected and delivery.p2p in self._deliveries:
            self._active[delivery.p2p] = delivery

    def _on_arrival(
        self, socket: zmq.Socket[bytes], prefix: bytes, delivery: Delivery | None
    ) -> None:
        if delivery is None:
            # An empty or short prefix would read everybody's traffic.
            self.refused += 1
            logger.debug("a SUB that names no issued topic is not admitted")
            return
        socket.setsockopt(zmq.SUBSCRIBE, prefix)
        first = not delivery.connected
        again = prefix in delivery.prefixes
        delivery.prefixes.append(prefix)
        delivery.last_sign = self._clock()
        if (first or again) and delivery.was_connected:
            self._send_again(delivery)
        elif first:
            logger.debug("%s is connected", delivery.name)
        delivery.was_connected = True
        delivery.retry_at = 0.0
        if delivery.waiting:
            self._activate(delivery)

    def _on_departure(self, delivery: Delivery, prefix: bytes) -> None:
        if prefix in delivery.prefixes:
            delivery.prefixes.remove(prefix)
        delivery.last_sign = self._clock()
        if not delivery.connected:
            self._active.pop(delivery.p2p, None)
            logger.info("%s has disconnected; %d messages wait", delivery.name, delivery.waiting)

    def _send_again(self, delivery: Delivery) -> None:
        """Put what the broken connection may have lost in front of what waits."""
        again, uncovered = delivery.window.take_all()
        delivery.pending[:0] = again
        delivery.sent_again += len(again)
        delivery.uncovered += uncovered
        logger.info("%s is back: %d messages are sent again", delivery.name, len(again))
        if uncovered:
            logger.error(
                "up to %d messages may be lost to %s: they were too large to be kept until it "
                "had them",
                uncovered,
                delivery.name,
            )

    def _send_batch(self, delivery: Delivery, now: float) -> None:
        batch = delivery.pending or delivery.outq.get_many(BATCH)
        size = size_of(batch)
        if self._limit is not None:
            self._limit.note(len(batch), size)
        send, heads = self._send, delivery.heads
        sent = 0
        try:
            for message in batch[:BATCH]:
                send(heads[message.topic] + message.data, zmq.NOBLOCK)
                sent += 1
        except zmq.Again:
            delivery.retry_at = now + delivery.retry_delay
            delivery.retry_delay = min(delivery.retry_delay * 2, MAX_RETRY_SECS)
        if sent:
            delivery.window.add(batch[:sent])
            delivery.sent += sent
            delivery.retry_delay = FIRST_RETRY_SECS
        delivery.pending = batch[sent:]
        if not delivery.waiting:
            self._active.pop(delivery.p2p, None)


def _not_connected(*_: object) -> None:
    raise zmq.Again


def _find_vanished_peers(socket: zmq.Socket[bytes]) -> None:
    """Have ZeroMQ and the kernel notice peers that vanished without closing.

    The time-out is long, since a reader that pauses answers no ZMTP ping and must not be taken
    for one that is gone.
    """
    socket.setsockopt(zmq.HEARTBEAT_IVL, 15_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
