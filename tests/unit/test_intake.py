"""The intake: ids, back-pressure, refusal at the end, and what old plugins put on it."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stix2
from helpers.documents import indicator, indicator_message, indicators, stix_object
from helpers.waiting import eventually, finished, in_threads, wait_for

from threatbus.errors import Overflow
from threatbus.gate import Gate
from threatbus.intake import Intake
from threatbus.messages import Message
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.rejects import RejectStore


class Parts:
    """An intake with one inq and its surroundings."""

    def __init__(self, directory: Path, bounds: Bounds | None = None) -> None:
        self.gate = Gate()
        self.rejects = RejectStore(directory, 100, 1 << 20)
        self.intake = Intake(self.gate, self.rejects)
        self.inq = MessageQueue("inq", bounds, OverflowPolicy.BLOCK, gate=self.gate)
        self.intake.attach(self.inq)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> Parts:
    """An intake whose inq has no room."""
    found = Parts(tmp_path, Bounds(2))
    found.intake.put_many(indicators(2))
    return found


def test_each_message_gets_an_id_of_its_own_in_the_order_of_acceptance(parts: Parts) -> None:
    parts.intake.put_many(indicators(3))
    parts.intake.put_many(indicators(2))
    assert [message.id for message in parts.inq.get_many(10)] == [1, 2, 3, 4, 5]
    assert parts.intake.accepted == 5


def test_ids_are_unique_when_many_threads_put(parts: Parts) -> None:
    def put() -> None:
        for _ in range(50):
            parts.intake.put_many(indicators(3))

    in_threads(*[put] * 4)
    ids = [message.id for message in parts.inq.get_many(10_000)]
    assert sorted(ids, key=int) == list(range(1, 601))
    assert parts.intake.accepted == 600


def test_with_several_backbones_each_sees_every_message_under_the_same_id(parts: Parts) -> None:
    other = MessageQueue("other inq")
    parts.intake.attach(other)
    parts.intake.put_many(indicators(3))
    assert parts.inq.get_many(10) == other.get_many(10)


def test_a_backbone_that_fails_costs_the_other_nothing(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the backbone has a bug")

    failing, other = MessageQueue("failing"), MessageQueue("other")
    failing.consume(fail)
    parts.intake.attach(failing)
    parts.intake.attach(other)
    batch = indicators(3)
    parts.intake.put_many(batch)
    assert other.get_many(10) == batch
    assert "the backbone has a bug" in caplog.text


def test_a_source_waits_while_inq_is_full(full: Parts) -> None:
    thread = threading.Thread(target=full.intake.put_many, args=(indicators(1),), daemon=True)
    thread.start()
    assert not full.intake.writable
    assert full.intake.full()
    assert not full.inq.get_many(2)[2:]
    finished(thread)
    assert full.inq.qsize() == 1
    assert full.intake.writable


def test_a_loop_that_must_not_wait_is_not_held_up_and_is_told_when_there_is_room(
    full: Parts,
) -> None:
    told = threading.Event()
    full.intake.on_writable(told.set)
    full.intake.put_many(indicators(1), wait=False)
    assert full.inq.qsize() == 3
    assert not told.is_set()
    full.inq.get_many(10)
    wait_for(told)


def test_put_waits_no_longer_than_it_was_told(full: Parts) -> None:
    item = stix_object(indicator())
    with pytest.raises(queue.Full):
        full.intake.put(item, timeout=0.01)
    with pytest.raises(queue.Full):
        full.intake.put(item, block=False)
    with pytest.raises(queue.Full):
        full.intake.put_nowait(item)
    assert full.intake.accepted == 2


def test_put_takes_what_old_plugins_put(parts: Parts) -> None:
    parts.intake.put(stix2.Indicator(pattern="[file:name = 'x']", pattern_type="stix"))
    found: Any = parts.inq.get(timeout=1)
    assert found.pattern == "[file:name = 'x']"


def test_an_object_that_comes_back_is_a_new_message_with_the_same_bytes(parts: Parts) -> None:
    message = indicator_message()
    parts.intake.put_many([message])
    parts.intake.put(message.to_object())
    first, second = parts.inq.get_many(10)
    assert first is message
    assert (first.id, second.id) == (1, 2)
    assert second.data is message.data


class Secretive:
    def __repr__(self) -> str:
        raise RuntimeError("shown to nobody")


@pytest.mark.parametrize(
    "item",
    [
        None,
        {"type": "indicator"},
        "\ud800",
        stix2.v21.Malware(name="malware", is_family=False),
        stix2.v20.Indicator(labels=["x"], pattern="[file:name = 'x']"),
        Secretive(),
    ],
)
def test_what_is_no_message_goes_to_the_reject_store_and_raises_nothing(
    parts: Parts, item: object
) -> None:
    parts.intake.put(item)
    assert parts.rejects.total == 1
    assert parts.inq.empty()
    assert parts.intake.accepted == 0
    [(origin, reason)] = parts.rejects.counts
    assert origin == "inq"
    assert f"a {type(item).__name__} is no STIX 2.1" in reason


def test_rejected_custom_bytes_are_those_of_the_object(parts: Parts) -> None:
    parts.intake.put(stix_object(indicator(x_own=[1])))
    [message] = parts.inq.get_many(1)
    assert json.loads(message.data)["x_own"] == [1]


def test_once_closed_it_takes_nothing_and_says_so_to_who_waits(full: Parts) -> None:
    raised: list[BaseException] = []

    def put() -> None:
        try:
            full.intake.put_many(indicators(3))
        except Overflow as error:
            raised.append(error)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    full.intake.close()
    finished(thread)
    assert "stopping" in str(raised[0])
    assert full.intake.refused == 3
    assert not full.intake.writable


def test_once_closed_it_refuses_old_plugins_with_one_line(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.intake.close()
    for _ in range(20):
        parts.intake.put(stix_object(indicator()))
    assert caplog.text.count("is not taken") == 1
    assert parts.intake.refused == 20


def test_closing_waits_until_what_was_accepted_is_handed_on(parts: Parts) -> None:
    entered, go_on = threading.Event(), threading.Event()
    got: list[Message] = []

    def slow(batch: Sequence[Message], _: int) -> None:
        entered.set()
        wait_for(go_on)
        got.extend(batch)

    parts.inq.consume(slow)
    source = threading.Thread(target=parts.intake.put_many, args=(indicators(2),), daemon=True)
    source.start()
    wait_for(entered)
    parts.intake.close(timeout=0.01)
    assert got == [], "a time limit holds"
    closing = threading.Thread(target=parts.intake.close, daemon=True)
    closing.start()
    eventually(lambda: not parts.intake.writable)
    assert closing.is_alive()
    go_on.set()
    finished(closing)
    assert len(got) == 2


def test_join_waits_for_all_backbones_together(parts: Parts) -> None:
    other = MessageQueue("other inq")
    parts.intake.attach(other)
    parts.intake.put_many(indicators(1))
    parts.inq.get_many(1)
    assert not parts.intake.join(0.01)
    other.get_many(1)
    assert parts.intake.join(0.01)
    assert parts.intake.empty()
    assert parts.intake.qsize() == 0
    parts.intake.task_done()
