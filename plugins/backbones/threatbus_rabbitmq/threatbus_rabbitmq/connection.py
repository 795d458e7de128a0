"""A connection to the broker that is kept up: what publisher and consumer have in common.

pika's exceptions end here: they become log lines, `ConfigError` or `BrokerRefusal`.
"""

from __future__ import annotations

import logging
import math
import re
import ssl
import struct
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pika
import pika.exceptions
import pika.frame
import pika.spec

from threatbus.errors import ConfigError, InvalidConfig, ThreatBusError
from threatbus.logger import RateLimited
from threatbus.observe.report import Connection
from threatbus.workers import Backoff, StoppableWorker
from threatbus_rabbitmq.config import RabbitMQConfig, TlsConfig

logger = logging.getLogger("threatbus.rabbitmq")

#: Seconds between two attempts to connect: at first, and at most, since the broker is on the path
#: of the messages.
FIRST_RECONNECT_SECS: Final = 0.1
RECONNECT_CAP_SECS: Final = 2.0
#: Seconds that one attempt may take.
CONNECT_TIMEOUT_SECS: Final = 5.0
#: Seconds that the broker has to answer when the connection is closed.
CLOSE_TIMEOUT_SECS: Final = 1.0
#: Seconds that a connection has to last for the next attempt to follow at the first delay again.
STEADY_SECS: Final = 2.0
#: Of attempts that fail one after the other, the first and every so many is logged.
LOGGED_ATTEMPTS: Final = 10

#: Where TLS is configured.
TLS_SECTION: Final = "plugins.backbones.rabbitmq.tls"

# Of an AMQP frame: its type, its channel, the size of what follows; of a header frame, after
# class and weight: the size of the body.
_FRAME_START: Final = struct.Struct(">BHL")
_BODY_SIZE: Final = struct.Struct(">Q")
# Reply codes of AMQP 0-9-1 that say why a channel was closed.
NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406


class BrokerRefusal(ThreatBusError):
    """The broker says no to what the configuration asks for; trying again cannot help."""


def parameters(config: RabbitMQConfig) -> pika.ConnectionParameters:
    """Give pika's connection parameters; raises `InvalidConfig` for unusable TLS files."""
    return pika.ConnectionParameters(
        host=config.host,
        port=config.port,
        virtual_host=config.vhost,
        credentials=pika.PlainCredentials(config.username, config.password),
        heartbeat=config.heartbeat,
        socket_timeout=CONNECT_TIMEOUT_SECS,
        # A broker whose machine has vanished is noticed sooner by TCP than by heartbeats.
        tcp_options={
            "TCP_USER_TIMEOUT": 1000 * config.heartbeat,
            "TCP_KEEPIDLE": config.heartbeat,
            "TCP_KEEPINTVL": 1,
            "TCP_KEEPCNT": 5,
        },
        stack_timeout=2 * CONNECT_TIMEOUT_SECS,
        ssl_options=_tls(config.tls, config.host) if config.tls.enabled else None,
        client_properties={"connection_name": config.queue.name},
    )


def _tls(tls: TlsConfig, host: str) -> pika.SSLOptions:
    missing = [
        ConfigError(f"{TLS_SECTION}.{key}", file, "a file that is there")
        for key, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key))
        if file and not Path(file).is_file()
    ]
    if missing:
        raise InvalidConfig(missing)
    key = "ca"
    try:
        context = ssl.create_default_context(cafile=tls.ca or None)
        if tls.cert:
            key = "cert"
            context.load_cert_chain(tls.cert, tls.key or None)
    except (OSError, ssl.SSLError) as error:
        allowed = f"a readable PEM file ({error})"
        found = str(getattr(tls, key))
        raise InvalidConfig([ConfigError(f"{TLS_SECTION}.{key}", found, allowed)]) from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return pika.SSLOptions(context, host)


class _Connection(pika.SelectConnection):
    """A connection that reads every message, sends many in one call, and can be left at once.

    All three need pika's inside: what is private there has tests of its own here.
    """

    #: What is to be sent when the loop has dealt with what it is at.
    _outgoing: list[bytes] | None = None
    _transport: Any
    _frame_buffer: bytes
    _terminate_stream: Callable[[BaseException | None], None]

    def abort(self) -> None:
        """Close the socket without asking the broker; `on_close_callback` hears of it."""
        if not self.is_closed:
            self._terminate_stream(None)

    def _adapter_emit_data(self, data: bytes) -> None:
        """Send `data` together with what else is sent in this turn of the loop.

        By itself pika makes three calls to the kernel of each message that is published.
        """
        if self._outgoing is None:
            self._outgoing = []
            self.ioloop.call_later(0, self._send_outgoing)
        self._outgoing.append(data)

    def _send_outgoing(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing and self._transport is not None:
            self._transport.write(b"".join(outgoing))

    def _read_frame(self) -> Any:
        """Give the next frame, a header without its properties if pika cannot decode them.

        A message of which pika could not read the properties would come again and again.
        """
        try:
            return super()._read_frame()  # type: ignore[misc]  # it is not in pika's types
        except Exception:
            kind, channel, size = _FRAME_START.unpack_from(self._frame_buffer)
            if kind != pika.spec.FRAME_HEADER:
                raise
            (body_size,) = _BODY_SIZE.unpack_from(self._frame_buffer, _FRAME_START.size + 4)
            end = _FRAME_START.size + size + 1
            return end, pika.frame.Header(channel, body_size, pika.BasicProperties())


class BrokerWorker(StoppableWorker):
    """Keeps one connection with one channel up. Subclasses say what happens on it.

    Started by the plugin. Its thread lives in pika's loop, which traffic, timers and `call` wake,
    and between two attempts in a wait that `stop` ends. Whatever begins with ``on_`` runs in it.
    It ends after `stop`, and for good after a `BrokerRefusal`.
    """

    def __init__(self, name: str, config: RabbitMQConfig) -> None:
        super().__init__(name=name)
        self.config = config
        self._parameters = parameters(config)
        # The open channel, once the exchange is there. Belongs to the worker's thread.
        self.channel: Any = None
        # Guards _connection: its loop must not be called into from outside when it is closed.
        self._lock = threading.Lock()
        self._connection: Any = None
        # Why the last connection ended, in words; what in this code has failed, if anything has;
        # whether it is of no use to try again.
        self._reason = ""
        self._failure: Exception | None = None
        self._refusal: BrokerRefusal | None = None
        # Set when the first attempt has led somewhere, or nowhere; and whether somebody waits for
        # that, who is then told of a refusal.
        self._tried = threading.Event()
        self._awaited = True
        # Whether the exchange was asked for and is not there.
        self._exchange_is_missing = False
        # Of the supervision as well: a worker that fails waits no longer than one that is refused.
        self._backoff = Backoff(FIRST_RECONNECT_SECS, RECONNECT_CAP_SECS)
        # Attempts since a connection has lasted; when the present one has led to something.
        self._attempts = 0
        self._succeeded_at = math.inf
        self._log = RateLimited(logger)
        #: How often the channel has been opened.
        self.connects = 0
        #: Where it is said how the connection is; the plugin sets its own before the start.
        self.state = Connection(name)

    @property
    def address(self) -> str:
        """Where the broker is, for people."""
        return f"{self.config.host}:{self.config.port}"

    def run(self) -> None:
        """Connect, serve, and connect again."""
        self.state.down(f"connecting to {self.address}")
        while self._running():
            self._attempts += 1
            self._serve()
            # One that the broker ends at once, again and again, is an attempt that failed.
            if time.monotonic() - self._succeeded_at >= STEADY_SECS:
                self._attempts = 0
                self._backoff.reset()
            delay = self._backoff.next()
            if self._running():
                self._say_what_happened(delay)
            self._tried.set()
            if self._refusal is not None:
                return
            self._stop_asked.wait(delay)

    def wait_until_tried(self, timeout: float) -> None:
        """Wait until the first attempt to connect has succeeded or failed, at most `timeout` s.

        Raises `BrokerRefusal` if trying again is of no use. For the thread that starts the worker.
        """
        self._tried.wait(max(0.0, timeout))
        self._awaited = False
        if self._refusal is not None:
            raise self._refusal

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self.call(self.hang_up)

    def call(self, function: Callable[[], None]) -> None:
        """Have `function` called in the worker's thread; forgotten if there is no connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.ioloop.add_callback_threadsafe(self.guarded(function))

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Have `function` called in a while, unless the connection ends before. For ``on_…``."""
        self._connection.ioloop.call_later(seconds, self.guarded(function))

    def guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        """Make a callback for pika, which would take what it raises for the end of the stream.

        A failure closes the connection and is raised in `run` when that is done.
        """

        def callback(*arguments: Any) -> None:
            try:
                function(*arguments)
            # Raised again in run(), where the supervision sees it.
            except Exception as error:  # noqa: BLE001
                self._failure = self._failure or error
                self.hang_up()

        return callback

    def succeeded(self) -> None:
        """Note that the attempt has led to what the subclass wants. For ``on_…``."""
        self._succeeded_at = time.monotonic()
        self.state.up(f"connected to {self.address}")
        self._tried.set()

    def hang_up(self, reason: str = "") -> None:
        """Close the connection: for good after `stop`, else to open it anew. For ``on_…``.

        From here on nothing is handed on, published or acknowledged over it.
        """
        connection = self._connection
        if connection is None:
            return
        self._reason = self._reason or reason
        self._lose_channel()
        if connection.is_open:
            connection.close()
        if connection.is_closing:
            # A broker that does not answer is not waited for.
            connection.ioloop.call_later(CLOSE_TIMEOUT_SECS, connection.abort)
        else:
            connection.ioloop.stop()

    # What a subclass does.

    @abstractmethod
    def on_channel(self) -> None:
        """Begin: the channel is open and the exchange is there."""

    @abstractmethod
    def on_lost(self) -> None:
        """Note that the channel is gone, also when it was closed on purpose."""

    def on_refused(self, code: int, reason: str) -> str | None:  # noqa: ARG002
        """Hear why the broker has closed the channel, before `on_lost`.

        Where trying again cannot help, give in the operator's words what is refused and the way
        out: the worker then ends.
        """
        return None

    # Inside.

    def _say_what_happened(self, delay: float) -> None:
        if self._refusal is not None:
            self.state.down(f"gave up: {self._refusal}")
            if not self._awaited:
                logger.error("%s gives up: %s", self.name, self._refusal)
            return
        # A broker that is away is said so, not shouted.
        quiet = self._attempts > 1 and self._attempts % LOGGED_ATTEMPTS
        level = logging.DEBUG if quiet else logging.WARNING
        reason = self._reason or "no reason given"
        self.state.down(f"trying {self.address} again, attempt {self._attempts + 1}: {reason}")
        logger.log(
            level,
            "%s has no connection to %s: %s; attempt %d follows in %.1f s",
            self.name,
            self.address,
            reason,
            self._attempts + 1,
            delay,
        )

    def _serve(self) -> None:
        """Open a connection and stay in its loop until it is gone."""
        self._reason, self._failure, self._succeeded_at = "", None, math.inf
        connection = _Connection(
            self._parameters,
            on_open_callback=self.guarded(self._on_open),
            on_open_error_callback=self._on_end,
            on_close_callback=self._on_end,
        )
        with self._lock:
            self._connection = connection
        try:
            # A stop() that came before there was a connection has woken nobody.
            if self._running():
                connection.ioloop.start()
        finally:
            with self._lock:
                self._connection = None
            self._lose_channel()
            connection.ioloop.close()
        if self._failure is not None:
            raise self._failure

    def _on_open(self, connection: Any) -> None:
        connection.add_on_connection_blocked_callback(self.guarded(self._on_blocked))
        connection.add_on_connection_unblocked_callback(self.guarded(self._on_unblocked))
        self._open_channel()

    def _on_blocked(self, _: Any, frame: Any) -> None:
        reason = frame.method.reason
        logger.warning("%s: the broker takes no messages for now (%s)", self.name, reason)
        self.state.down(f"{self.address} takes no messages for now: {reason}")

    def _on_unblocked(self, *_: Any) -> None:
        logger.info("%s: the broker takes messages again", self.name)
        self.state.up(f"connected to {self.address}")

    def _open_channel(self) -> None:
        self._connection.channel(on_open_callback=self.guarded(self._on_channel_open))

    def _on_channel_open(self, channel: Any) -> None:
        channel.add_on_close_callback(self.guarded(self._on_channel_close))
        # What is there is taken as it is: nodes of the old kind make the exchange in their own way.
        channel.exchange_declare(
            self.config.exchange_name,
            exchange_type="fanout",
            passive=not self._exchange_is_missing,
            durable=self.config.exchange_durable,
            callback=self.guarded(lambda _: self._on_exchange(channel)),
        )

    def _on_exchange(self, channel: Any) -> None:
        self._exchange_is_missing = False
        # That it was missing is no reason for anything that comes.
        self._reason = ""
        self.channel = channel
        self.connects += 1
        self._log.log("connected", logging.INFO, "%s is connected to %s", self.name, self.address)
        self.on_channel()

    def _on_channel_close(self, channel: Any, reason: Any) -> None:
        if not self._connection.is_open:
            # Closed with its connection, which has a reason of its own.
            self._lose_channel()
            return
        self._reason = explain(reason)
        code = getattr(reason, "reply_code", 0)
        if self.channel is None and code in (NOT_FOUND, PRECONDITION_FAILED):
            # The exchange is not there: make it. Or somebody was faster, in another way: look.
            self._exchange_is_missing = code == NOT_FOUND
            self._open_channel()
            return
        if channel is self.channel:
            refused = self.on_refused(code, reason.reply_text)
            if refused is not None:
                self._refusal = BrokerRefusal(refused)
        self.hang_up()

    def _on_end(self, connection: Any, reason: Any) -> None:
        # Whoever hung up had a reason, which is more than pika's "normal shutdown".
        self._reason = self._reason or explain(reason)
        connection.ioloop.stop()

    def _lose_channel(self) -> None:
        if self.channel is not None:
            self.channel = None
            self.on_lost()


def causes(error: object) -> Iterator[BaseException]:
    """Give an error and what pika has wrapped in it, the outermost first."""
    while isinstance(error, BaseException):
        yield error
        # A failed attempt lists the errors of its steps, others hold the one they stand for.
        nested = [
            *getattr(error, "exceptions", ()),
            getattr(error, "exception", None),
            *(error.args if isinstance(error, pika.exceptions.AMQPError) else ()),
        ]
        error = next((each for each in reversed(nested) if isinstance(each, BaseException)), None)


def explain(reason: object) -> str:
    """Put the end of a connection into words."""
    cause = list(causes(reason))[-1:]
    if not cause:
        return str(reason)
    (error,) = cause
    if isinstance(error, pika.exceptions.ProbableAuthenticationError):
        return "the broker refuses username or password"
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        # pika keeps what the broker has said as a text, and that in quotes.
        said = re.search("""['"](.+)['"]""", str(error))
        return "the broker refuses access to the vhost" + (f": {said[1]}" if said else "")
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return f"{error.reply_text} ({error.reply_code})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"certificate verify failed: {error.verify_message}; "
            f"{TLS_SECTION}.ca names the certificates that are trusted"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
