"""What the testbed starts ends with it, also when nobody is left to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.waiting import eventually

from testbed.service import Process

#: Starts a process that starts another one; says their numbers, and waits to be ended.
STARTER = """\
import os, sys, time
from pathlib import Path
from testbed.service import Process

directory = Path(sys.argv[1])
Process(["sh", "-c", "sleep 300 & echo $$ $!; wait"], os.environ, directory)
(directory / "watched").touch()
time.sleep(300)
"""


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_started_ends_with_its_starter(tmp_path: Path, number: signal.Signals) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)])
    output = tmp_path / "output"
    try:
        eventually(lambda: output.exists() and output.read_text().endswith("\n"))
        # The program may be quicker than its starter, which must come to watch it first.
        eventually((tmp_path / "watched").exists)
        started = [int(pid) for pid in output.read_text().split()]
        assert all(map(running, started))
    finally:
        starter.send_signal(number)
        starter.wait()
    eventually(lambda: not any(map(running, started)))


def test_what_has_ended_is_watched_no_longer(tmp_path: Path) -> None:
    process = Process(["true"], os.environ, tmp_path)
    assert process.wait() == 0
    assert process._watch.poll() is not None
    assert not process.is_alive()
