"""Delivery: from the outqs to the XPUB socket, so that nothing is lost on the way.

XPUB tells when an app's SUB for its point-to-point topic has arrived and when it is gone; until
then the outq waits. Sends do not block: a full pipe says so, and only its subscriber waits. What
was last handed to the socket is remembered and sent again when the SUB returns, since what was
in pipe and kernel buffers when a connection broke is lost.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq
import zmq.backend

from threatbus.observe.report import ReaderState
from threatbus.queues import MessageQueue, size_of
from threatbus_zmq import mapping
from threatbus_zmq.admission import MAX_UPSTREAM_BYTES, Admission
from threatbus_zmq.connections import Connection
from threatbus_zmq.delivery import Delivery
from threatbus_zmq.gatekeeper import Gatekeeper
from threatbus_zmq.pipes import SEND_BUFFER_BYTES, SEND_MARK, Outflow

logger = logging.getLogger("threatbus.zmq.publisher")

#: Messages that one turn of the loop sends to one subscriber, and to all of them, about.
BATCH: Final = 500
TURN: Final = 10_000
#: Seconds that a SUB which names a type, too, is given to name further ones.
SETTLE_SECS: Final = 0.2
#: Messages that may wait in all outqs together. Many of them share one message, but each has a
#: slot of 8 bytes for it, which the bounds of the single outq do not see.
MAX_WAITING: Final = 50_000_000


class Publisher:
    """The XPUB socket's side of all subscriptions.

    Everything but `_ready` belongs to the endpoint's loop. An outq that gets its first message
    notes its delivery there from whichever thread put it, and calls `wake`.
    """

    def __init__(
        self,
        make_outq: Callable[..., MessageQueue],
        wake: Callable[[], None],
        overflowed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        gatekeeper: Gatekeeper | None = None,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._make_outq = make_outq
        self._wake = wake
        self._overflowed = overflowed
        self._clock = clock
        self._deliveries: dict[str, Delivery] = {}
        self._admission = Admission(self._deliveries, self._arrived, self._departed)
        # Deliveries whose outq got something; appended to from any thread (a deque allows it).
        self._ready: deque[Delivery] = deque()
        # Deliveries with something to send that are connected.
        self._active: dict[str, Delivery] = {}
        # Those of them whose turn is still to come in this round.
        self._round: deque[Delivery] = deque()
        self.socket: zmq.Socket[bytes] | None = None
        self._send: Callable[..., object] = _not_connected
        # Messages sent again after a reconnect, and those possibly lost at one; of all subscribers.
        self.sent_again = 0
        self.uncovered = 0

    def bind(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
        """Open the socket at `address`; raises `zmq.ZMQError`."""
        socket = context.socket(zmq.XPUB)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.XPUB_MANUAL, 1)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.setsockopt(zmq.SNDHWM, SEND_MARK)
            socket.setsockopt(zmq.SNDBUF, SEND_BUFFER_BYTES)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_UPSTREAM_BYTES)
            _find_vanished_peers(socket)
            if self._gatekeeper is not None:
                self._gatekeeper.guard(socket, "pub")
            socket.bind(address)
        except zmq.ZMQError:
            socket.close(0)
            raise
        self.socket = socket
        self._admission.open(socket)
        # The backend's own method: pyzmq's wrapper around it costs as much as the call itself.
        self._send = zmq.backend.Socket.send.__get__(socket)
        return socket

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; what is in its pipes has `linger_ms` to leave. Idempotent."""
        if self.socket is None:
            return
        self.socket.close(linger_ms)
        self.socket = None
        self._send = _not_connected
        self._admission.close()
        for delivery in self._deliveries.values():
            delivery.subscribed.clear()
            delivery.last_sign = self._clock()
        self._active.clear()
        self._round.clear()

    # What the manager asks for.

    def add(
        self, p2p: str, name: str, label: str | None = None, key: str | None = None
    ) -> Delivery:
        """Make ready to deliver to `p2p`; what comes before its SUB waits in the outq.

        `name` is what logs call it, `label` what monitoring does. With a `key`, to a SUB of the
        client that has it, and to nobody else.
        """
        delivery = Delivery(p2p, name, self._clock(), key)
        delivery.outq = self._make_outq(
            name,
            label=label,
            on_ready=lambda: self._note_ready(delivery),
            on_overflow=lambda: self._overflowed(p2p),
        )
        self._deliveries[p2p] = delivery
        return delivery

    def remove(self, p2p: str) -> None:
        """Deliver to `p2p` no more; its SUB, if it is there, hears nothing from now on."""
        self._deliveries.pop(p2p, None)
        self._active.pop(p2p, None)

    def cut_off(self, p2p: str) -> None:
        """Break the connections of the SUBs for `p2p`."""
        delivery = self._deliveries.get(p2p)
        if delivery is not None:
            delivery.cut_off()

    # What the loop calls.

    @property
    def refused(self) -> int:
        """How many SUBs were not admitted, since they named no topic that was issued."""
        return self._admission.refused

    def admit(self) -> None:
        """Let in the SUBs that have come, and note which are gone."""
        self._admission.read()

    def flush(self) -> bool:
        """Give each subscriber that has something to get, and can, one batch.

        Returns whether all had their turn. If not, there were too many for one turn of the loop,
        and nothing further is to be taken in until they have.
        """
        self._collect_ready()
        if not self._round:
            if not self._active:
                return True
            self._round.extend(self._active.values())
        now = self._clock()
        budget = TURN
        while self._round and budget > 0:
            delivery = self._round.popleft()
            if delivery.retry_at <= now and delivery.p2p in self._active:
                budget -= self._send_batch(delivery, now)
        return not self._round

    def due(self, now: float) -> float:
        """Give the time at which a subscriber is to be served: `now` or later, else infinity."""
        if self._ready or self._round:
            return now
        if not self._active:
            return math.inf
        return max(now, min(delivery.retry_at for delivery in self._active.values()))

    def expired(self, now: float, grace: float) -> list[str]:
        """Give the topics of subscribers that have been away for more than `grace` seconds."""
        return [
            p2p
            for p2p, delivery in self._deliveries.items()
            if not delivery.connected and now - delivery.last_sign > grace
        ]

    def overfull(self) -> list[str]:
        """Give the topics of those with the most waiting, if all together have too much."""
        excess = self.remaining() - MAX_WAITING
        ended = []
        if excess > 0:
            for delivery in sorted(self._deliveries.values(), key=lambda d: -d.waiting):
                ended.append(delivery.p2p)
                excess -= delivery.waiting
                if excess <= 0:
                    break
        return ended

    def remaining(self) -> int:
        """Count the messages that wait, for anyone."""
        return sum(delivery.waiting for delivery in self._deliveries.values())

    def reader_states(self) -> dict[str, ReaderState]:
        """Say how subscribers are, by name; from any thread."""
        now = self._clock()
        found = {}
        for each in list(self._deliveries.values()):
            found[each.name] = ReaderState(each.connected, round(each.idle(now), 1), each.waiting)
        return found

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

    def _arrived(self, delivery: Delivery, prefix: bytes, source: Connection | None) -> None:
        """Begin, or begin again, to deliver to a SUB that was let in."""
        first = not delivery.connected
        again = any(prefix == other for other, _ in delivery.subscribed)
        delivery.subscribed.append((prefix, source))
        delivery.last_sign = self._clock()
        if (first or again) and delivery.was_connected:
            self._send_again(delivery)
        elif first:
            logger.debug("%s is connected", delivery.name)
        delivery.was_connected = True
        delivery.outflow = Outflow()
        # Who names one type may name another with its next frame; what comes in between would
        # be filtered away.
        whole = len(prefix) == mapping.P2P_LENGTH
        delivery.retry_at = 0.0 if whole else self._clock() + SETTLE_SECS
        if delivery.waiting:
            self._activate(delivery)

    def _departed(self, delivery: Delivery, prefix: bytes, source: Connection | None) -> None:
        """Note that a SUB has unsubscribed, or, if `source` is None, that its connection ended."""
        delivery.unsubscribed(prefix, source)
        delivery.last_sign = self._clock()
        if not delivery.connected:
            self._active.pop(delivery.p2p, None)
            logger.info("%s has disconnected; %d messages wait", delivery.name, delivery.waiting)

    def _send_again(self, delivery: Delivery) -> None:
        """Put what the broken connection may have lost in front of what waits."""
        batches, uncovered = delivery.window.take_all()
        delivery.pending.extendleft(reversed(batches))
        count = sum(map(len, batches))
        delivery.sent_again += count
        delivery.uncovered += uncovered
        self.sent_again += count
        self.uncovered += uncovered
        logger.info("%s is back: %d messages are sent again", delivery.name, count)
        if uncovered:
            logger.error(
                "up to %d messages may be lost to %s: they were too large to be kept until it "
                "had them",
                uncovered,
                delivery.name,
            )

    def _send_batch(self, delivery: Delivery, now: float) -> int:
        """Send the next batch, or as much of it as the pipe takes; gives the number sent."""
        pending = delivery.pending
        if pending:
            batch = pending.popleft()
            size = size_of(batch)
        else:
            batch, size = delivery.outq.get_sized(BATCH)
        if not batch:
            # The outq has been closed; the end of its subscription follows.
            self._active.pop(delivery.p2p, None)
            return 0
        # There until it is sent, so that nothing taken is forgotten whatever happens here.
        pending.appendleft(batch)
        if not delivery.outflow.admits(len(batch), size, (c for _, c in delivery.subscribed)):
            delivery.stalls(now)
            return 0
        send, heads, nonblock = self._send, delivery.heads, zmq.NOBLOCK
        sent, topic, head = 0, "", b""
        try:
            for message in batch:
                if message.topic != topic:
                    topic = message.topic
                    head = heads[topic]
                # Made one by one: the next frame finds the memory of the last still in the cache.
                send(head + message.data, nonblock)
                sent += 1
        except zmq.Again:
            delivery.stalls(now)
        pending.popleft()
        if sent < len(batch):
            pending.appendleft(batch[sent:])
            batch = batch[:sent]
            size = size_of(batch)
        if sent:
            delivery.window.add(batch, size)
            delivery.sent += sent
            delivery.flows()
        if not delivery.waiting:
            self._active.pop(delivery.p2p, None)
        return sent


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
