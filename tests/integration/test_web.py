"""The web endpoint, asked over HTTP: who gets what, within which limits, and what it says."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest
import threatbus_web.handler
import threatbus_web.stream
from helpers.buses import Buses, OpenApp
from helpers.documents import encode, indicator, indicator_message, indicators, sighting
from helpers.waiting import SOON, eventually
from prometheus_client.parser import text_string_to_metric_families

from integration.web_helpers import TOKEN, WebBus
from integration.zmq_helpers import App, Apps
from testbed.ports import Doors, free_port
from threatbus.errors import InvalidConfig
from threatbus.observe.metrics import METRICS

OPEN = ["/", "/app.js", "/style.css", "/healthz", "/readyz"]
CLOSED = ["/metrics", "/api/status", "/api/history", "/api/rejected", "/api/stream", "/api/trace"]


@pytest.fixture
def web(start_bus: Buses, open_app: OpenApp) -> WebBus:
    """A bus with the web plugin and an app plugin that tests speak through."""
    return WebBus(start_bus, {"open": None})


def metrics_of(web: WebBus) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name and labels; read by Prometheus's own parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(web.ask("/metrics").text)
        for sample in family.samples
    }


def sample(found: dict[Any, float], name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


# Who gets what


@pytest.mark.parametrize("path", OPEN)
def test_pages_and_probes_want_no_token(web: WebBus, path: str) -> None:
    assert web.ask(path, token="").status == 200


@pytest.mark.parametrize("path", [*CLOSED, "/api/publish"])
def test_whatever_shows_data_wants_the_token(web: WebBus, path: str) -> None:
    method = "POST" if path == "/api/publish" else "GET"
    for token in ("", "wrong", TOKEN[:-1], TOKEN + "x"):
        answer = web.ask(path, method, token=token)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert "Authorization: Bearer TOKEN" in answer.json["next"]
        assert TOKEN not in answer.text


def test_every_answer_is_armoured(web: WebBus) -> None:
    for path in ("/", "/app.js", "/api/status", "/nowhere"):
        headers = web.ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "threatbus", "and no version of Python"


def test_what_is_not_there_and_what_is_asked_wrongly_is_told_the_way(web: WebBus) -> None:
    missing = web.ask("/api/nothing")
    assert missing.status == 404
    assert "/api/status" in missing.json["next"]
    wrong = web.ask("/api/status", "DELETE")
    assert wrong.status == 405
    assert wrong.headers["Allow"] == "GET"
    assert web.ask("/api/trace").status == 400
    assert web.ask("/api/stream?backlog=many").status == 400
    assert web.ask("/api/stream?type=malware").status == 400
    assert web.ask("/../../etc/passwd").status == 404


def test_head_gives_the_head_alone(web: WebBus) -> None:
    answer = web.ask("/healthz", "HEAD")
    assert answer.status == 200
    assert int(answer.headers["Content-Length"]) > 0
    assert answer.body == b""


def test_one_connection_serves_several_requests(web: WebBus) -> None:
    with web.connection() as connection:
        for _ in range(3):
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"alive\n"


def test_nothing_that_is_shown_holds_a_secret(start_bus: Buses, open_app: OpenApp) -> None:
    web = WebBus(start_bus, {"open": {"password": "hunter2", "url": "https://u:hunter2@x"}})
    open_app.services.report.connection("x").down("trying https://u:hunter2@x again")
    shown = "".join(web.ask(path).text for path in ("/metrics", "/api/status", "/readyz"))
    assert "hunter2" not in shown
    assert TOKEN not in shown


# Health


def test_a_bus_whose_plugins_are_connected_is_ready(web: WebBus, open_app: OpenApp) -> None:
    report = open_app.services.report
    assert web.ask("/readyz", token="").text == "ready\n"
    broker = report.connection("broker")
    assert web.ask("/readyz").status == 200, "what is not needed yet is no reason against it"
    broker.down("connecting to broker.example")
    answer = web.ask("/readyz", token="")
    assert answer.status == 503
    assert "not ready: open" in answer.text
    assert "broker.example" not in answer.text, "who has no token sees names alone"
    assert (
        "open: broker is down: connecting to broker.example" in web.json("/api/status")["problems"]
    )
    assert web.ask("/healthz").status == 200
    broker.up()
    assert web.ask("/readyz").status == 200


def test_a_zeek_that_is_away_is_seen_and_its_return_too(start_bus: Buses) -> None:
    url = f"ws://127.0.0.1:{free_port()}/v1/messages/json"
    web = WebBus(start_bus, {"zeek": {"broker": False, "websockets": [url]}})

    def refused() -> bool:
        (connection,) = plugin("zeek")["connections"]
        return "refused" in connection["detail"]

    def plugin(name: str) -> dict[str, Any]:
        found: dict[str, Any]
        (found,) = [each for each in web.json("/api/status")["plugins"] if each["name"] == name]
        return found

    eventually(refused)
    assert "not ready: zeek" in web.ask("/readyz").text
    assert (
        sample(
            metrics_of(web), "threatbus_connection_up", plugin="zeek", connection=f"websocket {url}"
        )
        == 0
    )


# Metrics


def test_metrics_are_those_that_are_listed_and_no_others(web: WebBus) -> None:
    families = list(text_string_to_metric_families(web.ask("/metrics").text))
    ours = {each.name for each in families if each.name.startswith("threatbus_")}
    plugins = {name for name in ours if name.startswith(("threatbus_web_", "threatbus_zmq_"))}
    assert ours - plugins == {metric.name for metric in METRICS.values()}
    for family in families:
        if family.name.startswith("threatbus_"):
            assert family.documentation.endswith(".")
    assert "process_resident_memory_bytes" in {each.name for each in families}


def test_messages_are_counted_by_plugin_topic_and_type(web: WebBus, open_app: OpenApp) -> None:
    outq = open_app.services.outq("reader #1", label="reader")
    open_app.subscribe("stix2/", outq)
    open_app.inq.put_many(indicators(3))
    outq.get_many(2)
    found = metrics_of(web)
    labels = {"plugin": "open", "topic": "stix2/indicator", "type": "indicator"}
    assert sample(found, "threatbus_messages_in_total", **labels) == 3
    assert sample(found, "threatbus_messages_out_total", **labels) == 3
    assert sample(found, "threatbus_outq_messages", plugin="open", subscriber="reader") == 1
    assert sample(found, "threatbus_outq_bytes", plugin="open", subscriber="reader") not in (
        None,
        0,
    )
    assert sample(found, "threatbus_subscribers", plugin="open") == 1
    assert sample(found, "threatbus_delivery_latency_seconds_count", plugin="open") == 1
    assert sample(found, "threatbus_delivery_latency_seconds_bucket", plugin="open", le="+Inf") == 1


def test_rejects_and_a_plugins_own_numbers_are_metrics(web: WebBus, open_app: OpenApp) -> None:
    open_app.services.rejects.add("door", "not JSON: of all things", b"x")
    open_app.services.report.gauge("things", "Things there are.", lambda: 5)
    open_app.services.report.counter("events", "Events there were.", lambda: 6)
    found = metrics_of(web)
    assert sample(found, "threatbus_rejected_total", origin="door", reason="not JSON") == 1
    assert sample(found, "threatbus_open_things") == 5
    assert sample(found, "threatbus_open_events_total") == 6


def test_a_subscriber_goes_by_its_declared_name_and_never_by_its_topic(
    start_bus: Buses, zmq_apps: Apps
) -> None:
    doors = Doors.free()
    web = WebBus(start_bus, {"zmq": doors.section})
    topics = []
    for _ in range(3):
        app = App(doors)
        topics.append(app.subscribe("stix2/", name="sensor").p2p)
        app.close()
    text = web.ask("/metrics").text
    assert 'threatbus_outq_messages{plugin="zmq",subscriber="sensor"} 0.0' in text
    assert text.count("threatbus_outq_messages{") == 1, "those of one name are one"
    assert sample(metrics_of(web), "threatbus_subscribers", plugin="zmq") == 3
    assert not any(topic in text for topic in topics)


def test_hostile_names_cannot_break_the_format_or_fill_it(start_bus: Buses) -> None:
    doors = Doors.free()
    web = WebBus(start_bus, {"zmq": doors.section})
    app = App(doors)
    for number in range(150):
        app.subscribe("stix2/", name=f'{number} "\\\n{{}} # HELP x')
    app.close()
    found = metrics_of(web)
    names = {
        dict(labels).get("subscriber")
        for name, labels in found
        if name == "threatbus_outq_messages"
    }
    assert len(names) == 101
    assert "other" in names


# Status, history, rejected, trace


def test_a_stalled_subscriber_is_seen(start_bus: Buses, zmq_apps: Apps) -> None:
    doors = Doors.free()
    web = WebBus(start_bus, {"zmq": doors.section})
    app = App(doors, rcvhwm=1)
    app.subscribe("stix2/", name="sleeper").connect()
    large = encode(indicator(description="x" * 100_000))
    eventually(lambda: web.json("/api/status")["subscribers"]["sleeper #1"]["connected"])

    def stalls() -> dict[str, Any] | None:
        for _ in range(20):
            web.ask("/api/publish", "POST", large)
        found: dict[str, Any] = web.json("/api/status")["subscribers"]["sleeper #1"]
        return found if found["stalled_seconds"] > 0 else None

    found = eventually(stalls, 30)
    assert found is not None
    assert found["waiting"] > 0
    app.close()


def test_history_is_there_when_the_page_comes(
    start_bus: Buses, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_web.history.INTERVAL_SECS", 0.05)
    web = WebBus(start_bus, {"open": None})
    open_app.inq.put_many(indicators(1000))

    def flowed() -> Any:
        found = web.json("/api/history")
        return found if any(point[1] > 0 for point in found["points"]) else None

    history = eventually(flowed)
    assert history["fields"][:3] == ["time", "in", "out"]
    assert history["span_seconds"] > 0


def test_what_was_rejected_is_listed_with_the_way_to_see_it(web: WebBus, open_app: OpenApp) -> None:
    for number in range(150):
        open_app.services.rejects.add("door", f"reason {number}", b"secret document")

    def all_kept() -> Any:
        found = web.json("/api/rejected")
        # They are written in more than one go.
        assert [each["reason"] for each in found["newest"][:1]] == ["reason 149"]
        return found

    found = eventually(all_kept)
    assert len(found["newest"]) == 100
    assert found["total"] == 150
    assert "threatbus rejected show" in found["next"]
    assert "secret document" not in json.dumps(found)


def test_a_trace_is_given(web: WebBus) -> None:
    known = indicator("[domain-name:value = 'evil.example']")
    web.ask("/api/publish", "POST", encode(known))
    (found,) = web.json("/api/trace?of=evil.example")["objects"]
    assert found["id"] == known["id"]
    assert found["messages"][0]["plugin"] == "web"


# Publishing


def test_what_is_published_goes_through_the_border(web: WebBus, open_app: OpenApp) -> None:
    outq = open_app.services.outq("reader")
    open_app.subscribe("stix2/", outq)
    document = json.dumps(indicator(), indent=3).encode()
    answer = web.ask("/api/publish", "POST", document)
    assert answer.status == 200
    assert answer.json["accepted"] == 1
    assert outq.get_many(1, timeout=10)[0].data == document, "byte for byte"


@pytest.mark.parametrize("pack", ["bundle", "list"])
def test_of_many_objects_each_gets_its_verdict(web: WebBus, pack: str) -> None:
    objects = [indicator(), {"type": "indicator"}, {"type": "malware"}, sighting()]
    bundle = {"type": "bundle", "id": "bundle--1", "objects": objects}
    answer = web.ask("/api/publish", "POST", encode(bundle if pack == "bundle" else objects))
    assert answer.status == 422
    assert answer.json["accepted"] == 2
    assert answer.json["skipped"] == 1
    ((rejected),) = answer.json["rejected"]
    assert rejected["object"] == 2
    assert "STIX 2.0" in rejected["reason"]
    assert web.bus.rejects.counts == {
        ("web publish", "STIX 2.0, but 2.1 is needed (no spec_version)"): 1
    }


def test_what_holds_no_object_is_accepted_as_nothing(web: WebBus) -> None:
    for empty in (b"[]", b'{"type": "bundle", "id": "bundle--1", "objects": []}'):
        answer = web.ask("/api/publish", "POST", empty)
        assert (answer.status, answer.json["accepted"]) == (200, 0)
        assert "there was none" in answer.json["next"]


@pytest.mark.parametrize(
    "body", [b"", b"[", b"{", b"[1, 2", b"\xff", b"null", b'{"type":"malware"}', b"[" * 5000]
)
def test_what_is_no_stix_is_answered_with_its_reason(web: WebBus, body: bytes) -> None:
    answer = web.ask("/api/publish", "POST", body)
    assert answer.status == 422
    assert answer.json["rejected"][0]["reason"]
    assert answer.json["next"]


def test_publishing_when_the_bus_is_full_is_refused_and_says_when_to_come_again(
    start_bus: Buses, open_app: OpenApp
) -> None:
    web = WebBus(start_bus, {"open": None}, queues={"outq_messages": 1, "overflow": "block"})
    open_app.subscribe("stix2/", open_app.services.outq("full"))
    assert web.ask("/api/publish", "POST", encode(indicator())).status == 200
    answer = web.ask("/api/publish", "POST", encode(indicator()))
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert "full" in answer.json["error"]


# Limits


def test_a_body_that_is_too_large_or_of_unknown_length_is_not_read(start_bus: Buses) -> None:
    web = WebBus(start_bus, max_body=1000)
    assert web.ask("/api/publish", "POST", b"x" * 1001).status == 413
    chunked = web.ask("/api/publish", "POST", more={"Transfer-Encoding": "chunked"})
    assert chunked.status == 411
    assert web.ask("/api/publish", "POST", more={"Content-Length": "-5"}).status == 400
    assert web.ask("/healthz", "GET", b"x").status == 413, "nobody wants that body"
    assert web.ask("/api/publish", "POST", b"x" * 2**24).status == 413, "sent in one go"
    assert web.ask("/api/publish", "POST", b"x" * 2**24, token="").status == 401


@pytest.mark.parametrize("length", ["0" * 20 + "9999", "0" * 5000 + "2", "2\r\nContent-Length: 5"])
def test_a_length_that_could_be_read_in_two_ways_is_refused(web: WebBus, length: str) -> None:
    request = (
        f"POST /api/publish HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {length}\r\n\r\n[]"
    )
    with raw(web, request.encode()) as channel:
        assert channel.recv(1000).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_a_body_that_is_not_wanted_is_not_asked_for(web: WebBus) -> None:
    request = b"POST /api/publish HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    with raw(web, request + b"\r\n") as channel:
        assert channel.recv(1000).startswith(b"HTTP/1.1 401")
    with raw(web, request + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()) as channel:
        assert channel.recv(1000).startswith(b"HTTP/1.1 100")


def raw(web: WebBus, *pieces: bytes) -> socket.socket:
    """Send bytes as they are."""
    channel = socket.create_connection(("127.0.0.1", web.port), timeout=20)
    for piece in pieces:
        channel.sendall(piece)
    return channel


def test_a_request_that_comes_byte_by_byte_is_cut_off(
    web: WebBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threatbus_web.handler, "REQUEST_SECS", 0.3)
    began = time.monotonic()
    with raw(web, b"GET / HTTP/1.1\r\na: ") as channel:

        def dribble() -> bool:
            try:
                channel.sendall(b"b")
                channel.setblocking(False)
                return channel.recv(100) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        eventually(dribble)
    assert time.monotonic() - began < 10


def test_a_connection_without_a_request_is_closed_after_a_while(
    web: WebBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threatbus_web.handler, "IDLE_SECS", 0.1)
    with raw(web) as channel:
        channel.settimeout(5)
        assert channel.recv(1) == b""


def test_there_are_no_more_connections_than_allowed(start_bus: Buses) -> None:
    web = WebBus(start_bus, max_connections=3)
    held = [raw(web) for _ in range(3)]
    try:
        with raw(web, b"GET /healthz HTTP/1.1\r\n\r\n") as one_more:
            assert b"503" in one_more.recv(1000)
    finally:
        for each in held:
            each.close()
    eventually(lambda: web.ask("/healthz").status == 200)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage_is_answered_and_others_are_served(web: WebBus, garbage: bytes) -> None:
    with raw(web, garbage) as channel:
        assert b'"next"' in channel.makefile("rb").read()
    assert web.ask("/healthz").status == 200


# Streams


def test_a_stream_gives_what_passes(web: WebBus, open_app: OpenApp) -> None:
    with web.stream() as events:
        open_app.inq.put_many(indicators(2))
        kind, first = events.next()
        assert (kind, first["name"], first["plugin"]) == ("message", "0", "open")
        assert events.next()[1]["name"] == "1"


def test_a_stream_gives_what_is_asked_for_alone_and_what_had_passed(
    web: WebBus, open_app: OpenApp
) -> None:
    known = indicator("[domain-name:value = 'evil.example']")
    for document in (indicator(), known, sighting(known["id"])):
        web.ask("/api/publish", "POST", encode(document))
    with web.stream("text=EVIL.example&type=indicator&backlog=10") as events:
        assert events.next()[1]["id"] == known["id"]
        web.ask(
            "/api/publish", "POST", encode(sighting(x_threatbus_indicator_value="evil.example"))
        )
        again = {**known, "revoked": True}
        web.ask("/api/publish", "POST", encode(again))
        assert events.next()[1]["operation"] == "REMOVE"


def test_a_stream_that_is_too_slow_for_all_says_how_many_it_left_out(
    web: WebBus, open_app: OpenApp
) -> None:
    with web.stream() as events:
        open_app.inq.put_many(indicators(500))
        kinds = [events.next() for _ in range(101)]
    skipped = sum(data["count"] for kind, data in kinds if kind == "skipped")
    messages = [data for kind, data in kinds if kind == "message"]
    assert skipped == 400
    assert [each["name"] for each in messages] == [str(n) for n in range(400, 500)]


def test_a_stream_that_nobody_reads_is_let_go_and_costs_the_bus_nothing(
    web: WebBus, open_app: OpenApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threatbus_web.handler, "WRITE_SECS", 0.2)
    monkeypatch.setattr(threatbus_web.stream, "LOOK_SECS", 0.01)
    head = f"GET /api/stream HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    channel = socket.socket()
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    channel.connect(("127.0.0.1", web.port))
    channel.sendall(head.encode())
    long = {"pattern": f"[a:b = '{'x' * 400}']"}

    def let_go() -> bool:
        open_app.inq.put_many([indicator_message(**long) for _ in range(100)])
        return sample(metrics_of(web), "threatbus_web_streams_let_go_total") == 1

    eventually(let_go, 30)
    channel.close()
    eventually(lambda: sample(metrics_of(web), "threatbus_web_streams") == 0)


def test_streams_leave_room_for_other_requests(start_bus: Buses) -> None:
    web = WebBus(start_bus, max_connections=8)
    with web.stream(), web.stream():
        refused = web.ask("/api/stream")
        assert refused.status == 503
        assert "2 streams" in refused.json["error"]
        assert web.ask("/healthz").status == 200


# Beginning and end


@pytest.mark.usefixtures("long_patience")
def test_the_bus_stops_at_once_with_streams_and_idle_connections_open(web: WebBus) -> None:
    before = {thread.name for thread in threading.enumerate()}
    assert "web server" in before
    with web.stream() as events, raw(web):
        began = time.monotonic()
        web.bus.stop()
        assert time.monotonic() - began < SOON
        assert events.ended()

    def gone() -> bool:
        return not any(thread.name.startswith("web ") for thread in threading.enumerate())

    eventually(gone)
    with pytest.raises(ConnectionRefusedError):
        web.ask("/healthz")


def test_a_port_that_is_taken_is_named(start_bus: Buses) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InvalidConfig,
            match=rf"plugins\.apps\.web\.port: is 127\.0\.0\.1:{port}, which cannot be bound",
        ):
            start_bus({"web": {"port": port, "token": TOKEN}})


def test_a_bus_that_is_open_to_others_says_so(
    start_bus: Buses, caplog: pytest.LogCaptureFixture
) -> None:
    WebBus(start_bus, host="0.0.0.0")
    assert "put a proxy with TLS before it" in caplog.text


def test_two_buses_in_one_process_do_not_meet(start_bus: Buses) -> None:
    first, second = WebBus(start_bus), WebBus(start_bus)
    first.ask("/api/publish", "POST", encode(indicator()))
    assert first.json("/api/status")["accepted"] == 1
    assert second.json("/api/status")["accepted"] == 0
