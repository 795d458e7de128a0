"""Which indicators vast-threatbus looks for, and what is told to table and queries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from helpers.documents import encode, indicator
from vast_threatbus.registry import SLACK, Change, Registry
from vast_threatbus.retro import Backlog

from threatbus.client import Indicator, read
from threatbus.messages import INDICATOR, Message

# Later than it is while the tests run, so that nothing expires by the clock on the wall.
NOW = datetime.now(UTC) + timedelta(days=1)


def domain(name: str, **more: object) -> Indicator:
    found = read(Message(INDICATOR, encode(indicator(f"[domain-name:value = '{name}']", **more))))
    assert isinstance(found, Indicator)
    return found


def until(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")[:23] + "Z"


def test_a_new_indicator_is_new_once() -> None:
    registry = Registry(10)
    first = domain("a.example")
    assert registry.learn(first) == (Change.NEW, {"a.example"})
    assert registry.learn(first) == (Change.NONE, set())
    assert registry.ids("a.example") == [first.id]
    assert len(registry) == 1


def test_a_withdrawn_indicator_is_gone_and_its_key_with_the_last_one() -> None:
    registry = Registry(10)
    first, second = domain("a.example"), domain("a.example")
    registry.learn(first)
    registry.learn(second)
    first.x_threatbus_update = "REMOVE"
    assert registry.learn(first) == (Change.GONE, {"a.example"})
    assert registry.ids("a.example") == [second.id]
    second.revoked = True
    assert registry.learn(second) == (Change.GONE, {"a.example"})
    assert registry.keys() == []
    assert registry.learn(second) == (Change.GONE, set())


def test_a_changed_value_concerns_both_keys() -> None:
    registry = Registry(10)
    first = domain("a.example")
    registry.learn(first)
    first.pattern = "[domain-name:value = 'b.example']"
    assert registry.learn(first) == (Change.NEW, {"a.example", "b.example"})
    assert registry.keys() == ["b.example"]


def test_an_indicator_that_cannot_be_looked_for_any_more_is_gone() -> None:
    registry = Registry(10)
    first = domain("a.example")
    registry.learn(first)
    first.pattern = "[file:name = 'a']"
    assert registry.learn(first) == (Change.GONE, {"a.example"})
    assert registry.learn(first) == (Change.LEFT_OUT, set())


def test_more_than_the_limit_are_left_out() -> None:
    registry = Registry(1)
    first = domain("a.example")
    registry.learn(first)
    assert registry.learn(domain("b.example")) == (Change.TOO_MANY, set())
    first.pattern = "[domain-name:value = 'c.example']"
    assert registry.learn(first)[0] is Change.NEW


def test_an_indicator_expires_at_its_time_and_not_before() -> None:
    registry = Registry(10)
    registry.learn(first := domain("a.example", valid_until=until(60)))
    assert registry.expire(NOW + timedelta(seconds=59)) == set()
    assert registry.current("a.example", NOW) == [(first.id, registry.known([first.id])[first.id])]
    assert registry.current("a.example", NOW + timedelta(seconds=61)) == []
    assert registry.expire(NOW + timedelta(seconds=61)) == {"a.example"}


def test_an_indicator_that_was_prolonged_stays() -> None:
    registry = Registry(10)
    first = domain("a.example", valid_until=until(60))
    registry.learn(first)
    first.valid_until = NOW + timedelta(seconds=120)
    assert registry.learn(first) == (Change.NONE, set())
    assert registry.expire(NOW + timedelta(seconds=61)) == set()
    assert registry.expire(NOW + timedelta(seconds=121)) == {"a.example"}


def test_an_indicator_that_is_prolonged_for_ever_takes_no_memory_for_it() -> None:
    registry = Registry(10)
    first = domain("a.example", valid_until=until(60))
    for seconds in range(3 * SLACK):
        first.valid_until = NOW + timedelta(seconds=60 + seconds)
        registry.learn(first)
    assert len(registry._expiries) <= SLACK + 2


def test_what_was_doubted_and_is_not_named_again_is_forgotten_in_time_and_nothing_else() -> None:
    registry = Registry(10)
    unnamed, named, later = domain("a.example"), domain("b.example"), domain("c.example")
    registry.learn(unnamed)
    registry.learn(named)
    registry.doubt(NOW + timedelta(days=1))
    registry.learn(named)
    registry.learn(later)
    assert registry.forget_doubted(NOW + timedelta(hours=23)) == (0, set())
    assert registry.forget_doubted(NOW + timedelta(hours=25)) == (1, {"a.example"})
    assert sorted(registry.keys()) == ["b.example", "c.example"]
    assert registry.forget_doubted(NOW + timedelta(days=9)) == (0, set())


def test_each_doubt_has_its_own_time() -> None:
    registry = Registry(10)
    for days, name in enumerate(("a.example", "b.example", "c.example"), start=1):
        registry.learn(domain(name))
        registry.doubt(NOW + timedelta(days=days))
    assert registry.forget_doubted(NOW + timedelta(days=1)) == (1, {"a.example"})
    assert registry.forget_doubted(NOW + timedelta(days=5)) == (2, {"b.example", "c.example"})


def test_a_bus_that_comes_and_goes_makes_no_list_of_it() -> None:
    registry = Registry(10)
    registry.learn(domain("a.example"))
    for second in range(600):
        registry.doubt(NOW + timedelta(seconds=second))
    assert len(registry._doubted) == 10
    registry.learn(domain("b.example"))
    assert registry.forget_doubted(NOW + timedelta(days=1)) == (1, {"a.example"})


def test_an_indicator_waits_for_its_query_once() -> None:
    backlog = Backlog()
    backlog.add(["a", "b"])
    backlog.add(["b", "c"])
    assert len(backlog) == 3
    taken = backlog.take()
    backlog.add(["d"])
    backlog.give_back(taken)
    assert backlog.take() == ["a", "b", "c", "d"]
    backlog.close()
    assert backlog.take() == []
