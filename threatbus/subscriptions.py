"""The subscriptions of a bus: which queue receives which topics, and what backbones know of it."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from threatbus.draining import wait_while_it_drains
from threatbus.errors import Overflow
from threatbus.foreign import ForeignFeeder, ForeignQueue
from threatbus.messages import INTERNAL_PREFIX, STIX_PREFIX
from threatbus.queues import MessageQueue
from threatbus.subscribers import Subscriber

if TYPE_CHECKING:
    from threatbus.observe.observer import PluginRecord
    from threatbus.plugins import Plugin

logger = logging.getLogger("threatbus.subscriptions")

#: Seconds after which a reader that has taken nothing is not waited for at the end.
STALLED_SECS = 1.0


@dataclass(frozen=True)
class _Subscription:
    """A subscribed queue: what it was given as, what backbones see, who feeds and drains it."""

    given: object
    subscriber: Subscriber
    feeder: ForeignFeeder | None
    drained_by_plugin: bool
    told: set[str] = field(default_factory=set)
    """The topics that the backbones know of: those that no shorter one covers."""

    @property
    def waiting(self) -> int:
        """How many messages the plugin has not taken yet."""
        return self.feeder.waiting if self.feeder else self.subscriber.queue.qsize()


class Subscriptions:
    """All subscribers of a bus; the only place that calls the backbones' subscribe hooks.

    `make_outq` makes the queue that stands before a foreign one, `on_gone` hears of subscribers
    that have lost their last topic. One lock orders changes, so that a subscriber's topics and
    what the backbones know of them stay the same. Whoever delivers for a backbone may hold locks
    which its hooks want, and so may change nothing here: it asks for `current`, no more.
    """

    def __init__(
        self, make_outq: Callable[[str], MessageQueue], on_gone: Callable[[Subscriber], None]
    ) -> None:
        self._backbones: Sequence[Plugin] = ()
        self._make_outq = make_outq
        self._on_gone = on_gone
        # Guards changes of the fields below, and the topics of every subscriber.
        self._lock = threading.RLock()
        # Replaced as a whole by every change, so that readers need no lock.
        self._by_queue: dict[int, _Subscription] = {}
        # Feeders of queues that were unsubscribed, which hand over the rest.
        self._finishing: list[ForeignFeeder] = []
        self._numbers = itertools.count(1)
        self._closed = False

    def backbones_are(self, backbones: Sequence[Plugin]) -> None:
        """Say which backbones run; called once, before the first subscription."""
        self._backbones = backbones

    def admit(
        self, q: object, *, drained_by_plugin: bool = False, record: PluginRecord | None = None
    ) -> Subscriber:
        """Give the subscriber for `q`, a new one unless there is one; it gets nothing yet.

        `record` is that of the plugin that subscribes.
        Raises `Overflow` for a queue that is closed, and when the bus is stopping.
        """
        with self._lock:
            if self._closed:
                raise Overflow("the bus is stopping and takes no more subscribers")
            found = self._by_queue.get(id(q))
            if found is None:
                found = self._make(q, drained_by_plugin, record)
                self._by_queue = {**self._by_queue, id(q): found}
            return found.subscriber

    def add(self, topics: Sequence[str], q: object) -> None:
        """Let `q`, which is admitted, receive what matches `topics`, besides what it receives."""
        with self._lock:
            found = self._by_queue.get(id(q))
            if found is None:
                return
            found.subscriber.topics.update(_stix_only(topics))
            self._tell(found)

    def remove(self, topics: Sequence[str], q: object) -> None:
        """End subscriptions of `q`; with the last one its outq is closed.

        A foreign queue still gets what had come before.
        """
        with self._lock:
            found = self._by_queue.get(id(q))
            if found is None:
                return
            found.subscriber.topics.difference_update(_stix_only(topics))
            self._tell(found)
            if found.subscriber.topics:
                return
            kept = dict(self._by_queue)
            del kept[id(q)]
            self._by_queue = kept
            self._finishing = [feeder for feeder in self._finishing if feeder.is_alive()]
            if found.feeder is not None:
                self._finishing.append(found.feeder)
        if found.feeder is not None:
            found.feeder.finish()
        else:
            # Nobody may read it any more, and full it would hold up the sources.
            found.subscriber.queue.close()
        if found.subscriber.outlet is not None:
            found.subscriber.outlet.ended()
        self._on_gone(found.subscriber)

    def current(self) -> list[Subscriber]:
        """Give all subscribers. Never waits."""
        return [found.subscriber for found in self._by_queue.values()]

    def settle(self) -> None:
        """Return when no change is under way; never, if one hangs."""
        with self._lock:
            return

    def hand_over(self, deadline: float) -> int:
        """Wait until foreign queues have what is theirs, if their plugins drain them.

        Those do not see what has not reached them. Gives the number that remains at `deadline`, or
        when nothing more has gone over for `STALLED_SECS`.
        """
        outqs = [
            found.subscriber.queue
            for found in self._by_queue.values()
            if found.feeder is not None and found.drained_by_plugin
        ]

        def waiting() -> int:
            return sum(outq.unfinished for outq in outqs)

        wait_while_it_drains(waiting, deadline, STALLED_SECS)
        return waiting()

    def drain(self, deadline: float) -> int:
        """Wait for the readers of queues that no plugin drains; give the number that remains.

        Ends at `deadline`, or when nobody has taken anything for `STALLED_SECS`.
        """
        with self._lock:
            own = [found for found in self._by_queue.values() if not found.drained_by_plugin]
        wait_while_it_drains(lambda: sum(found.waiting for found in own), deadline, STALLED_SECS)
        for found in own:
            if found.waiting:
                name = found.subscriber.name
                logger.warning("%d messages for %s remain undelivered", found.waiting, name)
        return sum(found.waiting for found in own)

    def close(self) -> None:
        """End all subscriptions, and take no more."""
        with self._lock:
            self._closed = True
            everything = list(self._by_queue.values())
        for found in everything:
            self.remove(list(found.subscriber.topics), found.given)
        with self._lock:
            finishing = list(self._finishing)
        for feeder in finishing:
            feeder.stop()

    def _make(
        self, q: object, drained_by_plugin: bool, record: PluginRecord | None
    ) -> _Subscription:
        feeder = None
        if isinstance(q, MessageQueue):
            outq = q
            if outq.closed:
                raise Overflow(f"{outq.name} is closed: subscribe with a new queue")
        else:
            outq = self._make_outq(f"foreign queue {next(self._numbers)}")
            feeder = ForeignFeeder(outq, cast("ForeignQueue", q), lambda: self._end_soon(q))
            feeder.start()
        outq.when_overflowed(lambda: self._end_soon(q))
        subscriber = Subscriber(
            outq.name,
            outq,
            several_backbones=len(self._backbones) > 1,
            outlet=record.subscribed(outq) if record is not None else None,
        )
        return _Subscription(q, subscriber, feeder, drained_by_plugin)

    def _end_soon(self, q: object) -> None:
        """End the subscription of a queue that overflowed or refused.

        Called by whoever delivers, so in a thread of its own; see the class.
        """
        threading.Thread(target=self._end, args=(q,), name="unsubscriber", daemon=True).start()

    def _end(self, q: object) -> None:
        with self._lock:
            found = self._by_queue.get(id(q))
            topics = list(found.subscriber.topics) if found else []
        if found is not None and found.given is q:
            self.remove(topics, q)
            logger.error("%s is unsubscribed: it did not take its messages", found.subscriber.name)

    def _tell(self, found: _Subscription) -> None:
        """Have the backbones know what `found` is to receive now.

        Of topics that overlap they hear the shortest only, for not every backbone sees to it that
        such a subscriber gets one copy. New topics come before old ones go, so nothing is missed.
        """
        wanted = _shortest(found.subscriber.topics)
        for hook, topics in (
            ("subscribe", wanted - found.told),
            ("unsubscribe", found.told - wanted),
        ):
            for topic in topics:
                for backbone in self._backbones:
                    backbone.call_safely(hook, topic=topic, q=found.subscriber)
        found.told.clear()
        found.told.update(wanted)


def _shortest(topics: Iterable[str]) -> set[str]:
    """Give those of `topics` that begin with no other one."""
    shortest: set[str] = set()
    for topic in sorted(topics):
        if not topic.startswith(tuple(shortest)):
            shortest.add(topic)
    return shortest


def _stix_only(topics: Sequence[str]) -> list[str]:
    """Give the topics as backbones get them: the bus's internal messages are for nobody else.

    The one topic that matches both, the empty one, is narrowed to STIX.
    """
    narrowed = [topic or STIX_PREFIX for topic in topics]
    return [
        topic
        for topic in narrowed
        if not INTERNAL_PREFIX.startswith(topic) and not topic.startswith(INTERNAL_PREFIX)
    ]
