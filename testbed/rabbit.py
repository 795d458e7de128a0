"""A RabbitMQ node of one's own: on loopback, on free ports, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from testbed.ports import free_ports
from testbed.service import Process, Service

# The script in /usr/sbin would become the user rabbitmq first.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CTL = Path("/usr/lib/rabbitmq/lib")
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


class RabbitNode(Service):
    """One broker, for a ``with`` block."""

    def __init__(self, settings: str = "", further_port: int | None = None) -> None:
        """Prepare it; `settings` go into its rabbitmq.conf, `further_port` is one they name.

        Raises FileNotFoundError where the Debian package ``rabbitmq-server`` is missing.
        """
        if not _SERVER.exists():
            raise FileNotFoundError(f"{_SERVER}: the Debian package rabbitmq-server is missing")
        super().__init__("rabbitmq")
        self._further_port = further_port
        self.port, mapper, distribution = free_ports(3)
        for name in ("mnesia", "log", "home"):
            (self.directory / name).mkdir()
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text(settings)
        self.environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.directory / "home"),
            "RABBITMQ_NODENAME": f"{self.directory.name}@localhost",
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
        self._port_mapper = Process(
            ["epmd", "-port", str(mapper), "-address", "127.0.0.1"], os.environ, self.directory
        )

    def command(self) -> Sequence[str | Path]:
        """Give the command that runs it."""
        return [_SERVER]

    def answers(self) -> bool:
        """Say whether it speaks AMQP, and is not another one that was faster to take the port."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as probe,
        ):
            probe.sendall(_PROTOCOL_HEADER)
            probe.settimeout(2)
            # The server begins with its properties, of which one is the name of its node.
            return self.directory.name.encode() in probe.recv(4096) and self._listens_further()
        return False

    def forget(self) -> None:
        """Remove what a server that does not run has on disk: exchanges, queues, messages."""
        shutil.rmtree(self.directory / "mnesia")
        (self.directory / "mnesia").mkdir()

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and give what it prints."""
        (command,) = _CTL.glob("rabbitmq_server-*/sbin/rabbitmqctl")
        done = subprocess.run(
            [command, "-q", *arguments],
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=100,
            check=True,
        )
        return done.stdout

    def messages(self, queue: str) -> int:
        """Say how many messages a queue holds, acknowledged by nobody.

        Asked of the node itself: `rabbitmqctl` takes half a second of processor time.
        """
        question = (
            f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),'
            "proplists:get_value(messages, rabbit_amqqueue:info(Q, [messages])).\n"
        )
        cookie = (self.directory / "home" / ".erlang.cookie").read_text()
        name = self.environment["RABBITMQ_NODENAME"]
        done = subprocess.run(
            ["erl_call", "-n", name, "-c", cookie, "-e"],
            input=question,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=100,
            check=True,
        )
        answer = re.fullmatch(r"\{ok, (\d+)\}\s*", done.stdout)
        if answer is None:
            raise LookupError(f"queue {queue}: {done.stdout}")
        return int(answer[1])

    def rows(self, what: str, *columns: str) -> list[list[str]]:
        """Give a listing, such as ``rows("queues", "name", "messages")``, without its header."""
        lines = self.control(f"list_{what}", *columns).splitlines()
        return [line.split("\t") for line in lines[1:]]

    def close(self) -> None:
        """Kill what runs and remove the directory."""
        super().close()
        self._port_mapper.signal(signal.SIGTERM)
        self._port_mapper.wait()

    def _listens_further(self) -> bool:
        if self._further_port is not None:
            socket.create_connection(("127.0.0.1", self._further_port), 1).close()
        return True
