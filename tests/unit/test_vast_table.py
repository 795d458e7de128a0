"""How vast-threatbus keeps the lookup table: few pipelines, nothing stale, whatever happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest
from helpers.documents import encode, indicator
from helpers.waiting import eventually, finished
from vast_threatbus import table as table_module
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine, EngineClosed, EngineError
from vast_threatbus.live import LiveMatching
from vast_threatbus.registry import Registry
from vast_threatbus.reporting import Hits
from vast_threatbus.table import LookupTable

from threatbus.client import Indicator, read
from threatbus.messages import INDICATOR, Message


class Node:
    """Stands in for the engine: keeps the table itself, and fails when it is told to."""

    def __init__(self) -> None:
        self.table: dict[str, Any] | None = None
        self.runs: list[str] = []
        self.away = False
        # Set when the pipeline that is followed is to end.
        self.left = threading.Event()
        # Called while a pipeline runs, after it has had its input.
        self.meanwhile: list[Any] = []

    def follow(self, pipeline: str) -> Iterator[bytes]:
        yield b'{"key": "a.example", "event": "{}"}'
        if self.away:
            raise EngineError("the node has left")
        self.left.wait(5)
        raise EngineClosed("closed")

    def run(self, pipeline: str, given: Iterable[bytes] = ()) -> None:
        if self.away:
            raise EngineError("the node is away")
        operator = next(word for word in pipeline.split() if word.startswith("context_"))
        self.runs.append(operator)
        rows = [json.loads(line) for piece in given for line in piece.splitlines()]
        if operator == "context_create_lookup_table":
            self.table = {}
        elif self.table is None:
            raise EngineError("there is no such table")
        elif operator == "context_reset":
            self.table.clear()
        for row in rows:
            assert self.table is not None
            if operator == "context_update":
                self.table[row["key"]] = row["ids"]
            else:
                self.table.pop(row["key"], None)
        if self.meanwhile:
            self.meanwhile.pop(0)()


class Keeper:
    """The table's thread with a node and a registry."""

    def __init__(self) -> None:
        self.node = Node()
        self.registry = Registry(100_000)
        self.counters = Counters()
        self.table = LookupTable(cast("Engine", self.node), self.registry, self.counters, "t")
        self.table.start()

    def learn(self, *indicators: Indicator) -> None:
        for each in indicators:
            _, keys = self.registry.learn(each)
            self.table.changed(keys)

    def withdraw(self, *indicators: Indicator) -> None:
        for each in indicators:
            each.revoked = True
        self.learn(*indicators)

    def holds(self, *names: str) -> None:
        eventually(
            lambda: (
                self.table.kept.is_set()
                and not self.table.waiting
                and set(self.node.table or ()) == set(names)
            ),
            what=f"the table holds {names}",
        )


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.table.stop()
    finished(keeper.table)


def domain(name: str, **more: object) -> Indicator:
    found = read(Message(INDICATOR, encode(indicator(f"[domain-name:value = '{name}']", **more))))
    assert isinstance(found, Indicator)
    return found


def test_a_table_that_is_not_there_is_made(keeper: Keeper) -> None:
    keeper.learn(first := domain("a.example"))
    keeper.holds("a.example")
    assert keeper.node.runs[:2] == ["context_reset", "context_create_lookup_table"]
    assert keeper.node.table == {"a.example": [first.id]}


def test_what_is_in_a_table_from_before_is_not_kept(keeper: Keeper) -> None:
    keeper.learn(domain("a.example"))
    keeper.holds("a.example")
    assert keeper.node.table is not None
    keeper.node.table["old.example"] = []
    keeper.table.write_anew()
    keeper.holds("a.example")


def test_what_comes_while_a_pipeline_starts_is_written_by_it(keeper: Keeper) -> None:
    keeper.holds()
    before = len(keeper.node.runs)
    for number in range(2000):
        keeper.learn(domain(f"{number}.example"))
    keeper.holds(*(f"{number}.example" for number in range(2000)))
    assert len(keeper.node.runs) - before <= 5


def test_what_is_withdrawn_is_taken_out(keeper: Keeper) -> None:
    keeper.learn(first := domain("a.example"), second := domain("b.example"))
    keeper.holds("a.example", "b.example")
    keeper.withdraw(first)
    keeper.holds("b.example")
    keeper.withdraw(second)
    keeper.holds()


def test_what_is_withdrawn_while_the_table_is_written_anew_does_not_stay(keeper: Keeper) -> None:
    keeper.learn(first := domain("a.example"), domain("b.example"))
    keeper.holds("a.example", "b.example")
    keeper.node.meanwhile += [lambda: None, lambda: keeper.withdraw(first)]
    keeper.table.write_anew()
    eventually(lambda: not keeper.node.meanwhile)
    keeper.holds("b.example")


def test_what_comes_back_at_once_stays(keeper: Keeper) -> None:
    keeper.learn(first := domain("a.example"))
    keeper.holds("a.example")
    for _ in range(50):
        keeper.withdraw(first)
        first.revoked = False
        keeper.learn(first)
    keeper.holds("a.example")


def test_a_node_that_was_away_gets_all_of_it(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "MAX_RETRY_SECS", 0.1)
    keeper.learn(first := domain("a.example"), domain("b.example"))
    keeper.holds("a.example", "b.example")
    keeper.node.away = True
    keeper.learn(domain("c.example"))
    eventually(lambda: not keeper.table.kept.is_set())
    keeper.withdraw(first)
    # It has forgotten everything.
    keeper.node.table = None
    keeper.node.away = False
    keeper.holds("b.example", "c.example")


def test_a_node_that_leaves_once_more_while_it_is_written_is_written_again(keeper: Keeper) -> None:
    keeper.learn(domain("a.example"))
    keeper.holds("a.example")
    again = threading.Event()

    def leave() -> None:
        keeper.node.table = {}
        keeper.table.write_anew()
        again.set()

    keeper.node.meanwhile += [lambda: None, leave]
    keeper.table.write_anew()
    assert again.wait(5)
    keeper.holds("a.example")


def test_a_worker_that_fails_in_the_middle_writes_all_of_it_again(keeper: Keeper) -> None:
    keeper.learn(domain("a.example"))
    keeper.holds("a.example")

    def fail() -> None:
        assert keeper.node.table is not None
        keeper.node.table.pop("b.example", None)
        raise RuntimeError("what nobody has thought of")

    keeper.node.meanwhile.append(fail)
    keeper.learn(domain("b.example"))
    eventually(lambda: keeper.table.failures == 1)
    keeper.holds("a.example", "b.example")


def test_a_node_that_leaves_live_matching_gets_its_table_anew(keeper: Keeper) -> None:
    keeper.learn(domain("a.example"))
    keeper.holds("a.example")
    # It is there again at once, with what it had on disk.
    keeper.node.away = True
    keeper.node.table = {}
    hits = Hits(keeper.counters)
    live = LiveMatching(
        cast("Engine", keeper.node), keeper.table, hits, keeper.counters, "export live=true", "t"
    )
    live.start()
    eventually(lambda: keeper.counters["live_restarts"] == 1)
    keeper.node.away = False
    keeper.holds("a.example")
    eventually(lambda: live.runs)
    live.stop()
    keeper.node.left.set()
    finished(live)
    assert keeper.counters["live_hits"] == 2
