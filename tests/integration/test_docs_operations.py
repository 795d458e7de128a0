"""Every command in docs/operations.md does what it is said to do, as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from helpers.documents import encode, indicator
from helpers.services import program
from helpers.waiting import eventually

from integration.cli_helpers import SECONDS, Process, environment, write_config
from integration.cli_helpers import run as run_command
from testbed.ports import Doors, free_port
from threatbus.cli import _parser

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
#: Exit codes that are not 0, with the reason.
EXPECTED: Final = {
    "threatbus rejected publish 12": 1,  # it is rejected again
    "backlog=100": 28,  # the stream goes on until curl's time is over
}


def commands() -> list[str]:
    """The lines of all shell examples, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("threatbus ", "curl ", "TOKEN="))]


class Place:
    """A directory with a configuration and a running bus, as the page has it."""

    def __init__(self, directory: Path) -> None:
        program("curl")
        self.directory = directory
        self.port = free_port()
        self.doors = Doors.free()
        path = write_config(directory, self.doors)
        config = json.loads(path.read_text())
        config["plugins"]["apps"]["web"] = {"port": self.port}
        path.write_text(json.dumps(config))
        (directory / "examples").symlink_to(ROOT / "examples")
        self.bus = Process(directory / "bus", "-c", str(path))
        self.bus.says("running:")
        known = indicator("[domain-name:value = 'evil.example']")
        self.publish(encode(known))
        self.token = (directory / "state" / "web.token").read_text().strip()
        self.reject()

    def publish(self, document: bytes) -> None:
        done = run_command(
            "publish", "-", "--endpoint", self.doors.address("manage"), stdin=document
        )
        assert done.returncode == 0, done.stderr

    def reject(self) -> None:
        """Have a message rejected; it is number 1."""
        (self.directory / "wrong.json").write_text('{"type": "indicator"}')
        self.run(
            'curl -s -H "Authorization: Bearer $TOKEN" --data-binary @wrong.json '
            "http://127.0.0.1:13373/api/publish"
        )
        eventually((self.directory / "state" / "rejected.jsonl").exists)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line of the page in a shell, where this bus is instead of the page's."""
        line = line.replace("127.0.0.1:13373", f"127.0.0.1:{self.port}")
        line = line.replace("/var/lib/threatbus", str(self.directory / "state"))
        line = re.sub(r"\b(show|publish) 12\b", r"\1 1", line)
        if " publish " in line and line.startswith("threatbus"):
            line += f" --endpoint {self.doors.address('manage')}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.directory,
            env=environment(PATH=path, TOKEN=self.token),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("operations"))
    yield found
    found.bus.kill()


@pytest.mark.parametrize("line", commands())
def test_the_command_works_as_it_stands_there(place: Place, line: str) -> None:
    if "fixed.json" in line and "publish" in line:
        # Once the document is mended.
        (place.directory / "fixed.json").write_bytes(encode(indicator()))
    done = place.run(line)
    codes = [code for text, code in EXPECTED.items() if text in line]
    assert done.returncode == (codes or [0])[0], done.stderr
    if line.startswith("curl"):
        assert done.stdout
        assert '"error"' not in done.stdout
        assert "evil.example" in done.stdout or "text=example" not in line


def test_the_page_shows_every_command_that_asks_a_running_bus() -> None:
    shown = "\n".join(commands())
    for name in ("status", "doctor", "trace", "rejected"):
        assert name in _parser().format_help()
        assert f"threatbus {name}" in shown


def test_the_page_shows_every_path_of_the_web_endpoint(place: Place) -> None:
    missing = place.run("curl -s http://127.0.0.1:13373/nowhere").stdout
    paths = re.findall(r"/[a-z/]*", json.loads(missing)["next"])
    assert len(paths) > 8
    for path in paths:
        assert re.search(rf"^\| `(POST )?{path}[`?]", PAGE, re.MULTILINE), path
