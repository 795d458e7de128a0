"""Where one object or value came from, when, to whom it went, and whether it was withdrawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from threatbus.errors import Rejected
from threatbus.messages import INDICATOR, STIX_PREFIX
from threatbus.observe.passages import Passed, contains, messages_of, shown, written
from threatbus.observe.ring import Ring
from threatbus.summary import Summary

#: Objects, and messages of each, that one answer holds; the newest count.
MAX_OBJECTS: Final = 20
MAX_MESSAGES: Final = 100


@dataclass(frozen=True)
class OutqState:
    """An outq as it is now: what it has been given in all, and what of that still waits."""

    given: int
    waiting: int


class _Ids(msgspec.Struct):
    """What a message is about."""

    id: Any = None
    sighting_of_ref: Any = None


def trace(ring: Ring, wanted: str, outqs: Mapping[str, OutqState]) -> dict[str, Any]:
    """Look for the id or value `wanted` among what passed last.

    The answer holds, per object, each message of it and the sightings of it, the oldest first;
    and what was looked through, for when nothing was found.
    """
    passed = [each for each in messages_of(ring.passages()) if _is_stix(each)]
    ids = _ids_of(passed, wanted)
    about = _messages_about(passed, ids[-MAX_OBJECTS:])
    objects = [_traced(each, messages, outqs) for each, messages in about.items()]
    return {
        "wanted": wanted,
        "objects": objects,
        "more_objects": max(0, len(ids) - MAX_OBJECTS),
        "looked_through": {
            "messages": len(passed),
            "since": passed[0].time if passed else None,
            "max_messages": ring.max_messages,
            "max_bytes": ring.max_bytes,
            "has_let_go": ring.recorded > ring.messages,
        },
    }


def _is_stix(passed: Passed) -> bool:
    return passed.message.topic.startswith(STIX_PREFIX)


def _ids_of(passed: Iterable[Passed], wanted: str) -> list[str]:
    """Give the ids of the indicators that `wanted` names, and of sightings if it is one's."""
    # In a pattern a backslash stands before quotes and backslashes.
    escaped = wanted.replace("\\", "\\\\").replace("'", "\\'")
    needles = [*written(wanted), *written(escaped)]
    folded = wanted.lower()
    ids: dict[str, None] = {}
    for each in passed:
        if not contains(each.message.data, needles):
            continue
        summary = _summary(each)
        own, sighted = str(summary.id), str(summary.sighting_of_ref)
        is_indicator = each.message.topic == INDICATOR
        if folded == own.lower():
            ids[own] = None
        elif folded == sighted.lower() or any(folded == v.lower() for v in summary.values()):
            ids[own if is_indicator else sighted] = None
    return list(ids)


def _messages_about(passed: Iterable[Passed], ids: Sequence[str]) -> dict[str, list[Passed]]:
    """Give, by object, its own messages and the sightings of it."""
    found: dict[str, list[Passed]] = {each: [] for each in ids}
    decode = msgspec.json.Decoder(_Ids).decode
    for each in passed:
        try:
            own = decode(each.message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        for object_id in {str(own.id), str(own.sighting_of_ref)} & found.keys():
            found[object_id].append(each)
    return found


def _traced(
    object_id: str, messages: list[Passed], outqs: Mapping[str, OutqState]
) -> dict[str, Any]:
    entries = [
        {
            **shown(each),
            "to": [{"subscriber": name, "state": _state(outqs.get(name), place)}
                   for name, place in each.to],
        }
        for each in messages
    ]  # fmt: skip
    own = [entry for entry in entries if entry["id"] == object_id]
    newest = own[-1] if own else None
    return {
        "id": object_id,
        "type": object_id.partition("--")[0],
        "about": (newest or entries[-1])["about"] if entries else "",
        "withdrawn": newest is not None and newest["operation"] == "REMOVE",
        "withdrawn_at": newest["time"] if newest and newest["operation"] == "REMOVE" else None,
        "sightings": sum(entry["sighting_of"] == object_id for entry in entries),
        "messages": entries[-MAX_MESSAGES:],
        "more_messages": max(0, len(entries) - MAX_MESSAGES),
    }


def _state(outq: OutqState | None, place: int) -> str:
    """Say what became of the message that was the `place`-th an outq was given."""
    if outq is None:
        return "unsubscribed since"
    return "taken" if place <= outq.given - outq.waiting else "waiting"


def _summary(passed: Passed) -> Summary:
    try:
        return Summary.of(passed.message.data)
    except Rejected:
        return Summary()
