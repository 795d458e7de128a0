"""All that is seen of one bus, and what the message path calls for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final, Literal

from threatbus.messages import INTERNAL_PREFIX, Message
from threatbus.observe.counts import TopicCount, TopicTotals, summed, topics_of
from threatbus.observe.latency import Arrivals, Histogram, Stopwatch
from threatbus.observe.report import PluginReport
from threatbus.observe.ring import Ring
from threatbus.queues import MessageQueue

#: Names of subscribers that are told apart as values of a label; all others are `OTHER_LABEL`.
MAX_LABELS: Final = 100
#: Characters of such a name.
MAX_LABEL_LENGTH: Final = 64
OTHER_LABEL: Final = "other"

Kind = Literal["app", "backbone"]


class Labels:
    """Names that apps give themselves, as values of a label: few, short and printable.

    The first `limit` that ever came keep their own: an app that calls itself something else at
    every start fills no monitoring with it.
    """

    def __init__(self, limit: int = MAX_LABELS) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """Give the label for a name."""
        shown = "".join(char if char.isprintable() else "?" for char in name[:MAX_LABEL_LENGTH])
        with self._lock:
            if shown not in self._known and len(self._known) >= self._limit:
                return OTHER_LABEL
            self._known.add(shown)
            return shown


class Counting:
    """Counts a batch by topic once, although several outqs get it one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Sequence[Message], TopicCount] = ((), ())

    def of(self, batch: Sequence[Message]) -> TopicCount:
        """Give what `topics_of` gives; from any thread."""
        # One reference, so that another thread's batch is seen whole or not at all.
        last, counted = self._last
        if last is not batch:
            counted = topics_of(batch)
            self._last = (batch, counted)
        return counted


class Outlet:
    """What one subscriber has been given. Its owner calls it under a lock of its own."""

    def __init__(self, record: PluginRecord, queue: MessageQueue, label: str) -> None:
        self._record = record
        self.queue = queue
        self.label = label
        self.totals = TopicTotals()
        # Looked up once: what follows is done for each subscriber and batch.
        self._count = record.counting.of
        self._delivered = record.ring.delivered
        queue.time_with(record.stopwatch)

    @property
    def plugin(self) -> str:
        """The name of the plugin whose subscriber it is."""
        return self._record.name

    def ended(self) -> None:
        """Note that the subscriber has gone. Idempotent."""
        self._record.unsubscribed(self)

    def passed(self, batch: Sequence[Message]) -> None:
        """Note that the queue has been given `batch`. One that was full and is closed has not."""
        queue = self.queue
        if batch and not queue.closed:
            self.totals.add(self._count(batch))
            self._delivered(batch, queue.name, queue.given)

    def body_outdated(self) -> None:
        """Note that an object of a snapshot was dropped, since something newer had come live."""
        self._record.body_outdated()

    def passed_body(self, body: Message) -> None:
        """Note that the queue has been given one object of a snapshot, which is not traced."""
        if not self.queue.closed:
            self.totals.add(((body.topic, 1),))


class PluginRecord:
    """What is seen of one plugin."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        ring: Ring,
        counting: Counting,
        arrivals: Arrivals,
        labels: Labels,
    ) -> None:
        self.name = name
        self.kind: Kind = kind
        self.ring = ring
        self.counting = counting
        self.report = PluginReport(name)
        self.latency = Histogram()
        self.stopwatch = Stopwatch(arrivals, self.latency)
        self.received = TopicTotals()
        self._arrivals = arrivals
        self._labels = labels
        # Guards the fields below: subscribers, and what those that have gone had got.
        self._lock = threading.Lock()
        self.outdated_bodies = 0
        self._outlets: dict[int, Outlet] = {}
        self._gone = TopicTotals()
        self._dropped_by_gone: dict[str, int] = {}

    def accepted(self, batch: Sequence[Message], first_id: int, size: int) -> None:
        """Note that the plugin has put `batch`, whose ids begin with `first_id`, on the bus.

        Called in the order of the ids, by one thread at a time.
        """
        if not batch:
            return
        now = time.monotonic()
        self._arrivals.note(first_id, now)
        counted = self.counting.of(batch)
        self.received.add(counted)
        # A snapshot would push everything else out.
        if not counted[0][0].startswith(INTERNAL_PREFIX):
            self.ring.accepted(batch, self.name, size, now)

    def subscribed(self, queue: MessageQueue) -> Outlet:
        """Begin to watch what a subscriber of the plugin is given."""
        outlet = Outlet(self, queue, self._labels.of(queue.label))
        with self._lock:
            self._outlets[id(outlet)] = outlet
        return outlet

    def unsubscribed(self, outlet: Outlet) -> None:
        """Keep the totals of a subscriber that has gone. Idempotent."""
        dropped = outlet.queue.stats().dropped
        with self._lock:
            if self._outlets.pop(id(outlet), None) is None:
                return
            self._gone.add(list(outlet.totals.by_topic().items()))
            total = self._dropped_by_gone.get(outlet.label, 0) + dropped
            self._dropped_by_gone[outlet.label] = total

    def body_outdated(self) -> None:
        """Count an object of a snapshot that something newer has overtaken."""
        with self._lock:
            self.outdated_bodies += 1

    def outlets(self) -> list[Outlet]:
        """Give the subscribers that there are."""
        with self._lock:
            return list(self._outlets.values())

    def delivered(self) -> dict[str, int]:
        """Give how many messages all subscribers of the plugin have been given, by topic."""
        with self._lock:
            parts = [outlet.totals.by_topic() for outlet in self._outlets.values()]
            return summed([*parts, self._gone.by_topic()])

    def dropped_by_gone(self) -> dict[str, int]:
        """Give what outqs that are no more have let go undelivered, by the label of theirs."""
        with self._lock:
            return dict(self._dropped_by_gone)


class Observer:
    """What is seen of one bus. `messages` and `size` (bytes) bound what passed last."""

    def __init__(self, messages: int, size: int) -> None:
        self.ring = Ring(messages, size)
        # What all records share.
        self._counting = Counting()
        self._arrivals = Arrivals()
        self._labels = Labels()
        self._records: dict[tuple[Kind, str], PluginRecord] = {}

    def plugin(self, name: str, kind: Kind) -> PluginRecord:
        """Give the record of a plugin, a new one when it is first asked for."""
        found = self._records.get((kind, name))
        if found is None:
            found = PluginRecord(
                name, kind, self.ring, self._counting, self._arrivals, self._labels
            )
            self._records[kind, name] = found
        return found

    def plugins(self) -> list[PluginRecord]:
        """Give all records."""
        return list(self._records.values())
