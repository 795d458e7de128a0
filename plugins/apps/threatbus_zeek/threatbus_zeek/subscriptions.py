"""What the bus owes each subscribed Zeek, and when; no I/O.

Both kinds turn changes into events in `outbox`, which the manager publishes in order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from threatbus.queues import MessageQueue
from threatbus_zeek.events import Protocol
from threatbus_zeek.ledger import Ledger
from threatbus_zeek.mapping import Change
from threatbus_zeek.values import Event

#: Seconds between the acknowledgement and the first item for the script of 2022.5.16. Zeek
#: subscribes to its topic when it gets the acknowledgement, and what Broker publishes before it
#: knows of that is lost; when it does know, the old script does not say.
SETTLE_SECS: Final = 1.0
#: Seconds in which the script of 2022.5.16 asks again after its connection was broken.
EXPECTED_SECS: Final = 10.0
#: Events that are remembered for the script of 2022.5.16, and seconds before the end of a
#: connection from which they are sent again when it is back: nobody knows which of them arrived.
RECENT: Final = 1000
RECENT_SECS: Final = 5.0
#: Messages that are turned into events at once.
BATCH: Final = 100
#: Batches that may be on their way to a Zeek with our script; Zeek's own queue holds 32 events.
WINDOW: Final = 8
#: Seconds after which a batch is sent again, if Zeek says meanwhile that it has not got it.
RESEND_SECS: Final = 5.0


class Subscription(ABC):
    """What both kinds have in common. Belongs to the manager, and so to its link's thread."""

    def __init__(self, p2p: str, topic: str, name: str, outq: MessageQueue, now: float) -> None:
        self.p2p = p2p
        self.topic = topic
        self.name = name
        self.outq = outq
        #: Monotonic time of the last sign of life, or of the last progress.
        self.last_sign = now
        #: Events to be published next.
        self.outbox: deque[Event] = deque()

    @property
    def waiting(self) -> int:
        """How many messages and events wait for Zeek."""
        return self.outq.qsize() + len(self.outbox)

    @abstractmethod
    def wants_more(self, now: float) -> bool:
        """Say whether messages may be taken from the outq now."""

    @abstractmethod
    def add(self, changes: Sequence[Change], now: float) -> None:
        """Put what `changes` mean for Zeek into the outbox."""

    def published(self, event: Event, now: float) -> None:  # noqa: B027 (not each has to)
        """Note that an event of the outbox was handed over."""


class PlainSubscription(Subscription):
    """A Zeek with the script of 2022.5.16: an event per item, and nothing comes back.

    `peers` are those that it may be one of; none: it is gone, since `last_sign`.
    """

    def __init__(
        self,
        p2p: str,
        topic: str,
        name: str,
        outq: MessageQueue,
        now: float,
        *,
        protocol: Protocol,
        capacity: int,
        peers: set[str],
    ) -> None:
        super().__init__(p2p, topic, name, outq, now)
        self._protocol = protocol
        self.ledger = Ledger(capacity)
        self.peers = peers
        # What was handed over last, and when.
        self._recent: deque[tuple[float, Event]] = deque(maxlen=RECENT)
        # Peers that went, and may come back under the same name.
        self._gone: set[str] = set()
        # Monotonic time until which a wish for the same topic is taken to be from this Zeek, which
        # has connected again and does not know that its subscription still stands.
        self._expected_until = now
        self.opens_at = now + SETTLE_SECS

    def wants_more(self, now: float) -> bool:
        """Say whether the acknowledgement has had its time, and somebody is there."""
        return bool(self.peers) and now >= self.opens_at and not self.outbox

    def lose(self, peer: str, now: float) -> None:
        """Note that a peer has gone, if it may be this Zeek."""
        if peer in self.peers:
            self.peers.discard(peer)
            self._gone.add(peer)
            self.last_sign = now

    def has_lost(self, peer: str) -> bool:
        """Say whether this may be a Zeek that has gone under this name."""
        return peer in self._gone

    def find_again(self, peer: str, now: float) -> None:
        """Note that this Zeek is probably back; it gets again what was on its way to it."""
        self._gone.discard(peer)
        self.peers.add(peer)
        lost = [event for when, event in self._recent if when > self.last_sign - RECENT_SECS]
        self._recent.clear()
        self.outbox.extendleft(reversed(lost))
        self._expected_until = now + EXPECTED_SECS

    def is_meant_by(self, topic: str, now: float) -> bool:
        """Say whether a wish for `topic` is probably from this Zeek, which has it already."""
        return topic == self.topic and now < self._expected_until

    def begin_again(self, now: float) -> None:
        """Go on as if subscribed just now: this Zeek may have been started anew."""
        self._expected_until = now
        self.opens_at = now + SETTLE_SECS

    def add(self, changes: Sequence[Change], now: float) -> None:  # noqa: ARG002
        """Put an event per item into the outbox."""
        for change in changes:
            for kind, indicator, item in self.ledger.apply(change):
                self.outbox.append(self._protocol.intel(kind, change.time, indicator, item))

    def published(self, event: Event, now: float) -> None:
        """Remember an event for the case that the connection breaks."""
        self._recent.append((now, event))


@dataclass(frozen=True)
class _Sent:
    """A batch that Zeek has not said it has."""

    number: int
    event: Event
    changes: int
    sent_at: float


class BatchSubscription(Subscription):
    """A Zeek with our script: numbered batches, of which `WINDOW` may be on their way.

    Nothing is sent until Zeek says that it receives at its topic (`received`), nothing is
    forgotten until it says so again: a slow Zeek is waited for, and after a break of the
    connection it gets what it missed. It drops a batch that it has had.
    """

    def __init__(
        self, p2p: str, topic: str, name: str, outq: MessageQueue, now: float, *, protocol: Protocol
    ) -> None:
        super().__init__(p2p, topic, name, outq, now)
        self._protocol = protocol
        self.is_open = False
        self._last_number = 0
        self._sent: deque[_Sent] = deque()

    @property
    def waiting(self) -> int:
        """How many messages wait for Zeek, those on their way included."""
        return self.outq.qsize() + sum(sent.changes for sent in self._sent)

    def wants_more(self, now: float) -> bool:  # noqa: ARG002
        """Say whether Zeek is there and keeps up."""
        return self.is_open and len(self._sent) < WINDOW

    def add(self, changes: Sequence[Change], now: float) -> None:
        """Put a batch into the outbox."""
        if not changes:
            return
        self._last_number += 1
        event = self._protocol.batch(self.p2p, self._last_number, changes)
        self._sent.append(_Sent(self._last_number, event, len(changes), now))
        self.outbox.append(event)

    def received(self, number: int, now: float) -> None:
        """Note that Zeek is there and has had all batches up to `number`."""
        self.last_sign = now
        progress = False
        while self._sent and self._sent[0].number <= number:
            self._sent.popleft()
            progress = True
        lost = self._sent and not progress and now - self._sent[0].sent_at > RESEND_SECS
        if lost or not self.is_open:
            self._send_again(now)
        self.is_open = True

    def doubt(self) -> None:
        """Send again what is on its way, unless the next sign of life says that it has come."""
        self._sent = deque(replace(each, sent_at=-math.inf) for each in self._sent)

    def interrupt(self) -> None:
        """Send nothing until Zeek says again that it is there."""
        self.is_open = False
        self.outbox.clear()

    def _send_again(self, now: float) -> None:
        self._sent = deque(replace(each, sent_at=now) for each in self._sent)
        self.outbox.clear()
        self.outbox.extend(each.event for each in self._sent)
