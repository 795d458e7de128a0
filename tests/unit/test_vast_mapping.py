"""vast-threatbus between STIX and lookup table; rows, lines and arguments for any value at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from helpers.documents import encode, indicator, library_topic
from hypothesis import given
from hypothesis import strategies as st
from vast_threatbus import metrics, pipelines
from vast_threatbus.commands import Transformation
from vast_threatbus.engine import encoded
from vast_threatbus.lines import Lines
from vast_threatbus.mapping import (
    Watched,
    checked_context,
    hit,
    holds,
    to_sighting,
    watched,
)

from threatbus.client import Indicator, MatchType, Sighting, read
from threatbus.errors import Rejected
from threatbus.messages import INDICATOR, SIGHTING, Message

SHA256 = "Ab" * 32


def view(pattern: str, **more: object) -> Indicator:
    found = read(Message(INDICATOR, encode(indicator(pattern, **more))))
    assert isinstance(found, Indicator)
    return found


@pytest.mark.parametrize(
    ("pattern", "key", "exact"),
    [
        ("[domain-name:value = 'Example.COM']", "example.com", False),
        ("[domain-name:value = 'example.com.']", "example.com", False),
        ("[ipv4-addr:value = '198.51.100.17']", "198.51.100.17", False),
        ("[ipv4-addr:value = '198.51.100.17/32']", "198.51.100.17", False),
        ("[ipv6-addr:value = '2001:0DB8::0017']", "2001:db8::17", False),
        ("[ipv6-addr:value = '::ffff:198.51.100.17']", "198.51.100.17", False),
        ("[url:value = 'http://Example.com/A?b=\\'c\\'']", "http://example.com/a?b='c'", True),
        ("[url:value = 'http://ΟΔΟΣ.example/İ']", "http://οδοσ.example/i", True),
        ("[email-addr:value = 'M@example.com']", "m@example.com", False),
        (f"[file:hashes.'SHA-256' = '{SHA256}']", SHA256.lower(), False),
        ("[file:hashes.MD5 = '0011223344556677AABBCCDD']", "0011223344556677aabbccdd", False),
    ],
)  # fmt: skip
def test_single_values_are_looked_for_under_one_key(pattern: str, key: str, exact: bool) -> None:
    found = watched(view(pattern))
    assert found is not None
    assert (found.key, found.exact) == (key, exact)


@pytest.mark.parametrize(
    "pattern",
    [
        "[ipv4-addr:value = '198.51.100.0/24']",
        "[ipv4-addr:value = 'no address']",
        "[file:name = 'a.exe']",
        "[user-account:user_id = 'root']",
        "[domain-name:value LIKE '%.example']",
        "[domain-name:value = 'a.example'] FOLLOWEDBY [domain-name:value = 'b.example']",
        "[domain-name:value = '']",
        f"[domain-name:value = '{'x' * 9000}']",
    ],
)
def test_what_a_lookup_cannot_find_is_not_looked_for(pattern: str) -> None:
    assert watched(view(pattern)) is None


def test_patterns_in_other_languages_are_not_looked_for() -> None:
    assert watched(view("[domain-name:value = 'a.example']", pattern_type="sigma")) is None


def test_a_url_is_found_as_it_is_written_only() -> None:
    wanted = Watched("http://a/b", "http://a/B", exact=True)
    assert holds('{"x": [{"y": "http://a/B"}]}', wanted)
    assert not holds('{"x": "http://a/b"}', wanted)
    assert holds('{"x": "http://a/b"}', wanted._replace(exact=False))


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b'{"key": 1, "event": "{}"}', b"\xff", b"[" * 9999]
)
def test_a_line_that_is_no_hit_is_rejected(line: bytes) -> None:
    with pytest.raises(Rejected, match="no hit"):
        hit(line)


def test_a_sighting_refers_to_its_indicator_and_holds_the_event() -> None:
    wanted = Watched("a.example", "A.example", exact=False)
    event = '{"ts": "2026-11-01T10:00:00Z", "query": "a.example"}'
    data = to_sighting(view("[url:value = 'x']").id, wanted, MatchType.RETRO, event, event.encode())
    assert library_topic(data) == SIGHTING
    found = read(Message(SIGHTING, data))
    assert isinstance(found, Sighting)
    assert found.x_threatbus_indicator_value == "A.example"
    assert found.x_threatbus_match_type == "RETRO"
    assert found.x_threatbus_sighting_context == json.loads(event)
    assert found.last_seen == datetime(2026, 11, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("event", ["{}", '{"ts": 5}', '{"timestamp": "yesterday"}', "[1]", "no"])
def test_an_event_that_says_no_time_was_seen_now(event: str) -> None:
    wanted = Watched("a", "a", exact=False)
    found = read(
        Message(SIGHTING, to_sighting("indicator--1", wanted, MatchType.LIVE, event, None))
    )
    assert isinstance(found, Sighting)
    assert found.last_seen is not None
    assert abs(found.last_seen - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_context_has_to_be_json() -> None:
    assert checked_context(b' {"a": 1}\n') == b'{"a": 1}'
    for output in (b"", b"{", b"{} {}", b"\xff"):
        with pytest.raises(Rejected, match="no JSON"):
            checked_context(output)


# Any value at all.

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(TEXTS)
def test_any_value_is_one_row(text: str) -> None:
    line = encoded([{"key": text, "ids": [text]}])
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == {"key": text, "ids": [text]}


@given(TEXTS)
def test_any_value_stays_within_one_argument(text: str) -> None:
    command = Transformation("/bin/tool --ioc=%ioc '%matchtype of %ioc' \"a b\" -x %ioc")
    assert command.arguments(text, MatchType.LIVE) == [
        "/bin/tool",
        f"--ioc={text}",
        f"LIVE of {text}",
        "a b",
        "-x",
        text,
    ]


@given(TEXTS, TEXTS)
def test_any_value_comes_back_from_a_line(key: str, value: str) -> None:
    event = json.dumps({"x": value})
    line = json.dumps({"key": key, "event": event}, ensure_ascii=False).encode()
    (cut,) = Lines().feed(line + b"\n")
    found = hit(cut)
    assert (found.key, json.loads(found.event)) == (key, {"x": value})


def test_the_program_of_a_command_is_never_a_value() -> None:
    assert Transformation("%ioc x").arguments("rm", MatchType.LIVE)[0] == "%ioc"


def test_pipelines_hold_nothing_but_what_the_configuration_says() -> None:
    text = pipelines.retro("export", "t1", 5)
    assert text.startswith("export\nthis = {\n")
    assert 'context_enrich "t1", key=key' in text
    assert "limit=5" in text
    assert "limit" not in pipelines.retro("export", "t1", 0)
    assert pipelines.update("t1").endswith('context_update "t1", key=key, value=ids')


# Lines.


def test_lines_are_put_together_from_pieces() -> None:
    cut = Lines()
    assert [cut.feed(each) for each in (b"a", b"b\nc", b"\n\n", b"d\ne\n")] == [
        [],
        [b"ab"],
        [b"c"],
        [b"d", b"e"],
    ]


def test_a_line_that_is_too_long_is_left_out_and_takes_no_memory() -> None:
    cut = Lines(max_bytes=10)
    assert cut.feed(b"short\n" + b"x" * 8) == [b"short"]
    for _ in range(100):
        assert cut.feed(b"x" * 1000) == []
    assert cut._pieces == []
    assert cut.feed(b"x\nshort\n") == [b"short"]
    assert cut.left_out == 1


# Metrics.


def test_metrics_are_a_line_of_the_line_protocol() -> None:
    found = metrics.line("a host,x=1", {"sightings": 3, "hits_lost": 0}, 17)
    assert found == r"vast-threatbus,host=a\ host\,x\=1 sightings=3i,hits_lost=0i 17"
