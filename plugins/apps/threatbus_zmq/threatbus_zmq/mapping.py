"""The frames of the ZeroMQ app protocol, to and from messages; no I/O.

Source: the protocol page (docs/protocol-zmq.md).
"""

from __future__ import annotations

import logging
import math
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec

from threatbus.border import Border
from threatbus.data import MessageType
from threatbus.errors import NotCarried, Rejected
from threatbus.messages import (
    INDICATOR,
    SIGHTING,
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    TOPIC_OF_TYPE,
    EnvelopeView,
    Message,
)

logger = logging.getLogger("threatbus.zmq.mapping")

#: Length of a point-to-point topic in lower-case letters.
P2P_LENGTH: Final = 32

#: What stands between the P2P topic and the blank, by message topic.
TYPE_OF_TOPIC: Final = {
    INDICATOR: "indicator",
    SIGHTING: "sighting",
    SNAPSHOT_REQUEST: "snapshotrequest",
    SNAPSHOT_ENVELOPE: "snapshotenvelope",
}

MAX_SNAPSHOT_DAYS: Final = 36_500
MAX_TOPICS: Final = 100
MAX_TOPIC_LENGTH: Final = 1024
MAX_NAME_LENGTH: Final = 100

_STIX_TOPIC: Final = b"stix2"
_STIX_PREFIX: Final = b"stix2/"
_USUAL_TOPICS: Final = frozenset({INDICATOR.encode(), SIGHTING.encode()})
_ENVELOPE_TOPIC: Final = SNAPSHOT_ENVELOPE.encode()


class BadRequest(Exception):
    """A management request that cannot be served; `status` and `reason` go into the reply."""

    def __init__(self, status: str, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Subscribe:
    """A wish for what matches `topics`; `name` is what the app calls itself, if it does."""

    topics: list[str]
    snapshot: timedelta
    name: str | None


@dataclass(frozen=True)
class Unsubscribe:
    """The end of the subscription with point-to-point topic `p2p`."""

    p2p: str


@dataclass(frozen=True)
class Heartbeat:
    """Sign of life of the subscription with point-to-point topic `p2p`."""

    p2p: str


Request = Subscribe | Unsubscribe | Heartbeat


def new_p2p_topic() -> str:
    """Make a point-to-point topic: 32 random lower-case letters that nobody can guess."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(P2P_LENGTH))


class _Kinds(dict[str, bytes]):
    """What stands between P2P topic and JSON in a frame, by message topic: type and blank."""

    def __missing__(self, topic: str) -> bytes:
        """Give it for a topic that only a foreign backbone can bring: its last part."""
        return f"{topic.rpartition('/')[2]} ".encode()


KINDS: Final = _Kinds({topic: f"{kind} ".encode() for topic, kind in TYPE_OF_TOPIC.items()})


def written_topic(message: Message) -> str:
    """Give the topic that its sender must be allowed to write: of an envelope, that of its body."""
    if message.topic != SNAPSHOT_ENVELOPE:
        return message.topic
    view = msgspec.json.decode(message.data, type=EnvelopeView)
    return TOPIC_OF_TYPE[MessageType(view.snapshot_type)]


def decode_request(frame: bytes) -> Request:
    """Read one management request; raises `BadRequest`."""
    try:
        request = msgspec.json.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadRequest("error", "the request is not JSON") from None
    if not isinstance(request, dict):
        raise BadRequest("unknown request", "the request is not a JSON object")
    action = request.get("action")
    if action not in ("subscribe", "unsubscribe", "heartbeat"):
        raise BadRequest("unknown request", "action must be subscribe, unsubscribe or heartbeat")
    if "topic" not in request:
        raise BadRequest("unknown request", "the request lacks its topic")
    topic = request["topic"]
    if action == "subscribe":
        return Subscribe(_topics(topic), _snapshot(request.get("snapshot")), _name(request))
    if not isinstance(topic, str):
        raise BadRequest("unknown request", "topic must be the one from the reply to subscribe")
    return Unsubscribe(topic) if action == "unsubscribe" else Heartbeat(topic)


def encode_reply(status: str, **fields: object) -> bytes:
    """Write one management reply."""
    return msgspec.json.encode({"status": status, **fields})


def _topics(found: Any) -> list[str]:
    topics = found if isinstance(found, list) else [found]
    if not topics or not all(isinstance(topic, str) for topic in topics):
        raise BadRequest("unknown request", "topic must be a text or a list of texts")
    if len(topics) > MAX_TOPICS:
        raise BadRequest("error", f"at most {MAX_TOPICS} topics can be subscribed at once")
    if max(map(len, topics)) > MAX_TOPIC_LENGTH:
        raise BadRequest("error", f"a topic has at most {MAX_TOPIC_LENGTH} characters")
    return topics


def _snapshot(found: Any) -> timedelta:
    """Read a number of days, which may be missing or written as a text."""
    if found is None:
        return timedelta(0)
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        raise BadRequest("error", "snapshot must be a number of days")
    try:
        days = float(found)
    except (ValueError, OverflowError):
        raise BadRequest("error", "snapshot must be a number of days") from None
    if not math.isfinite(days) or not 0 <= days <= MAX_SNAPSHOT_DAYS:
        raise BadRequest("error", f"snapshot must be between 0 and {MAX_SNAPSHOT_DAYS} days")
    return timedelta(days=days)


def _name(request: dict[str, Any]) -> str | None:
    name = request.get("name")
    if not isinstance(name, str) or not name.strip():
        return None
    return "".join(c if c.isprintable() else "?" for c in name.strip()[:MAX_NAME_LENGTH])


class FrameReader:
    """Turns published frames into messages; holds the border and the envelope decoder.

    `recognise` is for the ordinary frame and takes microseconds; what it is unsure of goes to
    `read`, which may take the STIX library and up to a second.
    """

    def __init__(self, border: Border) -> None:
        self._border = border
        self._recognise = border.recognise
        self._envelopes = msgspec.json.Decoder(EnvelopeView)

    def recognise(self, frames: Sequence[bytes]) -> list[Message]:
        """Give the messages of `frames`, up to the first that is not certainly an ordinary object.

        There is one message per frame: the others are ``frames[len(messages):]``.
        """
        documents: list[bytes] = []
        for frame in frames:
            topic, _, data = frame.partition(b" ")
            if topic not in _USUAL_TOPICS and topic[:6] != _STIX_PREFIX and topic != _STIX_TOPIC:
                break
            documents.append(data)
        try:
            return list(map(Message, self._recognise(documents), documents))
        # The fast path is said to raise nothing. Should it: no frame is lost over it.
        except Exception:
            logger.exception("the fast path failed")
            return []

    def read(self, frame: bytes) -> tuple[list[Message], list[tuple[str, bytes]]]:
        """Give the messages in `frame`, and what is rejected of it, each with its reason."""
        topic, blank, data = frame.partition(b" ")
        if not blank:
            return [], [("no blank between topic and document", frame)]
        if topic == _ENVELOPE_TOPIC:
            return self._collect([data], self._envelope, frame)
        if topic[:6] != _STIX_PREFIX and topic != _STIX_TOPIC:
            shown = topic[:60].decode(errors="backslashreplace")
            return [], [(f"topic that nobody publishes to: {shown!r}", frame)]
        try:
            members = self._border.unpack(data)
        except Rejected as error:
            return [], [(error.reason, frame)]
        if members is None:
            return self._collect([data], self._object, frame)
        return self._collect(members, self._member, None)

    def _collect(
        self, documents: list[bytes], read: Any, frame: bytes | None
    ) -> tuple[list[Message], list[tuple[str, bytes]]]:
        messages: list[Message] = []
        rejected: list[tuple[str, bytes]] = []
        for document in documents:
            try:
                message = read(document)
            except Rejected as error:
                rejected.append((error.reason, document if frame is None else frame))
            else:
                if message is not None:
                    messages.append(message)
        return messages, rejected

    def _object(self, data: bytes) -> Message:
        return Message(self._border.topic_of(data), data)

    def _member(self, data: bytes) -> Message | None:
        """Read a member of a bundle, in which objects that the bus does not carry are expected."""
        try:
            return self._object(data)
        except NotCarried:
            return None

    def _envelope(self, data: bytes) -> Message:
        try:
            view = self._envelopes.decode(data)
            expected = TOPIC_OF_TYPE[MessageType(view.snapshot_type)]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Rejected(f"snapshot envelope: {error}") from None
        if self._border.topic_of(bytes(view.body)) != expected:
            raise Rejected("snapshot envelope: its body is not of its snapshot_type")
        return Message(SNAPSHOT_ENVELOPE, data)
