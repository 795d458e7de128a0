"""The topic table: who gets what, once and in order, also while subscriptions change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from helpers.documents import indicator_message, indicators, sighting_message
from helpers.waiting import in_threads

from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_REQUEST, Message
from threatbus.queues import size_of
from threatbus.routing import TopicTable


class Outlet:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.batches = 0

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        assert size is None or size == size_of(batch)
        self.got.extend(batch)
        self.batches += 1


class Failing:
    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        raise RuntimeError("the outlet has a bug")


def test_a_topic_matches_every_message_topic_that_begins_with_it() -> None:
    table = TopicTable()
    message = indicator_message()
    topics = ["", "stix2", "stix2/", "stix2/indi", INDICATOR, "stix2/indicators", SIGHTING, "x"]
    outlets = {topic: Outlet() for topic in topics}
    for topic, outlet in outlets.items():
        table.subscribe(topic, outlet)
    table.deliver([message])
    matching = [topic for topic, outlet in outlets.items() if outlet.got]
    assert matching == ["", "stix2", "stix2/", "stix2/indi", INDICATOR]


@pytest.mark.parametrize("make", [indicator_message, sighting_message])
def test_overlapping_topics_give_one_copy(make: Callable[[], Message]) -> None:
    table = TopicTable()
    outlet = Outlet()
    for topic in ("stix2", INDICATOR, "stix2/"):
        table.subscribe(topic, outlet)
    batch = [indicator_message(), make(), indicator_message()]
    table.deliver(batch)
    assert outlet.got == batch


def test_the_order_within_a_mixed_batch_is_kept_and_each_outlet_is_called_once() -> None:
    table = TopicTable()
    everything, some = Outlet(), Outlet()
    table.subscribe("stix2", everything)
    table.subscribe(SIGHTING, some)
    batch = [(sighting_message if n % 3 else indicator_message)(name=str(n)) for n in range(9)]
    batch.append(Message(SNAPSHOT_REQUEST, b"{}"))
    table.deliver(batch)
    assert everything.got == batch[:-1]
    assert some.got == [message for message in batch if message.topic == SIGHTING]
    assert everything.batches == some.batches == 1


def test_subscribing_twice_and_unsubscribing_what_is_not_there_change_nothing() -> None:
    table = TopicTable()
    outlet = Outlet()
    table.subscribe("stix2", outlet)
    table.subscribe("stix2", outlet)
    table.unsubscribe("other", outlet)
    table.deliver(indicators(1))
    assert len(outlet.got) == 1
    table.unsubscribe("stix2", outlet)
    table.deliver(indicators(1))
    assert len(outlet.got) == 1


def test_ending_one_of_two_overlapping_subscriptions_leaves_the_other() -> None:
    table = TopicTable()
    outlet = Outlet()
    table.subscribe("stix2", outlet)
    table.subscribe(INDICATOR, outlet)
    table.unsubscribe("stix2", outlet)
    batch = [indicator_message(), sighting_message()]
    table.deliver(batch)
    assert outlet.got == batch[:1]


def test_one_outlet_that_fails_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = TopicTable()
    before, after = Outlet(), Outlet()
    table.subscribe("stix2", before)
    table.subscribe("stix2", Failing())
    table.subscribe("stix2", after)
    for _ in range(50):
        table.deliver(indicators(2))
    assert len(before.got) == len(after.got) == 100
    assert "the outlet has a bug" in caplog.text
    assert caplog.text.count("2 messages not delivered") == 1, "it is not logged each time"


def test_a_subscription_of_many_topics_is_forgotten_with_its_last_message() -> None:
    table = TopicTable()
    for _ in range(100):
        outlet = Outlet()
        table.subscribe("stix2", outlet)
        table.deliver(indicators(1))
        table.unsubscribe("stix2", outlet)
    assert table._subscriptions == {}
    assert table._matches == {}


def test_a_change_in_the_middle_of_a_look_up_is_not_forgotten() -> None:
    table = TopicTable()
    early, late = Outlet(), Outlet()
    table.subscribe("stix2", early)

    class Interrupted(dict[Any, Any]):
        """Has somebody subscribe while a delivery reads the subscriptions."""

        def items(self) -> Any:
            found = list(super().items())
            if table._subscriptions is self:
                table.subscribe("stix2", late)
            return found

    table._subscriptions = Interrupted(table._subscriptions)
    for message in indicators(2):
        table.deliver([message])
    assert len(early.got) == 2
    assert len(late.got) == 1


def test_a_steady_outlet_misses_nothing_while_others_come_and_go() -> None:
    table = TopicTable()
    steady = Outlet()
    table.subscribe("stix2", steady)
    done = threading.Event()

    def deliver() -> None:
        for n in range(3000):
            table.deliver([Message(INDICATOR, str(n).encode())])
        done.set()

    def change() -> None:
        while not done.is_set():
            outlet = Outlet()
            table.subscribe(INDICATOR, outlet)
            table.unsubscribe(INDICATOR, outlet)
            numbers = [int(message.data) for message in outlet.got]
            assert not numbers or numbers == list(range(numbers[0], numbers[-1] + 1))

    in_threads(deliver, change, change)
    assert [message.data for message in steady.got] == [str(n).encode() for n in range(3000)]
