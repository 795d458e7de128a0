"""What travels through the bus: topic and bytes, as they came.

A message is parsed once, at the border (`threatbus.border`). Behind it nobody parses or
serialises: what leaves is the bytes that came in. The full object exists only for plugins that
ask for it, because their API says so (`Message.to_object`).
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from threatbus.data import (
    MessageType,
    SnapshotEnvelope,
    SnapshotEnvelopeDecoder,
    SnapshotEnvelopeEncoder,
    SnapshotRequest,
    SnapshotRequestDecoder,
    SnapshotRequestEncoder,
)
from threatbus.errors import Rejected

if TYPE_CHECKING:
    from typing import TypeAlias

    from stix2 import Indicator, Sighting

    PlainObject: TypeAlias = Indicator | Sighting | SnapshotRequest | SnapshotEnvelope

INDICATOR: Final = "stix2/indicator"
SIGHTING: Final = "stix2/sighting"
SNAPSHOT_REQUEST: Final = "threatbus/snapshotrequest"
SNAPSHOT_ENVELOPE: Final = "threatbus/snapshotenvelope"

#: Everything that STIX topics begin with, and everything that the bus keeps to itself.
STIX_PREFIX: Final = "stix2/"
INTERNAL_PREFIX: Final = "threatbus/"

TOPIC_OF_TYPE: Final = {MessageType.INDICATOR: INDICATOR, MessageType.SIGHTING: SIGHTING}


class Message(msgspec.Struct, gc=False, eq=False):
    """One message: `topic`, the JSON document in `data`, and the `id` given on acceptance.

    The id is what makes two copies the same message (two backbones may each deliver one): an
    int for what this bus accepted, a str for what another node did, 0 before acceptance.
    A million of these may wait for a slow reader, hence no garbage collector header and no
    field that routing does not need.
    """

    topic: str
    data: bytes
    id: int | str = 0

    def to_object(self) -> PlainObject:
        """Build the stix2 object or data class, as foreign plugins expect it.

        The object remembers this message, so that it is recognised when it comes back.
        """
        text = self.data.decode()
        found: Any
        if self.topic == SNAPSHOT_REQUEST:
            found = json.loads(text, cls=SnapshotRequestDecoder)
        elif self.topic == SNAPSHOT_ENVELOPE:
            found = json.loads(text, cls=SnapshotEnvelopeDecoder)
        else:
            import stix2  # noqa: PLC0415 (250 ms: only who hands out plain objects pays)

            found = stix2.parse(text, allow_custom=True)
        found._threatbus_message = self
        return found

    @classmethod
    def from_object(cls, found: object) -> Message:
        """Make a message of a stix2 object, a snapshot data class, or a message.

        Raises `Rejected` for anything else, and for one that cannot be put into JSON. An object
        that this bus handed out gives the very message that it was made of: same bytes, same id.
        """
        if isinstance(found, Message):
            return found
        origin = getattr(found, "_threatbus_message", None)
        if isinstance(origin, Message):
            return origin
        try:
            topic, text = _topic_and_text(found)
            return cls(topic, text.encode())
        # Data classes hold whatever a plugin put into them, and so do custom properties.
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            kind = type(found).__name__
            raise Rejected(f"a {kind} that cannot be put into JSON: {error}") from error


def _topic_and_text(found: object) -> tuple[str, str]:
    if isinstance(found, SnapshotRequest):
        return SNAPSHOT_REQUEST, json.dumps(found, cls=SnapshotRequestEncoder)
    if isinstance(found, SnapshotEnvelope):
        _topic_of_stix2(found.body)
        return SNAPSHOT_ENVELOPE, json.dumps(found, cls=SnapshotEnvelopeEncoder)
    return _topic_of_stix2(found), found.serialize()  # type: ignore[attr-defined]


def _topic_of_stix2(found: object) -> str:
    from stix2.v21 import Indicator, Sighting  # noqa: PLC0415 (who holds one has imported it)

    if isinstance(found, Indicator):
        return INDICATOR
    if isinstance(found, Sighting):
        return SIGHTING
    raise Rejected(
        f"a {type(found).__name__} is no STIX 2.1 Indicator or Sighting and no snapshot message"
    )


class EnvelopeView(msgspec.Struct, tag_field="type", tag="snapshotenvelope"):
    """The fields of a snapshot envelope that routing reads; `body` keeps its bytes."""

    snapshot_type: int
    snapshot_id: str
    body: msgspec.Raw


class RequestView(msgspec.Struct, tag_field="type", tag="snapshotrequest"):
    """The fields of a snapshot request; `snapshot` in seconds."""

    snapshot_type: int
    snapshot_id: str
    snapshot: float

    def to_request(self) -> SnapshotRequest:
        """Give the data class that `snapshot` hooks receive; ValueError for an unknown type."""
        kind = MessageType(self.snapshot_type)
        return SnapshotRequest(kind, self.snapshot_id, timedelta(seconds=self.snapshot))
