"""HTTP: requests are read in time, answers are written in time, and every one is armoured."""

from __future__ import annotations

import io
import logging
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final

from threatbus_web.site import TEXT, Request, Response, failure

if TYPE_CHECKING:
    from threatbus_web.server import Server

logger = logging.getLogger("threatbus.web")

#: Seconds in which a request has to be there once it has begun, headers and body; and seconds that
#: an open connection may be without one.
REQUEST_SECS: Final = 10.0
IDLE_SECS: Final = 30.0
#: Seconds in which a client has to take what is written at once, or it is let go.
WRITE_SECS: Final = 5.0
#: Seconds for which what a client still sends is thrown away after it was refused.
LINGER_SECS: Final = 2.0
#: Digits of a length that is looked at; nobody's limit has more.
MAX_LENGTH_DIGITS: Final = 18

#: Scripts and styles come from here alone, nothing is loaded from elsewhere, nobody frames it.
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class TimedReader(io.RawIOBase):
    """Reads a socket until a deadline: a byte now and then does not keep a connection open."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._deadline = 0.0

    def allow(self, seconds: float) -> None:
        """Let what follows take so long, all of it together."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there; raises TimeoutError after the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._channel.settimeout(left)
        return self._channel.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection, in the thread that the server started for it; ends with the connection."""

    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]  # what its base class has no need of
    connection: socket.socket

    def setup(self) -> None:
        """Read with a deadline."""
        super().setup()
        self._reader = TimedReader(self.connection)
        self.rfile = self._buffered = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        """Wait for a request, read it, answer it."""
        try:
            self._reader.allow(IDLE_SECS)
            if not self._buffered.peek(1):
                self.close_connection = True
                return
            self._reader.allow(REQUEST_SECS)
            super().handle_one_request()
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_GET  # noqa: N815

    def version_string(self) -> str:
        """Give what the header ``Server`` says."""
        return "threatbus"

    def handle_expect_100(self) -> bool:
        """Ask for a body only if it is wanted; curl waits for that before it sends a large one."""
        refused = self._refusal(self._request())
        if refused is not None:
            self._close_after(refused)
            return False
        return super().handle_expect_100()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what is wrong with a request that cannot be read."""
        what = message or explain or HTTPStatus(code).phrase
        self._close_after(failure(code, what, "send a request of HTTP/1.1"))

    def log_message(self, format: str, *args: Any) -> None:
        """Log for who looks for it; never the headers, which hold the token."""
        logger.debug("%s: " + format, self.client_address[0], *args)

    def _answer(self) -> None:
        request = self._request()
        refused = self._refusal(request)
        if refused is not None:
            self._close_after(refused)
            return
        if request.method == "POST":
            body = self.rfile.read(int(request.headers["content-length"]))
            request = Request(request.method, request.target, request.headers, body)
        try:
            response = self.server.site.answer(request)
        # Whatever an answer meets, the client hears of it, and the others go on.
        except Exception:
            logger.exception("%s %s fails", self.command, request.path)
            response = failure(500, "that failed inside the bus", "its log says why")
        if response.pieces is None:
            self._send(response)
        else:
            self._send_pieces(response)

    def _request(self) -> Request:
        """Give the request that was read; of a header that came twice, both values in one."""
        headers: dict[str, str] = {}
        for name, text in self.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return Request(self.command, self.path, headers)

    def _refusal(self, request: Request) -> Response | None:
        """Say what is wrong with a request before its body is read; None if nothing is."""
        return self.server.site.refuse(request) or self._body_refused(request)

    def _body_refused(self, request: Request) -> Response | None:
        """Refuse a body of unknown length, one that is too large, and one that nobody wants."""
        length = request.headers.get("content-length", "")
        if "transfer-encoding" in request.headers or not (length or request.method != "POST"):
            return failure(411, "how long is the body?", "send it with Content-Length")
        if length and not (length.isascii() and length.isdigit()):
            return failure(400, "Content-Length is no number", "send the number of bytes")
        limit = self.server.max_body if request.method == "POST" else 0
        if len(length) > MAX_LENGTH_DIGITS or int(length or 0) > limit:
            return failure(
                413,
                f"the body has more than {limit:,} bytes",
                "publish it in parts, or raise plugins.apps.web.max_body",
            )
        return None

    def _close_after(self, response: Response) -> None:
        """Answer, and close. What else the client sends is of no interest.

        It is read for a moment all the same: a connection that is closed with bytes unread is
        reset, and a client that was still sending would never see the answer.
        """
        self.close_connection = True
        self._send(response)
        self.connection.shutdown(socket.SHUT_WR)
        self._reader.allow(LINGER_SECS)
        thrown_away = bytearray(64 * 1024)
        while self._reader.readinto(thrown_away):
            pass

    def _send(self, response: Response) -> None:
        self._send_head(response)
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def _send_pieces(self, response: Response) -> None:
        """Send pieces as they come; a client that does not take them is let go."""
        self.close_connection = True
        if not self.server.begin_stream():
            self._send(
                failure(
                    503,
                    f"there are {self.server.max_streams} streams already",
                    "close one, or raise plugins.apps.web.max_connections",
                    retry_after="5",
                )
            )
            return
        try:
            self._send_head(response)
            for piece in response.pieces or ():
                if self.command == "HEAD":
                    return
                self.wfile.write(piece)
        except TimeoutError:
            self.server.let_go += 1
            logger.info("a stream of %s is ended: it is not read", self.client_address[0])
        finally:
            self.server.end_stream()

    def _send_head(self, response: Response) -> None:
        self.connection.settimeout(WRITE_SECS)
        self.send_response(response.status)
        headers = {"Content-Type": response.content_type or TEXT, **SECURITY_HEADERS}
        if response.pieces is None:
            headers["Content-Length"] = str(len(response.body))
        if self.close_connection:
            headers["Connection"] = "close"
        for name, text in {**headers, **response.headers}.items():
            self.send_header(name, text)
        self.end_headers()
