"""What is measured: the bus, and a forwarder with no bus inside, behind one interface."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import zmq

from testbed.ports import Doors

spawn = mp.get_context("spawn")

#: What a subscriber that wants all of it subscribes to.
EVERYTHING = "stix2/"


@dataclass(frozen=True)
class System:
    """A running system: where to publish, where to receive with which prefixes, its process."""

    name: str
    publish_to: str
    receive_from: str
    prefixes: list[bytes]
    pid: int

    def cpu_seconds(self) -> float:
        """Give the processor time that its process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Give the resident memory of its process."""
        return self._memory("VmRSS:")

    def peak_bytes(self) -> int:
        """Give the most memory that its process has had resident."""
        return self._memory("VmHWM:")

    def _memory(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


def _forward(ready: Connection) -> None:
    """SUB to XPUB in one loop, nothing dropped: what a bus costs is what it takes beyond this."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, 0)
    sub.subscribe(b"")
    pub = context.socket(zmq.XPUB)
    pub.setsockopt(zmq.SNDHWM, 0)
    pub.setsockopt(zmq.XPUB_NODROP, 1)
    ports = [each.bind_to_random_port("tcp://127.0.0.1") for each in (sub, pub)]
    ready.send(ports)
    while True:
        pub.send(sub.recv())


@contextmanager
def forwarder(topics: Sequence[str]) -> Iterator[System]:
    """Run the bare forwarder, with a subscriber to each of `topics`."""
    ours, theirs = mp.Pipe()
    process = spawn.Process(target=_forward, args=(theirs,), daemon=True)
    process.start()
    try:
        sub, pub = ours.recv()
        yield System(
            "forwarder",
            f"tcp://127.0.0.1:{sub}",
            f"tcp://127.0.0.1:{pub}",
            [topic.encode() for topic in topics],
            process.pid or 0,
        )
    finally:
        process.kill()
        process.join()


def request(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, **fields: object
) -> dict[str, object]:
    """Send one management request and give the reply; LookupError if there is none in a second."""
    with context.socket(zmq.REQ) as req:
        req.setsockopt(zmq.LINGER, 0)
        req.connect(endpoint)
        req.send(json.dumps(fields).encode())
        if not req.poll(1000):
            raise LookupError("no reply")
        reply: dict[str, object] = json.loads(req.recv())
        return reply


def wait_until_up(endpoint: str) -> float:
    """Give the moment (``time.monotonic``) at which the bus answers at `endpoint`."""
    _, _, address = endpoint.partition("//")
    host, port = address.split(":")
    context = zmq.Context()
    try:
        while True:
            # A connection attempt of ZeroMQ that is refused waits before it tries again.
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    request(context, endpoint, action="heartbeat", topic="none")
                    return time.monotonic()
            time.sleep(0.002)
    finally:
        context.destroy(linger=0)


@dataclass(frozen=True)
class Started:
    """A bus that answers: its ports, its process, and how long it took."""

    doors: Doors
    pid: int
    seconds: float


@contextmanager
def started(
    *, queues: str = "{}", zmq_keys: str = "", backbones: str = "{inmem: }", apps: str = ""
) -> Iterator[Started]:
    """Run the bus as a user would; `apps` are sections beside that of ZeroMQ."""
    doors = Doors.free()
    ports = f"manage: {doors.manage}, pub: {doors.pub}, sub: {doors.sub}"
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "config.yaml")
        config.write_text(
            f"state_directory: {directory}/state\n"
            "logging: {console_verbosity: ERROR}\n"
            f"queues: {queues}\n"
            "plugins:\n"
            f"  backbones: {backbones}\n"
            f"  apps: {{zmq: {{{ports}{zmq_keys}}}{apps and f', {apps}'}}}\n"
        )
        command = [str(Path(sys.executable).with_name("threatbus")), "-c", str(config)]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            up = wait_until_up(doors.address("manage"))
            yield Started(doors, process.pid, up - began)
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def bus(
    topics: Sequence[str],
    *,
    queues: str = "{}",
    zmq_keys: str = "",
    backbones: str = "{inmem: }",
    apps: str = "",
) -> Iterator[System]:
    """Run the bus with a subscription to each of `topics`."""
    with started(queues=queues, zmq_keys=zmq_keys, backbones=backbones, apps=apps) as running:
        context = zmq.Context()
        manage = running.doors.address("manage")
        replies = [request(context, manage, action="subscribe", topic=topic) for topic in topics]
        context.destroy(linger=0)
        yield System(
            "threatbus",
            running.doors.address("sub"),
            running.doors.address("pub"),
            [str(reply["topic"]).encode() for reply in replies],
            running.pid,
        )
