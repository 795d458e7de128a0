"""Runs every check of a configuration, side by side, and gives what was found."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from threatbus import config
from threatbus.config import CoreConfig, is_secret
from threatbus.control import MAX_PATH_BYTES, SOCKET_NAME, ask
from threatbus.doctor.check import Check
from threatbus.errors import BusUnreachable, CheckFailed, Refused, ThreatBusError
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import InstalledPlugin, installed

#: What is said of a plugin that does not bring the hook, or nothing that could be looked at.
NO_CHECK: Final = "no check of its own"
NOTHING_OUTSIDE: Final = "works inside the bus, needs nothing else"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one check."""

    subject: str
    """Where in the configuration it belongs (``plugins.apps.zmq``), or ``bus``."""
    check: str
    """What was looked at."""
    ok: bool
    detail: str
    """What works, or what does not and why."""
    next_step: str = ""
    """What to do about it; empty where all is well."""


def examine(source: Any) -> tuple[list[Finding], bool]:
    """Check what `source` (from `threatbus.config.load`) configures, and give the findings.

    The second is whether the configuration itself is valid. What is wrong in one section keeps no
    other one from being looked at. All checks run at the same time, each with its own time limit.
    """
    plugins = {
        "backbones": installed(BACKBONE_GROUP),
        "apps": installed(APP_GROUP),
    }
    checked, errors = config.survey(source, plugins["apps"], plugins["backbones"])
    findings = [
        Finding(
            subject=error.key,
            check="configuration",
            ok=False,
            detail=str(error),
            next_step="correct it; `threatbus check` says all that is wrong",
        )
        for error in errors
    ]
    if checked is None:
        return findings, False
    directory = Path(checked.core.state_directory)
    running = _Running(directory)
    examinations = [_Examination("bus", _core_checks(checked.core, running), ())]
    for group, sections in (("backbones", checked.backbones), ("apps", checked.apps)):
        for name, section in sections.items():
            checks = _checks_of(plugins[group][name], section, directory, running.pid)
            subject = f"plugins.{group}.{name}"
            examinations.append(_Examination(subject, checks, _secrets_of(section)))
    for examination in examinations:
        examination.start()
    return [*findings, *(found for each in examinations for found in each.findings())], not errors


class _Running:
    """The bus that runs with this state directory, if one does."""

    def __init__(self, directory: Path) -> None:
        self.pid: int | None = None
        self._path = directory / SOCKET_NAME
        self._status: Mapping[str, Any] = {}
        self._error = ""
        try:
            self._status = ask(self._path, "status")
            self.pid = int(self._status["pid"])
        except (BusUnreachable, Refused) as error:
            # Without a socket there is no bus, or it says so in its log.
            self._error = str(error) if self._is_there() else ""

    def probe(self) -> str:
        """Say whether it runs and how; raises `CheckFailed` where it lacks a part."""
        if self._error:
            raise CheckFailed(self._error, "then ask again")
        if self.pid is None:
            return "none runs with this state directory"
        down = [
            f"{plugin['name']}: {each['name']}"
            for plugin in self._status["plugins"]
            for each in plugin["connections"]
            if each["state"] == "down"
        ]
        if lacks := [*self._status["lost_parts"], *down]:
            raise CheckFailed(
                f"process {self.pid} runs without {', '.join(lacks)}",
                f"threatbus status --socket {self._path}",
            )
        return f"process {self.pid} runs, all its plugins are connected"

    def _is_there(self) -> bool:
        try:
            return self._path.is_socket()
        except PermissionError:
            return True


class _Examination:
    """The checks of one subject, each in a thread of its own.

    A thread ends when its probe does; one whose time is over is left behind, as a daemon.
    """

    def __init__(self, subject: str, checks: Sequence[Check], secrets: Sequence[str]) -> None:
        self._subject = subject
        self._checks = checks
        self._secrets = secrets
        # By the check's place; written by its thread, once.
        self._found: dict[int, Finding] = {}
        self._threads: list[threading.Thread] = []
        self._began = 0.0

    def start(self) -> None:
        """Begin all of them."""
        self._began = time.monotonic()
        for number, check in enumerate(self._checks):
            thread = threading.Thread(
                target=self._run, args=(number, check), name=f"check {check.name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def findings(self) -> Iterator[Finding]:
        """Wait for each and give what it found."""
        for number, (check, thread) in enumerate(zip(self._checks, self._threads, strict=True)):
            thread.join(max(0.0, self._began + check.timeout_secs - time.monotonic()))
            yield self._found.get(number) or self._finding(
                check,
                CheckFailed(
                    f"no result within {check.timeout_secs:g} s",
                    "look whether what it connects to hangs, and try again",
                ),
            )

    def _run(self, number: int, check: Check) -> None:
        found: str | Exception
        try:
            found = check.probe()
        # Foreign code: what it raises is a finding, and costs the other checks nothing.
        except Exception as error:  # noqa: BLE001
            found = error
        self._found[number] = self._finding(check, found)

    def _finding(self, check: Check, found: str | Exception) -> Finding:
        next_step = ""
        match found:
            case CheckFailed():
                detail, next_step = found.detail, found.next_step
            case ThreatBusError():
                detail, next_step = str(found), "correct what it names"
            case Exception():
                detail = f"the check itself fails ({type(found).__name__}: {found})"
                next_step = "report it to the plugin's authors"
            case _:
                detail = str(found)
        return Finding(
            subject=self._subject,
            check=check.name,
            ok=isinstance(found, str),
            detail=self._masked(detail),
            next_step=self._masked(next_step),
        )

    def _masked(self, text: str) -> str:
        """Leave out what the configuration keeps secret, whatever a driver's error says."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"://[^/@\s]+@", "://***@", text)


def _checks_of(
    plugin: InstalledPlugin, section: msgspec.Struct | None, directory: Path, bus_pid: int | None
) -> Sequence[Check]:
    """Give the checks that a plugin brings, or one that says why there are none."""
    if not plugin.loaded.has("diagnose"):
        return [Check("plugin", lambda: NO_CHECK)]
    try:
        given = plugin.loaded.call(
            "diagnose", section=section, state_directory=directory, bus_pid=bus_pid
        )
        return list(given or ()) or [Check("plugin", lambda: NOTHING_OUTSIDE)]
    # Foreign code, as when it is loaded.
    except Exception as error:  # noqa: BLE001
        kind = type(error).__name__

        def failed() -> str:
            raise CheckFailed(f"its diagnose() fails ({kind})", "report it to its authors")

        return [Check("plugin", failed)]


def _secrets_of(section: msgspec.Struct | None) -> list[str]:
    """Give the values of a section that must not be shown, the longest first."""
    secrets: set[str] = set()
    open_values: set[str] = set()

    def look(value: object, path: str) -> None:
        if isinstance(value, Mapping):
            for key, each in value.items():
                look(each, f"{path}.{key}")
        elif isinstance(value, list):
            for each in value:
                look(each, path)
        elif isinstance(value, str) and value:
            hidden = is_secret(path) and not path.endswith("_file")
            (secrets if hidden else open_values).add(value)

    look({} if section is None else msgspec.to_builtins(section), "")
    # A name that is also a password (guest) is shown as the name.
    return sorted(secrets - open_values, key=len, reverse=True)


# What the core itself needs.


def _core_checks(core: CoreConfig, running: _Running) -> list[Check]:
    directory = Path(core.state_directory)
    checks = [
        Check("running bus", running.probe),
        Check("state directory", lambda: _check_state_directory(directory)),
    ]
    if core.logging.file:
        log = Path(core.logging.filename).absolute()
        checks.append(Check("log file", lambda: _check_log_file(log)))
    return checks


def _check_state_directory(directory: Path) -> str:
    socket_path = directory / SOCKET_NAME
    if len(str(socket_path).encode()) > MAX_PATH_BYTES:
        raise CheckFailed(
            f"the path of the control socket, {socket_path}, is longer than {MAX_PATH_BYTES} bytes",
            "set a shorter state_directory",
        )
    _check_writable(directory, "state_directory")
    return f"{directory} is writable" if directory.is_dir() else f"{directory} can be made"


def _check_log_file(path: Path) -> str:
    _check_writable(path.parent, "logging.filename")
    if not path.exists():
        return f"{path} can be made"
    try:
        path.open("ab").close()
    except OSError as error:
        raise _not_writable(path, "logging.filename", error) from None
    return f"{path} is writable"


def _check_writable(directory: Path, key: str) -> None:
    """Write a byte where the directory is, or is going to be; raises `CheckFailed`."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise _not_writable(there, key, error) from None


def _not_writable(path: Path, key: str, error: OSError) -> CheckFailed:
    reason = error.strerror or error
    return CheckFailed(
        f"{path} cannot be written by user {os.geteuid()} ({reason})",
        f"run this as the bus's own user, give that user the directory, or set another {key}",
    )
