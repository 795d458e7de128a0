"""Lenses on MISP's JSON: what the bus reads of an attribute, an event, a tag, a sighting.

MISP writes nearly all scalars as strings ("1795486613"), booleans as such or as "0" and "1", and
leaves out whatever a message or a REST answer does not concern. So numbers and booleans are read
from strings too, nearly everything may be missing, and what is not declared is skipped. PHP knows
one kind of array, so MISP may write an object that is not there as ``[]``, and a list of which
something was taken out as an object (``{"1": …}``): these are read, too. The names are MISP's;
those of MISP's models (``Attribute``, ``Tag``, …) are spelled as Python names.

All readers raise `Rejected`, with the attribute's UUID in the reason where the input names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from threatbus.errors import Rejected

#: Longest value in characters. MISP's column ends at 65,535 bytes; two of them make a composite.
MAX_VALUE: Final = 200_000

#: Largest epoch in seconds that a timestamp of four-digit years can name (end of 9999, UTC).
MAX_EPOCH: Final = 253_402_300_799

#: Longest reason in characters.
_MAX_REASON: Final = 300

T = TypeVar("T")

#: What is one object, where it is there.
_OBJECTS: Final = frozenset({"Event", "Orgc", "Organisation"})

_TO_SHAPE: Final = bytes.maketrans(b"0123456789abcdefABCDEF", b"0" * 22)
_UUID_SHAPE: Final = b"00000000-0000-0000-0000-000000000000"


class Tag(msgspec.Struct):
    """A tag as MISP attaches it; `exportable` off means that it shall not leave MISP."""

    name: str
    exportable: bool | None = True


class EventTag(msgspec.Struct):
    """How ``misp_json_event`` wraps the tags of an event; a list if the tag itself is gone."""

    tag: Tag | list[msgspec.Raw] | None = msgspec.field(name="Tag", default=None)


class Organisation(msgspec.Struct):
    """An organisation: the creator (``Orgc``) of an event, or who sighted."""

    id: int | None = None
    uuid: str | None = None
    name: str | None = None


class Event(msgspec.Struct):
    """An event, in full (``misp_json``, REST) or the excerpt that comes with an attribute.

    `attributes` and `objects` stay bytes, so that one bad attribute costs itself only; `members`
    reads them.
    """

    id: int | None = None
    uuid: str | None = None
    info: str | None = None
    published: bool | None = None
    publish_timestamp: int | None = None
    threat_level_id: int | None = None
    orgc_id: int | None = None
    orgc: Organisation | None = msgspec.field(name="Orgc", default=None)
    tags: list[Tag] | None = msgspec.field(name="Tag", default=None)
    event_tags: list[EventTag] | None = msgspec.field(name="EventTag", default=None)
    attributes: list[msgspec.Raw] | None = msgspec.field(name="Attribute", default=None)
    objects: list[msgspec.Raw] | None = msgspec.field(name="Object", default=None)

    def all_tags(self) -> list[Tag]:
        """Give the tags of the event itself, whichever way they are written."""
        tags = list(self.tags or ())
        if self.event_tags:
            tags += [each.tag for each in self.event_tags if isinstance(each.tag, Tag)]
        return tags


class Object(msgspec.Struct):
    """An object of a full event, and the attributes that are part of it."""

    deleted: bool | None = None
    attributes: list[msgspec.Raw] | None = msgspec.field(name="Attribute", default=None)


class Sighting(msgspec.Struct):
    """A sighting in MISP; `date_sighting` in seconds, `type` 0, 1 or 2 (`sightings.Kind`).

    The attribute is named by `attribute` (ZeroMQ, Kafka), by `attribute_uuid` (within an
    attribute), or not at all (REST without ``includeAttribute``).
    """

    uuid: str | None = None
    date_sighting: int | None = None
    source: str | None = None
    type: int | None = 0
    value: str | None = None
    attribute_uuid: str | None = None
    attribute: Attribute | None = msgspec.field(name="Attribute", default=None)
    organisation: Organisation | None = msgspec.field(name="Organisation", default=None)


class Attribute(msgspec.Struct):
    """An attribute; `timestamp` (last edit) in seconds since 1970, UTC.

    The UUID is in lower case. REST answers hold the event and, where asked for, the event's tags
    among `tags`.
    """

    uuid: str
    type: str = ""
    value: str = ""
    category: str | None = None
    event_id: int | None = None
    to_ids: bool | None = None
    deleted: bool | None = None
    timestamp: int | None = None
    comment: str | None = None
    tags: list[Tag] | None = msgspec.field(name="Tag", default=None)
    event: Event | None = msgspec.field(name="Event", default=None)

    def __post_init__(self) -> None:
        self.uuid = self.uuid.lower()
        if not is_uuid(self.uuid):
            raise ValueError("uuid is no UUID of RFC 4122")
        if len(self.value) > MAX_VALUE:
            raise ValueError(f"value has {len(self.value)} characters, {MAX_VALUE} at most")
        if self.timestamp is not None and not 0 <= self.timestamp <= MAX_EPOCH:
            raise ValueError(f"timestamp is no date: {self.timestamp}"[:100])


class AttributeMessage(msgspec.Struct):
    """``misp_json_attribute``: what was done (`action`) to an attribute.

    A hard deletion (``delete``) comes without event.
    """

    attribute: Attribute = msgspec.field(name="Attribute")
    event: Event | None = msgspec.field(name="Event", default=None)
    action: str | None = None


class EventMessage(msgspec.Struct):
    """``misp_json_event`` and ``misp_json`` (which has no action on ZeroMQ).

    For what a pull brought, `event` is only the event's number, a string or an int.
    """

    event: Event | str | int = msgspec.field(name="Event")
    orgc: Organisation | None = msgspec.field(name="Orgc", default=None)
    event_tags: list[EventTag] | None = msgspec.field(name="EventTag", default=None)
    action: str | None = None


class AttachedTag(Tag):
    """The tag of ``misp_json_tag``, with the numbers of what it is attached to."""

    event_id: int | None = None
    attribute_id: int | None = None


class TagMessage(msgspec.Struct):
    """``misp_json_tag``: a tag attached to or detached from an attribute or an event."""

    tag: AttachedTag = msgspec.field(name="Tag")
    action: str | None = None


class SightingMessage(msgspec.Struct):
    """``misp_json_sighting``: a sighting added or deleted."""

    sighting: Sighting = msgspec.field(name="Sighting")
    action: str | None = None


#: Any message that tells of a change.
Message: TypeAlias = AttributeMessage | EventMessage | TagMessage | SightingMessage


class _Keys(msgspec.Struct):
    """Tells the messages apart: each is named by its first key."""

    attribute: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="Attribute", default=msgspec.UNSET
    )
    sighting: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="Sighting", default=msgspec.UNSET
    )
    event: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="Event", default=msgspec.UNSET)
    tag: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="Tag", default=msgspec.UNSET)


_keys = msgspec.json.Decoder(_Keys)
_attribute_messages = msgspec.json.Decoder(AttributeMessage, strict=False)
_event_messages = msgspec.json.Decoder(EventMessage, strict=False)
_tag_messages = msgspec.json.Decoder(TagMessage, strict=False)
_sighting_messages = msgspec.json.Decoder(SightingMessage, strict=False)
_attributes = msgspec.json.Decoder(Attribute, strict=False)
_objects = msgspec.json.Decoder(Object, strict=False)
_events = msgspec.json.Decoder(Event, strict=False)
_sightings = msgspec.json.Decoder(Sighting, strict=False)


def is_uuid(text: str) -> bool:
    """Say whether `text` is a UUID that STIX takes: plain form, variant of RFC 4122."""
    return (
        len(text) == 36
        and text.encode(errors="replace").translate(_TO_SHAPE) == _UUID_SHAPE
        and text[19] in "89abAB"
    )


def decode_message(data: bytes) -> Message:
    """Read a message of whatever kind, as its keys say."""
    # As MISP writes nearly all of them.
    if data.startswith(b'{"Attribute"'):
        return decode_attribute_message(data)
    try:
        keys = _keys.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(_line(f"not a JSON object: {error}")) from None
    if keys.attribute is not msgspec.UNSET:
        return decode_attribute_message(data)
    if keys.sighting is not msgspec.UNSET:
        return decode_sighting_message(data)
    if keys.event is not msgspec.UNSET:
        return decode_event_message(data)
    if keys.tag is not msgspec.UNSET:
        return decode_tag_message(data)
    raise Rejected("no Attribute, Event, Tag or Sighting")


def decode_attribute_message(data: bytes) -> AttributeMessage:
    """Read the JSON of ``misp_json_attribute``."""
    return _decode(_attribute_messages, data, "attribute message")


def decode_event_message(data: bytes) -> EventMessage:
    """Read the JSON of ``misp_json_event`` or ``misp_json`` and of their Kafka counterparts."""
    return _decode(_event_messages, data, "event message")


def decode_tag_message(data: bytes) -> TagMessage:
    """Read the JSON of ``misp_json_tag``."""
    return _decode(_tag_messages, data, "tag message")


def decode_sighting_message(data: bytes) -> SightingMessage:
    """Read the JSON of ``misp_json_sighting``."""
    return _decode(_sighting_messages, data, "sighting message")


def read_attribute(found: dict[str, Any]) -> Attribute:
    """Read an attribute from a REST answer that is decoded already."""
    return _decode(_attributes, _encode(found), "attribute")


def read_event(found: dict[str, Any]) -> Event:
    """Read an event from a REST answer that is decoded already (what stands under ``Event``)."""
    return _decode(_events, _encode(found), "event")


def read_sighting(found: dict[str, Any]) -> Sighting:
    """Read a sighting from a REST answer that is decoded already (under ``Sighting``)."""
    return _decode(_sightings, _encode(found), "sighting")


def members(event: Event) -> Iterator[Attribute | Rejected]:
    """Give the attributes of a full event, those of its objects included, one by one.

    One that cannot be read takes its place as the `Rejected` that says why, and the next follows.
    A deleted object's attributes count as deleted.
    """
    for data in event.attributes or ():
        yield _member(data)
    for found in event.objects or ():
        try:
            parent = _decode(_objects, found, "object")
        except Rejected as error:
            yield error
            continue
        for data in parent.attributes or ():
            yield _member(data, deleted=parent.deleted)


def _member(data: msgspec.Raw, *, deleted: bool | None = None) -> Attribute | Rejected:
    try:
        attribute = _decode(_attributes, data, "attribute")
    except Rejected as error:
        return error
    if deleted:
        attribute.deleted = True
    return attribute


def _encode(found: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(found)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Rejected(_line(f"REST answer that is no JSON: {error}")) from None


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw, what: str) -> T:
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError:
            return decoder.decode(msgspec.json.encode(_as_meant(msgspec.json.decode(data))))
    # A string that is cut short or not UTF-8 ends in either; deep nesting in the last.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        uuid = _uuid_in(data)
        where = f" {uuid}" if uuid else ""
        raise Rejected(_line(f"{what}{where}: {error or type(error).__name__}")) from None


def _as_meant(found: Any) -> Any:
    """Give JSON without PHP's arrays; see the module."""
    if isinstance(found, list):
        return [_as_meant(each) for each in found]
    if not isinstance(found, dict):
        return found
    if found and all(key.isdecimal() for key in found):
        return [_as_meant(each) for each in found.values()]
    return {
        key: None if each == [] and key in _OBJECTS else _as_meant(each)
        for key, each in found.items()
    }


def _uuid_in(data: bytes | msgspec.Raw) -> str | None:
    """Give the attribute's UUID of an input that is otherwise no good."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    for name in ("Sighting", "Attribute"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    uuid = found.get("uuid") if isinstance(found, dict) else None
    return uuid if isinstance(uuid, str) and is_uuid(uuid) else None


def _line(text: str) -> str:
    """Make one printable line of a text that may quote a hostile message."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_REASON])
