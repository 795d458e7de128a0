"""Whoever does what docs/first-steps.md says sees what it says; and every command is shown."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from helpers.waiting import eventually

from integration.cli_helpers import SECONDS, environment
from testbed.ports import Doors
from threatbus.cli import _parser
from threatbus.control import SOCKET_NAME, ask

ROOT: Final = Path(__file__).parents[2]
#: Pages whose commands are run by tests: here, and in test_docs_operations.
TESTED_PAGES: Final = ("first-steps.md", "operations.md", "security.md")


def blocks(page: str) -> list[list[str]]:
    """The lines of a page's shell examples, without comments, continued ones in one."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [[re.sub(r"\s+#.*", "", line) for line in block.splitlines()] for block in found]


class Reader:
    """Someone who types what the page says, in a directory like the repository."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("examples", "config.yaml.example"):
            (directory / name).symlink_to(ROOT / name)
        # The example's ports may be taken on this machine.
        self.doors = Doors.free()
        ports = {"manage": self.doors.manage, "pub": self.doors.pub, "sub": self.doors.sub}
        self._environment = environment(
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            XDG_STATE_HOME=str(directory / "state"),
            **{f"THREATBUS_PLUGINS__APPS__ZMQ__{key.upper()}": str(p) for key, p in ports.items()},
        )
        self._background: list[subprocess.Popen[bytes]] = []

    def _with_endpoint(self, line: str) -> str:
        talks = re.match(r"threatbus (tail|publish)\b", line)
        return f"{line} --endpoint {self.doors.address('manage')}" if talks else line

    def does(self, line: str) -> str:
        """Run a line to its end, which must be a success; gives what it prints."""
        done = subprocess.run(
            ["sh", "-c", self._with_endpoint(line)],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=2 * SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def leaves(self, line: str, name: str) -> subprocess.Popen[bytes]:
        """Run a line in a terminal of its own; what is shown there is in the file `name`."""
        with (self.directory / name).open("wb") as shown:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {self._with_endpoint(line)}"],
                cwd=self.directory,
                env=self._environment,
                stdout=shown,
                stderr=subprocess.STDOUT,
            )
        self._background.append(process)
        return process

    def sees(self, name: str, text: str) -> None:
        eventually(lambda: text in (self.directory / name).read_text(), what=text)

    def close(self) -> None:
        for process in self._background:
            process.kill()
            process.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    found = Reader(tmp_path)
    yield found
    found.close()


def test_the_first_steps_lead_where_they_say(reader: Reader) -> None:
    start, watch, publish, questions = blocks("first-steps.md")
    *before, run = start
    for line in before:
        reader.does(line)
    bus = reader.leaves(run, "bus")
    reader.sees("bus", "running:")
    (tail,) = watch
    reader.leaves(tail, "tail")
    socket = reader.directory / "state" / "threatbus" / SOCKET_NAME
    eventually(lambda: ask(socket, "status")["subscribers"], what="tail has subscribed")
    for line in publish:
        reader.does(line)
    # Indicators, a sighting, a withdrawal: one object a line.
    eventually(lambda: b"REMOVE" in (reader.directory / "tail").read_bytes())
    answers = [reader.does(line) for line in questions]
    assert "is running" in answers[0]
    assert "192.0.2.17" in answers[1]
    bus.send_signal(signal.SIGINT)
    assert bus.wait(SECONDS) == 0


def test_the_keys_of_the_security_page_are_made_as_it_says(reader: Reader) -> None:
    made = [line for block in blocks("security.md") for line in block if " keys " in line]
    assert len(made) >= 3
    for line in made:
        reader.does(line.replace("/etc/threatbus", str(reader.directory)))
    assert (reader.directory / "keys" / "vast.key").is_file()


def test_every_command_has_an_example_that_a_test_runs() -> None:
    (commands,) = [
        each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)
    ]
    shown = "\n".join(line for page in TESTED_PAGES for block in blocks(page) for line in block)
    for name in set(commands.choices) - {"run"}:
        assert re.search(rf"^threatbus {name}\b", shown, re.MULTILINE), name
    # What needs no name.
    assert re.search(r"^threatbus -c ", shown, re.MULTILINE)
