"""The data classes that apps, plugins and the bus exchange besides STIX objects.

Names and shapes are those of Threat Bus 2022.5.16, which third-party plugins import. The JSON
shapes of the snapshot messages are on the protocol page (docs/protocol-zmq.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, unique
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stix2 import Indicator, Sighting


@unique
class MessageType(Enum):
    """The two kinds of STIX objects that the bus carries; the value is the one on the wire."""

    INDICATOR = 1
    SIGHTING = 2


@unique
class Operation(Enum):
    """What an indicator's ``x_threatbus_update`` may say."""

    EDIT = "EDIT"
    REMOVE = "REMOVE"


@unique
class MatchType(str, Enum):
    """How a sighting came about: seen as it happened, or found in stored data."""

    LIVE = "LIVE"
    RETRO = "RETRO"


@unique
class ThreatBusSTIX2Constants(Enum):
    """Names of the custom properties that Threat Bus gives to STIX objects."""

    X_THREATBUS_INDICATOR = "x_threatbus_indicator"
    X_THREATBUS_INDICATOR_VALUE = "x_threatbus_indicator_value"
    X_THREATBUS_MATCH_TYPE = "x_threatbus_match_type"
    X_THREATBUS_SOURCE = "x_threatbus_source"
    X_THREATBUS_SIGHTING_CONTEXT = "x_threatbus_sighting_context"
    X_THREATBUS_UPDATE = "x_threatbus_update"


@dataclass
class Subscription:
    """A wish to receive what matches `topic`, with the history of the last `snapshot`."""

    topic: str | list[str]
    snapshot: timedelta


@dataclass
class Unsubscription:
    """The end of a subscription, named by its point-to-point topic."""

    topic: str


@dataclass
class SnapshotRequest:
    """Asks for everything of one type that is not older than `snapshot`.

    Whoever can answer sends one `SnapshotEnvelope` per object, with the same `snapshot_id`.
    """

    snapshot_type: MessageType
    snapshot_id: str
    snapshot: timedelta


@dataclass
class SnapshotEnvelope:
    """One object of the answer to the `SnapshotRequest` with the same `snapshot_id`."""

    snapshot_type: MessageType
    snapshot_id: str
    body: Indicator | Sighting


def _object(text: str, expected_type: str, *keys: str) -> dict[str, Any]:
    """Decode the JSON object of one snapshot message, or raise ValueError that says what lacks."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("type") != expected_type:
        raise ValueError(f"not a {expected_type}: its type must be {expected_type!r}")
    if missing := [key for key in keys if key not in document]:
        raise ValueError(f"a {expected_type} needs {', '.join(missing)}")
    return document


def _message_type(value: Any) -> MessageType:
    try:
        return MessageType(int(value))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"snapshot_type is {value!r}, but it must be 1 or 2") from error


def _span(value: Any) -> timedelta:
    try:
        return timedelta(seconds=float(value))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"snapshot is {value!r}, but it must be a number of seconds") from error


class SnapshotRequestEncoder(json.JSONEncoder):
    """For ``json.dumps(request, cls=SnapshotRequestEncoder)``."""

    def default(self, o: Any) -> Any:
        """Give the JSON shape of a `SnapshotRequest`."""
        if not isinstance(o, SnapshotRequest):
            return super().default(o)
        return {
            "type": "snapshotrequest",
            "snapshot_type": o.snapshot_type.value,
            "snapshot_id": o.snapshot_id,
            "snapshot": int(o.snapshot.total_seconds()),
        }


class SnapshotRequestDecoder(json.JSONDecoder):
    """For ``json.loads(text, cls=SnapshotRequestDecoder)``; ValueError for anything else."""

    def decode(self, s: str, *_: Any) -> Any:
        """Give the `SnapshotRequest` that `s` holds."""
        found = _object(s, "snapshotrequest", "snapshot_type", "snapshot_id", "snapshot")
        return SnapshotRequest(
            _message_type(found["snapshot_type"]),
            str(found["snapshot_id"]),
            _span(found["snapshot"]),
        )


class SnapshotEnvelopeEncoder(json.JSONEncoder):
    """For ``json.dumps(envelope, cls=SnapshotEnvelopeEncoder)``."""

    def default(self, o: Any) -> Any:
        """Give the JSON shape of a `SnapshotEnvelope`."""
        if not isinstance(o, SnapshotEnvelope):
            return super().default(o)
        return {
            "type": "snapshotenvelope",
            "snapshot_type": o.snapshot_type.value,
            "snapshot_id": o.snapshot_id,
            "body": json.loads(o.body.serialize()),
        }


class SnapshotEnvelopeDecoder(json.JSONDecoder):
    """For ``json.loads(text, cls=SnapshotEnvelopeDecoder)``; ValueError for anything else."""

    def decode(self, s: str, *_: Any) -> Any:
        """Give the `SnapshotEnvelope` that `s` holds, its body parsed by stix2."""
        import stix2  # noqa: PLC0415 (250 ms: only who decodes an envelope pays)

        found = _object(s, "snapshotenvelope", "snapshot_type", "snapshot_id", "body")
        return SnapshotEnvelope(
            _message_type(found["snapshot_type"]),
            str(found["snapshot_id"]),
            stix2.parse(found["body"], allow_custom=True),
        )
