"""Zeeks: what the scripts do, on real Broker peers and behind a WebSocket stand-in.

`OldScript` and `OurScript` are the scripts without any transport: events come in, events go out.
`BrokerZeek` runs one on a real Broker endpoint. (`websocket_zeek` has the other transport.)
"""

from __future__ import annotations

import importlib
import os
import random
import selectors
import string
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from threatbus_zeek.values import Count

from helpers.services import missing
from helpers.waiting import eventually, finished

NO_SNAPSHOT = timedelta(0)
MANAGE = "threatbus/manage"
SIGHTINGS = "stix2/sighting"

#: Seconds between two signs of life when nothing else happens.
HEARTBEAT = 0.3

Publish = Callable[..., None]
"""``publish(topic, name, *args)``: what a script calls to send an event."""


class Script(Protocol):
    """What runs in a Zeek. Called in the thread of its Zeek."""

    def topics(self) -> list[str]:
        """What the Zeek is subscribed to."""

    def begin(self) -> None:
        """The connection to the bus stands."""

    def handle(self, name: str, args: tuple[Any, ...]) -> None:
        """An event has come."""

    def heartbeat(self) -> None:
        """Nothing has come for a while."""


class OldScript:
    """The script of Threat Bus 2022.5.16, as the protocol page describes it."""

    def __init__(
        self,
        publish: Publish,
        *,
        topic: str = "stix2/indicator",
        snapshot: timedelta = NO_SNAPSHOT,
        namespace: str = "Tenzir",
    ) -> None:
        self._publish = publish
        self._topic = topic
        self._snapshot = snapshot
        self._namespace = namespace
        # The records of all intel events, in order.
        self.intel: list[tuple[Any, ...]] = []
        self.p2p: str | None = None

    def topics(self) -> list[str]:
        return [MANAGE, *([self.p2p] if self.p2p else [])]

    def begin(self) -> None:
        self._publish(MANAGE, f"{self._namespace}::subscribe", self._topic, self._snapshot)

    def end(self) -> None:
        self._publish(MANAGE, f"{self._namespace}::unsubscribe", self.p2p)

    def handle(self, name: str, args: tuple[Any, ...]) -> None:
        if name == f"{self._namespace}::subscription_acknowledged" and self.p2p is None:
            self.p2p = args[0]
        elif name == f"{self._namespace}::intel":
            self.intel.append(args[0])

    def heartbeat(self) -> None:
        """It has none."""

    def items(self) -> list[tuple[str, str, str]]:
        """What it was told, as (operation, type, value)."""
        return [(record[4], record[2], record[3]) for record in self.intel]


class OurScript:
    """What apps/zeek/threatbus.zeek does."""

    def __init__(
        self,
        publish: Publish,
        *,
        topic: str = "stix2/indicator",
        snapshot: timedelta = NO_SNAPSHOT,
        name: str = "zeek",
    ) -> None:
        self._publish = publish
        self._topic = topic
        self._snapshot = snapshot
        self._name = name
        self.p2p = self._new_topic()
        self.joined = False
        self.last = 0
        # Every batch that was not a repetition, and every batch at all, by number.
        self.changes: list[tuple[Any, ...]] = []
        self.numbers: list[int] = []
        # Indicator -> its items, as they are in the Intel framework.
        self.intel: dict[str, tuple[tuple[str, str], ...]] = {}
        # Set by a test: nothing is said any more, and batches are not acknowledged.
        self.silent = False

    def topics(self) -> list[str]:
        return [MANAGE, self.p2p]

    def begin(self) -> None:
        self.tick()

    def heartbeat(self) -> None:
        if not self.silent:
            self.tick()

    def tick(self) -> None:
        """Say where this Zeek stands."""
        if self.joined:
            self._publish(MANAGE, "Tenzir::received", self.p2p, Count(self.last))
        else:
            args = (self.p2p, self._topic, self._snapshot, self._name)
            self._publish(MANAGE, "Tenzir::join", *args)

    def end(self) -> None:
        self._publish(MANAGE, "Tenzir::unsubscribe", self.p2p)

    def handle(self, name: str, args: tuple[Any, ...]) -> None:
        if not args or args[0] != self.p2p:
            return
        if name == "Tenzir::joined":
            self.joined = True
            self.tick()
        elif name == "Tenzir::not_joined":
            self.joined, self.last, self.p2p = False, 0, self._new_topic()
            self.tick()
        elif name == "Tenzir::intel_batch":
            self._take(int(getattr(args[1], "value", args[1])), args[2])

    def _take(self, number: int, changes: tuple[Any, ...]) -> None:
        self.numbers.append(number)
        if number == self.last + 1:
            self.last = number
            self.changes.extend(changes)
            for _, indicator, items, *_ in changes:
                self.intel[indicator] = items
                if not items:
                    del self.intel[indicator]
        if not self.silent:
            self.tick()

    def _new_topic(self) -> str:
        return self._topic + "".join(random.choices(string.ascii_letters, k=20))


def broker_module() -> Any:
    """Give Broker's Python module; without it the test is skipped, or fails in CI."""
    try:
        return importlib.import_module("broker")
    except ImportError:
        return missing("the Python module broker (Debian: python3-broker)")


class BrokerZeek:
    """A real Broker endpoint that runs a script, in a thread of its own."""

    def __init__(
        self,
        port: int,
        make_script: Callable[[Publish], Any],
        tls: dict[str, str] | None = None,
    ) -> None:
        self.broker = broker_module()
        options = self.broker.BrokerOptions()
        options.forward = False
        configuration = self.broker.Configuration(options)
        if tls is not None:
            configuration.openssl_cafile = tls["ca"]
            configuration.openssl_certificate = tls["cert"]
            configuration.openssl_key = tls["key"]
        self._endpoint = self.broker.Endpoint(configuration)
        self._status = self._endpoint.make_status_subscriber(True)
        self._subscribers: dict[str, Any] = {}
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0)
        self._ended = False
        # How often a connection to the bus has come up.
        self.begun = 0
        # What Broker says went wrong.
        self.errors: list[str] = []
        self.script = make_script(self.publish)
        self._listen_to(self.script.topics())
        self._selector.register(self._status.fd(), selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Broker tries again by itself, every second.
        self._endpoint.peer_nosync("127.0.0.1", port, 1.0)
        self._thread.start()

    def publish(self, topic: str, name: str, *args: Any) -> None:
        """Publish an event."""
        plain = [self.broker.Count(a) if isinstance(a, Count) else a for a in args]
        self._endpoint.publish(topic, self.broker.zeek.Event(name, *plain))

    def publish_raw(self, topic: str, value: Any) -> None:
        """Publish something that need not be an event."""
        self._endpoint.publish(topic, value)

    def sight(self, intel_id: str, context: dict[str, Any] | None = None, **more: Any) -> None:
        """Report a sighting."""
        moment = more.get("time", datetime.now(UTC))
        self.publish(SIGHTINGS, "Tenzir::sighting", moment, intel_id, context or {})

    def vanish(self) -> None:
        """Go without a word."""
        self._ended = True
        os.eventfd_write(self._wakeup, 1)
        finished(self._thread)
        self._endpoint.shutdown()

    def close(self) -> None:
        """Go, if it has not gone."""
        if not self._ended:
            self.vanish()

    def _listen_to(self, topics: list[str]) -> None:
        for topic in topics:
            if topic not in self._subscribers:
                self._subscribers[topic] = self._endpoint.make_subscriber(topic)
                self._selector.register(self._subscribers[topic].fd(), selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._ended:
            if not self._selector.select(HEARTBEAT):
                self.script.heartbeat()
            for status in self._status.poll():
                if status.code() == self.broker.SC.PeerAdded:
                    self.begun += 1
                    self.script.begin()
                elif not isinstance(status, self.broker.Status):
                    self.errors.append(str(status))
            for subscriber in list(self._subscribers.values()):
                for _, (_, _, event, *_) in subscriber.poll():
                    self.script.handle(event[0], event[1])
            self._listen_to(self.script.topics())


def subscribed(zeek: BrokerZeek) -> BrokerZeek:
    """Wait until the script has its topic."""
    eventually(lambda: zeek.script.p2p and getattr(zeek.script, "joined", True))
    return zeek
