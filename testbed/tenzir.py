"""A Tenzir node of one's own: on loopback, on a free port, in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from testbed.ports import free_port

START_SECS = 60.0
#: Seconds that one pipeline may take.
RUN_SECS = 60.0


class TenzirNode:
    """One node, for a ``with`` block.

    It can be killed and started again, and then has what it had on disk.
    """

    def __init__(self) -> None:
        """Prepare it; raises FileNotFoundError where the program ``tenzir-node`` is missing."""
        self._node_program, self.program = _program("tenzir-node"), _program("tenzir")
        self.directory = Path(tempfile.mkdtemp(prefix="tenzir-"))
        self.port = free_port()
        self._environment = {
            **os.environ,
            "TENZIR_STATE_DIRECTORY": str(self.directory / "state"),
            "TENZIR_CACHE_DIRECTORY": str(self.directory / "cache"),
            "TENZIR_ENDPOINT": self.endpoint,
            "TENZIR_CONSOLE_VERBOSITY": "warning",
        }
        self._node: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens, as HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What makes ``tenzir`` in a shell the program of this node."""
        path = f"{Path(self.program).parent}{os.pathsep}{os.environ['PATH']}"
        return {"TENZIR_ENDPOINT": self.endpoint, "PATH": path}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the node; returns when it listens, TimeoutError if it never does."""
        with (self.directory / "output").open("ab") as output:
            self._node = subprocess.Popen(
                [self._node_program],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_SECS
        while not self._listens():
            if self._node.poll() is not None:
                raise RuntimeError((self.directory / "output").read_text()[-2000:])
            if time.monotonic() > deadline:
                raise TimeoutError(f"no node at {self.endpoint} after {START_SECS:.0f} s")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the node in the middle of whatever it does."""
        assert self._node is not None
        self._node.kill()
        self._node.wait()

    def run(self, pipeline: str, rows: Iterable[Any] = ()) -> list[Any]:
        """Run a pipeline on the rows of its standard input; gives what `write_ndjson` prints."""
        given = "".join(json.dumps(row) + "\n" for row in rows)
        done = subprocess.run(
            [self.program, "--connection-timeout=10s", pipeline],
            env=self._environment,
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

    def close(self) -> None:
        """Kill what runs and remove the directory."""
        if self._node is not None and self._node.poll() is None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = shutil.which(beside) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: the Python package tenzir is missing")
    return str(found)
