"""Publishing: what an app may send, and that order and number stay what they were."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from helpers.buses import OpenApp
from helpers.documents import encode, indicator, indicator_bytes, sighting, sighting_bytes
from helpers.waiting import SOON, eventually, in_threads

from integration.zmq_helpers import App, Apps, ZmqBus, number_of, numbered


@pytest.fixture
def reader(zmq_apps: Apps, bus: ZmqBus) -> App:
    return zmq_apps.app(bus).subscribe("stix2").connect().connected()


def bundle(*members: Any) -> dict[str, Any]:
    return {
        "type": "bundle",
        "id": "bundle--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
        "objects": list(members),
    }


def documents(frames: list[bytes]) -> list[Any]:
    return [json.loads(frame.partition(b" ")[2]) for frame in frames]


def hard_indicator(number: int) -> bytes:
    """Give an indicator that the fast path leaves to the library."""
    pattern = "[file:name = 'a' AND file:size > 5] FOLLOWEDBY [ipv4-addr:value = '10.0.0.1']"
    return encode(indicator(pattern=pattern, name=str(number)))


# What decides.


@pytest.mark.parametrize(
    "topic", ["stix2/indicator", "stix2/sighting", "stix2/bundle", "stix2/", "stix2", "stix2/x/y"]
)
@pytest.mark.parametrize("kind", ["indicator", "sighting"])
def test_an_object_goes_by_its_type_whatever_the_topic(
    publisher: App, reader: App, topic: str, kind: str
) -> None:
    document = indicator_bytes() if kind == "indicator" else sighting_bytes()
    publisher.publish(topic, document)
    assert reader.receive() == f"{reader.p2p}{kind} ".encode() + document


@pytest.mark.parametrize("topic", ["stix2/bundle", "stix2/indicator", "stix2/sighting", "stix2/"])
def test_a_bundle_is_unpacked_on_any_stix_topic(publisher: App, reader: App, topic: str) -> None:
    members = [indicator(), sighting(), indicator(x_mine={"ä": 1})]
    publisher.publish(topic, bundle(*members))
    assert documents(reader.receive_all(3)) == members


def test_members_of_a_bundle_leave_as_the_bytes_they_came_in(publisher: App, reader: App) -> None:
    member = json.dumps(indicator(), indent=2).encode()
    publisher.publish("stix2/bundle", b'{"type": "bundle", "objects": [\n ' + member + b" , 5]}")
    assert reader.receive() == reader.p2p.encode() + b"indicator " + member


def test_bad_members_of_a_bundle_are_rejected_one_by_one_and_foreign_types_skipped(
    bus: ZmqBus, publisher: App, reader: App
) -> None:
    good = [indicator(), sighting()]
    identity = {
        "type": "identity",
        "spec_version": "2.1",
        "id": "identity--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f",
        "name": "x",
    }
    no_time = indicator(valid_from="yesterday")
    no_pattern = indicator(pattern="no pattern")
    nested = bundle(indicator())
    members = [no_time, good[0], identity, no_pattern, 7, good[1], nested]
    publisher.publish("stix2/bundle", bundle(*members))
    assert documents(reader.receive_all(2)) == good
    eventually(lambda: bus.bus.rejects.total == 4)
    eventually(lambda: len(bus.reject_lines()) == 4)
    assert [json.loads(line["data"]) for line in bus.reject_lines()] == [
        no_time,
        no_pattern,
        7,
        nested,
    ]


def test_an_empty_bundle_is_nothing(bus: ZmqBus, publisher: App, reader: App) -> None:
    publisher.publish("stix2/bundle", bundle())
    publisher.publish_numbered(0, 1)
    assert reader.receive_until(0) == [0]
    assert bus.bus.rejects.total == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"stix2/indicator", "no blank"),
        (b"", "no blank"),
        (b"stix2/indicator\t{}", "no blank"),
        (b"stix2 ", "not JSON"),
        (b" " + indicator_bytes(), "topic that nobody publishes to"),
        (b"stix2x/indicator " + indicator_bytes(), "topic that nobody publishes to"),
        (b"stix2indicator " + indicator_bytes(), "topic that nobody publishes to"),
        (b"STIX2/indicator " + indicator_bytes(), "topic that nobody publishes to"),
        (b"threatbus/snapshotrequest {}", "topic that nobody publishes to"),
        (b"\xff\xfe {}", "topic that nobody publishes to"),
    ],
)
def test_frames_without_a_known_topic_are_rejected_with_the_reason(
    bus: ZmqBus, publisher: App, reader: App, frame: bytes, reason: str
) -> None:
    publisher.pub.send(frame)
    publisher.publish_numbered(0, 1)
    assert reader.receive_until(0) == [0]
    assert bus.rejected(reason) == 1


# Order and number.


def test_order_is_kept_when_slow_documents_stand_between_fast_ones(
    publisher: App, reader: App
) -> None:
    for number in range(600):
        document = hard_indicator(number) if number % 7 == 3 else numbered(number)
        publisher.publish("stix2/indicator", document)
    assert [number_of(frame) for frame in reader.receive_all(600)] == list(range(600))


def test_a_bundle_keeps_its_place_in_the_order(publisher: App, reader: App) -> None:
    publisher.publish_numbered(0, 10)
    members = [indicator(name=str(number)) for number in range(10, 20)]
    publisher.publish("stix2/bundle", bundle(*members))
    publisher.publish_numbered(20, 10)
    assert [number_of(frame) for frame in reader.receive_all(30)] == list(range(30))


def test_what_several_publishers_send_arrives_each_in_its_own_order(
    zmq_apps: Apps, bus: ZmqBus, reader: App
) -> None:
    publishers = [zmq_apps.app(bus) for _ in range(5)]
    for each in publishers:
        assert each.pub

    def sender(number: int) -> Any:
        return lambda: publishers[number].publish_numbered(number * 1000, 1000)

    in_threads(*(sender(number) for number in range(5)))
    numbers = [number_of(frame) for frame in reader.receive_all(5000)]
    assert sorted(numbers) == list(range(5000))
    for first in range(0, 5000, 1000):
        own = [number for number in numbers if first <= number < first + 1000]
        assert own == sorted(own)


def test_a_heavy_load_arrives_completely(bus: ZmqBus, publisher: App, reader: App) -> None:
    sender = threading.Thread(target=publisher.publish_numbered, args=(0, 20_000))
    assert publisher.pub  # its socket passes to the thread
    sender.start()
    assert [number_of(frame) for frame in reader.receive_all(20_000)] == list(range(20_000))
    sender.join(SOON)
    assert bus.bus.intake.accepted == 20_000
    assert bus.bus.rejects.total == 0


def test_slow_documents_hold_up_neither_management_nor_other_plugins(
    zmq_apps: Apps, open_app: OpenApp
) -> None:
    bus = zmq_apps.bus(apps={"open": None})
    reader = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    attacker = zmq_apps.app(bus)
    terms = " OR ".join(f"a:b = '{number}'" for number in range(700))
    slow = indicator(pattern=f"[{terms}]", pattern_type="stix", name="-")
    for _ in range(5):
        attacker.publish("stix2/indicator", slow)
    eventually(lambda: bus.endpoint.receiver.slow_lane.busy)
    open_app.inq.put(json_object(numbered(7)))
    found = reader.receive(1)
    assert number_of(found) == 7
    assert json.loads(reader.ask_raw(b"{"))["status"] == "error"
    assert bus.endpoint.receiver.slow_lane.busy, "the slow ones are still under way"


def json_object(document: bytes) -> Any:
    from threatbus.messages import INDICATOR, Message  # noqa: PLC0415

    return Message(INDICATOR, document)


# Faults inside.


def test_a_bug_in_the_fast_path_costs_its_frame_alone(
    bus: ZmqBus, publisher: App, reader: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = bus.endpoint.receiver._reader
    recognise = frames._recognise

    def broken(documents: Sequence[bytes]) -> list[str]:
        if any(number_of(b"stix2 " + data) == 5 for data in documents):
            raise RuntimeError("a bug")
        return recognise(documents)

    monkeypatch.setattr(frames, "_recognise", broken)
    monkeypatch.setattr(frames._border, "recognise", broken)
    publisher.publish_numbered(0, 100)
    expected = [number for number in range(100) if number != 5]
    assert [number_of(frame) for frame in reader.receive_all(99)] == expected
    assert bus.rejected("internal error") == 1
    assert bus.endpoint.failures == 0
    assert bus.endpoint.receiver.slow_lane.failures == 0


def test_a_connection_that_is_closed_for_its_large_frame_is_counted_with_its_peer(
    zmq_apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    bus = zmq_apps.bus(max_message_size=10_000)
    reader = zmq_apps.app(bus).subscribe("stix2").connect().connected()
    other = zmq_apps.app(bus)
    offender = zmq_apps.app(bus)
    assert offender.pub
    offender.publish("stix2/indicator", indicator_bytes(description="x" * 20_000))
    eventually(lambda: bus.rejected("connection closed by the bus") == 1)
    eventually(lambda: "max_message_size" in caplog.text)
    assert "127.0.0.1 sent a frame of more than 10000 bytes" in caplog.text
    (line,) = eventually(bus.reject_lines)
    assert line["size"] == 0
    other.publish_numbered(0, 1)
    assert reader.receive_until(0) == [0]


def test_publishers_that_come_and_go_are_not_taken_for_offenders(
    zmq_apps: Apps, bus: ZmqBus, reader: App
) -> None:
    for number in range(20):
        app = zmq_apps.app(bus)
        app.publish_numbered(number, 1)
        assert reader.receive_until(number) == [number]
        app.close()
    eventually(lambda: not bus.endpoint.receiver.door._links, what="nothing of them is kept")
    assert bus.bus.rejects.total == 0
