"""Which queue gets which message: the topic table that backbones sort by."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.queues import size_of

logger = logging.getLogger("threatbus.routing")

_topic_of = attrgetter("topic")


class Outlet(Protocol):
    """What a backbone hands messages to: the outq of a subscriber."""

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Take `batch` in order, without blocking."""


class TopicTable:
    """Maps topics to outlets; a topic matches every message topic that begins with it.

    An outlet that is subscribed to several matching topics gets each message once. `deliver`
    may be called from several threads at once, also while subscriptions change.
    """

    def __init__(self) -> None:
        # Guards changes; readers see whole snapshots of the two dicts below.
        self._lock = threading.Lock()
        # Insertion-ordered set of (topic, outlet), replaced as a whole by every change.
        self._subscriptions: dict[tuple[str, int], Outlet] = {}
        # Message topic -> outlets that it matches; emptied by every change, filled on demand.
        self._matches: dict[str, tuple[Outlet, ...]] = {}
        self._log = RateLimited(logger)

    def subscribe(self, topic: str, outlet: Outlet) -> None:
        """Let `outlet` receive what matches `topic` from now on. Idempotent."""
        with self._lock:
            self._subscriptions = {**self._subscriptions, (topic, id(outlet)): outlet}
            self._matches = {}

    def unsubscribe(self, topic: str, outlet: Outlet) -> None:
        """End one subscription of `outlet`. Idempotent."""
        with self._lock:
            kept = dict(self._subscriptions)
            kept.pop((topic, id(outlet)), None)
            self._subscriptions = kept
            self._matches = {}

    def deliver(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Hand every message of `batch` to each outlet whose topics match it, in order.

        `size` is `size_of(batch)`, for callers that know it.
        """
        topics = set(map(_topic_of, batch))
        if len(topics) == 1:
            size = size_of(batch) if size is None else size
            for outlet in self._matching(topics.pop()):
                self._hand_over(outlet, batch, size)
            return
        for wanted, outlets in self._groups(topics):
            part = [message for message in batch if message.topic in wanted]
            size = size_of(part)
            for outlet in outlets:
                self._hand_over(outlet, part, size)

    def _groups(self, topics: set[str]) -> list[tuple[set[str], list[Outlet]]]:
        """Group the outlets by which of `topics` they want, so that each part is made once."""
        wanted_by: dict[int, tuple[Outlet, set[str]]] = {}
        for topic in topics:
            for outlet in self._matching(topic):
                wanted_by.setdefault(id(outlet), (outlet, set()))[1].add(topic)
        groups: dict[frozenset[str], list[Outlet]] = {}
        for outlet, wanted in wanted_by.values():
            groups.setdefault(frozenset(wanted), []).append(outlet)
        return [(set(wanted), outlets) for wanted, outlets in groups.items()]

    def _matching(self, topic: str) -> tuple[Outlet, ...]:
        matches = self._matches
        found = matches.get(topic)
        if found is None:
            unique = {
                id(outlet): outlet
                for (prefix, _), outlet in self._subscriptions.items()
                if topic.startswith(prefix)
            }
            found = tuple(unique.values())
            # Into the dict that was read: if a change replaced it meanwhile, this is forgotten.
            matches[topic] = found
        return found

    def _hand_over(self, outlet: Outlet, batch: Sequence[Message], size: int) -> None:
        try:
            outlet.put_many(batch, size)
        # One outlet that fails must cost the others nothing.
        except Exception:  # noqa: BLE001 (logged)
            self._log.log(
                id(outlet),
                logging.ERROR,
                "%d messages not delivered: %r failed",
                len(batch),
                outlet,
                exc_info=True,
            )
