"""Brings the bus in line with what MISP says: compares it with the index, publishes the difference.

Whatever the source (a message, a REST answer, a whole event), the question is the same: is this
attribute to be on the bus, and is it there as it is? So a message that comes twice, or a comparison
of everything, publishes nothing that is there already.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from threatbus.errors import Overflow, Rejected
from threatbus.logger import RateLimited
from threatbus.messages import INDICATOR, SIGHTING, Message
from threatbus_misp.config import InstanceConfig
from threatbus_misp.filters import Context, Filters
from threatbus_misp.index import Entry, Index
from threatbus_misp.mapping import indicators, model, sightings
from threatbus_misp.mapping.model import Attribute, Event, Tag

logger = logging.getLogger("threatbus.misp")

#: Messages on disk, not known to be passed on, after which sources wait for the bus to do so.
MAX_UNSETTLED: Final = 100_000
#: Events that are kept in memory.
MAX_CONTEXTS: Final = 1000


class Bus(Protocol):
    """What takes the messages."""

    def put(self, messages: Sequence[Message]) -> None:
        """Hand them over; waits while the bus cannot take more, `Overflow` when it stops."""

    def has_passed_on(self, *, wait: bool = False) -> bool:
        """Say whether the bus has passed on all that was put; waits for it, unless it stops."""


_Message: TypeAlias = (
    model.AttributeMessage | model.SightingMessage | model.EventMessage | model.TagMessage
)


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
    """Compares and publishes for one MISP.

    Sources, healing and refreshing call it from their threads; one lock orders them, and messages
    reach the bus in the order in which the index says they were published. Whoever only asks
    something does not wait for the bus. `refresh` takes the id or UUID of an event that has to be
    asked for over REST; `reject` a reason and the bytes of what cannot be read. Everything a caller
    has passed in is on disk when the call returns.
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
        self._config = config
        self._filters = Filters(config)
        self._index = index
        self._bus = bus
        self._refresh = refresh
        self._reject = reject
        self._is_ours = is_ours
        self._now = now
        self._log = RateLimited(logger)
        # Orders those who publish; held until the bus has taken what they publish.
        self._turn = threading.Lock()
        # Whether the messages of the last run have been handed over; guarded by the turn.
        self._recovered = False
        # Guards the index and what follows; taken within a turn, never the other way round.
        self._lock = threading.Lock()
        self._out: list[Message] = []
        # The newest message on disk that the bus has, 0 if all are settled; how many it has had.
        self._handed_over = 0
        self._unsettled = 0
        # Of the events that were named last: many attributes of one event come in a row.
        self._contexts: dict[str, Context] = {}
        self._events: dict[str, Event] = {}
        # What an attribute's message said of its event last, and what came of it.
        self._last_excerpt: tuple[object, Context] | None = None
        # Attributes and whole events (their UUIDs) of which messages have told since REST was
        # asked: they are newer than its answer. None while nobody asks.
        self._told: set[str] | None = None
        # Events that messages have named and REST was never asked about.
        self._new_events: set[str] = set()
        #: Who says what is published: the name that the operator has given to this MISP.
        self.source = indicators.SOURCE if name == "misp" else name
        #: Epoch before which what is not on the bus is history: REST answers are full of it.
        self.horizon = 0
        self.counters = Counters()

    # Messages of MISP.

    def take(self, documents: Sequence[bytes]) -> None:
        """Apply messages of MISP (the JSON of each), in order. What is broken is rejected."""
        messages = [self._read(data) for data in documents]
        with self._publishing():
            self._index.read(
                [m.attribute.uuid for m in messages if isinstance(m, model.AttributeMessage)]
            )
            for message, data in zip(messages, documents, strict=True):
                self._apply(message, data)

    def _read(self, data: bytes) -> _Message | Rejected:
        """Give the message that a document is, or why it is none."""
        try:
            # As MISP writes nearly all of them.
            if data.startswith(b'{"Attribute"'):
                return model.decode_attribute_message(data)
            keys = _KEYS.decode(data)
            if keys.attribute is not msgspec.UNSET:
                return model.decode_attribute_message(data)
            if keys.sighting is not msgspec.UNSET:
                return model.decode_sighting_message(data)
            if keys.event is not msgspec.UNSET:
                return model.decode_event_message(data)
            if keys.tag is not msgspec.UNSET:
                return model.decode_tag_message(data)
            return Rejected("no Attribute, Event, Tag or Sighting")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Rejected(f"not a JSON object: {error}")
        except Rejected as error:
            return error

    def _apply(self, message: _Message | Rejected, data: bytes) -> None:
        try:
            match message:
                case model.AttributeMessage():
                    self._on_attribute(message)
                case model.SightingMessage():
                    self._on_sighting(message)
                case model.EventMessage():
                    self._on_event(message)
                case model.TagMessage():
                    self._on_tag(message)
                case Rejected():
                    raise message
        except Rejected as error:
            self._note_rejected(error.reason, data)

    def _note_rejected(self, reason: str, data: bytes) -> None:
        self.counters.rejected += 1
        self._reject(reason, data)

    def _on_attribute(self, message: model.AttributeMessage) -> None:
        attribute = message.attribute
        attribute.object = attribute.object or message.object
        action = message.action
        if action not in ("add", "edit", "soft-delete", "delete"):
            raise Rejected(f"attribute {attribute.uuid}: unknown action {action!r:.50}")
        event = message.event or attribute.event
        if self._config.published_only:
            # Any of this unpublishes the event in MISP, whatever the message says of it.
            self._hold(f"attribute {attribute.uuid}")
            return
        self._tell(attribute.uuid)
        if action in ("soft-delete", "delete") or attribute.deleted:
            self._withdraw(self._index.entry(attribute.uuid))
            return
        context = self._context_of(event, attribute)
        self._reconcile(attribute, context)

    def _on_event(self, message: model.EventMessage) -> None:
        event, action = message.event, message.action
        if not isinstance(event, Event):
            # What a pull brought is only named, and the name becomes part of a URL.
            reference = str(event)
            if not (_is_number(reference) or model.is_uuid(reference)):
                raise Rejected("the event is neither a number nor a UUID")
            self._ask(reference)
            return
        event.orgc = event.orgc or message.orgc
        event.event_tags = event.event_tags or message.event_tags
        uuid = _uuid_of(event)
        if action == "delete":
            self._tell(uuid)
            self._on_event_gone(uuid)
        elif action in (None, "", "publish"):
            self._tell(uuid)
            self._on_whole_event(event)
        elif action in ("add", "edit"):
            self._on_event_changed(event)
        else:
            raise Rejected(f"event {uuid}: unknown action {action!r:.50}")

    def _on_event_changed(self, event: Event) -> None:
        """Note what an event says of itself; its attributes' indicators may have to say so, too."""
        if self._config.published_only:
            self._hold(f"event {event.uuid}")
            return
        uuid = _uuid_of(event)
        known = self._known(uuid)
        context = self._remember(event, known)
        if known is not None and context != known and self._index.entries_of(uuid):
            self._ask(uuid)

    def _on_tag(self, message: model.TagMessage) -> None:
        tag, action = message.tag, message.action or ""
        if not action.startswith(("attached to", "detached from")):
            # Of the tag itself, which no attribute feels.
            return
        if self._config.published_only:
            self._hold(f"event {tag.event_id}")
            return
        # The message says neither what else is tagged nor how the attribute is: ask.
        if tag.event_id is not None and not self._ask(str(tag.event_id)):
            self._retag(tag, action)

    def _retag(self, tag: model.AttachedTag, action: str) -> None:
        """Keep an event's tags up to date where there is no REST: they count from now on."""
        uuid = self._index.event_with_id(str(tag.event_id))
        known = self._known(uuid) if uuid else None
        if known is None or tag.attribute_id is not None:
            return
        tags = [each for each in known.tags or () if each[0] != tag.name]
        if action.startswith("attached"):
            tags.append((tag.name, tag.exportable is not False))
        self._put_context(msgspec.structs.replace(known, tags=tuple(tags)))

    def _on_sighting(self, message: model.SightingMessage, *, from_rest: bool = False) -> None:
        sighting = message.sighting
        uuid = sightings.attribute_uuid_of(sighting)
        if uuid is None:
            raise Rejected(f"sighting {sighting.uuid}: names no attribute")
        added = message.action != "delete"
        if sighting.uuid is not None:
            note = self._index.add_sighting if added else self._index.remove_sighting
            if not note(sighting.uuid.lower()):
                # It has come before, and counts once.
                return
        entry = self._index.entry(uuid)
        kind = sightings.kind_of(sighting)
        if kind is sightings.Kind.EXPIRATION:
            if added and entry is not None:
                self._expire(entry, sighting, from_rest=from_rest)
            return
        if kind is sightings.Kind.FALSE_POSITIVE and entry is not None:
            self._count_false_positive(entry, 1 if added else -1)
        if not added or self._is_ours(sighting):
            return
        found = sightings.sighting_of(sighting, attribute_uuid=uuid, source=self.source)
        if found is not None:
            self.counters.sightings += 1
            self._out.append(Message(SIGHTING, found))

    # Whole events.

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask REST and apply its answer within: what messages say meanwhile is newer."""
        with self._lock:
            self._told = set()
        try:
            yield
        finally:
            with self._lock:
                self._told = None

    def _tell(self, uuid: str) -> None:
        if self._told is not None:
            self._told.add(uuid)

    def _is_overtaken(self, uuid: str) -> bool:
        return self._told is not None and uuid in self._told

    def apply_event(self, event: Event) -> None:
        """Apply an event that REST has answered: what it no longer holds is withdrawn."""
        with self._publishing():
            if self._is_overtaken(_uuid_of(event)):
                return
            if self._config.published_only and not event.published:
                self._hold(f"event {event.uuid}")
            else:
                self._on_whole_event(event, self._horizon_of(event), from_rest=True)

    def _horizon_of(self, event: Event | None) -> int:
        """Give the horizon; 0 for an event that was published since, which brings all it has."""
        published = (event.publish_timestamp or 0) if event is not None else 0
        return 0 if published >= self.horizon else self.horizon

    def events(self) -> list[str]:
        """Give the UUIDs of the events that are not known to be gone."""
        with self._lock:
            contexts = map(_CONTEXTS.decode, self._index.events())
            return [each.uuid for each in contexts if not each.deleted]

    def new_events(self) -> list[str]:
        """Give the UUIDs of the events that messages have named and REST was not asked about."""
        with self._lock:
            return list(self._new_events)

    def apply_existence(self, asked: Sequence[str], there: Collection[str]) -> int:
        """Apply which events REST says are there; gives the number of those that are gone."""
        gone = 0
        with self._publishing():
            self._new_events.difference_update(asked)
            for uuid in asked:
                known = self._known(uuid)
                if known is None or self._is_overtaken(uuid):
                    continue
                if uuid not in there:
                    # What REST has never shown may be there, and not for this key's user.
                    if known.visible and not known.deleted:
                        self._on_event_gone(uuid)
                        gone += 1
                elif not known.visible:
                    self._put_context(msgspec.structs.replace(known, visible=True))
        return gone

    def visible_uuid_of(self, reference: str) -> str:
        """Give the UUID of an event that REST has shown, by id or UUID; empty for any other."""
        with self._lock:
            uuid = self._index.event_with_id(reference) or reference.lower()
            known = self._known(uuid)
            return uuid if known is not None and known.visible else ""

    def knows(self, uuid: str) -> bool:
        """Say whether an attribute was ever published."""
        with self._lock:
            entry = self._index.entry(uuid)
            return entry is not None and bool(entry.content)

    def begin_comparison(self) -> None:
        """Begin to compare everything: `compare` all that there is, then ask for `doubtful`."""
        with self._lock:
            self._index.begin_comparison()

    def compare(self, found: Sequence[Attribute]) -> None:
        """Apply attributes, and note that they are there."""
        with self._lock, self._index.transaction():
            self._index.see(attribute.uuid for attribute in found)
        self.apply_attributes(found)

    def doubtful(self) -> list[str]:
        """Give the events with published attributes that were not there."""
        with self._lock:
            return self._index.events_of_unseen()

    def note(self, name: str) -> str | None:
        """Give a note that `put_note` wrote, in this run or an earlier one."""
        with self._lock:
            return self._index.note(name)

    def put_note(self, name: str, value: str) -> None:
        """Write a note."""
        with self._lock, self._index.transaction():
            self._index.put_note(name, value)

    def current(self, attribute: Attribute) -> bytes | None:
        """Give the indicator that an attribute is now, as a snapshot has it; None if it is none."""
        with self._lock:
            entry = self._index.entry(attribute.uuid)
            context = self._context_of(attribute.event, attribute)
            return self._as_it_is(attribute, context, entry)

    def event_gone(self, uuid: str) -> None:
        """Withdraw all of an event that REST says is not there any more."""
        with self._publishing():
            if not self._is_overtaken(uuid):
                self._on_event_gone(uuid)

    def apply_sightings(self, found: Iterable[model.Sighting]) -> None:
        """Apply sightings that REST has answered; those that came as messages are known."""
        with self._publishing():
            for sighting in found:
                try:
                    self._on_sighting(model.SightingMessage(sighting), from_rest=True)
                except Rejected as error:
                    self._note_rejected(error.reason, b"")

    def apply_attributes(self, found: Iterable[Attribute]) -> None:
        """Apply attributes that REST has answered, each with its event and its event's tags."""
        with self._publishing():
            for attribute in found:
                self._apply_answer(attribute)

    def _apply_answer(self, attribute: Attribute) -> None:
        event = attribute.event
        if event is not None and self._is_overtaken((event.uuid or "").lower()):
            return
        if self._config.published_only and not (event is not None and event.published):
            self._hold(f"attribute {attribute.uuid}")
        else:
            context = self._context_of(event, attribute, visible=True)
            self._apply_member(attribute, context, self._horizon_of(event), from_rest=True)

    def _apply_member(
        self, attribute: Attribute, context: Context | None, horizon: int, *, from_rest: bool
    ) -> None:
        """Apply one of many attributes: what is wrong with it is its own matter."""
        if from_rest and self._is_overtaken(attribute.uuid):
            return
        if (attribute.timestamp or 0) < horizon and self._index.entry(attribute.uuid) is None:
            return
        if attribute.deleted:
            self._withdraw(self._index.entry(attribute.uuid))
            return
        try:
            self._reconcile(attribute, context)
        except Rejected as error:
            self._note_rejected(error.reason, attribute.value.encode(errors="replace"))

    def _on_whole_event(self, event: Event, horizon: int = 0, *, from_rest: bool = False) -> None:
        uuid = _uuid_of(event)
        event.tags = event.tags or []
        context = self._remember(event, self._known(uuid), visible=from_rest)
        present = set()
        for attribute in model.members(event):
            if isinstance(attribute, Rejected):
                self._note_rejected(attribute.reason, b"")
                continue
            present.add(attribute.uuid)
            self._apply_member(attribute, context, horizon, from_rest=from_rest)
        for entry in self._index.entries_of(uuid):
            if entry.uuid not in present and not (from_rest and self._is_overtaken(entry.uuid)):
                self._withdraw(entry)

    def _on_event_gone(self, uuid: str) -> None:
        for entry in self._index.entries_of(uuid):
            self._withdraw(entry)
        known = self._known(uuid) or Context(uuid)
        self._put_context(msgspec.structs.replace(known, deleted=True))

    # One attribute.

    def _reconcile(self, attribute: Attribute, event: Context | None) -> None:
        """Publish, withdraw, or leave as it is."""
        entry = self._index.entry(attribute.uuid)
        if entry is not None and (attribute.timestamp or 0) < entry.edited:
            # Overtaken: REST has answered with a later edit already.
            return
        if not attribute.to_ids or (event is not None and event.deleted):
            self._withdraw(entry, edited=attribute.timestamp or 0)
            return
        if self._filters.needs_tags and (event is None or event.tags is None):
            reference = event.uuid if event is not None else str(attribute.event_id or "")
            if reference and self._ask(reference):
                # The whole event comes, and this attribute with it, however old it is.
                if entry is None:
                    self._index.put(_announced(attribute, event))
                return
        tags = [tag.name for tag in attribute.tags or ()]
        tags += [name for name, _ in event.tags or ()] if event is not None else []
        if not self._filters.let_pass(attribute.type, tags, event):
            self.counters.filtered += 1
            self._withdraw(entry, edited=attribute.timestamp or 0)
            return
        if self._is_held_back(entry, attribute):
            return
        try:
            version = self._version_of(attribute, event)
        except Rejected as error:
            # What was published before does not hold any more, either.
            self._withdraw(entry, edited=attribute.timestamp or 0)
            if not isinstance(error, indicators.Unmapped):
                raise
            self.counters.unmapped += 1
            return
        content = hashlib.blake2b(version.data, digest_size=12).digest()
        if entry is not None and entry.content:
            if entry.published and entry.content == content:
                self.counters.unchanged += 1
                return
            version = self._version_of(attribute, event, entry.created, entry.modified)
        self.counters.published += 1
        self._out.append(Message(INDICATOR, version.data))
        self._index.put(
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

    def _as_it_is(
        self, attribute: Attribute, event: Context | None, entry: Entry | None
    ) -> bytes | None:
        if not attribute.to_ids or attribute.deleted or self._is_held_back(entry, attribute):
            return None
        tags = [tag.name for tag in attribute.tags or ()]
        tags += [name for name, _ in event.tags or ()] if event is not None else []
        if not self._filters.let_pass(attribute.type, tags, event):
            return None
        try:
            # As it was published, so that it does not overwrite what is newer.
            known = entry is not None and entry.content
            published = (entry.created, entry.modified - 1) if entry and known else (None, None)
            return self._version_of(attribute, event, *published).data
        except Rejected:
            return None

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
            self._events.get(event.uuid) if event is not None else None,
            created=created,
            last_modified=last_modified,
            lifetime=self._lifetime(attribute.type),
            source=self.source,
            url=self._config.api.host if self._config.api.key else None,
        )

    def _is_held_back(self, entry: Entry | None, attribute: Attribute) -> bool:
        """Say whether sightings have withdrawn what has not been edited since."""
        if entry is None:
            return False
        limit = self._config.false_positive_limit
        if limit and entry.false_positives >= limit:
            return True
        return (attribute.timestamp or 0) <= entry.expired_at

    def _withdraw(self, entry: Entry | None, **changes: Any) -> None:
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
            self._out.append(Message(INDICATOR, version.data))
            changes |= {"published": False, "modified": version.modified}
        if changes:
            self._index.put(msgspec.structs.replace(entry, **changes))

    def _expire(self, entry: Entry, sighting: model.Sighting, *, from_rest: bool) -> None:
        moment = min(sighting.date_sighting or int(self._now()), model.MAX_EPOCH)
        # REST does not say in which order an edit and an expiration came.
        if not from_rest or entry.edited <= moment:
            self._withdraw(entry, expired_at=max(moment, entry.expired_at))

    def _count_false_positive(self, entry: Entry, by: int) -> None:
        count = max(0, entry.false_positives + by)
        limit = self._config.false_positive_limit
        if limit and count >= limit:
            self._withdraw(entry, false_positives=count)
            return
        self._index.put(msgspec.structs.replace(entry, false_positives=count))
        if limit and by < 0 and count == limit - 1 and not entry.published:
            # Nothing speaks against it any more.
            self._ask(entry.event)

    def _lifetime(self, kind: str) -> int | None:
        """Give the seconds that an indicator of this type is valid; None: for ever."""
        days = self._config.valid_for.get(kind, self._config.valid_for.get("default", 0.0))
        return int(days * 86_400) or None

    # Events.

    def _known(self, uuid: str) -> Context | None:
        known = self._contexts.get(uuid)
        if known is None and (data := self._index.event(uuid)) is not None:
            known = self._keep(_CONTEXTS.decode(data))
        return known

    def _keep(self, context: Context) -> Context:
        if len(self._contexts) >= MAX_CONTEXTS:
            self._forget_contexts()
        self._contexts[context.uuid] = context
        self._events[context.uuid] = _event_of(context)
        return context

    def _forget_contexts(self) -> None:
        self._contexts.clear()
        self._events.clear()
        self._last_excerpt = None

    def _context_of(
        self, event: Event | None, attribute: Attribute, *, visible: bool = False
    ) -> Context | None:
        """Give what is known of an attribute's event, with what its message adds."""
        if event is None or not event.uuid:
            uuid = self._index.event_with_id(str(attribute.event_id or ""))
            return self._known(uuid) if uuid else None
        said = (
            event.uuid,
            event.id,
            event.info,
            event.threat_level_id,
            event.orgc_id,
            event.tags,
            event.event_tags,
            visible,
        )
        if self._last_excerpt is not None and self._last_excerpt[0] == said:
            context = self._last_excerpt[1]
            # Unless something else was said of it meanwhile.
            if self._contexts.get(context.uuid) is context:
                return context
        known = self._known(event.uuid.lower())
        context = self._remember(event, known, excerpt=True, visible=visible)
        self._last_excerpt = (said, context)
        return context

    def _remember(
        self,
        event: Event,
        known: Context | None,
        *,
        excerpt: bool = False,
        visible: bool = False,
    ) -> Context:
        """Note what an event says of itself.

        An `excerpt` stands in an attribute's message; `visible` is what REST has shown.
        """
        uuid = _uuid_of(event)
        said = event.tags is not None or event.event_tags is not None
        tags = tuple((tag.name, tag.exportable is not False) for tag in event.all_tags())
        orgc = event.orgc
        context = Context(
            uuid=uuid,
            id=str(event.id or (known.id if known else "")),
            info=event.info or (known.info if known else ""),
            threat_level=event.threat_level_id or (known.threat_level if known else 4),
            org=(
                (str(orgc.id or event.orgc_id or ""), orgc.uuid or "", orgc.name or "")
                if orgc is not None
                else (known.org if known else (str(event.orgc_id or ""), "", ""))
            ),
            tags=tags if said else (known.tags if known else None),
            deleted=excerpt and known is not None and known.deleted,
            visible=visible or (known is not None and known.visible),
        )
        if known is not None and context == known:
            return known
        if known is None and not visible:
            self._new_events.add(uuid)
        self._put_context(context)
        return context

    def _put_context(self, context: Context) -> None:
        self._index.put_event(context.uuid, context.id, msgspec.json.encode(context))
        self._keep(context)

    def _ask(self, event: str) -> bool:
        """Have an event asked for over REST; False where there is none to ask."""
        if not event:
            return False
        if self._refresh(event):
            return True
        self._log.log(
            "no api",
            logging.WARNING,
            "%s: event %s has changed in a way that only REST can tell, and there is no api.key",
            self._name,
            event,
        )
        return False

    def _hold(self, what: str) -> None:
        self.counters.held += 1
        self._log.log(
            "held",
            logging.INFO,
            "%s: %s has changed; the bus hears of it when MISP publishes the event",
            self._name,
            what,
        )

    # To the bus.

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """Have a turn: write what is published within, then hand it to the bus."""
        with self._turn:
            self._recover()
            with self._lock, self._all_or_nothing():
                yield
                number = self._write_out()
            self._hand_over(number)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            with self._index.transaction():
                yield
        except BaseException:
            # What is not on disk has not happened.
            self._out.clear()
            self._forget_contexts()
            raise

    def _write_out(self) -> int:
        return self._index.put_out([(m.topic, m.data) for m in self._out]) if self._out else 0

    def _hand_over(self, number: int) -> None:
        """Hand to the bus what is on disk; what it does not take, the next start hands over."""
        with self._lock:
            messages, self._out = self._out, []
        if not messages:
            return
        try:
            self._bus.put(messages)
        except Overflow:
            return
        with self._lock:
            self._handed_over = number
            self._unsettled += len(messages)
        if self._unsettled >= MAX_UNSETTLED:
            # A bus that takes them and passes none on is full before long, and `put` waits.
            self._unsettled = 0
            self.settle(wait=True)

    def recover(self) -> None:
        """Hand over what the last run may not have."""
        with self._turn:
            self._recover()

    def _recover(self) -> None:
        if self._recovered:
            return
        self._recovered = True
        with self._lock:
            number, documents = self._index.outbox()
            self._out = [Message(topic, data) for topic, data in documents]
        if documents:
            logger.info(
                "%s: %d messages of the last run are published again", self._name, len(documents)
            )
        self._hand_over(number)

    def settle(self, *, wait: bool = False) -> None:
        """Forget the messages that the bus has passed on: no start publishes them again."""
        with self._lock:
            number = self._handed_over
        if number and self._bus.has_passed_on(wait=wait):
            with self._lock, self._index.transaction():
                self._index.settle(number)
                if number == self._handed_over:
                    self._handed_over = self._unsettled = 0


class _Keys(msgspec.Struct):
    attribute: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="Attribute", default=msgspec.UNSET
    )
    sighting: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="Sighting", default=msgspec.UNSET
    )
    event: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="Event", default=msgspec.UNSET)
    tag: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="Tag", default=msgspec.UNSET)


_KEYS: Final = msgspec.json.Decoder(_Keys)
_CONTEXTS: Final = msgspec.json.Decoder(Context)


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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _uuid_of(event: Event) -> str:
    if not event.uuid or not model.is_uuid(event.uuid.lower()):
        raise Rejected(f"event {event.id}: no UUID")
    return event.uuid.lower()


def _event_of(context: Context) -> Event:
    """Give the event as the mapping reads it."""
    return Event(
        uuid=context.uuid,
        info=context.info,
        threat_level_id=context.threat_level,
        tags=[Tag(name, exportable=exportable) for name, exportable in context.tags or ()],
    )
