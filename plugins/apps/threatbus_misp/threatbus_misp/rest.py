"""The REST API of one MISP instance, through PyMISP.

PyMISP knows the routes and parameters; this module adds what a worker of the bus needs: it
connects when first used and again after a failure, reads page by page, can be interrupted, and
turns everything that can go wrong into one small tree::

    MispError
    ├── MispUnreachable    try again later: connection, timeout, 5xx, no MISP at this address
    ├── MispRefusal        MISP said no, in its own words
    │   └── MispDenied     … to the key as such (401, 403), not to this one request
    └── MispInterrupted    the worker was asked to stop

The key is in no message, log line or `repr`. PyMISP (250 ms) is imported on first use.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import ssl as tls
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from threatbus.errors import ThreatBusError
from threatbus.observe.report import Connection

if TYPE_CHECKING:
    from pymisp import PyMISP

logger = logging.getLogger("threatbus.misp.rest")

T = TypeVar("T")
#: An object as MISP's JSON has it.
Json = dict[str, Any]
#: Says whether the caller is to go on; asked while waiting and between pages.
Running = Callable[[], bool]

#: Seconds to connect, and seconds of silence that end an answer.
TIMEOUT_SECS: Final = (5.0, 30.0)
#: Seconds for a whole answer: a server that sends a byte now and then is cut off here.
DEADLINE_SECS: Final = 120.0
#: Attributes, or events without their attributes, of one page.
PAGE_SIZE: Final = 1000
#: What MISP's database holds of a sighting's source; more is answered with a 500.
MAX_SOURCE: Final = 255

#: Seconds after which a call that waits for MISP notices that it is to stop.
_NOTICE_SECS: Final = 0.1
#: Calls given up on that still wait for MISP; further ones are refused until one has ended.
_MAX_ABANDONED: Final = 4
#: Connections kept for the next call.
_MAX_IDLE: Final = 2
#: Characters of a reason that comes from the other side.
_MAX_REASON: Final = 300
#: Seconds of sightings that are asked for at once, at first and at most: this route has no pages.
_FIRST_WINDOW_SECS: Final = 86_400
_MAX_WINDOW_SECS: Final = 64 * 86_400
#: Fewer sightings than the one let the window grow, more than the other let it shrink.
_FEW_SIGHTINGS: Final = 200
_MANY_SIGHTINGS: Final = 5000


class MispError(ThreatBusError):
    """What went wrong with MISP: `instance` is its address, `reason` one line."""

    def __init__(self, instance: str, reason: str) -> None:
        self.instance = instance
        self.reason = reason
        super().__init__(instance, reason)

    def __str__(self) -> str:
        return f"MISP at {self.instance}: {self.reason}"


class MispUnreachable(MispError):
    """No usable answer; the same request may well succeed later.

    `maybe_done`: MISP may have received the request and acted on it. `answered`: something
    answered, if only with an error, so that another request may fare better.
    """

    def __init__(
        self, instance: str, reason: str, *, maybe_done: bool = False, answered: bool = False
    ) -> None:
        super().__init__(instance, reason)
        self.maybe_done = maybe_done
        self.answered = answered


class MispRefusal(MispError):
    """MISP said no; `reason` is its own. `status` is that of the answer, 200 among them."""

    def __init__(self, instance: str, reason: str, status: int = 200) -> None:
        super().__init__(instance, reason)
        self.status = status

    def __str__(self) -> str:
        return f"MISP at {self.instance} refuses: {self.reason}"


class MispDenied(MispRefusal):
    """MISP does not know the key, or the key's user may not do this: any such request fails."""


class MispInterrupted(MispError):
    """The caller was asked to stop while MISP was answering, or between two pages."""

    def __init__(self, instance: str) -> None:
        super().__init__(instance, "interrupted")


@dataclass(frozen=True)
class AttributeFilter:
    """Which attributes MISP is to give; what is None or empty does not filter.

    Within a field one match is enough, and all fields must match.
    """

    to_ids: bool | None = None
    published: bool | None = None
    """Whether the attribute's event is published at the moment."""

    enforce_warninglist: bool = False
    types: Sequence[str] = ()
    tags: Sequence[str] = ()
    """Tags of the attribute or of its event."""

    exclude_tags: Sequence[str] = ()
    orgs: Sequence[str] = ()
    """Creator organisations by id, name or UUID."""

    uuids: Sequence[str] = ()
    events: Sequence[str] = ()
    """Events by id or UUID."""

    def query(self) -> Json:
        """Give the arguments of PyMISP's `search`."""
        query: Json = {"enforce_warninglist": self.enforce_warninglist}
        if self.to_ids is not None:
            query["to_ids"] = int(self.to_ids)
        if self.published is not None:
            query["published"] = int(self.published)
        if self.tags or self.exclude_tags:
            both = {"OR": list(self.tags), "NOT": list(self.exclude_tags)}
            query["tags"] = {key: tags for key, tags in both.items() if tags}
        for key, values in (
            ("type_attribute", self.types),
            ("org", self.orgs),
            ("uuid", self.uuids),
            ("eventid", self.events),
        ):
            if values:
                query[key] = list(values)
        return query


#: Everything.
ANY_ATTRIBUTE: Final = AttributeFilter()


class MispApi:
    """One MISP instance. Nothing is sent before the first call; several threads may share one.

    `ssl` is whether the certificate is checked, or the path of the CA certificates to check it
    with; `cert` a client certificate (file, or file and key). User and password in `url` are for
    a proxy in front of MISP. A method that gives pages is a
    generator: each page is asked for when the one before is done with. Every method takes
    `running` and raises `MispInterrupted` soon after that gives False.
    """

    def __init__(
        self,
        url: str,
        key: str,
        ssl: bool | str = True,
        *,
        cert: str | tuple[str, str] | None = None,
        timeout: tuple[float, float] = TIMEOUT_SECS,
        deadline: float = DEADLINE_SECS,
        page_size: int = PAGE_SIZE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not url or not key.strip():
            raise ValueError("a MISP instance needs a url and a key")
        if not re.fullmatch(r"[!-~]+", key.strip()):  # else an error of requests would show it
            raise ValueError("a MISP key has letters and digits only")
        # With a slash at the end, without which a path in it would be lost.
        self._url = url.rstrip("/") + "/"
        # For messages: no user, no password.
        self._name = _without_credentials(url)
        self._key = key.strip()
        self._ssl = ssl
        self._cert = cert
        self._timeout = timeout
        self._deadline = deadline
        self._page_size = page_size
        self._clock = clock
        # Connections that no call uses at the moment; append and pop are atomic.
        self._idle: list[PyMISP] = []
        # Calls that nobody waits for any more; guarded by the lock.
        self._abandoned: list[_Call] = []
        self._lock = threading.Lock()
        # Of the last connection made.
        self._version: str | None = None
        #: Where it is said how MISP answers; the instance sets its own before the first call.
        self.state = Connection("REST")

    def __repr__(self) -> str:
        return f"<MispApi {self._name}>"

    @property
    def name(self) -> str:
        """The address, fit for messages."""
        return self._name

    @property
    def version(self) -> str | None:
        """MISP's version; None before the first connection."""
        return self._version

    def close(self) -> None:
        """Let go of idle connections. The object may be used again."""
        self._idle.clear()

    def connect(self, running: Running | None = None) -> str:
        """Connect, unless that is done, and give MISP's version."""
        self._call(lambda _: None, running)
        return self._version or ""

    # Attributes and events.

    def attributes_changed(
        self,
        since: int,
        until: int | None = None,
        *,
        deleted: bool = True,
        only: AttributeFilter = ANY_ATTRIBUTE,
        running: Running | None = None,
    ) -> Iterator[list[Json]]:
        """Give pages of attributes edited at `since` or later, and at `until` or before.

        Soft-deleted ones are among them unless `deleted` is False (a snapshot wants none); hard
        deletions and publications move no timestamp: see `events` and `event_attributes`.
        Each attribute holds its `Event` with all fields and tags, `event_uuid`, and in `Tag` its
        own tags and, marked `inherited`, those of the event.
        """
        query = {
            "timestamp": _span(since, until),
            "deleted": [0, 1] if deleted else 0,
            "include_context": True,
            "include_event_tags": True,
            "include_event_uuid": True,
        }
        return self._attributes(query, only, running)

    def event_attributes(
        self, event: str, *, running: Running | None = None
    ) -> Iterator[list[str]]:
        """Give pages of the UUIDs of all live attributes of one event, in objects or not."""
        only = AttributeFilter(events=(event,))
        for page in self._attributes({"deleted": 0}, only, running):
            yield [attribute["uuid"] for attribute in page]

    def events(
        self,
        *,
        published_since: int | None = None,
        changed_since: int | None = None,
        full: bool = False,
        running: Running | None = None,
    ) -> Iterator[list[Json]]:
        """Give pages of events, without their attributes unless `full`.

        `published_since` looks at the last publication, also of events that were edited (and
        so unpublished) later; `changed_since` at the last edit of the event or of anything in
        it, hard deletions among them.
        """
        query: Json = {"metadata": not full, "limit": self._page_size if not full else 10}
        if published_since is not None:
            query["publish_timestamp"] = _span(published_since, None)
        if changed_since is not None:
            query["timestamp"] = _span(changed_since, None)

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

    def event(
        self,
        event: str,
        *,
        deleted: bool = False,
        sightings: bool = False,
        running: Running | None = None,
    ) -> Json | None:
        """Give one event by id or UUID with all that is in it; None when there is none (more)."""
        try:
            answer = self._call(
                lambda misp: misp.get_event(
                    event, deleted=[0, 1] if deleted else False, no_sightings=not sightings
                ),
                running,
            )
            return self._part(answer, "Event")
        except MispRefusal as refusal:
            # MISP tells neither "never was" from "deleted" nor from "not for your eyes".
            if refusal.status == 404 or refusal.reason.startswith("Invalid event"):
                return None
            raise

    def _attributes(
        self, query: Json, only: AttributeFilter, running: Running | None
    ) -> Iterator[list[Json]]:
        def ask(page: int, only: AttributeFilter) -> list[Json]:
            asked = {**query, **only.query(), "limit": self._page_size, "page": page}
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

    # Sightings.

    def sightings(
        self, since: int, until: int | None = None, *, running: Running | None = None
    ) -> Iterator[list[Json]]:
        """Give pages of sightings that were made (not: entered) from `since` to `until`.

        `until` is tomorrow by default, since clocks differ. Each holds its `Attribute` and
        `Event`. MISP has no pages here, so a page is a span of time, made to fit what is found.
        """
        last = int(self._clock()) + 86_400 if until is None else until
        first, window = max(1, since), _FIRST_WINDOW_SECS
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
            raise self._unreadable("a sighting without id")
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

    # Calls.

    def _call(self, ask: Callable[[PyMISP], T], running: Running | None) -> T:
        """Give what `ask` gets from MISP; connects before, if need be. Notes how MISP answers."""
        try:
            answer = self._answer(ask, running)
        except (MispUnreachable, MispDenied) as error:
            self.state.down(f"trying {self._name} again: {error.reason}")
            raise
        except MispRefusal:
            self.state.up(f"{self._name} answers")
            raise
        self.state.up(f"{self._name} answers")
        return answer

    def _answer(self, ask: Callable[[PyMISP], T], running: Running | None) -> T:
        """Give what `ask` gets from MISP.

        The request is made in a thread of its own, which is left to itself when the caller is
        asked to stop or the deadline has passed: nothing else ends a wait inside PyMISP.
        """
        if running is not None and not running():
            raise MispInterrupted(self._name)
        self._check_abandoned()
        call = _Call(lambda: self._ask(ask, call))
        call.start()
        deadline = time.monotonic() + self._deadline
        while not call.done.wait(_NOTICE_SECS):
            if running is not None and not running():
                self._abandon(call)
                raise MispInterrupted(self._name)
            if time.monotonic() >= deadline:
                self._abandon(call)
                raise self._unreachable(
                    f"no complete answer within {self._deadline:g} s", maybe_done=call.asked
                )
        if call.error is not None:
            # Not "from" it: what PyMISP and requests say may hold the key.
            raise self._translated(call.error, call.asked) from None
        answer: T = call.result
        self._check(answer)
        return answer

    def _ask(self, ask: Callable[[PyMISP], T], call: _Call) -> T:
        try:
            misp = self._idle.pop()
        except IndexError:
            misp = self._connection()
        call.asked = True
        answer = ask(misp)
        # After an error it is not used again.
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(misp)
        return answer

    def _connection(self) -> PyMISP:
        from pymisp import PyMISP  # noqa: PLC0415 (250 ms)

        _silence(self._ssl)
        # Else requests would replace the key by what it finds in the URL or in ~/.netrc.
        proxied = "@" in urlsplit(self._url).netloc
        misp = PyMISP(
            self._url,
            self._key,
            ssl=self._ssl,
            cert=self._cert,
            timeout=self._timeout,
            tool="threatbus",
            auth=None if proxied else cast(Any, _as_it_is),  # any callable will do
            http_auth_header_name="X-MISP-AUTH" if proxied else "Authorization",
        )
        version = misp.misp_instance_version
        self._version = str(version.get("version", "")) if isinstance(version, dict) else ""
        logger.info("connected to MISP %s at %s", self._version, self._name)
        return misp

    def _check_abandoned(self) -> None:
        with self._lock:
            self._abandoned = [call for call in self._abandoned if not call.done.is_set()]
            if len(self._abandoned) < _MAX_ABANDONED:
                return
        raise self._unreachable(f"{_MAX_ABANDONED} earlier requests still wait for an answer")

    def _abandon(self, call: _Call) -> None:
        with self._lock:
            self._abandoned.append(call)

    # Answers.

    def _check(self, answer: object) -> None:
        """Raise what PyMISP did not: errors that it gives as if they were answers."""
        if not isinstance(answer, dict):
            return
        errors = answer.get("errors")
        if isinstance(errors, (tuple, list)) and len(errors) == 2 and isinstance(errors[0], int):
            raise self._refused(errors[0], errors[1])
        if errors == "The response is empty.":
            raise self._unreachable("an empty answer", maybe_done=True, answered=True)
        if errors:
            raise MispRefusal(self._name, self._clean(errors))
        if answer.keys() <= {"message", "name", "url", "saved", "success"} and "message" in answer:
            raise MispRefusal(self._name, self._clean(answer["message"]))

    def _refused(self, status: int, body: object) -> MispError:
        reason = self._clean(_reason(body)) or f"status {status}"
        if status in (401, 403):
            return MispDenied(self._name, reason, status)
        if status in (408, 425, 429):  # too slow, too early, too often
            return self._unreachable(reason, answered=True)
        return MispRefusal(self._name, reason, status)

    def _list(self, answer: object, key: str | None = None) -> list[Json]:
        if key is not None and isinstance(answer, dict):
            answer = answer.get(key)
        if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
            raise self._unreadable(f"a list was expected, not {type(answer).__name__}")
        return answer

    def _part(self, answer: object, key: str) -> Json:
        found = answer.get(key) if isinstance(answer, Mapping) else None
        if not isinstance(found, dict):
            raise self._unreadable(f"it has no {key}")
        return found

    # Errors.

    def _translated(self, error: BaseException, asked: bool) -> MispError:
        """Give the error of ours for one that PyMISP or requests raised.

        `asked`: it was connected, and the request itself failed.
        """
        import pymisp  # noqa: PLC0415
        import requests  # noqa: PLC0415

        # PyMISP's constructor wraps what requests raised.
        inner = error.__context__ if isinstance(error, pymisp.PyMISPError) else None
        if isinstance(inner, requests.RequestException):
            error = inner
        if isinstance(error, requests.RequestException):
            return self._unreachable(_network_reason(error), maybe_done=asked and _was_sent(error))
        text = str(error)
        if found := re.match(r"Error code (\d+):?\s*(.*)", text, re.DOTALL):
            status, body = int(found[1]), str(_reason(_decoded(found[2])))
            kind = "a server error" if status >= 500 else f"status {status}, but not as MISP does"
            return self._unreachable(
                f"{kind}: {body}" if body else kind, maybe_done=asked, answered=True
            )
        if found := re.match(r"Unable to get the user settings: (\(.*\))", text, re.DOTALL):
            try:
                status, body = ast.literal_eval(found[1])
                return self._refused(status, body)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                pass
        return self._unreachable(
            f"its answer cannot be read ({type(error).__name__}: {text})",
            maybe_done=asked,
            answered=True,
        )

    def _unreadable(self, what: str) -> MispUnreachable:
        return self._unreachable(
            f"its answer cannot be read: {what}", maybe_done=True, answered=True
        )

    def _unreachable(
        self, reason: str, *, maybe_done: bool = False, answered: bool = False
    ) -> MispUnreachable:
        return MispUnreachable(
            self._name, self._clean(reason), maybe_done=maybe_done, answered=answered
        )

    def _clean(self, text: object) -> str:
        """Give one line of limited length that does not hold the key."""
        line = " ".join(str(text).replace(self._key, "***").split())
        return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"


class _Call(threading.Thread):
    """One request, in a thread that its caller can leave behind; ends with PyMISP's timeouts."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(name="MISP request", daemon=True)
        self._work = work
        # Whether there was a connection, so that the request itself was made.
        self.asked = False
        # Set when `result` or `error` is.
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001 (raised again by the caller)
            self.error = error
        finally:
            self.done.set()


class _Nothing(logging.Filter):
    """Lets no record pass."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return False


_NOTHING: Final = _Nothing()


def _silence(ssl: bool | str) -> None:
    """Keep PyMISP's own log lines out: they hold the key, and repeat what is raised."""
    logging.getLogger("pymisp").addFilter(_NOTHING)  # added once, however often it is called
    if ssl is False:
        import urllib3  # noqa: PLC0415

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def _as_it_is(request: T) -> T:
    """Authenticate no further: the key is in the headers."""
    return request


def _span(since: int, until: int | None) -> int | tuple[int, int]:
    """Give a filter by time; MISP and PyMISP take a 0 for no number at all."""
    return max(1, since) if until is None else (max(1, since), max(1, until))


def _of(sighting: Json) -> Json:
    attribute = sighting.get("Attribute")
    return attribute if isinstance(attribute, dict) else {}


def _halves(value: str) -> tuple[str, ...]:
    """Give a value and, where it is composite, its parts: MISP looks for any of them."""
    return (value, *value.split("|")) if "|" in value else (value,)


def _reason(body: object) -> object:
    """Give what MISP says in the body of an error."""
    if isinstance(body, Mapping):
        for key in ("message", "errors", "name"):
            if body.get(key):
                return body[key]
    return body


def _decoded(text: str) -> object:
    """Give the JSON in `text`, or else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _network_reason(error: Exception) -> str:
    """Give what is behind one of the long stories that requests tells."""
    inner: object = error.args[0] if error.args else error
    inner = getattr(inner, "reason", None) or inner  # of urllib3's MaxRetryError
    args: tuple[object, ...] = getattr(inner, "args", ())
    if args and isinstance(args[0], tls.SSLCertVerificationError):
        return (
            f"its certificate is refused: {args[0].verify_message}; "
            "api.ssl names the certificates that are trusted"
        )
    if len(args) == 2 and isinstance(args[1], Exception):  # "aborted", and why
        what, why = str(args[0]).rstrip("."), str(args[1])
        return what if why in what else f"{what}: {why}"
    return re.sub(r"^<?\w*Connection(Pool)?\b[^:]*(\([^)]*\))?>?: ", "", str(inner))


def _was_sent(error: Exception) -> bool:
    """Say whether MISP may have got the request: whether there was a connection at all."""
    import requests  # noqa: PLC0415
    import urllib3  # noqa: PLC0415

    if isinstance(error, requests.exceptions.ConnectTimeout):
        return False
    if isinstance(error, ValueError):  # a URL or header that cannot be; but also odd JSON
        return isinstance(error, requests.exceptions.JSONDecodeError)
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY" in str(error):
        return False
    inner = getattr(error.args[0] if error.args else None, "reason", None)
    return not isinstance(
        inner, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    )


def source_as_kept(source: str) -> str:
    """Give the source of a sighting as MISP keeps it."""
    return source[:MAX_SOURCE].strip()


def _without_credentials(url: str) -> str:
    """Give a URL without user and password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(unreadable URL)"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
