"""An app of the client library: on the bus, without it, and through its restarts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from helpers.buses import Buses
from helpers.documents import encode, indicator, indicator_bytes
from helpers.waiting import SOON, eventually

from integration.cli_helpers import OldBus
from testbed.ports import Doors
from threatbus.client import (
    App,
    Endpoint,
    Indicator,
    MatchType,
    Message,
    Sighting,
    SnapshotRequest,
    read,
    sighting,
)
from threatbus.client import app as app_module
from threatbus.client import subscriber as subscriber_module
from threatbus.data import MessageType
from threatbus.errors import Overflow, Rejected
from threatbus.queues import Bounds

STIX = ["stix2/indicator", "stix2/sighting"]


@pytest.fixture
def old_bus() -> Iterator[OldBus]:
    bus = OldBus()
    yield bus
    bus.close()


def at(doors: Doors) -> Endpoint:
    return Endpoint("127.0.0.1", doors.manage)


def taken(app: App, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        batch = app.receive(timeout=10)
        assert batch, f"only {len(messages)} of {count} messages came"
        messages += batch
    return messages


def subscribed(app: App) -> None:
    eventually(lambda: app.connected, what="the app is subscribed")


def test_two_apps_exchange_indicators_and_sightings(start_bus: Buses) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    document = indicator()
    with App(at(doors), STIX) as platform, App(at(doors), ["stix2/indicator"]) as sensor:
        subscribed(platform)
        subscribed(sensor)
        platform.publish_indicator(encode(document))
        (message,) = taken(sensor, 1)
        assert message.data == encode(document)
        received = read(message)
        assert isinstance(received, Indicator)
        assert (received.id, received.pattern) == (document["id"], document["pattern"])
        context = {"host": "10.0.0.1"}
        seen = sighting(received.id, match_type=MatchType.LIVE, value="x", context=context)
        sensor.publish_sighting(seen)
        # Its own indicator comes to the platform as well.
        views = [read(each) for each in taken(platform, 2)]
        (found,) = [view for view in views if isinstance(view, Sighting)]
    assert found.sighting_of_ref == document["id"]
    assert found.x_threatbus_match_type == "LIVE"
    assert found.x_threatbus_sighting_context == context


def test_a_snapshot_request_is_answered_with_what_the_app_knows(start_bus: Buses) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    known = indicator_bytes(name="known")
    requests: list[SnapshotRequest] = []

    def answer(request: SnapshotRequest) -> list[bytes]:
        requests.append(request)
        return [known] if request.snapshot_type is MessageType.INDICATOR else []

    with App(at(doors), STIX, answer=answer) as knowing:
        subscribed(knowing)
        with App(at(doors), ["stix2/indicator"], snapshot=30) as asking:
            (message,) = taken(asking, 1)
    assert message.data == known
    assert requests[0].snapshot.days == 30


def test_an_app_may_start_before_its_bus(start_bus: Buses) -> None:
    doors = Doors.free()
    changes: list[str] = []
    with App(at(doors), STIX, timeout=0.2, on_change=changes.append) as app:
        app.publish_indicator(document := indicator_bytes())
        eventually(lambda: changes)
        assert "no Threat Bus answers" in changes[0]
        with App(at(doors), STIX, timeout=0.2) as other:
            start_bus({"zmq": doors.section})
            subscribed(other)
            subscribed(app)
            assert app.flush(10)
            app.publish_indicator(second := indicator_bytes())
            eventually(lambda: second in [message.data for message in other.receive(timeout=0.1)])
    assert document != second


def test_an_app_knows_whether_its_bus_is_there(start_bus: Buses) -> None:
    doors = Doors.free()
    first = start_bus({"zmq": doors.section})
    with App(at(doors), STIX, timeout=0.2) as app:
        subscribed(app)
        first.stop()
        eventually(lambda: not app.connected)
        start_bus({"zmq": doors.section})
        subscribed(app)


def test_nothing_that_is_published_while_the_bus_is_away_is_lost(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_RETRY_SECS", 0.2)
    doors = Doors.free()
    first = start_bus({"zmq": doors.section})
    with App(at(doors), [], timeout=0.5) as source:
        source.publish_indicator(indicator_bytes(name="before"))
        eventually(lambda: first.intake.accepted == 1)
        first.stop()
        for number in range(200):
            source.publish_indicator(indicator_bytes(name=f"meanwhile {number}"))
        second = start_bus({"zmq": doors.section})
        # What was under way when the connection broke may come twice.
        eventually(lambda: second.intake.accepted >= 200)
        assert source.flush(10)
    assert source.waiting == 0


def test_beyond_its_bounds_an_app_says_that_it_cannot_publish() -> None:
    told: list[str] = []
    app = App(Endpoint("127.0.0.1", 1), bounds=Bounds(2), timeout=0.1, on_change=told.append)
    for _ in range(2):
        app.publish_indicator(b"{}")
    with pytest.raises(Overflow, match="no more can wait"):
        app.publish_indicator(b"{}", timeout=0.01)
    assert app.waiting == 2
    app.close(linger=0.1)
    assert "2 messages could not be delivered" in told[-1]
    with pytest.raises(Overflow, match="closed"):
        app.publish_indicator(b"{}")
    app.close()


def test_what_is_larger_than_the_bus_takes_is_refused_at_once() -> None:
    with (
        App(Endpoint("127.0.0.1", 1), timeout=0.1, max_message_size=100) as app,
        pytest.raises(Rejected, match="more than the bus takes"),
    ):
        app.publish_indicator(b"x" * 101)


def test_an_app_that_reads_nothing_stays_subscribed_and_loses_nothing(
    start_bus: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "HEARTBEAT_SECS", 0.1)
    doors = Doors.free()
    bus = start_bus({"zmq": {**doors.section, "grace": 1.0}})
    with (
        App(at(doors), ["stix2/indicator"], bounds=Bounds(10), name="reader") as reader,
        App(at(doors)) as source,
    ):
        subscribed(reader)
        documents = [indicator_bytes(name=str(number)) for number in range(2000)]
        for document in documents:
            source.publish_indicator(document)
        eventually(lambda: bus.intake.accepted == 2000)
        eventually(reader._inbox.full)
        assert [message.data for message in taken(reader, 2000)] == documents


def test_closing_ends_the_loop_over_messages(start_bus: Buses) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    app = App(at(doors), STIX)
    subscribed(app)
    ended = threading.Event()

    def loop() -> None:
        for _ in app.messages():
            pass
        ended.set()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    app.close()
    assert ended.wait(SOON)
    assert not [each for each in threading.enumerate() if each.name.startswith("app ")]


def test_an_app_speaks_to_the_old_bus(old_bus: OldBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "HEARTBEAT_SECS", 0.05)
    document = indicator_bytes()
    with App(Endpoint("127.0.0.1", old_bus.port), STIX) as app:
        subscribed(app)
        old_bus.forget()

        def delivered() -> list[Message]:
            # A PUB drops what comes before its SUB.
            old_bus.deliver(document)
            return app.receive(timeout=0.05)

        assert eventually(delivered)[0].data == document
        app.publish_sighting(seen := sighting(json.loads(document)["id"]))
        app.flush(10)
    old_bus.manage.stop()
    assert old_bus.sub.poll(int(SOON * 1000))
    assert old_bus.sub.recv() == b"stix2/sighting " + seen


def test_an_app_answers_the_old_bus(old_bus: OldBus) -> None:
    known = indicator_bytes(name="known")
    request = {
        "type": "snapshotrequest",
        "snapshot_type": 1,
        "snapshot_id": "8f4e1a52-6f4a-4f31-9d0e-5b6a7c8d9e0f",
        "snapshot": 86400,
    }
    with App(Endpoint("127.0.0.1", old_bus.port), STIX, answer=lambda _: [known]) as app:
        subscribed(app)

        def published() -> bool:
            # A PUB drops what comes before its SUB.
            # Copied, since its own thread adds to them.
            for topic in tuple(old_bus.topics):
                old_bus.pub.send(f"{topic}snapshotrequest {json.dumps(request)}".encode())
            return app.flush(0.05) and bool(app._sender._unsure)

        eventually(published)
        app.flush(10)
    old_bus.manage.stop()
    assert old_bus.sub.poll(int(SOON * 1000))
    topic, _, envelope = old_bus.sub.recv().partition(b" ")
    assert topic == b"threatbus/snapshotenvelope"
    assert json.loads(envelope)["body"] == json.loads(known)
    assert json.loads(envelope)["snapshot_id"] == request["snapshot_id"]
