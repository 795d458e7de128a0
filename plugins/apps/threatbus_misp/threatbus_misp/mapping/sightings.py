"""Sightings, both ways: MISP's to STIX, and STIX's to what MISP's API is asked to add.

A false positive travels as a sighting too, told apart by ``x_threatbus_misp_sighting_type``; an
expiration is no sighting but the end of an indicator, which the caller has to see to
(`indicators.withdrawal_of`).
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Any, Final

import msgspec

from threatbus.data import ThreatBusSTIX2Constants
from threatbus.errors import Rejected
from threatbus_misp.mapping.indicators import SOURCE, indicator_id
from threatbus_misp.mapping.model import MAX_EPOCH, Sighting, is_uuid
from threatbus_misp.mapping.patterns import STIX, value_of
from threatbus_misp.mapping.times import from_stix, to_stix

#: The property that tells a false positive from a sighting, and its two values.
X_SIGHTING_TYPE: Final = "x_threatbus_misp_sighting_type"
TRUE_POSITIVE: Final = "sighting"
FALSE_POSITIVE: Final = "false-positive"

#: In the context of a sighting that a MISP has told: its UUID there.
MISP_SIGHTING: Final = "misp_sighting"

_X_SOURCE: Final = ThreatBusSTIX2Constants.X_THREATBUS_SOURCE.value
_X_CONTEXT: Final = ThreatBusSTIX2Constants.X_THREATBUS_SIGHTING_CONTEXT.value
_X_VALUE: Final = ThreatBusSTIX2Constants.X_THREATBUS_INDICATOR_VALUE.value
_encode: Final = msgspec.json.Encoder().encode


@unique
class Kind(IntEnum):
    """MISP's types of sightings."""

    SIGHTING = 0
    FALSE_POSITIVE = 1
    EXPIRATION = 2


_TYPE_NAMES: Final = {Kind.SIGHTING: TRUE_POSITIVE, Kind.FALSE_POSITIVE: FALSE_POSITIVE}


def kind_of(sighting: Sighting) -> Kind:
    """Say what kind of sighting MISP announces; `Rejected` for a number that MISP does not have."""
    try:
        return Kind(sighting.type or 0)
    except ValueError:
        of = _shown(attribute_uuid_of(sighting))
        raise Rejected(
            f"sighting {_shown(sighting.uuid)} of attribute {of}: unknown type {sighting.type}"
        ) from None


def attribute_uuid_of(sighting: Sighting) -> str | None:
    """Give the UUID of the attribute that was sighted, if MISP names it."""
    if sighting.attribute is not None:
        return sighting.attribute.uuid
    uuid = (sighting.attribute_uuid or "").lower()
    return uuid if is_uuid(uuid) else None


def sighting_of(
    sighting: Sighting, *, attribute_uuid: str | None = None, source: str = SOURCE
) -> bytes | None:
    """Map a sighting in MISP to a STIX sighting; None for an expiration, which is none.

    Its id is that of MISP's sighting, so the same one always comes out the same. Where MISP does
    not name the attribute, the caller does. `source` names the MISP instance; who saw it, in
    MISP's words, is in the context. Raises `Rejected`.
    """
    kind = kind_of(sighting)
    if kind is Kind.EXPIRATION:
        return None
    uuid = (sighting.uuid or "").lower()
    target = attribute_uuid or attribute_uuid_of(sighting)
    if not is_uuid(uuid):
        raise Rejected(f"sighting of attribute {_shown(target)}: uuid is no UUID of RFC 4122")
    if target is None:
        raise Rejected(f"sighting {uuid}: names no attribute")
    seconds = sighting.date_sighting
    if seconds is None or not 0 <= seconds <= MAX_EPOCH:
        raise Rejected(f"sighting {uuid} of attribute {target}: no date_sighting")
    seen = to_stix(seconds * 1000)
    document: dict[str, Any] = {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid}",
        "created": seen,
        "modified": seen,
        "first_seen": seen,
        "last_seen": seen,
        "count": 1,
        "sighting_of_ref": indicator_id(target),
        _X_SOURCE: source,
        X_SIGHTING_TYPE: _TYPE_NAMES[kind],
    }
    if value := (sighting.attribute.value if sighting.attribute is not None else sighting.value):
        document[_X_VALUE] = value
    document[_X_CONTEXT] = _context(sighting, uuid)
    return _encode(document)


def _context(sighting: Sighting, uuid: str) -> dict[str, str]:
    # Which no sensor's sighting has: by this, one that a MISP has told is known on its way back.
    context = {MISP_SIGHTING: uuid}
    if sighting.source:
        context["misp_source"] = sighting.source
    if sighting.organisation is not None and sighting.organisation.name:
        context["misp_organisation"] = sighting.organisation.name
    return context


class Request(msgspec.Struct, frozen=True):
    """What MISP is asked to add for one STIX sighting.

    `uuid` is that of the attribute, if the sighting is of an indicator; whether MISP knows it is
    another question, and `value` the answer for when it does not. `timestamp` in seconds, None
    for MISP's own clock. MISP has no count: `count` requests are `count` sightings.
    """

    uuid: str | None
    value: str | None
    type: Kind
    source: str
    timestamp: int | None
    count: int
    #: Whether it was MISP that told the bus of it.
    from_misp: bool = False


# The border lets in what the library lets in, text for a number for instance: hence few types
# here, and each value looked at before it is used.
class _StixSighting(msgspec.Struct):
    sighting_of_ref: str
    created: str | None = None
    last_seen: str | None = None
    count: int | None = None
    source: Any = msgspec.field(name=_X_SOURCE, default=None)
    value: Any = msgspec.field(name=_X_VALUE, default=None)
    indicator: Any = msgspec.field(
        name=ThreatBusSTIX2Constants.X_THREATBUS_INDICATOR.value, default=None
    )
    sighting_type: Any = msgspec.field(name=X_SIGHTING_TYPE, default=None)
    context: Any = msgspec.field(name=_X_CONTEXT, default=None)


_decode_stix: Final = msgspec.json.Decoder(_StixSighting, strict=False).decode


def request_of(data: bytes, *, source: str = "Threat Bus") -> Request | None:
    """Map a STIX sighting (JSON) to what MISP is asked to add; None if it was seen zero times.

    The time is that of ``last_seen``, else of ``created``. `source` is who saw it where the
    sighting does not say. Raises `Rejected` for what can be read neither way.
    """
    try:
        found = _decode_stix(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(f"sighting: {error}"[:200]) from None
    count = 1 if found.count is None else found.count
    if count < 1:
        return None
    kind, _, rest = found.sighting_of_ref.partition("--")
    uuid = rest.lower() if kind == "indicator" and is_uuid(rest) else None
    value = _value(found)
    if uuid is None and value is None:
        raise Rejected(f"sighting of {_shown(found.sighting_of_ref)}: no indicator and no value")
    false_positive = found.sighting_type == FALSE_POSITIVE
    said = found.source
    return Request(
        uuid=uuid,
        value=value,
        type=Kind.FALSE_POSITIVE if false_positive else Kind.SIGHTING,
        source=said if isinstance(said, str) and said else source,
        timestamp=_seconds(found.last_seen or found.created),
        count=count,
        from_misp=isinstance(found.context, dict) and MISP_SIGHTING in found.context,
    )


def _value(found: _StixSighting) -> str | None:
    """Give the value that was sighted: as the sighting says, or as its indicator's pattern does."""
    if isinstance(found.value, str) and found.value:
        return found.value
    indicator = found.indicator
    # Apps of old put the indicator in as a text.
    if isinstance(indicator, str):
        try:
            indicator = msgspec.json.decode(indicator)
        except (msgspec.MsgspecError, RecursionError):
            return None
    if not isinstance(indicator, dict):
        return None
    pattern, pattern_type = indicator.get("pattern"), indicator.get("pattern_type", STIX)
    if not isinstance(pattern, str) or not isinstance(pattern_type, str):
        return None
    split = value_of(pattern, pattern_type)
    return None if split is None else split.value


def _seconds(moment: str | None) -> int | None:
    if moment is None:
        return None
    try:
        seconds = from_stix(moment) // 1000
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds <= MAX_EPOCH else None


def _shown(text: str | None) -> str:
    return "?" if text is None else "".join(c if c.isprintable() else "?" for c in text[:80])
