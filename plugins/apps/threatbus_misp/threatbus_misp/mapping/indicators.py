"""MISP attributes to STIX indicators, and their withdrawal.

An indicator keeps its attribute's identity: the same UUID for good, ``created`` as first
published, and a later ``modified`` with each version. MISP's own timestamp does not move with a
tag or a deletion, so the caller brings what its index knows of the version before. All moments
are milliseconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from threatbus.data import Operation, ThreatBusSTIX2Constants
from threatbus.errors import Rejected
from threatbus_misp.mapping.model import Attribute, Event, Tag
from threatbus_misp.mapping.patterns import MISP_TYPES, STIX, Pattern, pattern_of, why_no_pattern
from threatbus_misp.mapping.tags import marks_of
from threatbus_misp.mapping.times import MAX_MOMENT_MS, to_stix

#: What ``x_threatbus_source`` and the external reference say, unless the instance has a name.
SOURCE: Final = "MISP"

#: Longest name and longest part of a description, in characters.
MAX_NAME: Final = 200
MAX_TEXT: Final = 4_000

_encode: Final = msgspec.json.Encoder().encode


class Unmapped(Rejected):
    """An attribute of a type that no pattern can express (``comment``, ``text``, …): no fault."""


class _Indicator(msgspec.Struct, omit_defaults=True, tag_field="type", tag="indicator"):
    """The STIX document; what has its default here is not in it."""

    spec_version: str
    id: str
    created: str
    modified: str
    pattern: str
    pattern_type: str
    valid_from: str
    source: str = msgspec.field(name=ThreatBusSTIX2Constants.X_THREATBUS_SOURCE.value)
    pattern_version: str | None = None
    name: str | None = None
    description: str | None = None
    valid_until: str | None = None
    labels: Sequence[str] = ()
    kill_chain_phases: Sequence[dict[str, str]] = ()
    confidence: int | None = None
    object_marking_refs: Sequence[str] = ()
    external_references: Sequence[dict[str, str]] = ()
    revoked: bool = False
    update: str | None = msgspec.field(
        name=ThreatBusSTIX2Constants.X_THREATBUS_UPDATE.value, default=None
    )


class Version(NamedTuple):
    """One version of an indicator: the STIX document, and what an index has to keep of it.

    `created` and `modified` in milliseconds since 1970, UTC.
    """

    data: bytes
    uuid: str
    pattern: str
    pattern_type: str
    created: int
    modified: int
    marking_refs: Sequence[str] = ()


def indicator_id(uuid: str) -> str:
    """Give the STIX id of the indicator that an attribute becomes."""
    return f"indicator--{uuid}"


def later(moment: int, last_modified: int | None) -> int:
    """Give the `modified` of a new version: `moment`, but always after that of the last one."""
    return moment if last_modified is None or moment > last_modified else last_modified + 1


def indicator_of(
    attribute: Attribute,
    event: Event | None = None,
    *,
    event_tags: Iterable[Tag] | None = None,
    created: int | None = None,
    last_modified: int | None = None,
    lifetime: int | None = None,
    source: str = SOURCE,
    url: str | None = None,
) -> Version:
    """Map an attribute to a version of its indicator.

    `event` and `event_tags` default to what came with the attribute. `created` and
    `last_modified` are those of the versions before, None for the first. `lifetime` in seconds,
    counted from MISP's timestamp, gives ``valid_until``. `url` is where the instance's web pages
    are. Raises `Unmapped` for a type that is not for patterns, `Rejected` for a bad value; both
    name the attribute's UUID.
    """
    if event is None:
        event = attribute.event
    if event_tags is None:
        event_tags = event.all_tags() if event is not None else ()
    pattern = _pattern_of(attribute)
    if attribute.timestamp is None:
        raise Rejected(f"attribute {attribute.uuid}: no timestamp")
    edited = attribute.timestamp * 1000
    first = edited if created is None else created
    modified = later(max(edited, first), last_modified)
    marks = marks_of(attribute.tags or (), event_tags)
    indicator = _head(attribute.uuid, pattern, first, modified, source)
    indicator.name = _name_of(attribute.value)
    indicator.description = _description(attribute.comment, event)
    until = None if lifetime is None else max(edited, first) + max(lifetime, 1) * 1000
    # A lifetime that leads beyond the calendar is none.
    if until is not None and until <= MAX_MOMENT_MS:
        indicator.valid_until = to_stix(until)
    labels, indicator.kill_chain_phases = _classes_of(
        attribute.type, _cut(attribute.category or "", MAX_NAME)
    )
    indicator.labels = (*labels, *marks.labels)
    indicator.confidence = marks.confidence
    indicator.object_marking_refs = marks.marking_refs
    if event is not None and event.uuid:
        indicator.external_references = (_reference(event.uuid, source, url),)
    data = _encode(indicator)
    return Version(data, attribute.uuid, *pattern, first, modified, marks.marking_refs)


def withdrawal_of(
    uuid: str,
    pattern: str,
    pattern_type: str,
    created: int,
    last_modified: int,
    *,
    at: int = 0,
    marking_refs: Sequence[str] = (),
    source: str = SOURCE,
) -> Version:
    """Withdraw an indicator by what an index kept of its last version.

    It is revoked for those who speak STIX, and marked as removed for those who speak Threat Bus.
    `at` is when MISP withdrew it, if known; the new `modified` is later than the last anyway.
    `marking_refs` should be those of the last version: the pattern is no less sensitive now.
    """
    modified = later(max(at, created), last_modified)
    indicator = _head(uuid, Pattern(pattern, pattern_type), created, modified, source)
    indicator.revoked = True
    indicator.update = Operation.REMOVE.value
    indicator.object_marking_refs = tuple(marking_refs)
    return Version(_encode(indicator), uuid, pattern, pattern_type, created, modified, marking_refs)


def _pattern_of(attribute: Attribute) -> Pattern:
    pattern = pattern_of(attribute.type, attribute.value)
    if pattern is None:
        why = why_no_pattern(attribute.type, attribute.value)
        kind = Rejected if attribute.type in MISP_TYPES else Unmapped
        shown = "".join(char if char.isprintable() else "?" for char in attribute.type[:60])
        raise kind(f"attribute {attribute.uuid} ({shown}): {why}")
    return pattern


def _head(uuid: str, pattern: Pattern, created: int, modified: int, source: str) -> _Indicator:
    first = to_stix(created)
    return _Indicator(
        spec_version="2.1",
        id=indicator_id(uuid),
        created=first,
        modified=first if modified == created else to_stix(modified),
        pattern=pattern.text,
        pattern_type=pattern.pattern_type,
        valid_from=first,
        source=source,
        pattern_version="2.1" if pattern.pattern_type == STIX else None,
    )


# The attributes of an event are of few kinds, and come in a row.
@lru_cache(maxsize=256)
def _classes_of(misp_type: str, category: str) -> tuple[Sequence[str], Sequence[dict[str, str]]]:
    """Give the labels and kill-chain phases that type and category make."""
    labels = [f'misp:type="{misp_type}"']
    if not category:
        return labels, ()
    labels.append(f'misp:category="{category}"')
    return labels, ({"kill_chain_name": "misp-category", "phase_name": category},)


@lru_cache(maxsize=256)
def _reference(event_uuid: str, source: str, url: str | None) -> dict[str, str]:
    reference = {"source_name": source, "external_id": event_uuid}
    if url:
        reference["url"] = f"{url.rstrip('/')}/events/view/{event_uuid}"
    return reference


def _name_of(value: str) -> str:
    """Name an indicator by its value, a rule by its first line."""
    line = value[: MAX_NAME + 1]
    if "\n" in line:
        line = line.strip().partition("\n")[0].rstrip()
    return _cut(line, MAX_NAME)


def _description(comment: str | None, event: Event | None) -> str | None:
    parts = []
    if comment:
        parts.append(_cut(comment, MAX_TEXT))
    if event is not None and event.info:
        parts.append(_cut(f"MISP event: {event.info}", MAX_TEXT))
    return "\n".join(parts) or None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
