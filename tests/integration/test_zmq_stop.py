"""Starting and stopping: ports, time limits, and what becomes of messages that are under way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from helpers.buses import Buses
from helpers.waiting import SOON, eventually, finished

from integration.cli_helpers import BusProcess
from integration.zmq_helpers import App, Apps, ZmqBus, descriptors, number_of
from testbed.ports import Doors
from threatbus.errors import InvalidConfig

#: Seconds that are fewer than a bus may take to deliver, which is 10 unless it is told otherwise.
QUICK = SOON / 2


def stop(bus: ZmqBus) -> float:
    """Stop the bus and give the seconds that it took."""
    began = time.monotonic()
    bus.bus.stop()
    return time.monotonic() - began


def test_an_idle_bus_stops_at_once(zmq_apps: Apps, bus: ZmqBus) -> None:
    for _ in range(5):
        app = zmq_apps.app(bus).subscribe("stix2").connect().connected()
        assert app.pub
        app.heartbeat()
    assert stop(bus) < QUICK


def test_everything_accepted_is_delivered_to_who_reads(
    bus: ZmqBus, app: App, publisher: App
) -> None:
    app.subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 20_000)
    frames: list[bytes] = []
    reader = threading.Thread(target=lambda: frames.extend(app.receive_all(20_000)))
    reader.start()
    bus.accepted(1000)
    stop(bus)
    finished(reader)
    assert [number_of(frame) for frame in frames] == list(range(20_000))


def test_what_publishers_have_sent_before_is_read_out(
    zmq_apps: Apps, bus: ZmqBus, publisher: App
) -> None:
    # ZeroMQ's own thread does the reading.
    app = zmq_apps.app(bus, rcvhwm=0).subscribe("stix2").connect().connected()
    publisher.publish_numbered(0, 5000)
    stop(bus)
    assert bus.bus.intake.accepted == 5000
    assert [number_of(frame) for frame in app.receive_all(5000)] == list(range(5000))


@pytest.mark.parametrize("host", ["*", "lo", "::1"])
def test_what_was_sent_is_read_out_whatever_the_host_is_called(zmq_apps: Apps, host: str) -> None:
    bus = zmq_apps.bus(host=host, allow_insecure=True)
    bus.host = "127.0.0.1" if host != "::1" else host
    publisher = zmq_apps.app(bus)
    publisher.publish_numbered(0, 2000)
    stop(bus)
    assert bus.bus.intake.accepted == 2000
    assert bus.plugin._endpoint is None


def test_publishers_that_never_pause_do_not_keep_the_bus_from_stopping(
    zmq_apps: Apps, bus: ZmqBus
) -> None:
    publisher = zmq_apps.app(bus)
    socket_, ended = publisher.pub, threading.Event()

    def publish() -> None:
        while not ended.is_set():
            socket_.send(b"stix2/indicator {")
            time.sleep(0.0001)

    thread = threading.Thread(target=publish)
    thread.start()
    assert stop(bus) < QUICK
    ended.set()
    finished(thread)


def test_a_stalled_subscriber_costs_at_most_the_drain_time_and_is_told_about(
    zmq_apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    bus = zmq_apps.bus(drain_timeout=1)
    app = zmq_apps.app(bus, rcvhwm=1).subscribe("stix2", name="stalled").connect().connected()
    app.publish_numbered(0, 20_000)
    bus.accepted(20_000)
    app.stalled()
    assert 0.9 < stop(bus) < QUICK
    remain = re.search(r"(\d+) messages for stalled #1 remain undelivered", caplog.text)
    assert remain
    assert 10_000 < int(remain[1]) < 20_000
    assert f"20000 messages accepted, 0 rejected, {remain[1]} not delivered" in caplog.text


def test_what_waits_for_an_absent_subscriber_is_counted_and_not_waited_for(
    bus: ZmqBus, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    app.subscribe("stix2")
    app.publish_numbered(0, 1000)
    bus.accepted(1000)
    assert stop(bus) < QUICK
    assert "1000 messages for subscriber #1 remain undelivered" in caplog.text


def test_a_bus_stops_while_slow_documents_are_under_way(bus: ZmqBus, app: App) -> None:
    from helpers.documents import indicator  # noqa: PLC0415

    terms = " OR ".join(f"a:b = '{number}'" for number in range(700))
    for _ in range(20):
        app.publish("stix2/indicator", indicator(pattern=f"[{terms}]"))
    eventually(lambda: bus.endpoint.receiver.slow_lane.busy)
    assert stop(bus) < QUICK


def test_a_bus_stops_while_sources_are_held_up(zmq_apps: Apps) -> None:
    bus = zmq_apps.bus(
        queues={"outq_messages": 100, "overflow": "block"}, drain_timeout=1, grace=60
    )
    app = zmq_apps.app(bus).subscribe("stix2")
    app.publish_numbered(0, 5000)
    eventually(lambda: not bus.bus.intake.writable)
    assert stop(bus) < QUICK


def test_a_bus_whose_loop_hangs_stops_all_the_same(
    zmq_apps: Apps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("threatbus_zmq.endpoint.LAST_READ_SECS", 0.1)
    monkeypatch.setattr("threatbus_zmq.endpoint.PATIENCE_SECS", 0.1)
    monkeypatch.setattr("threatbus.bus.STOP_TIMEOUT_SECS", 0.5)
    bus = zmq_apps.bus(drain_timeout=0.1)
    release = threading.Event()
    monkeypatch.setattr(bus.endpoint, "_keep_house", lambda: release.wait(2 * SOON))
    bus.endpoint._wakeup()
    assert stop(bus) < SOON
    assert "plugin zmq hangs in stop(); going on without it" in caplog.text
    release.set()
    eventually(lambda: bus.plugin._endpoint is None, what="the endpoint is closed after all")


def test_the_ports_are_free_right_after_and_nothing_is_left(
    zmq_apps: Apps, start_bus: Buses
) -> None:
    before = threads_and_descriptors()
    for _ in range(3):
        bus = zmq_apps.bus()
        app = zmq_apps.app(bus).subscribe("stix2").connect().connected()
        app.publish_numbered(0, 10)
        app.receive_until(9)
        stop(bus)
        for door in ("manage", "pub", "sub"):
            with socket.socket() as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind(("127.0.0.1", getattr(bus, door)))
        app.close()
    eventually(lambda: threads_and_descriptors() <= before)


def threads_and_descriptors() -> tuple[int, int]:
    # ZeroMQ's own threads are none of Python's.
    return sum(1 for _ in Path("/proc/self/task").iterdir()), descriptors()


def test_outqs_that_get_messages_after_the_end_wake_nobody(bus: ZmqBus, app: App) -> None:
    from helpers.documents import indicator_message  # noqa: PLC0415

    app.subscribe("stix2")
    outq = app.delivery().outq
    stop(bus)
    outq.put_many([indicator_message()])


# Ports in use.


def test_every_port_that_cannot_be_had_is_named(start_bus: Buses) -> None:
    doors = Doors.free()
    taken = ("manage", "sub")
    with contextlib.ExitStack() as stack:
        for door in taken:
            address = ("127.0.0.1", getattr(doors, door))
            stack.enter_context(socket.create_server(address))
        with pytest.raises(InvalidConfig) as caught:
            start_bus(apps={"zmq": doors.section})
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    for line, door in zip(lines, taken, strict=True):
        assert line.startswith(f"plugins.apps.zmq.{door}: ")
        assert doors.address(door) in line
        assert "in use" in line
    # Nothing is left of the attempt.
    start_bus(apps={"zmq": doors.section})


def test_one_port_for_two_doors_is_an_error(start_bus: Buses) -> None:
    doors = Doors.free()
    doors.sub = doors.pub
    before = threads_and_descriptors()
    with pytest.raises(InvalidConfig, match=r"plugins\.apps\.zmq\.sub"):
        start_bus(apps={"zmq": doors.section})
    eventually(lambda: threads_and_descriptors() <= before, what="nothing of it is left")


def test_a_host_that_is_not_ours_is_an_error(start_bus: Buses) -> None:
    doors = Doors.free()
    doors.host = "192.0.2.1"
    section = {**doors.section, "allow_insecure": True}
    with pytest.raises(InvalidConfig, match=r"tcp://192\.0\.2\.1:"):
        start_bus(apps={"zmq": section})


# The process.


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BusProcess]:
    started = BusProcess(tmp_path / "process")
    yield started
    started.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing_that_was_accepted(
    process: BusProcess, number: signal.Signals
) -> None:
    app, publisher = App(process.doors), App(process.doors)
    app.subscribe("stix2").connect()
    publisher.publish_numbered(0, 20_000)
    frames = app.receive_all(2000)
    began = time.monotonic()
    process.process.send_signal(number)
    with_deadline = time.monotonic() + 2 * SOON
    assert app.sub is not None
    while process.process.poll() is None or app.sub.poll(200):
        assert time.monotonic() < with_deadline
        if app.sub.poll(10):
            frames.append(app.sub.recv())
    assert time.monotonic() - began < SOON
    assert process.process.returncode == 0
    assert f"{process.accepted} messages accepted, 0 rejected, 0 not delivered" in process.stderr
    assert [number_of(frame) for frame in frames] == list(range(process.accepted))
    for each in (app, publisher):
        each.close()


def test_an_idle_process_with_apps_uses_no_processor_and_stops_at_once(
    process: BusProcess,
) -> None:
    apps = [App(process.doors).subscribe("stix2").connect() for _ in range(3)]
    assert all(app.pub for app in apps)
    before = cpu_seconds(process)
    time.sleep(1.5)
    assert cpu_seconds(process) - before <= 0.03
    began = time.monotonic()
    assert process.end() == 0
    assert time.monotonic() - began < QUICK
    for app in apps:
        app.close()


def cpu_seconds(process: BusProcess) -> float:
    stat = Path(f"/proc/{process.process.pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_publisher_that_stays_is_heard_by_the_next_bus(
    zmq_apps: Apps, start_bus: Buses, bus: ZmqBus
) -> None:
    publisher = zmq_apps.app(bus)
    publisher.publish_numbered(0, 1)
    bus.accepted(1)
    stop(bus)
    again = start_bus(apps={"zmq": bus.section})

    def is_heard() -> bool:
        publisher.publish_numbered(1, 1)
        return again.intake.accepted > 0

    eventually(is_heard)
    assert isinstance(publisher.pub, zmq.Socket)
