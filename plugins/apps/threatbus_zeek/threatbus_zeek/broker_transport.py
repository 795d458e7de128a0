"""Native Broker: the bus listens, Zeeks connect.

The Python module comes with Zeek or with the operating system; its API differs between Broker 1.4
(Zeek 4) and 2.x (Zeek 5 to 9), and both are served. What is peculiar about it stands where it is
dealt with; docs/protocol-zeek.md ("Broker") has it together.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from threatbus.config import FREE
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.logger import RateLimited
from threatbus.observe.report import Connection
from threatbus_zeek.config import SECTION, ZeekConfig
from threatbus_zeek.events import TOPICS
from threatbus_zeek.transport import Arrived, Garbled, Incoming, PeerAdded, PeerLost
from threatbus_zeek.values import ADDRESS, SUBNET, Count, Enum, Event, Port, text_of

logger = logging.getLogger("threatbus.zeek.broker")

#: Messages that are read at once from one topic.
BATCH: Final = 500
#: Seconds that Broker is given to send what it was handed a moment ago: it has no call for that.
LINGER_SECS: Final = 0.3

HOW_TO_GET_IT: Final = (
    "false, unless this Python can import Broker's module. For Zeek 4 install Debian's package "
    "python3-broker (scripts/link-broker lets a virtual environment see it), for Zeek 5 to 9 use "
    "the module that Zeek's own package brings; or do without, by Zeek's WebSocket API (websockets)"
)


class BrokerTransport:
    """A listening Broker endpoint.

    Threads of Broker's own do the work on the network; they are no threads of Python. All calls of
    Broker come from the link's thread: version 1.4 waits for ever in `shutdown`, and with it all
    of Python, when another thread than that which made the endpoint calls it.
    """

    name: Final = "zeek broker"
    keeps_its_peer: Final = False

    def __init__(self, config: ZeekConfig) -> None:
        self._config = config
        self._broker: Any = None
        self._endpoint: Any = None
        self._status: Any = None
        # One per topic: that takes no list, whose handling fails in Python 3.10 and later.
        self._subscribers: list[Any] = []
        # Descriptors may be above 1,023, where select() ends.
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Serialises wake() with close(), after which the descriptor may be somebody else's.
        self._lock = threading.Lock()
        self._closed = False
        self._reading = False
        self._published_at = 0.0
        self._log = RateLimited(logger)
        #: Where it is said how the endpoint is; the plugin sets its own before it is opened.
        self.state = Connection(self.name)

    def open(self) -> None:
        """Load Broker and listen; raises `InvalidConfig` that says what to do."""
        self._broker = load()
        broker = self._broker
        options = broker.BrokerOptions()
        options.disable_ssl = self._config.disable_ssl
        # The bus is no hop between Zeeks.
        if hasattr(options, "forward"):  # 1.4
            options.forward = False
        else:
            options.disable_forwarding = True
        configuration = broker.Configuration(options)
        tls = self._config.tls
        if tls.ca and not self._config.disable_ssl:
            configuration.openssl_cafile = tls.ca
            configuration.openssl_certificate = tls.cert
            configuration.openssl_key = tls.key
        self._endpoint = broker.Endpoint(configuration)
        self._status = self._endpoint.make_status_subscriber(True)
        # Kept for good: when the last one goes, later ones receive nothing.
        self._subscribers = [self._endpoint.make_subscriber(topic) for topic in TOPICS]
        host, port = self._config.host, self._config.port
        if not self._endpoint.listen(host, port):
            self._endpoint.shutdown()
            found = f"{host}:{port}, where Broker cannot listen"
            raise InvalidConfig([ConfigError(f"{SECTION}.port", found, FREE)])
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._selector.register(self._status.fd(), selectors.EVENT_READ)
        logger.info("listening on %s, port %d, for Zeeks that speak Broker", host, port)
        self.state.up(f"listening on {host}:{port}")

    def receive(self, timeout: float | None, *, reading: bool) -> Sequence[Incoming]:
        """Give what has come in; see `Transport`."""
        self._watch(reading)
        ready = {key.fd for key, _ in self._selector.select(timeout)}
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wakeup)
        found: list[Incoming] = list(self._changes_of_peers())
        if reading:
            for subscriber in self._subscribers:
                found.extend(self._messages(subscriber))
        return found

    def publish(self, topic: str, event: Event) -> None:
        """Hand an event to Broker, which never blocks and keeps what a slow Zeek does not take."""
        args = [self._to_broker(each) for each in event.args]
        self._endpoint.publish(topic, self._broker.zeek.Event(event.name, *args))
        self._published_at = time.monotonic()

    def wake(self) -> None:
        """End a wait in `receive`."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wakeup, 1)

    def interrupt(self) -> None:
        """Do nothing: publishing does not block."""

    def close(self) -> None:
        """Stop listening and hang up."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._selector.close()
            os.close(self._wakeup)
        if self._endpoint is not None:
            time.sleep(max(0.0, self._published_at + LINGER_SECS - time.monotonic()))
            self._endpoint.shutdown()

    def _watch(self, reading: bool) -> None:
        if reading == self._reading:
            return
        for subscriber in self._subscribers:
            if reading:
                self._selector.register(subscriber.fd(), selectors.EVENT_READ)
            else:
                self._selector.unregister(subscriber.fd())
        self._reading = reading

    def _changes_of_peers(self) -> Iterator[Incoming]:
        codes = self._broker.SC
        # Not get(), which fails in 1.4.
        for status in self._status.poll():
            if not isinstance(status, self._broker.Status):
                self._log.log(str(status)[:40], logging.WARNING, "Broker says: %s", status)
            elif status.code() == codes.PeerAdded:
                logger.info("a Zeek is connected: %s", status)
                yield PeerAdded(_peer_of(status))
            elif status.code() in (codes.PeerLost, codes.PeerRemoved):
                logger.info("a Zeek is gone: %s", status)
                yield PeerLost(_peer_of(status))

    def _messages(self, subscriber: Any) -> Iterator[Incoming]:
        # One by one: what fails to be converted must not cost those that came with it. And only
        # what is there: a get() that waits keeps all other threads from running.
        for _ in range(min(subscriber.available(), BATCH)):
            try:
                topic, value = subscriber.get()
                yield Arrived(text_of(topic), _from_broker(value))
            # Values that Python cannot hold (a set of tables, a time beyond the year 9999) fail in
            # Broker's own conversion, in ways of its own.
            except Exception as error:  # noqa: BLE001 (rejected with its reason)
                yield Garbled(f"a value that Python cannot hold: {error}", b"")

    def _to_broker(self, value: Any) -> Any:
        """Give a value as Broker's module takes it; times are aware, so they stay what they are."""
        if isinstance(value, Count):
            return self._broker.Count(int(value))
        if isinstance(value, tuple):
            return tuple(self._to_broker(each) for each in value)
        return value


def load() -> Any:
    """Import Broker's module; raises `InvalidConfig` that says how to get it."""
    try:
        return importlib.import_module("broker")
    except ImportError as error:
        found = f"true ({error})"
        raise InvalidConfig([ConfigError(f"{SECTION}.broker", found, HOW_TO_GET_IT)]) from None


def _peer_of(status: Any) -> str:
    """Give the id of the endpoint that a status is about."""
    node = status.context().node_id
    return str(node() if callable(node) else node)


def _from_broker(value: Any) -> Any:
    """Give a value of Broker's module as in `threatbus_zeek.values`."""
    match value:
        case None | bool() | int() | float() | datetime() | timedelta():
            return value
        case str() | bytes():
            return text_of(value)
        case tuple():
            return tuple(map(_from_broker, value))
        case dict():
            return {_from_broker(key): _from_broker(each) for key, each in value.items()}
        case set() | frozenset():
            return frozenset(map(_from_broker, value))
        case _ if isinstance(value, ADDRESS + SUBNET):
            return value
    kind = type(value).__name__
    if kind == "Count":
        return Count(value.value)
    if kind == "Port":
        return Port(str(value))
    return Enum(str(value))
