"""vast-threatbus when bus, node or the wrapper itself is killed, and at its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers.buses import Buses, OpenApp
from helpers.documents import encode
from helpers.services import tenzir_node
from helpers.waiting import eventually
from vast_threatbus.config import VastConfig

from integration.cli_helpers import BusProcess, environment
from integration.vast_helpers import (
    SECONDS,
    Platform,
    Stage,
    config,
    domain,
    host,
    processes_with,
    script,
    stage,
    write_wrapper_config,
)
from testbed.ports import Doors
from testbed.tenzir import TenzirNode
from threatbus.data import MessageType
from threatbus.messages import Message
from threatbus.queues import MessageQueue


@pytest.fixture(scope="module")
def node() -> Iterator[TenzirNode]:
    with tenzir_node() as node:
        yield node


def test_no_sighting_is_lost_while_the_bus_is_away(
    node: TenzirNode, tmp_path: Path, start_bus: Buses, open_app: OpenApp
) -> None:
    first = BusProcess(tmp_path / "bus")
    try:
        running = Stage(node, first.doors, retro_match=False)
        running.matches_live()
        name = host()
        running.platform.publish(domain(name))
        running.written(name)
        first.kill()
        running.node.import_events({"q": name, "n": n} for n in range(50))
        eventually(lambda: running.wrapper.values()["sightings_waiting"] >= 50, SECONDS)
        eventually(lambda: not running.wrapper.app.connected, SECONDS)
        # Listens before anybody can publish.
        sightings = MessageQueue("sightings")
        open_app.on_run = lambda: open_app.subscribe("stix2/sighting", sightings)
        start_bus({"open": None, "zmq": first.doors.section})
        came: list[Message] = []

        def all_came() -> bool:
            came.extend(sightings.get_many(1000))
            return contexts(came, name) == set(range(50))

        eventually(all_came, SECONDS)
        assert running.wrapper.counters["hits_lost"] == 0
        eventually(lambda: running.platform.app.connected, SECONDS)
        # It hears of what is published from now on, too.
        eventually(lambda: running.wrapper.app.connected, SECONDS)
        running.platform.publish(domain(other := host()))
        running.written(other)
        running.close()
    finally:
        first.kill()


def contexts(messages: list[Message], name: str) -> set[int]:
    found = [json.loads(each.data)["x_threatbus_sighting_context"] for each in messages]
    return {context["n"] for context in found if context.get("q") == name}


def test_a_node_that_was_killed_gets_its_table_again(node: TenzirNode, tmp_path: Path) -> None:
    stays, goes, comes = host(), host(), host()
    leaving = domain(goes)
    with stage(tmp_path, node) as running:
        running.platform.publish(domain(stays), leaving)
        running.written(stays, goes)
        node.kill()
        eventually(lambda: not running.wrapper.values()["live_runs"], SECONDS)
        running.platform.withdraw(leaving)
        running.platform.publish(document := domain(comes))
        eventually(lambda: running.wrapper.registry.ids(comes), SECONDS)
        assert running.wrapper.values()["retro_backlog"] + sum(
            each.looking_for for each in running.wrapper.retro
        )
        node.start()
        running.written(stays, comes)
        assert set(running.table()) == {stays, comes}
        running.searched()

        def matched() -> bool:
            node.import_events([{"q": comes}, {"q": goes}])
            return bool(running.platform.seen(document, "LIVE"))

        eventually(matched, SECONDS)
        assert running.platform.seen(leaving) == []


class Command:
    """The command in a process of its own."""

    def __init__(self, directory: Path, settings: VastConfig) -> None:
        directory.mkdir()
        path = write_wrapper_config(directory / "config.yaml", settings)
        self._log = directory / "log"
        self._out = directory / "out"
        code = "import sys; from vast_threatbus.command import main; sys.exit(main())"
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "-c", str(path)],
                stdout=out,
                stderr=log,
                env=environment(),
                cwd=directory,
            )

    def says(self, text: str) -> None:
        eventually(lambda: text in self._log.read_text(), SECONDS, f"the log says {text!r}")

    def prints(self) -> list[Any]:
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_wrapper_that_was_killed_leaves_nothing_behind_and_goes_on_when_it_returns(
    node: TenzirNode, tmp_path: Path, start_bus: Buses
) -> None:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    name = host()
    known = domain(name)
    platform = Platform(
        doors, lambda request: [encode(known)] * (request.snapshot_type is MessageType.INDICATOR)
    )
    transform = script(
        tmp_path / "transform",
        "import json, sys\n"
        "json.dump({'of': sys.argv[1:], 'event': json.load(sys.stdin)}, sys.stdout)\n",
    )
    settings = config(node, doors, snapshot=30)
    first = Command(tmp_path / "first", settings)
    first.says("live matching runs")
    assert eventually(lambda: processes_with(f'context_enrich "{settings.table}"'), SECONDS)
    first.kill()
    eventually(lambda: not processes_with(settings.table), SECONDS, "its pipelines end with it")
    metrics = tmp_path / "metrics.log"
    second = Command(
        tmp_path / "second",
        msgspec.structs.replace(
            settings,
            sink="STDOUT",
            transform_context=f"{transform} '%ioc of kind %matchtype' $HOME",
            metrics={"interval": 0.5, "filename": str(metrics)},
        ),
    )
    try:
        second.says("live matching runs")
        eventually(lambda: set(node.table(settings.table)) == {name}, SECONDS)

        seen = {"of": [f"{name} of kind LIVE", "$HOME"], "event": {"q": name}}

        def matched() -> bool:
            node.import_events([{"q": name}])
            return seen in second.prints()

        eventually(matched, SECONDS)
        eventually(lambda: metrics.exists() and "indicators=1i" in metrics.read_text())
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(SECONDS) == 0
        second.says("stopped: ")
        assert processes_with(settings.table) == []
        assert "Traceback" not in (tmp_path / "second" / "log").read_text()
        # Contexts went to standard output, none to the bus.
        assert platform.seen(known) == []
    finally:
        second.kill()
        platform.close()
