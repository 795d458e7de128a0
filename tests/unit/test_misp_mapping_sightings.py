"""Sightings between MISP and STIX."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
import stix2
from helpers.documents import sighting as stix_sighting
from hypothesis import given, settings
from hypothesis import strategies as st
from threatbus_misp.mapping.model import (
    Attribute,
    Organisation,
    Sighting,
    decode_sighting_message,
)
from threatbus_misp.mapping.sightings import (
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    X_SIGHTING_TYPE,
    Kind,
    Request,
    attribute_uuid_of,
    kind_of,
    request_of,
    sighting_of,
)

from threatbus.errors import Rejected
from threatbus.fastpath import FastPath

UUID: Final = "1fe4ade4-d727-450f-88c1-552f5f68c7fa"
SIGHTING_UUID: Final = "64362a74-33f4-45c7-a89e-bcc0af538c0f"
MOMENT: Final = "2026-11-24T02:17:14.000Z"

# As a running MISP 2.5.1 sends it.
ANNOUNCED: Final = (
    b'{"Sighting":{"id":"1","attribute_id":"1","event_id":"1","org_id":"1","date_sighting":'
    b'"1795486634","uuid":"64362a74-33f4-45c7-a89e-bcc0af538c0f","source":"threatbus","type":"0",'
    b'"Event":{"id":"1","uuid":"f2aa1394-d4b7-4208-b85c-277e07d99db2","orgc_id":"1","org_id":"1",'
    b'"info":"capture event one","Orgc":{"name":"ORGNAME"}},"Attribute":{"id":"1","uuid":'
    b'"1fe4ade4-d727-450f-88c1-552f5f68c7fa","type":"ip-dst","category":"Network activity",'
    b'"to_ids":true,"value":"198.51.100.8"}},"action":"add"}'
)


def read(data: bytes | None) -> dict[str, Any]:
    assert data is not None
    assert FastPath().recognise([data]) == ["stix2/sighting"]
    stix2.parse(data.decode(), allow_custom=True)
    found: dict[str, Any] = json.loads(data)
    return found


def announced(**changes: Any) -> Sighting:
    return Sighting(
        **{
            "uuid": SIGHTING_UUID,
            "date_sighting": 1795486634,
            "type": 0,
            "attribute": Attribute(UUID, value="198.51.100.8"),
            **changes,
        }
    )


# From MISP.


def test_what_misp_announces_becomes_a_sighting() -> None:
    message = decode_sighting_message(ANNOUNCED)
    assert message.action == "add"
    assert read(sighting_of(message.sighting, source="MISP one")) == {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{SIGHTING_UUID}",
        "created": MOMENT,
        "modified": MOMENT,
        "first_seen": MOMENT,
        "last_seen": MOMENT,
        "count": 1,
        "sighting_of_ref": f"indicator--{UUID}",
        "x_threatbus_source": "MISP one",
        "x_threatbus_misp_sighting_type": TRUE_POSITIVE,
        "x_threatbus_indicator_value": "198.51.100.8",
        "x_threatbus_sighting_context": {
            "misp_sighting": SIGHTING_UUID,
            "misp_source": "threatbus",
        },
    }


def test_a_false_positive_is_told_apart_and_an_expiration_is_no_sighting() -> None:
    assert read(sighting_of(announced(type=1)))[X_SIGHTING_TYPE] == FALSE_POSITIVE
    assert read(sighting_of(announced(type=None)))[X_SIGHTING_TYPE] == TRUE_POSITIVE
    assert sighting_of(announced(type=2)) is None
    assert [kind_of(announced(type=number)) for number in range(3)] == list(Kind)


def test_an_attribute_that_misp_does_not_name_is_named_by_the_caller() -> None:
    bare = announced(
        attribute=None, value="x", organisation=Organisation(name="ORGNAME"), source="zeek"
    )
    with pytest.raises(Rejected, match="names no attribute"):
        sighting_of(bare)
    found = read(sighting_of(bare, attribute_uuid=UUID))
    assert found["sighting_of_ref"] == f"indicator--{UUID}"
    assert found["x_threatbus_indicator_value"] == "x"
    assert found["x_threatbus_sighting_context"] == {
        "misp_sighting": SIGHTING_UUID,
        "misp_source": "zeek",
        "misp_organisation": "ORGNAME",
    }
    inside = announced(attribute=None, attribute_uuid=UUID.upper())
    assert attribute_uuid_of(inside) == UUID
    assert read(sighting_of(inside))["sighting_of_ref"] == f"indicator--{UUID}"


@pytest.mark.parametrize(
    "changes",
    [
        {"uuid": None},
        {"uuid": "1"},
        {"date_sighting": None},
        {"date_sighting": -1},
        {"date_sighting": 10**12},
        {"type": 3},
        {"attribute": None, "attribute_uuid": "x"},
    ],
)
def test_what_is_no_sighting_is_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="sighting"):
        sighting_of(announced(**changes))


# To MISP.


def published(**changes: Any) -> bytes:
    return json.dumps(
        {
            "type": "sighting",
            "spec_version": "2.1",
            "id": f"sighting--{SIGHTING_UUID}",
            "created": "2026-11-24T01:00:00.000Z",
            "modified": "2026-11-24T01:00:00.000Z",
            "sighting_of_ref": f"indicator--{UUID}",
            **changes,
        }
    ).encode()


def test_misp_is_asked_with_when_how_often_and_by_whom_it_was_seen() -> None:
    request = request_of(
        published(
            first_seen="2026-11-24T02:00:00Z",
            last_seen="2026-11-24T02:17:14.9Z",
            count=7,
            x_threatbus_source="zeek@sensor1",
            x_threatbus_indicator_value="198.51.100.8",
        )
    )
    assert request == Request(UUID, "198.51.100.8", Kind.SIGHTING, "zeek@sensor1", 1795486634, 7)


def test_what_a_sighting_does_not_say_has_defaults() -> None:
    request = request_of(published(), source="bus")
    assert request == Request(UUID, None, Kind.SIGHTING, "bus", 1795482000, 1)


def test_zero_times_is_no_sighting() -> None:
    assert request_of(published(count=0)) is None


def test_a_false_positive_goes_back_as_one() -> None:
    request = request_of(published(**{X_SIGHTING_TYPE: FALSE_POSITIVE}))
    assert request is not None
    assert request.type is Kind.FALSE_POSITIVE
    assert not request.from_misp


@pytest.mark.parametrize("kind", [0, 1])
def test_what_a_misp_has_told_is_known_on_its_way_back(kind: int) -> None:
    request = request_of(sighting_of(announced(type=kind)) or b"")
    assert request is not None
    assert request.from_misp


@pytest.mark.parametrize("as_text", [True, False])
def test_the_value_may_be_in_the_indicator_that_comes_along(as_text: bool) -> None:
    indicator = {"pattern": r"[file:name = 'it\'s' AND file:hashes.MD5 = 'ab']"}
    given = json.dumps(indicator) if as_text else indicator
    request = request_of(published(sighting_of_ref=f"malware--{UUID}", x_threatbus_indicator=given))
    assert request is not None
    assert (request.uuid, request.value) == (None, "it's|ab")


@pytest.mark.parametrize("given", ["", None, 5, ["zeek"]])
def test_a_source_that_is_no_name_is_none(given: Any) -> None:
    request = request_of(published(x_threatbus_source=given), source="bus")
    assert request is not None
    assert request.source == "bus"


@pytest.mark.parametrize(
    "changes",
    [
        {"sighting_of_ref": f"malware--{UUID}"},
        {"sighting_of_ref": "indicator--1"},
        {"sighting_of_ref": None},
        {"count": "many"},
        {"last_seen": 5},
        {"sighting_of_ref": f"malware--{UUID}", "x_threatbus_indicator": "["},
        {"sighting_of_ref": f"malware--{UUID}", "x_threatbus_indicator": {"pattern": 1}},
        {"sighting_of_ref": f"malware--{UUID}", "x_threatbus_indicator": [1]},
    ],
)
def test_a_sighting_of_nothing_is_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="sighting"):
        request_of(published(**changes))


def test_a_time_that_is_none_is_left_to_misp() -> None:
    request = request_of(published(last_seen="0000-01-01T00:00:00Z"))
    assert request is not None
    assert request.timestamp is None


def test_what_the_bus_usually_carries_is_understood() -> None:
    request = request_of(json.dumps(stix_sighting()).encode())
    assert request is not None
    assert request.uuid is not None


@settings(derandomize=True, database=None, deadline=None)
@given(st.integers(0, 253_402_300_799), st.sampled_from([0, 1]))
def test_what_came_from_misp_goes_back_the_same(seconds: int, number: int) -> None:
    data = sighting_of(announced(date_sighting=seconds, type=number))
    read(data)
    request = request_of(data or b"")
    assert request is not None
    assert (request.uuid, request.value) == (UUID, "198.51.100.8")
    assert (request.timestamp, request.type, request.count) == (seconds, number, 1)
