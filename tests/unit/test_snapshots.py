"""Snapshots: who is asked, who gets the answers, when they are forgotten."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from helpers.documents import (
    encode,
    envelope_message,
    indicator,
    indicators,
    request_message,
    sighting,
    stix_object,
)
from helpers.waiting import Clock, eventually, finished, wait_for

from threatbus import snapshots as module
from threatbus.data import MessageType, SnapshotEnvelope, SnapshotRequest
from threatbus.messages import INDICATOR, SNAPSHOT_ENVELOPE, SNAPSHOT_REQUEST, Message, RequestView
from threatbus.queues import MessageQueue
from threatbus.snapshots import SnapshotAnswerer, Snapshots, covered_types
from threatbus.subscribers import Subscriber

DAY = timedelta(days=1)


class Parts:
    """The snapshots of a node with two subscribers, one of which asks."""

    def __init__(self, *, several_backbones: bool = False) -> None:
        self.clock = Clock()
        self.asking, self.other = (
            Subscriber(name, MessageQueue(name), several_backbones=False, clock=self.clock)
            for name in ("asking", "other")
        )
        self.snapshots = Snapshots(
            lambda: [self.asking, self.other],
            60,
            several_backbones=several_backbones,
            clock=self.clock,
        )

    def open(self, *topics: str) -> list[str]:
        opened = self.snapshots.open(self.asking, topics or ("stix2",), DAY)
        return [snapshot_id for snapshot_id, _ in opened]


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.mark.parametrize(
    ("topics", "kinds"),
    [
        (["stix2"], [MessageType.INDICATOR, MessageType.SIGHTING]),
        (["stix2/indicator"], [MessageType.INDICATOR]),
        (["stix2/sighting", "x"], [MessageType.SIGHTING]),
        (["stix2/", "stix2/sighting"], [MessageType.INDICATOR, MessageType.SIGHTING]),
        (["threatbus/snapshotrequest"], []),
        ([], []),
    ],
)
def test_one_snapshot_per_type_that_the_topics_cover(
    topics: list[str], kinds: list[MessageType]
) -> None:
    assert covered_types(topics) == kinds


def test_each_type_has_an_id_of_its_own_and_a_request_in_the_shape_of_the_protocol(
    parts: Parts,
) -> None:
    opened = parts.snapshots.open(parts.asking, ["stix2"], DAY)
    assert len({snapshot_id for snapshot_id, _ in opened}) == 2
    for (snapshot_id, message), kind in zip(opened, MessageType, strict=True):
        assert message.topic == SNAPSHOT_REQUEST
        view = msgspec.json.decode(message.data, type=RequestView)
        assert view.to_request() == SnapshotRequest(kind, snapshot_id, DAY)


def test_a_type_is_not_asked_for_again_while_its_snapshot_is_open(parts: Parts) -> None:
    parts.open("stix2/indicator")
    [(_, request)] = parts.snapshots.open(parts.asking, ["stix2"], DAY)
    assert msgspec.json.decode(request.data, type=RequestView).snapshot_type == 2


def test_the_requester_is_never_asked_and_everybody_else_is(parts: Parts) -> None:
    [(_, request)] = parts.snapshots.open(parts.asking, ["stix2/indicator"], DAY)
    parts.snapshots.put_many([request])
    assert parts.asking.queue.empty()
    assert parts.other.queue.get_many(10) == [request]


def test_a_request_of_another_node_is_for_everybody(parts: Parts) -> None:
    request = request_message(MessageType.SIGHTING, "of another node")
    parts.snapshots.put_many([request])
    assert parts.asking.queue.get_many(10) == parts.other.queue.get_many(10) == [request]


def test_an_answer_reaches_the_requester_alone_as_an_ordinary_message(parts: Parts) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    body = indicator()
    parts.snapshots.put_many([envelope_message(snapshot_id, body)])
    [message] = parts.asking.queue.get_many(10)
    assert message.topic == INDICATOR
    assert msgspec.json.decode(message.data) == body
    assert parts.other.queue.empty()


def test_the_bytes_of_a_body_are_not_touched(parts: Parts) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    body = b'{ "type" :"indicator",  "id":"indicator--1", "n": 1.00 }'
    data = b'{"type":"snapshotenvelope","snapshot_type":1,"snapshot_id":"%s","body":%s}'
    parts.snapshots.put_many([Message(SNAPSHOT_ENVELOPE, data % (snapshot_id.encode(), body))])
    assert [message.data for message in parts.asking.queue.get_many(10)] == [body]


def test_plain_objects_of_an_old_backbone_are_taken_too(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    found = stix_object(indicator())
    parts.snapshots.put(SnapshotEnvelope(MessageType.INDICATOR, snapshot_id, found))
    parts.snapshots.put(SnapshotRequest(MessageType.INDICATOR, "other", DAY))
    parts.snapshots.put("nonsense")
    assert parts.asking.queue.qsize() == 2
    assert parts.other.queue.qsize() == 1
    assert "no snapshot message: a str" in caplog.text


def test_an_answer_of_another_type_than_was_asked_for_is_left_out(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    wrong_body = {
        "type": "snapshotenvelope",
        "snapshot_type": 1,
        "snapshot_id": snapshot_id,
        "body": sighting(),
    }
    parts.snapshots.put_many(
        [envelope_message(snapshot_id, sighting()), Message(SNAPSHOT_ENVELOPE, encode(wrong_body))]
    )
    assert parts.asking.queue.empty()
    assert "a sighting is no answer" in caplog.text


def test_an_answer_to_an_unknown_snapshot_is_counted(parts: Parts) -> None:
    parts.snapshots.put_many([envelope_message("unknown", indicator())])
    assert parts.snapshots.unclaimed == 1


@pytest.mark.parametrize(
    "message",
    [
        Message(SNAPSHOT_ENVELOPE, b""),
        Message(SNAPSHOT_ENVELOPE, b'{"type":"snapshotenvelope","snapshot_id":"a"}'),
        Message(
            SNAPSHOT_ENVELOPE,
            b'{"type":"snapshotenvelope","snapshot_id":"a","snapshot_type":9,"body":{}}',
        ),
        Message(
            SNAPSHOT_ENVELOPE,
            b'{"type":"snapshotenvelope","snapshot_id":"a","snapshot_type":1,"body":1}',
        ),
        Message(SNAPSHOT_REQUEST, b"[]"),
        Message(
            SNAPSHOT_REQUEST,
            b'{"type":"snapshotrequest","snapshot_id":"a","snapshot_type":1,"snapshot":1e300}',
        ),
        request_message(MessageType.INDICATOR, "a", seconds=-1e18),
    ],
)
def test_what_cannot_be_read_is_left_out_with_a_line_and_costs_the_rest_nothing(
    parts: Parts, message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    parts.snapshots.put_many([message, envelope_message(snapshot_id, indicator())])
    assert parts.asking.queue.qsize() == 1
    assert parts.other.queue.empty()
    assert "cannot be read" in caplog.text


def test_with_several_backbones_a_request_and_an_answer_count_once() -> None:
    parts = Parts(several_backbones=True)
    asked: list[SnapshotRequest] = []
    parts.snapshots.start({"plugin": asked.append})
    [(snapshot_id, request)] = parts.snapshots.open(parts.asking, ["stix2/indicator"], DAY)
    request.id = 1
    answer = envelope_message(snapshot_id, indicator())
    answer.id = 2
    last = request_message(MessageType.SIGHTING, "the last one")
    last.id = 3
    for message in (request, request, answer, answer, last):
        parts.snapshots.put_many([message])
    eventually(lambda: asked and asked[-1].snapshot_id == "the last one")
    assert len(asked) == 2
    assert [message.topic for message in parts.asking.queue.get_many(10)] == [
        INDICATOR,
        SNAPSHOT_REQUEST,
    ]
    parts.snapshots.stop()


def test_what_is_newer_and_came_live_is_not_overwritten(parts: Parts) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    [live] = indicators(1)
    parts.asking.put_many([live])
    parts.snapshots.put_many([envelope_message(snapshot_id, msgspec.json.decode(live.data))])
    assert parts.asking.queue.get_many(10) == [live]
    assert parts.asking.outdated_bodies == 1


# The end of a snapshot.


def test_the_snapshots_of_a_subscriber_that_is_gone_are_forgotten(parts: Parts) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    parts.snapshots.open(parts.other, ["stix2/indicator"], DAY)
    parts.snapshots.forget(parts.asking)
    assert len(parts.snapshots.open_ids) == 1
    parts.snapshots.put_many([envelope_message(snapshot_id, indicator())])
    assert parts.asking.queue.empty()
    assert parts.snapshots.unclaimed == 1


def test_a_snapshot_is_forgotten_when_no_answer_has_come_for_its_time(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    parts.clock.now += 59
    assert parts.snapshots.open_ids == [snapshot_id]
    parts.clock.now += 2
    with caplog.at_level(logging.INFO, "threatbus.snapshots"):
        assert parts.snapshots.open_ids == []
    assert parts.asking._guard is None
    parts.snapshots.put_many([envelope_message(snapshot_id, indicator())])
    assert parts.asking.queue.empty()
    assert "snapshot of indicators for asking ends: 0 objects" in caplog.text


def test_an_answer_that_comes_too_late_is_not_handed_on_though_nobody_has_looked(
    parts: Parts,
) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    parts.clock.now += 61
    parts.snapshots.put_many([envelope_message(snapshot_id, indicator())])
    assert parts.asking.queue.empty()
    assert parts.snapshots.unclaimed == 1


def test_each_answer_keeps_a_snapshot_open_for_longer(parts: Parts) -> None:
    [snapshot_id] = parts.open("stix2/indicator")
    for _ in range(3):
        parts.clock.now += 50
        parts.snapshots.put_many([envelope_message(snapshot_id, indicator())])
    assert parts.asking.queue.qsize() == 3
    assert parts.snapshots.open_ids == [snapshot_id]


# Plugins that answer.


def test_a_plugin_that_fails_to_answer_is_named_and_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []

    def hook(request: SnapshotRequest) -> None:
        asked.append(request.snapshot_id)
        if len(asked) == 1:
            raise RuntimeError("the platform is down")

    answerer = SnapshotAnswerer("misp", hook)
    answerer.start()
    for name in ("first", "second"):
        answerer.ask(SnapshotRequest(MessageType.INDICATOR, name, DAY))
    eventually(lambda: asked == ["first", "second"])
    assert "plugin misp failed to answer snapshot first" in caplog.text
    assert "the platform is down" in caplog.text
    answerer.stop()
    finished(answerer)


def test_requests_for_a_plugin_that_hangs_are_bounded_and_it_can_still_be_stopped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_REQUESTS", 5)
    entered, go_on = threading.Event(), threading.Event()
    asked: list[Any] = []

    def hook(request: SnapshotRequest) -> None:
        asked.append(request)
        entered.set()
        wait_for(go_on)

    answerer = SnapshotAnswerer("slow", hook)
    answerer.start()
    request = SnapshotRequest(MessageType.INDICATOR, "some-id", DAY)
    answerer.ask(request)
    wait_for(entered)
    for _ in range(100):
        answerer.ask(request)
    assert caplog.text.count("plugin slow is behind") == 1
    answerer.stop()
    go_on.set()
    finished(answerer)
    assert len(asked) == 1
