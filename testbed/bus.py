"""A bus as a process of its own, as a user runs it; it can be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import zmq

from testbed.ports import Doors
from threatbus.control import SOCKET_NAME, ask

START_SECS: Final = 30.0
STOP_SECS: Final = 30.0


class BusProcess:
    """One bus, for a ``with`` block, on free ports and with a directory of its own."""

    def __init__(
        self,
        *,
        backbones: Mapping[str, Any] | None = None,
        apps: Mapping[str, Any] | None = None,
        zmq: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        **core: Any,
    ) -> None:
        """Prepare it. `zmq` are keys of that section, `apps` further ones, `core` the top level."""
        self._temporary = tempfile.TemporaryDirectory(prefix="bus-")
        self.directory = Path(self._temporary.name)
        self.doors = Doors.free()
        self._environment = dict(os.environ) | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.config: dict[str, Any] = {
            "state_directory": str(self.directory / "state"),
            "logging": {"console_verbosity": "INFO"},
            "plugins": {
                "backbones": dict(backbones or {"inmem": None}),
                "apps": {"zmq": {**self.doors.section, **(zmq or {})}, **(apps or {})},
            },
            **core,
        }

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the one that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its runs have said."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it; returns when it answers, `TimeoutError` or `RuntimeError` if it never does."""
        path = self.directory / "config.yaml"
        path.write_text(json.dumps(self.config))
        command = [str(Path(sys.executable).with_name("threatbus")), "-c", str(path)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, cwd=self.directory
            )
        deadline = time.monotonic() + START_SECS
        while not self.answers():
            if not self.is_alive():
                raise RuntimeError(f"the bus has ended:\n{self.log[-2000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the bus does not answer:\n{self.log[-2000:]}")

    def is_alive(self) -> bool:
        """Say whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def answers(self, seconds: float = 1.0) -> bool:
        """Say whether it answers a management request within `seconds`."""
        with zmq.Context() as context, context.socket(zmq.REQ) as req:
            req.setsockopt(zmq.LINGER, 0)
            req.setsockopt(zmq.RECONNECT_IVL, 10)
            req.connect(self.doors.address("manage"))
            req.send(b'{"action": "heartbeat", "topic": "none"}')
            return bool(req.poll(int(seconds * 1000)))

    def status(self) -> dict[str, Any]:
        """Give what `threatbus status` shows."""
        found: dict[str, Any] = ask(Path(self.config["state_directory"], SOCKET_NAME), "status")
        return found

    def kill(self) -> None:
        """Kill it in the middle of whatever it does."""
        self.signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        """Stop it as a service manager would; gives its exit code."""
        self.signal(signal.SIGTERM)
        return self._wait()

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        os.kill(self.pid, number)

    def resident_bytes(self) -> int:
        """Give its resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise LookupError("VmRSS")

    def threads(self) -> int:
        """Give the number of its threads."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def descriptors(self) -> int:
        """Give the number of descriptors that it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_seconds(self) -> float:
        """Give the processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Kill what runs and remove the directory."""
        if self.is_alive():
            # One that is paused or that drains need not be waited for.
            self.kill()
        self._temporary.cleanup()

    def _wait(self) -> int:
        assert self._process is not None
        return self._process.wait(STOP_SECS)
