"""What the border did not let in: counted, logged, and kept for the operator.

The store is two files of JSON lines in the state directory, readable by the bus's user alone.
When the newer one is full it replaces the older one. A line holds `number` (it grows, also over
restarts), `time` (ISO 8601, UTC), `origin` (the door), `reason`, `size` (bytes of the message), and
the message itself in `data`, or base64 in `data_base64` where it is no UTF-8; what exceeds
`MAX_KEPT_BYTES` is cut off. `stored` reads it.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from threatbus.logger import RateLimited
from threatbus.workers import StoppableWorker

logger = logging.getLogger("threatbus.rejects")

#: The two files, the older one first.
FILE_NAMES: Final = ("rejected.1.jsonl", "rejected.jsonl")
#: Bytes of one rejected message that are kept.
MAX_KEPT_BYTES = 64 * 1024
#: Rejected messages that wait to be written; under a flood the newest of each second are kept.
MAX_PENDING_BYTES = 2 * 1024 * 1024
#: Seconds between two writes, which bounds what a flood of garbage does to the disk.
WRITE_INTERVAL_SECS = 1.0
#: Reasons that are counted apart; the rest counts as "other".
MAX_REASONS = 200


@dataclass(frozen=True)
class RejectedMessage:
    """One message that was not let in; `data` is cut to `MAX_KEPT_BYTES`, `size` is not."""

    time: datetime
    origin: str
    reason: str
    size: int
    data: bytes

    def to_line(self, number: int) -> bytes:
        """Give the JSON line of the store."""
        fields: dict[str, object] = {
            "number": number,
            "time": self.time.isoformat(),
            "origin": self.origin,
            "reason": self.reason,
            "size": self.size,
        }
        try:
            fields["data"] = self.data.decode()
        except UnicodeDecodeError:
            fields["data_base64"] = base64.b64encode(self.data).decode()
        return msgspec.json.encode(fields) + b"\n"


class StoredReject(msgspec.Struct, frozen=True):
    """One line of the store, as the operator reads it back."""

    number: int
    time: str
    origin: str
    reason: str
    size: int
    data: str | None = None
    data_base64: str = ""

    @property
    def content(self) -> bytes:
        """The bytes that were kept; fewer than `size` if they were cut off."""
        return base64.b64decode(self.data_base64) if self.data is None else self.data.encode()


def stored(directory: Path) -> Iterator[StoredReject]:
    """Read the store in a state directory, the oldest first; whether its bus runs or not.

    Lines that are damaged (the disk was full, the bus was killed) are left out. Raises OSError.
    """
    for name in FILE_NAMES:
        try:
            content = (directory / name).read_bytes()
        except FileNotFoundError:
            continue
        for line in content.splitlines():
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                yield msgspec.json.decode(line, type=StoredReject)


class RejectStore(StoppableWorker):
    """Takes rejected messages from any thread and writes them to disk in its own.

    `messages` and `size` (bytes on disk, both files together) bound the store. The worker is
    started by the bus; it blocks until something is added or `stop` is called, and ends when all
    that was added before `stop` is written.
    """

    def __init__(self, directory: Path, messages: int, size: int) -> None:
        super().__init__(name="reject store")
        self._directory = directory
        self._max_messages = max(1, messages // 2)
        self._max_bytes = max(1, size // 2)
        # Guards the four fields below; the worker waits on it.
        self._changed = threading.Condition()
        self._pending: deque[RejectedMessage] = deque()
        self._pending_bytes = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._not_kept = 0
        self._log = RateLimited(logger)
        # Lines in the newer file, None as long as nobody has counted; belongs to the worker.
        self._lines: int | None = None
        # The number of the next line, None before the first; belongs to the worker, too.
        self._next_number: int | None = None

    @property
    def path(self) -> Path:
        """The newer of the two files."""
        return self._directory / FILE_NAMES[1]

    @property
    def older_path(self) -> Path:
        """The older of the two files."""
        return self._directory / FILE_NAMES[0]

    @property
    def total(self) -> int:
        """How many messages have been rejected."""
        with self._changed:
            return self._counts.total()

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """How many messages have been rejected, by origin and kind of reason."""
        with self._changed:
            return dict(self._counts)

    @property
    def not_kept(self) -> int:
        """How many rejected messages were too many for the store, or could not be written."""
        with self._changed:
            return self._not_kept

    def add(self, origin: str, reason: str, data: bytes) -> None:
        """Count, log and keep one message that came in by the door `origin`. Never blocks."""
        origin, reason = _encodable(origin), _encodable(reason)
        kept = RejectedMessage(datetime.now(UTC), origin, reason, len(data), data[:MAX_KEPT_BYTES])
        # What follows the colon quotes the message; it would make every count a 1.
        kind = reason.partition(":")[0]
        with self._changed:
            key = (origin, kind)
            if key not in self._counts and len(self._counts) >= MAX_REASONS:
                key = (origin, "other")
            self._counts[key] += 1
            self._pending.append(kept)
            self._pending_bytes += len(kept.data)
            while (
                self._pending_bytes > MAX_PENDING_BYTES or len(self._pending) > self._max_messages
            ):
                self._pending_bytes -= len(self._pending.popleft().data)
                self._not_kept += 1
            self._changed.notify()
        self._log.log(
            (origin, kind),
            logging.WARNING,
            "rejected at %s: %s (%d bytes)",
            origin,
            reason,
            kept.size,
        )

    def run(self) -> None:
        """Write what was added, at most once a second."""
        while True:
            with self._changed:
                while not self._pending and self._running():
                    self._changed.wait()
                batch = list(self._pending)
                self._pending.clear()
                self._pending_bytes = 0
            if batch:
                self._write(batch)
            elif not self._running():
                break
            self._stop_asked.wait(WRITE_INTERVAL_SECS)
        self._log.flush()

    def stop(self) -> None:
        """Ask the worker to write what is left and end."""
        super().stop()
        with self._changed:
            self._changed.notify()

    def _write(self, batch: list[RejectedMessage]) -> None:
        lines: list[bytes] = []
        try:
            first = self._numbers_for(batch)
            lines = self._newest_that_fit(
                [message.to_line(number) for number, message in enumerate(batch, first)]
            )
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._rotate_for(sum(map(len, lines)), len(lines))
            self._append(lines)
        except OSError as error:
            self._log.log(
                "disk", logging.ERROR, "%d rejected messages not kept: %s", len(batch), error
            )
            lines = []
        with self._changed:
            self._not_kept += len(batch) - len(lines)

    def _numbers_for(self, batch: list[RejectedMessage]) -> int:
        """Give the number of the first message of `batch`, and go on after its last."""
        if self._next_number is None:
            self._next_number = 1 + max(
                (each.number for each in stored(self._directory)), default=0
            )
        first = self._next_number
        self._next_number += len(batch)
        return first

    def _newest_that_fit(self, lines: list[bytes]) -> list[bytes]:
        """Give the last of `lines` that one file may hold."""
        first, size = len(lines), 0
        while first > 0 and size + len(lines[first - 1]) <= self._max_bytes:
            first -= 1
            size += len(lines[first])
        return lines[first:]

    def _append(self, lines: list[bytes]) -> None:
        """Append all of `lines`, or (the disk being full) none."""
        with open(self.path, "ab", buffering=0, opener=_private) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(b"".join(lines))
                while rest:
                    rest = rest[file.write(rest) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
        self._lines = (self._lines or 0) + len(lines)

    def _rotate_for(self, size: int, lines: int) -> None:
        if not self.path.exists():
            self._lines = 0
            return
        if self._lines is None:
            # Of an earlier run, which may have been cut off in the middle of a line.
            content = self.path.read_bytes()
            self._lines = content.count(b"\n")
            if content and not content.endswith(b"\n"):
                self._append([b"\n"])
        if (
            self.path.stat().st_size + size > self._max_bytes
            or self._lines + lines > self._max_messages
        ):
            self.path.replace(self.older_path)
            self._lines = 0


def _encodable(text: str) -> str:
    """Give `text` without halves of surrogate pairs, which no JSON holds."""
    return text.encode("utf-8", "backslashreplace").decode()


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner can read, also if it was there before."""
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor
