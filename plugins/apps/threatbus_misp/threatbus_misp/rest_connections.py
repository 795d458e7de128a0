"""Connections to one MISP: each call in a thread of its own, so that it can be interrupted.

PyMISP (250 ms) is imported on first use. It connects when first used and again after a failure;
what it and requests raise, or give as if it were an answer, becomes an error of `rest_errors`. The
key is in no message, log line or `repr`.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import ssl as tls
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from threatbus.observe.report import Connection
from threatbus_misp.rest_errors import (
    MispDenied,
    MispError,
    MispInterrupted,
    MispRefusal,
    MispUnreachable,
)

if TYPE_CHECKING:
    from pymisp import PyMISP
    from requests import PreparedRequest, Response
    from requests.auth import AuthBase

logger = logging.getLogger("threatbus.misp.rest")

T = TypeVar("T")
#: Says whether the caller is to go on; asked while waiting and between pages.
Running = Callable[[], bool]

#: Seconds to connect, and seconds of silence that end an answer.
TIMEOUT_SECS: Final = (5.0, 30.0)
#: Seconds for a whole answer: a server that sends a byte now and then is cut off here.
DEADLINE_SECS: Final = 120.0

#: Seconds after which a call that waits for MISP notices that it is to stop.
_NOTICE_SECS: Final = 0.1
#: Calls given up on that still wait for MISP; further ones are refused until one has ended.
_MAX_ABANDONED: Final = 4
#: Connections kept for the next call.
_MAX_IDLE: Final = 2
#: Characters of a reason that comes from the other side.
_MAX_REASON: Final = 300


class Connections:
    """The connections to one MISP; several threads may `call` at once.

    `ssl` is whether the certificate is checked, or the path of the CA certificates to check it
    with. User and password in `url` are for a proxy in front of MISP.
    """

    def __init__(
        self,
        url: str,
        key: str,
        ssl: bool | str,
        *,
        timeout: tuple[float, float],
        deadline: float,
    ) -> None:
        if not url or not key.strip():
            raise ValueError("a MISP instance needs a url and a key")
        if not re.fullmatch(r"[!-~]+", key.strip()):  # else an error of requests would show it
            raise ValueError("a MISP key has letters and digits only")
        # With a slash at the end, without which a path in it would be lost.
        self._url = url.rstrip("/") + "/"
        self._name = _without_credentials(url)
        self._key = key.strip()
        self._ssl = ssl
        self._timeout = timeout
        self._deadline = deadline
        # Connections that no call uses at the moment; append and pop are atomic.
        self._idle: list[PyMISP] = []
        # Calls that nobody waits for any more; guarded by the lock.
        self._abandoned: list[_Call] = []
        self._lock = threading.Lock()
        # Of the last connection made.
        self._version: str | None = None
        #: Where it is said how MISP answers; the instance sets its own before the first call.
        self.state = Connection("REST")

    @property
    def name(self) -> str:
        """The address, fit for messages: no user, no password."""
        return self._name

    @property
    def version(self) -> str | None:
        """MISP's version; None before the first connection."""
        return self._version

    def close(self) -> None:
        """Let go of idle connections. The object may be used again."""
        self._idle.clear()

    def call(self, ask: Callable[[PyMISP], T], running: Running | None) -> T:
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
        from requests.auth import HTTPBasicAuth  # noqa: PLC0415
        from requests.utils import get_auth_from_url  # noqa: PLC0415

        _silence(self._ssl)
        user, password = get_auth_from_url(self._url)
        proxy = HTTPBasicAuth(user, password) if user else None
        misp = PyMISP(
            self._url,
            self._key,
            ssl=self._ssl,
            timeout=self._timeout,
            tool="threatbus",
            auth=cast(Any, _BeforeSending(proxy)),  # any callable will do
            http_auth_header_name="Authorization" if proxy is None else "X-MISP-AUTH",
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

    def unreadable(self, what: str) -> MispUnreachable:
        """Give the error for an answer that is not what was asked for."""
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


class _BeforeSending:
    """What is done with each request of PyMISP's before it is sent.

    `proxy` is who we are to a proxy in front of MISP; the key is in a header already. Left to
    itself, requests would replace it by what it finds in ~/.netrc.
    """

    def __init__(self, proxy: AuthBase | None) -> None:
        self._proxy = proxy

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.register_hook("response", _refuse_redirection)
        return request if self._proxy is None else self._proxy(request)


def _refuse_redirection(response: Response, **_: object) -> None:
    """Raise for a redirection that makes a POST a GET without its body, which asks for all."""
    import requests  # noqa: PLC0415

    if response.is_redirect and response.status_code not in (307, 308):
        there = response.headers["location"]
        raise requests.TooManyRedirects(
            f"it redirects to {there}; the address that answers itself belongs into api.host"
        )


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


def _without_credentials(url: str) -> str:
    """Give a URL without user and password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(unreadable URL)"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
