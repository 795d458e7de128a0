"""What an app reads and writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from helpers.documents import (
    NOW,
    indicator_bytes,
    indicator_message,
    library_topic,
    request_message,
    timestamp,
)

from threatbus.client import Indicator, MatchType, SnapshotRequest, envelope, read, sighting
from threatbus.data import MessageType
from threatbus.errors import Rejected
from threatbus.messages import INDICATOR, Message


def read_indicator(**more: object) -> Indicator:
    found = read(indicator_message(**more))
    assert isinstance(found, Indicator)
    return found


def test_an_indicator_is_current_unless_something_says_otherwise() -> None:
    assert not read_indicator().is_withdrawn(NOW)


@pytest.mark.parametrize(
    "said", [{"revoked": True}, {"x_threatbus_update": "REMOVE"}, {"valid_until": timestamp(5)}]
)
def test_an_indicator_is_withdrawn_by_removal_revocation_or_expiry(said: dict[str, object]) -> None:
    assert read_indicator(**said).is_withdrawn(NOW + timedelta(seconds=6))


def test_an_edited_indicator_is_not_withdrawn() -> None:
    assert not read_indicator(x_threatbus_update="EDIT").is_withdrawn(NOW)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"type": "indicator", "id": 1}'])
def test_what_is_no_indicator_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected):
        read(Message(INDICATOR, data))


def test_a_topic_that_apps_do_not_read_is_named() -> None:
    with pytest.raises(Rejected, match="strange"):
        read(Message("strange", b"{}"))


def test_a_snapshot_request_is_read_and_answered_with_the_bytes_of_the_object() -> None:
    request = read(request_message(MessageType.INDICATOR, "some id", 60))
    assert isinstance(request, SnapshotRequest)
    assert request.snapshot == timedelta(seconds=60)
    body = indicator_bytes()
    answer = envelope(request, body)
    assert body in answer
    assert json.loads(answer)["snapshot_id"] == "some id"
    assert json.loads(answer)["snapshot_type"] == 1


def test_a_sighting_is_what_the_stix2_library_takes_for_one() -> None:
    data = sighting(
        read_indicator().id,
        match_type=MatchType.RETRO,
        value='it\'s \\ "quoted"',
        context={"deep": [1, None]},
        source="test",
        seen=datetime(2026, 1, 1, tzinfo=UTC),
        count=3,
    )
    assert library_topic(data) == "stix2/sighting"
    document = json.loads(data)
    assert document["x_threatbus_indicator_value"] == 'it\'s \\ "quoted"'
    assert document["x_threatbus_match_type"] == "RETRO"
    assert document["last_seen"] == "2026-01-01T00:00:00.000Z"
