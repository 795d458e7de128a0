"""What the bus owes each subscribed Zeek, and when."""

from __future__ import annotations

from typing import Any

from helpers.documents import NOW
from threatbus_zeek.events import Protocol
from threatbus_zeek.mapping import Change
from threatbus_zeek.patterns import Item
from threatbus_zeek.subscriptions import (
    EXPECTED_SECS,
    RECENT_SECS,
    RESEND_SECS,
    SETTLE_SECS,
    WINDOW,
    BatchSubscription,
    PlainSubscription,
)

from threatbus.queues import MessageQueue

START = 1000.0


def batch_subscription() -> BatchSubscription:
    return BatchSubscription(
        "p2p", "stix2", "zeek", MessageQueue("outq"), START, protocol=Protocol("Tenzir")
    )


def plain_subscription(peers: set[str]) -> PlainSubscription:
    return PlainSubscription(
        "p2p",
        "stix2",
        "zeek",
        MessageQueue("outq"),
        START,
        protocol=Protocol("Tenzir"),
        capacity=10,
        peers=peers,
    )


def change(number: int = 1) -> Change:
    return Change(f"indicator--{number}", NOW, (Item("ADDR", f"192.0.2.{number}"),))


def sent(subscription: BatchSubscription) -> list[int]:
    """Publish what is in the outbox; gives the numbers of the batches."""
    numbers = [int(event.args[1]) for event in subscription.outbox]
    subscription.outbox.clear()
    return numbers


def filled(subscription: BatchSubscription, now: float = START) -> list[int]:
    while subscription.wants_more(now):
        subscription.add([change()], now)
    return sent(subscription)


def test_nothing_is_sent_before_zeek_says_that_it_receives() -> None:
    subscription = batch_subscription()
    assert not subscription.wants_more(START)
    subscription.received(0, START)
    assert subscription.wants_more(START)


def test_so_many_batches_may_be_on_their_way_and_no_more() -> None:
    subscription = batch_subscription()
    subscription.received(0, START)
    assert filled(subscription) == list(range(1, WINDOW + 1))
    assert subscription.waiting == WINDOW
    subscription.received(2, START)
    assert filled(subscription) == [WINDOW + 1, WINDOW + 2]


def test_after_a_break_what_zeek_has_not_had_is_sent_again_before_anything_else() -> None:
    subscription = batch_subscription()
    subscription.received(0, START)
    filled(subscription)
    subscription.interrupt()
    assert not subscription.wants_more(START)
    subscription.received(5, START)
    assert sent(subscription) == list(range(6, WINDOW + 1))
    assert filled(subscription)[0] == WINDOW + 1


def test_a_batch_that_zeek_says_it_lacks_is_sent_again_after_a_while() -> None:
    subscription = batch_subscription()
    subscription.received(0, START)
    filled(subscription)
    subscription.received(0, START + RESEND_SECS / 2)
    assert sent(subscription) == []
    subscription.received(0, START + RESEND_SECS + 0.1)
    assert sent(subscription) == list(range(1, WINDOW + 1))
    # And not once more at the next sign of life.
    subscription.received(0, START + RESEND_SECS + 0.2)
    assert sent(subscription) == []


def test_indicators_that_are_none_of_zeeks_make_no_batch() -> None:
    subscription = batch_subscription()
    subscription.received(0, START)
    subscription.add([], START)
    assert sent(subscription) == []


def test_the_old_script_has_time_to_subscribe_to_its_topic() -> None:
    subscription = plain_subscription({"peer"})
    assert not subscription.wants_more(START + SETTLE_SECS / 2)
    assert subscription.wants_more(START + SETTLE_SECS)


def test_nothing_is_taken_for_an_old_script_that_is_gone() -> None:
    assert not plain_subscription(set()).wants_more(START + SETTLE_SECS)


def test_the_old_script_gets_an_event_per_item() -> None:
    subscription = plain_subscription({"peer"})
    subscription.add([change(1), change(2)], START)
    records: list[Any] = [event.args[0] for event in subscription.outbox]
    assert [record[1:] for record in records] == [
        ("indicator--1", "ADDR", "192.0.2.1", "ADD"),
        ("indicator--2", "ADDR", "192.0.2.2", "ADD"),
    ]


def test_when_a_connection_may_have_broken_what_zeek_lacks_is_sent_again_at_once() -> None:
    subscription = batch_subscription()
    subscription.received(0, START)
    filled(subscription)
    subscription.doubt()
    # This one still gets them: nothing is to be sent twice.
    subscription.received(3, START)
    assert sent(subscription) == []
    subscription.received(3, START)
    assert sent(subscription) == list(range(4, WINDOW + 1))


def test_the_old_script_gets_again_what_was_on_its_way_when_the_connection_broke() -> None:
    subscription = plain_subscription({"peer"})
    subscription.add([change(1), change(2), change(3)], START)
    events = list(subscription.outbox)
    subscription.outbox.clear()
    subscription.published(events[0], START - RECENT_SECS - 1)
    subscription.published(events[1], START)
    subscription.published(events[2], START)
    subscription.lose("peer", START)
    subscription.find_again("peer", START + 60)
    assert list(subscription.outbox) == events[1:]
    # Once: it has had time to arrive when the connection breaks the next time.
    subscription.outbox.clear()
    subscription.lose("peer", START + 61)
    subscription.find_again("peer", START + 62)
    assert not subscription.outbox


def test_a_zeek_that_asks_again_after_a_break_is_known_for_a_while() -> None:
    subscription = plain_subscription({"peer"})
    assert not subscription.is_meant_by("stix2", START)
    subscription.lose("peer", START)
    assert subscription.has_lost("peer")
    subscription.find_again("peer", START)
    assert subscription.is_meant_by("stix2", START + EXPECTED_SECS / 2)
    assert not subscription.is_meant_by("stix2/indicator", START + EXPECTED_SECS / 2)
    assert not subscription.is_meant_by("stix2", START + EXPECTED_SECS)
    subscription.begin_again(START + 1)
    assert not subscription.is_meant_by("stix2", START + 1)
