"""The account that chaos keeps: nothing lost, repeated or out of order goes unseen."""

from __future__ import annotations

import time

import pytest

from chaos.ledger import Ledger, Number, Sheet
from chaos.room import Broker, Room
from chaos.scenario import Scenario, judge, play


class Quiet(Scenario):
    name = "quiet"
    fault = "none"

    def run(self, room: Room) -> None:
        raise OSError("a part of the scenario has failed")


@pytest.fixture
def room() -> Room:
    return Room("quiet", 1, 1.0, Broker())


def sent(room: Room, count: int) -> list[Number]:
    return [room.ledger.sends("p") for _ in range(count)]


def note(sheet: Sheet, *numbers: Number) -> None:
    for number in numbers:
        sheet.note(number)


def verdict(room: Room) -> str:
    return judge(Quiet(), room, 0.0).verdict


def test_what_all_get_once_and_in_order_holds(room: Room) -> None:
    sheets = [room.ledger.opens("a"), room.ledger.opens("b")]
    numbers = sent(room, 5)
    for sheet in sheets:
        note(sheet, *numbers)
    outcome = judge(Quiet(), room, 0.0)
    assert (outcome.sent, outcome.owed, outcome.delivered, outcome.lost) == (5, 10, 10, 0)
    assert outcome.verdict == "held"


def test_one_message_that_one_reader_lacks_is_lost(room: Room) -> None:
    full, lacking = room.ledger.opens("a"), room.ledger.opens("b")
    numbers = sent(room, 5)
    note(full, *numbers)
    note(lacking, *numbers[:3], numbers[4])
    assert verdict(room).startswith("BROKEN: lost 1")


def test_a_second_copy_is_repeated_unless_it_may_come(room: Room) -> None:
    sheet = room.ledger.opens("a")
    numbers = sent(room, 3)
    note(sheet, *numbers, numbers[0])
    assert verdict(room) == "BROKEN: repeated 1"


def test_a_message_after_a_later_one_is_out_of_order(room: Room) -> None:
    sheet = room.ledger.opens("a")
    first, second, third = sent(room, 3)
    note(sheet, first, third, second)
    assert verdict(room) == "BROKEN: out of order 1"


def test_a_message_that_nobody_sent_is_told(room: Room) -> None:
    sheet = room.ledger.opens("a")
    note(sheet, *sent(room, 1), Number("stranger", 0))
    assert "1 that nobody sent" in verdict(room)


def test_what_is_lost_within_an_excluded_span_is_counted_and_no_breach(room: Room) -> None:
    room.ledger.opens("a")
    began = time.monotonic()
    sent(room, 2)
    room.ledger.exclude(began, time.monotonic())
    outcome = judge(Quiet(), room, 0.0)
    assert (outcome.lost, outcome.held) == (2, True)
    sent(room, 1)
    assert verdict(room).startswith("BROKEN: lost 1")


def test_the_time_to_recover_is_that_of_the_slowest_reader() -> None:
    ledger = Ledger()
    quick, slow = ledger.opens("a"), ledger.opens("b")
    before = ledger.sends("p")
    ledger.over_at = time.monotonic()
    after = ledger.sends("p")
    note(quick, before, after)
    assert ledger.recovery() is None, "the slow one has nothing that was sent after the fault"
    note(slow, before, after)
    assert ledger.recovery() == slow.arrived[after] - ledger.over_at


def test_nothing_at_all_is_no_success(room: Room) -> None:
    assert "nothing was sent" in verdict(room)


def test_a_scenario_that_fails_is_broken() -> None:
    outcome = play(Quiet(), 1, 1.0, Broker())
    assert not outcome.held
    assert "a part of the scenario has failed" in outcome.verdict
