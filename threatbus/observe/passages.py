"""The ring, decoded: one entry per message, in the thread of whoever asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from threatbus.errors import Rejected
from threatbus.messages import STIX_PREFIX, Message
from threatbus.observe.counts import kind_of
from threatbus.observe.ring import Passage, Ring
from threatbus.summary import Summary

#: What stands for who put a message on the bus, if that was no plugin of this one.
ANOTHER_BUS: Final = "another bus"
#: Characters of each text that is given.
LONGEST_TEXT: Final = 500
#: Messages that one look at the ring goes through; a reader that is behind by more skips some.
MAX_LOOKED_AT: Final = 2000


@dataclass(eq=False)
class Passed:
    """One message that passed: who put it on the bus, and which outqs have it."""

    number: int
    message: Message
    at: float
    plugin: str = ""
    to: list[tuple[str, int]] = field(default_factory=list)
    more: int = 0

    @property
    def origin(self) -> str:
        """Who put it on the bus; empty if that is known no longer."""
        came_from_elsewhere = not self.plugin and isinstance(self.message.id, str)
        return ANOTHER_BUS if came_from_elsewhere else self.plugin

    @property
    def time(self) -> str:
        """When it passed: ISO 8601, UTC."""
        moment = time.time() - (time.monotonic() - self.at)
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Filter:
    """Which messages somebody wants to see; what is empty lets everything pass.

    `topic` is a prefix; `kind` is ``indicator`` or ``sighting``; `text` stands anywhere in the
    document, in any case.
    """

    topic: str = ""
    kind: str = ""
    text: str = ""

    def admits(self, message: Message) -> bool:
        """Say whether a message is wanted."""
        return (
            message.topic.startswith(self.topic or STIX_PREFIX)
            and self.kind in ("", kind_of(message.topic))
            and (not self.text or contains(message.data, written(self.text)))
        )


def written(text: str) -> list[bytes]:
    """Give the ways in which a text may stand in a JSON document, in lower case."""
    plain = {text.lower(), json.dumps(text)[1:-1].lower()}
    plain.add(json.dumps(text, ensure_ascii=False)[1:-1].lower())
    return [each.encode("utf-8", "backslashreplace") for each in plain]


def contains(data: bytes, needles: Iterable[bytes]) -> bool:
    """Say whether a document holds one of `needles`, which are in lower case."""
    lower = data.lower()
    return any(needle in lower for needle in needles)


def messages_of(passages: Iterable[Passage]) -> Iterator[Passed]:
    """Give what passed message by message, the oldest first; copies of one message are one.

    A batch with several topics, and one that came back from a broker, are recorded in parts.
    """
    found: dict[int | str, Passed] = {}
    for passage in passages:
        count = len(passage.batch)
        to, more = list(passage.to), passage.more
        for place, message in enumerate(passage.batch):
            # Ids that are missing are those of plugins of the old kind, who make messages anew.
            key = message.id or f"object {id(message)}"
            entry = found.get(key)
            if entry is None:
                number = passage.first + place
                entry = found[key] = Passed(number, message, passage.at)
            entry.plugin = entry.plugin or passage.plugin
            entry.to += [(name, given - (count - 1 - place)) for name, given in to]
            entry.more += more
    return iter(found.values())


def shown(passed: Passed) -> dict[str, Any]:
    """Give a message as plain data: what JSON, a table or a page shows of it."""
    message = passed.message
    try:
        summary = Summary.of(message.data)
    except Rejected:
        summary = Summary()
    kind = kind_of(message.topic)
    about = summary.pattern if kind == "indicator" else summary.seen
    return {
        "number": passed.number,
        "time": passed.time,
        "topic": message.topic,
        "type": kind,
        "id": _text(summary.id),
        "operation": summary.operation if kind == "indicator" else "",
        "about": _text(about),
        "name": _text(summary.name),
        "sighting_of": _text(summary.sighting_of_ref),
        "count": summary.count if isinstance(summary.count, int) else None,
        "source": _text(summary.x_threatbus_source),
        "plugin": passed.origin,
        "to": [name for name, _ in passed.to],
        "to_more": passed.more,
        "bytes": len(message.data),
    }


class Follower:
    """Reads the ring from where it last was, for one reader with one filter."""

    def __init__(self, ring: Ring, wanted: Filter) -> None:
        self._ring = ring
        self._wanted = wanted
        self._next = ring.recorded

    def backlog(self, limit: int) -> list[dict[str, Any]]:
        """Give the newest `limit` messages that are there already, the oldest first."""
        self._next = self._ring.recorded
        found = [each for each in messages_of(self._ring.passages()) if self._admits(each)]
        return [shown(each) for each in found[-limit:]] if limit else []

    def news(self, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Give what has come since, `limit` messages at most, and how many were not looked at."""
        passages = self._ring.passages(self._next)
        if not passages:
            return [], 0
        before, self._next = self._next, _end_of(passages)
        kept = _newest(passages, MAX_LOOKED_AT)
        skipped = max(0, kept[0].first - before)
        found = [each for each in messages_of(kept) if each.number >= before and self._admits(each)]
        skipped += max(0, len(found) - limit)
        return [shown(each) for each in found[-limit:]], skipped

    def _admits(self, passed: Passed) -> bool:
        # What has no origin is a message that came back from a broker; it has been shown already.
        return bool(passed.origin) and self._wanted.admits(passed.message)


def _end_of(passages: Sequence[Passage]) -> int:
    return passages[-1].first + len(passages[-1].batch)


def _newest(passages: Sequence[Passage], limit: int) -> Sequence[Passage]:
    """Give the last passages that have `limit` messages together, one of them at least."""
    first, count = len(passages) - 1, len(passages[-1].batch)
    while first > 0 and count + len(passages[first - 1].batch) <= limit:
        first -= 1
        count += len(passages[first].batch)
    return passages[first:]


def _text(value: object) -> str:
    if value is None:
        return ""
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
