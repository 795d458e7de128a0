"""Zeek's WebSocket messages, to and from values; no I/O.

Source: docs/protocol-zeek.md ("WebSocket"), after Zeek's manual ("WebSocket API", data model).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any, Final

import msgspec

from threatbus_zeek.values import ADDRESS, SUBNET, Count, Enum, Event, Port, text_of


class BadFrame(Exception):
    """A frame, or a value in it, that is not what Zeek's manual describes."""


@dataclass(frozen=True)
class Ack:
    """The server's answer to the list of topics: the connection may be used from now on."""

    endpoint: str
    version: str


@dataclass(frozen=True)
class Refusal:
    """The server's word that something which was sent is wrong; it does not say what."""

    code: str
    context: str


@dataclass(frozen=True)
class Data:
    """A message to a topic; `value` is the event as Zeek packs it."""

    topic: str
    value: Any


Frame = Ack | Refusal | Data

#: Seconds of each unit that a timespan may have.
_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_TIMESPAN: Final = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|ms|s|min|h|d)")
# Zeek writes numbers that JSON has not as bare words; only outside of a string is one a value.
_BARE_WORD: Final = re.compile(r'("data"\s*:\s*)(-?inf|-?nan)(?=\s*[,}])')
_WORDS: Final = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN", "-nan": "NaN"}


def encode_topics(topics: Sequence[str]) -> str:
    """Write the first frame of a connection: prefixes of the topics to receive."""
    return json.dumps(list(topics))


def encode_event(topic: str, event: Event) -> str:
    """Write the frame that publishes an event."""
    packed = (Count(1), Count(1), (event.name, event.args))
    frame = {"type": "data-message", "topic": topic, **encode(packed)}
    return msgspec.json.encode(frame).decode()


def decode_frame(frame: bytes | str) -> Frame:
    """Read one frame. Raises `BadFrame`.

    Lenient where Zeek is: its strings hold control characters and bytes that are not UTF-8 as
    they are.
    """
    text = frame.decode("utf-8", "surrogateescape") if isinstance(frame, bytes) else frame
    try:
        found = _parse(text)
    except (ValueError, RecursionError):
        raise BadFrame("not JSON") from None
    if not isinstance(found, dict):
        raise BadFrame("not a JSON object")
    kind = found.get("type")
    if kind == "ack":
        return Ack(_text(found.get("endpoint")), _text(found.get("version")))
    if kind == "error":
        # The context is called "message" by the first versions of the server within Zeek.
        return Refusal(_text(found.get("code")), _text(found.get("context", found.get("message"))))
    if kind != "data-message":
        raise BadFrame("neither data-message nor ack nor error")
    if not isinstance(found.get("topic"), str):
        raise BadFrame("a data-message without a topic")
    try:
        return Data(text_of(found["topic"]), decode(found))
    except RecursionError:
        raise BadFrame("nested too deeply") from None


def encode(value: Any) -> dict[str, Any]:
    """Give a value as ``{"@data-type": …, "data": …}``. Raises `TypeError` for an unknown type."""
    kind, data = _typed(value)
    return {"@data-type": kind, "data": data}


def decode(found: Any) -> Any:
    """Read ``{"@data-type": …, "data": …}``. Raises `BadFrame`."""
    if not isinstance(found, dict) or "data" not in found:
        raise BadFrame("a value without data")
    kind = found.get("@data-type")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise BadFrame(f"unknown type of data: {str(kind)[:40]!r}")
    try:
        return reader(found["data"])
    except (TypeError, ValueError, KeyError, OverflowError):
        raise BadFrame(f"not a {kind}: {str(found['data'])[:40]!r}") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except ValueError:
        # What looks like such a word inside a string cannot be one: its quotes are escaped there.
        mended = _BARE_WORD.sub(lambda found: found[1] + _WORDS[found[2]], text)
        return json.loads(mended, strict=False)


def _text(found: Any) -> str:
    return text_of(found) if isinstance(found, str) else ""


def _typed(value: Any) -> tuple[str, Any]:
    match value:
        case None:
            return "none", {}
        case bool():
            return "boolean", value
        case Count():
            return "count", int(value)
        case int():
            return "integer", value
        case float():
            return "real", value
        case Enum():
            return "enum-value", str(value)
        case Port():
            return "port", str(value)
        case str():
            return "string", value
        case datetime():
            moment = value.astimezone(UTC).replace(tzinfo=None)
            return "timestamp", moment.isoformat(timespec="milliseconds")
        case timedelta():
            return "timespan", f"{round(value.total_seconds() * 1000)}ms"
        case tuple() | list():
            return "vector", [encode(each) for each in value]
        case frozenset() | set():
            return "set", [encode(each) for each in value]
        case dict():
            pairs = value.items()
            return "table", [{"key": encode(key), "value": encode(each)} for key, each in pairs]
        case _ if isinstance(value, ADDRESS):
            return "address", str(value)
        case _ if isinstance(value, SUBNET):
            return "subnet", str(value)
    raise TypeError(f"a {type(value).__name__} is no value of Zeek's")


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
            raise TypeError
        return data

    return read


_integer = _exactly(int)
_string = _exactly(str)


def _count(data: Any) -> Count:
    number = _integer(data)
    if number < 0:
        raise ValueError
    return Count(number)


def _real(data: Any) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise TypeError
    return float(data)


def _timestamp(data: Any) -> datetime:
    moment = datetime.fromisoformat(_string(data))
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _timespan(data: Any) -> timedelta:
    found = _TIMESPAN.fullmatch(_string(data))
    if found is None:
        raise ValueError
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "none": lambda _: None,
    "boolean": _exactly(bool),
    "count": _count,
    "integer": _integer,
    "real": _real,
    "string": lambda data: text_of(_string(data)),
    "enum-value": lambda data: Enum(text_of(_string(data))),
    "port": lambda data: Port(text_of(_string(data))),
    "timestamp": _timestamp,
    "timespan": _timespan,
    "address": lambda data: ip_address(_string(data)),
    "subnet": lambda data: ip_network(_string(data), strict=False),
    "vector": lambda data: tuple(map(decode, _exactly(list)(data))),
    "set": lambda data: frozenset(map(decode, _exactly(list)(data))),
    "table": lambda data: {decode(e["key"]): decode(e["value"]) for e in _exactly(list)(data)},
}
