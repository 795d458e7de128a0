"""Runs pipelines: each is a process of ``tenzir`` that is connected to the node."""

from __future__ import annotations

import os
import re
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Final

import msgspec

from threatbus.client import Endpoint
from threatbus.client.connection import Deadline
from threatbus.errors import ThreatBusError
from threatbus.wakeup import Wakeup
from vast_threatbus import lifetime
from vast_threatbus.lines import Lines

#: Seconds that a pipeline which does a small thing may take.
SHORT_SECS: Final = 60.0
#: Seconds that a pipeline tries to reach the node, and between two attempts.
CONNECT_SECS: Final = 3
RETRY_MS: Final = 200
#: Bytes that are kept of what a pipeline says on standard error.
MAX_COMPLAINT: Final = 4096
READ_BYTES: Final = 256 * 1024

#: Bytes that a pipeline's input is given at once.
WRITE_BYTES: Final = 64 * 1024


def encoded(rows: Iterable[Mapping[str, object]]) -> bytes:
    """Give rows as a pipeline reads them: a line of JSON for each, whatever it holds."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


class EngineError(ThreatBusError):
    """A pipeline did not run to its end: no node, a node that left, or a pipeline it refuses."""


class EngineTimeout(EngineError):
    """A pipeline took longer than it may."""


class EngineClosed(EngineError):
    """The engine was closed meanwhile."""


class Engine:
    """One node, by way of the program ``tenzir``. May be used from any thread."""

    def __init__(self, program: str, node: Endpoint) -> None:
        self.node = node
        self._command = [
            program,
            f"--endpoint={node.address().removeprefix('tcp://')}",
            f"--connection-timeout={CONNECT_SECS}s",
            f"--connection-retry-delay={RETRY_MS}ms",
            "--console-verbosity=warning",
            "--color=never",
        ]
        # Every wait of every pipeline watches it; written once, by close().
        self._closed = Wakeup()
        self.closing = False
        # How many processes were started.
        self.started = 0

    def run(self, pipeline: str, given: Iterable[bytes] = ()) -> None:
        """Run a pipeline that prints nothing. Raises `EngineError`.

        `given` is its input, in pieces: the next one is asked for when the pipeline has taken the
        one before, and may take its (short) time. The pipeline starts meanwhile.
        """
        for _ in self._run([*self._command, pipeline], given, Deadline(SHORT_SECS)):
            pass

    def query(self, pipeline: str, timeout: float) -> Iterator[bytes]:
        """Run a pipeline and give the lines that it prints, as they come.

        Raises `EngineError`, and `EngineTimeout` when `timeout` seconds are over.
        """
        return self._run(self._bound_to_us(pipeline), (), Deadline(timeout))

    def follow(self, pipeline: str) -> Iterator[bytes]:
        """Give the lines of a pipeline that ends with the node only. Raises `EngineError`."""
        yield from self._run(self._bound_to_us(pipeline), (), Deadline(None))
        raise EngineError("the pipeline ended although events may still come")

    def close(self) -> None:
        """End all pipelines; whoever waits for one gets `EngineClosed`."""
        self.closing = True
        self._closed()

    def _bound_to_us(self, pipeline: str) -> list[str]:
        # -I and -S: no more of Python than it needs, for it is gone in a moment.
        start = [sys.executable, "-I", "-S", lifetime.__file__, str(os.getpid())]
        return [*start, *self._command, pipeline]

    def _run(
        self, command: list[str], given: Iterable[bytes], deadline: Deadline
    ) -> Iterator[bytes]:
        if self.closing:
            raise EngineClosed("the engine is closed")
        with self._lifeline() as lifeline, _Process(command, given) as process:
            self.started += 1
            yield from process.lines(self._closed, deadline, lifeline)

    def _lifeline(self) -> socket.socket:
        """Connect to the node, to be told when it leaves: a pipeline may wait for it for ever."""
        try:
            lifeline = socket.create_connection((self.node.host, self.node.port), CONNECT_SECS)
        except OSError as error:
            raise EngineError(f"no node at {self.node}: {error.strerror or error}") from None
        lifeline.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        lifeline.setblocking(False)
        return lifeline


class _Process:
    """One run of a pipeline. It is killed in the end: there is nothing that it could save."""

    def __init__(self, command: list[str], given: Iterable[bytes]) -> None:
        self._given = iter(given)
        # What its input has not taken yet of a piece.
        self._unsent = memoryview(b"")
        self._complaint = b""
        pipe = subprocess.PIPE
        try:
            # In a session of its own: a Ctrl-C is for this process, which ends it in turn.
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise EngineError(f"{command[0]} cannot be run: {error.strerror}") from None
        self._in, self._out, self._err = self._pipes()
        os.set_blocking(self._in.fileno(), False)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._in, self._out, self._err):
            pipe.close()

    def lines(self, closed: Wakeup, deadline: Deadline, lifeline: socket.socket) -> Iterator[bytes]:
        """Give what it prints, until it ends as it should; `EngineError` if otherwise."""
        cut = Lines()
        with selectors.DefaultSelector() as selector:
            for each in (self._out, self._err, closed, lifeline):
                selector.register(each, selectors.EVENT_READ)
            selector.register(self._in, selectors.EVENT_WRITE)
            open_pipes = 2
            while open_pipes:
                ready = {key.fileobj for key, _ in selector.select(deadline.remaining())}
                if closed in ready:
                    raise EngineClosed("the engine is closed")
                if self._in in ready and not self._feed():
                    selector.unregister(self._in)
                    self._in.close()
                if self._out in ready:
                    data = os.read(self._out.fileno(), READ_BYTES)
                    yield from cut.feed(data)
                    open_pipes -= self._ended(selector, self._out, data)
                if self._err in ready:
                    data = os.read(self._err.fileno(), READ_BYTES)
                    self._complaint = (self._complaint + data)[-MAX_COMPLAINT:]
                    open_pipes -= self._ended(selector, self._err, data)
                if lifeline in ready:
                    _check_alive(lifeline)
                if deadline.over:
                    raise EngineTimeout("the pipeline took too long")
        self._check_success(deadline)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        return process.stdin, process.stdout, process.stderr

    def _feed(self) -> bool:
        """Hand over some of the input; False if that was all, or nobody takes it."""
        if not self._unsent:
            self._unsent = memoryview(next(self._given, b""))
        if not self._unsent:
            return False
        try:
            sent = os.write(self._in.fileno(), self._unsent[:WRITE_BYTES])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            # It has ended; its exit code says why.
            return False
        self._unsent = self._unsent[sent:]
        return True

    def _ended(self, selector: selectors.BaseSelector, pipe: IO[bytes], data: bytes) -> bool:
        if not data:
            selector.unregister(pipe)
        return not data

    def _check_success(self, deadline: Deadline) -> None:
        try:
            code = self._process.wait(deadline.remaining())
        except subprocess.TimeoutExpired:
            raise EngineTimeout("the pipeline took too long") from None
        if code != 0:
            raise EngineError(_reason(self._complaint) or f"the pipeline ended with {code}")


def _check_alive(lifeline: socket.socket) -> None:
    """Let go of what the node says to us; raises `EngineError` if it has left."""
    try:
        if lifeline.recv(READ_BYTES):
            return
        why = "it closed the connection"
    except BlockingIOError:
        return
    except OSError as error:
        why = error.strerror or str(error)
    raise EngineError(f"the node has left: {why}")


def _reason(complaint: bytes) -> str:
    """Give the first error among what a pipeline says, as one line."""
    text = complaint.decode("utf-8", "replace")
    found = re.search(r"^error: (.*)$", text, re.MULTILINE)
    return found[1] if found else " ".join(text.split())[:300]
