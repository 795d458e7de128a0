"""A RabbitMQ node of one's own: on loopback, on free ports, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from testbed.ports import free_ports

# The script in /usr/sbin would become the user rabbitmq first.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CTL = Path("/usr/lib/rabbitmq/lib")
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
START_SECS = 100.0


class RabbitNode:
    """One broker, for a ``with`` block.

    It can be killed and started again, and then has what it had on disk.
    """

    def __init__(self, settings: str = "", further_port: int | None = None) -> None:
        """Prepare it; `settings` go into its rabbitmq.conf, `further_port` is one they name.

        Raises FileNotFoundError where the Debian package ``rabbitmq-server`` is missing.
        """
        if not _SERVER.exists():
            raise FileNotFoundError(f"{_SERVER}: the Debian package rabbitmq-server is missing")
        self.directory = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self._further_port = further_port
        self.port, mapper, distribution = free_ports(3)
        for name in ("mnesia", "log", "home"):
            (self.directory / name).mkdir()
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text(settings)
        self._environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.directory / "home"),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-kernel inet_dist_use_interface {127,0,0,1}"),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        }
        # Its own, or else the server starts one that outlives it.
        self._port_mapper = subprocess.Popen(
            ["epmd", "-port", str(mapper), "-address", "127.0.0.1"], start_new_session=True
        )
        self._server: subprocess.Popen[bytes] | None = None

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
        """Start the server; returns when it speaks AMQP, TimeoutError if it never does."""
        with (self.directory / "stdout").open("ab") as output:
            self._server = subprocess.Popen(
                [_SERVER],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECS
        while not self._speaks():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no AMQP at port {self.port} after {START_SECS:.0f} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server as a service manager would."""
        self.signal(signal.SIGTERM)
        self._wait()

    def kill(self) -> None:
        """Kill the server in the middle of whatever it does."""
        self.signal(signal.SIGKILL)
        self._wait()

    def forget(self) -> None:
        """Remove what a server that does not run has on disk: exchanges, queues, messages."""
        shutil.rmtree(self.directory / "mnesia")
        (self.directory / "mnesia").mkdir()

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the server."""
        assert self._server is not None
        os.killpg(self._server.pid, number)

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and give what it prints."""
        (command,) = _CTL.glob("rabbitmq_server-*/sbin/rabbitmqctl")
        done = subprocess.run(
            [command, "-q", *arguments],
            env=self._environment,
            text=True,
            capture_output=True,
            timeout=100,
            check=True,
        )
        return done.stdout

    def rows(self, what: str, *columns: str) -> list[list[str]]:
        """Give a listing, such as ``rows("queues", "name", "messages")``, without its header."""
        lines = self.control(f"list_{what}", *columns).splitlines()
        return [line.split("\t") for line in lines[1:]]

    def close(self) -> None:
        """Kill what runs and remove the directory."""
        if self._server is not None and self._server.poll() is None:
            self.kill()
        self._port_mapper.terminate()
        self._port_mapper.wait(5)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _speaks(self) -> bool:
        assert self._server is not None
        if self._server.poll() is not None:
            raise RuntimeError((self.directory / "stdout").read_text()[-2000:])
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as probe,
        ):
            probe.sendall(_PROTOCOL_HEADER)
            probe.settimeout(2)
            return bool(probe.recv(1)) and self._listens_further()
        return False

    def _listens_further(self) -> bool:
        if self._further_port is not None:
            socket.create_connection(("127.0.0.1", self._further_port), 1).close()
        return True

    def _wait(self) -> None:
        assert self._server is not None
        self._server.wait(30)
