"""The events between Zeek and the bus; no I/O.

Source: the protocol page (docs/protocol-zeek.md). The first five are those of Threat Bus 2022.5.16;
the others our own script adds, so that nothing is lost while a subscription begins, while Zeek is
slow, and when a connection breaks.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from threatbus_zeek.values import Count, Event, text_of

if TYPE_CHECKING:
    from threatbus_zeek.mapping import Change
    from threatbus_zeek.patterns import Item

MANAGE_TOPIC: Final = "threatbus/manage"
SIGHTING_TOPIC: Final = "stix2/sighting"
#: What the bus receives of Zeek's topics (they are prefixes).
TOPICS: Final = (MANAGE_TOPIC, SIGHTING_TOPIC)

#: Random lower-case letters that the bus appends to a topic to make a point-to-point topic.
P2P_LETTERS: Final = 10
MAX_TOPIC_LENGTH: Final = 1024
MAX_SUFFIX_LENGTH: Final = 64
MAX_NAME_LENGTH: Final = 100
MAX_SNAPSHOT_DAYS: Final = 36_500

_is_suffix: Final = re.compile(rf"[A-Za-z0-9_-]{{10,{MAX_SUFFIX_LENGTH}}}").fullmatch
#: Events of the bus's own, which Broker and other buses may let it hear.
_OURS: Final = frozenset(
    {"subscription_acknowledged", "joined", "not_joined", "intel", "intel_batch"}
)

# What Zeek's clock can hold: nanoseconds since 1970 in 64 bits.
_EARLIEST: Final = datetime(1678, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2262, 1, 1, tzinfo=UTC)


class BadEvent(Exception):
    """An event that the bus does not understand; the text says why, in one line."""


@dataclass(frozen=True)
class Subscribe:
    """A Zeek with the script of 2022.5.16 wants what matches `topic`."""

    topic: str
    snapshot: timedelta


@dataclass(frozen=True)
class Join:
    """A Zeek with our script wants what matches `topic`, at a topic that it has made itself."""

    p2p: str
    topic: str
    snapshot: timedelta
    name: str


@dataclass(frozen=True)
class Received:
    """A Zeek with our script is there, and has dealt with all batches up to `number`."""

    p2p: str
    number: int


@dataclass(frozen=True)
class Unsubscribe:
    """The end of the subscription with the point-to-point topic `p2p`."""

    p2p: str


@dataclass(frozen=True)
class Sighting:
    """Zeek has seen the indicator `intel_id`; `context` holds values of Zeek's."""

    time: datetime
    intel_id: str
    context: dict[Any, Any]


Request = Subscribe | Join | Received | Unsubscribe | Sighting


def new_p2p_topic(topic: str) -> str:
    """Make a point-to-point topic for a subscription to `topic`."""
    return topic + "".join(secrets.choice(string.ascii_lowercase) for _ in range(P2P_LETTERS))


def unpack(value: Any) -> Event:
    """Give the event in a message of Zeek's; raises `BadEvent` for anything else.

    A message is a vector of version, kind and content; the content is name, arguments and, from
    Zeek 6 on, metadata. All but name and arguments is passed over.
    """
    match value:
        case (_, _, (str() as name, tuple() as args, *_)):
            return Event(name, args)
    raise BadEvent("a message that is no event")


class Protocol:
    """Reads and writes the events of one namespace (``module_namespace``)."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{namespace}::"
        self._namespace = namespace
        self._readers: Final[dict[str, Callable[..., Request]]] = {
            "subscribe": _subscribe,
            "join": _join,
            "received": _received,
            "unsubscribe": _unsubscribe,
            "sighting": _sighting,
        }

    def read(self, event: Event) -> Request | None:
        """Give what Zeek wants, None for an event of the bus's own. Raises `BadEvent`."""
        name = event.name.removeprefix(self._prefix)
        if name == event.name:
            found = repr(event.name[:80])
            raise BadEvent(f"event outside of the namespace {self._namespace}: {found}")
        if name in _OURS:
            return None
        reader = self._readers.get(name)
        if reader is None:
            raise BadEvent(f"unknown event: {event.name[:80]!r}")
        try:
            return reader(*event.args)
        except (TypeError, OverflowError):
            raise BadEvent(f"{name} with wrong arguments: {_kinds(event.args)}") from None

    def acknowledged(self, p2p: str) -> Event:
        """Answer `Subscribe`."""
        return self._event("subscription_acknowledged", p2p)

    def intel(self, operation: str, time: datetime, indicator: str, item: Item) -> Event:
        """Tell the script of 2022.5.16 of one item, which `indicator` is about."""
        record = (_time(time), indicator, item.intel_type, item.value, operation)
        return self._event("intel", record)

    def joined(self, p2p: str) -> Event:
        """Answer `Join`."""
        return self._event("joined", p2p)

    def not_joined(self, p2p: str) -> Event:
        """Say that there is no subscription with the topic `p2p`, or none any more."""
        return self._event("not_joined", p2p)

    def batch(self, p2p: str, number: int, changes: Sequence[Change]) -> Event:
        """Tell our script of the batch with this `number`; numbers of a subscription begin at 1."""
        return self._event("intel_batch", p2p, Count(number), tuple(map(_indicator, changes)))

    def _event(self, name: str, *args: Any) -> Event:
        return Event(self._prefix + name, args)


def _indicator(change: Change) -> tuple[Any, ...]:
    """Give the record ``Indicator`` of our script."""
    return (
        _time(change.time),
        change.id,
        tuple((item.intel_type, item.value) for item in change.items),
        change.source,
        change.description,
        None if change.confidence is None else Count(change.confidence),
    )


def _subscribe(topic: Any, snapshot: Any) -> Subscribe:
    return Subscribe(_topic(topic), _span(snapshot))


def _join(p2p: Any, topic: Any, snapshot: Any, name: Any) -> Join:
    topic = _topic(topic)
    p2p = _typed(p2p, str)
    if not p2p.startswith(topic) or not _is_suffix(p2p[len(topic) :]):
        raise BadEvent("join with a topic of its own that is not the topic and a random suffix")
    shown = "".join(c if c.isprintable() else "?" for c in _typed(name, str)[:MAX_NAME_LENGTH])
    return Join(p2p, topic, _span(snapshot), shown)


def _received(p2p: Any, number: Any) -> Received:
    if isinstance(number, bool):
        raise TypeError
    return Received(_p2p(p2p), _typed(number, int))


def _unsubscribe(p2p: Any) -> Unsubscribe:
    return Unsubscribe(_p2p(p2p))


def _sighting(time: Any, intel_id: Any, context: Any) -> Sighting:
    return Sighting(_typed(time, datetime), _typed(intel_id, str), _typed(context, dict))


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return text_of(value) if kind is str else value


def _p2p(topic: Any) -> str:
    topic = _typed(topic, str)
    if len(topic) > MAX_TOPIC_LENGTH + MAX_SUFFIX_LENGTH:
        raise BadEvent("a topic of more characters than any subscription has")
    return str(topic)


def _topic(topic: Any) -> str:
    topic = _typed(topic, str)
    if len(topic) > MAX_TOPIC_LENGTH:
        raise BadEvent(f"a topic of more than {MAX_TOPIC_LENGTH} characters")
    if topic.startswith(MANAGE_TOPIC.partition("/")[0] + "/"):
        raise BadEvent(f"a topic of the bus's own: {topic[:80]!r}")
    return str(topic)


def _span(snapshot: Any) -> timedelta:
    """Give how far back a snapshot reaches: users write ``30 days`` as well as ``-30 days``."""
    span: timedelta = abs(_typed(snapshot, timedelta))
    return min(span, timedelta(days=MAX_SNAPSHOT_DAYS))


def _kinds(args: tuple[Any, ...]) -> str:
    """Give the types of arguments for a message, the first few of them."""
    shown = ", ".join(type(value).__name__ for value in args[:6])
    return f"({shown}{', …' if len(args) > 6 else ''})"


def _time(moment: datetime) -> datetime:
    return min(max(moment, _EARLIEST), _LATEST)
