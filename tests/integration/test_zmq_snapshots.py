"""Snapshots: who is asked, and who gets the answers."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from helpers.buses import OpenApp
from helpers.documents import encode, envelope_message, indicator, sighting, timestamp
from helpers.waiting import eventually

from integration.zmq_helpers import App, Apps, ZmqBus


def request_in(frame: bytes, app: App) -> dict[str, Any]:
    head, _, data = frame.partition(b" ")
    assert head == app.p2p.encode() + b"snapshotrequest"
    found = json.loads(data)
    assert isinstance(found, dict)
    return found


def answer(app: App, snapshot_id: str, content: dict[str, Any], /, **more: Any) -> None:
    document = json.loads(envelope_message(snapshot_id, content).data)
    app.publish("threatbus/snapshotenvelope", encode({**document, **more}))


@pytest.fixture
def other(zmq_apps: Apps, bus: ZmqBus) -> App:
    return zmq_apps.app(bus).subscribe("stix2/sighting").connect().connected()


@pytest.fixture
def asking(zmq_apps: Apps, bus: ZmqBus, other: App) -> App:
    """Give an app that has asked for 30 days of indicators; `other` was there before."""
    return zmq_apps.app(bus).subscribe("stix2/indicator", snapshot=30).connect().connected()


@pytest.mark.parametrize("days", [30, "30", 0.5, "0.5"])
def test_a_request_reaches_every_other_subscriber_and_never_the_one_who_asked(
    zmq_apps: Apps, bus: ZmqBus, other: App, days: Any
) -> None:
    third = zmq_apps.app(bus).subscribe("stix2/malware").connect().connected()
    app = zmq_apps.app(bus).subscribe("stix2/indicator", snapshot=days).connect().connected()
    requests = [request_in(each.receive(), each) for each in (other, third)]
    assert requests[0] == requests[1]
    assert uuid.UUID(requests[0].pop("snapshot_id"))
    assert requests[0] == {
        "type": "snapshotrequest",
        "snapshot_type": 1,
        "snapshot": float(days) * 86400,
    }
    app.receives_nothing()


@pytest.mark.parametrize(
    ("topics", "types"),
    [
        ("stix2", [1, 2]),
        (["stix2/sighting"], [2]),
        (["stix2/indicator", "stix2/sighting", "stix2"], [1, 2]),
        (["stix2/malware"], []),
    ],
)
def test_there_is_one_request_per_type_that_the_topics_cover(
    zmq_apps: Apps, bus: ZmqBus, other: App, topics: Any, types: list[int]
) -> None:
    zmq_apps.app(bus).subscribe(topics, snapshot=1)
    requests = [request_in(other.receive(), other) for _ in types]
    assert [request["snapshot_type"] for request in requests] == types
    assert len({request["snapshot_id"] for request in requests}) == len(types)
    other.receives_nothing(0.05)


@pytest.mark.parametrize("snapshot", [0, "0", None, 0.0])
def test_without_days_nobody_is_asked(
    zmq_apps: Apps, bus: ZmqBus, other: App, snapshot: Any
) -> None:
    zmq_apps.app(bus).subscribe("stix2", snapshot=snapshot)
    other.receives_nothing()


def test_an_answer_reaches_the_one_who_asked_alone_as_an_ordinary_message(
    zmq_apps: Apps, bus: ZmqBus, other: App, asking: App
) -> None:
    third = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    snapshot_id = request_in(other.receive(), other)["snapshot_id"]
    body = indicator(x_mine="\u00e4")
    answer(other, snapshot_id, body)
    assert asking.receive() == asking.p2p.encode() + b"indicator " + encode(body)
    third.receives_nothing()
    other.receives_nothing(0.05)


def test_the_body_is_delivered_as_it_was_written(other: App, asking: App) -> None:
    snapshot_id = request_in(other.receive(), other)["snapshot_id"]
    body = json.dumps(indicator(), indent=1).encode()
    frame = b'{"snapshot_id": "%s", "body": %s, "snapshot_type": 1, "type": "snapshotenvelope"}' % (
        snapshot_id.encode(),
        body,
    )
    other.publish("threatbus/snapshotenvelope", frame)
    assert asking.receive() == asking.p2p.encode() + b"indicator " + body


def test_the_request_waits_for_those_whose_sub_comes_late(zmq_apps: Apps, bus: ZmqBus) -> None:
    late = zmq_apps.app(bus).subscribe("stix2")
    zmq_apps.app(bus).subscribe("stix2/sighting", snapshot=1)
    late.connect()
    assert request_in(late.receive(), late)["snapshot_type"] == 2


def test_an_answer_with_an_id_that_nobody_awaits_reaches_nobody(
    bus: ZmqBus, other: App, asking: App
) -> None:
    other.receive()
    answer(other, str(uuid.uuid4()), indicator())
    answer(other, "no id at all", indicator())
    eventually(lambda: bus.bus.snapshots.unclaimed == 2)
    asking.receives_nothing(0.05)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (sighting(), {"snapshot_type": 1}),
        (indicator(), {"snapshot_type": 2}),
        (indicator(), {"snapshot_type": 3}),
        (indicator(), {"snapshot_type": "1"}),
        (indicator(), {"type": "snapshotrequest"}),
        (indicator(), {"body": 5}),
        (indicator(), {"body": None}),
        ({**indicator(), "pattern": "no pattern"}, {"snapshot_type": 1}),
    ],
)
def test_an_envelope_that_is_not_right_is_rejected(
    bus: ZmqBus, other: App, asking: App, body: dict[str, Any], more: dict[str, Any]
) -> None:
    snapshot_id = request_in(other.receive(), other)["snapshot_id"]
    answer(other, snapshot_id, body, **more)
    answer(other, snapshot_id, indicator(name="right"))
    assert b'"name": "right"' in asking.receive()
    assert bus.bus.rejects.total == 1


def test_a_snapshot_overwrites_nothing_newer_that_has_come_live(other: App, asking: App) -> None:
    snapshot_id = request_in(other.receive(), other)["snapshot_id"]
    live = indicator(modified=timestamp(60))
    other.publish("stix2/indicator", live)
    assert json.loads(asking.receive().partition(b" ")[2]) == live
    answer(other, snapshot_id, {**live, "modified": timestamp(0)})
    answer(other, snapshot_id, live)
    newer = {**live, "modified": timestamp(120)}
    answer(other, snapshot_id, newer)
    assert json.loads(asking.receive().partition(b" ")[2]) == newer
    asking.receives_nothing(0.05)


def test_a_plugin_is_asked_too(zmq_apps: Apps, open_app: OpenApp) -> None:
    from threatbus.data import SnapshotEnvelope  # noqa: PLC0415

    body = indicator()

    def reply(request: Any, result_q: Any) -> None:
        import stix2  # noqa: PLC0415

        parsed = stix2.parse(body)
        result_q.put(SnapshotEnvelope(request.snapshot_type, request.snapshot_id, parsed))

    open_app.answer = reply
    bus = zmq_apps.bus(apps={"open": None})
    app = zmq_apps.app(bus).subscribe("stix2/indicator", snapshot=1).connect()
    assert json.loads(app.receive().partition(b" ")[2])["id"] == body["id"]
