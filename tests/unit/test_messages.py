"""Messages: from and to plain objects, and what they remember on the way."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import stix2
from helpers.documents import (
    envelope_message,
    indicator,
    indicator_message,
    request_message,
    sighting_message,
    stix_object,
)

from threatbus.data import MessageType, SnapshotEnvelope, SnapshotRequest
from threatbus.errors import Rejected
from threatbus.messages import (
    INDICATOR,
    SIGHTING,
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    EnvelopeView,
    Message,
    RequestView,
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (indicator_message(), stix2.Indicator),
        (sighting_message(), stix2.Sighting),
        (request_message(MessageType.SIGHTING, "some-id"), SnapshotRequest),
        (envelope_message("some-id", indicator()), SnapshotEnvelope),
    ],
    ids=["indicator", "sighting", "request", "envelope"],
)
def test_an_object_that_comes_back_gives_the_very_message_it_was_made_of(
    message: Message, expected: type
) -> None:
    found = message.to_object()
    assert type(found) is expected
    assert Message.from_object(found) is message


def test_a_message_is_a_message() -> None:
    message = indicator_message()
    assert Message.from_object(message) is message


def test_custom_properties_survive_both_ways() -> None:
    document = indicator(x_threatbus_update="REMOVE", x_own={"deep": [1, "two", None]})
    found: Any = indicator_message(**document).to_object()
    assert found.x_threatbus_update == "REMOVE"
    anew = Message.from_object(stix_object(document))
    assert json.loads(anew.data)["x_own"] == {"deep": [1, "two", None]}
    assert anew.topic == INDICATOR


def test_a_new_version_of_an_object_is_a_message_of_its_own() -> None:
    message = indicator_message()
    found: Any = message.to_object()
    changed = Message.from_object(found.new_version(name="changed"))
    assert changed is not message
    assert json.loads(changed.data)["name"] == "changed"


def test_objects_with_their_message_survive_pickling() -> None:
    message = indicator_message(x_own="kept")
    message.id = 42
    found = pickle.loads(pickle.dumps(message.to_object()))
    assert type(found) is stix2.Indicator
    again = Message.from_object(found)
    assert (again.topic, again.data, again.id) == (INDICATOR, message.data, 42)


@pytest.mark.parametrize(
    "message",
    [sighting_message(), request_message(MessageType.INDICATOR, "some-id")],
    ids=["sighting", "request"],
)
def test_objects_with_their_message_survive_a_multiprocessing_queue(message: Message) -> None:
    q: Any = multiprocessing.JoinableQueue()
    q.put(message.to_object())
    found = q.get(timeout=10)
    assert Message.from_object(found).data == message.data
    q.close()
    q.join_thread()


@pytest.mark.parametrize(
    "found",
    [
        None,
        {},
        "text",
        b"bytes",
        42,
        indicator(),
        SnapshotEnvelope(MessageType.INDICATOR, "some-id", None),
        SnapshotRequest("INDICATOR", "some-id", timedelta(days=1)),  # type: ignore[arg-type]
        SnapshotRequest(MessageType.INDICATOR, "some-id", 86400),  # type: ignore[arg-type]
        stix2.v21.Malware(name="malware", is_family=False),
        stix2.v20.Indicator(labels=["x"], pattern="[file:name = 'x']"),
        SnapshotEnvelope(
            MessageType.INDICATOR,
            "some-id",
            stix2.v21.Malware(name="malware", is_family=False),
        ),
    ],
)
def test_what_is_no_message_is_rejected_with_its_type(found: object) -> None:
    with pytest.raises(Rejected, match=r"^a \w+ (is no STIX 2.1|that cannot be put into JSON)"):
        Message.from_object(found)


def test_text_that_no_encoding_holds_is_rejected() -> None:
    class Odd(stix2.v21.Indicator):  # type: ignore[misc]
        def serialize(self, *_: Any, **__: Any) -> str:
            return '{"name": "\ud800"}'

    with pytest.raises(Rejected, match="cannot be put into JSON"):
        Message.from_object(Odd(pattern="[file:name = 'x']", pattern_type="stix"))


def test_a_waiting_message_has_no_garbage_collector_header() -> None:
    assert Message.__struct_config__.gc is False


def test_messages_are_compared_by_identity() -> None:
    assert Message(SIGHTING, b"x") != Message(SIGHTING, b"x")


def test_the_view_of_an_envelope_keeps_the_bytes_of_its_body() -> None:
    data = (
        b'{"snapshot_id": "a", "body": {"type":"indicator" , "n": 1.0}, '
        b'"type": "snapshotenvelope", "snapshot_type": 1}'
    )
    view = msgspec.json.decode(data, type=EnvelopeView)
    assert bytes(view.body) == b'{"type":"indicator" , "n": 1.0}'


def test_the_view_of_a_request_gives_the_data_class() -> None:
    message = request_message(MessageType.SIGHTING, "some-id", seconds=60)
    view = msgspec.json.decode(message.data, type=RequestView)
    assert view.to_request() == SnapshotRequest(
        MessageType.SIGHTING, "some-id", timedelta(minutes=1)
    )
    with pytest.raises(ValueError, match="3"):
        RequestView(3, "some-id", 1.0).to_request()


def test_snapshot_messages_go_by_their_own_topics() -> None:
    request = SnapshotRequest(MessageType.INDICATOR, "some-id", timedelta(days=1))
    assert Message.from_object(request).topic == SNAPSHOT_REQUEST
    envelope = SnapshotEnvelope(MessageType.INDICATOR, "some-id", stix_object(indicator()))
    assert Message.from_object(envelope).topic == SNAPSHOT_ENVELOPE
