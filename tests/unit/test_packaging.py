"""What is shipped beside the code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging" / "systemd"
SERVICES = ("threatbus", "vast-threatbus")


@pytest.mark.parametrize("name", SERVICES)
def test_the_systemd_units_are_such_that_systemd_takes_them(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    text = (UNITS / f"{name}.service").read_text()
    # The program and the user are those of a machine on which it is installed.
    text = text.replace(f"/opt/threatbus/.venv/bin/{name}", sys.executable)
    text = text.replace(f"User={name}", "User=root").replace(f"Group={name}", "Group=root")
    unit = tmp_path / f"{name}.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if f"{name}.service" in line]
    assert not complaints


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_say_when_they_are_ready_and_are_started_again_when_they_fail(
    name: str,
) -> None:
    lines = (UNITS / f"{name}.service").read_text().splitlines()
    assert {"Type=notify", "Restart=on-failure", f"User={name}"} <= set(lines)
