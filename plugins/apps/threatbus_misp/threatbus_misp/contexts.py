"""What is remembered of MISP's events: an attribute's message says only some of it."""

from __future__ import annotations

from typing import Final

import msgspec

from threatbus.errors import Rejected
from threatbus_misp.index import Index
from threatbus_misp.mapping import model
from threatbus_misp.mapping.model import Attribute, Event, Tag

#: Events that are kept in memory.
MAX_KEPT: Final = 1000


class Context(msgspec.Struct, frozen=True):
    """What is remembered of an event beyond what its attributes' messages say."""

    uuid: str
    id: str = ""
    info: str = ""
    threat_level: int = 4
    #: Id, UUID and name of the organisation that created it, as far as known.
    org: tuple[str, str, str] = ("", "", "")
    #: Its tags (name, exportable); None: nobody has asked yet.
    tags: tuple[tuple[str, bool], ...] | None = None
    #: Whether MISP has deleted it: over Kafka messages of its attributes may come later than that.
    deleted: bool = False
    #: Whether REST has shown it: messages tell of events that the API's user may not see, and of
    #: such a one REST says that it is not there.
    visible: bool = False


class Contexts:
    """Remembers events, in the index; used under whatever guards that.

    `can_ask` is whether there is an API that can be asked about `new` ones.
    """

    def __init__(self, index: Index, *, can_ask: bool) -> None:
        self._index = index
        self._can_ask = can_ask
        # Of the events that were named last: many attributes of one event come in a row.
        self._kept: dict[str, Context] = {}
        self._events: dict[str, Event] = {}
        # What an attribute's message said of its event last, and what came of it.
        self._last_excerpt: tuple[object, Context] | None = None
        #: Events that messages have named and that REST was never asked about.
        self.new: set[str] = set()

    def get(self, uuid: str) -> Context | None:
        """Give what is remembered of an event."""
        known = self._kept.get(uuid)
        if known is None and (data := self._index.event(uuid)) is not None:
            known = _CONTEXTS.decode(data)
            self._keep(known)
        return known

    def there(self) -> list[str]:
        """Give the UUIDs of the events that are not known to be gone."""
        return [
            each.uuid for each in map(_CONTEXTS.decode, self._index.events()) if not each.deleted
        ]

    def event_of(self, context: Context) -> Event:
        """Give the event as the mapping reads it."""
        event = self._events.get(context.uuid)
        return self._keep(context) if event is None else event

    def of(
        self, event: Event | None, attribute: Attribute, *, visible: bool = False
    ) -> Context | None:
        """Give what is known of an attribute's event, with what its message (`event`) adds."""
        if event is None or not event.uuid:
            uuid = self._index.event_with_id(str(attribute.event_id or ""))
            return self.get(uuid) if uuid else None
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
            if self._kept.get(context.uuid) is context:
                return context
        context = self.remember(event, excerpt=True, visible=visible)
        self._last_excerpt = (said, context)
        return context

    def remember(self, event: Event, *, excerpt: bool = False, visible: bool = False) -> Context:
        """Note what an event says of itself, within a transaction; `Rejected` without UUID.

        An `excerpt` stands in an attribute's message; `visible` is what REST has shown.
        """
        context = self.described(event, excerpt=excerpt, visible=visible)
        known = self.get(context.uuid)
        if known is not None and context == known:
            return known
        if known is None and not visible and self._can_ask:
            self.new.add(context.uuid)
        self.put(context)
        return context

    def described(self, event: Event, *, excerpt: bool = False, visible: bool = False) -> Context:
        """Give what an event says of itself, with what is remembered of it; notes nothing."""
        uuid = uuid_of(event)
        known = self.get(uuid) or Context(uuid, org=(str(event.orgc_id or ""), "", ""))
        said = event.tags is not None or event.event_tags is not None
        orgc = event.orgc
        return Context(
            uuid=uuid,
            id=str(event.id or known.id),
            info=event.info or known.info,
            threat_level=event.threat_level_id or known.threat_level,
            org=(
                (str(orgc.id or event.orgc_id or ""), orgc.uuid or "", orgc.name or "")
                if orgc is not None
                else known.org
            ),
            tags=(
                tuple((tag.name, tag.exportable is not False) for tag in event.all_tags())
                if said
                else known.tags
            ),
            deleted=excerpt and known.deleted,
            visible=visible or known.visible,
        )

    def put(self, context: Context) -> None:
        """Remember an event so, within a transaction."""
        self._index.put_event(context.uuid, context.id, msgspec.json.encode(context))
        self._keep(context)

    def forget(self) -> None:
        """Let go of what is in memory; the index still has what is in it."""
        self._kept.clear()
        self._events.clear()
        self._last_excerpt = None

    def _keep(self, context: Context) -> Event:
        if len(self._kept) >= MAX_KEPT:
            self.forget()
        self._kept[context.uuid] = context
        event = self._events[context.uuid] = Event(
            uuid=context.uuid,
            info=context.info,
            threat_level_id=context.threat_level,
            tags=[Tag(name, exportable=exportable) for name, exportable in context.tags or ()],
        )
        return event


_CONTEXTS: Final = msgspec.json.Decoder(Context)


def uuid_of(event: Event) -> str:
    """Give an event's UUID; `Rejected` without a good one."""
    if not event.uuid or not model.is_uuid(event.uuid.lower()):
        raise Rejected(f"event {event.id}: no UUID")
    return event.uuid.lower()
