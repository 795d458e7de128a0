"""What vast-threatbus makes of what a bus says, whoever that is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from helpers.documents import encode, indicator, sighting
from helpers.waiting import eventually, finished
from vast_threatbus.counters import Counters
from vast_threatbus.listening import Listening
from vast_threatbus.registry import Registry
from vast_threatbus.retro import Backlog
from vast_threatbus.table import LookupTable

from threatbus.client import App
from threatbus.messages import INDICATOR, SIGHTING, Message


class Bus:
    """Stands in for the app: gives what a test has said."""

    def __init__(self) -> None:
        self.said: list[list[Message]] = []
        self.subscriptions = 1

    def receive(self, limit: int = 500, timeout: float | None = None) -> list[Message]:
        return self.said.pop(0) if self.said else []


class Table:
    """Stands in for the lookup table: collects what it is told."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []

    def changed(self, keys: set[str]) -> None:
        self.told.append(keys)


class Listener:
    def __init__(
        self, table: Table | None, backlog: Backlog | None, unnamed_secs: float = 0.0
    ) -> None:
        self.bus = Bus()
        self.registry = Registry(10)
        self.counters = Counters()
        self.thread = Listening(
            cast("App", self.bus),
            self.registry,
            self.counters,
            cast("LookupTable | None", table),
            backlog,
            unnamed_secs / 86_400,
        )

    def hears(self, *messages: Message) -> None:
        self.bus.said.append(list(messages))
        if self.thread.ident is None:
            self.thread.start()
        eventually(lambda: not self.bus.said)
        self.thread.stop()
        finished(self.thread)


def message(document: dict[str, Any]) -> Message:
    return Message(INDICATOR, encode(document))


GARBAGE = [
    Message(INDICATOR, data)
    for data in (b"", b"no JSON", b"[]", b'{"type": "indicator"}', b"\xff\x00", b"[" * 10_000)
]


@pytest.fixture
def backlog() -> Iterator[Backlog]:
    backlog = Backlog()
    yield backlog
    backlog.close()


def test_garbage_is_left_out_and_counted_and_the_rest_is_taken(backlog: Backlog) -> None:
    table = Table()
    listener = Listener(table, backlog)
    known = indicator("[domain-name:value = 'a.example']")
    others = [Message("no topic", b"{}"), Message(SIGHTING, encode(sighting()))]
    listener.hears(*GARBAGE, *others, message(known))
    assert table.told == [{"a.example"}]
    assert backlog.take() == [known["id"]]
    assert listener.counters["indicators_left_out"] == len(GARBAGE) + 1
    assert listener.thread.failures == 0


def test_only_what_is_new_is_looked_for_in_what_is_stored(backlog: Backlog) -> None:
    listener = Listener(Table(), backlog)
    known, gone = indicator(), indicator()
    listener.hears(
        message(known), message(gone), message({**gone, "revoked": True}), message(known)
    )
    # Whether what is gone by now is still current is asked when its turn comes.
    assert backlog.take() == [known["id"], gone["id"]]
    assert list(listener.registry.known([known["id"], gone["id"]])) == [known["id"]]


def test_one_too_many_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener(None, None)
    listener.hears(*(message(indicator()) for _ in range(11)))
    assert listener.counters["indicators_left_out"] == 1
    assert "there are max_indicators of them already" in caplog.text


def test_what_has_expired_makes_room_also_when_nothing_is_matched_live() -> None:
    listener = Listener(None, None)
    until = datetime.now(UTC) + timedelta(seconds=0.2)
    expiring = message(indicator(valid_until=f"{until:%FT%T.%fZ}"))
    listener.bus.said.append([expiring])
    listener.thread.start()
    eventually(lambda: datetime.now(UTC) > until and len(listener.registry) == 0)
    listener.thread.stop()
    finished(listener.thread)


def test_a_kind_of_matching_that_is_off_hears_nothing() -> None:
    listener = Listener(None, None)
    listener.hears(message(indicator()))
    assert len(listener.registry) == 1


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def listener(table: Table) -> Iterator[Listener]:
    """One that goes on listening, and lets go of what is not named for a second."""
    listener = Listener(table, None, unnamed_secs=1.0)
    listener.thread.start()
    yield listener
    listener.thread.stop()
    finished(listener.thread)


def domain(name: str, **more: Any) -> Message:
    return message(indicator(f"[domain-name:value = '{name}']", **more))


def test_what_expires_is_let_go_at_its_time(listener: Listener, table: Table) -> None:
    until = datetime.now(UTC) + timedelta(seconds=1)
    listener.bus.said.append(
        [domain("a.example", valid_until=f"{until:%FT%T.%fZ}"), domain("b.example")]
    )
    eventually(lambda: table.told == [{"a.example", "b.example"}, {"a.example"}])
    assert datetime.now(UTC) >= until - timedelta(milliseconds=1)
    assert listener.registry.keys() == ["b.example"]


def test_what_the_bus_does_not_name_when_it_is_back_is_let_go_in_the_end(
    listener: Listener, table: Table
) -> None:
    first, second, third = domain("a.example"), domain("b.example"), domain("c.example")
    listener.bus.said.append([first, second])
    eventually(lambda: table.told == [{"a.example", "b.example"}])
    # A new subscription; its snapshot names one of the two.
    listener.bus.subscriptions += 1
    listener.bus.said.append([second, third])
    eventually(lambda: listener.counters["indicators_forgotten"])
    eventually(lambda: table.told[1:] == [{"c.example"}, {"a.example"}])
    assert listener.registry.keys() == ["b.example", "c.example"]
