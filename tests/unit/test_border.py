from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import encode, library_topic
from hypothesis import given, settings

from threatbus.border import DIFFERENCES, MAX_REASON, Border
from threatbus.errors import NotCarried, Rejected
from threatbus.fastpath import MAX_DEPTH
from unit.strategies import (
    HARD_PATTERNS,
    indicator,
    mutated_documents,
    ordinary_documents,
    sighting,
)

ROOT = Path(__file__).parents[2]
SEEDED = settings(derandomize=True, database=None, deadline=None)
MARKING = [{"selectors": ["pattern"], "lang": "en"}]

border = Border()


def border_topic(data: bytes) -> str | None:
    try:
        return border.topic_of(data)
    except Rejected:
        return None


def reason(data: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        border.topic_of(data)
    return caught.value.reason


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def listed_difference(text: str) -> bool:
    """Say whether one of the differences that random documents meet applies to this text."""
    odd: list[str] = []
    document = json.loads(text, parse_constant=odd.append)
    if odd or depth(document) > MAX_DEPTH:
        return True
    written = json.dumps(document, ensure_ascii=False)
    return "Infinity" in written or any("\ud800" <= char <= "\udfff" for char in written)


# The verdict is the library's.


@settings(SEEDED, max_examples=250)
@given(mutated_documents())
def test_the_verdict_is_the_librarys_but_for_the_listed_differences(documents: list[bytes]) -> None:
    for data in documents:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            assert border_topic(data) is None
            continue
        if border.recognise([data]):
            continue  # tests/unit/test_fastpath.py
        expected, topic = library_topic(text), border_topic(data)
        assert topic == expected or (topic is None and listed_difference(text)), data


@settings(SEEDED, max_examples=40)
@given(ordinary_documents())
def test_ordinary_documents_come_in_on_the_topic_of_their_type(documents: list[bytes]) -> None:
    for data in documents:
        assert border.topic_of(data) == f"stix2/{json.loads(data)['type']}"


@pytest.mark.parametrize("pattern", HARD_PATTERNS)
def test_what_the_fast_path_is_unsure_of_the_grammar_decides(pattern: str) -> None:
    data = encode(indicator(pattern=pattern))
    assert border_topic(data) == library_topic(data.decode())


@pytest.mark.parametrize(
    "document",
    [
        {k: v for k, v in indicator().items() if k not in ("id", "created", "modified")},
        indicator(granular_markings=MARKING),
        indicator(granular_markings=[{"selectors": {"pattern": 1}, "lang": "en"}]),
        indicator(confidence="5", revoked="true", labels="x"),
        indicator(created="2016-4-6T1:2:3Z"),
        indicator(pattern="[file:name LIKE 'x']", pattern_version="2.0"),
        indicator(custom_properties={"x_a": 1}),
        indicator(extensions={"x-ext": {}}),
        sighting(first_seen="2016-04-06T20:08:31.1Z", last_seen="2016-04-06T20:08:31.2Z"),
        sighting(sighting_of_ref="x-thing--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"),
    ],
    ids=lambda document: repr(document)[-60:],
)
def test_what_is_unusual_but_fine_with_the_library_comes_in(document: dict[str, Any]) -> None:
    data = encode(document)
    assert border.recognise([data]) == []
    assert border.topic_of(data) == library_topic(data.decode()) == f"stix2/{document['type']}"


# Where it differs.


def different(name: str) -> tuple[bytes, str | None]:
    """Give a document for a difference, and what the library says of it."""
    if name == "encoding":
        data = json.dumps(indicator()).encode("utf-16")
        return data, library_topic(data)
    if name == "numbers":
        data = encode(indicator(x_custom=math.nan))
    elif name == "surrogates":
        data = encode(indicator(name="\ud800"))
    elif name == "depth":
        data = encode(indicator(x_custom=json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)))
    elif name == "pattern":
        values = ",".join(["'x'"] * 2600)
        data = encode(indicator(pattern=f"[file:name IN ({values})]"))
    else:
        assert name == "markings"
        data = encode(indicator(granular_markings=MARKING, x_list=list(range(5100))))
    return data, library_topic(data.decode())


@pytest.mark.parametrize("name", sorted(DIFFERENCES))
def test_each_listed_difference_is_one(name: str) -> None:
    data, verdict = different(name)
    assert verdict == "stix2/indicator"
    assert reason(data)


def test_the_page_lists_the_same_differences_as_the_code() -> None:
    page = (ROOT / "docs" / "border.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(DIFFERENCES)


def test_the_depth_limit_is_the_last_level_that_comes_in() -> None:
    for levels, verdict in ((MAX_DEPTH - 1, "stix2/indicator"), (MAX_DEPTH, None)):
        value = json.loads("[" * levels + "]" * levels)
        assert border_topic(encode(indicator(x_custom=value))) == verdict
        assert border_topic(encode(indicator(x_custom=value, granular_markings=MARKING))) == verdict


def test_limits_can_be_set() -> None:
    small = Border(max_pattern=500, max_marking_steps=5)
    for document in (
        indicator(pattern="[file:name LIKE 'x' OR file:name LIKE 'y']"),
        indicator(granular_markings=MARKING),
    ):
        assert border.topic_of(encode(document)) == "stix2/indicator"
        with pytest.raises(Rejected):
            small.topic_of(encode(document))


# No document costs more than about a second.


@pytest.mark.parametrize(
    "pattern",
    [
        "'" + "\\'" * 200_000,
        "[a:b = 'x'] " + "/* a:b " * 100_000,
        "(" * 100_000,
        "[(" * 100_000,
        ("(" * 100 + ")" * 100) * 20,
        "[a:b" + ".c" * 100_000 + " = 1]",
        "[" + " OR ".join(["a:b LIKE 'x'"] * 600) + "]",
        "[a:b = 1] WITHIN 5 " * 500,
        "[a:b LIKE '" + "é" * 12_000 + "']",
        "é" * 100_000,
        "$" * 100_000,
        "$" * 10_000_000,
    ],
    ids=lambda pattern: f"{pattern[:20]}… ({len(pattern)})",
)
def test_no_pattern_keeps_the_border_busy_for_seconds(pattern: str) -> None:
    before = time.thread_time()
    border_topic(encode(indicator(pattern=pattern)))
    assert time.thread_time() - before < 3


def test_no_granular_marking_keeps_the_border_busy_for_seconds() -> None:
    before = time.thread_time()
    for document in (
        indicator(granular_markings=MARKING, x_list=list(range(100_000))),
        indicator(granular_markings=MARKING * 10_000, x_list=list(range(1000))),
        indicator(
            granular_markings=[{"selectors": dict.fromkeys(map(str, range(10_000)))}],
            x_list=list(range(1000)),
        ),
    ):
        assert "granular_markings" in reason(encode(document))
    assert time.thread_time() - before < 3


# Reasons.


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"{'a': 1}", "not JSON: object keys must be strings at byte 1"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "not JSON: invalid character at byte 6"),
        (b"\xff\xfe{", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b"{}", "no type"),
        (b'{"type": 5}', "type is not a string"),
        (encode({"type": "malware"}), "type 'malware' is neither indicator nor sighting"),
        (encode({"type": "indicator"}), "STIX 2.0, but 2.1 is needed (no spec_version)"),
        (encode(indicator(spec_version="2.0")), "spec_version '2.0', but 2.1 is needed"),
        (encode(indicator(pattern="[file:name = 'x'")), "pattern: Error found at line 1:16"),
        (encode(indicator(pattern="[file:name = 'x]")), "pattern: stray ' at character 13"),
        (encode(indicator(pattern="[file:hashes.MD5 = 'x']")), "'x' is not a valid MD5 hash"),
        (
            encode(indicator(valid_until="2000-01-01T00:00:00Z")),
            "must be greater than 'valid_from'",
        ),
        (encode(indicator(pattern="(" * 1000)), "nested too deeply, or too many terms"),
        (encode(indicator(created="now")), "created: must be"),
        (encode({"type": "indicator", "spec_version": "2.1"}), "required properties"),
        (encode({"type": "bundle", "objects": []}), "a bundle where a single object is expected"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_reason_names_what_is_wrong(data: bytes, said: str) -> None:
    assert said in reason(data)


@settings(SEEDED, max_examples=80)
@given(mutated_documents())
def test_every_reason_is_one_short_printable_line(documents: list[bytes]) -> None:
    for data in documents:
        if border_topic(data) is None:
            said = reason(data)
            assert 0 < len(said) <= MAX_REASON, data
            assert said.isprintable(), data


@pytest.mark.parametrize(
    "document",
    [
        {"type": "\x1b[31m\r\n" + "x" * 1000},
        {"type": "indicator", "spec_version": "\n" * 1000},
        indicator(id="indicator--" + "\x07\u2028" * 1000),
        indicator(pattern="[\u202e" + "x " * 1000),
        indicator() | {"X\n" * 1000: 1},
        indicator(pattern="'\n" * 3),
    ],
    ids=lambda document: repr(document)[-40:],
)
def test_a_reason_quotes_nothing_that_could_forge_a_log_line(document: dict[str, Any]) -> None:
    said = reason(encode(document))
    assert said.isprintable()
    assert len(said) <= MAX_REASON


@pytest.mark.parametrize("kind", ["identity", "malware", "relationship", "x-own-type"])
def test_a_foreign_type_can_be_told_from_a_fault(kind: str) -> None:
    with pytest.raises(NotCarried):
        border.topic_of(encode({"type": kind, "id": f"{kind}--1"}))
    with pytest.raises(Rejected) as fault:
        border.topic_of(encode(indicator(id=1)))
    assert not isinstance(fault.value, NotCarried)


# Bundles.


def test_a_bundle_gives_the_exact_bytes_of_its_members() -> None:
    members = [b'{ "type" : "indicator",\n "x": 1.50 }', b'{"type":"malware","n":"\\u0041"}', b"5"]
    data = b' {"objects": [' + b" , ".join(members) + b'], "id": "bundle--1", "type": "bundle"}\n'
    assert border.unpack(data) == members


@pytest.mark.parametrize(
    "data",
    [b'{"type":"bundle"}', b'{"type":"bundle","objects":[]}', b'{"type":"bundle","objects":null}'],
)
def test_a_bundle_may_be_empty(data: bytes) -> None:
    assert border.unpack(data) == []


def test_a_bundle_is_known_by_its_type_however_it_is_written() -> None:
    assert border.unpack(b'{"\\u0074ype":"b\\u0075ndle","objects":[1]}') == [b"1"]


@pytest.mark.parametrize(
    "data",
    [
        encode(indicator()),
        encode(indicator(name="bundle", x_type="bundle")),
        b"",
        b"[]",
        b'"bundle"',
        b'{"type":["bundle"]}',
        b'{"type":"bundle","objects":[}',
        b'{"type":"bundle","objects":' + b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_bundle_is_not_unpacked(data: bytes) -> None:
    assert border.unpack(data) is None


@pytest.mark.parametrize("objects", ["{}", '"x"', "5", "true"])
def test_a_bundle_whose_objects_are_no_list_is_rejected(objects: str) -> None:
    with pytest.raises(Rejected, match="bundle: "):
        border.unpack(f'{{"type":"bundle","objects":{objects}}}'.encode())


def test_a_bundle_within_a_bundle_is_rejected_as_a_fault() -> None:
    inner = encode({"type": "bundle", "objects": [indicator()]})
    assert border.unpack(b'{"type":"bundle","objects":[' + inner + b"]}") == [inner]
    with pytest.raises(Rejected) as fault:
        border.topic_of(inner)
    assert not isinstance(fault.value, NotCarried)


# The library: late, and by one thread at a time.


def test_ordinary_documents_never_import_the_library() -> None:
    program = (
        "import sys, threatbus.border\n"
        "border = threatbus.border.Border()\n"
        "for line in sys.stdin.buffer: border.topic_of(line)\n"
        "assert not {'stix2', 'stix2patterns', 'antlr4'} & set(sys.modules)\n"
    )
    lines = b"\n".join(map(encode, (indicator(), sighting(), indicator(x_custom=1)))) + b"\n"
    path = os.pathsep.join((str(ROOT), *filter(None, sys.path)))
    subprocess.run(
        [sys.executable, "-c", program], input=lines, check=True, env={"PYTHONPATH": path}
    )


def test_threads_get_the_same_verdicts_as_one() -> None:
    documents = [encode(indicator(pattern=pattern)) for pattern in HARD_PATTERNS]
    expected = [border_topic(data) for data in documents]
    found: list[list[str | None]] = []

    def decide() -> None:
        found.append([border_topic(data) for data in documents])

    threads = [threading.Thread(target=decide) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6


def test_hostile_patterns_do_not_grow_the_grammars_tables() -> None:
    from stix2patterns.v21.grammars.STIXPatternParser import STIXPatternParser  # noqa: PLC0415

    def tables() -> int:
        return sum(len(dfa.states) for dfa in STIXPatternParser.decisionsToDFA)

    for n in range(1, 60, 2):
        for pattern in (
            "(" * n,
            "[a:b" + ".c[0]" * n + " > 1]",
            "[" + "(" * n + "a:b=1",
            "AND " * n,
        ):
            border_topic(encode(indicator(pattern=pattern)))
    assert tables() < 500


def test_while_no_descriptor_is_left_nothing_is_said_about_a_document() -> None:
    script = """
import os, resource, sys
from threatbus.border import Border
from threatbus.errors import Undecided
border, document = Border(), sys.stdin.buffer.read()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
lowest = os.dup(0)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
try:
    border.topic_of(document)
except Undecided as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(border.topic_of(document))
"""
    document = encode({**indicator(), "granular_markings": MARKING})
    done = subprocess.run(
        [sys.executable, "-c", script], input=document, capture_output=True, check=False, cwd=ROOT
    )
    lines = done.stdout.decode().splitlines()
    assert lines == [
        "the STIX library cannot be loaded: Too many open files",
        "stix2/indicator",
    ], done.stderr.decode()
