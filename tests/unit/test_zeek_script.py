"""The script that runs in Zeek, as far as it can be looked at without one."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tree_sitter
import tree_sitter_zeek
from helpers.documents import NOW
from threatbus_zeek.events import MANAGE_TOPIC, SIGHTING_TOPIC, Protocol
from threatbus_zeek.mapping import Change
from threatbus_zeek.patterns import Item
from threatbus_zeek.values import Count, Event

SCRIPT = Path(__file__).parents[2] / "apps/zeek/threatbus.zeek"
TEXT = SCRIPT.read_text()
PROTOCOL = Protocol("Tenzir")


def fields(record: str) -> list[str]:
    found = re.search(rf"type {record}: record \{{(.*?)\}};", TEXT, re.DOTALL)
    assert found is not None
    return re.findall(r"(\w+): [\w\[\]: ]+?(?: &optional)?;", found[1])


def parameters(event: str) -> list[str]:
    found = re.search(rf"global {event}: event\((.*?)\);", TEXT)
    assert found is not None
    return re.findall(r"\w+(?=: )", found[1])


def body_of(event: str) -> list[str]:
    return TEXT.partition(f"event {event}\n")[2].partition("\nevent ")[0].splitlines()


def test_it_is_in_zeeks_language() -> None:
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_zeek.language()))
    root = parser.parse(SCRIPT.read_bytes()).root_node
    assert not root.has_error


@pytest.mark.parametrize(
    "name",
    ["broker_host", "broker_port", "snapshot_intel", "intel_topic", "sighting_topic",
     "management_topic", "report_sightings", "noisy_intel_threshold", "log_operations"],
)  # fmt: skip
def test_the_names_that_users_set_are_those_of_2022_5_16(name: str) -> None:
    assert re.search(rf"^\toption {name}: .* &redef;$", TEXT, re.MULTILINE)
    assert "\nmodule Tenzir;\n" in TEXT


def test_its_topics_are_those_that_the_bus_listens_to() -> None:
    assert f'management_topic: string = "{MANAGE_TOPIC}"' in TEXT
    assert f'sighting_topic: string = "{SIGHTING_TOPIC}"' in TEXT


def test_what_it_sends_the_bus_understands() -> None:
    events: dict[str, tuple[Any, ...]] = {
        "join": ("stix2/indicatorabcdefghijklmn", "stix2/indicator", timedelta(0), "zeek"),
        "received": ("p2p", Count(1)),
        "unsubscribe": ("p2p",),
        "sighting": (NOW, "id", {}),
    }
    for name, args in events.items():
        assert len(parameters(name)) == len(args)
        assert PROTOCOL.read(Event(f"Tenzir::{name}", args)) is not None


def test_what_the_bus_sends_it_understands() -> None:
    change = Change("id", NOW, (Item("ADDR", "192.0.2.1"),), (), "desc", "source", 5)
    for event in (
        PROTOCOL.joined("p2p"),
        PROTOCOL.not_joined("p2p"),
        PROTOCOL.batch("p2p", 1, [change]),
    ):
        assert len(parameters(event.name.removeprefix("Tenzir::"))) == len(event.args)
    (record,) = PROTOCOL.batch("p2p", 1, [change]).args[2]
    assert fields("Indicator") == ["ts", "id", "items", "source", "desc", "confidence"]
    assert len(record) == 6
    assert fields("Item") == ["intel_type", "indicator"]


def test_it_knows_every_intel_type_of_the_bus() -> None:
    types = set(re.findall(r'\["(\w+)"\] = Intel::\1,', TEXT))
    assert types == {
        "ADDR", "SUBNET", "DOMAIN", "URL", "EMAIL", "FILE_HASH", "FILE_NAME", "CERT_HASH",
        "SOFTWARE", "USER_NAME",
    }  # fmt: skip


def test_the_operators_own_intelligence_stays() -> None:
    """One source for all, and removal that purges, would take the operator's along."""
    # Metadata is kept by source: each indicator has one of its own, and only that is removed.
    assert '$source=cat(intel_source, " ", id)' in TEXT
    removals = re.findall(r"Intel::remove\((.*)\)", TEXT)
    assert removals == ["intel_item(id, item), F"]


def test_in_a_cluster_only_the_manager_talks() -> None:
    speaks = "return ! Cluster::is_enabled() || Cluster::local_node_type() == Cluster::MANAGER;"
    assert speaks in TEXT
    assert "! talks_to_bus()" in body_of("Intel::match(s: Intel::Seen, items: set[Intel::Item])")[1]
    begun = body_of("zeek_init()")
    assert begun.index("\tif ( ! talks_to_bus() )") < begun.index("\tbegin_subscription();")


def test_what_it_schedules_is_found_by_every_zeek() -> None:
    """Before 5.1 an event of the module is not found by its bare name, and nothing says so."""
    scheduled = re.findall(r"\bschedule \w+ \{ (\w+)\(\) \};", TEXT)
    assert len(scheduled) == TEXT.count("\tschedule ") == 2
    for name in scheduled:
        assert f"global {name}:" not in TEXT
        assert TEXT.index(f"\nevent {name}()") < TEXT.index(f"{{ {name}() }}")


def test_in_a_cluster_every_node_knows_its_log() -> None:
    """A logger of a cluster drops what is written to a stream that it has not created itself."""
    begun = body_of("zeek_init()")
    created = begun.index('\tLog::create_stream(LOG, [$columns=Info, $path="threatbus"]);')
    assert created < begun.index("\tif ( ! talks_to_bus() )")
