"""What is shipped beside the code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "systemd" / "threatbus.service"


def test_the_systemd_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    text = UNIT.read_text()
    # The program and the user are those of a machine on which the bus is installed.
    text = text.replace("/opt/threatbus/.venv/bin/threatbus", sys.executable)
    text = text.replace("User=threatbus", "User=root").replace("Group=threatbus", "Group=root")
    unit = tmp_path / "threatbus.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "threatbus.service" in line]
    assert not complaints


def test_the_service_says_when_it_is_ready_and_is_started_again_when_it_fails() -> None:
    lines = UNIT.read_text().splitlines()
    assert {"Type=notify", "Restart=on-failure", "User=threatbus"} <= set(lines)
