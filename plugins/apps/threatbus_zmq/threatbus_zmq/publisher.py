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

from threatbus.messages import Message
from threatbus.observe.report import ReaderState
from threatbus.queues import MessageQueue, size_of
from threatbus_zmq import mapping
from threatbus_zmq.connections import Connection, hang_up, port_of, source_of, stands
from threatbus_zmq.gatekeeper import Gatekeeper, user_of
from threatbus_zmq.pipes import PIPE_BYTES, SEND_BUFFER_BYTES, SEND_MARK, Outflow

logger = logging.getLogger("threatbus.zmq.publisher")

#: Messages that one turn of the loop sends to one subscriber, and to all of them, about.
BATCH: Final = 500
TURN: Final = 10_000
#: Bytes that may be under way between the pipe and the app: kernel buffers at both ends, of
#: which Linux lets the receiving one grow to 6 MiB. A proxy in between is not reckoned with.
UNDER_WAY_BYTES: Final = 8 * 1024 * 1024
#: Bytes that the window of one subscriber may hold in any case.
MAX_WINDOW_BYTES: Final = 64 * 1024 * 1024
#: Bytes of sent messages that are remembered together.
JOINED_BYTES: Final = 256 * 1024
#: Seconds until a stalled subscriber is tried again: at first, and at most.
FIRST_RETRY_SECS: Final = 0.001
MAX_RETRY_SECS: Final = 0.05
#: Seconds that a full pipe is waited for when the subscriber has connected anew meanwhile.
HALF_OPEN_SECS: Final = 2.0
#: Seconds that a SUB which names a type, too, is given to name further ones.
SETTLE_SECS: Final = 0.2
#: What comes from a SUB in one frame: a topic of a few letters, or a handshake of ZMTP.
MAX_UPSTREAM_BYTES: Final = 1024
#: Such frames that one turn of the loop deals with.
UPSTREAM_PER_TURN: Final = 1000
#: Letters of a P2P topic by which ZeroMQ finds its pipe: it goes letter by letter, for each frame.
#: Enough that no two are the same; if they were, the app's SUB would still tell them apart.
ROUTE_LENGTH: Final = 8
#: Prefixes that SUBs of one subscriber may name.
MAX_PREFIXES: Final = 16
#: Bytes of prefixes without an issued topic that one connection may name; ZeroMQ keeps them.
MAX_STRAY_BYTES: Final = 64 * 1024
#: Messages that may wait in all outqs together. Many of them share one message, but each has a
#: slot of 8 bytes for it, which the bounds of the single outq do not see.
MAX_WAITING: Final = 50_000_000


class Window:
    """What was last handed to the socket for one subscriber, in case its connection breaks.

    Holds what can be in the pipe and in kernel buffers, besides the newest batch, which may have
    met no pipe at all. Only `MAX_WINDOW_BYTES` can make it hold less; what it then cannot cover
    is counted.
    """

    def __init__(self) -> None:
        # In the order they were sent: (messages, their bytes). Small batches are joined, since at
        # a low rate each would hold one message.
        self._batches: deque[tuple[list[Message], int]] = deque()
        self._messages = 0
        self._bytes = 0
        # The most bytes per message that a batch has had: what is in the pipe may be of these.
        self._largest = 0
        # Messages added since it was emptied, and how many of those had been added when one was
        # let go that may not have arrived.
        self._added = 0
        self._let_go_hot = 0
        # How many of the newest may be in the pipe, or be the batch that met none.
        self._hot = 0

    def add(self, batch: list[Message], size: int) -> None:
        """Take over `batch`, of `size` bytes, just sent; let go of what surely has arrived."""
        count = len(batch)
        if self._batches and self._batches[-1][1] + size <= JOINED_BYTES:
            joined, joined_size = self._batches[-1]
            joined += batch
            self._batches[-1] = (joined, joined_size + size)
        else:
            self._batches.append((batch, size))
        self._messages += count
        self._bytes += size
        self._added += count
        self._hot = SEND_MARK + count
        self._largest = max(self._largest, -(-size // count))
        # The pipe is bounded in messages and in bytes; the batch that exceeds the latter and the
        # newest one come on top.
        in_pipe = min(SEND_MARK * self._largest, 2 * PIPE_BYTES)
        needed = UNDER_WAY_BYTES + in_pipe + size
        while len(self._batches) > 1:
            oldest, oldest_size = self._batches[0]
            rest_messages = self._messages - len(oldest)
            rest_bytes = self._bytes - oldest_size
            if rest_bytes < needed:
                if self._bytes <= MAX_WINDOW_BYTES:
                    return
                self._let_go_hot = self._added - rest_messages
            self._batches.popleft()
            self._messages, self._bytes = rest_messages, rest_bytes

    def take_all(self) -> tuple[list[list[Message]], int]:
        """Empty the window: gives its batches, and how many that may be lost it cannot give."""
        batches = [batch for batch, _ in self._batches]
        given_from = self._added - self._messages
        uncovered = min(self._let_go_hot, given_from) - max(0, self._added - self._hot)
        self._batches.clear()
        self._messages = self._bytes = self._largest = 0
        self._added = self._let_go_hot = self._hot = 0
        return batches, max(0, uncovered)


class Delivery:
    """One subscriber as the publisher sees it. Belongs to the loop, but for its outq."""

    def __init__(self, p2p: str, name: str, now: float, key: str | None = None) -> None:
        self.p2p = p2p
        self.name = name
        # The public key of the client that subscribed; None where no keys are asked for.
        self.key = key
        # Set by the publisher right after construction: the outq calls back with this object.
        self.outq: MessageQueue
        self.heads = mapping.Heads(p2p)
        # Batches taken from the outq, or from the window, and not sent yet.
        self.pending: deque[list[Message]] = deque()
        self.window = Window()
        # What its SUBs have subscribed to, each with its connection: None if that is unknown.
        self.subscribed: list[tuple[bytes, Connection | None]] = []
        self.was_connected = False
        self.last_sign = now
        # When a full pipe is tried again, and after which delay if it is still full then.
        self.retry_at = 0.0
        self.retry_delay = FIRST_RETRY_SECS
        # Since when the pipe has taken nothing; None while it does. The first is set anew when old
        # connections are cut off.
        self.stalled_since: float | None = None
        self.idle_since: float | None = None
        self.outflow = Outflow()
        # Messages sent, sent again after a reconnect, and possibly lost at one.
        self.sent = 0
        self.sent_again = 0
        self.uncovered = 0

    @property
    def connected(self) -> bool:
        """Whether a SUB for the topic is there."""
        return bool(self.subscribed)

    @property
    def waiting(self) -> int:
        """How many messages wait for this subscriber."""
        return sum(map(len, self.pending)) + self.outq.qsize()


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
        # Deliveries whose outq got something; appended to from any thread (a deque allows it).
        self._ready: deque[Delivery] = deque()
        # Deliveries with something to send that are connected.
        self._active: dict[str, Delivery] = {}
        # Those of them whose turn is still to come in this round.
        self._round: deque[Delivery] = deque()
        self.socket: zmq.Socket[bytes] | None = None
        # The port that it is bound to.
        self._door = 0
        self._send: Callable[..., object] = _not_connected
        # Whether ZeroMQ knows which connection the next subscription comes from, see admit().
        self._aligned = True
        # Bytes of prefixes with no issued topic, by the connection that named them.
        self._strays: dict[Connection, int] = {}
        # When there are more than this, those whose connection has ended are forgotten.
        self._most_strays = 1000
        # SUBs that were not admitted, since they named no topic that was issued.
        self.refused = 0
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
        self._door = port_of(socket)
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
        self._aligned = True
        for delivery in self._deliveries.values():
            delivery.subscribed.clear()
            delivery.last_sign = self._clock()
        self._active.clear()
        self._round.clear()
        self._strays.clear()

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
        for _, source in delivery.subscribed if delivery is not None else ():
            hang_up(source)

    # What the loop calls.

    def admit(self) -> None:
        """Read what SUBs have come and gone; only those that name an issued topic are let in.

        ZeroMQ lets in the connection that it thinks the last frame came from. A frame that is no
        subscription puts it one ahead until there is nothing more to read: with what comes in
        between, a subscriber's traffic would go to another's connection. So the sender of such a
        frame is cut off, and so is who subscribes right after it; the latter comes again.
        """
        socket = self.socket
        if socket is None:
            return
        for _ in range(UPSTREAM_PER_TURN):
            try:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._aligned = True
                return
            data, source = frame.bytes, source_of(frame, self._door)
            kind, prefix = data[:1], data[1:]
            delivery = self._deliveries.get(prefix[: mapping.P2P_LENGTH].decode("latin-1"))
            if delivery is not None and not _is_of(frame, kind, delivery):
                logger.warning("a SUB of another client names the topic of %s", delivery.name)
                delivery = None
            if kind == b"\x01":
                self._on_arrival(socket, prefix, source, delivery)
            elif kind == b"\x00":
                self._on_departure(socket, prefix, source, delivery)
            else:
                self._aligned = False
                logger.debug("a SUB that sends other things than subscriptions is cut off")
                hang_up(source)

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
            connected, since = each.connected, each.idle_since
            stalled = max(0.0, now - since) if connected and since is not None else 0.0
            found[each.name] = ReaderState(connected, round(stalled, 1), each.waiting)
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

    def _on_arrival(
        self,
        socket: zmq.Socket[bytes],
        prefix: bytes,
        source: Connection | None,
        delivery: Delivery | None,
    ) -> None:
        if delivery is None or len(delivery.subscribed) >= MAX_PREFIXES:
            self._refuse(prefix, source)
            return
        if not self._aligned:
            hang_up(source)
            return
        socket.setsockopt(zmq.SUBSCRIBE, _route(prefix))
        if source is not None and (prefix, source) in delivery.subscribed:
            # The same SUB says it once more; when it goes, this is reported once.
            return
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

    def _refuse(self, prefix: bytes, source: Connection | None) -> None:
        """Let nobody in who names no issued topic: a short prefix would read everybody's traffic.

        ZeroMQ remembers the prefix all the same, so who names too many is cut off.
        """
        self.refused += 1
        logger.debug("a SUB that names no issued topic is not admitted")
        if source is None:
            return
        named = self._strays.pop(source, 0) + len(prefix) + 1
        if named > MAX_STRAY_BYTES:
            hang_up(source)
            return
        self._strays[source] = named
        if len(self._strays) > self._most_strays:
            self._strays = {found: size for found, size in self._strays.items() if stands(found)}
            self._most_strays = 2 * len(self._strays) + 1000

    def _on_departure(
        self,
        socket: zmq.Socket[bytes],
        prefix: bytes,
        source: Connection | None,
        delivery: Delivery | None,
    ) -> None:
        """Note that a SUB has unsubscribed, or, if `source` is None, that its connection ended."""
        if source is not None and self._aligned:
            socket.setsockopt(zmq.UNSUBSCRIBE, _route(prefix))
        if delivery is None:
            return
        _remove(delivery.subscribed, prefix, source)
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
            _stall(delivery, now)
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
            _stall(delivery, now)
        pending.popleft()
        if sent < len(batch):
            pending.appendleft(batch[sent:])
            batch = batch[:sent]
            size = size_of(batch)
        if sent:
            delivery.window.add(batch, size)
            delivery.sent += sent
            delivery.retry_delay = FIRST_RETRY_SECS
            delivery.stalled_since = delivery.idle_since = None
        if not delivery.waiting:
            self._active.pop(delivery.p2p, None)
        return sent


def _route(prefix: bytes) -> bytes:
    """Give what ZeroMQ is to look for in a frame, for a SUB that is let in with `prefix`."""
    return prefix[:ROUTE_LENGTH] if len(prefix) == mapping.P2P_LENGTH else prefix


def _stall(delivery: Delivery, now: float) -> None:
    """Try again later; cut off old connections if they may be what takes no messages.

    The peer of an old one may have vanished, and the new one must not wait until that is certain.
    """
    delivery.retry_at = now + delivery.retry_delay
    delivery.retry_delay = min(delivery.retry_delay * 2, MAX_RETRY_SECS)
    if delivery.idle_since is None:
        delivery.idle_since = now
    if delivery.stalled_since is None:
        delivery.stalled_since = now
    elif now - delivery.stalled_since > HALF_OPEN_SECS:
        delivery.stalled_since = now
        newest = delivery.subscribed[-1][1] if delivery.subscribed else None
        for _, source in delivery.subscribed:
            if newest is not None and source != newest:
                logger.debug("an old connection of %s is cut off", delivery.name)
                hang_up(source)


def _is_of(frame: zmq.Frame, kind: bytes, delivery: Delivery) -> bool:
    """Say whether a frame about the topic of `delivery` comes from the client that has it.

    What ZeroMQ itself says, when a connection has ended, comes from nobody.
    """
    if delivery.key is None:
        return True
    user = user_of(frame)
    return user == delivery.key or (kind == b"\x00" and not user)


def _remove(
    subscribed: list[tuple[bytes, Connection | None]], prefix: bytes, source: Connection | None
) -> None:
    """Remove one entry for `prefix`: of `source`, else of a connection that stands no more."""
    mine = [entry for entry in subscribed if entry[0] == prefix]
    if not mine:
        return
    if source is not None:
        fitting = [entry for entry in mine if entry[1] == source]
    else:
        fitting = [entry for entry in mine if entry[1] is not None and not stands(entry[1])]
    subscribed.remove((fitting or mine)[0])


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
