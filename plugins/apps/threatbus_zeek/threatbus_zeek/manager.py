"""Who is subscribed over one transport, what each is owed, and what they report; no threads."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from threatbus.errors import ConnectionLost, Overflow, Rejected
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.logger import RateLimited
from threatbus.messages import INDICATOR, Message
from threatbus.observe.report import ReaderState
from threatbus.queues import MessageQueue
from threatbus.services import Services
from threatbus_zeek import events
from threatbus_zeek.config import ZeekConfig
from threatbus_zeek.events import BadEvent, Protocol
from threatbus_zeek.mapping import Change, IndicatorReader, sighting_document
from threatbus_zeek.peers import Peers
from threatbus_zeek.subscriptions import BATCH, BatchSubscription, PlainSubscription, Subscription
from threatbus_zeek.transport import Arrived, Garbled, Incoming, PeerAdded, PeerLost, Transport

logger = logging.getLogger("threatbus.zeek")

#: Sightings that wait while the bus is full, and their bytes; with more, nothing is read from Zeek
#: any more.
MAX_PENDING: Final = 10_000
MAX_PENDING_BYTES: Final = 16 * 1024 * 1024
#: Seconds that a wish waits for its peer to be added, and wishes that wait at once.
EARLY_SECS: Final = 0.5
MAX_EARLY: Final = 100
#: Seconds between two looks for subscriptions of Zeeks that have gone.
HOUSEKEEPING_SECS: Final = 1.0
#: Seconds without a sign of a Zeek after which it is not waited for at the end.
STALLED_SECS: Final = 2.0
#: Seconds between two lines on indicators that have no counterpart in Zeek.
UNMAPPED_LOG_SECS: Final = 60.0


class Manager:
    """All subscriptions over one transport. Belongs to the thread of its link."""

    def __init__(
        self,
        config: ZeekConfig,
        services: Services,
        inq: Intake,
        subscribe: SubscribeCallback,
        unsubscribe: UnsubscribeCallback,
        transport: Transport,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._services = services
        self._rejects = services.rejects
        self._inq = inq
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._transport = transport
        self._clock = clock
        self._protocol = Protocol(config.module_namespace)
        self._reader = IndicatorReader(reduce_ip_port=config.reduce_ip_port)
        self._subscriptions: dict[str, Subscription] = {}
        self._peers = Peers()
        # Wishes of Zeeks that may be about to be added, each with when it is dealt with anyway.
        self._early: deque[tuple[float, events.Subscribe | events.Join]] = deque()
        # Sightings that inq had no room for yet, in order.
        self._pending: deque[Message] = deque()
        self._pending_bytes = 0
        self._takes_sightings = True
        # Every subscription gets the next one, so that there is something to call it.
        self._number = 0
        self._next_housekeeping = 0.0
        self._log = RateLimited(logger)
        self._unmapped_log = RateLimited(logger, UNMAPPED_LOG_SECS)
        #: How many indicators had no counterpart in Zeek, counted once per subscription.
        self.unmapped = 0

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def reading(self) -> bool:
        """Whether more may be read from Zeek."""
        return len(self._pending) < MAX_PENDING and self._pending_bytes < MAX_PENDING_BYTES

    # What comes in.

    def take(self, incoming: Incoming) -> None:
        """Deal with one thing that came in. Raises nothing, whatever it is."""
        try:
            match incoming:
                case Arrived():
                    self._take_message(incoming)
                case Garbled():
                    self._rejects.add(self._transport.name, incoming.reason, incoming.raw)
                case PeerAdded():
                    self._peer_added(incoming.peer)
                case PeerLost():
                    self._peer_lost(incoming.peer)
        # Whatever a message sets off, those behind it are dealt with.
        except Exception as error:
            logger.exception("%s: a message could not be dealt with", self._transport.name)
            reason = f"internal error: {type(error).__name__}"
            self._rejects.add(self._transport.name, reason, _shown(incoming))

    def _take_message(self, message: Arrived) -> None:
        with self._refusing(message):
            request = self._protocol.read(events.unpack(message.value))
            match request:
                case events.Sighting():
                    self._on_sighting(request)
                case events.Subscribe() | events.Join():
                    if not self._comes_early(request):
                        self._on_wish(request)
                case events.Received():
                    self._on_received(request)
                case events.Unsubscribe():
                    self._on_unsubscribe(request)

    @contextmanager
    def _refusing(self, cause: object) -> Iterator[None]:
        """Reject `cause` if it is wrong, and log what cannot be done about it."""
        try:
            yield
        except (BadEvent, Rejected) as error:
            self._rejects.add(self._transport.name, str(error), _shown(cause))
        except Overflow as error:
            self._log.log("overflow", logging.WARNING, "%s: %s", self._transport.name, error)
        except ConnectionLost as error:
            # Who asked is gone, and asks again when it is back.
            self._log.log("lost", logging.INFO, "%s: no answer: %s", self._transport.name, error)

    def _on_sighting(self, sighting: events.Sighting) -> None:
        if not self._takes_sightings:
            raise Overflow("the bus is stopping and takes no more sightings")
        document = sighting_document(sighting, _now())
        self._pending.append(Message(self._services.border.topic_of(document), document))
        self._pending_bytes += len(document)

    def _on_wish(self, wish: events.Subscribe | events.Join) -> None:
        if isinstance(wish, events.Join):
            self._on_join(wish)
        else:
            self._on_subscribe(wish)

    def _on_subscribe(self, wish: events.Subscribe) -> None:
        now = self._clock()
        for found in self._plain():
            if found.is_meant_by(wish.topic, now):
                # Its topic and what waits for it stay; only the snapshot it wants is new.
                found.begin_again(now)
                self._subscribe(found.topic, found.outq, wish.snapshot)
                self._acknowledge(found)
                return
        p2p = events.new_p2p_topic(wish.topic)
        peers = self._peers.claim()
        name, outq = self._new_outq("")
        subscription = PlainSubscription(
            p2p,
            wish.topic,
            name,
            outq,
            now,
            protocol=self._protocol,
            capacity=self._config.max_indicators,
            peers=peers,
        )
        # Registered first: from the moment Zeek knows of it nothing is missed.
        self._register(subscription, wish)
        self._acknowledge(subscription)

    def _acknowledge(self, subscription: Subscription) -> None:
        event = self._protocol.acknowledged(subscription.p2p)
        self._transport.publish(events.MANAGE_TOPIC, event)

    def _on_join(self, wish: events.Join) -> None:
        found = self._subscriptions.get(wish.p2p)
        if found is None:
            self._peers.claim()
            name, outq = self._new_outq(wish.name)
            found = BatchSubscription(
                wish.p2p, wish.topic, name, outq, self._clock(), protocol=self._protocol
            )
            self._register(found, wish)
        elif isinstance(found, BatchSubscription) and found.topic == wish.topic:
            found.last_sign = self._clock()
            found.interrupt()
        else:
            raise BadEvent("join with the topic of another subscription")
        self._transport.publish(wish.p2p, self._protocol.joined(wish.p2p))

    def _on_received(self, sign: events.Received) -> None:
        found = self._subscriptions.get(sign.p2p)
        if isinstance(found, BatchSubscription):
            found.received(sign.number, self._clock())
        else:
            self._transport.publish(sign.p2p, self._protocol.not_joined(sign.p2p))

    def _on_unsubscribe(self, wish: events.Unsubscribe) -> None:
        if wish.p2p in self._subscriptions:
            self._end(wish.p2p, "as it asked")
        else:
            raise BadEvent(f"unsubscribe from an unknown topic: {wish.p2p[:80]!r}")

    # Peers. Broker does not say which of them an event is from.

    def _peer_added(self, peer: str) -> None:
        now = self._clock()
        self._peers.add(peer)
        is_back = False
        for found in self._plain():
            is_it = self._transport.keeps_its_peer and not found.peers
            if is_it or found.has_lost(peer):
                found.find_again(peer, now)
                self._peers.mark(peer)
                is_back = True
        if self._early and (is_back or not self._peers.has_subscription(peer)):
            _, wish = self._early.popleft()
            with self._refusing(wish):
                self._on_wish(wish)

    def _peer_lost(self, peer: str) -> None:
        self._peers.remove(peer)
        for found in self._subscriptions.values():
            if isinstance(found, PlainSubscription):
                found.lose(peer, self._clock())
            elif not isinstance(found, BatchSubscription):
                continue
            elif self._transport.keeps_its_peer:
                found.interrupt()
            else:
                found.doubt()

    def _comes_early(self, wish: events.Subscribe | events.Join) -> bool:
        """Say whether a wish may be of a Zeek that is about to be added; it then waits for that.

        Broker tells of a new peer by another way than that on which its events come.
        """
        if self._transport.keeps_its_peer or not self._peers.awaits_none:
            return False
        now = self._clock()
        if isinstance(wish, events.Join):
            is_known = wish.p2p in self._subscriptions
        else:
            is_known = any(found.is_meant_by(wish.topic, now) for found in self._plain())
        if is_known or len(self._early) >= MAX_EARLY:
            return False
        self._early.append((now + EARLY_SECS, wish))
        return True

    def _serve_early_wishes(self) -> None:
        """Deal with wishes that no new peer came for: of Zeeks that were there before."""
        while self._early and self._early[0][0] <= self._clock():
            _, wish = self._early.popleft()
            with self._refusing(wish):
                self._on_wish(wish)

    def _plain(self) -> list[PlainSubscription]:
        found = self._subscriptions.values()
        return [each for each in found if isinstance(each, PlainSubscription)]

    # What goes out.

    def serve(self) -> None:
        """Hand on what waits in both directions, one batch per subscription."""
        self._hand_on_sightings()
        self._serve_early_wishes()
        for subscription in list(self._subscriptions.values()):
            if subscription.outq.closed:
                with self._refusing(subscription.name):
                    self._overflowed(subscription)
                continue
            try:
                self._deliver(subscription)
            except ConnectionLost as error:
                self._log.log("lost", logging.INFO, "%s: %s", self._transport.name, error)
        self._keep_house()

    def timeout(self) -> float | None:
        """Give the seconds until there is something to do of its own accord; None: never."""
        now = self._clock()
        if self._pending and self._inq.writable:
            return 0.0
        waits = [max(0.0, due - now) for due, _ in itertools.islice(self._early, 1)]
        for subscription in self._subscriptions.values():
            if subscription.wants_more(now) and not subscription.outq.empty():
                return 0.0
            if isinstance(subscription, PlainSubscription) and subscription.opens_at > now:
                waits.append(subscription.opens_at - now)
        if self._subscriptions:
            waits.append(max(0.0, self._next_housekeeping - now))
        return min(waits, default=None)

    def stop_taking(self) -> None:
        """Hand on the sightings that have come, and refuse those that come from now on."""
        self._hand_on_sightings()
        self._takes_sightings = False

    def is_drained(self) -> bool:
        """Say whether nothing waits for a Zeek that takes it."""
        now = self._clock()
        return not any(
            each.waiting for each in self._subscriptions.values() if self._is_there(each, now)
        )

    @property
    def peers(self) -> int:
        """How many Zeeks are connected."""
        return len(self._peers)

    def reader_states(self) -> dict[str, ReaderState]:
        """Say how subscribers are, by the names of their outqs; from any thread."""
        now = self._clock()
        found = {}
        for each in list(self._subscriptions.values()):
            waiting, silent = each.waiting, now - each.last_sign
            stalled = silent if waiting and silent > STALLED_SECS else 0.0
            found[each.name] = ReaderState(self._is_there(each, now), round(stalled, 1), waiting)
        return found

    def leftovers(self) -> list[tuple[str, int]]:
        """Give the names of subscriptions that something waits for, and how much."""
        return [(each.name, each.waiting) for each in self._subscriptions.values() if each.waiting]

    def _deliver(self, subscription: Subscription) -> None:
        now = self._clock()
        if subscription.wants_more(now):
            batch = subscription.outq.get_many(BATCH)
            subscription.add(self._changes(batch), now)
        while subscription.outbox:
            self._transport.publish(subscription.p2p, subscription.outbox[0])
            subscription.published(subscription.outbox.popleft(), now)

    def _changes(self, batch: Sequence[Message]) -> list[Change]:
        """Read indicators; other messages of the bus's are nothing to Zeek."""
        now = _now()
        changes = []
        for message in batch:
            if message.topic != INDICATOR:
                continue
            try:
                change = self._reader.read(message.data, now)
            except Rejected as error:
                self._rejects.add("to Zeek", error.reason, message.data)
                continue
            if change.is_unmapped:
                self.unmapped += 1
                logger.debug("%s has no counterpart in Zeek's Intel framework", change.id)
                self._unmapped_log.log(
                    "unmapped",
                    logging.INFO,
                    "%s: %d indicators so far have no counterpart in Zeek's Intel framework",
                    self._transport.name,
                    self.unmapped,
                )
            changes.append(change)
        return changes

    def _hand_on_sightings(self) -> None:
        if not self._pending or not self._inq.writable:
            return
        batch = list(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        try:
            # This thread must not wait: it is the one that Zeek's answers come through.
            self._inq.put_many(batch, wait=False)
        except Overflow as error:
            logger.warning("%d sightings not taken: %s", len(batch), error)

    # The beginning and the end of subscriptions.

    def _new_outq(self, name: str) -> tuple[str, MessageQueue]:
        limit = self._config.max_subscribers
        if len(self._subscriptions) >= limit:
            raise BadEvent(f"there are {limit} subscriptions already (max_subscribers)")
        self._number += 1
        label = name or "zeek"
        name = f"{label} #{self._number} of {self._transport.name}"
        wake = self._transport.wake
        return name, self._services.outq(name, label=label, on_ready=wake, on_overflow=wake)

    def _register(self, subscription: Subscription, wish: events.Subscribe | events.Join) -> None:
        self._subscriptions[subscription.p2p] = subscription
        try:
            self._subscribe(subscription.topic, subscription.outq, wish.snapshot)
        # Nothing half subscribed is left behind, whatever it was; take() says it.
        except Exception:
            self._end(subscription.p2p, "it could not be subscribed")
            raise
        logger.info(
            "%s subscribes to %s%s",
            subscription.name,
            subscription.topic or "everything",
            f", with a snapshot of {wish.snapshot}" if wish.snapshot else "",
        )

    def _end(self, p2p: str, why: str) -> None:
        found = self._subscriptions.pop(p2p)
        waiting = found.waiting
        try:
            self._unsubscribe(found.topic, found.outq)
        finally:
            found.outq.close()
        log = logger.warning if waiting else logger.info
        log("%s is unsubscribed: %s; %d messages waited", found.name, why, waiting)

    def _overflowed(self, subscription: Subscription) -> None:
        """Deal with an outq that has followed the policy `disconnect`."""
        dropped = subscription.outq.stats().dropped
        self._end(
            subscription.p2p,
            f"it did not keep up, its outq was full and let go of {dropped} messages",
        )
        if isinstance(subscription, BatchSubscription):
            self._publish_or_leave(subscription.p2p)
            return
        # The old script cannot be told. It goes on at its topic, with what comes from now on.
        logger.error(
            "%s is subscribed anew, but misses %d messages: restart Zeek to ask for a snapshot",
            subscription.name,
            dropped,
        )
        wake = self._transport.wake
        subscription.outq = self._services.outq(
            subscription.name, label=subscription.outq.label, on_ready=wake, on_overflow=wake
        )
        self._subscriptions[subscription.p2p] = subscription
        self._subscribe(subscription.topic, subscription.outq)

    def _publish_or_leave(self, p2p: str) -> None:
        """Tell a Zeek that its subscription has ended; one that is away asks when it is back."""
        try:
            self._transport.publish(p2p, self._protocol.not_joined(p2p))
        except ConnectionLost:
            logger.debug("%s is away and hears of the end of its subscription later", p2p)

    def _keep_house(self) -> None:
        now = self._clock()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING_SECS
        for found in list(self._subscriptions.values()):
            away = now - found.last_sign
            if isinstance(found, PlainSubscription) and found.peers:
                continue
            if away > self._config.grace:
                self._end(found.p2p, f"it has been away for more than {self._config.grace:.0f} s")

    def _is_there(self, subscription: Subscription, now: float) -> bool:
        if isinstance(subscription, PlainSubscription):
            return bool(subscription.peers)
        is_open = isinstance(subscription, BatchSubscription) and subscription.is_open
        return is_open and now - subscription.last_sign < STALLED_SECS


def _now() -> datetime:
    return datetime.now(UTC)


def _shown(incoming: object) -> bytes:
    """Give what the operator gets to see of something that came in."""
    if isinstance(incoming, Arrived) and incoming.raw is None:
        shown = f"{incoming.topic} {incoming.value!r}"
        return shown.encode("utf-8", "backslashreplace")
    raw = getattr(incoming, "raw", None)
    return raw if isinstance(raw, bytes) else repr(incoming).encode("utf-8", "backslashreplace")
