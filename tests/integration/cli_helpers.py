"""The real command in processes of its own, on pipes and on terminals, and peers of all kinds."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
from helpers.waiting import SCALE, eventually

from testbed.ports import Doors

COMMAND = [sys.executable, "-m", "threatbus"]
#: Seconds in which every command of these tests ends, also where six run at once on two cores.
SECONDS = 30.0 * SCALE


def run(
    *arguments: str, cwd: Path | None = None, stdin: bytes = b"", **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(**environ),
        timeout=SECONDS,
        check=False,
    )


def environment(**more: str) -> dict[str, str]:
    """Give this process's environment without what would configure a bus."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("THREATBUS_")}
    if "PYTHONPATH" in kept and "PYTHONPATH" in more:
        more["PYTHONPATH"] += os.pathsep + kept["PYTHONPATH"]
    return {**kept, "TZ": "UTC", **more}


class Process:
    """A command that runs in the background; its outputs are collected in files."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        **environ: str,
    ) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        directory.mkdir(parents=True)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=stdin,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=environment(**environ),
            )

    @property
    def stdout(self) -> bytes:
        return self._out.read_bytes()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def says(self, text: str) -> None:
        """Wait until standard error holds `text`."""
        what = f"stderr holds {text!r}"
        eventually(lambda: text in self.stderr or self._shown(), SECONDS, what)

    def lines(self, count: int) -> list[bytes]:
        """Wait for `count` lines on standard output and give them."""
        eventually(lambda: self.stdout.count(b"\n") >= count or self._shown(), SECONDS)
        return self.stdout.splitlines()

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; gives the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _shown(self) -> bool:
        raise AssertionError(f"exit {self.process.poll()}, stderr so far: {self.stderr}")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, cwd: Path | None = None, stdin: int = subprocess.DEVNULL):
        self._screen, slave = pty.openpty()
        os.set_blocking(self._screen, False)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=stdin,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=environment(NO_COLOR="1"),
        )
        os.close(slave)
        self._shown = b""

    @property
    def text(self) -> str:
        """What has been shown so far."""
        # EIO: nobody has the other end open any more.
        with contextlib.suppress(BlockingIOError):
            try:
                while read := os.read(self._screen, 65536):
                    self._shown += read
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
        return self._shown.decode().replace("\r\n", "\n")

    def shows(self, text: str) -> str:
        """Wait until `text` is shown; gives all of it."""

        def shown() -> bool:
            assert text in self.text, f"{text!r} is not in: {self.text}"
            return True

        eventually(shown, SECONDS)
        return self.text

    def end(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(SECONDS)

    def hang_up(self) -> None:
        """Take the terminal away, as when its window is closed."""
        os.close(self._screen)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


class BusProcess(Process):
    """A bus with the ZeroMQ plugin, on free ports unless told which.

    With the in-memory backbone unless told others.
    """

    def __init__(
        self,
        directory: Path,
        doors: Doors | None = None,
        backbones: dict[str, Any] | None = None,
        **zmq_section: Any,
    ) -> None:
        attempts = 1 if doors else 5
        for attempt in range(1, attempts + 1):
            self.doors = doors or Doors.free()
            self.config = write_config(
                directory / f"config-{attempt}", self.doors, backbones, **zmq_section
            )
            super().__init__(directory / f"bus-{attempt}", "-c", str(self.config))
            # A port that was free a moment ago may have become somebody else's.
            taken = (
                eventually(self._started_or_ended, SECONDS) == "ended" and "in use" in self.stderr
            )
            if not taken or attempt == attempts:
                break
        self.says("running:")

    def _started_or_ended(self) -> str:
        if "running:" in self.stderr:
            return "started"
        return "" if self.process.poll() is None else "ended"

    @property
    def endpoint(self) -> str:
        return self.doors.address("manage")

    @property
    def accepted(self) -> int:
        """How many messages it has accepted; known once it has ended."""
        found = re.search(r"(\d+) messages accepted", self.stderr)
        return int(found[1]) if found else -1


def write_config(
    directory: Path,
    doors: Doors,
    backbones: dict[str, Any] | None = None,
    **zmq_section: Any,
) -> Path:
    """Write a config.yaml; gives its path."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "plugins": {
            "backbones": backbones or {"inmem": None},
            "apps": {"zmq": {**doors.section, **zmq_section}},
        },
        "state_directory": str(directory / "state"),
    }
    path = directory / "config.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(content))
    return path


class FakeBus:
    """The manage socket of something that answers as it is told, in a thread."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], bytes | None],
        sub: zmq.Socket[bytes] | None = None,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        # A SUB works only while its thread does something with it; nothing is read from it.
        self.sub = sub
        self._answer = answer
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._rep = self._context.socket(zmq.REP)
        self.port = self._rep.bind_to_random_port("tcp://127.0.0.1")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def actions(self) -> list[str]:
        return [str(request["action"]) for request in self.requests]

    def stop(self) -> None:
        """Answer no more, and leave the SUB to the calling thread."""
        self._ended.set()
        self._thread.join(SECONDS)

    def close(self) -> None:
        self.stop()
        self._context.destroy(linger=0)

    def _serve(self) -> None:
        while not self._ended.is_set():
            if self.sub is not None:
                self.sub.poll(0)
            if not self._rep.poll(20):
                continue
            self.requests.append(json.loads(self._rep.recv()))
            answer = self._answer(self.requests[-1])
            if answer is None:
                # A REP that says nothing is of no use any more.
                return
            self._rep.send(answer)


class OldBus:
    """Speaks as Threat Bus 2022.5.16 does: no reasons, plain PUB, SUB on three topics."""

    TOPICS = ("stix2/indicator", "stix2/sighting", "threatbus/snapshotenvelope")

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.pub, self.sub = self._context.socket(zmq.PUB), self._context.socket(zmq.SUB)
        for topic in self.TOPICS:
            self.sub.subscribe(topic)
        self.pub_port = self.pub.bind_to_random_port("tcp://127.0.0.1")
        self.sub_port = self.sub.bind_to_random_port("tcp://127.0.0.1")
        self.topics: set[str] = set()
        self._numbers = iter(range(10**6))
        self.manage = FakeBus(self._answer, self.sub)

    @property
    def port(self) -> int:
        return self.manage.port

    def forget(self) -> None:
        """Know no subscription any more, as after a restart."""
        self.topics.clear()

    def deliver(self, data: bytes) -> None:
        """Send an indicator to every subscription."""
        # Copied, since the thread that answers adds to them.
        for topic in tuple(self.topics):
            self.pub.send(f"{topic}indicator ".encode() + data)

    def close(self) -> None:
        self.manage.close()
        self._context.destroy(linger=0)

    def _answer(self, request: dict[str, Any]) -> bytes:
        if request["action"] == "subscribe":
            topic = f"{next(self._numbers):032d}".translate(
                str.maketrans("0123456789", "abcdefghij")
            )
            self.topics.add(topic)
            ports = {"pub_port": self.pub_port, "sub_port": self.sub_port}
            return json.dumps({"topic": topic, **ports, "status": "success"}).encode()
        known = request["topic"] in self.topics
        if request["action"] == "unsubscribe":
            self.topics.discard(request["topic"])
        return json.dumps({"status": "success" if known else "error"}).encode()


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[None]:
    """Close all of them in the end."""
    with contextlib.ExitStack() as stack:
        for thing in things:
            stack.callback(thing.close)
        yield
