"""The template as it stands in the repository: what is copied must work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.buses import Buses
from helpers.documents import encode, indicator
from helpers.waiting import SOON, eventually
from threatbus_app_template.tool import Tool

from integration.cli_helpers import SECONDS, environment
from testbed.ports import Doors
from threatbus.client import App, Endpoint, Sighting, read


class Template:
    """The command in a process of its own."""

    def __init__(self, directory: Path, doors: Doors) -> None:
        self._log = directory / "template.log"
        code = "import sys; from threatbus_app_template.command import main; sys.exit(main())"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "--endpoint", doors.address("manage")],
                stdin=subprocess.PIPE,
                stderr=log,
                env=environment(),
            )

    def says(self, text: str) -> None:
        def said() -> bool:
            assert text in self._log.read_text()
            return True

        eventually(said)

    def reads(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def end_of_input(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(SECONDS)


@pytest.fixture
def doors(start_bus: Buses) -> Doors:
    doors = Doors.free()
    start_bus({"zmq": doors.section})
    return doors


@pytest.fixture
def template(tmp_path: Path, doors: Doors) -> Iterator[Template]:
    template = Template(tmp_path, doors)
    yield template
    template.process.kill()
    template.process.wait()


def test_the_template_reports_what_it_finds_and_forgets_what_is_withdrawn(
    template: Template, doors: Doors
) -> None:
    bad, other = indicator("[domain-name:value = 'bad.example']"), indicator()
    endpoint = Endpoint("127.0.0.1", doors.manage)
    # It asks for a snapshot; the platform knows one of the two from before.
    with App(endpoint, ["stix2/sighting"], answer=lambda _: [encode(other)]) as platform:
        template.says(f"{other['id']} is looked for")
        platform.publish_indicator(encode(bad))
        template.says(f"{bad['id']} is looked for")
        template.reads(b"query \xff from 10.0.0.1 for bad.example")
        (message,) = platform.receive(timeout=SECONDS)
        found = read(message)
        assert isinstance(found, Sighting)
        assert found.sighting_of_ref == bad["id"]
        assert found.x_threatbus_sighting_context == {
            "line": "query \ufffd from 10.0.0.1 for bad.example"
        }
        platform.publish_indicator(encode({**bad, "x_threatbus_update": "REMOVE"}))
        template.says(f"{bad['id']} is not looked for")
        platform.publish_indicator(encode(third := indicator("[url:value = 'u']")))
        template.says(f"{third['id']} is looked for")
        template.reads(b"bad.example u")
        # Only the one that is still there.
        (message,) = platform.receive(timeout=SECONDS)
        assert json.loads(message.data)["sighting_of_ref"] == third["id"]
        assert template.end_of_input() == 0
        assert platform.receive(timeout=0) == []


def test_the_tool_forgets_one_of_two_indicators_of_a_value() -> None:
    tool = Tool()
    tool.watch("bad.example", "one")
    tool.watch("bad.example", "two")
    tool.forget("one")
    tool.forget("one")
    assert tool.matches("bad.example") == [("bad.example", "two")]
    tool.forget("two")
    assert tool.matches("bad.example") == []


def test_the_tool_takes_a_large_snapshot_in_no_time() -> None:
    tool = Tool()
    began = time.monotonic()
    for number in range(20_000):
        tool.forget(f"indicator--{number}")
        tool.watch(f"{number}.example", f"indicator--{number}")
    assert time.monotonic() - began < SOON
