"""STIX documents with ids of their own, as dicts, bytes, messages and objects."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from threatbus.data import MessageType
from threatbus.messages import (
    INDICATOR,
    SIGHTING,
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    Message,
)

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def timestamp(seconds: float = 0.0) -> str:
    """Give a STIX timestamp, `seconds` after `NOW`."""
    moment = (NOW + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def indicator(pattern: str = "[domain-name:value = 'example.com']", **more: Any) -> dict[str, Any]:
    """Give a new indicator; `more` adds or overwrites properties."""
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid4()}",
        "created": timestamp(),
        "modified": timestamp(),
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": timestamp(),
        **more,
    }


def sighting(sighting_of: str | None = None, **more: Any) -> dict[str, Any]:
    """Give a new sighting of `sighting_of` (an indicator's id); `more` adds or overwrites."""
    return {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid.uuid4()}",
        "created": timestamp(),
        "modified": timestamp(),
        "sighting_of_ref": sighting_of or f"indicator--{uuid.uuid4()}",
        **more,
    }


def encode(document: Any) -> bytes:
    """Give the document as a producer would send it."""
    return json.dumps(document).encode()


def indicator_bytes(**more: Any) -> bytes:
    """Give a new indicator in bytes."""
    return encode(indicator(**more))


def sighting_bytes(**more: Any) -> bytes:
    """Give a new sighting in bytes."""
    return encode(sighting(**more))


def indicator_message(**more: Any) -> Message:
    """Give a new indicator as the border would let it in."""
    return Message(INDICATOR, indicator_bytes(**more))


def sighting_message(**more: Any) -> Message:
    """Give a new sighting as the border would let it in."""
    return Message(SIGHTING, sighting_bytes(**more))


def indicators(count: int) -> list[Message]:
    """Give `count` new indicators; each says its place in the order by its name."""
    return [indicator_message(name=str(number)) for number in range(count)]


def name_of(message: Message) -> str:
    """Give the property `name` of a message's document."""
    return str(json.loads(message.data)["name"])


def id_of(message: Message) -> str:
    """Give the STIX id of a message's document."""
    return str(json.loads(message.data)["id"])


def stix_object(document: dict[str, Any]) -> Any:
    """Give the stix2 object of a document."""
    import stix2  # noqa: PLC0415 (slow; only tests with plain objects need it)

    return stix2.parse(document, allow_custom=True)


def library_topic(data: bytes | str) -> str | None:
    """Give the topic of a document by the verdict of the stix2 library; None: it rejects it."""
    import stix2  # noqa: PLC0415

    try:
        parsed = stix2.parse(data, allow_custom=True)
    except Exception:  # noqa: BLE001  the library raises anything
        return None
    if isinstance(parsed, stix2.v21.Indicator):
        return INDICATOR
    return SIGHTING if isinstance(parsed, stix2.v21.Sighting) else None


def request_message(kind: MessageType, snapshot_id: str, seconds: float = 86400) -> Message:
    """Give a snapshot request as another node would send it."""
    document = {
        "type": "snapshotrequest",
        "snapshot_type": kind.value,
        "snapshot_id": snapshot_id,
        "snapshot": seconds,
    }
    return Message(SNAPSHOT_REQUEST, encode(document))


def envelope_message(snapshot_id: str, body: dict[str, Any]) -> Message:
    """Give a snapshot envelope around `body`."""
    kind = MessageType.INDICATOR if body["type"] == "indicator" else MessageType.SIGHTING
    document = {
        "type": "snapshotenvelope",
        "snapshot_type": kind.value,
        "snapshot_id": snapshot_id,
        "body": body,
    }
    return Message(SNAPSHOT_ENVELOPE, encode(document))
