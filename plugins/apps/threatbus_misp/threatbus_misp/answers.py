"""What REST answers, and what follows from it.

Messages go on while REST answers, and are newer: every answer is asked for and applied within
`Answers.asking`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final

import msgspec

from threatbus.errors import Rejected
from threatbus_misp.config import InstanceConfig
from threatbus_misp.contexts import uuid_of
from threatbus_misp.mapping import model
from threatbus_misp.mapping.model import Attribute, Event
from threatbus_misp.reconciler import Reconciler

#: Rows of the index that are looked at while nobody else may.
ROWS_AT_ONCE: Final = 10_000


class Answers:
    """Takes REST's answers, and says what there is to ask for; the healer calls it."""

    def __init__(self, config: InstanceConfig, reconciler: Reconciler) -> None:
        self._published_only = config.published_only
        self._reconciler = reconciler
        self._contexts = reconciler.contexts
        self._index = reconciler.index
        self._lock = reconciler.handover.lock
        self._publishing = reconciler.handover.publishing
        #: Epoch before which what is not on the bus is history: answers are full of it.
        self.horizon = 0

    def asking(self) -> AbstractContextManager[None]:
        """Ask REST and apply its answer within: what messages say meanwhile is newer."""
        return self._reconciler.asking()

    # What REST has answered.

    def apply_event(self, event: Event, name: str = "") -> None:
        """Apply an event as it is in MISP: what it no longer holds is withdrawn.

        `name` is the id or UUID by which it was asked for.
        """
        with self._publishing():
            if self._reconciler.is_overtaken(uuid_of(event)):
                return
            if self._published_only and not event.published:
                self._reconciler.hold(f"event {event.uuid}")
            else:
                whole = self._index.is_whole_missing(name)
                horizon = 0 if whole else self._horizon_of(event)
                self._reconciler.apply_event(event, horizon, from_rest=True)

    def apply_attributes(self, found: Iterable[Attribute]) -> None:
        """Apply attributes, each with its event and its event's tags."""
        with self._publishing():
            for attribute in found:
                self._apply_attribute(attribute)

    def _apply_attribute(self, attribute: Attribute) -> None:
        event = attribute.event
        if event is not None and self._reconciler.is_overtaken((event.uuid or "").lower()):
            return
        if self._published_only and not (event is not None and event.published):
            self._reconciler.hold_attribute(attribute)
            return
        try:
            context = self._contexts.of(event, attribute, visible=True)
        except Rejected as error:
            self._reconciler.reject(error.reason, b"")
            return
        horizon = self._horizon_of(event)
        self._reconciler.apply_member(attribute, context, horizon, from_rest=True)

    def _horizon_of(self, event: Event | None) -> int:
        """Give the horizon; 0 for an event that was published since, which brings all it has."""
        published = (event.publish_timestamp or 0) if event is not None else 0
        return 0 if published >= self.horizon else self.horizon

    def apply_existence(self, asked: Sequence[str], there: Collection[str]) -> int:
        """Apply which of some events are there; gives the number of those that are gone."""
        gone = 0
        with self._publishing():
            self._contexts.new.difference_update(asked)
            for uuid in asked:
                known = self._contexts.get(uuid)
                if known is None or self._reconciler.is_overtaken(uuid):
                    continue
                if uuid not in there:
                    # What REST has never shown may be there, and not for this key's user.
                    if known.visible and not known.deleted:
                        self._reconciler.apply_end(uuid)
                        gone += 1
                elif not known.visible:
                    self._contexts.put(msgspec.structs.replace(known, visible=True))
        return gone

    def apply_absence(self, event: str) -> None:
        """Apply that there is no event of this id or UUID: if REST has shown it, it is gone."""
        with self._lock, self._index.reading():
            uuid = self._index.event_with_id(event) or event.lower()
        self.apply_existence([uuid], ())

    def apply_sightings(self, found: Iterable[model.Sighting]) -> None:
        """Apply sightings; those that came as messages are known."""
        with self._publishing():
            for sighting in found:
                try:
                    self._reconciler.apply_sighting(sighting, from_rest=True)
                except Rejected as error:
                    self._reconciler.reject(error.reason, b"")

    # What there is to ask for.

    def events(self) -> list[str]:
        """Give the UUIDs of the events that are not known to be gone."""
        with self._lock, self._index.reading():
            return self._contexts.there()

    def new_events(self) -> list[str]:
        """Give the UUIDs of the events that messages have named and REST was not asked about."""
        with self._lock:
            return list(self._contexts.new)

    def missing(self) -> list[str]:
        """Give the events that were to be asked for, in this run or the last one."""
        with self._lock, self._index.reading():
            return self._index.missing()

    def found(self, event: str, is_found: Callable[[], bool]) -> None:
        """Forget that an event is to be asked for, if `is_found` says so: it may be, anew."""
        with self._lock, self._index.transaction():
            if is_found():
                self._index.remove_missing(event)

    # A comparison of everything: `begin`, `compare` all that there is, then ask for `doubtful`.

    def begin_comparison(self) -> None:
        """Begin to compare everything."""
        with self._lock, self._index.reading():
            self._index.begin_comparison()

    def compare(self, found: Sequence[Attribute]) -> None:
        """Apply attributes, and note that they are there."""
        with self._lock, self._index.transaction():
            self._index.see(attribute.uuid for attribute in found)
        self.apply_attributes(found)

    def doubtful(self) -> list[str]:
        """Give the events with published attributes that were not there."""
        with self._lock, self._index.transaction():
            last = self._index.last_row()
        events: dict[str, None] = {}
        for first in range(0, last + 1, ROWS_AT_ONCE):
            # Messages have their turn in between.
            with self._lock, self._index.reading():
                found = self._index.events_of_unseen(first, first + ROWS_AT_ONCE)
            events |= dict.fromkeys(found)
        return list(events)

    # What the healer notes, in this run or an earlier one.

    def note(self, name: str) -> str | None:
        """Give a note that `put_note` wrote."""
        with self._lock, self._index.reading():
            return self._index.note(name)

    def put_note(self, name: str, value: str) -> None:
        """Write a note."""
        with self._lock, self._index.transaction():
            self._index.put_note(name, value)

    @property
    def index_renewed(self) -> int:
        """When the index had to be begun anew, an epoch; 0: never."""
        return self._index.renewed
