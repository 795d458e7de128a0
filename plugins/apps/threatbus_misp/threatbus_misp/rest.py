"""The REST API of one MISP instance, through PyMISP.

PyMISP knows the routes and parameters; this module adds what a worker of the bus needs: answers
page by page, that say what they should say or raise an error of `rest_errors`, and that can be
interrupted (`rest_connections`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from threatbus_misp.rest_connections import DEADLINE_SECS, TIMEOUT_SECS, Connections, Running
from threatbus_misp.rest_errors import MispRefusal

#: An object as MISP's JSON has it.
Json = dict[str, Any]

#: Attributes, or events without their attributes, of one page.
PAGE_SIZE: Final = 1000
#: What MISP's database holds of a sighting's source; more is answered with a 500.
MAX_SOURCE: Final = 255

#: Seconds of sightings that are asked for at once, at first and at most: this route has no pages.
_FIRST_WINDOW_SECS: Final = 86_400
_MAX_WINDOW_SECS: Final = 64 * 86_400
#: Fewer sightings than the one let the window grow, more than the other let it shrink.
_FEW_SIGHTINGS: Final = 200
_MANY_SIGHTINGS: Final = 5000


@dataclass(frozen=True)
class AttributeFilter:
    """Which attributes MISP is to give; what is None does not filter, and all others must match."""

    to_ids: bool | None = None
    published: bool | None = None
    """Whether the attribute's event is published at the moment."""

    enforce_warninglist: bool = False

    def query(self) -> Json:
        """Give the arguments of PyMISP's `search`."""
        query: Json = {"enforce_warninglist": self.enforce_warninglist}
        if self.to_ids is not None:
            query["to_ids"] = int(self.to_ids)
        if self.published is not None:
            query["published"] = int(self.published)
        return query


#: Everything.
ANY_ATTRIBUTE: Final = AttributeFilter()


class MispApi:
    """One MISP instance. Nothing is sent before the first call; several threads may share one.

    `ssl` is whether the certificate is checked, or the path of the CA certificates to check it
    with. User and password in `url` are for a proxy in front of MISP. A method that gives pages is
    a generator: each page is asked for when the one before is done with. Every method takes
    `running` and raises `MispInterrupted` soon after that gives False.
    """

    def __init__(
        self,
        url: str,
        key: str,
        ssl: bool | str = True,
        *,
        timeout: tuple[float, float] = TIMEOUT_SECS,
        deadline: float = DEADLINE_SECS,
        page_size: int = PAGE_SIZE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.connections = Connections(url, key, ssl, timeout=timeout, deadline=deadline)
        self._call = self.connections.call
        self._page_size = page_size
        self._clock = clock

    def __repr__(self) -> str:
        return f"<MispApi {self.name}>"

    @property
    def name(self) -> str:
        """The address, fit for messages."""
        return self.connections.name

    @property
    def version(self) -> str | None:
        """MISP's version; None before the first connection."""
        return self.connections.version

    def close(self) -> None:
        """Let go of idle connections. The object may be used again."""
        self.connections.close()

    def connect(self, running: Running | None = None) -> str:
        """Connect, unless that is done, and give MISP's version."""
        self._call(lambda _: None, running)
        return self.connections.version or ""

    # Attributes and events.

    def attributes_changed(
        self,
        since: int,
        *,
        only: AttributeFilter = ANY_ATTRIBUTE,
        running: Running | None = None,
    ) -> Iterator[list[Json]]:
        """Give pages of the live attributes that were edited at `since` or later.

        Deletions are none of them, and publications move no timestamp: see `events`. Each attribute
        holds its `Event` with all fields and tags, `event_uuid`, and in `Tag` its own tags and,
        marked `inherited`, those of the event.
        """
        query = {
            "timestamp": _since(since),
            "deleted": 0,
            "include_context": True,
            "include_event_tags": True,
            "include_event_uuid": True,
            "limit": self._page_size,
        }

        def ask(page: int, only: AttributeFilter) -> list[Json]:
            asked = {**query, **only.query(), "page": page}
            answer = self._call(lambda misp: misp.search("attributes", **asked), running)
            return self._list(answer, "Attribute")

        page = 1
        while True:
            found = ask(page, only)
            # A page that is not full need not be the last one: MISP takes out what is on a
            # warning list, or blocked by a proposal, after it has counted the page.
            if found:
                yield found
            elif not only.enforce_warninglist or not ask(
                page, replace(only, enforce_warninglist=False)
            ):
                return
            page += 1

    def events(
        self,
        *,
        published_since: int | None = None,
        changed_since: int | None = None,
        running: Running | None = None,
    ) -> Iterator[list[Json]]:
        """Give pages of events, without their attributes.

        `published_since` looks at the last publication, also of events that were edited (and
        so unpublished) later; `changed_since` at the last edit of the event or of anything in
        it, hard deletions among them.
        """
        query: Json = {"metadata": True, "limit": self._page_size}
        if published_since is not None:
            query["publish_timestamp"] = _since(published_since)
        if changed_since is not None:
            query["timestamp"] = _since(changed_since)

        def ask(page: int) -> Any:
            return self._call(lambda misp: misp.search("events", page=page, **query), running)

        page = 1
        while True:
            found = [self._part(row, "Event") for row in self._list(ask(page))]
            if not found:
                return
            yield found
            page += 1

    def existing_events(self, uuids: Sequence[str], *, running: Running | None = None) -> list[str]:
        """Give those of these UUIDs that are events in MISP."""
        query: Json = {"metadata": True, "eventid": list(uuids), "limit": len(uuids), "page": 1}
        answer = self._call(lambda misp: misp.search("events", **query), running)
        return [str(self._part(row, "Event").get("uuid", "")).lower() for row in self._list(answer)]

    def event(self, event: str, *, running: Running | None = None) -> Json | None:
        """Give one event by id or UUID with all that is in it; None when there is none (more)."""
        try:
            answer = self._call(
                lambda misp: misp.get_event(event, deleted=False, no_sightings=True), running
            )
            return self._part(answer, "Event")
        except MispRefusal as refusal:
            # MISP tells neither "never was" from "deleted" nor from "not for your eyes".
            if refusal.status == 404 or refusal.reason.startswith("Invalid event"):
                return None
            raise

    # Sightings.

    def sightings(self, since: int, *, running: Running | None = None) -> Iterator[list[Json]]:
        """Give pages of sightings that were made (not: entered) at `since` or later.

        Each holds its `Attribute` and `Event`. MISP has no pages here, so a page is a span of time,
        made to fit what is found.
        """
        # Clocks differ.
        last = int(self._clock()) + 86_400
        first, window = _since(since), _FIRST_WINDOW_SECS
        while first <= last:
            end = min(first + window - 1, last)
            found = self._search_sightings(first, end, running)
            if found:
                yield found
            first = end + 1
            if len(found) < _FEW_SIGHTINGS:
                window = min(window * 2, _MAX_WINDOW_SECS)
            elif len(found) > _MANY_SIGHTINGS:
                window = max(window // 2, 1)

    def add_sighting(
        self,
        *,
        attribute: str | None = None,
        value: str | None = None,
        kind: str = "0",
        source: str = "",
        seen: int | None = None,
        running: Running | None = None,
    ) -> Json:
        """Add a sighting and give it as MISP holds it.

        It goes to the attribute with the UUID `attribute`, or else to every attribute whose
        value (or one half of it) is `value`, in which case the last one is given. `kind` is "0"
        (seen), "1" (false positive) or "2" (expiration), `seen` an epoch. Raises `MispRefusal`
        with MISP's reason; after a `MispUnreachable` with `maybe_done`, look with `find_sightings`
        before you try again: MISP does not recognise a repetition.
        """
        sighting: Json = {"type": kind, "source": source_as_kept(source)}
        if seen is not None:
            sighting["timestamp"] = int(seen)
        if attribute is not None:
            sighting["uuid"] = attribute
        elif value is not None:
            sighting["values"] = [value]
        else:
            raise ValueError("a sighting needs an attribute or a value")
        answer = self._call(lambda misp: misp.add_sighting(sighting), running)
        added = self._part(answer, "Sighting")
        if not (added.get("id") or added.get("uuid")):
            raise self.connections.unreadable("a sighting without id")
        return added

    def find_sightings(
        self,
        *,
        attribute: str | None = None,
        value: str | None = None,
        kind: str = "0",
        source: str = "",
        seen: int,
        running: Running | None = None,
    ) -> list[Json]:
        """Give the sightings that a call of `add_sighting` with these arguments has made."""
        found = self._search_sightings(
            seen, seen, running, type_sighting=kind, source=source_as_kept(source)
        )
        if attribute is not None:
            return [each for each in found if _of(each).get("uuid") == attribute]
        return [each for each in found if value in _halves(str(_of(each).get("value", "")))]

    def _search_sightings(
        self, first: int, last: int, running: Running | None, **more: Any
    ) -> list[Json]:
        # Both ends, always: MISP ignores one alone, and looks at the last 30 days instead.
        answer = self._call(
            lambda misp: misp.search_sightings(
                date_from=first,
                date_to=last,
                include_attribute=True,
                include_event_meta=True,
                **more,
            ),
            running,
        )
        return [self._part(row, "Sighting") for row in self._list(answer)]

    # Answers.

    def _list(self, answer: object, key: str | None = None) -> list[Json]:
        if key is not None and isinstance(answer, dict):
            answer = answer.get(key)
        if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
            raise self.connections.unreadable(f"a list was expected, not {type(answer).__name__}")
        return answer

    def _part(self, answer: object, key: str) -> Json:
        found = answer.get(key) if isinstance(answer, Mapping) else None
        if not isinstance(found, dict):
            raise self.connections.unreadable(f"it has no {key}")
        return found


def _since(moment: int) -> int:
    """Give a filter by time; MISP and PyMISP take a 0 for no number at all."""
    return max(1, moment)


def _of(sighting: Json) -> Json:
    attribute = sighting.get("Attribute")
    return attribute if isinstance(attribute, dict) else {}


def _halves(value: str) -> tuple[str, ...]:
    """Give a value and, where it is composite, its parts: MISP looks for any of them."""
    return (value, *value.split("|")) if "|" in value else (value,)


def source_as_kept(source: str) -> str:
    """Give the source of a sighting as MISP keeps it."""
    return source[:MAX_SOURCE].strip()
