"""Documents as an app reads and writes them: typed views of what came, bytes of what leaves."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from threatbus.data import MatchType, Operation, SnapshotRequest, ThreatBusSTIX2Constants
from threatbus.errors import Rejected
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_REQUEST, Message, RequestView


class Indicator(msgspec.Struct, tag_field="type", tag="indicator"):
    """The fields of an indicator that most apps read; the whole document is in `Message.data`."""

    id: str
    pattern: str
    modified: datetime
    pattern_type: str = "stix"
    name: str | None = None
    valid_until: datetime | None = None
    revoked: bool = False
    x_threatbus_update: str | None = None
    x_threatbus_source: str | None = None

    def is_withdrawn(self, now: datetime | None = None) -> bool:
        """Whether it is to be matched no longer: removed, revoked, or expired at `now`."""
        expired = self.valid_until is not None and self.valid_until <= (now or datetime.now(UTC))
        return self.revoked or self.x_threatbus_update == Operation.REMOVE.value or expired


class Sighting(msgspec.Struct, tag_field="type", tag="sighting"):
    """The fields of a sighting that most apps read."""

    id: str
    sighting_of_ref: str
    modified: datetime
    last_seen: datetime | None = None
    count: int | None = None
    x_threatbus_source: str | None = None
    x_threatbus_match_type: str | None = None
    x_threatbus_indicator_value: str | None = None
    x_threatbus_sighting_context: Any = None


Document = Indicator | Sighting | SnapshotRequest

_VIEWS: Final[dict[str, Any]] = {
    INDICATOR: Indicator,
    SIGHTING: Sighting,
    SNAPSHOT_REQUEST: RequestView,
}


def read(message: Message) -> Document:
    """Give the typed view of a message; `Rejected` says why there is none.

    A bus lets in nothing but STIX, yet what answers at an endpoint may be anything.
    """
    view = _VIEWS.get(message.topic)
    if view is None:
        raise Rejected(f"a message on {message.topic!r}, which apps do not read")
    try:
        found = msgspec.json.decode(message.data, type=view)
        return found.to_request() if isinstance(found, RequestView) else found
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise Rejected(f"no {message.topic}: {error}") from None


def sighting(
    indicator_id: str,
    *,
    match_type: MatchType | None = None,
    value: str | None = None,
    context: object = None,
    source: str | None = None,
    seen: datetime | None = None,
    count: int = 1,
) -> bytes:
    """Write a sighting of the indicator with that id.

    `value` is what of the indicator was seen, `context` what it was seen in (anything that JSON
    can hold), `seen` when (default: now).
    """
    now = _timestamp(datetime.now(UTC))
    document: dict[str, object] = {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid.uuid4()}",
        "created": now,
        "modified": now,
        "last_seen": now if seen is None else _timestamp(seen),
        "count": count,
        "sighting_of_ref": indicator_id,
    }
    custom = {
        ThreatBusSTIX2Constants.X_THREATBUS_SOURCE: source,
        ThreatBusSTIX2Constants.X_THREATBUS_MATCH_TYPE: match_type and match_type.value,
        ThreatBusSTIX2Constants.X_THREATBUS_INDICATOR_VALUE: value,
        ThreatBusSTIX2Constants.X_THREATBUS_SIGHTING_CONTEXT: context,
    }
    document |= {key.value: given for key, given in custom.items() if given is not None}
    return msgspec.json.encode(document)


def envelope(request: SnapshotRequest, body: bytes) -> bytes:
    """Write one answer to a snapshot request; `body` is a STIX object, and stays as it is."""
    return msgspec.json.encode(
        {
            "type": "snapshotenvelope",
            "snapshot_type": request.snapshot_type.value,
            "snapshot_id": request.snapshot_id,
            "body": msgspec.Raw(body),
        }
    )


def _timestamp(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
