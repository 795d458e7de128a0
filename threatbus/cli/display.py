"""One line for people per message, which stays one line whatever stands in the message."""

from __future__ import annotations

from threatbus.cli.text import printable, shortened
from threatbus.errors import Rejected
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_REQUEST, Message
from threatbus.summary import Summary

_LONGEST_PATTERN = 200
_LONGEST_TEXT = 80


def line(message: Message) -> str:
    """Describe a message."""
    kind = message.topic.rpartition("/")[2]
    try:
        view = Summary.of(message.data)
    except Rejected:
        return printable(f"{kind}  cannot be read: {message.data[:_LONGEST_TEXT]!r}")
    if message.topic == INDICATOR:
        parts = [f"{kind:<9}", f"{view.operation:<6}", _text(view.pattern, _LONGEST_PATTERN)]
    elif message.topic == SIGHTING:
        parts = [f"{kind:<9}", f"{'':<6}", *_sighted(view)]
    elif message.topic == SNAPSHOT_REQUEST:
        return printable(f"snapshot request {_text(view.snapshot_id)}: {_asked_for(view)}")
    else:
        return printable(f"{kind}  {_text(view.snapshot_id or view.id)}")
    parts += [_quoted(view.name), _quoted(view.description), _source(view), _text(view.id)]
    return "  ".join(part for part in parts if part)


def _sighted(view: Summary) -> list[str]:
    """Say what was seen: the pattern or value if the sighting brings it, and the reference."""
    times = f"{_text(view.count)} times" if view.count not in (None, 1) else ""
    seen = _text(view.seen, _LONGEST_PATTERN)
    return [seen, times, f"of {_text(view.sighting_of_ref)}"]


def _asked_for(view: Summary) -> str:
    kind = {1: "indicators", 2: "sightings"}.get(view.snapshot_type, "objects")
    if isinstance(view.snapshot, int | float):
        return f"{kind} of the last {view.snapshot / 86_400:g} days"
    return kind


def _source(view: Summary) -> str:
    return f"from {_text(view.x_threatbus_source)}" if view.x_threatbus_source else ""


def _quoted(value: object) -> str:
    return f'"{_text(value)}"' if value else ""


def _text(value: object, longest: int = _LONGEST_TEXT) -> str:
    return "" if value is None else shortened(printable(str(value)), longest)
