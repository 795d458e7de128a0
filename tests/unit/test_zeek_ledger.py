"""Which items stay in Zeek, and for which indicators: what the old script is told."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.documents import NOW
from hypothesis import given
from hypothesis import strategies as st
from threatbus_zeek.ledger import Ledger
from threatbus_zeek.mapping import Change
from threatbus_zeek.patterns import Item

A, B, C = (Item("DOMAIN", f"{letter}.example") for letter in "abc")


def add(indicator: str, *items: Item) -> Change:
    return Change(indicator, NOW, items)


def withdraw(indicator: str, *items: Item) -> Change:
    return Change(indicator, NOW, (), items)


def told(ledger: Ledger, *changes: Change) -> list[tuple[str, str, str]]:
    """What Zeek is told of the last of `changes`, as (operation, indicator, value)."""
    operations = []
    for change in changes:
        operations = ledger.apply(change)
    return [(kind, indicator, item.value) for kind, indicator, item in operations]


def test_an_indicator_adds_an_item_and_its_withdrawal_removes_it() -> None:
    ledger = Ledger(10)
    assert told(ledger, add("i", A)) == [("ADD", "i", "a.example")]
    assert told(ledger, withdraw("i", A)) == [("REMOVE", "i", "a.example")]
    assert len(ledger) == 0


def test_of_two_indicators_with_one_value_the_last_takes_the_item_along() -> None:
    ledger = Ledger(10)
    assert told(ledger, add("first", A), add("second", A), withdraw("first", A)) == []
    assert told(ledger, withdraw("second", A)) == [("REMOVE", "second", "a.example")]


def test_when_the_named_indicator_goes_zeek_names_the_one_that_stays() -> None:
    ledger = Ledger(10)
    operations = told(ledger, add("first", A), add("second", A), withdraw("second", A))
    assert operations == [("ADD", "first", "a.example")]


def test_case_makes_no_other_value() -> None:
    ledger = Ledger(10)
    shouted = Item("DOMAIN", "A.EXAMPLE")
    assert told(ledger, add("first", A), add("second", shouted), withdraw("first", A)) == []


def test_a_new_pattern_removes_the_old_items_and_adds_the_new_ones() -> None:
    ledger = Ledger(10)
    assert told(ledger, add("i", A, B), add("i", B, C)) == [
        ("REMOVE", "i", "a.example"),
        ("ADD", "i", "b.example"),
        ("ADD", "i", "c.example"),
    ]


def test_a_new_pattern_without_counterpart_removes_the_old_items() -> None:
    assert told(Ledger(10), add("i", A), add("i")) == [("REMOVE", "i", "a.example")]


def test_a_withdrawal_takes_the_items_that_were_added_whatever_it_says_itself() -> None:
    assert told(Ledger(10), add("i", A), withdraw("i", B)) == [("REMOVE", "i", "a.example")]


def test_an_indicator_of_an_earlier_bus_is_removed_by_its_own_pattern() -> None:
    assert told(Ledger(10), withdraw("i", A)) == [("REMOVE", "i", "a.example")]


def test_but_not_if_another_one_is_known_to_want_the_item() -> None:
    assert told(Ledger(10), add("known", A), withdraw("unknown", A)) == []


def test_the_least_recently_changed_are_forgotten() -> None:
    ledger = Ledger(2)
    told(ledger, add("1", A), add("2", B), add("1", A), add("3", C))
    assert (len(ledger), ledger.forgotten) == (2, 1)
    # Of 2, which is forgotten, its own pattern is all that is known.
    assert told(ledger, add("2", A)) == [("ADD", "2", "a.example")]
    assert ledger.forgotten == 2


indicators = st.sampled_from(["1", "2", "3"])
items = st.lists(st.sampled_from([A, B, C]), unique=True, max_size=3)


@given(st.lists(st.tuples(indicators, items)))
def test_zeek_holds_the_items_of_all_indicators_and_names_one_of_each(
    history: Sequence[tuple[str, list[Item]]],
) -> None:
    ledger = Ledger(10)
    wanted: dict[str, set[Item]] = {}
    zeek: dict[Item, str] = {}
    for indicator, now in history:
        wanted[indicator] = set(now)
        for kind, named, item in ledger.apply(add(indicator, *now)):
            if kind == "ADD":
                zeek[item] = named
            else:
                zeek.pop(item, None)
        assert set(zeek) == set().union(*wanted.values())
        assert all(item in wanted[named] for item, named in zeek.items())
