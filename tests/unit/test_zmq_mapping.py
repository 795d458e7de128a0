"""The frames of the ZeroMQ protocol, without sockets."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from helpers.documents import (
    encode,
    envelope_message,
    indicator,
    indicator_bytes,
    sighting,
    sighting_bytes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from threatbus_zmq import mapping
from threatbus_zmq.mapping import BadRequest, FrameReader, Heartbeat, Subscribe, Unsubscribe

from threatbus.border import Border
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_ENVELOPE

reader = FrameReader(Border())


def decode(**request: Any) -> Any:
    return mapping.decode_request(json.dumps(request).encode())


def refusal(data: bytes) -> BadRequest | None:
    try:
        mapping.decode_request(data)
    except BadRequest as error:
        return error if error.status in ("error", "unknown request") else None
    return None


# Requests.


def test_the_three_requests_are_read() -> None:
    assert decode(action="subscribe", topic="stix2", snapshot=1.5) == Subscribe(
        ["stix2"], timedelta(days=1.5), None
    )
    assert decode(action="subscribe", topic=["a", "b"], snapshot="2", name=" x ") == Subscribe(
        ["a", "b"], timedelta(days=2), "x"
    )
    assert decode(action="unsubscribe", topic="p") == Unsubscribe("p")
    assert decode(action="heartbeat", topic="p") == Heartbeat("p")


@pytest.mark.parametrize("given", [36500, "36500", 36500.0, 0, "0", -0.0, None, "1e2", " 7 "])
def test_snapshots_within_bounds_are_taken(given: Any) -> None:
    found = decode(action="subscribe", topic="stix2", snapshot=given)
    assert found.snapshot == timedelta(days=float(given or 0))


@pytest.mark.parametrize("given", [36500.01, -1, "-0.1", "nan", "inf", True, "", "x", [1], {}])
def test_other_snapshots_are_errors(given: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(action="subscribe", topic="stix2", snapshot=given)
    assert caught.value.status == "error"


@settings(derandomize=True, database=None, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_bad_one(data: bytes) -> None:
    refused = refusal(data)
    assert refused is None or refused.reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(derandomize=True, database=None, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "action": st.sampled_from(["subscribe", "unsubscribe", "heartbeat"]) | json_values,
            "topic": st.text(max_size=5) | st.lists(st.text(max_size=3)) | json_values,
            "snapshot": json_values | st.integers(-5, 40_000).map(str),
            "name": json_values,
        },
    )
)
def test_any_json_is_a_request_or_a_bad_one(request: dict[str, Any]) -> None:
    data = json.dumps(request).encode()
    if refusal(data) is not None:
        return
    found = mapping.decode_request(data)
    assert request["action"] in ("subscribe", "unsubscribe", "heartbeat")
    if isinstance(found, Subscribe):
        assert found.topics
        assert timedelta(0) <= found.snapshot <= timedelta(days=36_500)


def test_replies_are_written_to_the_byte() -> None:
    assert mapping.encode_reply("success") == b'{"status":"success"}'
    assert mapping.encode_reply("success", topic="p", pub_port=1, sub_port=2) == (
        b'{"status":"success","topic":"p","pub_port":1,"sub_port":2}'
    )


def test_point_to_point_topics_are_letters_of_equal_chance() -> None:
    topics = [mapping.new_p2p_topic() for _ in range(2000)]
    assert len(set(topics)) == 2000
    assert {len(topic) for topic in topics} == {32}
    letters = Counter("".join(topics))
    assert sorted(letters) == list("abcdefghijklmnopqrstuvwxyz")
    assert min(letters.values()) > 0.8 * max(letters.values())


# Frames.


def read(frame: bytes) -> tuple[list[tuple[str, bytes]], list[str]]:
    messages, rejected = reader.read(frame)
    return [(message.topic, message.data) for message in messages], [why for why, _ in rejected]


@pytest.mark.parametrize(
    "topic", [b"stix2", b"stix2/", b"stix2/indicator", b"stix2/sighting", b"stix2/bundle"]
)
def test_fast_and_slow_way_agree_on_ordinary_objects(topic: bytes) -> None:
    for data, expected in ((indicator_bytes(), INDICATOR), (sighting_bytes(), SIGHTING)):
        (fast,) = reader.recognise([topic + b" " + data])
        assert (fast.topic, fast.data) == (expected, data)
        assert read(topic + b" " + data) == ([(expected, data)], [])


@pytest.mark.parametrize(
    "topic", [b"", b"stix", b"stix2x", b"stix2x/indicator", b"STIX2", b"threatbus", b" stix2"]
)
def test_fast_and_slow_way_agree_on_topics_that_nobody_has(topic: bytes) -> None:
    frame = topic + b" " + indicator_bytes()
    assert reader.recognise([frame]) == []
    messages, (reason,) = read(frame)
    assert messages == []
    assert reason.startswith("topic that nobody publishes to: ")


def test_a_topic_is_quoted_in_one_short_line() -> None:
    _, (reason,) = read(b"a\n\x1b\xff" + b"x" * 1000 + b" {}")
    assert reason.isprintable()
    assert len(reason) < 120


def test_a_bundle_gives_its_members_and_says_what_is_wrong_with_each() -> None:
    members = [indicator(), 5, sighting(), {"type": "malware"}, {"type": "indicator"}]
    frame = b"stix2/bundle " + encode({"type": "bundle", "objects": members})
    messages, rejected = reader.read(frame)
    assert [json.loads(message.data) for message in messages] == [members[0], members[2]]
    assert [data for _, data in rejected] == [b"5", encode({"type": "indicator"})]


def test_a_broken_bundle_is_kept_as_it_came() -> None:
    frame = b'stix2/bundle {"type": "bundle", "objects": {}}'
    assert reader.read(frame)[1] == [(reader.read(frame)[1][0][0], frame)]


def test_an_envelope_travels_as_it_came() -> None:
    data = envelope_message("some id", indicator()).data
    assert read(b"threatbus/snapshotenvelope " + data) == ([(SNAPSHOT_ENVELOPE, data)], [])


@settings(derandomize=True, database=None, deadline=None)
@given(st.binary(max_size=100), st.sampled_from([b"", b"stix2 ", b"threatbus/snapshotenvelope "]))
def test_any_frame_gives_messages_or_reasons(data: bytes, head: bytes) -> None:
    frame = head + data
    assert reader.recognise([frame]) == []
    messages, rejected = reader.read(frame)
    assert messages == []
    assert all(reason and kept == frame for reason, kept in rejected)
    assert rejected or b'"bundle"' in data
