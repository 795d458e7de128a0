"""Brings the bus in line with what MISP says: compares it with the index, publishes the difference.

Whatever the source (a message, a REST answer, a whole event), the question is the same: is this
attribute to be on the bus, and is it there as it is? So a message that comes twice, or a comparison
of everything, publishes nothing that is there already.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from threatbus.errors import Rejected
from threatbus.logger import RateLimited
from threatbus.messages import INDICATOR, SIGHTING
from threatbus_misp.config import InstanceConfig
from threatbus_misp.contexts import Context, Contexts
from threatbus_misp.filters import Filters
from threatbus_misp.handover import Bus, Handover
from threatbus_misp.index import Entry, Index
from threatbus_misp.mapping import indicators, model, sightings
from threatbus_misp.mapping.model import Attribute, Event

logger = logging.getLogger("threatbus.misp")

SECS_PER_DAY = 86_400


@dataclass
class Counters:
    """What has happened, since the start."""

    published: int = 0
    withdrawn: int = 0
    sightings: int = 0
    unchanged: int = 0
    filtered: int = 0
    unmapped: int = 0
    held: int = 0
    rejected: int = 0


class Reconciler:
    """Compares and publishes for one MISP: `messages` and `answers` bring what MISP says.

    `refresh` takes the id or UUID of an event that has to be asked for over REST; `reject` a reason
    and the bytes of what cannot be read. Except where it says otherwise, a method is called within
    ``handover.publishing()``, whose end puts on disk and then on the bus what was published.
    """

    def __init__(
        self,
        name: str,
        config: InstanceConfig,
        index: Index,
        bus: Bus,
        refresh: Callable[[str], bool],
        reject: Callable[[str, bytes], None],
        is_ours: Callable[[model.Sighting], bool],
        now: Callable[[], float],
    ) -> None:
        self._name = name
        self.filters = Filters(config)
        # Whether the configuration keeps nothing off the bus.
        self._keeps_nothing_off = self.filters.open and not config.published_only
        self._refresh = refresh
        self._reject = reject
        self._is_ours = is_ours
        self._now = now
        self._limit = config.false_positive_limit
        # Seconds that an indicator is valid, by type; None: for ever.
        self._lifetimes = {
            kind: int(days * SECS_PER_DAY) or None for kind, days in config.valid_for.items()
        }
        self._lifetime = self._lifetimes.get("default")
        self._url = config.api.host if config.api.key else None
        self._log = RateLimited(logger)
        # Attributes and whole events (their UUIDs) of which messages have told since REST was
        # asked: they are newer than its answer. None while nobody asks.
        self._told: set[str] | None = None
        self.index = index
        self.contexts = Contexts(index, can_ask=bool(config.api.key))
        self.handover = Handover(name, index, bus, self.contexts.forget)
        #: Who says what is published: the name that the operator has given to this MISP.
        self.source = indicators.SOURCE if name == "misp" else name
        self.counters = Counters()

    # Whole events.

    def apply_event(self, event: Event, horizon: int = 0, *, from_rest: bool = False) -> None:
        """Apply an event as it is in MISP: what it no longer holds is withdrawn.

        An attribute that was edited before `horizon` and is not on the bus stays off it. Raises
        `Rejected` for an event without UUID.
        """
        event.tags = event.tags or []
        context = self.contexts.remember(event, visible=from_rest)
        present = set()
        for attribute in model.members(event):
            if isinstance(attribute, Rejected):
                self.reject(attribute.reason, b"")
                continue
            present.add(attribute.uuid)
            self.apply_member(attribute, context, horizon, from_rest=from_rest)
        for entry in self.index.published_of(context.uuid):
            if entry.uuid not in present and not (from_rest and self.is_overtaken(entry.uuid)):
                self.withdraw(entry)

    def apply_member(
        self, attribute: Attribute, context: Context | None, horizon: int, *, from_rest: bool
    ) -> None:
        """Apply one of many attributes: what is wrong with it is its own matter."""
        if from_rest and self.is_overtaken(attribute.uuid):
            return
        if (attribute.timestamp or 0) < horizon and self.index.entry(attribute.uuid) is None:
            return
        if attribute.deleted:
            self.withdraw(self.index.entry(attribute.uuid))
            return
        try:
            self.apply(attribute, context)
        except Rejected as error:
            self.reject(error.reason, attribute.value.encode(errors="replace"))

    def apply_end(self, uuid: str) -> None:
        """Withdraw all of an event that is gone, and let nothing of it return."""
        for entry in self.index.published_of(uuid):
            self.withdraw(entry)
        known = self.contexts.get(uuid) or Context(uuid)
        self.contexts.put(msgspec.structs.replace(known, deleted=True))

    # One attribute.

    def apply(self, attribute: Attribute, event: Context | None) -> None:
        """Publish an attribute, withdraw it, or leave it as it is; `Rejected` if it is no good."""
        entry = self.index.entry(attribute.uuid)
        edited = attribute.timestamp or 0
        if entry is not None and edited < entry.edited:
            # Overtaken: REST has answered with a later edit already.
            return
        if not attribute.to_ids or (event is not None and event.deleted):
            self.withdraw(entry, edited=edited)
            return
        if self._waits_for_tags(attribute, event, entry):
            return
        if not self.filters.let_pass(attribute, event):
            self.counters.filtered += 1
            self.withdraw(entry, edited=edited)
            return
        if self._is_held_back(entry, attribute):
            return
        try:
            self._publish_if_changed(attribute, event, entry)
        except Rejected as error:
            # What was published before does not hold any more, either.
            self.withdraw(entry, edited=edited)
            if not isinstance(error, indicators.Unmapped):
                raise
            self.counters.unmapped += 1

    def _publish_if_changed(
        self, attribute: Attribute, event: Context | None, entry: Entry | None
    ) -> None:
        version = self._version_of(attribute, event)
        content = hashlib.blake2b(version.data, digest_size=12).digest()
        if entry is not None and entry.content:
            if entry.published and entry.content == content:
                self.counters.unchanged += 1
                return
            version = self._version_of(attribute, event, entry.created, entry.modified)
        elif (attribute.timestamp or 0) <= self.index.renewed:
            # There may have been a version that the index before this one knew.
            version = self._version_of(attribute, event, None, self.index.renewed * 1000 + 999)
        self.counters.published += 1
        self.handover.add(INDICATOR, version.data)
        self.index.put(
            Entry(
                uuid=attribute.uuid,
                event=event.uuid if event is not None else "",
                pattern=version.pattern,
                pattern_type=version.pattern_type,
                created=version.created,
                modified=version.modified,
                marking_refs=" ".join(version.marking_refs),
                published=True,
                content=content,
                false_positives=entry.false_positives if entry is not None else 0,
                edited=attribute.timestamp or 0,
            )
        )

    def _version_of(
        self,
        attribute: Attribute,
        event: Context | None,
        created: int | None = None,
        last_modified: int | None = None,
    ) -> indicators.Version:
        """Map an attribute: as if for the first time, or as the version after another one."""
        return indicators.indicator_of(
            attribute,
            self.contexts.event_of(event) if event is not None else None,
            created=created,
            last_modified=last_modified,
            lifetime=self._lifetimes.get(attribute.type, self._lifetime),
            source=self.source,
            url=self._url,
        )

    def _waits_for_tags(
        self, attribute: Attribute, event: Context | None, entry: Entry | None
    ) -> bool:
        """Ask for the event's tags, if a filter needs them and they are not known."""
        if not self.filters.needs_tags or (event is not None and event.tags is not None):
            return False
        reference = event.uuid if event is not None else str(attribute.event_id or "")
        if not self.ask(reference):
            return False
        if entry is None:
            # The whole event comes, and this attribute with it, however old it is.
            self.index.put(_announced(attribute, event))
        return True

    def _is_held_back(self, entry: Entry | None, attribute: Attribute) -> bool:
        """Say whether sightings have withdrawn what has not been edited since."""
        if entry is None:
            return False
        if self._limit and entry.false_positives >= self._limit:
            return True
        return (attribute.timestamp or 0) <= entry.expired_at

    def withdraw(self, entry: Entry | None, **changes: Any) -> None:
        """Withdraw an attribute, if it is published, and note `changes` of its entry."""
        if entry is None:
            return
        if entry.published:
            version = indicators.withdrawal_of(
                entry.uuid,
                entry.pattern,
                entry.pattern_type,
                entry.created,
                entry.modified,
                at=int(self._now() * 1000),
                marking_refs=entry.marking_refs.split(),
                source=self.source,
            )
            self.counters.withdrawn += 1
            self.handover.add(INDICATOR, version.data)
            changes |= {"published": False, "modified": version.modified}
        if changes:
            self.index.put(msgspec.structs.replace(entry, **changes))

    # Sightings.

    def apply_sighting(
        self, sighting: model.Sighting, *, added: bool = True, from_rest: bool = False
    ) -> None:
        """Publish a sighting that was added, unless it came from here; count what speaks against.

        Raises `Rejected`.
        """
        uuid = sightings.attribute_uuid_of(sighting)
        if uuid is None:
            raise Rejected(f"sighting {sighting.uuid}: names no attribute")
        if sighting.uuid is not None:
            note = self.index.add_sighting if added else self.index.remove_sighting
            if not note(sighting.uuid.lower()):
                # It has come before, and counts once.
                return
        entry = self.index.entry(uuid)
        kind = sightings.kind_of(sighting)
        if kind is sightings.Kind.EXPIRATION:
            if added and entry is not None:
                self._expire(entry, sighting, from_rest=from_rest)
            return
        if kind is sightings.Kind.FALSE_POSITIVE and entry is not None:
            self._count_false_positive(entry, 1 if added else -1)
        if not added or self._is_ours(sighting):
            return
        if not self._tells_of(sighting, entry):
            self.counters.filtered += 1
            return
        found = sightings.sighting_of(sighting, attribute_uuid=uuid, source=self.source)
        if found is not None:
            self.counters.sightings += 1
            self.handover.add(SIGHTING, found)

    def _expire(self, entry: Entry, sighting: model.Sighting, *, from_rest: bool) -> None:
        moment = min(sighting.date_sighting or int(self._now()), model.MAX_EPOCH)
        # REST does not say in which order an edit and an expiration came.
        if not from_rest or entry.edited <= moment:
            self.withdraw(entry, expired_at=max(moment, entry.expired_at))

    def _count_false_positive(self, entry: Entry, by: int) -> None:
        count = max(0, entry.false_positives + by)
        if self._limit and count >= self._limit:
            self.withdraw(entry, false_positives=count)
            return
        self.index.put(msgspec.structs.replace(entry, false_positives=count))
        if self._limit and by < 0 and count == self._limit - 1 and not entry.published:
            # Nothing speaks against it any more.
            self.ask(entry.event)

    # Messages beside answers of REST.

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask REST and apply its answer within: what messages say meanwhile is newer."""
        with self.handover.lock:
            self._told = set()
        try:
            yield
        finally:
            with self.handover.lock:
                self._told = None

    def tell(self, uuid: str) -> None:
        """Note that a message has told of an attribute, or of all of an event."""
        if self._told is not None:
            self._told.add(uuid)

    def is_overtaken(self, uuid: str) -> bool:
        """Say whether a message has told of an attribute or an event since REST was asked."""
        return self._told is not None and uuid in self._told

    # What else there is to say and to ask.

    def ask(self, event: str, *, whole: bool = False) -> bool:
        """Have an event asked for over REST, by id or UUID; False where there is none to ask.

        `whole` is whether all of it comes onto the bus: otherwise what is older than the first
        start, and has never been there, does not.
        """
        if not event:
            return False
        if self._refresh(event):
            self.index.put_missing(event, whole=whole)
            return True
        self._log.log(
            "no api",
            logging.WARNING,
            "%s: event %s has changed in a way that only REST can tell, and there is no api.key",
            self._name,
            event,
        )
        return False

    def hold(self, what: str) -> None:
        """Say that a change waits for the publication of its event."""
        self.counters.held += 1
        self._log.log(
            "held",
            logging.INFO,
            "%s: %s has changed; the bus hears of it when MISP publishes the event",
            self._name,
            what,
        )

    def hold_attribute(self, attribute: Attribute) -> None:
        """Have an attribute wait for the publication of its event, and sightings of it as well."""
        self.hold(f"attribute {attribute.uuid}")
        if self.index.entry(attribute.uuid) is None:
            self.index.put(_announced(attribute, self.contexts.of(None, attribute)))

    def reject(self, reason: str, data: bytes) -> None:
        """Keep what cannot be read."""
        self.counters.rejected += 1
        self._reject(reason, data)

    def knows(self, uuid: str) -> bool:
        """Say whether an attribute was ever published. Callable from any thread, at any time."""
        with self.handover.lock, self.index.reading():
            return _was_published(self.index.entry(uuid))

    def tells_of(self, sighting: model.Sighting) -> bool:
        """Say whether a sighting, which names a value, comes onto the bus.

        Callable from any thread, at any time.
        """
        uuid = sightings.attribute_uuid_of(sighting)
        with self.handover.lock, self.index.reading():
            return self._tells_of(sighting, self.index.entry(uuid) if uuid else None)

    def _tells_of(self, sighting: model.Sighting, entry: Entry | None) -> bool:
        if self._keeps_nothing_off or _was_published(entry):
            return True
        if entry is not None:
            # It is held back, or waits for its event's tags.
            return False
        attribute = sighting.attribute
        if self.filters.open or attribute is None:
            # Older than what is known here, such as without `backfill`.
            return self.filters.open
        event = self.contexts.of(None, attribute)
        if self.filters.needs_tags and (event is None or event.tags is None):
            return False
        return self.filters.let_pass(attribute, event)

    def current(self, attribute: Attribute) -> bytes | None:
        """Give the indicator that an attribute is now, as a snapshot has it; None if it is none.

        Callable from any thread, at any time.
        """
        with self.handover.lock, self.index.reading():
            entry = self.index.entry(attribute.uuid)
            event = attribute.event
            context = self.contexts.described(event) if event is not None and event.uuid else None
            return self._as_it_is(attribute, context, entry)

    def _as_it_is(
        self, attribute: Attribute, event: Context | None, entry: Entry | None
    ) -> bytes | None:
        if not attribute.to_ids or attribute.deleted or self._is_held_back(entry, attribute):
            return None
        if not self.filters.let_pass(attribute, event):
            return None
        try:
            # As it was published, so that it does not overwrite what is newer.
            if entry is not None and entry.content:
                return self._version_of(attribute, event, entry.created, entry.modified - 1).data
            return self._version_of(attribute, event).data
        except Rejected:
            return None


def _was_published(entry: Entry | None) -> bool:
    return entry is not None and bool(entry.content)


def _announced(attribute: Attribute, event: Context | None) -> Entry:
    """Give the entry of an attribute of which nothing is published yet."""
    return Entry(
        uuid=attribute.uuid,
        event=event.uuid if event is not None else "",
        pattern="",
        pattern_type="",
        created=0,
        modified=0,
        marking_refs="",
        published=False,
        content=b"",
    )
