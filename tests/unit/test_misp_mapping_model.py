"""The lenses on MISP's JSON: lenient about form, clear about what cannot be read."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threatbus_misp.mapping import model

from threatbus.errors import Rejected

UUID: Final = "1fe4ade4-d727-450f-88c1-552f5f68c7fa"
EVENT_UUID: Final = "f2aa1394-d4b7-4208-b85c-277e07d99db2"

# As a running MISP 2.5.1 sends it, shortened.
ADDED: Final[dict[str, Any]] = {
    "Attribute": {
        "id": "1",
        "event_id": "1",
        "object_id": "0",
        "object_relation": None,
        "category": "Network activity",
        "type": "ip-dst",
        "value1": "198.51.100.7",
        "value2": "",
        "to_ids": True,
        "uuid": UUID,
        "timestamp": "1795486613",
        "comment": "c2",
        "deleted": False,
        "first_seen": None,
        "value": "198.51.100.7",
        "Tag": [{"id": "1", "name": "tlp:amber", "exportable": True, "local": False}],
        "Sighting": [],
    },
    "Event": {
        "id": "1",
        "date": "2026-11-24",
        "info": "capture event one",
        "uuid": EVENT_UUID,
        "published": False,
        "threat_level_id": "2",
        "org_id": "1",
        "orgc_id": "1",
        "Orgc": {"id": "1", "uuid": "41a17e87-b786-4c52-bb39-be63c6cebb5e", "name": "ORGNAME"},
    },
    "action": "add",
}


def encode(found: Any) -> bytes:
    return json.dumps(found).encode()


def attribute(**changes: Any) -> dict[str, Any]:
    return {**ADDED, "Attribute": {**ADDED["Attribute"], **changes}}


def test_an_attribute_message_is_read() -> None:
    message = model.decode_attribute_message(encode(ADDED))
    assert message.action == "add"
    found, event = message.attribute, message.event
    assert (found.uuid, found.type, found.value) == (UUID, "ip-dst", "198.51.100.7")
    assert found.event_id == 1
    assert (found.to_ids, found.deleted, found.timestamp) == (True, False, 1795486613)
    assert found.tags is not None
    assert [tag.name for tag in found.tags] == ["tlp:amber"]
    assert event is not None
    assert event.orgc is not None
    assert (event.uuid, event.published, event.threat_level_id) == (EVENT_UUID, False, 2)
    assert (event.orgc.name, event.orgc.id) == ("ORGNAME", 1)


def test_a_hard_deletion_has_no_event() -> None:
    message = model.decode_attribute_message(
        encode({"Attribute": ADDED["Attribute"], "action": "delete"})
    )
    assert (message.event, message.action) == (None, "delete")


@pytest.mark.parametrize(
    ("given", "expected"), [("0", False), ("1", True), (1, True), (None, None)]
)
def test_booleans_and_numbers_may_be_written_either_way(given: Any, expected: bool | None) -> None:
    found = model.decode_attribute_message(
        encode(attribute(to_ids=given, deleted=given, timestamp=1795486613, event_id=7))
    ).attribute
    assert (found.to_ids, found.deleted) == (expected, expected)
    assert (found.timestamp, found.event_id) == (1795486613, 7)


def test_little_more_than_a_uuid_is_needed() -> None:
    found = model.decode_attribute_message(encode({"Attribute": {"uuid": UUID.upper()}}))
    assert found.attribute == model.Attribute(UUID)


def test_a_pulled_event_is_only_a_number() -> None:
    data = b'{"Event":"1737","Server":"2","action":"add_from_connected_server"}'
    assert model.decode_event_message(data).event == "1737"


def test_the_tags_of_an_event_are_found_wherever_they_are() -> None:
    inside = model.decode_event_message(
        encode(
            {
                "Event": {
                    "id": "1",
                    "Tag": [{"name": "a"}],
                    "EventTag": [{"Tag": {"name": "b"}}, {"Tag": []}],
                }
            }
        )
    )
    assert isinstance(inside.event, model.Event)
    assert [tag.name for tag in inside.event.all_tags()] == ["a", "b"]
    beside = model.decode_event_message(
        encode({"Event": {"id": "1"}, "EventTag": [{"Tag": {"name": "c"}}], "action": "edit"})
    )
    assert beside.event_tags is not None
    assert [each.tag for each in beside.event_tags] == [model.Tag("c")]


def test_a_tag_message_names_what_it_is_attached_to() -> None:
    found = model.decode_tag_message(
        b'{"Tag":{"id":"1","name":"tlp:amber","exportable":true,"attribute_id":"3",'
        b'"event_id":"1"},"action":"attached to attribute"}'
    )
    assert (found.tag.name, found.tag.attribute_id, found.tag.event_id) == ("tlp:amber", 3, 1)


def test_a_full_event_gives_its_attributes_and_those_of_its_objects_one_by_one() -> None:
    good = ADDED["Attribute"]
    message = model.decode_event_message(
        encode(
            {
                "Event": {
                    "id": "1",
                    "Attribute": [good, {**good, "timestamp": "soon"}, {"uuid": "x"}],
                    "Object": [
                        {"name": "file", "deleted": "1", "Attribute": [good]},
                        {"deleted": "perhaps"},
                        {"name": "empty"},
                        {"name": "domain-ip", "Attribute": [good, 5]},
                    ],
                }
            }
        )
    )
    assert isinstance(message.event, model.Event)
    found = list(model.members(message.event))
    read = [each for each in found if isinstance(each, model.Attribute)]
    assert [each.deleted for each in read] == [False, True, False]
    reasons = [each.reason for each in found if isinstance(each, Rejected)]
    assert len(reasons) == 4
    assert UUID in reasons[0]


def test_rest_answers_are_read_alike() -> None:
    found = model.read_attribute({**ADDED["Attribute"], "Event": ADDED["Event"]})
    assert found.event is not None
    assert found.event.uuid == EVENT_UUID
    event = model.read_event({"uuid": EVENT_UUID, "Attribute": [ADDED["Attribute"]]})
    assert [each.uuid for each in model.members(event) if isinstance(each, model.Attribute)] == [
        UUID
    ]
    assert model.read_sighting({"id": "1", "type": "1", "source": "x"}).type == 1


def test_phps_arrays_are_read_as_what_they_stand_for() -> None:
    """PHP writes no object as [], and a list of which something was taken out as an object."""
    tags = {"1": {"name": "tlp:red"}, "3": {"name": "b"}}
    read = model.decode_attribute_message(encode(attribute(Tag=tags) | {"Event": []}))
    assert read.event is None
    assert [tag.name for tag in read.attribute.tags or ()] == ["tlp:red", "b"]
    inside = {"Orgc": [], "Attribute": {"2": {**ADDED["Attribute"], "Tag": tags}}, "Tag": []}
    message = model.decode_event_message(encode({"Event": {"uuid": EVENT_UUID, **inside}}))
    assert isinstance(message.event, model.Event)
    assert (message.event.orgc, message.event.tags) == (None, [])
    (member,) = model.members(message.event)
    assert isinstance(member, model.Attribute)
    assert [tag.name for tag in member.tags or ()] == ["tlp:red", "b"]
    sighted = {"type": "1", "Organisation": [], "Attribute": {"uuid": UUID}}
    assert model.decode_sighting_message(encode({"Sighting": sighted})).sighting.type == 1


def test_what_the_bus_does_not_use_may_be_anything() -> None:
    unused: dict[str, Any] = {
        "id": "",
        "object_id": None,
        "Object": [],
        "SharingGroup": [],
        "Galaxy": {"a": 1},
    }
    read = model.decode_attribute_message(encode(attribute(**unused) | {"Object": []}))
    assert read.attribute.value == "198.51.100.7"


@pytest.mark.parametrize(
    "message",
    [
        attribute(uuid=None),
        attribute(uuid="1fe4ade4"),
        attribute(uuid="1fe4ade4-d727-450f-c8c1-552f5f68c7fa"),  # variant of another RFC
        attribute(value=3),
        attribute(value="x" * 200_001),
        attribute(comment=["x"]),
        attribute(timestamp="yesterday"),
        attribute(timestamp=-1),
        attribute(timestamp=10**12),
        attribute(timestamp="9" * 500),
        attribute(Tag={"name": "x"}),
        attribute(to_ids="perhaps"),
        {"Attribute": [], "action": "add"},
        {"action": "add"},
        [],
        None,
    ],
    ids=lambda found: str(found)[:40],
)
def test_what_cannot_be_read_is_rejected_with_one_line(message: Any) -> None:
    with pytest.raises(Rejected) as caught:
        model.decode_attribute_message(encode(message))
    reason = caught.value.reason
    assert reason.isprintable()
    assert len(reason) <= 300
    if isinstance(message, dict):
        uuid = dict(message.get("Attribute") or {}).get("uuid")
        assert uuid != UUID or UUID in reason


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"Attribute":{"uuid":"\xff"}}', b"[" * 100_000, b"NaN"]
)
def test_what_is_no_json_is_rejected(data: bytes) -> None:
    for decode in (
        model.decode_attribute_message,
        model.decode_event_message,
        model.decode_tag_message,
        model.decode_sighting_message,
    ):
        with pytest.raises(Rejected):
            decode(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.sampled_from(sorted(ADDED["Attribute"])), anything)
def test_a_wrong_value_anywhere_is_read_or_rejected(key: str, value: Any) -> None:
    try:
        found = model.decode_attribute_message(encode(attribute(**{key: value})))
    except Rejected:
        return
    assert model.is_uuid(found.attribute.uuid)
