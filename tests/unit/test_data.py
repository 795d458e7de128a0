"""The data classes of the public face and their JSON."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import stix2
from helpers.documents import indicator, sighting, stix_object

from threatbus.data import (
    MatchType,
    MessageType,
    Operation,
    SnapshotEnvelope,
    SnapshotEnvelopeDecoder,
    SnapshotEnvelopeEncoder,
    SnapshotRequest,
    SnapshotRequestDecoder,
    SnapshotRequestEncoder,
    Subscription,
    ThreatBusSTIX2Constants,
    Unsubscription,
)

REQUEST = {
    "type": "snapshotrequest",
    "snapshot_type": 1,
    "snapshot_id": "some-id",
    "snapshot": 86400,
}


def test_a_request_has_the_json_shape_of_the_protocol_page() -> None:
    request = SnapshotRequest(MessageType.INDICATOR, "some-id", timedelta(days=1))
    text = json.dumps(request, cls=SnapshotRequestEncoder)
    assert json.loads(text) == REQUEST
    assert json.loads(text, cls=SnapshotRequestDecoder) == request


def test_an_envelope_has_the_json_shape_of_the_protocol_page() -> None:
    document = sighting(x_threatbus_source="somebody")
    envelope = SnapshotEnvelope(MessageType.SIGHTING, "some-id", stix_object(document))
    text = json.dumps(envelope, cls=SnapshotEnvelopeEncoder)
    decoded = json.loads(text)
    assert decoded.pop("body")["id"] == document["id"]
    assert decoded == {"type": "snapshotenvelope", "snapshot_type": 2, "snapshot_id": "some-id"}
    found = json.loads(text, cls=SnapshotEnvelopeDecoder)
    assert type(found.body) is stix2.Sighting
    assert found == envelope


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "snapshotenvelope"},
        {"snapshot_type": 3},
        {"snapshot_type": None},
        {"snapshot_type": "indicator"},
        {"snapshot": None},
        {"snapshot": "long"},
        {"snapshot": 1e300},
        {"snapshot": []},
    ],
)
def test_what_is_no_request_is_a_value_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        json.loads(json.dumps({**REQUEST, **changes}), cls=SnapshotRequestDecoder)


@pytest.mark.parametrize("key", ["snapshot_type", "snapshot_id", "snapshot"])
def test_a_request_that_lacks_a_key_is_a_value_error_that_names_it(key: str) -> None:
    document = {name: value for name, value in REQUEST.items() if name != key}
    with pytest.raises(ValueError, match=f"needs {key}"):
        json.loads(json.dumps(document), cls=SnapshotRequestDecoder)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}"])
def test_json_that_is_no_snapshot_message_is_a_value_error(text: str) -> None:
    for decoder in (SnapshotRequestDecoder, SnapshotEnvelopeDecoder):
        with pytest.raises(ValueError, match="not a snapshot"):
            json.loads(text, cls=decoder)


def test_encoders_refuse_other_objects_as_json_does() -> None:
    for encoder in (SnapshotRequestEncoder, SnapshotEnvelopeEncoder):
        with pytest.raises(TypeError):
            json.dumps(object(), cls=encoder)


def test_an_envelope_around_an_indicator_keeps_the_kind() -> None:
    envelope = SnapshotEnvelope(MessageType.INDICATOR, "some-id", stix_object(indicator()))
    text = json.dumps(envelope, cls=SnapshotEnvelopeEncoder)
    found = json.loads(text, cls=SnapshotEnvelopeDecoder)
    assert found.snapshot_type is MessageType.INDICATOR


def test_the_names_and_values_that_plugins_import_are_there() -> None:
    assert [(kind.name, kind.value) for kind in MessageType] == [("INDICATOR", 1), ("SIGHTING", 2)]
    assert [kind.value for kind in Operation] == ["EDIT", "REMOVE"]
    assert MatchType.LIVE == "LIVE"
    assert MatchType("RETRO") is MatchType.RETRO
    for constant in ThreatBusSTIX2Constants:
        assert constant.value == constant.name.lower()
    assert len(ThreatBusSTIX2Constants) == 6
    assert Subscription(["a", "b"], timedelta(0)).topic == ["a", "b"]
    assert Unsubscription("a").topic == "a"
