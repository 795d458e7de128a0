"""Management: what is answered to which request, to the byte, and that there is an answer."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
import zmq
from helpers.waiting import SOON, eventually

from integration.zmq_helpers import App, Apps, ZmqBus, descriptors

UNKNOWN = b'{"status":"unknown request","reason":"'
ERROR = b'{"status":"error","reason":"'

# Subscribing.


@pytest.mark.parametrize(
    "request_frame",
    [
        b'{"action":"subscribe","topic":"stix2/indicator"}',
        b'{"action":"subscribe","topic":"stix2","snapshot":0}',
        b'{"action":"subscribe","topic":"stix2/","snapshot":null}',
        b'{"action":"subscribe","topic":["stix2/indicator","stix2/sighting"],"snapshot":30}',
        b'{"action":"subscribe","topic":"stix2/indicator","snapshot":"30"}',
        b'{"action":"subscribe","topic":"stix2/indicator","snapshot":"0.5"}',
        b'{"action":"subscribe","topic":"stix2/indicator","snapshot":1.5}',
        b'{"action":"subscribe","topic":"stix2/indicator","snapshot":36500}',
        b'{"action":"subscribe","topic":"","snapshot":0}',
        b'{"action":"subscribe","topic":"stix2","name":"sensor","filter":{"a":[1]},"x":null}',
        b' { "topic" : "stix2" , "action" : "subscribe" } ',
    ],
)
def test_a_subscription_is_answered_with_topic_and_ports(
    bus: ZmqBus, app: App, request_frame: bytes
) -> None:
    reply = app.ask_raw(request_frame)
    expected = b'{"status":"success","topic":"([a-z]{32})","pub_port":%d,"sub_port":%d}'
    assert re.fullmatch(expected % (bus.pub, bus.sub), reply), reply


def test_every_subscription_gets_a_topic_of_its_own(app: App) -> None:
    topics = {app.subscribe("stix2").p2p for _ in range(20)}
    assert len(topics) == 20
    assert len(set("".join(topics))) > 20, "letters are random"


@pytest.mark.parametrize(
    "snapshot",
    [
        b"-1",
        b"-0.001",
        b"36501",
        b"36500.001",
        b'"-1"',
        b'"36501"',
        b'"nan"',
        b'"inf"',
        b'"-Infinity"',
        b'"1e999"',
        b"1e400",
        b"NaN",
        b"Infinity",
        b"true",
        b"false",
        b'""',
        b'"a week"',
        b'"0x10"',
        b"[]",
        b"[30]",
        b"{}",
        b"9" * 5000,
    ],
)
def test_a_bad_snapshot_is_an_error_and_subscribes_nobody(
    bus: ZmqBus, app: App, snapshot: bytes
) -> None:
    request = b'{"action":"subscribe","topic":"stix2","snapshot":' + snapshot + b"}"
    assert app.ask_raw(request).startswith(ERROR)
    assert bus.bus.subscriptions.current() == []


# Unsubscribing and heartbeats.


def test_a_known_topic_can_be_kept_alive_and_unsubscribed_once(app: App) -> None:
    app.subscribe("stix2/indicator")
    heartbeat = json.dumps({"action": "heartbeat", "topic": app.p2p}).encode()
    unsubscribe = json.dumps({"action": "unsubscribe", "topic": app.p2p}).encode()
    assert app.ask_raw(heartbeat) == b'{"status":"success"}'
    assert app.ask_raw(unsubscribe) == b'{"status":"success"}'
    for again in (heartbeat, unsubscribe):
        assert app.ask_raw(again).startswith(ERROR)


@pytest.mark.parametrize("action", ["heartbeat", "unsubscribe"])
@pytest.mark.parametrize("topic", ["", "stix2/indicator", "a" * 32, "\u0000", "ä" * 40])
def test_an_unknown_topic_is_an_error(app: App, action: str, topic: str) -> None:
    reply = app.ask(action=action, topic=topic)
    assert reply["status"] == "error"
    assert "subscribe again" in reply["reason"]


# What is none of these.


@pytest.mark.parametrize(
    "request_frame",
    [
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"subscribe"',
        b"true",
        b'{"action":"subscribe"}',
        b'{"action":"heartbeat"}',
        b'{"action":"unsubscribe"}',
        b'{"topic":"stix2"}',
        b'{"action":"publish","topic":"stix2"}',
        b'{"action":"SUBSCRIBE","topic":"stix2"}',
        b'{"action":null,"topic":"stix2"}',
        b'{"action":["subscribe"],"topic":"stix2"}',
        b'{"action":{"subscribe":1},"topic":"stix2"}',
        b'{"action":"subscribe","topic":null}',
        b'{"action":"subscribe","topic":5}',
        b'{"action":"subscribe","topic":{}}',
        b'{"action":"subscribe","topic":[]}',
        b'{"action":"subscribe","topic":["stix2",5]}',
        b'{"action":"subscribe","topic":[["stix2"]]}',
        b'{"action":"heartbeat","topic":["a"]}',
        b'{"action":"heartbeat","topic":null}',
        b'{"action":"unsubscribe","topic":7}',
    ],
)
def test_json_that_is_no_request_is_answered_as_unknown(
    bus: ZmqBus, app: App, request_frame: bytes
) -> None:
    reply = app.ask_raw(request_frame)
    assert reply.startswith(UNKNOWN), reply
    assert json.loads(reply)["reason"]
    assert bus.bus.subscriptions.current() == []


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b" ",),
        (b"hello",),
        (b"{",),
        (b'{"action":"heartbeat","topic":"a"} x',),
        (b'{"action":"heartbeat","topic":"\xff\xfe"}',),
        (b"\xff\xfe\x00\x01" * 100,),
        (bytes(range(256)),),
        (b"[" * 100_000,),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000,),
        (b'{"action":"heartbeat","topic":"' + b"x" * 1000,),
        (b'{"action":', b'"heartbeat","topic":"a"}'),
        (b"", b""),
        (b'{"action":"heartbeat","topic":"a"}', b""),
    ],
)
def test_what_is_no_json_is_an_error_and_the_next_request_is_answered(
    app: App, frames: tuple[bytes, ...]
) -> None:
    assert app.ask_raw(*frames).startswith(ERROR)
    app.subscribe("stix2")
    assert app.heartbeat() == "success"


def test_too_many_and_too_long_topics_are_errors(app: App) -> None:
    assert app.ask(action="subscribe", topic=["stix2"] * 101)["status"] == "error"
    assert app.ask(action="subscribe", topic="s" * 1025)["status"] == "error"
    assert app.ask(action="subscribe", topic=["s" * 1024] * 100)["status"] == "success"


def test_the_number_of_subscribers_is_bounded_and_freed_again(zmq_apps: Apps) -> None:
    app = zmq_apps.app(zmq_apps.bus(max_subscribers=2))
    app.subscribe("stix2")
    app.subscribe("stix2")
    reply = app.ask(action="subscribe", topic="stix2")
    assert reply["status"] == "error"
    assert "max_subscribers" in reply["reason"]
    assert app.ask(action="unsubscribe", topic=app.p2p)["status"] == "success"
    app.subscribe("stix2")


# That there is an answer, whatever happens.


def test_a_peer_that_vanishes_before_the_reply_costs_nobody_else_theirs(app: App) -> None:
    for _ in range(50):
        gone = app.socket(zmq.REQ, app.bus.address("manage"))
        gone.send(b'{"action":"subscribe","topic":"stix2"}')
        app.close_socket(gone)
    app.subscribe("stix2")
    assert app.heartbeat() == "success"


def test_a_peer_that_reads_no_replies_costs_nobody_else_theirs(app: App) -> None:
    deaf = app.socket(zmq.DEALER, app.bus.address("manage"), RCVHWM=1)
    for _ in range(5000):
        deaf.send_multipart([b"", b"{}"])
    app.subscribe("stix2")
    assert app.heartbeat() == "success"


def test_frames_that_no_req_would_send_are_survived(app: App) -> None:
    odd = app.socket(zmq.DEALER, app.bus.address("manage"))
    for frames in ([b"no delimiter"], [b""], [b"", b"", b""], [b"x"] * 50, [b"a", b"", b"b"]):
        odd.send_multipart(frames)
    app.subscribe("stix2")
    assert app.heartbeat() == "success"


def test_an_exception_while_serving_a_request_is_answered_as_an_error(
    bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(bus.endpoint.manager, "_subscribe", broken)
        reply = app.ask(action="subscribe", topic="stix2")
    assert reply["status"] == "error"
    assert reply["reason"]
    assert "out of luck" not in reply["reason"], "the inside is for the log"
    assert "out of luck" in caplog.text
    assert len(bus.endpoint.manager) == 0
    app.subscribe("stix2")
    assert app.heartbeat() == "success"


def test_a_failing_unsubscribe_frees_the_subscription_all_the_same(
    bus: ZmqBus, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of luck")

    app.subscribe("stix2")
    with monkeypatch.context() as patch:
        patch.setattr(bus.endpoint.manager, "_unsubscribe", broken)
        assert app.ask(action="unsubscribe", topic=app.p2p)["status"] == "error"
    assert app.heartbeat() == "error"
    assert bus.endpoint.publisher._deliveries == {}


def test_a_thousand_subscriptions_that_come_and_go_leave_nothing_behind(
    bus: ZmqBus, app: App
) -> None:
    req = app.socket(zmq.REQ, bus.address("manage"))

    def cycle(count: int) -> None:
        for _ in range(count):
            req.send(b'{"action":"subscribe","topic":["stix2/indicator","stix2/sighting"]}')
            topic = json.loads(req.recv())["topic"]
            req.send(json.dumps({"action": "unsubscribe", "topic": topic}).encode())
            assert req.recv() == b'{"status":"success"}'

    cycle(10)
    before = descriptors()
    cycle(1000)
    assert descriptors() <= before
    assert bus.bus.subscriptions.current() == []
    assert bus.endpoint.publisher._deliveries == {}
    assert not bus.endpoint.publisher._ready


# Names and secrets.


def test_point_to_point_topics_are_in_no_log_above_debug(
    bus: ZmqBus, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    app.subscribe("stix2", name="sensor one").connect().connected()
    app.publish("stix2/indicator", b"{}")
    app.publish_numbered(0, 1)
    app.receive()
    app.heartbeat()
    app.disconnect()
    eventually(lambda: "sensor one #1 has disconnected" in caplog.text)
    app.ask(action="unsubscribe", topic=app.p2p)
    app.heartbeat()
    shown = [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG]
    assert shown
    assert not [line for line in shown if app.p2p in line]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("sensor", "sensor #1"),
        ("  näme  ", "näme #1"),
        ("a\nb\x1b[31mc\u202e", "a?b?[31mc? #1"),
        ("n" * 300, "n" * 100 + " #1"),
        ("", "subscriber #1"),
        ("\t ", "subscriber #1"),
        (7, "subscriber #1"),
        (None, "subscriber #1"),
    ],
)
def test_a_subscriber_goes_by_the_name_it_gave(
    bus: ZmqBus, app: App, given: Any, shown: str
) -> None:
    app.subscribe("stix2", name=given)
    assert [subscriber.name for subscriber in bus.bus.subscriptions.current()] == [shown]


def test_an_ipv6_address_can_be_bound(zmq_apps: Apps) -> None:
    app = zmq_apps.app(zmq_apps.bus(host="::1"))
    app.subscribe("stix2").connect().connected()
    app.publish_numbered(0, 1)
    assert app.receive(SOON)


@pytest.mark.parametrize("host", ["*", "localhost", "lo", "0.0.0.0"])
def test_hosts_may_be_written_in_several_ways(zmq_apps: Apps, host: str) -> None:
    bus = zmq_apps.bus(host=host, allow_insecure=True)
    bus.host = "127.0.0.1"
    app = zmq_apps.app(bus)
    app.subscribe("stix2").connect().connected()
    app.publish_numbered(0, 1)
    app.receive()
    bus.bus.stop()
