"""What MISP's messages say, over ZeroMQ or Kafka, and what follows from each.

Source: docs/protocol-misp.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from threatbus.errors import Rejected
from threatbus_misp.config import InstanceConfig
from threatbus_misp.contexts import uuid_of
from threatbus_misp.mapping import model
from threatbus_misp.mapping.model import Event
from threatbus_misp.reconciler import Reconciler


class Messages:
    """Takes MISP's messages, from the threads of the sources."""

    def __init__(self, config: InstanceConfig, reconciler: Reconciler) -> None:
        self._published_only = config.published_only
        self._reconciler = reconciler
        self._contexts = reconciler.contexts
        self._index = reconciler.index

    def take(self, documents: Sequence[bytes]) -> None:
        """Apply messages (the JSON of each), in order. What is broken is rejected.

        When it returns, what they say is on disk, and handed to the bus unless that is stopping.
        """
        messages = [_read(data) for data in documents]
        with self._reconciler.handover.publishing():
            self._index.read(
                [m.attribute.uuid for m in messages if isinstance(m, model.AttributeMessage)]
            )
            for message, data in zip(messages, documents, strict=True):
                try:
                    self._apply(message)
                except Rejected as error:
                    self._reconciler.reject(error.reason, data)

    def _apply(self, message: model.Message | Rejected) -> None:
        match message:
            case model.AttributeMessage():
                self._on_attribute(message)
            case model.SightingMessage():
                added = message.action != "delete"
                self._reconciler.apply_sighting(message.sighting, added=added)
            case model.EventMessage():
                self._on_event(message)
            case model.TagMessage():
                self._on_tag(message)
            case Rejected():
                raise message

    def _on_attribute(self, message: model.AttributeMessage) -> None:
        attribute = message.attribute
        action = message.action
        if action not in ("add", "edit", "soft-delete", "delete"):
            raise Rejected(f"attribute {attribute.uuid}: unknown action {action!r:.50}")
        if self._published_only:
            # Any of this unpublishes the event in MISP, whatever the message says of it.
            self._reconciler.hold_attribute(attribute)
            return
        self._reconciler.tell(attribute.uuid)
        if action in ("soft-delete", "delete") or attribute.deleted:
            self._reconciler.withdraw(self._index.entry(attribute.uuid))
            return
        event = message.event or attribute.event
        self._reconciler.apply(attribute, self._contexts.of(event, attribute))

    def _on_event(self, message: model.EventMessage) -> None:
        event, action = message.event, message.action
        if not isinstance(event, Event):
            # What a pull brought is only named, and the name becomes part of a URL.
            reference = str(event)
            if not (_is_number(reference) or model.is_uuid(reference)):
                raise Rejected("the event is neither a number nor a UUID")
            # It is new here, however old its attributes are where they come from.
            self._reconciler.ask(reference, whole=True)
            return
        event.orgc = event.orgc or message.orgc
        event.event_tags = event.event_tags or message.event_tags
        uuid = uuid_of(event)
        if action == "delete":
            self._reconciler.tell(uuid)
            self._reconciler.apply_end(uuid)
        elif action in (None, "", "publish"):
            self._reconciler.tell(uuid)
            self._reconciler.apply_event(event)
        elif action in ("add", "edit"):
            self._on_event_changed(uuid, event)
        else:
            raise Rejected(f"event {uuid}: unknown action {action!r:.50}")

    def _on_event_changed(self, uuid: str, event: Event) -> None:
        """Note what an event says of itself; its attributes' indicators may have to say so, too."""
        if self._published_only:
            self._reconciler.hold(f"event {event.uuid}")
            return
        known = self._contexts.get(uuid)
        context = self._contexts.remember(event)
        if known is not None and context != known and self._index.has_any_of(uuid):
            self._reconciler.ask(uuid)

    def _on_tag(self, message: model.TagMessage) -> None:
        tag, action = message.tag, message.action or ""
        if not action.startswith(("attached to", "detached from")):
            # Of the tag itself, which no attribute feels.
            return
        if self._published_only:
            self._reconciler.hold(f"event {tag.event_id}")
            return
        if tag.event_id is None:
            return
        # The message says neither what else is tagged nor how the attribute is: ask. What a filter
        # kept off the bus so far may pass now.
        event, whole = str(tag.event_id), self._reconciler.filters.needs_tags
        if not self._reconciler.ask(event, whole=whole):
            self._retag(tag, action)

    def _retag(self, tag: model.AttachedTag, action: str) -> None:
        """Keep an event's tags up to date where there is no REST: they count from now on."""
        uuid = self._index.event_with_id(str(tag.event_id))
        known = self._contexts.get(uuid) if uuid else None
        if known is None or tag.attribute_id is not None:
            return
        tags = [each for each in known.tags or () if each[0] != tag.name]
        if action.startswith("attached"):
            tags.append((tag.name, tag.exportable is not False))
        self._contexts.put(msgspec.structs.replace(known, tags=tuple(tags)))


def _read(data: bytes) -> model.Message | Rejected:
    try:
        return model.decode_message(data)
    except Rejected as error:
        return error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
