"""Zeeks over WebSocket: a server that follows Zeek's manual, and what can happen to connections."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import envelope_message, indicator
from helpers.waiting import eventually
from helpers.websocket_zeek import MAX_EVENT_QUEUE_SIZE, WebSocketZeek, typed
from helpers.zeeks import OldScript, OurScript
from threatbus_zeek.values import Count

from integration.zeek_helpers import ZeekBus, Zeeks, server_certificate
from testbed.ports import free_port, free_ports

UNKNOWN_ID = "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"


def domains(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [indicator(f"[domain-name:value = '{n}.example']") for n in range(first, first + count)]


def url(port: int) -> str:
    return f"ws://127.0.0.1:{port}"


def started(zeeks: Zeeks, script: Any, **options: Any) -> tuple[ZeekBus, WebSocketZeek]:
    """A bus that is connected to a Zeek, and subscribed."""
    port = free_port()
    zeek = zeeks.listening(port, script, **options)
    bus = zeeks.bus(broker=False, websockets=[url(port)])
    subscribed(zeek)
    return bus, zeek


def subscribed(zeek: WebSocketZeek) -> None:
    eventually(lambda: zeek.script.p2p and getattr(zeek.script, "joined", True))


def test_the_bus_says_who_it_is_and_what_it_wants(zeeks: Zeeks) -> None:
    _, zeek = started(zeeks, OurScript)
    assert zeek.applications == ["threatbus"]
    assert zeek.subscriptions == [["threatbus/manage", "stix2/sighting"]]


@pytest.mark.parametrize("script", [OldScript, OurScript])
def test_indicators_come_in_and_sightings_go_out(zeeks: Zeeks, script: Any) -> None:
    bus, zeek = started(zeeks, script)
    documents = domains(250)
    bus.publish(*documents, {**documents[0], "revoked": True})
    told = zeek.script.intel if script is OldScript else zeek.script.changes
    eventually(lambda: len(told) == 251)
    assert [record[1] for record in told] == [*(each["id"] for each in documents), told[0][1]]
    context = {"noisy": False, "table": {"a": Count(1)}, "vector": (1, "b"), "double": 1.5}
    zeek.sight(documents[5]["id"], context)
    (sighting,) = bus.sightings(1)
    assert sighting["sighting_of_ref"] == documents[5]["id"]
    assert sighting["x_threatbus_sighting_context"] == {
        "noisy": False, "table": {"a": 1}, "vector": [1, "b"], "double": 1.5,
    }  # fmt: skip
    zeek.script.end()
    eventually(lambda: bus.subscribers() == [])
    assert zeek.errors == []


def test_a_snapshot_comes_in_batches(zeeks: Zeeks) -> None:
    port = free_port()
    history = domains(1000)
    bus = zeeks.bus(broker=False, websockets=[url(port)])

    def answer(request: Any, result_q: Any) -> None:
        for body in history:
            result_q.put(envelope_message(request.snapshot_id, body))

    bus.app.answer = answer
    zeek = zeeks.listening(port, partial(OurScript, snapshot=timedelta(days=-30)))
    eventually(lambda: len(zeek.script.changes) == 1000)
    assert [change[1] for change in zeek.script.changes] == [body["id"] for body in history]
    assert len(zeek.script.numbers) < 1000
    assert zeek.errors == []


def test_a_server_that_is_not_there_yet_is_waited_for(zeeks: Zeeks) -> None:
    port = free_port()
    bus = zeeks.bus(broker=False, websockets=[url(port)])
    began = datetime.now(UTC)
    zeek = zeeks.listening(port, OurScript)
    subscribed(zeek)
    assert datetime.now(UTC) - began < timedelta(seconds=4)
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.changes) == 1)


@pytest.mark.parametrize("script", [OldScript, OurScript])
def test_with_a_slow_server_nothing_is_lost(zeeks: Zeeks, script: Any) -> None:
    bus, zeek = started(zeeks, script, seconds_per_event=0.002)
    documents = domains(500)
    bus.publish(*documents)
    told = zeek.script.intel if script is OldScript else zeek.script.changes
    eventually(lambda: len(told) == 500)
    assert [record[1] for record in told] == [each["id"] for each in documents]


def test_our_script_never_has_its_queue_filled(zeeks: Zeeks) -> None:
    bus, zeek = started(zeeks, OurScript)
    zeek.going.clear()
    bus.publish(*domains(5000))
    eventually(lambda: zeek.client.events.qsize() >= 7)
    # Many turns of the link later it is not more.
    for number in range(1, 41):
        zeek.sight(UNKNOWN_ID)
        bus.sightings(number)
    assert zeek.client.events.qsize() < MAX_EVENT_QUEUE_SIZE / 2
    zeek.going.set()
    eventually(lambda: len(zeek.script.changes) == 5000)


def test_after_a_break_our_script_gets_what_it_missed(zeeks: Zeeks) -> None:
    bus, zeek = started(zeeks, OurScript)
    documents = domains(2000)
    for start in range(0, 2000, 400):
        bus.publish(*documents[start : start + 400])
        zeek.drop()
    eventually(lambda: len(zeek.script.changes) == 2000)
    assert [change[1] for change in zeek.script.changes] == [each["id"] for each in documents]
    assert len(zeek.subscriptions) > 1
    assert len(bus.subscribers()) == 1


def test_after_a_break_the_old_script_goes_on_at_its_topic(zeeks: Zeeks) -> None:
    bus, zeek = started(zeeks, OldScript)
    topic = zeek.script.p2p
    documents = domains(200)
    bus.publish(*documents[:100])
    eventually(lambda: zeek.script.intel)
    zeek.drop()
    bus.publish(*documents[100:])
    ids = {each["id"] for each in documents}
    eventually(lambda: {record[1] for record in zeek.script.intel} == ids)
    assert zeek.script.p2p == topic
    assert len(bus.subscribers()) == 1


def test_a_zeek_that_stays_away_is_let_go_after_the_grace_time(zeeks: Zeeks) -> None:
    ports = free_ports(2)
    zeek_list = [zeeks.listening(ports[0], OldScript), zeeks.listening(ports[1], OurScript)]
    bus = zeeks.bus(broker=False, websockets=[url(port) for port in ports], grace=1)
    for zeek in zeek_list:
        subscribed(zeek)
        zeek.close()
    bus.publish(*domains(10))
    eventually(lambda: bus.subscribers() == [])


def test_a_restarted_zeek_is_served_again(zeeks: Zeeks) -> None:
    bus, zeek = started(zeeks, OurScript)
    zeek.close()
    again = zeeks.listening(zeek.port, OurScript)
    subscribed(again)
    document = indicator()
    bus.publish(document)
    eventually(lambda: list(again.script.intel) == [document["id"]])
    (connection,) = bus.bus.observer.plugin("zeek", "app").report.connections()
    assert (connection.state, connection.reconnects) == ("up", 1)


def test_several_zeeks_are_served_at_once_beside_broker(zeeks: Zeeks) -> None:
    ports = free_ports(2)
    listening = [zeeks.listening(port, OurScript) for port in ports]
    bus = zeeks.bus(websockets=[url(port) for port in ports])
    for zeek in listening:
        subscribed(zeek)
    native = zeeks.old(bus)
    bus.publish(*domains(300))
    for zeek in listening:
        eventually(lambda: len(zeek.script.changes) == 300)
    eventually(lambda: len(native.script.intel) == 300)
    for zeek in listening:
        zeek.sight(UNKNOWN_ID)
    native.sight(UNKNOWN_ID)
    bus.sightings(3)


def test_a_zeek_that_is_frozen_costs_the_others_nothing(zeeks: Zeeks) -> None:
    ports = free_ports(2)
    frozen, well = (zeeks.listening(port, OldScript) for port in ports)
    addresses = [url(port) for port in ports]
    bus = zeeks.bus(broker=False, websockets=addresses, core={"drain_timeout": 1})
    subscribed(frozen)
    subscribed(well)
    frozen.going.clear()
    # More than all buffers between the two hold.
    long_name = "x" * 5000
    count = 2000
    bus.publish(*(indicator(f"[file:name = '{long_name}{n}']") for n in range(count)))
    eventually(lambda: len(well.script.intel) == count)
    # Nor does it hold up the end.
    began = datetime.now(UTC)
    bus.bus.stop()
    assert datetime.now(UTC) - began < timedelta(seconds=6)
    names = {thread.name for thread in threading.enumerate()}
    assert not [name for name in names if name.startswith("link of zeek")]


def test_tls_is_checked_against_the_configured_certificates(zeeks: Zeeks, tmp_path: Path) -> None:
    context, certificate = server_certificate(tmp_path)
    port = free_port()
    zeek = zeeks.listening(port, OurScript, tls=context)
    address = f"wss://127.0.0.1:{port}"
    bus = zeeks.bus(broker=False, websockets=[address], ca_file=certificate)
    subscribed(zeek)
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.changes) == 1)
    bus.bus.stop()


def test_a_certificate_that_nobody_vouches_for_is_refused(
    zeeks: Zeeks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context, _ = server_certificate(tmp_path)
    port = free_port()
    zeek = zeeks.listening(port, OurScript, tls=context)
    zeeks.bus(broker=False, websockets=[f"wss://127.0.0.1:{port}"])
    eventually(lambda: "its certificate is refused" in caplog.text)
    assert zeek.clients == []


def test_a_server_that_does_not_acknowledge_is_named(
    zeeks: Zeeks, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threatbus_zeek.websocket_transport.OPEN_SECS", 0.3)
    port = free_port()
    zeeks.listening(port, OurScript, acknowledges=False)
    zeeks.bus(broker=False, websockets=[url(port)])
    eventually(lambda: "does not acknowledge" in caplog.text)
    assert url(port) in caplog.text


def test_a_wrong_path_is_refused_and_named(zeeks: Zeeks, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    zeeks.listening(port, OurScript)
    zeeks.bus(broker=False, websockets=[f"{url(port)}/wrong"])
    # The error says it, and so does the end of the connection, which may be noticed before.
    eventually(lambda: "Invalid URI - use /v1/messages/json" in caplog.text)


def test_a_refusal_of_zeeks_is_told_and_changes_nothing(
    zeeks: Zeeks, caplog: pytest.LogCaptureFixture
) -> None:
    bus, zeek = started(zeeks, OurScript)
    zeek.send({"type": "error", "code": "deserialization_failed", "context": "failed to create"})
    eventually(lambda: "refuses an event (deserialization_failed, failed to create)" in caplog.text)
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.changes) == 1)
    assert len(zeek.subscriptions) == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("nonsense", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ({"type": "data-message", "topic": "stix2/sighting", **typed("text")}, "no event"),
        (
            {"type": "data-message", "topic": "threatbus/manage", **typed((1, 1, (1, 2)))},
            "no event",
        ),
        ({"type": "data-message", "topic": "stix2/sighting"}, "a value without data"),
        ({"type": "unheard-of"}, "neither data-message"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_frame_that_is_wrong_is_rejected_and_nothing_else(
    zeeks: Zeeks, frame: Any, reason: str
) -> None:
    bus, zeek = started(zeeks, OurScript)
    zeek.send(frame)
    assert bus.rejected(reason) == 1
    bus.publish(indicator())
    eventually(lambda: len(zeek.script.changes) == 1)
    zeek.sight(UNKNOWN_ID)
    bus.sightings(1)
    assert len(zeek.subscriptions) == 1


def test_strings_that_are_no_utf8_do_not_break_the_connection(zeeks: Zeeks) -> None:
    bus, zeek = started(zeeks, OurScript)
    moment, missing = typed(datetime.now(UTC)), typed({"user": "MARK"})
    args = {"@data-type": "vector", "data": [moment, typed(UNKNOWN_ID), missing]}
    name = typed("Tenzir::sighting")
    event = {"@data-type": "vector", "data": [name, args]}
    whole = {"@data-type": "vector", "data": [typed(Count(1)), typed(Count(1)), event]}
    text = json.dumps({"type": "data-message", "topic": "stix2/sighting", **whole})
    zeek.send(text.encode().replace(b"MARK", b"root\xff\x01"))
    (sighting,) = bus.sightings(1)
    assert sighting["x_threatbus_sighting_context"] == {"user": "root\\xff\x01"}
    assert len(zeek.subscriptions) == 1


def test_an_idle_bus_stops_at_once_connected_or_not(zeeks: Zeeks) -> None:
    port = free_port()
    zeek = zeeks.listening(port, OurScript)
    bus = zeeks.bus(broker=False, websockets=[url(port), url(free_port())])
    subscribed(zeek)
    before = threading.active_count()
    began = datetime.now(UTC)
    bus.bus.stop()
    assert datetime.now(UTC) - began < timedelta(seconds=1)
    assert threading.active_count() < before
    eventually(lambda: zeek.close_codes == [1000])
