"""The operator's commands against real buses: what is seen, what is changed while it runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.documents import encode, indicator, indicator_message
from helpers.waiting import eventually, finished

import threatbus
from integration.cli_helpers import BusProcess, Process, Terminal, write_config
from integration.cli_helpers import run as run_command
from testbed.ports import Doors
from threatbus.control import ask
from threatbus.errors import BusUnreachable
from threatbus.messages import INDICATOR, Message
from threatbus.observe.report import ReaderState
from threatbus.rejects import MAX_KEPT_BYTES, RejectStore, stored


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[BusProcess]:
    running = BusProcess(tmp_path / "bus")
    yield running
    running.kill()


def status_of(bus: BusProcess) -> dict[str, Any]:
    done = run_command("status", "-c", str(bus.config), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def publish(bus: BusProcess, document: bytes) -> None:
    done = run_command("publish", "-", "--endpoint", bus.endpoint, stdin=document)
    assert done.returncode == 0, done.stderr


# status


def test_status_shows_plugins_messages_and_queues(bus: BusProcess, tmp_path: Path) -> None:
    reader = Process(tmp_path / "tail", "tail", "--endpoint", bus.endpoint)
    bus.says("threatbus tail #1 subscribes")
    publish(bus, encode(indicator()))
    reader.lines(1)
    status = status_of(bus)
    done = run_command("status", "-c", str(bus.config))
    reader.kill()
    assert status["state"] == "running"
    assert status["pid"] == bus.process.pid
    assert status["accepted"] == 1
    assert status["subscribers"]["threatbus tail #1"]["put"] == 1
    assert status["inq"]["inmem"]["put"] == 1
    shown = done.stdout.decode()
    assert done.returncode == 0
    assert f"(process {bus.process.pid}) is running, up for" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["app", "zmq", "running"] in rows
    assert ["backbone", "inmem", "running"] in rows
    assert ["accepted", "1"] in rows
    assert ["outq", "threatbus", "tail", "#1", "0", "0", "B", "1", "1", "0"] in rows


def test_status_says_clearly_when_no_bus_runs(bus: BusProcess) -> None:
    assert bus.end() == 0
    done = run_command("status", "-c", str(bus.config))
    assert done.returncode == 3
    assert done.stderr.startswith(b"threatbus: no bus answers at ")
    assert b"Is it running?" in done.stderr
    assert done.stdout == b""


def test_status_after_a_bus_was_killed_and_started_again(bus: BusProcess) -> None:
    bus.kill()
    socket = bus.config.parent / "state" / "control.sock"
    dead = run_command("status", "--socket", str(socket))
    assert dead.returncode == 3
    assert b"has ended without removing it" in dead.stderr
    again = Process(bus.config.parent / "again", "-c", str(bus.config))
    again.says("running:")
    assert run_command("status", "--socket", str(socket)).returncode == 0
    assert again.end() == 0


def test_status_names_a_part_that_is_lost(start_bus: Buses, plugins: TestPlugins) -> None:
    class Broken:
        @threatbus.app
        def run(self) -> None:
            raise OSError("no")

    plugins.app("broken", Broken)
    bus = start_bus({"broken": None})
    done = run_command("status", "--socket", str(bus.control.path))
    assert done.returncode == 1
    assert b"the bus runs WITHOUT broken" in done.stderr
    assert ["app", "broken", "lost"] in [line.split() for line in done.stdout.decode().splitlines()]


def test_a_second_bus_in_the_same_directory_leaves_the_first_ones_socket_alone(
    start_bus: Buses, tmp_path: Path
) -> None:
    directory = str(tmp_path / "shared")
    first = start_bus({}, state_directory=directory)
    second = start_bus({}, state_directory=directory)
    assert second.running
    second.stop()
    assert ask(first.control.path, "status")["state"] == "running"
    first.stop()
    with pytest.raises(BusUnreachable):
        ask(first.control.path, "status")


def test_status_holds_no_secret(tmp_path: Path, start_bus: Buses, plugins: TestPlugins) -> None:
    class Secretive:
        @threatbus.app
        def run(self) -> None:
            pass

    plugins.app("secretive", Secretive)
    bus = start_bus({"secretive": {"password": "hunter2", "url": "https://u:hunter2@x"}})
    assert "hunter2" not in json.dumps(ask(bus.control.path, "status"))


# trace


def test_a_trace_says_where_an_indicator_came_from_and_went(
    bus: BusProcess, tmp_path: Path
) -> None:
    reader = Process(tmp_path / "tail", "tail", "--endpoint", bus.endpoint)
    bus.says("threatbus tail #1 subscribes")
    known = indicator("[domain-name:value = 'evil.example']", x_threatbus_source="MISP 1")
    publish(bus, encode(known))
    publish(bus, encode({**known, "revoked": True}))
    reader.lines(2)
    done = run_command("trace", "evil.example", "-c", str(bus.config))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["objects"]
    assert found["id"] == known["id"]
    assert found["withdrawn"]
    assert [each["operation"] for each in found["messages"]] == ["ADD", "REMOVE"]
    assert found["messages"][0]["plugin"] == "zmq"
    assert found["messages"][0]["to"] == [{"subscriber": "threatbus tail #1", "state": "taken"}]
    screen = Terminal("trace", known["id"], "-c", str(bus.config))
    shown = screen.shows("REMOVE")
    screen.close()
    reader.kill()
    assert "[domain-name:value = 'evil.example']" in shown
    assert "withdrawn at " in shown
    assert "threatbus tail #1 (taken)" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["TIME", "WHAT", "FROM", "SOURCE", "BYTES", "TO"] in rows


def test_a_trace_that_finds_nothing_says_why_and_what_to_do(bus: BusProcess) -> None:
    nothing = run_command("trace", "evil.example", "-c", str(bus.config))
    assert nothing.returncode == 1
    assert b"nothing has passed since the bus started" in nothing.stderr
    publish(bus, encode(indicator()))
    other = run_command("trace", "evil.example", "-c", str(bus.config))
    assert other.returncode == 1
    assert b"is not among the 1 messages that passed since the bus started" in other.stderr
    assert b"`threatbus rejected`" in other.stderr
    assert b"`threatbus tail --snapshot DAYS`" in other.stderr
    assert json.loads(other.stdout)["objects"] == []


def test_a_trace_says_what_the_bus_does_not_keep(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus({"open": None}, trace={"messages": 1, "bytes": 100_000})
    first, second = (indicator(f"[a:b = '{name}']") for name in ("first", "second"))
    for each in (first, second):
        open_app.inq.put_many([Message(INDICATOR, encode(each))])
    done = run_command("trace", "first", "--socket", str(bus.control.path))
    assert done.returncode == 1
    assert b"`trace` in the configuration allows 1 messages and 97.7 KiB" in done.stderr
    nobody = run_command("trace", "second", "--socket", str(bus.control.path))
    assert nobody.returncode == 0
    assert b"went to nobody" in nobody.stderr


def test_a_trace_names_who_has_not_taken_it_yet(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus({"open": None})
    open_app.subscribe("stix2/", open_app.services.outq("sleeper"))
    open_app.inq.put_many([indicator_message(pattern="[a:b = 'c']")])
    done = run_command("trace", "c", "--socket", str(bus.control.path))
    assert done.returncode == 0
    assert b"it still waits for sleeper: see DEPTH" in done.stderr


def test_status_names_a_connection_that_is_down_and_who_takes_nothing(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus({"open": None})
    report = open_app.services.report
    report.connection("broker").down("trying broker.example again: refused")
    open_app.subscribe("stix2/", open_app.services.outq("sleeper"))
    report.readers(lambda: {"sleeper": ReaderState(True, 99.0, 1)})
    done = run_command("status", "--socket", str(bus.control.path))
    assert done.returncode == 1
    assert b"open: broker is down: trying broker.example again: refused" in done.stderr
    assert b"sleeper takes nothing" in done.stderr
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert ["PLUGIN", "CONNECTION", "STATE", "FOR", "RECONNECTS", "WHAT"] in rows
    assert any(row[:3] == ["open", "broker", "down"] for row in rows)


# rejected


def reject(bus: BusProcess, document: bytes) -> Path:
    """Have the bus reject a frame; gives its state directory once that is kept."""
    state = bus.config.parent / "state"
    kept = len(list(stored(state)))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PUB) as socket:
        socket.connect(bus.doors.address("sub"))

        def is_kept() -> bool:
            # A PUB drops what it sends before it is connected.
            socket.send(b"stix2/indicator " + document)
            return len(list(stored(state))) > kept

        eventually(is_kept)
    context.destroy(linger=0)
    return state


def test_what_was_rejected_is_listed_and_shown(bus: BusProcess) -> None:
    reject(bus, b'{"type": "indicator"}')
    listed = run_command("rejected", "-c", str(bus.config))
    heading, first, *_ = listed.stdout.decode().splitlines()
    assert heading.split() == ["NUMBER", "TIME", "ORIGIN", "BYTES", "REASON"]
    assert first.split()[0] == "1"
    assert "zmq" in first
    shown = run_command("rejected", "show", "1", "-c", str(bus.config))
    assert shown.returncode == 0
    assert shown.stdout == b'{"type": "indicator"}\n', "fit to be edited and published"
    assert b"topic: stix2/indicator" in shown.stderr
    assert b"reason: " in shown.stderr


def test_what_was_rejected_is_read_when_the_bus_has_ended(bus: BusProcess) -> None:
    state = reject(bus, b"garbage")
    assert bus.end() == 0
    done = run_command("rejected", "list", "--directory", str(state))
    assert done.returncode == 0
    assert b"NUMBER" in done.stdout


def test_what_is_still_wrong_is_not_published_again(bus: BusProcess) -> None:
    reject(bus, b'{"type": "indicator"}')
    done = run_command(
        "rejected", "publish", "1", "-c", str(bus.config), "--endpoint", bus.endpoint
    )
    assert done.returncode == 1
    assert b"rejected: " in done.stderr
    assert status_of(bus)["accepted"] == 0


def test_what_is_right_by_now_is_published_again(bus: BusProcess, tmp_path: Path) -> None:
    """Rejected, as by a bus with a smaller border; its frame bears the topic it came with."""
    store = RejectStore(tmp_path / "store", 100, 1_000_000)
    store.start()
    store.add("zmq", "too new", b"stix2/indicator " + encode(indicator()))
    store.add("zmq", "too large", b"stix2/indicator " + b" " * MAX_KEPT_BYTES)
    store.stop()
    finished(store)
    options = ["--directory", str(tmp_path / "store"), "--endpoint", bus.endpoint]
    done = run_command("rejected", "publish", "1", *options)
    assert done.returncode == 0, done.stderr
    assert b"published 1 object" in done.stderr
    assert status_of(bus)["accepted"] == 1
    cut = run_command("rejected", "publish", "2", *options)
    assert cut.returncode == 1
    assert b"only the first 65,536 were kept" in cut.stderr


def test_a_number_that_is_not_there_and_an_empty_store_are_said_to_be(tmp_path: Path) -> None:
    missing = run_command("rejected", "show", "7", "--directory", str(tmp_path))
    assert missing.returncode == 1
    assert b"there is no message 7" in missing.stderr
    empty = run_command("rejected", "--directory", str(tmp_path))
    assert empty.returncode == 0
    assert b"nothing that was rejected is kept" in empty.stderr
    assert run_command("rejected", "show", "--directory", str(tmp_path)).returncode == 2


# SIGHUP


def configure(bus: BusProcess, **sections: Any) -> None:
    """Write these sections into the configuration of a running bus, and have it reload."""
    bus.config.write_text(json.dumps({**json.loads(bus.config.read_text()), **sections}))
    bus.process.send_signal(signal.SIGHUP)


def test_sighup_reads_log_levels_and_files_anew(bus: BusProcess, tmp_path: Path) -> None:
    log = tmp_path / "new.log"
    configure(bus, logging={"console_verbosity": "ERROR", "file": True, "filename": str(log)})
    eventually(lambda: "reloaded: " in log.read_text() if log.exists() else False)
    publish(bus, b" " + encode(indicator()))
    assert "threatbus publish #1 subscribes" in log.read_text()
    assert "threatbus publish #1 subscribes" not in bus.stderr
    log.rename(tmp_path / "old.log")
    configure(bus)
    eventually(lambda: "reloaded: " in log.read_text() if log.exists() else False)
    assert status_of(bus)["accepted"] == 1, "the bus itself went on"
    assert bus.end() == 0


def test_sighup_refuses_a_broken_configuration_as_a_whole(bus: BusProcess) -> None:
    configure(bus, logging={"console_verbosity": "ERROR"}, drain_timeout="soon")
    bus.says("not reloaded, the old configuration goes on: drain_timeout: ")
    bus.config.write_text("{")
    bus.process.send_signal(signal.SIGHUP)
    eventually(lambda: bus.stderr.count("not reloaded") >= 2)
    assert "reloaded: log files" not in bus.stderr
    publish(bus, encode(indicator()))
    assert bus.end() == 0
    assert "SIGTERM: stopping" in bus.stderr, "the level is the old one"


def test_sighup_names_what_takes_a_restart(bus: BusProcess) -> None:
    zmq_section = {**bus.doors.section, "grace": 5}
    configure(
        bus, drain_timeout=3, plugins={"backbones": {"inmem": None}, "apps": {"zmq": zmq_section}}
    )
    bus.says("takes effect at the next start only: drain_timeout, plugins.apps.zmq")
    configure(bus, drain_timeout=10.0)
    bus.says("next start only: plugins.apps.zmq")


def test_a_bus_whose_terminal_is_gone_stops_at_sighup(tmp_path: Path) -> None:
    config = write_config(tmp_path, Doors.free())
    screen = Terminal("-c", str(config))
    screen.shows("Ctrl-C stops the bus.")
    screen.hang_up()
    assert screen.end(signal.SIGHUP) == 0
