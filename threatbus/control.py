"""The control socket: how an operator's commands reach a running bus.

A Unix socket in the state directory that only the bus's own user can open. Who connects sends one
JSON object in one line and gets one line back::

    {"command": "status"}
    {"ok": true, "answer": {…}}                      or  {"ok": false, "error": "why not"}

Beside it lies ``control.lock``, locked for as long as the bus lives: whoever holds the lock may
replace a socket that a dead bus has left, and nobody else may.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from threatbus.errors import BusUnreachable, ControlError, Refused
from threatbus.wakeup import Wakeup
from threatbus.workers import StoppableWorker

logger = logging.getLogger("threatbus.control")

#: The socket's name in the state directory.
SOCKET_NAME: Final = "control.sock"
#: Bytes that the path of a Unix socket may have (unix(7): 108 with the zero at its end).
MAX_PATH_BYTES: Final = 107
#: Bytes of one request; commands are short.
MAX_REQUEST_BYTES: Final = 64 * 1024
#: Seconds that one connection may take, since the next one waits for it.
CONNECTION_SECS: Final = 2.0
#: Seconds that a command waits for the bus's answer; it may have to wait for another command's.
ANSWER_SECS: Final = 5.0

Command = Callable[[Mapping[str, Any]], Any]
"""Takes the request, gives what is sent back: plain data that JSON holds.

`Refused` tells the one who asked why not. Runs in the control socket's thread, so it only looks.
"""


class _Reply(msgspec.Struct, omit_defaults=True):
    """What comes back in one line."""

    ok: bool
    answer: Any = None
    error: str = ""


class ControlSocket(StoppableWorker):
    """Answers requests at the control socket, one connection at a time.

    `open` binds it, `start` begins to answer, `stop` ends that and `close` removes it. The thread
    blocks in one `poll` on what it waits for (the socket, or the one connection that it serves,
    for `CONNECTION_SECS` at most) and on the `Wakeup` that `stop` triggers. It ends after `stop`.
    It takes no lock for longer than reading counters does, so messages never wait for it.
    """

    def __init__(self, directory: Path, commands: Mapping[str, Command]) -> None:
        super().__init__(name="control socket")
        self.path = directory / SOCKET_NAME
        self._commands = commands
        # Both are made by open(); the worker only uses them.
        self._listener: socket.socket | None = None
        self._lock_fd: int | None = None
        # What stop() triggers, at any time.
        self._wake = Wakeup()

    def open(self) -> None:
        """Bind the socket; raises `ControlError` if another bus has it, or it cannot be made."""
        size = len(os.fsencode(self.path))
        if size > MAX_PATH_BYTES:
            raise ControlError(
                f"its path {self.path} has {size} bytes, and the system takes {MAX_PATH_BYTES}: "
                "give the bus a shorter state_directory"
            )
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = self._lock()
            self._remove_stale()
            self._listener = self._bind()
        except OSError as error:
            self.close()
            raise ControlError(f"{self.path} cannot be made: {error.strerror or error}") from error
        except ControlError:
            self.close()
            raise

    def run(self) -> None:
        """Answer until stopped."""
        assert self._listener is not None, "open() comes before start()"
        while self._ready(self._listener, select.POLLIN, None):
            connection, _ = self._listener.accept()
            with connection:
                connection.setblocking(False)
                # Whoever hangs up, says nothing or does not read costs itself only.
                with contextlib.suppress(OSError):
                    self._serve(connection)

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self._wake()

    def close(self) -> None:
        """Remove the socket and let go of the lock; for when the worker has ended. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            # Still under the lock, so it is ours.
            with contextlib.suppress(OSError):
                self.path.unlink()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
        self._wake.close()

    # Before the thread runs.

    def _lock(self) -> int:
        """Take the lock file and leave our process's number in it for whoever comes second."""
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise ControlError(
                f"{self.path} belongs to another bus that is running"
                f"{f' (process {owner})' if owner else ''}: give each a state_directory of its own"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return descriptor

    def _remove_stale(self) -> None:
        """Remove what a bus that died without its cleaning up has left."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise ControlError(f"{self.path} is there and no socket: move it away")
            self.path.unlink()

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Before bind, so that it is never open to others; a umask would be all threads'.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self.path))
            listener.listen()
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        return listener

    # In the thread.

    def _ready(self, channel: socket.socket, event: int, deadline: float | None) -> bool:
        """Wait for `event`; False once `deadline` (monotonic) is over or `stop` was called."""
        poll = select.poll()
        poll.register(channel, event)
        poll.register(self._wake.fileno(), select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        return bool(poll.poll(left)) and self._running()

    def _serve(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + CONNECTION_SECS
        request = self._read_line(connection, deadline)
        if request is None:
            return
        rest = memoryview(msgspec.json.encode(self._answer(request)) + b"\n")
        while rest and self._ready(connection, select.POLLOUT, deadline):
            rest = rest[connection.send(rest) :]

    def _read_line(self, connection: socket.socket, deadline: float) -> bytes | None:
        """Read one line, or all there is of one that is too long; None if none comes."""
        read = b""
        while b"\n" not in read and len(read) <= MAX_REQUEST_BYTES:
            if not self._ready(connection, select.POLLIN, deadline):
                return None
            chunk = connection.recv(MAX_REQUEST_BYTES)
            if not chunk:
                return None
            read += chunk
        return read

    def _answer(self, line: bytes) -> _Reply:
        if len(line) > MAX_REQUEST_BYTES:
            return _Reply(ok=False, error=f"a request has {MAX_REQUEST_BYTES} bytes at most")
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _Reply(ok=False, error="a request is one JSON object in one line")
        name = request.get("command")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(self._commands)
            return _Reply(ok=False, error=f"no such command: {name!r}; there is {known}")
        try:
            return _Reply(ok=True, answer=command(request))
        except Refused as error:
            return _Reply(ok=False, error=str(error))
        # A bug in a command must not end the door through which one would look for it.
        except Exception:
            logger.exception("the command %s fails", name)
            return _Reply(ok=False, error=f"{name} fails inside the bus; its log says why")


def ask(path: Path, command: str, timeout: float = ANSWER_SECS, **arguments: object) -> Any:
    """Send a command to the bus whose control socket is at `path`; gives its answer.

    `timeout` is in seconds and for all of it. Raises `BusUnreachable` if no bus answers there,
    `Refused` with the bus's reason if it does not do what was asked.
    """
    deadline = time.monotonic() + timeout
    request = msgspec.json.encode({"command": command, **arguments}) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(timeout)
            channel.connect(str(path))
            channel.sendall(request)
            line = _read_all(channel, deadline)
    except OSError as error:
        raise BusUnreachable(f"no bus answers at {path}: {_explained(path, error)}") from None
    try:
        reply = msgspec.json.decode(line, type=_Reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        what = "it is stopping" if not line else "what answers is no Threat Bus"
        raise BusUnreachable(f"no bus answers at {path}: {what}") from None
    if not reply.ok:
        raise Refused(f"the bus at {path} refuses: {reply.error}")
    return reply.answer


def _read_all(channel: socket.socket, deadline: float) -> bytes:
    chunks: list[bytes] = []
    while True:
        # 0 would mean not to block.
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = channel.recv(1024 * 1024)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def _explained(path: Path, error: OSError) -> str:
    """Say what is likely wrong, and what to do about it."""
    match error:
        case FileNotFoundError():
            return (
                "there is no socket. Is it running? If its state_directory is another, "
                "give its configuration with -c, or the socket with --socket"
            )
        case ConnectionRefusedError() if not path.is_socket():
            return f"it is no socket. The socket of a bus is {SOCKET_NAME} in its state directory"
        case ConnectionRefusedError():
            return "the bus that made the socket has ended without removing it. Start it again"
        case PermissionError():
            return "only the user that the bus runs as may connect. Run the command as that user"
        case TimeoutError():
            return "it is there and does not answer in time. Its log may say what it waits for"
        case _ if len(os.fsencode(path)) > MAX_PATH_BYTES:
            return f"a socket's path has {MAX_PATH_BYTES} bytes at most"
        case _:
            return error.strerror or str(error)
