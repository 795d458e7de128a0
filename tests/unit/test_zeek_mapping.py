"""Indicators to changes of Zeek's intelligence, and what Zeek saw to sightings."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from helpers.documents import NOW, encode, indicator, timestamp
from threatbus_zeek.events import Sighting
from threatbus_zeek.mapping import MAX_DESCRIPTION, Change, IndicatorReader, sighting_document
from threatbus_zeek.values import Count, Enum, Port

from threatbus.border import Border
from threatbus.errors import Rejected

ID = "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"
DOMAIN = ("DOMAIN", "example.com")


def read(**properties: Any) -> Change:
    document = encode(indicator(**properties))
    return IndicatorReader(reduce_ip_port=False).read(document, NOW)


def sighted(intel_id: str = ID, context: dict[Any, Any] | None = None) -> dict[str, Any]:
    document = sighting_document(Sighting(NOW, intel_id, context or {}), NOW)
    # It has to pass the border like everything else.
    assert Border().topic_of(document) == "stix2/sighting"
    found: dict[str, Any] = json.loads(document)
    return found


def test_an_indicator_brings_its_items_and_what_is_known_of_it() -> None:
    change = read(
        id=ID,
        modified=timestamp(5),
        name="C2",
        description="seen in spring",
        confidence=80,
        x_threatbus_source="misp",
    )
    assert change == Change(
        ID,
        NOW + timedelta(seconds=5),
        (DOMAIN,),  # type: ignore[arg-type]
        (),
        "C2: seen in spring",
        "misp",
        80,
    )
    assert not change.is_unmapped


@pytest.mark.parametrize(
    "properties",
    [
        {"revoked": True},
        {"x_threatbus_update": "REMOVE"},
        {"valid_until": timestamp(0), "valid_from": timestamp(-9)},
        {"valid_until": timestamp(-1), "valid_from": timestamp(-9)},
    ],
)
def test_a_withdrawn_indicator_has_no_items_any_more(properties: dict[str, Any]) -> None:
    change = read(**properties)
    assert change.items == ()
    assert change.withdrawn_items == (DOMAIN,)
    assert not change.is_unmapped


@pytest.mark.parametrize(
    "properties",
    [{"revoked": False}, {"x_threatbus_update": "EDIT"}, {"valid_until": timestamp(1)}],
)
def test_any_other_state_of_an_indicator_counts(properties: dict[str, Any]) -> None:
    assert read(**properties).items == (DOMAIN,)


def test_a_pattern_of_another_language_has_no_counterpart() -> None:
    rule = 'alert tcp any any -> any any (msg:"x"; sid:1;)'
    assert read(pattern=rule, pattern_type="suricata").is_unmapped


def test_a_long_description_is_cut() -> None:
    assert len(read(description="x" * 10_000).description) == MAX_DESCRIPTION


def test_a_document_that_is_no_indicator_is_rejected() -> None:
    with pytest.raises(Rejected, match="cannot be read"):
        IndicatorReader(reduce_ip_port=False).read(b"{}", NOW)


def test_a_hit_becomes_a_sighting_of_the_indicator_at_that_time() -> None:
    document = sighted(context={"noisy": True})
    assert document["sighting_of_ref"] == ID
    assert document["first_seen"] == document["last_seen"] == "2026-11-24T12:00:00.000Z"
    assert document["count"] == 1
    assert document["x_threatbus_sighting_context"] == {"noisy": True}


def test_two_hits_are_two_sightings() -> None:
    assert sighted()["id"] != sighted()["id"]


def test_the_context_holds_every_type_of_zeeks() -> None:
    context = {
        "string": "text",
        "count": Count(5),
        "int": -5,
        "bool": False,
        "double": 1.5,
        "nan": float("nan"),
        "table": {"a": {"b": Count(1)}, ("x", Count(2)): "two indexes", Count(7): "number"},
        "vector": (1, "b", (True,)),
        "set": frozenset({"b", "a"}),
        "time": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        "interval": timedelta(minutes=1.5),
        "addr": ip_address("2001:db8::1"),
        "subnet": ip_network("192.0.2.0/24"),
        "port": Port("80/tcp"),
        "enum": Enum("HTTP::IN_URL"),
        "unset": None,
    }
    assert sighted(context=context)["x_threatbus_sighting_context"] == {
        "string": "text",
        "count": 5,
        "int": -5,
        "bool": False,
        "double": 1.5,
        "nan": "nan",
        "table": {"a": {"b": 1}, "x, 2": "two indexes", "7": "number"},
        "vector": [1, "b", [True]],
        "set": ["a", "b"],
        "time": "2026-01-02T03:04:05.678000Z",
        "interval": 90.0,
        "addr": "2001:db8::1",
        "subnet": "192.0.2.0/24",
        "port": "80/tcp",
        "enum": "HTTP::IN_URL",
        "unset": None,
    }


@pytest.mark.parametrize("intel_id", ["", "threatbus", "indicator--1", f"{ID} ", f"{ID}\n"])
def test_a_hit_of_something_without_a_stix_id_is_rejected(intel_id: str) -> None:
    with pytest.raises(Rejected, match="no STIX id"):
        sighted(intel_id)


def test_a_context_without_end_is_rejected() -> None:
    nested: Any = ()
    for _ in range(100_000):
        nested = (nested,)
    with pytest.raises(Rejected, match="context"):
        sighted(context={"deep": nested})
