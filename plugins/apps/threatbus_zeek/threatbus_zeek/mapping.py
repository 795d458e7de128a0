"""Indicators to what Zeek is told, and what Zeek saw to sightings; no I/O.

Source: the protocol page (docs/protocol-zeek.md).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from threatbus.errors import Rejected
from threatbus_zeek.events import Sighting
from threatbus_zeek.patterns import Item, items_of
from threatbus_zeek.values import to_json

#: Characters of an indicator's name and description that Zeek gets to see.
MAX_DESCRIPTION: Final = 300

_is_stix_id: Final = re.compile(
    r"[a-z][a-z0-9-]*--[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
).fullmatch


@dataclass(frozen=True)
class Change:
    """What one state of an indicator means for Zeek: these items, and no others, are its.

    `items` is empty for an indicator that is withdrawn, or that has no counterpart in Zeek.
    `withdrawn_items` are those that its pattern names, when it is withdrawn.
    """

    id: str
    time: datetime
    items: tuple[Item, ...]
    withdrawn_items: tuple[Item, ...] = ()
    description: str = ""
    source: str = ""
    confidence: int | None = None

    @property
    def is_unmapped(self) -> bool:
        """Whether the pattern has no counterpart in Zeek."""
        return not self.items and not self.withdrawn_items


class _View(msgspec.Struct, gc=False):
    """The fields of an indicator that matter to Zeek."""

    id: str
    modified: datetime
    pattern: Any = ""
    pattern_type: Any = ""
    valid_until: datetime | None = None
    revoked: bool | None = None
    name: Any = None
    description: Any = None
    confidence: Any = None
    x_threatbus_update: Any = None
    x_threatbus_source: Any = None


class IndicatorReader:
    """Turns indicators into changes; holds the decoder and the option `reduce_ip_port`."""

    def __init__(self, *, reduce_ip_port: bool) -> None:
        self._reduce_ip_port = reduce_ip_port
        self._decode = msgspec.json.Decoder(_View).decode

    def read(self, document: bytes, now: datetime) -> Change:
        """Give the change that an indicator brings; one whose `valid_until` is not after `now` is
        withdrawn. Raises `Rejected` for a document that is no indicator of the border's.
        """
        try:
            view = self._decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Rejected(f"an indicator that cannot be read: {error}") from None
        items: tuple[Item, ...] = ()
        if view.pattern_type == "stix" and isinstance(view.pattern, str):
            items = tuple(items_of(view.pattern, reduce_ip_port=self._reduce_ip_port))
        if _is_withdrawn(view, now):
            return Change(view.id, _aware(view.modified), (), items)
        return Change(
            view.id,
            _aware(view.modified),
            items,
            description=_description(view),
            source=view.x_threatbus_source if isinstance(view.x_threatbus_source, str) else "",
            confidence=view.confidence if isinstance(view.confidence, int) else None,
        )


def sighting_document(sighting: Sighting, now: datetime) -> bytes:
    """Write what Zeek saw as a STIX 2.1 sighting. Raises `Rejected` if it names no STIX id."""
    if not _is_stix_id(sighting.intel_id):
        raise Rejected("the intel_id of a sighting is no STIX id: " + repr(sighting.intel_id[:80]))
    seen, made = _stix_time(sighting.time), _stix_time(now)
    document: dict[str, Any] = {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid.uuid4()}",
        "created": made,
        "modified": made,
        "sighting_of_ref": sighting.intel_id,
        "first_seen": seen,
        "last_seen": seen,
        "count": 1,
        "x_threatbus_source": "Zeek",
    }
    try:
        if sighting.context:
            document["x_threatbus_sighting_context"] = to_json(sighting.context)
        return msgspec.json.encode(document)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Rejected(f"the context of a sighting cannot be put into JSON: {error}") from None


def _is_withdrawn(view: _View, now: datetime) -> bool:
    return (
        view.revoked is True
        or view.x_threatbus_update == "REMOVE"
        or (view.valid_until is not None and _aware(view.valid_until) <= now)
    )


def _description(view: _View) -> str:
    parts = [part for part in (view.name, view.description) if isinstance(part, str) and part]
    return ": ".join(parts)[:MAX_DESCRIPTION]


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _stix_time(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
