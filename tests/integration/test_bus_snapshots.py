"""Snapshots through a whole bus."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.documents import (
    encode,
    envelope_message,
    id_of,
    indicator,
    indicator_message,
    sighting,
    timestamp,
)
from helpers.waiting import eventually, wait_for

import threatbus
from threatbus.data import MessageType, SnapshotRequest
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_REQUEST, Message
from threatbus.queues import MessageQueue

APPS = {"open": None}
DAY = timedelta(days=1)


def open_ids(bus: threatbus.ThreatBus) -> list[str]:
    return bus.snapshots.open_ids


@pytest.fixture
def asked(open_app: OpenApp) -> list[SnapshotRequest]:
    """What the app's `snapshot` hook has been asked."""
    requests: list[SnapshotRequest] = []
    open_app.answer = lambda request, _: requests.append(request)
    return requests


def test_each_type_is_asked_for_under_its_own_id_and_the_first_is_returned(
    start_bus: Buses, open_app: OpenApp, asked: list[SnapshotRequest]
) -> None:
    bus = start_bus(APPS)
    outq = open_app.services.outq("asking")
    returned = open_app.subscribe("stix2", outq, DAY)
    eventually(lambda: len(asked) == 2)
    assert [request.snapshot_type for request in asked] == list(MessageType)
    assert asked[0].snapshot_id == returned
    assert {request.snapshot_id for request in asked} == set(open_ids(bus))
    assert all(request.snapshot == DAY for request in asked)
    assert outq.empty(), "the requester is never asked"


@pytest.mark.parametrize("delta", [None, timedelta(0), timedelta(days=-1)])
def test_without_a_span_nothing_is_asked_for(
    delta: timedelta | None, start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS)
    assert open_app.subscribe("stix2", open_app.services.outq("somebody"), delta) is None
    assert open_ids(bus) == []


def test_other_subscribers_are_asked_and_answers_reach_the_requester_alone(
    start_bus: Buses, open_app: OpenApp
) -> None:
    start_bus(APPS)
    other, asking = open_app.services.outq("other"), open_app.services.outq("asking")
    open_app.subscribe("stix2", other)
    open_app.subscribe("stix2", asking, DAY)
    for_indicators, for_sightings = other.get_many(10)
    assert for_indicators.topic == for_sightings.topic == SNAPSHOT_REQUEST
    ids = [json.loads(each.data)["snapshot_id"] for each in (for_indicators, for_sightings)]
    bodies = [indicator(), sighting()]
    for snapshot_id, body in zip(ids, bodies, strict=True):
        open_app.inq.put_many([envelope_message(snapshot_id, body)])
    got = asking.get_many(10)
    assert [(message.topic, id_of(message)) for message in got] == [
        (INDICATOR, bodies[0]["id"]),
        (SIGHTING, bodies[1]["id"]),
    ]
    assert other.empty()


def test_snapshots_end_with_their_subscriber(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus(APPS)
    outq = open_app.services.outq("asking")
    open_app.subscribe(["stix2/indicator", "stix2/sighting"], outq, DAY)
    open_app.unsubscribe("stix2/indicator", outq)
    assert len(open_ids(bus)) == 2
    open_app.unsubscribe("stix2/sighting", outq)
    assert open_ids(bus) == []


def test_snapshots_end_when_the_queue_of_the_subscriber_overflows(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS, queues={"outq_messages": 2})
    open_app.subscribe("stix2", open_app.services.outq("asking"), DAY)
    open_app.inq.put_many([indicator_message() for _ in range(3)])
    eventually(lambda: not bus.stats()["subscribers"])
    eventually(lambda: open_ids(bus) == [])


def test_snapshots_end_when_nobody_answers_for_their_time(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS, snapshot_timeout=0.05)
    outq = open_app.services.outq("asking")
    snapshot_id = open_app.subscribe("stix2/indicator", outq, DAY)
    assert snapshot_id
    eventually(lambda: open_ids(bus) == [])
    open_app.inq.put_many([envelope_message(snapshot_id, indicator())])
    assert outq.empty()
    assert bus.stats()["unclaimed_snapshot_answers"] == 1


# What is newer is not overwritten.


class Asking:
    """A subscriber with an open snapshot of indicators and sightings."""

    def __init__(self, app: OpenApp, other: MessageQueue, outq: MessageQueue) -> None:
        self.app, self.outq = app, outq
        app.subscribe("stix2", other)
        app.subscribe("stix2", outq, DAY)
        requests = [json.loads(message.data) for message in other.get_many(10)]
        self.ids = {request["snapshot_type"]: request["snapshot_id"] for request in requests}

    def live(self, document: dict[str, Any]) -> None:
        topic = f"stix2/{document['type']}"
        self.app.inq.put_many([Message(topic, encode(document))])

    def body(self, document: dict[str, Any]) -> None:
        kind = 1 if document["type"] == "indicator" else 2
        self.app.inq.put_many([envelope_message(self.ids[kind], document)])

    def got(self) -> list[str]:
        return [json.loads(message.data).get("name", "") for message in self.outq.get_many(100)]


@pytest.fixture
def asking(start_bus: Buses, open_app: OpenApp) -> Asking:
    start_bus(APPS)
    return Asking(open_app, open_app.services.outq("other"), open_app.services.outq("asking"))


@pytest.mark.parametrize("make", [indicator, sighting])
@pytest.mark.parametrize(
    ("seconds", "expected"), [(-1, ["live"]), (0, ["live"]), (1, ["live", "body"])]
)
def test_a_body_is_dropped_unless_it_is_newer_than_what_came_live(
    asking: Asking, make: Any, seconds: float, expected: list[str]
) -> None:
    document = make(name="live")
    asking.live(document)
    asking.body({**document, "name": "body", "modified": timestamp(seconds)})
    assert asking.got() == expected


def test_a_body_that_comes_before_the_live_message_is_passed_on(asking: Asking) -> None:
    document = indicator(name="live", modified=timestamp(1))
    asking.body({**document, "name": "body", "modified": timestamp(0)})
    asking.live(document)
    assert asking.got() == ["body", "live"]


def test_a_live_message_without_modified_counts_as_of_now(asking: Asking) -> None:
    document = indicator(name="live")
    asking.live({key: value for key, value in document.items() if key != "modified"})
    asking.body({**document, "name": "body", "modified": timestamp(0).replace("2026", "2020")})
    assert asking.got() == ["live"]


def test_what_came_live_for_another_subscriber_does_not_matter(asking: Asking) -> None:
    document = indicator(name="live")
    asking.app.unsubscribe("stix2", asking.outq)
    asking.live(document)
    outq = asking.app.services.outq("late")
    snapshot_id = asking.app.subscribe("stix2/indicator", outq, DAY)
    assert snapshot_id
    asking.app.inq.put_many([envelope_message(snapshot_id, document)])
    assert outq.qsize() == 1


def test_what_comes_live_in_the_very_moment_of_the_subscription_counts(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp
) -> None:
    live = indicator_message(name="live", modified=timestamp(1))

    class Eager:
        """Delivers a message as soon as somebody subscribes."""

        @threatbus.backbone
        def run(self, inq: MessageQueue) -> None:
            inq.consume(lambda *_: None)

        @threatbus.backbone
        def subscribe(self, topic: str, q: Any) -> None:
            if topic.startswith("stix2"):
                q.put_many([live])

    plugins.backbone("eager", Eager)
    start_bus(APPS, {"inmem": None, "eager": None})
    outq = open_app.services.outq("asking")
    snapshot_id = open_app.subscribe("stix2/indicator", outq, DAY)
    assert snapshot_id
    older = {**json.loads(live.data), "name": "body", "modified": timestamp(0)}
    open_app.inq.put_many([envelope_message(snapshot_id, older)])
    assert outq.get_many(10) == [live]


# Plugins that answer.


def test_a_plugin_that_fails_or_hangs_in_its_answer_costs_the_others_nothing(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    class Failing(OpenApp):
        @threatbus.app
        def snapshot(self, snapshot_request: Any, result_q: Any) -> None:
            raise RuntimeError("the platform is down")

    class Hanging(OpenApp):
        @threatbus.app
        def snapshot(self, snapshot_request: Any, result_q: Any) -> None:
            wait_for(go_on)

    plugins.app("failing", Failing)
    plugins.app("hanging", Hanging)
    bus = start_bus({"failing": None, "hanging": None, "open": None})
    open_app.answer = lambda request, result_q: result_q.put(
        envelope_message(request.snapshot_id, indicator())
    )
    outq = open_app.services.outq("asking")
    open_app.subscribe("stix2/indicator", outq, DAY)
    eventually(lambda: outq.qsize() == 1)
    eventually(lambda: "plugin failing failed to answer snapshot" in caplog.text)
    bus.stop()
    go_on.set()
