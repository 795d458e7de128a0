"""Attributes to indicators and their withdrawal, held against the STIX library."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
import stix2
from hypothesis import given, settings
from hypothesis import strategies as st
from threatbus_misp.mapping.indicators import (
    MAX_TEXT,
    Unmapped,
    Version,
    indicator_of,
    withdrawal_of,
)
from threatbus_misp.mapping.model import Attribute, Event, EventTag, Tag
from threatbus_misp.mapping.tags import TLP_MARKINGS, marks_of
from threatbus_misp.mapping.times import MAX_MOMENT_MS, from_stix, to_stix

from threatbus.errors import Rejected
from threatbus.fastpath import FastPath

UUID: Final = "1fe4ade4-d727-450f-88c1-552f5f68c7fa"
EVENT: Final = Event(uuid="f2aa1394-d4b7-4208-b85c-277e07d99db2", info="capture event one")
SECOND: Final = 1795486613
MOMENT: Final = "2026-11-24T02:16:53.000Z"

recognise = FastPath().recognise


def an_attribute(**changes: Any) -> Attribute:
    return Attribute(
        **{
            "uuid": UUID,
            "type": "ip-dst",
            "value": "198.51.100.7",
            "category": "Network activity",
            "timestamp": SECOND,
            "comment": "c2",
            **changes,
        }
    )


def a_version(**options: Any) -> Version:
    return indicator_of(an_attribute(), EVENT, **options)


def read(version: Version) -> dict[str, Any]:
    """Give the document, which has to pass the fast path and the library."""
    assert recognise([version.data]) == ["stix2/indicator"]
    stix2.parse(version.data.decode(), allow_custom=True)
    document: dict[str, Any] = json.loads(version.data)
    assert to_stix(version.created) == document["created"] == document["valid_from"]
    assert to_stix(version.modified) == document["modified"]
    return document


def test_everything_that_an_attribute_says_is_in_its_indicator() -> None:
    tags = [Tag("tlp:green"), Tag("PAP:AMBER"), Tag('misp:confidence-level="usually-confident"')]
    version = indicator_of(
        an_attribute(tags=tags),
        EVENT,
        event_tags=[Tag("tlp:amber"), Tag("type:OSINT")],
        lifetime=3600,
        source="MISP one",
        url="https://misp.example/",
    )
    assert read(version) == {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{UUID}",
        "created": MOMENT,
        "modified": MOMENT,
        "valid_from": MOMENT,
        "valid_until": "2026-11-24T03:16:53.000Z",
        "name": "198.51.100.7",
        "description": "c2\nMISP event: capture event one",
        "pattern": "[ipv4-addr:value = '198.51.100.7']",
        "pattern_type": "stix",
        "pattern_version": "2.1",
        "kill_chain_phases": [
            {"kill_chain_name": "misp-category", "phase_name": "Network activity"}
        ],
        "labels": [
            'misp:type="ip-dst"',
            'misp:category="Network activity"',
            "PAP:AMBER",
            "type:OSINT",
        ],
        "confidence": 75,
        "object_marking_refs": [TLP_MARKINGS["amber"]],
        "external_references": [
            {
                "source_name": "MISP one",
                "external_id": EVENT.uuid,
                "url": f"https://misp.example/events/view/{EVENT.uuid}",
            }
        ],
        "x_threatbus_source": "MISP one",
    }
    assert version[1:] == (
        UUID,
        "[ipv4-addr:value = '198.51.100.7']",
        "stix",
        SECOND * 1000,
        SECOND * 1000,
        (TLP_MARKINGS["amber"],),
    )


def test_a_bare_attribute_is_enough() -> None:
    document = read(indicator_of(Attribute(UUID, "yara", "rule a {}\nmore", timestamp=0)))
    assert document == {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{UUID}",
        "created": "1970-01-01T00:00:00.000Z",
        "modified": "1970-01-01T00:00:00.000Z",
        "valid_from": "1970-01-01T00:00:00.000Z",
        "name": "rule a {}",
        "pattern": "rule a {}\nmore",
        "pattern_type": "yara",
        "labels": ['misp:type="yara"'],
        "x_threatbus_source": "MISP",
    }


def test_event_and_tags_that_came_with_the_attribute_are_used() -> None:
    event = Event(uuid=EVENT.uuid, info="x", event_tags=[EventTag(Tag("tlp:red"))])
    document = read(indicator_of(an_attribute(event=event)))
    assert document["object_marking_refs"] == [TLP_MARKINGS["red"]]
    assert document["description"] == "c2\nMISP event: x"


# Versions.


def test_a_new_version_keeps_created_and_is_modified_when_misp_says() -> None:
    first = a_version()
    edited = indicator_of(
        an_attribute(value="198.51.100.8", timestamp=SECOND + 60),
        EVENT,
        created=first.created,
        last_modified=first.modified,
    )
    assert (edited.created, edited.modified) == (first.created, first.modified + 60_000)
    assert read(edited)["id"] == read(first)["id"]


def test_a_change_that_moves_no_timestamp_is_a_millisecond_later() -> None:
    version = a_version()
    for step in range(1, 4):
        version = a_version(created=version.created, last_modified=version.modified)
        assert version.modified == SECOND * 1000 + step
        assert read(version)["modified"] == f"2026-11-24T02:16:53.00{step}Z"


moments = st.integers(0, MAX_MOMENT_MS // 2)


@settings(derandomize=True, database=None, deadline=None)
@given(moments, moments, st.integers(0, 10**10), st.none() | st.integers(0, 10**12))
def test_modified_is_always_later_and_never_before_created(
    created: int, last: int, timestamp: int, lifetime: int | None
) -> None:
    last = max(created, last)
    version = indicator_of(
        an_attribute(timestamp=timestamp), created=created, last_modified=last, lifetime=lifetime
    )
    assert version.created == created
    assert version.modified > last
    read(version)
    gone = withdrawal_of(UUID, version.pattern, "stix", created, version.modified, at=timestamp)
    assert gone.modified > version.modified
    read(gone)


def test_a_lifetime_beyond_the_calendar_is_none() -> None:
    assert "valid_until" not in read(a_version(lifetime=10**12))
    assert read(a_version(lifetime=0))["valid_until"] == "2026-11-24T02:16:54.000Z"


def test_a_withdrawal_needs_only_what_the_index_kept() -> None:
    version = indicator_of(an_attribute(tags=[Tag("tlp:red")]), EVENT)
    gone = withdrawal_of(
        version.uuid,
        version.pattern,
        version.pattern_type,
        version.created,
        version.modified,
        marking_refs=version.marking_refs,
    )
    assert read(gone) == {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{UUID}",
        "created": MOMENT,
        "modified": "2026-11-24T02:16:53.001Z",
        "valid_from": MOMENT,
        "pattern": "[ipv4-addr:value = '198.51.100.7']",
        "pattern_type": "stix",
        "pattern_version": "2.1",
        "revoked": True,
        "object_marking_refs": [TLP_MARKINGS["red"]],
        "x_threatbus_source": "MISP",
        "x_threatbus_update": "REMOVE",
    }
    later = withdrawal_of(*version[1:6], at=version.modified + 5000)
    assert later.modified == version.modified + 5000


# What cannot be mapped.


def test_a_type_that_is_no_pattern_is_told_from_a_bad_value() -> None:
    with pytest.raises(Unmapped, match=f"{UUID} .comment.: no pattern for this type"):
        indicator_of(an_attribute(type="comment", value="deleted"))
    with pytest.raises(Rejected, match=f"{UUID} .md5.: not the 32") as caught:
        indicator_of(an_attribute(type="md5", value="x"))
    assert not isinstance(caught.value, Unmapped)
    with pytest.raises(Rejected, match=f"{UUID}: no timestamp"):
        indicator_of(an_attribute(timestamp=None))


def test_long_texts_are_cut() -> None:
    document = read(
        indicator_of(
            an_attribute(type="domain", value="a" * 300, comment="c" * 10**7),
            Event(info="i" * 10**6),
        )
    )
    assert document["name"] == "a" * 199 + "…"
    assert len(document["description"]) == 2 * MAX_TEXT + len("\n")
    assert "c…\nMISP event: i" in document["description"]


# Tags.


@pytest.mark.parametrize(
    ("tag", "level"),
    [
        ("tlp:white", "clear"),
        ("tlp:clear", "clear"),
        ("TLP:GREEN", "green"),
        ("tlp:amber", "amber"),
        ("tlp:amber+strict", "amber+strict"),
        ("TLP:AMBER+STRICT", "amber+strict"),
        ("tlp:red", "red"),
    ],
)
def test_tlp_tags_become_markings_of_tlp_2(tag: str, level: str) -> None:
    assert marks_of([Tag(tag)]) == ((TLP_MARKINGS[level],), (), None)
    assert marks_of([], [Tag(tag)]) == ((TLP_MARKINGS[level],), (), None)


def test_of_several_tlp_tags_the_strictest_counts_wherever_it_is() -> None:
    levels = list(TLP_MARKINGS)
    for strict, level in enumerate(levels):
        for other in levels[: strict + 1]:
            for mine, theirs in ((level, other), (other, level)):
                marks = marks_of([Tag(f"tlp:{mine}")], [Tag(f"tlp:{theirs}")])
                assert marks.marking_refs == (TLP_MARKINGS[level],)


def test_of_several_confidences_the_lowest_counts() -> None:
    def confidence(*levels: str) -> int | None:
        return marks_of([Tag(f'misp:confidence-level="{level}"') for level in levels]).confidence

    assert confidence("completely-confident", "fairly-confident") == 50
    assert confidence("unconfident", "rarely-confident") == 0
    assert confidence("confidence-cannot-be-evaluated") is None


def test_all_other_tags_are_labels_once() -> None:
    marks = marks_of(
        [Tag("b"), Tag("PAP:RED"), Tag("tlp:ex:chr"), Tag(""), Tag("kept", exportable=False)],
        [Tag("a"), Tag("b"), Tag('misp:confidence-level="confidence-cannot-be-evaluated"')],
    )
    assert marks.labels == (
        "b",
        "PAP:RED",
        "tlp:ex:chr",
        "a",
        'misp:confidence-level="confidence-cannot-be-evaluated"',
    )
    assert marks.marking_refs == ()


def test_a_tag_that_stays_in_misp_restricts_all_the_same() -> None:
    assert marks_of([Tag("tlp:red", exportable=False)]).marking_refs == (TLP_MARKINGS["red"],)


# Times.


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("new_york")
def test_times_are_utc_wherever_the_bus_runs() -> None:
    """The epoch was read as local time, and `modified` was now."""
    second = SECOND - 86_400  # of its own: written moments are cached
    assert time.localtime(second).tm_hour != time.gmtime(second).tm_hour
    document = read(indicator_of(an_attribute(timestamp=second), lifetime=60))
    assert document["created"] == document["modified"] == "2026-11-23T02:16:53.000Z"
    assert document["valid_until"] == "2026-11-23T02:17:53.000Z"
    assert from_stix(MOMENT) == SECOND * 1000


@settings(derandomize=True, database=None, deadline=None)
@given(st.integers(0, MAX_MOMENT_MS))
def test_a_moment_comes_back_from_its_text(moment: int) -> None:
    assert from_stix(to_stix(moment)) == moment


def test_times_that_cannot_be_written_or_read_are_errors() -> None:
    for moment in (-1, MAX_MOMENT_MS + 1):
        with pytest.raises(ValueError, match="no moment"):
            to_stix(moment)
    for text in ("2026-11-24T02:16:53", "2026-13-24T02:16:53Z", "now"):
        with pytest.raises(ValueError):  # noqa: PT011 (the standard library words it)
            from_stix(text)
    assert from_stix("2026-11-24T04:16:53.1239999+02:00") == SECOND * 1000 + 123


def test_the_mapping_imports_nothing_slow() -> None:
    code = (
        "import sys; import threatbus_misp.mapping.indicators, threatbus_misp.mapping.sightings;"
        "print([name for name in ('stix2', 'stix2patterns', 'pymisp', 'zmq', 'requests')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
