"""Delivery: from the outqs to the SUBs, so that nothing is lost on the way.

The door tells when an app's SUB for its point-to-point topic has arrived and when it is gone; until
then the outq waits. Sends do not block: when a connection takes no more, only its subscriber waits.
What was last sent is remembered and sent again when the SUB returns, since what was in kernel
buffers when a connection broke is lost.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.observe.report import ReaderState
from threatbus.queues import MessageQueue, size_of
from threatbus_zmq import mapping
from threatbus_zmq.delivery import Delivery
from threatbus_zmq.door import Door
from threatbus_zmq.reader import Reader
from threatbus_zmq.zmtp import CANCELS, SUBSCRIBES, BrokenProtocol, Frames, Role, Session

logger = logging.getLogger("threatbus.zmq.publisher")

#: Bytes of a subscription: a topic of a few letters.
MAX_SUBSCRIPTION_BYTES: Final = 1024
ROLE: Final = Role("XPUB", ("SUB", "XSUB"), MAX_SUBSCRIPTION_BYTES, takes_subscriptions=True)
#: Subscriptions that one turn of the loop deals with, of all connections, about.
CHANGES: Final = 500
#: Messages that one turn of the loop sends to one subscriber, and to all of them, about.
BATCH: Final = 500
TURN: Final = 10_000
#: Seconds that a SUB which names a type, too, is given to name further ones.
SETTLE_SECS: Final = 0.2
#: Seconds that a connection which takes nothing is waited for when there is a newer one.
HALF_OPEN_SECS: Final = 2.0
#: Prefixes of one subscription that a SUB may name, and connections over which it may do so: the
#: oldest may be dead, and nobody has noticed yet.
MAX_PREFIXES: Final = 16
MAX_LINKS: Final = 4
#: Bytes of prefixes without an issued topic that one connection may name.
MAX_STRAY_BYTES: Final = 64 * 1024
#: Messages that may wait in all outqs together. Many of them share one message, but each has a
#: slot of 8 bytes for it, which the bounds of the single outq do not see.
MAX_WAITING: Final = 50_000_000


class Publisher:
    """The sending side of all subscriptions.

    Everything but `_ready` belongs to the endpoint's loop. An outq that gets its first message
    notes its delivery there from whichever thread put it, and calls `wake`.
    """

    def __init__(
        self,
        make_outq: Callable[..., MessageQueue],
        wake: Callable[[], None],
        overflowed: Callable[[str], None],
        new_session: Callable[[Role, str], Session],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_outq = make_outq
        self._wake = wake
        self._overflowed = overflowed
        self._clock = clock
        self._log = RateLimited(logger)
        self._deliveries: dict[str, Delivery] = {}
        #: Where SUBs connect.
        self.door = Door(ROLE, new_session, Reader, self, clock)
        # Deliveries whose outq got something; appended to from any thread (a deque allows it).
        self._ready: deque[Delivery] = deque()
        # Deliveries with something to send that can be sent to.
        self._active: dict[str, Delivery] = {}
        # Those of them whose turn is still to come in this round.
        self._round: deque[Delivery] = deque()
        # What was last sent, as frames: subscribers that keep up get the same batches.
        self._last_sent: list[Message] = []
        self._last_frames = Frames((), ())
        # SUBs that named no issued topic, and messages sent again after a reconnect; of all.
        self.refused = 0
        self.sent_again = 0
        # Of those that may have been lost at a reconnect: how many could not be sent again.
        self.uncovered = 0

    def close(self, linger_secs: float = 0.0) -> None:
        """Close the door; what has been sent has `linger_secs` to arrive. Idempotent."""
        self.door.close(linger_secs)
        for delivery in self._deliveries.values():
            delivery.cut_short = delivery.unsent
            delivery.links.clear()
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
        delivery = self._deliveries.pop(p2p, None)
        self._active.pop(p2p, None)
        for link in delivery.links if delivery is not None else ():
            del link.wanted[p2p]

    def cut_off(self, p2p: str) -> None:
        """Break the connections of the SUBs for `p2p`."""
        delivery = self._deliveries.get(p2p)
        for link in list(delivery.links) if delivery is not None else ():
            self.door.cut_off(link)

    # What the loop calls.

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
            if delivery.settled_at <= now and delivery.p2p in self._active:
                budget -= self._send_batch(delivery, now)
        if not self._round:
            self._last_sent, self._last_frames = [], Frames((), ())
        return not self._round

    def due(self, now: float) -> float:
        """Give the time at which a subscriber is to be served: `now` or later, else infinity."""
        if self._ready or self._round:
            return now
        if not self._active:
            return math.inf
        return max(now, min(delivery.settled_at for delivery in self._active.values()))

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
            found[each.name] = ReaderState(
                each.connected, round(each.idle(now), 1), each.undelivered
            )
        return found

    def is_drained(self) -> bool:
        """Say whether nothing waits for a subscriber that is connected."""
        return not any(d.connected and (d.waiting or d.blocked) for d in self._deliveries.values())

    def leftovers(self) -> list[tuple[str, int]]:
        """Give name and number of undelivered messages of each subscriber that has some."""
        counts = ((d.name, d.undelivered) for d in self._deliveries.values())
        return [(name, count) for name, count in counts if count]

    def keep_house(self, now: float) -> None:
        """Look after connections that are of no use any more."""
        for delivery in self._deliveries.values():
            # The peer of an old one may have vanished, and the new one must not wait until that is
            # certain.
            for link in delivery.links[:-1]:
                if link.blocked_since is not None and now - link.blocked_since > HALF_OPEN_SECS:
                    self.door.cut_off(link, "it takes nothing, and there is a newer connection")

    # Inside.

    def _note_ready(self, delivery: Delivery) -> None:
        """Called from the thread that put: the outq was empty and no longer is."""
        self._ready.append(delivery)
        self._wake()

    def _collect_ready(self) -> None:
        while self._ready:
            self._activate(self._ready.popleft())

    def _activate(self, delivery: Delivery) -> None:
        if delivery.p2p in self._deliveries and delivery.connected and not delivery.blocked:
            self._active[delivery.p2p] = delivery

    # What SUBs want.

    def take(self) -> None:
        """Read what SUBs say, and do as they want."""
        links = self.door.come()
        for link in links:
            for message in self.door.read(link, max(1, CHANGES // len(links)), len(links)):
                # The one before may have ended it.
                if link.open:
                    self._change(link, message)

    def _change(self, link: Reader, message: bytes) -> None:
        kind, prefix = message[:1], message[1:]
        if kind == SUBSCRIBES:
            self.subscribe(link, prefix)
        elif kind == CANCELS:
            self.cancel(link, prefix)
        else:
            self.door.cut_off(link, "it sends something else than subscriptions")

    def subscribe(self, link: Reader, prefix: bytes) -> None:
        """Begin to deliver over `link` what begins with `prefix`."""
        delivery = self._named(prefix)
        if delivery is not None and delivery.key != link.session.key:
            self._log.log(
                (link.session.key, delivery.p2p),
                logging.WARNING,
                "a SUB of another client names the topic of %s",
                delivery.name,
            )
            delivery = None
        if delivery is None:
            self._refuse(link, prefix)
        else:
            self._on_arrival(delivery, link, prefix[mapping.P2P_LENGTH :])

    def cancel(self, link: Reader, prefix: bytes) -> None:
        """End to deliver over `link` what begins with `prefix`."""
        delivery = self._named(prefix)
        if delivery is None or delivery.p2p not in link.wanted:
            return
        wanted = link.wanted[delivery.p2p]
        wanted.discard(prefix[mapping.P2P_LENGTH :])
        if not wanted:
            self._depart(delivery, link)

    def _named(self, prefix: bytes) -> Delivery | None:
        """Give whom the topic at the beginning of `prefix` was issued to."""
        return self._deliveries.get(prefix[: mapping.P2P_LENGTH].decode("latin-1"))

    # What the door tells.

    def on_room(self, link: Reader) -> None:
        """Send more to those that it was the way to."""
        for p2p in link.wanted:
            if self._deliveries[p2p].waiting:
                self._activate(self._deliveries[p2p])

    def on_end(self, link: Reader, broken: BrokenProtocol | None) -> None:  # noqa: ARG002
        """Let what is for its subscriptions wait."""
        for p2p in list(link.wanted):
            self._depart(self._deliveries[p2p], link)

    def _refuse(self, link: Reader, prefix: bytes) -> None:
        logger.debug("a SUB that names no issued topic is not admitted")
        self.refused += 1
        link.stray_bytes += len(prefix) + 1
        if link.stray_bytes > MAX_STRAY_BYTES:
            self.door.cut_off(link, "it names topics without end that the bus has not issued")

    def _on_arrival(self, delivery: Delivery, link: Reader, suffix: bytes) -> None:
        p2p = delivery.p2p
        own = link.wanted.get(p2p)
        if own is not None and suffix in own:
            # The same SUB says it once more; when it goes, this is reported once.
            return
        if own is not None and len(own) >= MAX_PREFIXES:
            self._refuse(link, delivery.topic + suffix)
            return
        first = not delivery.connected
        again = any(suffix in each.wanted[p2p] for each in delivery.links)
        if own is None:
            own = link.wanted[p2p] = set()
            delivery.links.append(link)
            if len(delivery.links) > MAX_LINKS:
                self.door.cut_off(delivery.links[0], "there are newer connections")
        own.add(suffix)
        delivery.last_sign = self._clock()
        if (first or again) and delivery.was_connected:
            self._send_again(delivery)
        elif first:
            logger.debug("%s is connected", delivery.name)
        delivery.was_connected = True
        # Who names one type may name another with its next frame; what comes in between would
        # be filtered away.
        delivery.settled_at = self._clock() + SETTLE_SECS if suffix else 0.0
        if delivery.waiting:
            self._activate(delivery)

    def _depart(self, delivery: Delivery, link: Reader) -> None:
        """Note that a SUB has unsubscribed, or that its connection has ended."""
        unsent = delivery.unsent
        delivery.links.remove(link)
        del link.wanted[delivery.p2p]
        delivery.last_sign = self._clock()
        if not delivery.connected:
            delivery.cut_short = unsent
            self._active.pop(delivery.p2p, None)
            self._log.log(
                delivery.p2p,
                logging.INFO,
                "%s has disconnected; %d messages wait",
                delivery.name,
                delivery.undelivered,
            )
        elif delivery.waiting:
            # Those that are left need no longer wait for it.
            self._activate(delivery)

    def _send_again(self, delivery: Delivery) -> None:
        """Put what the broken connection may have lost in front of what waits."""
        batches, uncovered = delivery.window.take_all()
        delivery.pending.extendleft(reversed(batches))
        delivery.cut_short = 0
        count = sum(map(len, batches))
        self.sent_again += count
        self.uncovered += uncovered
        self._log.log(
            (delivery.p2p, "back"),
            logging.INFO,
            "%s is back: %d messages are sent again",
            delivery.name,
            count,
        )
        if uncovered:
            logger.error(
                "up to %d messages may be lost to %s: its machine takes more at once than is "
                "remembered",
                uncovered,
                delivery.name,
            )

    # Sending.

    def _send_batch(self, delivery: Delivery, now: float) -> int:
        """Send the next batch; gives the number of its messages."""
        if delivery.blocked:
            # By what went to another subscription over the same connection meanwhile.
            self._active.pop(delivery.p2p, None)
            return 0
        pending = delivery.pending
        if pending:
            messages = pending.popleft()
            size = size_of(messages)
        else:
            messages, size = delivery.outq.get_sized(BATCH)
        if not messages:
            # The outq has been closed; the end of its subscription follows.
            self._active.pop(delivery.p2p, None)
            return 0
        # There until it is sent, so that nothing taken is forgotten whatever happens here.
        pending.appendleft(messages)
        frames = self._framed(messages)
        for link in delivery.links:
            link.deliver(delivery.p2p, delivery.topic, frames, now)
        pending.popleft()
        count = len(messages)
        delivery.note_sent(messages, size)
        if delivery.blocked or not delivery.waiting:
            self._active.pop(delivery.p2p, None)
        return count

    def _framed(self, messages: list[Message]) -> Frames:
        """Give `messages` as frames, made once for all subscribers that get the same."""
        if messages != self._last_sent:
            kinds = mapping.KINDS
            self._last_frames = Frames(
                [kinds[each.topic] for each in messages], [each.data for each in messages]
            )
            self._last_sent = messages.copy()
        return self._last_frames
