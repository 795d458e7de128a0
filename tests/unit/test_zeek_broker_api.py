"""Broker's Python module: missing, and in the shape that version 2 gave it.

Debian has version 1.4, which the integration tests use for real. The stand-in here does what is
known of 2.x (docs/protocol-zeek.md, "Broker") and nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum as PyEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from threatbus_zeek.broker_transport import LINGER_SECS, BrokerTransport
from threatbus_zeek.config import ZeekConfig
from threatbus_zeek.transport import Arrived, Garbled, PeerAdded, PeerLost
from threatbus_zeek.values import Count, Event

from threatbus.errors import InvalidConfig


class Options:
    __slots__ = ("disable_forwarding", "disable_ssl")


class SC(PyEnum):
    EndpointDiscovered = 1
    PeerAdded = 2
    PeerLost = 3
    PeerRemoved = 4


class Status:
    def __init__(self, code: SC, node: str) -> None:
        self._code, self._node = code, node

    def code(self) -> SC:
        return self._code

    def context(self) -> Any:
        return SimpleNamespace(node_id=self._node)


class BrokerCount:
    def __init__(self, value: int) -> None:
        self.value = value


BrokerCount.__name__ = "Count"


class BrokerError:
    """What a status subscriber also gives; it cannot be asked for a status code."""

    def __str__(self) -> str:
        return "peer_incompatible"


class Queue:
    """A subscriber; `get` waits for ever where there is nothing, as the real one does."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self._fd = os.eventfd(1, os.EFD_NONBLOCK)

    def fd(self) -> int:
        return self._fd

    def available(self) -> int:
        return len(self.waiting)

    def poll(self) -> list[Any]:
        found, self.waiting = self.waiting, []
        return found

    def get(self) -> Any:
        found = self.waiting.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class Endpoint:
    port = 47761

    def __init__(self, configuration: Options) -> None:
        self.options = configuration
        self.status = Queue()
        self.subscribers: dict[str, Queue] = {}
        self.published: list[Any] = []
        self.is_down = False

    def make_status_subscriber(self, receive_statuses: bool) -> Queue:
        assert receive_statuses
        return self.status

    def make_subscriber(self, topics: str) -> Queue:
        if not isinstance(topics, str):
            raise AttributeError("module 'collections' has no attribute 'Iterable'")  # noqa: TRY004
        self.subscribers[topics] = Queue()
        return self.subscribers[topics]

    def listen(self, address: str, port: int, /) -> int:
        return self.port

    def publish(self, topic: str, event: Any) -> None:
        self.published.append((topic, event))

    def shutdown(self) -> None:
        self.is_down = True


class Broker2(ModuleType):
    """The module."""

    BrokerOptions = Options
    Configuration = staticmethod(lambda options: options)
    Count = BrokerCount
    SC = SC
    Status = Status
    zeek = SimpleNamespace(Event=lambda name, *args: (name, args))

    def __init__(self) -> None:
        super().__init__("broker")
        self.endpoints: list[Endpoint] = []

    def Endpoint(self, configuration: Options) -> Endpoint:  # noqa: N802
        self.endpoints.append(Endpoint(configuration))
        return self.endpoints[-1]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker2:
    module = Broker2()
    monkeypatch.setitem(sys.modules, "broker", module)
    return module


@pytest.fixture
def transport(broker: Broker2) -> Iterator[BrokerTransport]:
    transport = BrokerTransport(ZeekConfig(disable_ssl=True))
    transport.open()
    yield transport
    transport.close()


def test_without_the_module_the_start_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "broker", None)
    with pytest.raises(InvalidConfig) as raised:
        BrokerTransport(ZeekConfig()).open()
    message = str(raised.value)
    assert message.startswith("plugins.apps.zeek.broker: is true")
    assert "python3-broker" in message
    assert "websockets" in message


def test_the_options_have_their_new_names(broker: Broker2, transport: BrokerTransport) -> None:
    (endpoint,) = broker.endpoints
    options: Any = endpoint.options
    assert options.disable_forwarding is True
    assert options.disable_ssl is True


def test_a_port_that_cannot_be_had_is_an_error(
    broker: Broker2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endpoint, "port", 0)
    transport = BrokerTransport(ZeekConfig())
    with pytest.raises(InvalidConfig, match=r"plugins\.apps\.zeek\.port.*47761"):
        transport.open()
    assert broker.endpoints[0].is_down
    transport.close()


def test_peers_come_and_go_under_their_ids(broker: Broker2, transport: BrokerTransport) -> None:
    broker.endpoints[0].status.waiting = [
        Status(SC.EndpointDiscovered, "a"),
        Status(SC.PeerAdded, "a"),
        BrokerError(),
        Status(SC.PeerLost, "a"),
        Status(SC.PeerRemoved, "b"),
    ]
    found = transport.receive(0, reading=True)
    assert found == [PeerAdded("a"), PeerLost("a"), PeerLost("b")]


def test_messages_are_read_one_by_one_and_in_plain_values(
    broker: Broker2, transport: BrokerTransport
) -> None:
    metadata = {"metadata": BrokerCount(1)}
    event = (
        BrokerCount(1),
        BrokerCount(1),
        ("Tenzir::received", ("p2p", BrokerCount(5)), metadata),
    )
    bad = TypeError("unhashable type: 'set'")
    broker.endpoints[0].subscribers["threatbus/manage"].waiting = [bad, ("threatbus/manage", event)]
    garbled, arrived = transport.receive(0, reading=True)
    assert isinstance(garbled, Garbled)
    assert isinstance(arrived, Arrived)
    name, args, _ = arrived.value[2]
    assert (name, args) == ("Tenzir::received", ("p2p", 5))
    assert isinstance(args[1], Count)


def test_while_the_bus_is_full_messages_stay_where_they_are(
    broker: Broker2, transport: BrokerTransport
) -> None:
    queue = broker.endpoints[0].subscribers["stix2/sighting"]
    queue.waiting = [("stix2/sighting", None)]
    assert transport.receive(0, reading=False) == []
    assert len(transport.receive(0, reading=True)) == 1
    assert transport.receive(0, reading=False) == []


def test_counts_are_published_as_counts(broker: Broker2, transport: BrokerTransport) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    transport.publish("topic", Event("A::b", (Count(5), (moment, Count(6)), None)))
    ((topic, (name, args)),) = broker.endpoints[0].published
    assert (topic, name) == ("topic", "A::b")
    assert isinstance(args[0], BrokerCount)
    assert args[0].value == 5
    assert args[1][0] is moment
    assert args[1][1].value == 6
    assert args[2] is None


def test_what_was_just_published_is_given_time_to_leave(transport: BrokerTransport) -> None:
    began = time.monotonic()
    transport.publish("topic", Event("A::b", ()))
    transport.close()
    assert time.monotonic() - began >= LINGER_SECS


def test_it_can_be_woken_before_and_after_its_end(transport: BrokerTransport) -> None:
    transport.wake()
    assert transport.receive(60, reading=True) == []
    transport.close()
    transport.close()
    transport.wake()
