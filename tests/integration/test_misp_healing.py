"""What no message has told is found over REST: outages, kills, silence, history, snapshots."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp
from helpers.waiting import SOON, eventually
from threatbus_misp import answers, healing

from integration.misp_helpers import MispBus, ZmqStream, attribute_message, captured, shown
from integration.misp_server import Misp, MispServer

Start = Callable[..., MispBus]


class Clock:
    """MISP's clock, which a test puts forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[MispServer]:
    with MispServer(Misp(clock)) as made:
        yield made


@pytest.fixture
def stream() -> Iterator[ZmqStream]:
    made = ZmqStream()
    yield made
    made.close()


@pytest.fixture
def start(start_bus: Buses, open_app: OpenApp, server: MispServer, tmp_path: Path) -> Start:
    """Starts a bus with `server`'s API; all of one test have one state directory."""

    def started(*, with_api: bool = True, **section: Any) -> MispBus:
        api = {"host": server.url, "key": server.key if with_api else ""}
        api |= section.pop("api", {})
        core = {"queues": section.pop("queues", {}), "state_directory": str(tmp_path / "state")}
        return MispBus(start_bus, open_app, {"api": api, **section}, **core)

    return started


def by_pattern(objects: list[dict[str, Any]]) -> dict[str, bool]:
    return dict(shown(objects))


def ip(last: int) -> str:
    return f"[ipv4-addr:value = '192.0.2.{last}']"


# Start.


def test_the_first_start_publishes_no_history_unless_told_to(
    start: Start, server: MispServer, clock: Clock
) -> None:
    clock.ahead = -60
    event = server.misp.add_event("old")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    clock.ahead = 0
    bus = start()
    bus.healed()
    assert bus.outq.empty()


def test_the_first_start_publishes_as_many_days_as_it_is_told(
    start: Start, server: MispServer, clock: Clock
) -> None:
    event = server.misp.add_event("old")
    clock.ahead = -3 * 86_400
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    clock.ahead = -1.5 * 86_400
    server.misp.add_attribute(event, "ip-dst", "192.0.2.2")
    clock.ahead = 0
    bus = start(backfill=2)
    assert shown(bus.receive()) == [(ip(2), False)]
    bus.healed()
    assert bus.outq.empty()


# Outages.


@pytest.mark.parametrize("reason", ["the bus was down", "the connection was lost"])
def test_after_ten_minutes_of_outage_exactly_the_difference_is_published(
    start: Start, server: MispServer, stream: ZmqStream, clock: Clock, reason: str
) -> None:
    misp = server.misp
    event, other = misp.add_event("one"), misp.add_event("two")
    clock.ahead = -7200
    kept, edited, off, soft, hard = (
        misp.add_attribute(event, "ip-dst", f"192.0.2.{number}") for number in range(5)
    )
    misp.add_attribute(other, "ip-dst", "192.0.2.9")
    clock.ahead = 0
    bus = start(backfill=1, **stream.section)
    assert len(by_pattern(bus.receive(6))) == 6
    stream.heard()
    bus.healed()
    if reason == "the bus was down":
        bus.bus.stop()
    else:
        stream.close()
        eventually(lambda: not bus.instance.missing.listening, what="the loss is noticed")
    clock.ahead = 300
    misp.edit_attribute(edited, value="192.0.2.100")
    misp.edit_attribute(off, to_ids=False)
    misp.soft_delete(soft, sanitise=True)
    misp.hard_delete(hard)
    misp.add_attribute(event, "ip-dst", "192.0.2.101")
    misp.delete_event(other)
    clock.ahead = 600
    if reason == "the bus was down":
        bus = start(backfill=1, **stream.section)
    else:
        stream = ZmqStream(stream.port)
        stream.heard()
    found = by_pattern(bus.receive(6))
    bus.healed()
    assert found == {
        ip(100): False,
        ip(2): True,
        ip(3): True,
        ip(4): True,
        ip(101): False,
        ip(9): True,
    }
    assert bus.outq.empty()
    assert kept.uuid not in json.dumps(found)
    stream.close()


def test_a_publication_while_nobody_listened_is_found_although_no_attribute_changed(
    start: Start, server: MispServer, clock: Clock
) -> None:
    clock.ahead = -7200
    event = server.misp.add_event("draft")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    clock.ahead = 0
    bus = start(published_only=True)
    bus.healed()
    bus.bus.stop()
    clock.ahead = 400
    server.misp.publish(event)
    bus = start(published_only=True)
    assert shown(bus.receive()) == [(ip(1), False)]


def test_what_is_old_stays_off_the_bus_when_something_else_in_its_event_changes(
    start: Start, server: MispServer, clock: Clock
) -> None:
    clock.ahead = -7200
    event = server.misp.add_event("old")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    clock.ahead = 0
    bus = start()
    bus.healed()
    bus.bus.stop()
    clock.ahead = 60
    server.misp.add_attribute(event, "ip-dst", "192.0.2.2")
    bus = start()
    assert shown(bus.receive()) == [(ip(2), False)]
    bus.healed()
    assert bus.outq.empty()


def test_a_misp_that_takes_its_time_blocks_no_message(
    start: Start, server: MispServer, stream: ZmqStream
) -> None:
    with server.fault("/", delay=60) as fault:
        bus = start(**stream.section)
        eventually(lambda: fault.seen, what="MISP is asked")
        stream.send("misp_json_attribute", captured("attribute_add"))
        assert shown(bus.receive()) == [("[ipv4-addr:value = '198.51.100.7']", False)]
        assert not bus.instance.missing.nothing


def test_what_is_on_a_warninglist_is_left_out_where_rest_is_asked_if_that_is_wanted(
    start: Start, server: MispServer
) -> None:
    event = server.misp.add_event("one")
    for number in (1, 2):
        server.misp.add_attribute(event, "ip-dst", f"192.0.2.{number}")
    server.misp.warninglist.add("192.0.2.1")
    bus = start(backfill=1, warninglists=True)
    assert shown(bus.receive()) == [(ip(2), False)]


def test_a_misp_that_is_away_is_tried_again_and_blocks_no_message(
    start: Start, server: MispServer, stream: ZmqStream, caplog: pytest.LogCaptureFixture
) -> None:
    server.down()
    bus = start(**stream.section)
    stream.send("misp_json_attribute", captured("attribute_add"))
    assert shown(bus.receive()) == [("[ipv4-addr:value = '198.51.100.7']", False)]
    assert not bus.instance.missing.nothing
    eventually(lambda: "tried again in" in caplog.text)
    (problem,) = bus.bus.view.problems()
    assert problem.startswith(f"misp: misp REST is down: trying {server.url} again: ")
    server.up()
    bus.healed()
    assert bus.bus.view.problems() == []


def test_a_key_that_misp_refuses_is_said_so_and_not_shown(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start(api={"key": "x" * 40})
    eventually(lambda: "refuses" in caplog.text)
    assert "x" * 40 not in caplog.text
    assert "misp REST is down" in str(bus.bus.view.problems())
    assert "x" * 40 not in str(bus.bus.view.status())


@pytest.mark.parametrize("compared_at", ["1", "4000000000"], ids=["long ago", "clock set back"])
def test_a_comparison_of_everything_finds_what_got_lost_and_says_how_far_it_is(
    start: Start,
    server: MispServer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compared_at: str,
) -> None:
    clock.ahead = -7200
    misp = server.misp
    event = misp.add_event("one")
    gone = misp.add_attribute(event, "ip-dst", "192.0.2.1")
    misp.add_attribute(event, "ip-dst", "192.0.2.2")
    bus = start(backfill=1, full_comparison=3600)
    bus.receive(2)
    bus.healed()
    # Nothing tells of this: as if it had never been said.
    del misp.attributes[gone.id]
    # As many looks at the index, and lines in the log, as there would be for very many.
    monkeypatch.setattr(answers, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(healing, "PROGRESS_SECS", 0)
    bus.instance.healer._answers.put_note("compared at", compared_at)
    bus.instance.missing.wake()
    assert shown(bus.receive()) == [(ip(1), True)]
    eventually(lambda: re.search("comparison: 1 attributes, 1 events in doubt, in", caplog.text))
    assert "a full comparison so far: 1 attributes" in caplog.text


def test_silence_is_a_gap(
    start: Start, server: MispServer, stream: ZmqStream, caplog: pytest.LogCaptureFixture
) -> None:
    section = {"zmq": {**stream.section["zmq"], "silence": 0.2}}
    bus = start(**section)
    stream.heard()
    bus.healed()
    eventually(lambda: "not even a sign of life" in caplog.text)
    assert "has been silent for 0 s" in str(bus.bus.view.problems())
    assert not bus.instance.missing.listening
    event = server.misp.add_event("while nobody spoke")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    stream.send("misp_json_self", {"status": "ok", "uptime": 7})
    assert shown(bus.receive()) == [(ip(1), False)]


# Kills.


@pytest.mark.parametrize("handed_over", [False, True], ids=["on disk alone", "handed over"])
def test_what_a_killed_bus_may_not_have_passed_on_is_published_as_it_was_by_the_next(
    start: Start, stream: ZmqStream, monkeypatch: pytest.MonkeyPatch, handed_over: bool
) -> None:
    bus = start(with_api=False, **stream.section)
    reconciler = bus.instance.reconciler
    # A kill between two steps: what comes after it does not happen.
    monkeypatch.setattr(reconciler.handover, "settle", lambda **_: None)
    if not handed_over:
        monkeypatch.setattr(bus.instance, "put", lambda messages: None)
    stream.send("misp_json_attribute", captured("attribute_add"))
    eventually(lambda: reconciler.counters.published == 1)
    before = bus.receive() if handed_over else []
    bus.bus.stop()
    bus = start(with_api=False, **stream.section)
    (found,) = bus.receive()
    assert found["id"] == f"indicator--{captured('attribute_add')['Attribute']['uuid']}"
    assert before in ([], [found])


def test_a_killed_bus_publishes_the_same_versions_again_or_not_at_all(
    start: Start, stream: ZmqStream
) -> None:
    bus = start(with_api=False, **stream.section)
    documents = [attribute_message(value=f"192.0.2.{number}") for number in range(50)]
    for document in documents:
        stream.send("misp_json_attribute", document)
    first = {found["id"]: found["modified"] for found in bus.receive(50)}
    bus.bus.stop()
    bus = start(with_api=False, **stream.section)
    stream.heard(anew=True)
    for document in documents:
        stream.send("misp_json_attribute", document)
    stream.send("misp_json_attribute", attribute_message(type="domain", value="last.example"))
    again = {}
    while "last.example" not in again:
        (found,) = bus.receive()
        again[found["name"]] = found
    assert all(
        first[found["id"]] == found["modified"]
        for found in again.values()
        if found["name"] != "last.example"
    )


# Snapshots.


def snapshot_of(bus: MispBus, app: OpenApp, topic: str, days: float) -> Any:
    outq = app.services.outq("snapshot")
    app.subscribe(topic, outq, timedelta(days=days))
    return outq


def test_a_snapshot_of_indicators_goes_by_when_they_were_edited(
    start: Start, server: MispServer, open_app: OpenApp, clock: Clock
) -> None:
    """A snapshot went by the date of the event, and all of it was in memory at once."""
    misp = server.misp
    clock.ahead = -40 * 86_400
    old = misp.add_event("an old event", date="2019-01-01")
    misp.add_attribute(old, "ip-dst", "192.0.2.1")
    clock.ahead = -10 * 86_400
    for number in range(2, 30):
        misp.add_attribute(old, "ip-dst", f"192.0.2.{number}")
    misp.add_attribute(old, "ip-dst", "192.0.2.200", to_ids=False)
    clock.ahead = 0
    bus = start()
    outq = snapshot_of(bus, open_app, "stix2/indicator", 30)
    eventually(lambda: outq.qsize() == 28)
    found = [json.loads(message.data)["pattern"] for message in outq.get_many(100)]
    assert sorted(found) == sorted(ip(number) for number in range(2, 30))
    assert not [each for each in bus.outq.get_many(100) if each.topic.startswith("stix2/")]


def test_a_snapshot_of_sightings_gives_those_of_the_time(
    start: Start, server: MispServer, open_app: OpenApp
) -> None:
    event = server.misp.add_event("one")
    attribute = server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    now = int(time.time())
    server.misp.add_sighting(attribute, source="zeek", seen=now - 3600)
    server.misp.add_sighting(attribute, source="zeek", seen=now - 40 * 86_400)
    bus = start()
    outq = snapshot_of(bus, open_app, "stix2/sighting", 1)
    eventually(lambda: outq.qsize() == 1)
    (message,) = outq.get_many(10)
    assert json.loads(message.data)["sighting_of_ref"] == f"indicator--{attribute.uuid}"


def test_a_snapshot_of_sightings_keeps_to_the_filters(
    start: Start, server: MispServer, open_app: OpenApp
) -> None:
    event = server.misp.add_event("one")
    wanted = server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    for each in (server.misp.add_attribute(event, "domain", "off.example"), wanted):
        server.misp.add_sighting(each, source="zeek")
    bus = start(backfill=1, filter=[{"types": ["ip-dst"]}])
    bus.healed()
    outq = snapshot_of(bus, open_app, "stix2/sighting", 1)
    eventually(lambda: not outq.empty())
    (message,) = outq.get_many(10)
    assert json.loads(message.data)["sighting_of_ref"] == f"indicator--{wanted.uuid}"


# Sightings to MISP.


def test_a_sighting_on_the_bus_is_reported_once_and_does_not_come_back(
    start: Start, server: MispServer, stream: ZmqStream, open_app: OpenApp
) -> None:
    """A sighting had the wrong time, no count, no source, and the UUID in the wrong field."""
    event = server.misp.add_event("one")
    attribute = server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    bus = start(backfill=1, **stream.section)
    (found,) = bus.receive()
    open_app.inq.put_many([sighting_message(found["id"], count=2)])
    assert bus.receive()[0]["type"] == "sighting"
    eventually(lambda: len(server.misp.sightings_of(attribute)) == 2)
    seen = server.misp.sightings_of(attribute)[0]
    assert seen.source == "zeek@sensor1"
    assert seen.date_sighting == 1795500000
    announced = captured("sighting_add_uuid")
    announced["Sighting"] |= {
        "uuid": seen.uuid,
        "source": seen.source,
        "date_sighting": str(seen.date_sighting),
        "type": "0",
    }
    announced["Sighting"]["Attribute"] |= {"uuid": attribute.uuid, "value": attribute.value}
    stream.send("misp_json_sighting", announced)
    stream.send("misp_json_attribute", attribute_message(type="domain", value="last.example"))
    assert bus.receive()[0]["name"] == "last.example"


def sighting_message(indicator: str, **more: Any) -> Any:
    from helpers.documents import sighting_message as made  # noqa: PLC0415

    return made(
        sighting_of=indicator,
        last_seen="2026-11-24T06:00:00Z",
        x_threatbus_source="zeek@sensor1",
        **more,
    )


def test_a_sighting_of_no_known_attribute_marks_its_value_if_that_is_wanted(
    start: Start, server: MispServer, open_app: OpenApp
) -> None:
    event = server.misp.add_event("one")
    both = [server.misp.add_attribute(event, kind, "192.0.2.1") for kind in ("ip-dst", "ip-src")]
    bus = start(sightings={"by_value": True})
    bus.healed()
    indicator = "indicator--33333333-3333-4333-8333-333333333333"
    open_app.inq.put_many([sighting_message(indicator, x_threatbus_indicator_value="192.0.2.1")])
    eventually(lambda: all(len(server.misp.sightings_of(each)) == 1 for each in both))


def test_a_false_positive_on_the_bus_is_one_in_misp(
    start: Start, server: MispServer, open_app: OpenApp
) -> None:
    event = server.misp.add_event("one")
    attribute = server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    bus = start(backfill=1)
    (found,) = bus.receive()
    kind = {"x_threatbus_misp_sighting_type": "false-positive"}
    open_app.inq.put_many([sighting_message(found["id"], **kind)])
    eventually(lambda: [each.type for each in server.misp.sightings_of(attribute)] == ["1"])


def test_sightings_of_others_indicators_are_not_reported(
    start: Start, server: MispServer, open_app: OpenApp
) -> None:
    bus = start()
    bus.healed()
    open_app.inq.put_many([sighting_message("indicator--33333333-3333-4333-8333-333333333333")])
    bus.receive()
    assert bus.instance.outbox.counts.waiting == 0
    assert not any(path.startswith("/sightings/add") for path in server.paths())


def test_sightings_that_were_too_many_are_counted_and_those_after_them_are_reported(
    start: Start, server: MispServer, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    attribute = server.misp.add_attribute(server.misp.add_event("one"), "ip-dst", "192.0.2.1")
    bus = start(backfill=1, queues={"outq_messages": 20})
    (found,) = bus.receive()
    bus.healed()
    outq = bus.instance.outq
    # What holds up whoever asks the index, as a slow disk does.
    with bus.instance.reconciler.handover.lock:
        open_app.inq.put_many([sighting_message(found["id"])])
        eventually(outq.empty)
        for _ in range(2):
            open_app.inq.put_many([sighting_message(found["id"]) for _ in range(15)])
            bus.receive(15)
    eventually(lambda: bus.instance.outq is not outq)
    open_app.inq.put_many([sighting_message(found["id"])])
    eventually(lambda: len(server.misp.sightings_of(attribute)) == 2)
    assert bus.instance.outbox.counts.dropped == 30
    assert "misp sightings: 30 sightings are not reported" in caplog.text
    assert bus.bus.status()["state"] == "running"


def test_a_sighting_waits_for_an_index_that_cannot_be_read(
    start: Start,
    server: MispServer,
    open_app: OpenApp,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attribute = server.misp.add_attribute(server.misp.add_event("one"), "ip-dst", "192.0.2.1")
    bus = start(backfill=1)
    (found,) = bus.receive()
    bus.healed()
    with monkeypatch.context() as broken:
        broken.setattr(bus.instance.index, "entry", failing(sqlite3.OperationalError("disk I/O")))
        open_app.inq.put_many([sighting_message(found["id"])] * 3)
        eventually(lambda: "cannot be read: disk I/O; tried again" in caplog.text)
    eventually(lambda: len(server.misp.sightings_of(attribute)) == 3)
    assert bus.instance.outq.unfinished == 0


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_two_misps_side_by_side_each_have_their_own(
    start_bus: Buses, open_app: OpenApp, server: MispServer
) -> None:
    with MispServer() as second:
        sections = {
            name: {"api": {"host": each.url, "key": each.key}, "backfill": 1}
            for name, each in (("one", server), ("two", second))
        }
        for number, each in enumerate((server, second), 1):
            event = each.misp.add_event(f"of {number}")
            each.misp.add_attribute(event, "ip-dst", f"192.0.2.{number}")
        bus = MispBus(start_bus, open_app, {"instances": sections})
        found = bus.receive(2)
        assert by_pattern(found) == {ip(1): False, ip(2): False}
        assert {each["x_threatbus_source"] for each in found} == {"one", "two"}
        mine = next(each for each in found if each["x_threatbus_source"] == "two")
        open_app.inq.put_many([sighting_message(mine["id"])])
        # The other one knows no such attribute.
        eventually(lambda: len(second.misp.sightings) == 1)
        assert not any(path.startswith("/sightings/add") for path in server.paths())


# Load.


def test_fifty_thousand_attributes_arrive_complete(start: Start, stream: ZmqStream) -> None:
    bus = start(with_api=False, **stream.section)
    template = json.dumps(captured("attribute_add"))
    known = captured("attribute_add")["Attribute"]["uuid"]
    for number in range(50_000):
        uuid = f"{number:08x}-0000-4000-8000-000000000000"
        stream.send("misp_json_attribute", template.replace(known, uuid).encode())
    eventually(lambda: bus.outq.qsize() == 50_000, 6 * SOON, "all are there")


# Stop.


@pytest.mark.usefixtures("long_patience")
def test_the_bus_stops_quickly_while_a_source_waits_for_room(
    start: Start, stream: ZmqStream
) -> None:
    bus = start(with_api=False, **stream.section)
    gate = bus.bus.intake.gate
    gate.shut("a backbone that is away")
    stream.send("misp_json_attribute", captured("attribute_add"))
    # It is on disk before it is handed over.
    eventually(lambda: bus.instance.reconciler.counters.published == 1)
    began = time.monotonic()
    bus.bus.stop()
    assert time.monotonic() - began < SOON
    again = start(with_api=False, **stream.section)
    assert shown(again.receive()) == [("[ipv4-addr:value = '198.51.100.7']", False)]


@pytest.mark.usefixtures("long_patience")
@pytest.mark.parametrize("where", ["/events/restSearch", "/attributes/restSearch"])
def test_the_bus_stops_quickly_while_misp_takes_its_time_with_what_is_missing(
    start: Start, server: MispServer, where: str
) -> None:
    event = server.misp.add_event("one")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    told: list[dict[str, Any]] = []
    with server.fault(where, delay=60) as fault:
        bus = start(backfill=1)
        eventually(lambda: fault.seen == 1, what="MISP is asked")
        if where == "/events/restSearch":
            # The history has come by then.
            told = bus.receive()
        began = time.monotonic()
        bus.bus.stop()
        assert time.monotonic() - began < SOON
    again = start(backfill=1)
    again.healed()
    told = told or again.receive()
    assert shown(told) == [(ip(1), False)]
    assert again.outq.empty()


@pytest.mark.usefixtures("long_patience")
@pytest.mark.parametrize("where", ["in MISP", "in the bus"])
def test_the_bus_stops_quickly_while_a_snapshot_is_on_its_way(
    start: Start, server: MispServer, open_app: OpenApp, where: str
) -> None:
    event = server.misp.add_event("one")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    bus = start()
    bus.healed()
    path = "/attributes/restSearch"
    with server.fault(path, delay=60 if where == "in MISP" else 0, times=None) as fault:
        snapshot_of(bus, open_app, "stix2/indicator", 1)
        eventually(lambda: fault.seen, what="the snapshot is asked for")
        if where == "in the bus":
            bus.bus.intake.gate.shut("a backbone that is away")
            snapshot_of(bus, open_app, "stix2/indicator", 1)
        began = time.monotonic()
        bus.bus.stop()
        assert time.monotonic() - began < SOON


def test_a_pull_that_was_not_asked_for_before_a_kill_is_asked_for_by_the_next(
    start: Start, server: MispServer, stream: ZmqStream, clock: Clock
) -> None:
    bus = start(**stream.section)
    bus.healed()
    # What comes from elsewhere is as old as it is there.
    clock.ahead = -40 * 86_400
    event = server.misp.add_event("pulled")
    server.misp.add_attribute(event, "ip-dst", "192.0.2.1")
    clock.ahead = 0
    server.down()
    pulled = {"Event": str(event.id), "Server": "2", "action": "add_from_connected_server"}
    stream.send("misp_json_event", pulled)
    eventually(bus.instance.index.missing)
    bus.bus.stop()
    server.up()
    bus = start(**stream.section)
    assert shown(bus.receive()) == [(ip(1), False)]
    bus.healed()
    eventually(lambda: bus.instance.index.missing() == [])
