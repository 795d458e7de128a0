"""Which path gives what, and to whom; no sockets."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, urlsplit

import msgspec

from threatbus.errors import Overflow
from threatbus.messages import INDICATOR, SIGHTING
from threatbus.observe.counts import kind_of
from threatbus.observe.passages import Filter
from threatbus.observe.view import BusView
from threatbus_web import stream
from threatbus_web.exposition import Exposition
from threatbus_web.history import History
from threatbus_web.publisher import Publisher
from threatbus_web.rejected import RejectedList

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
EVENTS: Final = "text/event-stream"
#: By the end of the name; what the machine says of that may be wrong.
PAGE_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
#: What a stream may be asked for by `type`.
KINDS: Final = ("", *map(kind_of, (INDICATOR, SIGHTING)))
#: Messages that a stream gives of what had passed before, at most.
MAX_BACKLOG: Final = 1000


@dataclass(frozen=True)
class Request:
    """One request; `headers` by lower-case name."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path, without what follows a question mark."""
        return self._split().path

    def argument(self, name: str) -> str:
        """Give the last value of an argument in the query; empty if there is none."""
        return parse_qs(self._split().query).get(name, [""])[-1]

    def _split(self) -> SplitResult:
        try:
            return urlsplit(self.target)
        except ValueError:
            # An address that is none, such as "http://[".
            return SplitResult("", "", self.target, "", "")


@dataclass(frozen=True)
class Response:
    """One answer: a body, or pieces that come until the client goes or the bus stops."""

    status: int
    content_type: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Iterator[bytes] | None = None


def plain(data: Any, status: int = 200, **headers: str) -> Response:
    """Give plain data as JSON."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Response(status, JSON, msgspec.json.encode(data) + b"\n", named)


def failure(status: int, error: str, next_step: str, **headers: str) -> Response:
    """Say what is wrong, and what to do next."""
    return plain({"error": error, "next": next_step}, status, **headers)


@dataclass(frozen=True)
class _Route:
    answer: Callable[[Request], Response]
    method: str = "GET"
    open_to_all: bool = False


class Site:
    """Answers requests; any number of threads may ask. `stopping` ends its streams."""

    def __init__(
        self,
        view: BusView,
        history: History,
        rejected: RejectedList,
        publisher: Publisher,
        token: str,
        stopping: threading.Event,
    ) -> None:
        self._view = view
        self._history = history
        self._rejected = rejected
        self._publisher = publisher
        self._token = token.encode()
        self._stopping = stopping
        self._exposition = Exposition(view)
        self._routes: dict[str, _Route] = {
            "/healthz": _Route(self._healthz, open_to_all=True),
            "/readyz": _Route(self._readyz, open_to_all=True),
            "/metrics": _Route(self._metrics),
            "/api/status": _Route(lambda _: plain(view.status())),
            "/api/history": _Route(lambda _: plain(history.points())),
            "/api/rejected": _Route(self._rejects),
            "/api/trace": _Route(self._trace),
            "/api/stream": _Route(self._stream),
            "/api/publish": _Route(self._publish, "POST"),
            **{path: _Route(_fixed(page), open_to_all=True) for path, page in _pages().items()},
        }

    def refuse(self, request: Request) -> Response | None:
        """Say no, before the body is read, to what is not there or not for this client."""
        route = self._routes.get(request.path)
        if route is None:
            known = ", ".join(path for path in self._routes if "." not in path)
            return failure(404, f"there is no {request.path[:100]}", f"there is {known}")
        if not route.open_to_all and not self._is_known(request):
            return failure(
                401,
                "this wants the token",
                "send the header 'Authorization: Bearer TOKEN'; the log of the bus says which "
                "file the token is in",
                www_authenticate='Bearer realm="threatbus"',
            )
        if request.method not in (route.method, "HEAD" if route.method == "GET" else ""):
            return failure(
                405, f"{request.path} takes {route.method}", f"use {route.method}",
                allow=route.method,
            )  # fmt: skip
        return None

    def answer(self, request: Request) -> Response:
        """Answer what was not refused."""
        return self._routes[request.path].answer(request)

    def _is_known(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        shown = given.strip().encode("utf-8", "surrogateescape")
        # Takes as long for a token that is nearly right as for any other.
        return kind.lower() == "bearer" and hmac.compare_digest(shown, self._token)

    # What the paths give.

    def _healthz(self, _: Request) -> Response:
        return Response(200, TEXT, b"alive\n")

    def _readyz(self, _: Request) -> Response:
        unready = self._view.unready_plugins()
        if not unready and self._view.state() == "running":
            return Response(200, TEXT, b"ready\n")
        # Names alone: whoever may know more has the token.
        why = ", ".join(unready) or f"the bus is {self._view.state()}"
        text = f"not ready: {why}\nGET /api/status (with the token) says why\n"
        return Response(503, TEXT, text.encode())

    def _metrics(self, request: Request) -> Response:
        content_type, text = self._exposition.text(request.headers.get("accept", ""))
        return Response(200, content_type, text)

    def _rejects(self, _: Request) -> Response:
        try:
            newest = self._rejected.newest()
        except OSError as error:
            return failure(
                500,
                f"the reject store cannot be read: {error.strerror or error}",
                "look at the owner and the mode of the state directory",
            )
        return plain(
            {
                "total": self._view.rejects.total,
                "newest": newest,
                "next": "`threatbus rejected show NUMBER` shows a document",
            }
        )

    def _trace(self, request: Request) -> Response:
        wanted = request.argument("of")
        if not wanted:
            return failure(400, "of what?", "GET /api/trace?of=ID or ?of=VALUE")
        return plain(self._view.trace(wanted))

    def _stream(self, request: Request) -> Response:
        wanted = Filter(
            request.argument("topic"), request.argument("type"), request.argument("text")
        )
        if wanted.kind not in KINDS:
            what = f"type={wanted.kind[:20]} never passes"
            return failure(400, what, "give indicator or sighting")
        backlog = request.argument("backlog") or "0"
        if not backlog.isascii() or not backlog.isdigit():
            return failure(400, f"backlog={backlog[:20]} is no number", "give 0 to 1000")
        pieces = stream.events(
            self._view.follow(wanted), min(int(backlog[:6]), MAX_BACKLOG), self._stopping
        )
        return Response(200, EVENTS, pieces=pieces)

    def _publish(self, request: Request) -> Response:
        if not self._publisher.open:
            return self._not_now()
        try:
            outcome = self._publisher.publish(request.body)
        except Overflow:
            return self._not_now()
        answer: dict[str, Any] = {
            "accepted": outcome.accepted,
            "skipped": outcome.skipped,
            "rejected": outcome.rejected,
            "rejected_more": outcome.rejected_more,
        }
        if outcome.rejected:
            answer["next"] = "mend what was rejected and publish it again; the rest is on its way"
        elif not outcome.accepted:
            answer["next"] = "publish indicators and sightings of STIX 2.1: there was none in it"
        else:
            answer["next"] = "GET /api/trace?of=ID says where it went"
        return plain(answer, 422 if outcome.rejected else 200)

    def _not_now(self) -> Response:
        state = self._view.state()
        why = "something behind is full" if state == "running" else f"the bus is {state}"
        return failure(
            503,
            f"nothing is taken now: {why}",
            "publish it again in a moment; GET /api/status says what waits",
            retry_after="1",
        )


def _fixed(page: Response) -> Callable[[Request], Response]:
    return lambda _: page


def _pages() -> dict[str, Response]:
    """Load the page's files, which are few and small."""
    found = {}
    for file in resources.files("threatbus_web").joinpath("page").iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        kind = PAGE_TYPES[file.name.rpartition(".")[2]]
        found[path] = Response(200, f"{kind}; charset=utf-8", file.read_bytes())
    return found
