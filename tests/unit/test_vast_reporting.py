"""How vast-threatbus reports hits: once, transformed, to the sink, within bounds, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import encode, indicator
from helpers.waiting import eventually, finished
from vast_threatbus import commands
from vast_threatbus import reporting as reporting_module
from vast_threatbus.commands import (
    CommandFailed,
    CommandSink,
    StandardOutput,
    Transformation,
    make_sink,
)
from vast_threatbus.counters import Counters
from vast_threatbus.registry import Registry
from vast_threatbus.reporting import Hits, Memory, Reporting

from threatbus.client import App, Endpoint, Indicator, MatchType, Sighting, read
from threatbus.messages import INDICATOR, SIGHTING, Message
from threatbus.queues import Bounds

EVENT = '{"q":"a.example"}'


class Desk:
    """A reporter, and an app with no bus, whose outbox is looked into."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        self.counters = Counters()
        self.registry = Registry(10)
        self.hits = Hits(self.counters)
        self.app = App(Endpoint("127.0.0.1", 1), timeout=0.1, bounds=more.pop("bounds", Bounds()))
        self.published: list[Sighting] = []
        self.largest = 10**9
        self.attempts = 0
        real = self.app.publish_sighting

        def publish(data: bytes, timeout: float | None = None) -> None:
            self.app._max_message_size = self.largest
            self.attempts += 1
            real(data, timeout)
            sighting = read(Message(SIGHTING, data))
            assert isinstance(sighting, Sighting)
            self.published.append(sighting)

        monkeypatch.setattr(self.app, "publish_sighting", publish)
        self.reporting = Reporting(
            self.hits, Memory(), self.registry, self.counters, self.app, **more
        )
        found = read(Message(INDICATOR, encode(indicator("[domain-name:value = 'a.example']"))))
        assert isinstance(found, Indicator)
        self.indicator = found
        self.registry.learn(found)

    def report(self, *lines: bytes) -> None:
        for line in lines:
            self.hits.put_live(line)
        self.reporting.start()
        eventually(lambda: not self.hits.waiting)

    def close(self) -> None:
        self.reporting.stop()
        if self.reporting.ident is not None:
            finished(self.reporting)
        self.hits.close()
        self.app.close(linger=0)


@pytest.fixture
def make_desk(monkeypatch: pytest.MonkeyPatch) -> Any:
    desks: list[Desk] = []

    def make(**more: Any) -> Desk:
        desks.append(Desk(monkeypatch, **more))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


def line(event: str = EVENT, key: str = "a.example") -> bytes:
    return json.dumps({"key": key, "event": event}).encode()


def test_a_hit_of_nobody_and_one_that_cannot_be_read_stop_nothing(make_desk: Any) -> None:
    desk = make_desk()
    desk.report(line(key="b.example"), b"\xff", b"{}", line())
    assert [each.sighting_of_ref for each in desk.published] == [desk.indicator.id]
    assert desk.counters["hits_unreadable"] == 2


def test_what_was_withdrawn_is_reported_no_longer(make_desk: Any) -> None:
    desk = make_desk()
    desk.indicator.revoked = True
    desk.registry.learn(desk.indicator)
    desk.report(line())
    assert desk.published == []


def test_a_query_is_about_the_indicators_it_was_made_for(make_desk: Any) -> None:
    desk = make_desk()
    hit = {"key": "a.example", "event": EVENT}
    desk.report(
        json.dumps({**hit, "ids": ["indicator--of another query"]}).encode(),
        json.dumps({**hit, "ids": [desk.indicator.id]}).encode(),
    )
    assert len(desk.published) == 1


def test_what_was_reported_live_is_not_reported_again_by_a_query() -> None:
    memory = Memory(size=2)
    assert not memory.is_second("i", EVENT, MatchType.LIVE)
    assert memory.is_second("i", EVENT, MatchType.RETRO)
    assert not memory.is_second("j", EVENT, MatchType.RETRO)
    # What is imported is another event, even if it is equal to one from before.
    assert not memory.is_second("j", EVENT, MatchType.LIVE)
    assert not memory.is_second("i", EVENT, MatchType.LIVE)
    assert not memory.is_second("k", EVENT, MatchType.LIVE)
    assert not memory.is_second("j", EVENT, MatchType.RETRO), "forgotten, as there is no room"


def test_a_context_that_is_larger_than_the_bus_takes_is_left_out(make_desk: Any) -> None:
    desk = make_desk()
    desk.largest = 2000
    desk.report(line(json.dumps({"q": "x" * 3000})), line())
    assert [each.x_threatbus_sighting_context for each in desk.published] == [
        None,
        json.loads(EVENT),
    ]


def test_a_context_is_replaced_by_what_the_command_prints(make_desk: Any) -> None:
    desk = make_desk(transformation=Transformation("sed 's/a.example/%ioc %matchtype/'"))
    desk.report(line())
    assert desk.published[0].x_threatbus_sighting_context == {"q": "a.example LIVE"}


@pytest.mark.parametrize(
    "command", ["false", "echo no JSON", "/nowhere/command", "sleep 3600", "cat %ioc\0"]
)
def test_a_context_does_not_leave_without_its_command(
    make_desk: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(commands, "COMMAND_SECS", 0.2)
    desk = make_desk(transformation=Transformation(command))
    desk.report(line())
    (found,) = desk.published
    assert found.x_threatbus_sighting_context is None
    assert desk.counters["transformations_failed"] == 1


def test_a_command_gets_each_context(make_desk: Any, tmp_path: Path) -> None:
    desk = make_desk(sink=CommandSink(f"tee -a '{tmp_path}/seen it'"))
    desk.report(line(), line('{"n":2}'))
    assert (tmp_path / "seen it").read_text() == f'{EVENT}\n{{"n":2}}\n'
    assert desk.published == []
    assert desk.counters["sightings"] == 2


def test_a_sink_that_fails_is_counted(make_desk: Any) -> None:
    desk = make_desk(sink=CommandSink("false"))
    desk.report(line(), line())
    assert desk.counters["sink_failed"] == 2


def test_the_sink_stdout_prints_a_line_per_context(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    sink = make_sink("STDOUT")
    assert isinstance(sink, StandardOutput)
    sink.write(EVENT.encode())
    assert capfdbinary.readouterr().out == EVENT.encode() + b"\n"


def test_the_word_of_a_command_that_failed_is_passed_on() -> None:
    with pytest.raises(CommandFailed, match=r"ended with 2: .*nowhere"):
        CommandSink("ls /nowhere").write(b"{}")


def test_beyond_its_bounds_live_hits_are_lost_and_counted(
    make_desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting_module, "BOUNDS", Bounds(5))
    desk = make_desk()
    for _ in range(8):
        desk.hits.put_live(line())
    assert desk.counters["hits_lost"] == 3
    assert desk.hits.waiting == 5


def test_what_is_not_reported_at_the_end_is_counted(make_desk: Any) -> None:
    desk = make_desk(bounds=Bounds(1))
    for _ in range(3):
        desk.hits.put_live(line())
    desk.reporting.start()
    # The bus is away and the app has room for one; the second one waits for room.
    eventually(lambda: desk.attempts >= 4)
    assert desk.counters["sightings"] == 1
    assert desk.counters["hits_lost"] == 0
    desk.close()
    assert desk.counters["hits_lost"] == 2
