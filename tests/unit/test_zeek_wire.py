"""Zeek's WebSocket messages: the examples of its manual, both ways."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threatbus_zeek.values import Count, Enum, Event, Port
from threatbus_zeek.wire import (
    Ack,
    BadFrame,
    Data,
    Refusal,
    decode,
    decode_frame,
    encode,
    encode_event,
    encode_topics,
)

DOCUMENTED = [
    (None, "none", {}),
    (True, "boolean", True),
    (Count(123), "count", 123),
    (-7, "integer", -7),
    (7.5, "real", 7.5),
    (timedelta(milliseconds=1500), "timespan", "1500ms"),
    (datetime(2022, 4, 10, 7, tzinfo=UTC), "timestamp", "2022-04-10T07:00:00.000"),
    ("Hello World!", "string", "Hello World!"),
    (Enum("foo"), "enum-value", "foo"),
    (ip_address("2001:db8::"), "address", "2001:db8::"),
    (ip_address("192.0.2.1"), "address", "192.0.2.1"),
    (ip_network("255.255.255.0/24"), "subnet", "255.255.255.0/24"),
    (Port("8080/tcp"), "port", "8080/tcp"),
    (
        (Count(42), 23),
        "vector",
        [{"@data-type": "count", "data": 42}, {"@data-type": "integer", "data": 23}],
    ),
    (
        frozenset({"foo"}),
        "set",
        [{"@data-type": "string", "data": "foo"}],
    ),
    (
        {"first-name": "John"},
        "table",
        [
            {
                "key": {"@data-type": "string", "data": "first-name"},
                "value": {"@data-type": "string", "data": "John"},
            }
        ],
    ),
]
IDS = [kind for _, kind, _ in DOCUMENTED]


@pytest.mark.parametrize(("value", "kind", "data"), DOCUMENTED, ids=IDS)
def test_each_documented_type_is_written(value: Any, kind: str, data: Any) -> None:
    assert encode(value) == {"@data-type": kind, "data": data}


@pytest.mark.parametrize(("value", "kind", "data"), DOCUMENTED, ids=IDS)
def test_each_documented_type_is_read(value: Any, kind: str, data: Any) -> None:
    found = decode({"@data-type": kind, "data": data})
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3), ("-3s", -3), ("2min", 120), ("86400s", 86400), ("1h", 3600), ("500us", 0.0005),
     ("2000000ns", 0.002), ("-2592000s", -2592000)],
)  # fmt: skip
def test_a_timespan_may_have_any_unit_and_sign(text: str, seconds: float) -> None:
    assert decode({"@data-type": "timespan", "data": text}) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["2023-11-14T22:13:20", "2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"]
)
def test_a_timestamp_is_utc_unless_it_says_otherwise(text: str) -> None:
    expected = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert decode({"@data-type": "timestamp", "data": text}) == expected


def test_a_time_elsewhere_is_written_in_utc() -> None:
    moment = datetime(2023, 11, 14, 23, 13, 20, 123456, tzinfo=timezone(timedelta(hours=1)))
    assert encode(moment)["data"] == "2023-11-14T22:13:20.123"


def test_a_table_with_two_indexes_has_vectors_for_keys() -> None:
    key = encode(("a", Count(1)))
    found = decode({"@data-type": "table", "data": [{"key": key, "value": encode(True)}]})
    assert found == {("a", Count(1)): True}


def test_an_event_is_written_as_zeek_writes_it() -> None:
    frame = json.loads(encode_event("tb/out", Event("Demo::pong", ("hello", Count(1)))))
    assert frame == {
        "type": "data-message",
        "topic": "tb/out",
        "@data-type": "vector",
        "data": [
            {"@data-type": "count", "data": 1},
            {"@data-type": "count", "data": 1},
            {
                "@data-type": "vector",
                "data": [
                    {"@data-type": "string", "data": "Demo::pong"},
                    {
                        "@data-type": "vector",
                        "data": [
                            {"@data-type": "string", "data": "hello"},
                            {"@data-type": "count", "data": 1},
                        ],
                    },
                ],
            },
        ],
    }


def test_an_event_that_is_written_can_be_read() -> None:
    frame = decode_frame(encode_event("t", Event("A::b", (1.0, {"k": (None,)}))).encode())
    assert frame == Data("t", (Count(1), Count(1), ("A::b", (1.0, {"k": (None,)}))))


def test_the_first_frame_is_the_list_of_topics() -> None:
    assert encode_topics(("a", "b/c")) == '["a", "b/c"]'


def test_an_acknowledgement_and_an_error_are_read() -> None:
    ack = b'{"type":"ack","endpoint":"5782518a-websocket-0","version":"9.1.0-dev"}'
    assert decode_frame(ack) == Ack("5782518a-websocket-0", "9.1.0-dev")
    error = b'{"type":"error","code":"deserialization_failed","context":"failed to decode"}'
    assert decode_frame(error) == Refusal("deserialization_failed", "failed to decode")
    first_versions = error.replace(b"context", b"message")
    assert decode_frame(first_versions) == Refusal("deserialization_failed", "failed to decode")


def test_zeeks_raw_strings_are_read() -> None:
    frame = b'{"type":"data-message","topic":"t","@data-type":"string","data":"a\x01\n\xffb"}'
    assert decode_frame(frame) == Data("t", "a\x01\n\\xffb")


@pytest.mark.parametrize("word", ["inf", "-inf", "nan", "-nan"])
def test_zeeks_bare_words_for_numbers_are_read(word: str) -> None:
    frame = '{"type":"data-message","topic":"t","@data-type":"real","data":%s}' % word  # noqa: UP031
    found = decode_frame(frame.encode())
    assert isinstance(found, Data)
    assert str(abs(found.value)) == word.removeprefix("-")


def test_a_text_that_looks_like_such_a_word_stays_what_it_is() -> None:
    text = '"data": inf, "data":nan}'
    values = [encode(text), {"@data-type": "real", "data": float("inf")}]
    frame = {"type": "data-message", "topic": "t", "@data-type": "vector", "data": values}
    raw = json.dumps(frame).replace("Infinity", "inf")
    assert decode_frame(raw.encode()) == Data("t", (text, float("inf")))


def test_half_of_a_surrogate_pair_is_shown() -> None:
    frame = rb'{"type":"data-message","topic":"\ud800","@data-type":"string","data":"\ud800"}'
    assert decode_frame(frame) == Data("\\ud800", "\\ud800")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{}",
        b'{"type":"other"}',
        b'{"type":"data-message"}',
        b'{"type":"data-message","topic":5,"@data-type":"none","data":{}}',
        b'{"type":"data-message","topic":"t"}',
        b'{"type":"data-message","topic":"t","@data-type":"none"}',
        b'{"type":"data-message","topic":"t","@data-type":["x"],"data":1}',
        b'{"type":"data-message","topic":"t","@data-type":"unheard-of","data":1}',
        b'{"type":"data-message","topic":"t","@data-type":"count","data":' + b"9" * 9999 + b"}",
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_frame_that_is_none_of_zeeks_is_refused(frame: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_frame(frame)


def test_a_value_nested_without_end_is_refused() -> None:
    inner = '{"@data-type":"vector","data":['
    frame = '{"type":"data-message","topic":"t",' + inner[1:] + inner * 5000 + "]}" * 5001
    with pytest.raises(BadFrame):
        decode_frame(frame.encode())


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("boolean", 1),
        ("count", -1),
        ("count", True),
        ("count", "1"),
        ("integer", 1.5),
        ("real", "1.5"),
        ("real", True),
        ("string", 1),
        ("timespan", "1 fortnight"),
        ("timespan", 5),
        ("timespan", "9" * 400 + "s"),
        ("timestamp", "yesterday"),
        ("timestamp", 0),
        ("address", "nowhere"),
        ("subnet", "192.0.2.0/99"),
        ("vector", {}),
        ("set", [{"@data-type": "table", "data": []}]),
        ("table", [{"key": {"@data-type": "table", "data": []}, "value": {}}]),
        ("table", [{}]),
        ("table", [5]),
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused(kind: str, data: Any) -> None:
    with pytest.raises(BadFrame):
        decode({"@data-type": kind, "data": data})


texts = st.text(st.characters(exclude_categories=["Cs"]))
zeek_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2**64 - 1).map(Count)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.ip_addresses()
    | st.integers(-(10**9), 10**9).map(lambda number: timedelta(milliseconds=number)),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple) | st.dictionaries(texts, inner, max_size=4)
    ),
    max_leaves=8,
)


@given(zeek_values)
def test_every_value_survives_the_way_there_and_back(value: Any) -> None:
    found = decode_frame(encode_event("t", Event("A::b", (value,))).encode())
    assert found == Data("t", (Count(1), Count(1), ("A::b", (value,))))
