"""A Tenzir node of one's own: on loopback, on a free port, in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from testbed.ports import free_port
from testbed.service import Service

#: Seconds that one pipeline may take.
RUN_SECS: Final = 60.0


class TenzirNode(Service):
    """One node, for a ``with`` block."""

    def __init__(self) -> None:
        """Prepare it; raises FileNotFoundError where the program ``tenzir-node`` is missing."""
        self._node_program, self.program = _program("tenzir-node"), _program("tenzir")
        super().__init__("tenzir")
        self.port = free_port()
        self.environment = {
            **os.environ,
            "TENZIR_STATE_DIRECTORY": str(self.directory / "state"),
            "TENZIR_CACHE_DIRECTORY": str(self.directory / "cache"),
            "TENZIR_ENDPOINT": self.endpoint,
            "TENZIR_CONSOLE_VERBOSITY": "warning",
        }

    @property
    def endpoint(self) -> str:
        """Where it listens, as HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What makes ``tenzir`` in a shell the program of this node."""
        path = f"{Path(self.program).parent}{os.pathsep}{os.environ['PATH']}"
        return {"TENZIR_ENDPOINT": self.endpoint, "PATH": path}

    def command(self) -> Sequence[str | Path]:
        """Give the command that runs it."""
        return [self._node_program]

    def answers(self) -> bool:
        """Say whether it listens."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def run(self, pipeline: str, rows: Iterable[Any] = ()) -> list[Any]:
        """Run a pipeline on the rows of its standard input; gives what `write_ndjson` prints."""
        given = "".join(json.dumps(row) + "\n" for row in rows)
        done = subprocess.run(
            [self.program, "--connection-timeout=10s", pipeline],
            env=self.environment,
            input=given.encode(),
            capture_output=True,
            timeout=RUN_SECS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode())
        return [json.loads(line) for line in done.stdout.splitlines()]

    def import_events(self, events: Iterable[Any]) -> None:
        """Import events, as a sensor would."""
        self.run("from_stdin { read_ndjson }\nimport", events)

    def table(self, name: str) -> dict[str, Any]:
        """Give what is in a lookup table."""
        rows = self.run(f'context_inspect "{name}"\nwrite_ndjson')
        return {row["key"]: row["value"] for row in rows}


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = shutil.which(beside) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: the Python package tenzir is missing")
    return str(found)
