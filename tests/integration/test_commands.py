"""The real command against real buses: each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from helpers.documents import encode, indicator, sighting
from helpers.waiting import eventually

from integration.cli_helpers import (
    COMMAND,
    SECONDS,
    BusProcess,
    Process,
    Terminal,
    environment,
    write_config,
)
from integration.cli_helpers import run as run_command
from testbed.ports import Doors, free_port, free_ports

EXAMPLES = Path(__file__).parents[2] / "examples"
STUBBORN = """
import multiprocessing, threading, time
import threatbus

class Stubborn:
    @threatbus.app
    def run(self, config):
        RUN
        print("stubborn runs", flush=True)
        threading.Thread(target=time.sleep, args=(60,)).start()
        self.queue = multiprocessing.Queue()
        for _ in range(10_000):
            self.queue.put("x" * 100)

    @threatbus.app
    def stop(self):
        STOP
"""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[BusProcess]:
    running = BusProcess(tmp_path / "fixture")
    yield running
    running.kill()


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts commands in the background and ends what a test leaves running."""
    started: list[Process] = []

    def start(
        *arguments: str,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        **environ: str,
    ) -> Process:
        directory = tmp_path / f"command-{len(started)}"
        started.append(Process(directory, *arguments, cwd=cwd, stdin=stdin, **environ))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str, cwd: Path | None = None) -> Terminal:
        started.append(Terminal(*arguments, cwd=cwd))
        return started[-1]

    yield start
    for each in started:
        each.close()


Background = Callable[..., Process]
Terminals = Callable[..., Terminal]


def subscribed(bus: BusProcess, count: int = 1) -> None:
    """Wait until `count` tails are known to the bus: from then on they miss nothing."""
    eventually(lambda: len(re.findall(r"threatbus tail #\d+ subscribes", bus.stderr)) >= count)


# run


def test_the_bus_runs_without_a_command_and_stops_cleanly_at_sigterm(bus: BusProcess) -> None:
    assert "running: backbones inmem; apps zmq" in bus.stderr
    assert bus.end(signal.SIGTERM) == 0
    assert "stopped after" in bus.stderr
    assert f"threatbus tail --endpoint {bus.endpoint}".encode() in bus.stdout, "how to try it"


def test_the_bus_finds_a_configuration_in_the_current_directory(
    tmp_path: Path, background: Background
) -> None:
    write_config(tmp_path / "here", Doors.free()).rename(tmp_path / "here" / "config.yml")
    running = background(cwd=tmp_path / "here")
    running.says("running:")
    assert running.end(signal.SIGINT) == 0


def test_the_bus_runs_from_environment_variables_alone(
    tmp_path: Path, background: Background
) -> None:
    doors = Doors.free()
    running = background(
        cwd=tmp_path,
        THREATBUS_PLUGINS__BACKBONES__INMEM="{}",
        THREATBUS_PLUGINS__APPS__ZMQ__MANAGE=str(doors.manage),
        THREATBUS_PLUGINS__APPS__ZMQ__PUB=str(doors.pub),
        THREATBUS_PLUGINS__APPS__ZMQ__SUB=str(doors.sub),
        THREATBUS_STATE_DIRECTORY=str(tmp_path / "state"),
    )
    running.says(f"manage {doors.manage}, pub {doors.pub}, sub {doors.sub}")
    running.says("running:")


def test_every_config_error_is_a_line_and_the_exit_code_2(tmp_path: Path) -> None:
    config = write_config(tmp_path, Doors(1, 2, 3), pub="x", hots="y")
    for command in ([], ["check"]):
        ended = run_command(*command, "-c", str(config))
        lines = ended.stderr.decode().splitlines()
        assert ended.returncode == 2
        assert all(line.startswith("threatbus: plugins.apps.zmq.") for line in lines)
        assert len(lines) >= 2


def test_a_port_that_is_given_twice_is_found_before_the_start(tmp_path: Path) -> None:
    config = write_config(tmp_path, Doors(1, 1, 1), pubb=1)
    ended = run_command("check", "-c", str(config))
    keys = [line.split(": ")[1] for line in ended.stderr.decode().splitlines()]
    assert sorted(keys) == [f"plugins.apps.zmq.{key}" for key in ("pub", "pubb", "sub")]


def test_a_log_file_that_cannot_be_opened_ends_the_start_with_2_and_one_line(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, Doors.free())
    missing = str(tmp_path / "missing" / "threatbus.log")
    ended = run_command(
        "-c", str(config), THREATBUS_LOGGING__FILE="true", THREATBUS_LOGGING__FILENAME=missing
    )
    assert ended.returncode == 2
    [line] = ended.stderr.decode().splitlines()
    assert line.startswith("threatbus: logging.filename: ")


def test_a_port_that_is_taken_ends_the_start_with_2_and_names_the_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        doors = Doors(server.getsockname()[1], *free_ports(2))
        ended = run_command("-c", str(write_config(tmp_path, doors)))
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"threatbus: plugins.apps.zmq.manage: ")


def test_a_bus_that_is_started_without_standard_streams_runs_all_the_same(tmp_path: Path) -> None:
    config = write_config(tmp_path, Doors.free())
    bus = subprocess.Popen(
        ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *COMMAND, "-c", str(config)],
        env=environment(),
    )
    try:
        eventually((tmp_path / "state" / "control.sock").exists)
        bus.terminate()
        assert bus.wait(SECONDS) == 0
    finally:
        bus.kill()


def test_a_person_at_a_terminal_is_told_what_listens_and_what_to_try(
    tmp_path: Path, terminal: Terminals
) -> None:
    doors = Doors.free()
    config = write_config(tmp_path / "c", doors)
    screen = terminal("-c", str(config), cwd=EXAMPLES.parent)
    endpoint = doors.address("manage")
    shown = screen.shows("examples/indicators.json")
    assert (
        f"subscribe at {endpoint}, receive from port {doors.pub}, publish to port {doors.sub}"
        in shown
    )
    assert f"threatbus tail --endpoint {endpoint}" in shown
    assert screen.end(signal.SIGINT) == 0


def test_the_service_manager_is_told_when_it_is_ready_and_when_it_stops(
    tmp_path: Path, background: Background
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(SECONDS)
        config = write_config(tmp_path / "c", Doors.free())
        running = background("-c", str(config), NOTIFY_SOCKET=str(address), WATCHDOG_USEC="30000")
        assert manager.recv(100).startswith(b"READY=1")
        # It hears that the bus lives, again and again.
        assert manager.recv(100) == manager.recv(100) == manager.recv(100) == b"WATCHDOG=1"
        running.process.terminate()
        last = eventually(lambda: manager.recv(100).removeprefix(b"WATCHDOG=1"))
        assert last.startswith(b"STOPPING=1")
        assert running.process.wait(SECONDS) == 0


def test_a_signal_during_the_start_stops_it_cleanly_too(
    tmp_path: Path, background: Background
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, threading\n"
        "before = signal.signal\n"
        "def install(signum, handler):\n"
        "    found = before(signum, handler)\n"
        "    if signum == signal.SIGTERM:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return found\n"
        "signal.signal = install\n"
    )
    config = write_config(tmp_path / "c", Doors.free())
    running = background("-c", str(config), PYTHONPATH=str(tmp_path))
    assert running.process.wait(SECONDS) == 0
    assert "stopped after" in running.stderr


def install_stubborn(directory: Path, stop: str, run: str = "pass") -> Path:
    """Write a plugin that holds on to the process; gives its directory, and configures a bus."""
    info = directory / "stubborn-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stubborn\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[threatbus.app]\nstubborn = stubborn:Stubborn\n")
    (directory / "stubborn.py").write_text(STUBBORN.replace("STOP", stop).replace("RUN", run))
    content = {
        "plugins": {"backbones": {"inmem": None}, "apps": {"stubborn": None}},
        "state_directory": str(directory / "state"),
    }
    (directory / "config.yaml").write_text(json.dumps(content))
    return directory


def test_what_a_plugin_leaves_running_does_not_hold_the_process(
    tmp_path: Path, background: Background
) -> None:
    directory = install_stubborn(tmp_path / "plugin", "pass")
    running = background(cwd=directory, PYTHONPATH=str(directory))
    running.says("running:")
    running.process.terminate()
    assert running.process.wait(SECONDS) == 0
    assert b"stubborn runs\n" in running.stdout


def test_a_plugin_that_has_failed_is_not_among_those_that_run(
    tmp_path: Path, background: Background
) -> None:
    directory = install_stubborn(tmp_path / "plugin", "pass", run="raise OSError('no port')")
    running = background(cwd=directory, PYTHONPATH=str(directory))
    running.says("running: backbones inmem; apps none")


def test_a_plugin_that_asks_for_the_end_of_the_process_is_named_and_gets_it(
    tmp_path: Path,
) -> None:
    directory = install_stubborn(tmp_path / "plugin", "pass", run="raise SystemExit(3)")
    ended = run_command(cwd=directory, PYTHONPATH=str(directory))
    assert ended.returncode == 1
    assert b"plugin stubborn asks for the end of the process" in ended.stderr


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, background: Background) -> None:
    directory = install_stubborn(tmp_path / "plugin", "time.sleep(60)")
    running = background(cwd=directory, PYTHONPATH=str(directory))
    running.says("running:")
    running.process.send_signal(signal.SIGTERM)
    running.says("SIGTERM: stopping")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(SECONDS) == 128 + signal.SIGINT


def test_the_limit_of_open_files_is_raised(bus: BusProcess) -> None:
    soft, hard = resource.prlimit(bus.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


# check


def test_a_valid_configuration_is_summed_up(tmp_path: Path) -> None:
    config = write_config(tmp_path, Doors(1, 2, 3))
    ended = run_command("check", cwd=config.parent)
    assert ended.stdout == b"config.yaml is valid: backbones inmem; apps zmq\n"
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_plugin_that_cannot_be_loaded_is_told_with_all_other_errors(tmp_path: Path) -> None:
    directory = install_stubborn(tmp_path / "plugin", "pass")
    (directory / "stubborn.py").write_text("import nothing_of_that_name\n")
    config = directory / "config.yaml"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "logging": {"file": 7}}))
    ended = run_command("check", cwd=directory, PYTHONPATH=str(directory))
    told = ended.stderr.decode()
    assert "logging.file: is the number 7" in told
    assert re.search(r"plugins\.apps\.stubborn: .*nothing_of_that_name", told)
    assert len(told.splitlines()) == 2
    assert ended.returncode == 2


# plugins


def test_plugins_are_listed_without_any_configuration(tmp_path: Path) -> None:
    ended = run_command("plugins", cwd=tmp_path)
    lines = ended.stdout.decode().splitlines()
    assert lines[0].split() == ["KIND", "NAME", "CONFIGURED", "DISTRIBUTION", "HOOKS"]
    assert any(re.match(r"app +zmq +- +threatbus-zmq \d\S+ +.*\brun, ", line) for line in lines)
    assert any(re.match(r"backbone +inmem +- +threatbus-inmem ", line) for line in lines)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_plugins_are_listed_with_a_broken_configuration_too(tmp_path: Path) -> None:
    config = write_config(tmp_path, Doors(1, 2, 3), pub="x")
    content = json.loads(config.read_text())
    content["plugins"]["apps"]["nowhere"] = {}
    config.write_text(json.dumps(content))
    ended = run_command("plugins", "-c", str(config))
    listed = ended.stdout.decode()
    assert re.search(r"app +zmq +yes", listed)
    assert re.search(r"app +nowhere +yes +not installed", listed)
    assert b"not valid" in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize("content", ["plugins: [", "- a", "plugins: 7"])
def test_plugins_are_listed_whatever_the_file_holds(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    ended = run_command("plugins", cwd=tmp_path)
    assert b"threatbus-zmq" in ended.stdout
    assert b"Traceback" not in ended.stderr
    assert ended.returncode == 0


def test_a_plugin_that_cannot_be_loaded_is_listed_with_its_error(tmp_path: Path) -> None:
    directory = install_stubborn(tmp_path / "plugin", "pass")
    (directory / "stubborn.py").write_text("import nothing_of_that_name\n")
    ended = run_command("plugins", cwd=directory, PYTHONPATH=str(directory))
    row = next(line for line in ended.stdout.decode().splitlines() if "stubborn" in line)
    assert "stubborn 1.0" in row
    assert "ERROR: " in row
    assert "nothing_of_that_name" in row
    assert ended.returncode == 0


# tail and publish


def test_the_examples_reach_a_tail(bus: BusProcess, background: Background) -> None:
    tail = background("tail", "--endpoint", bus.endpoint)
    subscribed(bus)
    for name, count in {"indicators": 5, "indicator": 1, "sighting": 1, "withdrawal": 1}.items():
        path = str(EXAMPLES / f"{name}.json")
        ended = run_command("publish", path, "--endpoint", bus.endpoint)
        assert ended.returncode == 0, ended.stderr
        plural = "objects" if count > 1 else "object"
        assert f"published {count} {plural} to {bus.endpoint}".encode() in ended.stderr
    documents = [json.loads(line) for line in tail.lines(8)]
    bundle = json.loads((EXAMPLES / "indicators.json").read_text())
    assert documents[:5] == bundle["objects"][1:]
    assert documents[7]["x_threatbus_update"] == "REMOVE"


def test_bytes_are_published_as_they_stand_in_the_file(
    bus: BusProcess, background: Background
) -> None:
    odd = encode(indicator(name="\u00e9"))[:-1] + b',  "x_number": 1.10, "x_other": 1E5 }'
    tail = background("tail", "--endpoint", bus.endpoint)
    subscribed(bus)
    ended = run_command("publish", "-", "--endpoint", bus.endpoint, stdin=b"[" + odd + b"]")
    assert ended.returncode == 0, ended.stderr
    assert tail.lines(1) == [odd]


def test_what_the_bus_would_reject_is_reported_and_the_rest_is_published(
    bus: BusProcess, background: Background
) -> None:
    good = [encode(indicator()), encode(sighting())]
    bundle = {
        "type": "bundle",
        "id": "bundle--6f0c1c5e-5f0e-4c39-9a53-6d5b7f2c1e01",
        "objects": [{"type": "identity"}, indicator(pattern="nonsense"), json.loads(good[1])],
    }
    lines = [good[0], b'{"type": "indi', encode(bundle), b"{}", encode({"type": "malware"})]
    tail = background("tail", "--endpoint", bus.endpoint)
    subscribed(bus)
    ended = run_command("publish", "-", "--endpoint", bus.endpoint, stdin=b"\n".join(lines))
    said = ended.stderr.decode().splitlines()
    assert ended.returncode == 1
    assert [line.split("rejected")[0] for line in said[:3]] == [
        "threatbus: line 2: ",
        "threatbus: line 3, object 2: ",
        "threatbus: line 4: ",
    ]
    assert said[3:] == [
        f"threatbus: published 2 objects to {bus.endpoint}, skipped 2 of other types, rejected 3"
    ]
    assert [json.loads(line) for line in tail.lines(2)] == [json.loads(data) for data in good]


def test_many_objects_are_published_and_received_once_each_and_in_order(
    bus: BusProcess, background: Background
) -> None:
    lines = [encode(indicator(name=str(number))) for number in range(20_000)]
    tail = background("tail", "--endpoint", bus.endpoint, "--topic", "stix2/indicator")
    subscribed(bus)
    ended = run_command("publish", "-", "--endpoint", bus.endpoint, stdin=b"\n".join(lines))
    assert ended.returncode == 0, ended.stderr
    assert b"published 20,000 objects" in ended.stderr
    assert tail.lines(20_000) == lines
    assert bus.end() == 0
    assert bus.accepted == 20_000


def test_objects_are_sent_as_they_come_in(bus: BusProcess, background: Background) -> None:
    tail = background("tail", "--endpoint", bus.endpoint)
    subscribed(bus)
    publish = subprocess.Popen(
        [*COMMAND, "publish", "-", "--endpoint", bus.endpoint],
        stdin=subprocess.PIPE,
        env=environment(),
    )
    assert publish.stdin is not None
    for number in range(1, 4):
        publish.stdin.write(encode(indicator()) + b"\n")
        publish.stdin.flush()
        tail.lines(number)
    publish.stdin.close()
    assert publish.wait(SECONDS) == 0


def test_a_tail_on_a_terminal_shows_a_line_per_message(
    bus: BusProcess, terminal: Terminals
) -> None:
    screen = terminal("tail", "--endpoint", bus.endpoint)
    subscribed(bus)
    hostile = encode(indicator(name="\x1b[2Jgone", x_threatbus_source="me"))
    run_command("publish", "-", "--endpoint", bus.endpoint, stdin=hostile)
    shown = screen.shows("from me")
    line = r"\d\d:\d\d:\d\d  indicator  ADD +\[domain-name:value = 'example.com'\]"
    assert re.search(line + r'  "\\x1b\[2Jgone"  from me  indicator--', shown)
    assert "\x1b" not in shown
    assert screen.end(signal.SIGINT) == 130
    bus.says("threatbus tail #1 is unsubscribed")
    assert "Traceback" not in screen.text


def test_a_topic_that_nothing_begins_with_is_said_to_be_one(
    bus: BusProcess, background: Background
) -> None:
    tail = background("tail", "--topic", "indicator", "--endpoint", bus.endpoint)
    tail.says("nothing of the bus begins with 'indicator'; try stix2/indicator or stix2/sighting")
    assert tail.end(signal.SIGINT) == 130


def test_snapshot_requests_are_shown_to_people_only(
    bus: BusProcess, terminal: Terminals, background: Background
) -> None:
    everything = ("--topic", "stix2/", "--topic", "threatbus/", "--endpoint", bus.endpoint)
    screen, as_json = terminal("tail", *everything), background("tail", *everything)
    subscribed(bus, 2)
    background("tail", "--snapshot", "30", "--endpoint", bus.endpoint)
    subscribed(bus, 3)
    run_command("publish", str(EXAMPLES / "indicator.json"), "--endpoint", bus.endpoint)
    assert json.loads(as_json.lines(1)[0])["type"] == "indicator"
    assert as_json.stderr == "", "all of these topics exist"
    assert len(as_json.stdout.splitlines()) == 1
    screen.shows("indicators of the last 30 days")
    screen.shows("sightings of the last 30 days")


@contextlib.contextmanager
def reader_of_a_tail(bus: BusProcess) -> Iterator[IO[bytes]]:
    """Give the end of a tail's pipe; when the reader is gone, the tail must end quietly."""
    with subprocess.Popen(
        [*COMMAND, "tail", "--endpoint", bus.endpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as tail:
        subscribed(bus)
        assert tail.stdout is not None
        assert tail.stderr is not None
        with tail.stdout:
            yield tail.stdout
        assert tail.wait(SECONDS) == 0
        assert tail.stderr.read() == b""


def test_a_tail_ends_quietly_with_who_reads_it(bus: BusProcess) -> None:
    with reader_of_a_tail(bus):
        pass  # nothing comes that it could fail to write


def test_a_pipe_that_is_read_no_further_ends_a_tail_quietly(bus: BusProcess) -> None:
    script = f"'{COMMAND[0]}' -m threatbus tail --endpoint {bus.endpoint} | head -n 1"
    shell = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    subscribed(bus)
    run_command("publish", str(EXAMPLES / "indicators.json"), "--endpoint", bus.endpoint)
    out, err = shell.communicate(timeout=SECONDS)
    assert out.count(b"\n") == 1
    assert (shell.returncode, err) == (0, b"")


def test_a_pipe_that_closes_in_the_middle_of_a_line_ends_a_tail_quietly(bus: BusProcess) -> None:
    # More than a pipe holds, in one line, of which only the beginning is read.
    long = encode(indicator(description="x" * 1_000_000))
    with reader_of_a_tail(bus) as pipe:
        run_command("publish", "-", "--endpoint", bus.endpoint, stdin=long)
        assert os.read(pipe.fileno(), 10) == b'{"type": "'


def test_a_tail_goes_on_after_a_restart_of_the_bus(
    tmp_path: Path, bus: BusProcess, background: Background
) -> None:
    tail = background("tail", "--endpoint", bus.endpoint, "--timeout", "0.3")
    subscribed(bus)
    bus.end()
    again = BusProcess(tmp_path / "again", bus.doors)
    try:
        tail.says("subscribed again")
        run_command("publish", str(EXAMPLES / "indicator.json"), "--endpoint", bus.endpoint)
        assert json.loads(tail.lines(1)[0])["type"] == "indicator"
        assert tail.end(signal.SIGTERM) == 128 + signal.SIGTERM
        again.says("threatbus tail #1 is unsubscribed")
    finally:
        again.kill()


@pytest.mark.parametrize("command", [["tail"], ["publish", str(EXAMPLES / "indicator.json")]])
def test_where_nothing_answers_a_command_explains_itself_and_exits_with_3(
    command: list[str],
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    ended = run_command(*command, "--endpoint", endpoint, "--timeout", "0.2")
    said = ended.stderr.decode()
    assert ended.returncode == 3
    assert f"no Threat Bus answers at {endpoint} (waited 0.2 s): the connection was refused" in said
    assert all(line.startswith("threatbus: ") for line in said.splitlines())


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_a_file_that_cannot_be_read_exits_with_2(tmp_path: Path, path: str) -> None:
    ended = run_command("publish", path, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"threatbus: {path} cannot be read: ".encode())


def test_a_publish_whose_bus_ends_says_so_and_exits_with_1(bus: BusProcess) -> None:
    publish = subprocess.Popen(
        [*COMMAND, "publish", "-", "--endpoint", bus.endpoint, "--timeout", "0.2"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert publish.stdin is not None
    bus.says("threatbus publish #1 subscribes")
    publish.stdin.write(encode(indicator()) + b"\n")
    publish.stdin.flush()
    assert bus.end() == 0
    _, said = publish.communicate(timeout=SECONDS)
    assert publish.returncode == 1
    assert b"handed over" in said
    assert b"published" not in said


def test_an_interrupted_publish_says_how_far_it_came(bus: BusProcess, tmp_path: Path) -> None:
    publish = subprocess.Popen(
        [*COMMAND, "publish", "-", "--endpoint", bus.endpoint],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert publish.stdin is not None
    assert publish.stderr is not None
    bus.says("threatbus publish #1 subscribes")
    publish.stdin.write(encode(indicator()) + b"\n")
    publish.stdin.flush()
    # It has taken the line out of the pipe, and waits for more.
    reader = publish.stdin
    eventually(lambda: select.select([], [reader], [], 0)[1] and _pipe_is_empty(reader.fileno()))
    publish.send_signal(signal.SIGINT)
    assert publish.wait(SECONDS) == 130
    said = publish.stderr.read()
    assert said.splitlines()[0] == b"threatbus: interrupted"
    assert re.search(rb"handed over [01] objects?", said)
    publish.stdin.close()
    publish.stderr.close()


def _pipe_is_empty(descriptor: int) -> bool:
    import array  # noqa: PLC0415
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    waiting = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
    return waiting[0] == 0


def test_progress_is_shown_on_a_terminal_when_it_takes_long(
    bus: BusProcess, tmp_path: Path
) -> None:
    source, sink = os.pipe()
    screen = Terminal("publish", "-", "--endpoint", bus.endpoint, stdin=source)
    os.close(source)
    try:
        bus.says("threatbus publish #1 subscribes")

        def shown() -> bool:
            os.write(sink, encode(indicator()) + b"\n")
            return " objects, " in screen.text

        eventually(shown)
        os.close(sink)
        assert screen.process.wait(SECONDS) == 0
        assert re.search(r"published \d+ objects to", screen.text)
    finally:
        screen.close()
