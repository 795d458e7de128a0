"""WebSocket: the bus connects to the API that a Zeek, or the manager of a cluster, offers."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from threatbus import StoppableWorker
from threatbus.errors import ConfigError, ConnectionLost, InvalidConfig
from threatbus.logger import RateLimited
from threatbus.observe.report import Connection
from threatbus.workers import Backoff
from threatbus_zeek import wire
from threatbus_zeek.config import SECTION, ZeekConfig, checked_url, without_secrets
from threatbus_zeek.events import TOPICS
from threatbus_zeek.transport import Arrived, Garbled, Incoming, PeerAdded, PeerLost
from threatbus_zeek.values import Event

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

logger = logging.getLogger("threatbus.zeek.websocket")

#: How the bus calls itself in Zeek's logs: letters, digits and some signs, no blank.
APPLICATION: Final = "threatbus"
#: Seconds for connecting, and again for Zeek's answer to the list of topics.
OPEN_SECS: Final = 10.0
#: Seconds for saying goodbye.
CLOSE_SECS: Final = 1.0
#: Seconds between pings, and seconds that Zeek has to answer one while it is busy.
PING_SECS: Final = 20.0
PONG_SECS: Final = 60.0
#: Bytes of the largest frame that is taken.
MAX_FRAME: Final = 8 * 1024 * 1024
#: Messages that wait for the link, and their bytes; with more, nothing is read from the socket.
MAX_WAITING: Final = 1000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
#: Seconds between attempts to connect, at most; Zeek is on the message path.
MAX_DELAY_SECS: Final = 2.0


class Inbox:
    """Hands what came in from the reader's thread to the link's, which it also wakes."""

    def __init__(self) -> None:
        # Guards the fields below; both sides wait on it.
        self._changed = threading.Condition()
        self._waiting: deque[Incoming] = deque()
        self._bytes = 0
        self._woken = False
        self._closed = False

    def put(self, incoming: Incoming, size: int = 0) -> None:
        """Append one thing of `size` bytes, when there is room; a closed inbox takes nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self._closed)
            if not self._closed:
                self._waiting.append(incoming)
                self._bytes += size
                self._changed.notify_all()

    def take(self, timeout: float | None, *, reading: bool) -> list[Incoming]:
        """Give all there is, waiting up to `timeout` seconds for it or for `wake`."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or (reading and self._waiting), timeout)
            self._woken = False
            if not reading:
                return []
            found = list(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()
            return found

    def wake(self) -> None:
        """End a wait in `take`, this or the next one."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._waiting) < MAX_WAITING and self._bytes < MAX_WAITING_BYTES

    def close(self) -> None:
        """Let whoever waits in `put` go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Reader(StoppableWorker):
    """Connects, reads, and connects again.

    Started when the transport is opened. It blocks while connecting, for `OPEN_SECS` at most; in
    a read, which `hang_up` ends; in `Inbox.put`, which `Inbox.close` ends; and between attempts,
    which `stop` ends. The library keeps a thread per connection that ends with it.
    """

    def __init__(
        self, url: str, tls: ssl.SSLContext | None, inbox: Inbox, state: Connection
    ) -> None:
        #: The address as it may be shown.
        self.address = without_secrets(url)
        super().__init__(name=f"reader of {self.address}")
        self._url = url
        self._state = state
        self._tls = tls
        self._inbox = inbox
        self._connections = 0
        self._log = RateLimited(logger)
        # Where the link publishes; None while there is no connection. Set by this thread.
        self.connection: ClientConnection | None = None

    def run(self) -> None:
        """Keep a connection up until stopped."""
        # The link does not need it before there is somebody to talk to.
        from websockets.exceptions import WebSocketException  # noqa: PLC0415

        backoff = Backoff(cap=MAX_DELAY_SECS)
        self._state.down(f"connecting to {self.address}")
        while self._running():
            try:
                self._converse(backoff)
            except (OSError, WebSocketException, wire.BadFrame, EOFError) as error:
                if self._running():
                    self._state.down(
                        f"trying {self.address} again: {error or type(error).__name__}"
                    )
                    self._log.log(
                        type(error).__name__,
                        logging.WARNING,
                        "no connection to Zeek at %s (%s), trying again",
                        self.address,
                        explain(error),
                    )
            self._stop_asked.wait(backoff.next())

    def hang_up(self) -> None:
        """Break the connection, whatever it is busy with; from any thread."""
        connection = self.connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def say_goodbye(self) -> None:
        """Close the connection in order, after what was sent; from the link's thread."""
        connection = self.connection
        if connection is not None:
            connection.close()

    def _converse(self, backoff: Backoff) -> None:
        """Hold one connection until it ends, which raises."""
        with connect_to(
            self._url, self._tls, APPLICATION, open_secs=OPEN_SECS, close_secs=CLOSE_SECS
        ) as connection:
            connection.send(wire.encode_topics(TOPICS))
            self._await_ack(connection)
            backoff.reset()
            self._connections += 1
            peer = f"connection {self._connections}"
            self.connection = connection
            self._state.up(f"connected to {self.address}")
            self._inbox.put(PeerAdded(peer))
            try:
                while True:
                    self._take(connection.recv(decode=False))
            finally:
                self.connection = None
                self._inbox.put(PeerLost(peer))

    def _await_ack(self, connection: ClientConnection) -> None:
        try:
            frame = wire.decode_frame(connection.recv(timeout=OPEN_SECS, decode=False))
        except TimeoutError:
            raise wire.BadFrame(
                f"it does not acknowledge within {OPEN_SECS:.0f} s: it has no cluster backend?"
            ) from None
        if isinstance(frame, wire.Refusal):
            raise wire.BadFrame(f"it refuses: {frame.code}, {frame.context}")
        if not isinstance(frame, wire.Ack):
            raise wire.BadFrame("it does not begin with an acknowledgement")
        logger.info("connected to Zeek %s at %s", frame.version, self.address)

    def _take(self, raw: bytes) -> None:
        try:
            frame = wire.decode_frame(raw)
        except wire.BadFrame as error:
            self._inbox.put(Garbled(str(error), raw), len(raw))
            return
        if isinstance(frame, wire.Data):
            self._inbox.put(Arrived(frame.topic, frame.value, raw), len(raw))
        elif isinstance(frame, wire.Refusal):
            self._log.log(
                frame.code,
                logging.WARNING,
                "Zeek at %s refuses an event (%s, %s): is threatbus.zeek loaded there?",
                self.address,
                frame.code,
                frame.context,
            )


class WebSocketTransport:
    """One connection to one WebSocket API, held up by a `Reader`."""

    keeps_its_peer: Final = True

    def __init__(self, url: str, config: ZeekConfig) -> None:
        self.url = checked_url(url)
        self.name = f"zeek websocket {without_secrets(self.url)}"
        self._config = config
        #: Where it is said how the connection is; the plugin sets its own before it is opened.
        self.state = Connection(self.name)
        self._inbox = Inbox()
        self._reader: Reader | None = None

    def open(self) -> None:
        """Begin to connect; raises `InvalidConfig` for certificates that cannot be read."""
        self._reader = Reader(
            self.url, tls_context(self.url, self._config), self._inbox, self.state
        )
        self._reader.start()

    def receive(self, timeout: float | None, *, reading: bool) -> Sequence[Incoming]:
        """Give what has come in; see `Transport`."""
        return self._inbox.take(timeout, reading=reading)

    def publish(self, topic: str, event: Event) -> None:
        """Send an event; blocks while Zeek does not read. Raises `ConnectionLost`."""
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 (see Reader.run)

        connection = self._reader.connection if self._reader is not None else None
        if connection is None:
            raise ConnectionLost("there is no connection")
        try:
            connection.send(wire.encode_event(topic, event))
        except (ConnectionClosed, OSError) as error:
            raise ConnectionLost(f"the connection is gone: {error}") from error

    def wake(self) -> None:
        """End a wait in `receive`."""
        self._inbox.wake()

    def interrupt(self) -> None:
        """End a `publish` that blocks."""
        if self._reader is not None:
            self._reader.stop()
            self._reader.hang_up()

    def close(self) -> None:
        """Say goodbye and end the reader."""
        reader = self._reader
        if reader is None:
            return
        reader.stop()
        reader.say_goodbye()
        self._inbox.close()
        reader.hang_up()
        # One that is just connecting ends by itself, and holds nothing up.
        reader.join(CLOSE_SECS)


def connect_to(
    url: str, tls: ssl.SSLContext | None, application: str, *, open_secs: float, close_secs: float
) -> ClientConnection:
    """Open a connection to Zeek's API, within `open_secs` seconds.

    Raises `OSError`, `WebSocketException`, `EOFError` or `wire.BadFrame`, by what goes wrong.
    """
    # Neither is needed before there is somebody to talk to.
    from websockets.exceptions import InvalidMessage  # noqa: PLC0415
    from websockets.sync.client import connect  # noqa: PLC0415

    try:
        return connect(
            url,
            ssl=tls,
            additional_headers={"X-Application-Name": application},
            open_timeout=open_secs,
            close_timeout=close_secs,
            ping_interval=PING_SECS,
            ping_timeout=PONG_SECS,
            max_size=MAX_FRAME,
            # Zeek is near, and has better things to do.
            compression=None,
            proxy=None,
            # What goes wrong is raised, too, and said once.
            logger=logging.Logger("websockets", level=logging.CRITICAL + 1),
        )
    except AssertionError as error:
        # The library's, where the peer's first bytes are read before its own are sent.
        raise wire.BadFrame("it speaks before it is asked") from error
    except InvalidMessage as error:
        # As Broker's own WebSocket server (Zeek 5 to 7), unless Broker::disable_ssl is set.
        hint = "" if tls else "; if it speaks TLS, it wants wss://"
        raise wire.BadFrame(f"it does not answer in HTTP{hint}") from error


def tls_context(url: str, config: ZeekConfig) -> ssl.SSLContext | None:
    """Give what a server is checked against; raises `InvalidConfig` if that cannot be read."""
    if not url.startswith("wss:"):
        return None
    try:
        return ssl.create_default_context(cafile=config.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        found = f"{config.ca_file!r}, which cannot be read ({error})"
        allowed = "a file with certificates in PEM"
        raise InvalidConfig([ConfigError(f"{SECTION}.ca_file", found, allowed)]) from None


def explain(error: BaseException) -> str:
    """Say what is wrong with a connection, and which key sets whom the bus trusts."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return str(error) or type(error).__name__
    return (
        f"its certificate is refused: {error.verify_message}; {SECTION}.ca_file names the "
        "certificates that are trusted"
    )
