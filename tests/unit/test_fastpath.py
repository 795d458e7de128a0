from __future__ import annotations

import json
import random
from typing import Any

import pytest
from helpers.documents import encode, library_topic
from hypothesis import given, settings
from hypothesis import strategies as st
from stix2patterns.validator import run_validator

from threatbus.fastpath import MAX_DEPTH, FastPath, depth_is_at_most
from unit.strategies import (
    HARD_PATTERNS,
    OTHER_PATTERN_TYPES,
    PATTERNS,
    broken_pattern,
    indicator,
    mutated_documents,
    ordinary_documents,
    sighting,
)

SEEDED = settings(derandomize=True, database=None, deadline=None)
EXTENSION = "extension-definition--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"

fast = FastPath()


def topic_of(data: bytes) -> str | None:
    found = fast.recognise([data])
    return found[0] if found else None


def recognise(document: dict[str, Any]) -> str | None:
    return topic_of(encode(document))


# Never accepts what the library rejects.


@settings(SEEDED, max_examples=800)
@given(mutated_documents())
def test_a_document_the_library_rejects_is_never_accepted_by_the_fast_path(
    documents: list[bytes],
) -> None:
    for data in documents:
        topic = topic_of(data)
        if topic is not None:
            assert topic == library_topic(data.decode()), data


@settings(SEEDED, max_examples=200)
@given(mutated_documents(), ordinary_documents(), st.integers(0, 60))
def test_in_a_run_a_document_has_the_verdict_that_it_has_alone(
    mutated: list[bytes], ordinary: list[bytes], place: int
) -> None:
    run = [*(ordinary * 8)[:place], *mutated, *ordinary]
    alone = [topic_of(data) for data in run]
    assert fast.recognise(run) == alone[: (*alone, None).index(None)]


@settings(SEEDED, max_examples=1000)
@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert topic_of(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"type":"indicator","extensions":' + b'{"a":' * 100_000,
        b'{"type":"indicator","x":' + b"[" * 100_000,
        b'{"type":"indicator","\xff":1}',
        b'{"type":"indicator","id":"\\ud800"}',
        b'{"type":[]}',
        b'{"type":null}',
        b"[]",
        b"null",
        b'"indicator"',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_hostile_bytes_make_it_unsure(data: bytes) -> None:
    assert topic_of(data) is None


@pytest.mark.parametrize(
    "change",
    [
        {"spec_version": "2.0"},
        {"spec_version": 2.1},
        {"id": "indicator--8e2e2d2b-17d4-4cbf-c38f-98ee46b3cd3f"},  # not the RFC 4122 variant
        {"id": "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3"},
        {"id": "sighting--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"},
        {"id": "inbiabtor--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"},
        {"created": "2015-02-29T00:00:00Z"},
        {"created": "2016-04-06T24:00:00Z"},
        {"created": "2016-04-06T20:03:60Z"},
        {"created": "2016-04-06T20:03:48.1234567Z"},
        {"created": "2016-04-06T20:03:48+00:00"},
        {"created": "2016-W14-3T20:03:48Z"},
        {"created": "2016-04-06T200348.5Z"},
        {"created": "0000-01-01T00:00:00Z"},
        {"created": "2a16-04-06T20:03:48Z", "modified": "2a16-04-06T20:03:48Z"},
        {"valid_until": "2016-01-01T00:00:00Z"},
        {"valid_until": "2015-01-01T00:00:00Z"},
        {"valid_until": "2016-01-01"},
        {"created_by_ref": "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"},
        {"object_marking_refs": ["identity--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"]},
        {"external_references": [{"source_name": "x"}]},
        {"external_references": [{"source_name": "x", "url": None}]},
        {"kill_chain_phases": [{"kill_chain_name": "x"}]},
        {"confidence": "x"},
        {"revoked": "perhaps"},
        {"granular_markings": [{"selectors": ["nothing"], "lang": "en"}]},
        {"extensions": {EXTENSION: 1}},
        {"extensions": {"archive-ext": {}}},
        {"extensions": {"extension-definition--1": {}}},
        {"extensions": "{}"},
        {"allow_custom": False},
        {"interoperability": True},
        {"self": 1},
        {"custom_properties": {"X": 1}},
        {"X_upper": 1},
        {"_under": 1},
        {"": 1},
        {"ünder": 1},
        {"pattern": "[file:name = 'x'"},
        {"pattern": "[true:x = 1]"},
        {"pattern": "[file:LAST = 1]"},
        {"pattern": "[file:size = 01]"},
        {"pattern": "[file:hashes.MD5 = 'x']"},
        {"pattern": "[file:'hashes'.'md-5' = 'x']"},
        {"pattern": "[file:hashes[0] = 'x']"},
        {"pattern": "[file:hashes.'\u017fha1' = 'x']"},
        {"pattern": "[file:x.hashes.y.MD5 = 'x']"},
        {"pattern": f"[file:name[{'9' * 5000}] = 'x']"},
        {"pattern": " OR ".join(["[file:name = 'x']"] * 3000)},
        {"pattern": "file:name = 'x'", "pattern_version": "2.0"},
        {"pattern": ""},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_what_the_library_rejects_for_one_property_leaves_it_unsure(change: dict[str, Any]) -> None:
    document = indicator(**change) if "self" not in change else indicator() | change
    assert library_topic(encode(document)) is None
    assert recognise(document) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sighting_of_ref": "relationship--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"},
        {"sighting_of_ref": "ipv4-addr--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"},
        {"first_seen": "2016-04-06T20:08:31Z", "last_seen": "2016-04-06T20:08:30Z"},
        {"first_seen": "2016-04-06T20:08:31.1Z", "last_seen": "2016-04-06T20:08:31.0Z"},
        {"count": -1},
        {"count": 10**9},
        {"summary": 2},
        {"observed_data_refs": ["identity--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"]},
        {"where_sighted_refs": ["indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"]},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_a_sighting_the_library_rejects_leaves_it_unsure(change: dict[str, Any]) -> None:
    document = sighting(**change)
    assert library_topic(encode(document)) is None
    assert recognise(document) is None


MOMENT = "2016-04-06T20:03:48Z"
UUID = "8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"id": f"indicator--{UUID}\nindicator--{UUID}"}, {"id": ""}),
        ({"id": f"indicator--{UUID}\nindiaator--{UUID}"}, {"id": f"indicator--{UUID}"}),
        ({"id": f"indiaator--{UUID}"}, {}),
        ({"id": f"indicator--{UUID[:19]}c{UUID[20:]}"}, {}),
        ({"created": f"{MOMENT}\n{MOMENT}"}, {"created": ""}),
        ({"created": f"{MOMENT}\n{MOMENT}", "modified": MOMENT, "valid_from": MOMENT}, {}),
        ({"created": MOMENT[:-1]}, {"created": f"Z{MOMENT}"}),
        (
            {"pattern": "[url:value = 'a']\n[url:value = 'b"},
            {"pattern": "c']"},
        ),
        ({"pattern": "[url:value = 'a']\n[url:value = 'b']"}, {"pattern": ""}),
        ({"pattern": "[url:value = 'a"}, {"pattern": "b']"}),
    ],
)
def test_what_looks_right_only_beside_others_of_its_run_leaves_it_unsure(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    # An author keeps a document from the tier of the most ordinary ones.
    for further in ({}, {"created_by_ref": f"identity--{UUID}"}):
        pair = [encode(indicator(**{**further, **change})) for change in (one, other)]
        assert fast.recognise(pair) == fast.recognise(pair[:1]) == []


@pytest.mark.parametrize(
    "pair",
    ['"type":"malware"', '"spec_version":"2.0"', '"id":"x"', '"pattern":"x"', '"created":"x"'],
)
def test_of_two_values_for_a_key_the_last_counts(pair: str) -> None:
    body = json.dumps(indicator())[1:-1]
    assert topic_of(f"{{{body},{pair}}}".encode()) is None
    # The library takes this one; the typed decoder may be content or unsure.
    assert library_topic(f"{{{pair},{body}}}".encode()) == "stix2/indicator"
    assert topic_of(f"{{{pair},{body}}}".encode()) in (None, "stix2/indicator")


def test_invalid_utf8_in_an_unknown_property_is_noticed() -> None:
    data = encode(indicator(x_custom="@"))
    assert topic_of(data) == "stix2/indicator"
    assert topic_of(data.replace(b"@", b"\xff")) is None
    assert topic_of(data.replace(b"x_custom", b"x_cust\xff")) is None


def test_a_pattern_the_grammar_rejects_is_never_accepted() -> None:
    rng = random.Random(20)
    accepted = 0
    for _ in range(15_000):
        pattern = broken_pattern(rng)
        if recognise(indicator(pattern=pattern)) is not None:
            accepted += 1
            assert run_validator(pattern, "2.1") == [], pattern
    assert accepted > 500


# Takes what is ordinary.


@settings(SEEDED, max_examples=100)
@given(ordinary_documents())
def test_ordinary_documents_are_valid(documents: list[bytes]) -> None:
    assert all(library_topic(data) is not None for data in documents[:4])


def test_at_least_95_percent_of_ordinary_documents_take_the_fast_path() -> None:
    taken = total = 0

    @settings(SEEDED, max_examples=200)
    @given(ordinary_documents())
    def count(documents: list[bytes]) -> None:
        nonlocal taken, total
        taken += sum(topic_of(data) is not None for data in documents)
        total += len(documents)

    count()
    assert taken >= 0.95 * total


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if "OR hashes" not in p])
def test_ordinary_patterns_take_the_fast_path(pattern: str) -> None:
    assert recognise(indicator(pattern=pattern)) == "stix2/indicator"
    assert recognise(indicator(pattern=pattern, pattern_version="2.1")) == "stix2/indicator"
    assert recognise(indicator(pattern=pattern, x_misp_score=1)) == "stix2/indicator"


@pytest.mark.parametrize("pattern", HARD_PATTERNS)
def test_other_patterns_are_left_to_the_grammar(pattern: str) -> None:
    assert recognise(indicator(pattern=pattern)) is None


@pytest.mark.parametrize("version", ["2.0", "", "3", 2.1])
def test_patterns_of_another_version_are_left_to_its_grammar(version: object) -> None:
    assert recognise(indicator(pattern_version=version)) is None


@pytest.mark.parametrize(("pattern_type", "pattern"), OTHER_PATTERN_TYPES)
def test_patterns_of_another_type_are_not_looked_into(pattern_type: str, pattern: str) -> None:
    document = indicator(pattern_type=pattern_type, pattern=pattern)
    assert recognise(document) == "stix2/indicator"
    assert library_topic(encode(document)) == "stix2/indicator"


@pytest.mark.parametrize(
    "properties",
    [
        {"x_threatbus_update": "REMOVE"},
        {"x_misp_event": {"a": [1, None, 0.5, {"b": []}]}},
        {"x_opencti_score": 50, "x_opencti_detection": True, "defanged": False},
        {"extensions": {EXTENSION: {"extension_type": "property-extension", "a": {"b": [1]}}}},
        {"extensions": {EXTENSION: {"extension_type": "toplevel-property-extension"}}, "rank": 1},
        {"extensions": {}},
        {"labels": [], "name": None, "confidence": None, "x_null": None},
        {"labels": ["a", "b"], "confidence": 100, "lang": "en", "revoked": True},
        {"external_references": [{"source_name": "a", "description": ""}]},
        {"valid_until": "2016-01-01T00:00:01Z"},
        {"created": "2016-02-29T23:59:59.123456Z"},
    ],
    ids=lambda properties: repr(properties)[:60],
)
def test_ordinary_properties_take_the_fast_path(properties: dict[str, Any]) -> None:
    document = indicator(**properties)
    assert recognise(document) == "stix2/indicator"
    assert library_topic(encode(document)) == "stix2/indicator"


def test_a_sighting_with_its_context_takes_the_fast_path() -> None:
    document = sighting(
        first_seen="2016-04-06T20:08:31Z",
        last_seen="2016-04-06T20:08:31Z",
        count=1,
        x_threatbus_sighting_context={"noisy": True, "conn": {"orig": ["192.0.2.1", 80]}},
        x_threatbus_indicator=indicator(),
        x_threatbus_source="zeek",
    )
    assert recognise(document) == "stix2/sighting"


# Depth.


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value, 2] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("levels", [1, 63, 64, 65, 100, 500])
def test_depth_is_counted_in_levels(levels: int) -> None:
    data = encode(nested(levels))
    assert depth_is_at_most(levels, data)
    assert not depth_is_at_most(levels - 1, data)


def test_many_brackets_on_one_level_are_not_deep() -> None:
    assert depth_is_at_most(2, encode([[]] * 1000))


@pytest.mark.parametrize(
    "properties",
    [
        lambda value: indicator(x_custom=value),
        lambda value: indicator(extensions={EXTENSION: {"a": value}}),
        lambda value: sighting(x_threatbus_sighting_context=value),
        lambda value: sighting(x_threatbus_indicator=value),
    ],
)
def test_what_is_deeper_than_the_limit_leaves_it_unsure(properties: Any) -> None:
    assert recognise(properties(nested(MAX_DEPTH - 3))) is not None
    assert recognise(properties(nested(MAX_DEPTH))) is None
