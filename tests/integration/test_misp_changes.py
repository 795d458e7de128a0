"""Everything that happens to an attribute in MISP happens to it on the bus, over either stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp
from helpers.waiting import eventually

from integration.misp_helpers import (
    EVENT,
    KafkaStream,
    MispBus,
    Stream,
    ZmqStream,
    attribute_message,
    captured,
    changed,
    shown,
)
from integration.misp_server import MispServer

IP = "[ipv4-addr:value = '198.51.100.7']"
ATTRIBUTE = captured("attribute_add")["Attribute"]["uuid"]

Start = Callable[..., MispBus]


@pytest.fixture(params=[ZmqStream, KafkaStream], ids=["zmq", "kafka"])
def misp(request: pytest.FixtureRequest) -> Iterator[Stream]:
    """MISP's messages, over ZeroMQ and over Kafka."""
    stream: Stream = request.param()
    yield stream
    stream.close()


@pytest.fixture
def zmq_misp() -> Iterator[ZmqStream]:
    stream = ZmqStream()
    yield stream
    stream.close()


@pytest.fixture
def start(start_bus: Buses, open_app: OpenApp) -> Start:
    """Starts a bus that listens to a stream: ``start(misp, published_only=True)``."""

    def started(stream: Stream, **section: Any) -> MispBus:
        return MispBus(start_bus, open_app, {**stream.section, **section})

    return started


def marker() -> dict[str, Any]:
    """An attribute after which all that came before has arrived."""
    return attribute_message(type="domain", value="marker.example")


def nothing_else(bus: MispBus, misp: Stream) -> None:
    """Fail if anything but what was received has come."""
    message = marker()
    message["Event"] |= {"id": "9", "uuid": "99999999-9999-4999-8999-999999999999"}
    misp.send("misp_json_attribute", message)
    (found,) = bus.receive()
    assert found["name"] == "marker.example"


# One test per row of what MISP sends.


def test_a_new_attribute_is_published_as_an_indicator(misp: Stream, start: Start) -> None:
    bus = start(misp)
    misp.send("misp_json_attribute", captured("attribute_add"))
    (found,) = bus.receive()
    assert found["id"] == f"indicator--{ATTRIBUTE}"
    assert found["pattern"] == IP
    assert found["created"] == found["modified"] == found["valid_from"]
    assert found["created"] == "2026-11-24T02:16:53.000Z"
    assert "valid_until" not in found
    assert "revoked" not in found


def test_an_edit_is_a_later_version_of_the_same_indicator(misp: Stream, start: Start) -> None:
    bus = start(misp)
    misp.send("misp_json_attribute", captured("attribute_add"))
    misp.send("misp_json_attribute", captured("attribute_edit_comment"))
    first, second = bus.receive(2)
    assert second["id"] == first["id"]
    assert second["created"] == first["created"]
    assert second["modified"] > first["modified"]
    assert "edited comment" in second["description"]


def test_an_edit_of_the_value_has_the_new_pattern(misp: Stream, start: Start) -> None:
    bus = start(misp)
    added = captured("attribute_add")
    misp.send("misp_json_attribute", added)
    edited = changed(added, value="192.0.2.9", timestamp="1795486999") | {"action": "edit"}
    misp.send("misp_json_attribute", edited)
    assert shown(bus.receive(2))[1] == ("[ipv4-addr:value = '192.0.2.9']", False)


def test_to_ids_off_withdraws_the_indicator(misp: Stream, start: Start) -> None:
    bus = start(misp)
    misp.send("misp_json_attribute", captured("attribute_add"))
    misp.send("misp_json_attribute", captured("attribute_edit_to_ids_off"))
    first, second = bus.receive(2)
    assert second["id"] == first["id"]
    assert second["revoked"] is True
    assert second["x_threatbus_update"] == "REMOVE"
    assert second["pattern"] == first["pattern"]
    assert second["modified"] > first["modified"]


def test_an_attribute_without_to_ids_is_not_published(misp: Stream, start: Start) -> None:
    bus = start(misp)
    misp.send("misp_json_attribute", captured("attribute_add_no_ids"))
    nothing_else(bus, misp)


@pytest.mark.parametrize("blanked", [False, True])
def test_a_soft_deletion_withdraws_even_if_its_payload_is_blanked(
    misp: Stream, start: Start, blanked: bool
) -> None:
    """A soft deletion, MISP's default, left the indicator on every sensor."""
    bus = start(misp)
    misp.send("misp_json_attribute", captured("attribute_add"))
    deletion = captured("attribute_soft_delete")
    if blanked:
        blank = {"type": "comment", "category": "Other", "value": "deleted", "to_ids": False}
        deletion = changed(deletion, **blank)
    misp.send("misp_json_attribute", deletion)
    assert shown(bus.receive(2)) == [(IP, False), (IP, True)]


def test_a_hard_deletion_that_names_no_event_withdraws(misp: Stream, start: Start) -> None:
    """A hard deletion was dropped, or published as an addition."""
    bus = start(misp)
    misp.send("misp_json_attribute", captured("attribute_add"))
    deletion = captured("attribute_hard_delete")
    assert "Event" not in deletion
    misp.send("misp_json_attribute", deletion)
    assert shown(bus.receive(2)) == [(IP, False), (IP, True)]


def test_an_attribute_that_is_restored_returns_under_the_same_id(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    added = captured("attribute_add")
    misp.send("misp_json_attribute", added)
    misp.send("misp_json_attribute", captured("attribute_soft_delete"))
    misp.send("misp_json_attribute", changed(added, timestamp="1895486999") | {"action": "edit"})
    versions = bus.receive(3)
    assert [found.get("revoked", False) for found in versions] == [False, True, False]
    assert len({found["id"] for found in versions}) == 1
    moments = [found["modified"] for found in versions]
    assert moments == sorted(set(moments))


def test_a_deleted_event_withdraws_all_of_its_attributes(misp: Stream, start: Start) -> None:
    bus = start(misp)
    for number in range(3):
        misp.send("misp_json_attribute", attribute_message(value=f"192.0.2.{number}"))
    other = attribute_message(type="domain", value="other.example")
    other["Event"]["uuid"] = "11111111-1111-4111-8111-111111111111"
    misp.send("misp_json_attribute", other)
    # Kafka keeps the order within a topic only.
    bus.receive(4)
    misp.send("misp_json_event", captured("event_delete") | {"Event": {"id": "1", "uuid": EVENT}})
    withdrawn = {each["pattern"] for each in bus.receive(3) if each["revoked"]}
    assert withdrawn == {f"[ipv4-addr:value = '192.0.2.{number}']" for number in range(3)}


def test_an_attribute_whose_event_is_gone_already_is_not_published(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    misp.send("misp_json_event", captured("event_delete") | {"Event": {"id": "1", "uuid": EVENT}})
    other = marker()
    other["Event"] |= {"id": "2", "uuid": "11111111-1111-4111-8111-111111111111"}
    misp.send("misp_json_attribute", captured("attribute_add"))
    eventually(lambda: bus.instance.index.event(EVENT) is not None)
    misp.send("misp_json_attribute", captured("attribute_add"))
    misp.send("misp_json_attribute", other)
    names = []
    while "marker.example" not in names:
        found = bus.receive()[0]
        # Over Kafka the attribute may have been faster.
        names += [] if found.get("revoked") else [found["name"]]
    assert misp.section.keys() == {"kafka"} or names == ["marker.example"]


def test_a_published_event_publishes_its_attributes_with_the_tags_of_the_event(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    event = captured("event_publish")
    event["Event"]["Tag"] = [{"id": "1", "name": "tlp:red"}, {"id": "2", "name": "apt:x"}]
    misp.send("misp_json", event)
    wanted = [each for each in event["Event"]["Attribute"] if each["to_ids"]]
    found = bus.receive(len(wanted))
    assert {each["id"] for each in found} == {f"indicator--{each['uuid']}" for each in wanted}
    for each in found:
        assert "apt:x" in each["labels"]
        (marking,) = each["object_marking_refs"]
        assert marking.endswith("e828b379-4e03-4974-9ac4-e53a884c97c1")


def test_what_a_published_event_no_longer_holds_is_withdrawn(misp: Stream, start: Start) -> None:
    bus = start(misp)
    event = captured("event_publish")
    misp.send("misp_json", event)
    count = sum(each["to_ids"] for each in event["Event"]["Attribute"])
    first = bus.receive(count)
    gone = next(each for each in event["Event"]["Attribute"] if each["to_ids"])
    event["Event"]["Attribute"].remove(gone)
    misp.send("misp_json", event)
    (found,) = bus.receive()
    assert found["id"] == f"indicator--{gone['uuid']}"
    assert found["revoked"] is True
    assert found["id"] in {each["id"] for each in first}


def test_an_event_that_is_published_again_unchanged_publishes_nothing(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    event = captured("event_publish")
    misp.send("misp_json", event)
    bus.receive(sum(each["to_ids"] for each in event["Event"]["Attribute"]))
    misp.send("misp_json", event)
    nothing_else(bus, misp)


def test_objects_attributes_are_published(misp: Stream, start: Start) -> None:
    bus = start(misp)
    messages = [
        json.loads(line.partition(" ")[2])
        for line in captured_lines("object_add")
        if line.startswith("misp_json_attribute ")
    ]
    for message in messages:
        misp.send("misp_json_attribute", message)
    wanted = [message for message in messages if message["Attribute"]["to_ids"]]
    assert len(bus.receive(len(wanted))) == len(wanted) > 0


def captured_lines(name: str) -> list[str]:
    from integration.misp_helpers import CAPTURES  # noqa: PLC0415

    return (CAPTURES / f"{name}.txt").read_text().splitlines()


def test_a_tag_on_an_attribute_is_a_new_version_with_the_marking(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    edited = captured("attribute_tag", "misp_json_attribute")
    misp.send("misp_json_attribute", changed(edited, Tag=[]))
    misp.send("misp_json_tag", captured("attribute_tag", "misp_json_tag"))
    misp.send("misp_json_attribute", edited)
    first, second = bus.receive(2)
    assert "object_marking_refs" not in first
    assert second["object_marking_refs"]
    assert second["modified"] > first["modified"]


def test_sightings_and_false_positives_come_onto_the_bus_told_apart(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    misp.send("misp_json_sighting", captured("sighting_add_uuid"))
    misp.send("misp_json_sighting", captured("sighting_add_false_positive"))
    seen, false = bus.receive(2)
    for found in (seen, false):
        assert found["type"] == "sighting"
        assert found["sighting_of_ref"] == f"indicator--{ATTRIBUTE}"
    assert seen["x_threatbus_misp_sighting_type"] == "sighting"
    assert false["x_threatbus_misp_sighting_type"] == "false-positive"


def test_an_expiration_withdraws_and_a_later_edit_brings_the_indicator_back(
    misp: Stream, start: Start
) -> None:
    bus = start(misp)
    added = captured("attribute_add")
    misp.send("misp_json_attribute", added)
    bus.receive()
    expired = captured("sighting_add_uuid")
    expired["Sighting"] |= {"type": "2", "date_sighting": "1795490000"}
    misp.send("misp_json_sighting", expired)
    assert bus.receive()[0]["revoked"] is True
    # The same edit again is no reason to believe in it again; a later one is.
    misp.send("misp_json_attribute", added | {"action": "edit"})
    misp.send("misp_json_attribute", changed(added, timestamp="1795490001") | {"action": "edit"})
    assert "revoked" not in bus.receive()[0]
    nothing_else(bus, misp)


def test_as_many_false_positives_as_the_limit_says_withdraw(misp: Stream, start: Start) -> None:
    bus = start(misp, false_positive_limit=2)
    misp.send("misp_json_attribute", captured("attribute_add"))
    bus.receive()
    false = captured("sighting_add_false_positive")
    misp.send("misp_json_sighting", false)
    false["Sighting"]["uuid"] = "22222222-2222-4222-8222-222222222222"
    misp.send("misp_json_sighting", false)
    found = bus.receive(3)
    assert [each["type"] for each in found] == ["sighting", "indicator", "sighting"]
    assert found[1]["revoked"] is True


# Filters.


def test_changes_wait_for_the_publication_of_their_event_if_only_published_ones_are_wanted(
    misp: Stream, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Drafts were distributed."""
    bus = start(misp, published_only=True)
    misp.send("misp_json_attribute", captured("attribute_add"))
    held = f"attribute {ATTRIBUTE} has changed; the bus hears of it when MISP publishes the event"
    eventually(lambda: held in caplog.text)
    event = captured("event_publish")
    # As MISP sends it: read before it was saved.
    assert event["Event"]["published"] is False
    misp.send("misp_json", event)
    count = sum(each["to_ids"] for each in event["Event"]["Attribute"])
    assert {found["id"] for found in bus.receive(count)} >= {f"indicator--{ATTRIBUTE}"}
    misp.send("misp_json_attribute", captured("attribute_soft_delete"))
    event["Event"]["Attribute"] = []
    misp.send("misp_json", event)
    assert all(found["revoked"] for found in bus.receive(count))


def test_an_indicator_is_valid_for_as_long_as_its_type_is_configured_to_be(
    zmq_misp: ZmqStream, start: Start
) -> None:
    bus = start(zmq_misp, valid_for={"ip-dst": 30, "default": 1})
    zmq_misp.send("misp_json_attribute", captured("attribute_add"))
    zmq_misp.send("misp_json_attribute", attribute_message(type="domain", value="a.example"))
    first, second = bus.receive(2)
    assert first["valid_until"] == "2026-12-24T02:16:53.000Z"
    assert second["valid_until"] == "2026-11-25T02:16:53.000Z"


def test_a_misp_that_sends_nothing_but_published_events_is_enough(
    zmq_misp: ZmqStream, start: Start
) -> None:
    bus = start(zmq_misp)
    event = captured("event_publish")
    (member,) = [each for each in event["Event"]["Attribute"] if each["to_ids"]]
    zmq_misp.send("misp_json", event)
    member |= {"value": "192.0.2.1", "timestamp": "1795487000"}
    zmq_misp.send("misp_json", event)
    member["to_ids"] = False
    zmq_misp.send("misp_json", event)
    member |= {"to_ids": True, "timestamp": "1795488000"}
    zmq_misp.send("misp_json", event)
    event["Event"]["Attribute"] = []
    zmq_misp.send("misp_json", event)
    new = "[ipv4-addr:value = '192.0.2.1']"
    assert shown(bus.receive(5)) == [
        (IP, False),
        (new, False),
        (new, True),
        (new, False),
        (new, True),
    ]


@pytest.mark.parametrize(
    ("section", "passes"),
    [
        ({"filter": [{"types": ["ip-dst"]}]}, True),
        ({"filter": [{"types": ["domain"]}]}, False),
        ({"filter": [{"orgs": ["1"]}]}, True),
        ({"filter": [{"orgs": [1, 7]}]}, True),
        ({"filter": [{"orgs": ["ORGNAME"]}]}, True),
        ({"filter": [{"orgs": ["41a17e87-b786-4c52-bb39-be63c6cebb5e"]}]}, True),
        ({"filter": [{"orgs": ["2"]}]}, False),
        ({"filter": [{"orgs": ["1"], "types": ["domain"]}]}, False),
        ({"filter": [{"orgs": ["2"]}, {"types": ["ip-dst"]}]}, True),
        ({"threat_level": 2}, True),
        ({"threat_level": 1}, False),
    ],
)
def test_filters_let_pass_what_they_say(
    zmq_misp: ZmqStream, start: Start, section: dict[str, Any], passes: bool
) -> None:
    bus = start(zmq_misp, **section)
    zmq_misp.send("misp_json_attribute", captured("attribute_add"))
    if passes:
        assert shown(bus.receive()) == [(IP, False)]
    else:
        eventually(lambda: bus.instance.reconciler.counters.filtered == 1)
        assert bus.outq.empty()


@pytest.mark.parametrize(
    "section", [{"filter": [{"types": ["domain"]}]}, {"published_only": True}], ids=str
)
def test_a_sighting_does_not_tell_the_value_of_what_is_kept_off_the_bus(
    zmq_misp: ZmqStream, start: Start, section: dict[str, Any]
) -> None:
    bus = start(zmq_misp, **section)
    event = captured("event_publish")
    event["Event"]["Attribute"] = [
        {**event["Event"]["Attribute"][0], "uuid": KNOWN, "type": "domain", "value": "k.example"}
    ]
    zmq_misp.send("misp_json", event)
    zmq_misp.send("misp_json_attribute", captured("attribute_add"))
    zmq_misp.send("misp_json_sighting", captured("sighting_add_uuid"))
    of_known = captured("sighting_add_false_positive")
    of_known["Sighting"]["Attribute"]["uuid"] = KNOWN
    zmq_misp.send("misp_json_sighting", of_known)
    found = bus.receive(2)
    assert found[0]["name"] == "k.example"
    assert found[1]["sighting_of_ref"] == f"indicator--{KNOWN}"


def test_sightings_of_what_was_never_heard_of_come_if_the_filters_let_them(
    zmq_misp: ZmqStream, start: Start
) -> None:
    bus = start(zmq_misp, published_only=True, filter=[{"types": ["ip-dst"]}])
    for number, kind in enumerate(("domain", "ip-dst")):
        found = captured("sighting_add_uuid")
        found["Sighting"]["uuid"] = f"{KNOWN[:-1]}{number}"
        found["Sighting"]["Attribute"] |= {"uuid": f"{KNOWN[:-1]}{number + 5}", "type": kind}
        zmq_misp.send("misp_json_sighting", found)
    (passed,) = bus.receive(1)
    assert passed["sighting_of_ref"] == f"indicator--{KNOWN[:-1]}6"


KNOWN = "11111111-1111-4111-8111-111111111111"


def test_where_tags_are_filtered_the_events_tags_are_asked_for_first(
    zmq_misp: ZmqStream, start: Start
) -> None:
    """The tags of an event, where TLP usually sits, were invisible to the filter."""
    with MispServer() as server:
        event = server.misp.add_event("capture event one", tags=["tlp:red"], event_uuid=EVENT)
        server.misp.add_attribute(event, "ip-dst", "198.51.100.7", attribute_uuid=ATTRIBUTE)
        api = {"host": server.url, "key": server.key}
        bus = start(zmq_misp, api=api, exclude_tags=["tlp:red"])
        bus.healed()
        message = captured("attribute_add")
        message["Event"]["id"] = str(event.id)
        zmq_misp.send("misp_json_attribute", message)
        eventually(lambda: bus.instance.reconciler.counters.filtered >= 1)
        assert bus.outq.empty()
        server.misp.untag(event, "tlp:red")
        zmq_misp.send(
            "misp_json_tag",
            {
                "Tag": {"id": "1", "name": "tlp:red", "event_id": str(event.id)},
                "action": "detached from event",
            },
        )
        assert shown(bus.receive()) == [(IP, False)]


def test_a_pulled_event_that_is_only_named_is_asked_for(zmq_misp: ZmqStream, start: Start) -> None:
    with MispServer() as server:
        bus = start(zmq_misp, api={"host": server.url, "key": server.key})
        bus.healed()
        event = server.misp.add_event("pulled")
        server.misp.add_attribute(event, "domain", "pulled.example")
        pulled = {"Event": str(event.id), "Server": "2", "action": "add_from_connected_server"}
        zmq_misp.send("misp_json_event", pulled)
        assert shown(bus.receive()) == [("[domain-name:value = 'pulled.example']", False)]


# Bad input.


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2",
        b"[" * 5000,
        b"null",
        b"{}",
        {"Attribute": {}},
        {"Attribute": []},
        {"Attribute": {"uuid": ATTRIBUTE, "type": 7, "value": {}}, "action": "add"},
        {"Attribute": {"uuid": ATTRIBUTE, "type": "ip-dst", "value": "x"}, "action": "explode"},
        {"Event": {"uuid": "nonsense"}, "action": "edit"},
        {"Sighting": {"type": "9", "Attribute": {"uuid": ATTRIBUTE}}, "action": "add"},
        changed(captured("attribute_add"), value="no address"),
        changed(captured("attribute_add"), type="md5", value="123"),
    ],
    ids=lambda document: str(document)[:50],
)
def test_a_message_that_is_no_good_is_rejected_and_the_next_one_is_fine(
    zmq_misp: ZmqStream, start: Start, document: Any
) -> None:
    bus = start(zmq_misp)
    zmq_misp.send("misp_json_attribute", document)
    nothing_else(bus, zmq_misp)
    assert bus.rejected() == 1
    if isinstance(document, dict) and ATTRIBUTE in json.dumps(document):
        (reason,) = [reason for _, reason in bus.bus.rejects.counts]
        assert ATTRIBUTE in reason


def test_a_comment_of_ten_megabytes_is_cut_and_costs_nothing(
    zmq_misp: ZmqStream, start: Start
) -> None:
    bus = start(zmq_misp)
    zmq_misp.send("misp_json_attribute", changed(captured("attribute_add"), comment="x" * 10**7))
    (found,) = bus.receive()
    assert len(found["description"]) < 10_000
    nothing_else(bus, zmq_misp)


def test_topics_that_only_begin_alike_are_not_taken(zmq_misp: ZmqStream, start: Start) -> None:
    bus = start(zmq_misp)
    for topic in ("misp_json_audit", "misp_json_self", "misp_json_attributes", "misp_jsonx"):
        zmq_misp.send(topic, captured("attribute_add"))
    nothing_else(bus, zmq_misp)


def test_types_that_make_no_pattern_are_counted_and_no_error(
    zmq_misp: ZmqStream, start: Start
) -> None:
    bus = start(zmq_misp)
    zmq_misp.send("misp_json_attribute", changed(captured("attribute_add"), type="comment"))
    nothing_else(bus, zmq_misp)
    assert bus.instance.reconciler.counters.unmapped == 1
    assert bus.rejected() == 0
