"""The events between Zeek and the bus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from threatbus_zeek.events import (
    MAX_TOPIC_LENGTH,
    BadEvent,
    Join,
    Protocol,
    Received,
    Sighting,
    Subscribe,
    Unsubscribe,
    new_p2p_topic,
    unpack,
)
from threatbus_zeek.mapping import Change
from threatbus_zeek.patterns import Item
from threatbus_zeek.values import Count, Event

PROTOCOL = Protocol("Tenzir")
DAY = timedelta(days=1)
TIME = datetime(2026, 1, 2, tzinfo=UTC)
SUFFIX = "abcdefghij"


def read(name: str, *args: Any) -> Any:
    return PROTOCOL.read(Event(f"Tenzir::{name}", args))


@pytest.mark.parametrize("days", [30, -30])
def test_users_write_a_snapshot_with_either_sign(days: int) -> None:
    wish = read("subscribe", "stix2/indicator", timedelta(days=days))
    assert wish == Subscribe("stix2/indicator", timedelta(days=30))


def test_a_snapshot_without_end_is_bounded() -> None:
    assert read("subscribe", "t", timedelta.max).snapshot < timedelta(days=40_000)
    assert read("subscribe", "t", timedelta.min).snapshot < timedelta(days=40_000)


def test_the_other_wishes_of_zeeks_are_read() -> None:
    assert read("unsubscribe", "t") == Unsubscribe("t")
    assert read("received", "t", Count(5)) == Received("t", 5)
    assert read("join", f"t{SUFFIX}", "t", DAY, "a\nb") == Join(f"t{SUFFIX}", "t", DAY, "a?b")
    assert read("sighting", TIME, "id", {"a": 1}) == Sighting(TIME, "id", {"a": 1})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("subscribe", ()),
        ("subscribe", ("t",)),
        ("subscribe", ("t", 30)),
        ("subscribe", (5, DAY)),
        ("subscribe", ("t", DAY, "more")),
        ("unsubscribe", (None,)),
        ("received", ("t", True)),
        ("received", ("t", "5")),
        ("join", ("t", "t", DAY, "name")),
        ("join", ("other" + SUFFIX, "t", DAY, "name")),
        ("join", ("t" + SUFFIX, "t", DAY, 5)),
        ("sighting", (TIME, "id")),
        ("sighting", (TIME, "id", "context")),
        ("sighting", ("now", "id", {})),
        ("sighting", (TIME, None, {})),
        ("subscribe", ("x" * (MAX_TOPIC_LENGTH + 1), DAY)),
        ("subscribe", ("threatbus/manage", DAY)),
        ("unheard_of", ()),
    ],
)
def test_what_is_not_right_is_refused_in_one_short_line(name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(BadEvent) as raised:
        read(name, *args)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_another_namespace_is_refused_and_named() -> None:
    with pytest.raises(BadEvent, match=r"Tenzir.*Other::subscribe"):
        PROTOCOL.read(Event("Other::subscribe", ("t", DAY)))
    assert Protocol("Other").read(Event("Other::subscribe", ("t", DAY)))


def test_events_of_the_buss_own_are_passed_over() -> None:
    assert read("subscription_acknowledged", "t") is None
    assert read("intel_batch", 1, 2, 3) is None


@pytest.mark.parametrize("more", [(), ({"metadata": 1},)])
def test_an_event_is_unpacked_with_or_without_metadata(more: tuple[Any, ...]) -> None:
    assert unpack((Count(1), Count(1), ("A::b", (1, 2), *more))) == Event("A::b", (1, 2))


@pytest.mark.parametrize(
    "value",
    [None, "text", 5, (), (1,), (1, 1, ()), (1, 1, ("name",)), (1, 1, (5, ())), (1, 1, ("n", "a"))],
)
def test_what_is_no_event_is_refused(value: Any) -> None:
    with pytest.raises(BadEvent):
        unpack(value)


def test_a_point_to_point_topic_is_the_topic_and_ten_random_letters() -> None:
    topic = new_p2p_topic("stix2/indicator")
    suffix = topic.removeprefix("stix2/indicator")
    assert len(suffix) == 10
    assert suffix.isalpha()
    assert suffix.islower()
    assert topic != new_p2p_topic("stix2/indicator")


def test_the_old_script_gets_a_record_of_five() -> None:
    event = PROTOCOL.intel("ADD", TIME, "indicator--1", Item("ADDR", "192.0.2.1"))
    assert event == Event("Tenzir::intel", ((TIME, "indicator--1", "ADDR", "192.0.2.1", "ADD"),))


def test_a_time_that_zeek_cannot_hold_becomes_one_that_it_can() -> None:
    for year in (1, 9999):
        moment = datetime(year, 1, 1, tzinfo=UTC)
        (record,) = PROTOCOL.intel("ADD", moment, "id", Item("ADDR", "192.0.2.1")).args
        assert 1677 < record[0].year < 2263


def test_our_script_gets_numbered_batches_of_indicators() -> None:
    items = (Item("ADDR", "192.0.2.1"), Item("DOMAIN", "a.example"))
    changes = [Change("id1", TIME, items, (), "desc", "misp", 50), Change("id2", TIME, ())]
    event = PROTOCOL.batch("p2p", 7, changes)
    assert event == Event(
        "Tenzir::intel_batch",
        ("p2p", 7, ((TIME, "id1", items, "misp", "desc", 50), (TIME, "id2", (), "", "", None))),
    )
    assert isinstance(event.args[1], Count)
    assert isinstance(event.args[2][0][5], Count)
