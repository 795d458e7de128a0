"""A bus as a process of its own, as a user runs it; it can be killed and started again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from testbed.ports import Doors
from testbed.service import Service
from threatbus.control import SOCKET_NAME, ask


class BusProcess(Service):
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
        super().__init__("bus")
        self.doors = Doors.free()
        self.environment = dict(os.environ) | dict(environment or {})
        self.config: dict[str, Any] = {
            "state_directory": str(self.directory / "state"),
            "logging": {"console_verbosity": "INFO"},
            "plugins": {
                "backbones": dict(backbones or {"inmem": None}),
                "apps": {"zmq": {**self.doors.section, **(zmq or {})}, **(apps or {})},
            },
            **core,
        }

    def command(self) -> Sequence[str | Path]:
        """Give the command, with its configuration file as it is to be now."""
        path = self.directory / "config.yaml"
        path.write_text(json.dumps(self.config))
        return [Path(sys.executable).with_name("threatbus"), "-c", path]

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
