"""Every kind of change in MISP, over ZeroMQ and over Kafka, and the very messages on the bus.

The messages are what a running MISP sent. What the bus is to say stands in ``tests/data/misp/bus``,
one file for each change, one list for each message of MISP; ``WRITE_GOLDEN=1`` writes these files
anew, and what has changed in them is for a person to judge.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp

from integration.misp_helpers import (
    CAPTURES,
    EVENT,
    KafkaStream,
    MispBus,
    Stream,
    ZmqStream,
    captured,
    changed,
)
from integration.misp_server import Misp, MispServer

GOLDEN = Path(__file__).parents[1] / "data/misp/bus"
ATTRIBUTE = captured("attribute_add")["Attribute"]["uuid"]
#: When everything in the MISP that REST shows was made.
NOW = 1795486613

Sent = tuple[str, dict[str, Any]]
#: What MISP does meanwhile that only REST shows.
Done = Callable[[Misp], None]


def lines(name: str) -> list[Sent]:
    """Give all messages of a capture."""
    return [
        (topic, json.loads(body))
        for topic, _, body in (
            line.partition(" ") for line in (CAPTURES / f"{name}.txt").read_text().splitlines()
        )
    ]


def of_attribute(name: str, **changes: Any) -> Sent:
    """Give the message of the attribute in a capture, as if it were the first one's."""
    found = captured(name, "misp_json_attribute")
    return "misp_json_attribute", changed(found, uuid=ATTRIBUTE, **changes)


def sighting(kind: str, number: int = 1, action: str = "add") -> Sent:
    found = captured("sighting_add_uuid") | {"action": action}
    found["Sighting"] |= {
        "type": kind,
        "uuid": f"22222222-2222-4222-8222-22222222222{number}",
        "date_sighting": "1795490000",
    }
    return "misp_json_sighting", found


ADD: Sent = ("misp_json_attribute", captured("attribute_add"))
BLANK = {"type": "comment", "category": "Other", "value": "deleted", "to_ids": False}
GONE: Sent = ("misp_json_event", captured("event_delete") | {"Event": {"id": "1", "uuid": EVENT}})
PUBLISHED: Sent = ("misp_json", captured("event_publish"))


def without_attributes() -> Sent:
    event = copy.deepcopy(captured("event_publish"))
    event["Event"]["Attribute"] = []
    return "misp_json", event


def in_full() -> Sent:
    """Give a published event with tags, and an object with one attribute."""
    event = copy.deepcopy(captured("event_publish"))
    tags = ("tlp:amber+strict", "PAP:RED", 'misp:confidence-level="fairly-confident"')
    event["Event"]["Tag"] = [{"id": str(n), "name": name} for n, name in enumerate(tags)]
    (member,) = [each for each in event["Event"]["Attribute"] if each["to_ids"]][:1]
    member = member | {"uuid": "33333333-3333-4333-8333-333333333333", "object_relation": "file"}
    hashed = "filename|sha256", "it's.exe|" + "ab" * 32
    member |= {"type": hashed[0], "value": hashed[1], "category": "Payload delivery"}
    event["Event"]["Object"] = [{"id": "1", "name": "file", "Attribute": [member]}]
    return "misp_json", event


def event_message(action: str, **changes: Any) -> Sent:
    event = captured("event_create") | {"action": action}
    event["Event"] |= changes
    return "misp_json_event", event


def pulled(action: str) -> Sent:
    return "misp_json_event", {"Event": "1", "Server": "2", "action": action}


def tagged(action: str) -> Sent:
    return "misp_json_tag", captured("event_tag") | {"action": action}


#: The changes, each with what MISP sends.
CHANGES: dict[str, Sequence[Sent]] = {
    "created": [ADD],
    "created_without_to_ids": [("misp_json_attribute", captured("attribute_add_no_ids"))],
    "edited": [ADD, of_attribute("attribute_edit_comment")],
    "value_edited": [
        ADD,
        of_attribute("attribute_edit_comment", value="2001:db8::7", timestamp="1795486700"),
    ],
    "to_ids_off": [ADD, of_attribute("attribute_edit_to_ids_off")],
    "soft_deleted": [ADD, of_attribute("attribute_soft_delete")],
    "soft_deleted_and_blanked": [ADD, of_attribute("attribute_soft_delete", **BLANK)],
    "undeleted": [
        ADD,
        of_attribute("attribute_soft_delete"),
        of_attribute("attribute_edit_comment", timestamp="1795486700"),
    ],
    "hard_deleted": [ADD, of_attribute("attribute_hard_delete")],
    "event_deleted": [ADD, GONE],
    "event_unpublished": [ADD, *lines("event_unpublish")],
    "event_published": [PUBLISHED],
    "event_published_again": [PUBLISHED, PUBLISHED],
    "event_published_without_what_is_gone": [PUBLISHED, without_attributes()],
    "event_published_in_full": [in_full()],
    "event_added": [event_message("add")],
    "object_added": [each for each in lines("object_add") if each[0] == "misp_json_attribute"],
    "attribute_tagged": [ADD, of_attribute("attribute_tag", timestamp="1795486613")],
    "attribute_untagged": [
        of_attribute("attribute_tag", timestamp="1795486613"),
        of_attribute("attribute_untag", timestamp="1795486613"),
    ],
    "sighted": [ADD, sighting("0")],
    "sighting_deleted": [ADD, sighting("0"), sighting("0", action="delete")],
    "false_positive": [ADD, sighting("1")],
    "false_positives_up_to_the_limit": [ADD, sighting("1", 1), sighting("1", 2)],
    "expired": [ADD, sighting("2")],
}


def add_event(misp: Misp) -> None:
    event = misp.add_event("capture event one", event_uuid=EVENT, threat_level_id=2)
    misp.add_attribute(event, "ip-dst", "198.51.100.7", attribute_uuid=ATTRIBUTE)


def tag_event(misp: Misp) -> None:
    misp.tag(misp.events[1], "tlp:red")


def untag_event(misp: Misp) -> None:
    misp.untag(misp.events[1], "tlp:red")


def rename_event(misp: Misp) -> None:
    misp.edit_event(misp.events[1], info="renamed")


def edit_attribute(misp: Misp) -> None:
    misp.edit_attribute(next(iter(misp.attributes.values())), comment="edited elsewhere")


def remove_attribute(misp: Misp) -> None:
    misp.hard_delete(next(iter(misp.attributes.values())))


#: Those of which the messages do not tell all: what is done in MISP, and what it sends then.
ASKED: dict[str, Sequence[tuple[Done, Sent]]] = {
    "pulled": [(add_event, pulled("add_from_connected_server"))],
    "pulled_again": [
        (add_event, pulled("add_from_connected_server")),
        (edit_attribute, pulled("edit_from_connected_server")),
        (remove_attribute, pulled("edit_from_connected_server")),
    ],
    "event_tagged": [
        (add_event, ADD),
        (tag_event, tagged("attached to event")),
        (untag_event, tagged("detached from event")),
    ],
    "event_edited": [
        (add_event, ADD),
        (rename_event, event_message("edit", info="renamed")),
    ],
}


@pytest.fixture(params=[ZmqStream, KafkaStream], ids=["zmq", "kafka"])
def misp(request: pytest.FixtureRequest) -> Iterator[Stream]:
    stream: Stream = request.param()
    yield stream
    stream.close()


def shown(found: dict[str, Any], later: dict[str, str], url: str) -> dict[str, Any]:
    """Give an object without what differs from run to run, once that is seen to be right."""
    if found.get("revoked"):
        # MISP does not say when: now, and later than what is withdrawn.
        assert found["modified"] > later[found["id"]]
        later[found["id"]] = found["modified"]
        found["modified"] = "later than before"
    elif found["type"] == "indicator":
        assert found["modified"] > later.get(found["id"], "")
        later[found["id"]] = found["modified"]
        if found["modified"] > "2026-11-24T02:30":
            found["modified"] = "later than before"
    text = json.dumps(found)
    return dict(json.loads(text.replace(url, "https://misp.example") if url else text))


def golden(name: str, found: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    path = GOLDEN / f"{name}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    expected: list[list[dict[str, Any]]] = json.loads(path.read_text())
    return expected


def said(bus: MispBus, expected: int | None) -> list[dict[str, Any]]:
    """Receive what the bus says next: as many as it should, or in half a second."""
    if expected is not None:
        return bus.receive(expected) if expected else []
    batch = bus.outq.get_many(100, timeout=0.5)
    return [json.loads(m.data) for m in batch if m.topic.startswith("stix2/")]


def counts(name: str) -> list[int | None]:
    if os.environ.get("WRITE_GOLDEN"):
        return [None] * 9
    return [len(each) for each in json.loads((GOLDEN / f"{name}.json").read_text())]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_misp_is_exactly_this_on_the_bus(
    misp: Stream, start_bus: Buses, open_app: OpenApp, name: str
) -> None:
    bus = MispBus(start_bus, open_app, {**misp.section, "false_positive_limit": 2})
    later: dict[str, str] = {}
    found = []
    for (topic, document), expected in zip(CHANGES[name], counts(name), strict=False):
        misp.send(topic, document)
        found.append([shown(each, later, "") for each in said(bus, expected)])
    assert found == golden(name, found)
    assert bus.outq.empty()
    if isinstance(misp, ZmqStream):
        assert bus.rejected() == 0


@pytest.mark.parametrize("name", ASKED)
def test_a_change_that_only_rest_can_tell_is_exactly_this_on_the_bus(
    misp: Stream, start_bus: Buses, open_app: OpenApp, name: str
) -> None:
    with MispServer(Misp(lambda: NOW)) as server:
        api = {"host": server.url, "key": server.key}
        bus = MispBus(start_bus, open_app, {**misp.section, "api": api})
        bus.healed()
        later: dict[str, str] = {}
        found = []
        for (done, (topic, document)), expected in zip(ASKED[name], counts(name), strict=False):
            done(server.misp)
            misp.send(topic, document)
            found.append([shown(each, later, server.url) for each in said(bus, expected)])
        assert found == golden(name, found)
        assert bus.outq.empty()
