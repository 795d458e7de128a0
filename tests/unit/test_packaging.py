"""What is shipped beside the code: the service and how it is installed."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.services import program

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging" / "systemd"
SERVICES = ("threatbus", "vast-threatbus")
UNIT = UNITS / "threatbus.service"
#: What systemd-analyze makes of the unit's hardening: 0 is everything, 10 is nothing.
MOST_EXPOSED = 1.5


@pytest.mark.parametrize("name", SERVICES)
def test_the_systemd_units_are_such_that_systemd_takes_them(tmp_path: Path, name: str) -> None:
    analyze = program("systemd-analyze")
    text = (UNITS / f"{name}.service").read_text()
    # The program and the user are those of a machine on which it is installed.
    text = text.replace(f"/opt/threatbus/bin/{name}", sys.executable)
    text = text.replace(f"User={name}", "User=root").replace(f"Group={name}", "Group=root")
    unit = tmp_path / f"{name}.service"
    unit.write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if f"{name}.service" in line]
    assert not complaints


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_say_when_they_are_ready_and_are_started_again_when_they_fail(
    name: str,
) -> None:
    lines = (UNITS / f"{name}.service").read_text().splitlines()
    assert {"Type=notify", "Restart=on-failure", f"User={name}"} <= set(lines)


def unit() -> dict[str, str]:
    """The section Service, of keys that stand there several times the last one."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


def test_the_service_says_when_it_reloads_and_is_started_again_when_it_hangs() -> None:
    service = unit()
    assert int(service["WatchdogSec"]) > 0
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_service_may_write_to_its_state_directory_alone() -> None:
    service = unit()
    assert service["User"] == "threatbus"
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectory"] == "threatbus"
    assert "ReadWritePaths" not in service


def test_the_service_is_as_little_exposed_as_it_was(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    limit = str(int(MOST_EXPOSED * 10))
    command = [analyze, "security", "--offline=yes", "--no-pager", f"--threshold={limit}"]
    done = subprocess.run([*command, UNIT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class Destination:
    """A DESTDIR, into which the real script installs with the packages that are here already."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prefix = directory / "opt/threatbus"
        # Without pip of its own, which takes seconds; with what the tests have.
        venv.create(self.prefix, symlinks=True)
        (site,) = self.prefix.glob("lib/python*/site-packages")
        (site / "tests.pth").write_text(sysconfig.get_path("purelib"))
        self.python = self.prefix / "bin/python"

    def make(self, target: str, **environ: str) -> str:
        done = subprocess.run(
            ["make", "-C", ROOT, target, f"DESTDIR={self.directory}"],
            env={**os.environ, "PIP_NO_DEPS": "1", **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def threatbus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Not by its script, which is for where it is going to be.
        return subprocess.run(
            [self.python, "-P", "-m", "threatbus", *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )

    def file(self, path: str) -> Path:
        return self.directory / path.removeprefix("/")

    def files(self) -> set[str]:
        return {str(each.relative_to(self.directory)) for each in self.directory.rglob("*")}


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Destination]:
    found = Destination(tmp_path_factory.mktemp("destination"))
    found.make("install-service")
    yield found
    shutil.rmtree(found.directory)


@pytest.mark.timeout(300)  # it builds six distributions
def test_what_is_installed_is_what_the_unit_names(destination: Destination) -> None:
    program_of_unit, _, config = unit()["ExecStart"].partition(" -c ")
    script = destination.file(program_of_unit)
    # It says where it is going to be, not where it is now.
    assert script.read_text().startswith(f"#!{Path(program_of_unit).parent}/python")
    assert destination.threatbus("check", "-c", str(destination.file(config))).returncode == 0
    listed = destination.threatbus("plugins").stdout
    for plugin in ("inmem", "rabbitmq", "zmq", "zeek", "misp", "web"):
        assert f" {plugin} " in listed
    where = destination.threatbus("--version")
    assert where.returncode == 0
    home = subprocess.run(
        [destination.python, "-P", "-c", "import threatbus; print(threatbus.__file__)"],
        capture_output=True, text=True, check=True, cwd="/",
    ).stdout  # fmt: skip
    assert home.startswith(str(destination.prefix))
    assert destination.file("/etc/systemd/system/threatbus.service").read_text() == UNIT.read_text()
    page = UNIT.read_text().partition("Documentation=file://")[2].partition("\n")[0]
    assert destination.file(page).is_file()
    user = destination.file("/etc/sysusers.d/threatbus.conf").read_text()
    assert f"u {unit()['User']} " in user
    assert destination.file("/etc/threatbus/config.yaml").stat().st_mode & 0o007 == 0


def test_installing_again_leaves_the_configuration_as_it_is(
    destination: Destination, tmp_path: Path
) -> None:
    config = destination.file("/etc/threatbus/config.yaml")
    config.write_text("changed by the operator")
    before = destination.files()
    # A pip that does nothing: what it does was tested above, and takes seconds.
    (tmp_path / "pip").mkdir()
    for module in ("__init__", "__main__"):
        (tmp_path / "pip" / f"{module}.py").write_text("")
    destination.make("install-service", PYTHONPATH=str(tmp_path))
    assert config.read_text() == "changed by the operator"
    assert {each for each in destination.files() - before if "__pycache__" not in each} == set()


def test_uninstalling_leaves_configuration_and_state_alone(destination: Destination) -> None:
    said = destination.make("uninstall-service")
    left = {each for each in destination.files() if destination.file(each).is_file()}
    assert left == {"etc/threatbus/config.yaml"}
    assert "rm -r" in said
    # Nothing to remove is no failure.
    destination.make("uninstall-service")
