"""One line for people per message, which stays one line whatever stands in the message."""

from __future__ import annotations

from typing import Any

import msgspec

from threatbus.cli.text import printable, shortened
from threatbus.data import Operation
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_REQUEST, Message

_LONGEST_PATTERN = 200
_LONGEST_TEXT = 80


class _View(msgspec.Struct):
    """What is shown of a document, in whatever type it comes."""

    id: Any = None
    pattern: Any = None
    name: Any = None
    description: Any = None
    revoked: Any = None
    sighting_of_ref: Any = None
    count: Any = None
    x_threatbus_update: Any = None
    x_threatbus_source: Any = None
    x_threatbus_indicator: Any = None
    x_threatbus_indicator_value: Any = None
    snapshot: Any = None
    snapshot_type: Any = None
    snapshot_id: Any = None


def line(message: Message) -> str:
    """Describe a message."""
    kind = message.topic.rpartition("/")[2]
    try:
        view = msgspec.json.decode(message.data, type=_View)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return printable(f"{kind}  cannot be read: {message.data[:_LONGEST_TEXT]!r}")
    if message.topic == INDICATOR:
        parts = [f"{kind:<9}", f"{_operation(view):<6}", _text(view.pattern, _LONGEST_PATTERN)]
    elif message.topic == SIGHTING:
        parts = [f"{kind:<9}", f"{'':<6}", *_sighted(view)]
    elif message.topic == SNAPSHOT_REQUEST:
        return printable(f"snapshot request {_text(view.snapshot_id)}: {_asked_for(view)}")
    else:
        return printable(f"{kind}  {_text(view.snapshot_id or view.id)}")
    parts += [_quoted(view.name), _quoted(view.description), _source(view), _text(view.id)]
    return "  ".join(part for part in parts if part)


def _operation(view: _View) -> str:
    if view.revoked is True or view.x_threatbus_update == Operation.REMOVE.value:
        return "REMOVE"
    return "EDIT" if view.x_threatbus_update == Operation.EDIT.value else "ADD"


def _sighted(view: _View) -> list[str]:
    """Say what was seen: the pattern or value if the sighting brings it, and the reference."""
    indicator = view.x_threatbus_indicator
    pattern = indicator.get("pattern") if isinstance(indicator, dict) else None
    times = f"{_text(view.count)} times" if view.count not in (None, 1) else ""
    seen = _text(pattern or view.x_threatbus_indicator_value, _LONGEST_PATTERN)
    return [seen, times, f"of {_text(view.sighting_of_ref)}"]


def _asked_for(view: _View) -> str:
    kind = {1: "indicators", 2: "sightings"}.get(view.snapshot_type, "objects")
    if isinstance(view.snapshot, int | float):
        return f"{kind} of the last {view.snapshot / 86_400:g} days"
    return kind


def _source(view: _View) -> str:
    return f"from {_text(view.x_threatbus_source)}" if view.x_threatbus_source else ""


def _quoted(value: object) -> str:
    return f'"{_text(value)}"' if value else ""


def _text(value: object, longest: int = _LONGEST_TEXT) -> str:
    return "" if value is None else shortened(printable(str(value)), longest)
