"""What passes, as server-sent events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from threatbus.observe.passages import Follower

#: Seconds between two looks at what has passed: a stream looks by itself, so that messages on
#: their way wake nobody.
LOOK_SECS: Final = 0.25
#: Messages that one look gives; of more, the newest, and how many are left out.
PER_LOOK: Final = 100
#: Seconds after which a stream says that it is still there.
KEEP_ALIVE_SECS: Final = 15.0


def events(follower: Follower, backlog: int, stopping: threading.Event) -> Iterator[bytes]:
    """Give events until `stopping` is set: ``message`` for each, ``skipped`` for those left out.

    Each piece is one or more whole events. The first ones are the newest `backlog` messages.
    """
    yield _event("open", {}) + _messages(follower.backlog(backlog))
    said = time.monotonic()
    while not stopping.wait(LOOK_SECS):
        messages, skipped = follower.news(PER_LOOK)
        piece = _event("skipped", {"count": skipped}) if skipped else b""
        piece += _messages(messages)
        now = time.monotonic()
        if not piece and now - said < KEEP_ALIVE_SECS:
            continue
        said = now
        yield piece or b": still here\n\n"


def _messages(found: list[dict[str, Any]]) -> bytes:
    return b"".join(_event("message", each, each["number"]) for each in found)


def _event(kind: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    event_id = b"" if number is None else b"id: %d\n" % number
    # JSON on one line, since a line break would end the field.
    return event_id + b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
