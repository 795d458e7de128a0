"""Sightings on their way to MISP: on disk until MISP has them.

A sighting is put into a queue on disk, whether or not MISP is there, and sent by a worker of its
own. MISP recognises no repetition, and the UUID of a sighting is MISP's to give; so a sighting is
marked before it is sent, and where the outcome is not known (the connection broke, the bus was
killed), MISP is asked whether it has arrived before it is sent again. It arrives once.

What MISP refuses is dropped, with its reason in the log; but a key that MISP does not accept is a
matter for the operator, and the sightings wait until it is settled. When more wait than there is
room for, the oldest are dropped. All is counted: `Outbox.counts`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

from threatbus.errors import ThreatBusError
from threatbus.logger import RateLimited
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.rest import (
    MispDenied,
    MispInterrupted,
    MispRefusal,
    MispUnreachable,
    Running,
    source_as_kept,
)

logger = logging.getLogger("threatbus.misp.outbox")

#: Sightings that may wait, and the bytes of their texts.
MAX_WAITING: Final = 100_000
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
#: Sightings added for one with a count; MISP has no count, and a sensor may report millions.
MAX_COUNT: Final = 100
#: Sightings that MISP has and that are remembered, to know them again when MISP announces them.
MAX_SENT: Final = 100_000
#: Characters of a value; MISP compares no more.
MAX_VALUE: Final = 65_535
#: Seconds between two attempts while MISP is away: at first, and at most.
FIRST_RETRY_SECS: Final = 0.5
RETRY_CAP_SECS: Final = 30.0
#: Seconds after an attempt of unknown outcome before MISP is searched: it may still be at work.
SETTLE_SECS: Final = 10.0
#: How often MISP may fail with one sighting while it takes others, before that one is dropped.
MAX_STRIKES: Final = 5

#: Sightings whose failures are counted.
_MAX_STRUCK: Final = 1000
#: How MISP says that it has no such attribute.
_NO_ATTRIBUTE: Final = "No valid attributes found"
#: The last second that is kept; what lies beyond is no time at all.
_LAST_SECOND: Final = 2**40
#: Exclusive: two buses with one queue would send everything twice.
_SCHEMA: Final = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS waiting (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- What is kept in order: an attribute, or a value.
    "order" TEXT NOT NULL,
    attribute TEXT,
    value TEXT,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    seen INTEGER NOT NULL,
    -- How many are still to be sent.
    count INTEGER NOT NULL,
    size INTEGER NOT NULL,
    -- Whether one of them has been sent and nobody knows what became of it.
    doubt INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS waiting_order ON waiting ("order");
CREATE INDEX IF NOT EXISTS waiting_doubt ON waiting (doubt) WHERE doubt;
CREATE TABLE IF NOT EXISTS sent (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    seen INTEGER NOT NULL,
    uuid TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS sent_target ON sent (target, seen);
CREATE INDEX IF NOT EXISTS sent_uuid ON sent (uuid);
"""


class OutboxError(ThreatBusError):
    """The queue on disk cannot be used."""


@dataclass(frozen=True)
class OutgoingSighting:
    """A sighting for MISP: of the attribute with a UUID, or else of all that have a value.

    With both, the value is the fallback for an attribute that MISP does not have (any more).
    """

    attribute: str | None
    seen: int
    value: str | None = None
    kind: str = "0"
    """"0": seen, "1": false positive, "2": expiration."""

    source: str = ""
    count: int = 1

    def __post_init__(self) -> None:
        if self.attribute is None and self.value is None:
            raise ValueError("a sighting needs an attribute or a value")
        if self.kind not in ("0", "1", "2"):
            raise ValueError(f"MISP has no sightings of kind {self.kind!r}")


@dataclass(frozen=True)
class OutboxCounts:
    """What became of the sightings since the bus was started."""

    waiting: int = 0
    """On disk at the moment."""

    sent: int = 0
    refused: int = 0
    """Dropped because MISP does not want them."""

    dropped: int = 0
    """Dropped because there was no room, on disk or in the queue."""


class SightingsApi(Protocol):
    """What the worker needs of `rest.MispApi`."""

    @property
    def name(self) -> str:
        """The address of MISP."""

    def add_sighting(
        self,
        *,
        attribute: str | None = None,
        value: str | None = None,
        kind: str = "0",
        source: str = "",
        seen: int | None = None,
        running: Running | None = None,
    ) -> dict[str, Any]:
        """Add a sighting."""

    def find_sightings(
        self,
        *,
        attribute: str | None = None,
        value: str | None = None,
        kind: str = "0",
        source: str = "",
        seen: int,
        running: Running | None = None,
    ) -> list[dict[str, Any]]:
        """Find the sightings that `add_sighting` has made."""


class Outbox(StoppableWorker):
    """Takes sightings from any thread and sends them in its own.

    Everything that waits is in one file, ``directory/name``; one bus at a time may use it.
    The worker is started by the plugin; it blocks until something is put, until the time for
    the next attempt has come, or in a call of `api`, and `stop` ends each of these waits. What
    has not been sent by then is sent after the next start.
    """

    def __init__(
        self,
        directory: Path,
        api: SightingsApi,
        *,
        name: str = "sightings.sqlite",
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_WAITING_BYTES,
        max_count: int = MAX_COUNT,
        settle: float = SETTLE_SECS,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"sightings to {api.name}")
        self._api = api
        self._max_count = max_count
        self._settle = settle
        self._clock = clock
        self._store = _Store(directory / name, max_waiting, max_bytes)
        # Set when there is something new to send, or to stop.
        self._wake = threading.Event()
        self._log = RateLimited(logger)
        # Guards the three counts.
        self._lock = threading.Lock()
        self._sent = 0
        self._refused = 0
        self._dropped = 0
        # The rest belongs to the worker. The delay between attempts while MISP is away.
        self._retry = backoff or Backoff(FIRST_RETRY_SECS, RETRY_CAP_SECS)
        # When an order may be tried again (by the clock), where others need not wait for it.
        self._held: dict[str, float] = {}
        # Per sighting that MISP fails with: how often, and `_sent` when it last did.
        self._strikes: dict[int, tuple[int, int]] = {}
        # Whether the last attempt failed.
        self._away = False

    @property
    def counts(self) -> OutboxCounts:
        """How many sightings wait, and what became of the others."""
        with self._lock:
            return OutboxCounts(self._store.waiting, self._sent, self._refused, self._dropped)

    def put(self, sighting: OutgoingSighting) -> bool:
        """Keep a sighting until MISP has it. Waits for the disk, never for MISP.

        Gives False, with a log line, when the disk does not take it.
        """
        count = max(1, min(sighting.count, self._max_count))
        if sighting.count > count:
            self._log.log(
                "count",
                logging.WARNING,
                "a sighting of %s has count %d, of which MISP gets %d",
                sighting.attribute or sighting.value,
                sighting.count,
                count,
            )
        try:
            gone = self._store.put(sighting, count)
        except sqlite3.Error as error:
            self._count(dropped=1)
            self._log.log("disk", logging.ERROR, "a sighting for MISP is lost: %s", error)
            return False
        if gone:
            self._count(dropped=gone)
            self._log.log(
                "full",
                logging.WARNING,
                "too many sightings wait for MISP at %s: the %d oldest dropped",
                self._api.name,
                gone,
            )
        self._wake.set()
        return True

    def is_ours(self, sighting: Mapping[str, Any]) -> bool:
        """Say whether a sighting that MISP announces is one that came from here.

        Takes the ``Sighting`` of MISP's messages. The announcement may be faster than the answer
        to our own request, so one that is under way and looks the same is ours too.
        """
        attribute = sighting.get("Attribute")
        if not isinstance(attribute, Mapping):
            attribute = {}
        uuid = str(attribute.get("uuid") or sighting.get("attribute_uuid") or "")
        value = str(attribute.get("value") or "")
        targets = [each for each in (uuid, value, *value.split("|")) if each]
        try:
            seen = int(sighting.get("date_sighting") or 0)
        except (TypeError, ValueError):
            return False
        try:
            return self._store.knows(
                str(sighting.get("uuid") or ""),
                targets,
                str(sighting.get("type", "0")),
                str(sighting.get("source") or ""),
                seen,
            )
        except sqlite3.Error as error:
            self._log.log("disk", logging.ERROR, "sightings sent to MISP: %s", error)
            return False

    def stop(self) -> None:
        """Ask the worker to end; what is not sent yet stays on disk."""
        super().stop()
        self._wake.set()

    def close(self) -> None:
        """Close the file; for after the worker's end."""
        self._store.close()

    def run(self) -> None:
        """Send what waits, one after the other. Ends: stop()."""
        # MISP may be at work with what was sent just before a sudden end.
        settled = self._clock() + self._settle
        self._held = dict.fromkeys(self._store.orders_in_doubt(), settled)
        while True:
            self._wake.clear()
            if not self._running():
                break
            now = self._clock()
            self._held = {order: until for order, until in self._held.items() if until > now}
            entry = self._store.next(self._held)
            if entry is None:
                until = min(self._held.values(), default=None)
                self._wake.wait(None if until is None else max(0.0, until - now))
                continue
            try:
                self._send(entry)
            except MispInterrupted:
                break
            except MispRefusal as refusal:
                self._after_refusal(entry, refusal)
            except MispUnreachable as error:
                self._after_failure(entry, error)
            else:
                self._after_success()
        self._log.flush()

    # One attempt.

    def _send(self, entry: _Entry) -> None:
        """Send one sighting; if it may have been sent before, look for it in MISP first."""
        arguments = entry.arguments()
        if entry.doubt and self._is_there(entry, arguments):
            return
        self._store.set_doubt(entry, True)
        try:
            added = self._api.add_sighting(**arguments, running=self._running)
        except MispRefusal:
            self._store.set_doubt(entry, False)
            raise
        except MispUnreachable as error:
            if not error.maybe_done:
                self._store.set_doubt(entry, False)
            raise
        self._store.sent(entry, str(added.get("uuid") or ""))
        self._count(sent=1)

    def _is_there(self, entry: _Entry, arguments: dict[str, Any]) -> bool:
        try:
            found = self._api.find_sightings(**arguments, running=self._running)
        except MispDenied:
            raise
        except MispRefusal as refusal:
            self._log.log(
                "search",
                logging.WARNING,
                "%s; a sighting of %s is sent again and may count twice",
                refusal,
                entry.target,
            )
            return False
        uuid = self._arrived(entry, found)
        if uuid is None:
            return False
        self._store.sent(entry, uuid)
        self._count(sent=1)
        return True

    def _arrived(self, entry: _Entry, found: list[dict[str, Any]]) -> str | None:
        """Give the UUID of the sighting that is in doubt, if `found` holds it.

        `found` may also hold others of the same source and second, which MISP had confirmed.
        """
        per_attribute: dict[object, list[str]] = {}
        for sighting in found:
            uuids = per_attribute.setdefault(sighting.get("attribute_id"), [])
            uuids.append(str(sighting.get("uuid") or ""))
        most = max(per_attribute.values(), key=len, default=[])
        confirmed = self._store.confirmed(entry)
        if len(most) <= len(confirmed):
            return None
        return next((uuid for uuid in most if uuid not in confirmed), "")

    def _after_success(self) -> None:
        self._retry.reset()
        if self._away:
            self._away = False
            logger.info(
                "MISP at %s takes sightings again; %d wait", self._api.name, self._store.waiting
            )

    def _after_refusal(self, entry: _Entry, refusal: MispRefusal) -> None:
        if isinstance(refusal, MispDenied):
            self._wait(refusal)
            return
        unknown = _NO_ATTRIBUTE in refusal.reason
        if unknown and entry.attribute is not None and entry.value is not None:
            self._store.fall_back(entry)
        else:
            self._refuse(entry, refusal.reason)
        self._after_success()

    def _after_failure(self, entry: _Entry, error: MispUnreachable) -> None:
        if error.maybe_done and self._struck_out(entry):
            self._refuse(entry, error.reason)
            return
        self._wait(error)
        if error.maybe_done:
            # It alone may be the reason, so the others go first now, however long the delay was.
            self._held[entry.order] = self._clock() + self._settle

    def _struck_out(self, entry: _Entry) -> bool:
        """Say whether MISP fails with this sighting again and again, while it takes others."""
        strikes, sent = self._strikes.get(entry.id, (0, -1))
        if sent != self._sent:
            strikes += 1
        self._strikes[entry.id] = (strikes, self._sent)
        if len(self._strikes) > _MAX_STRUCK:
            del self._strikes[next(iter(self._strikes))]
        return strikes > MAX_STRIKES

    def _refuse(self, entry: _Entry, reason: str) -> None:
        self._store.drop(entry)
        self._strikes.pop(entry.id, None)
        self._count(refused=1)
        self._log.log(
            "refused",
            logging.WARNING,
            "MISP at %s does not take the sighting of %s: %s",
            self._api.name,
            entry.attribute or entry.value,
            reason,
        )

    def _wait(self, error: MispRefusal | MispUnreachable) -> None:
        """Wait for the next attempt. Ends early: stop()."""
        self._away = True
        delay = self._retry.next()
        self._log.log(
            "away",
            logging.WARNING,
            "%s; %d sightings wait, next attempt in %.1f s",
            error,
            self._store.waiting,
            delay,
        )
        self._stop_asked.wait(delay)

    def _count(self, sent: int = 0, refused: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self._sent += sent
            self._refused += refused
            self._dropped += dropped


@dataclass(frozen=True)
class _Entry:
    """A row of the table `waiting`, as it was read."""

    id: int
    order: str
    attribute: str | None
    value: str | None
    kind: str
    source: str
    seen: int
    count: int
    size: int
    doubt: int

    @property
    def target(self) -> str:
        """What MISP is told to add the sighting to."""
        return str(self.value if self.attribute is None else self.attribute)

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of the API's methods."""
        return {
            "attribute": self.attribute,
            "value": self.value if self.attribute is None else None,
            "kind": self.kind,
            "source": self.source,
            "seen": self.seen,
        }


_COLUMNS: Final = ", ".join(f'"{field.name}"' for field in fields(_Entry))


class _Store:
    """The queue on disk. Each method is one transaction; any thread may call it.

    There is one connection, used under a lock that is held for a transaction and no longer.
    """

    def __init__(self, path: Path, max_waiting: int, max_bytes: int) -> None:
        self._max_waiting = max(1, max_waiting)
        self._max_bytes = max_bytes
        # Guards all below.
        self._lock = threading.Lock()
        self._db = _opened(path)
        self._waiting, self._bytes = self._measured()
        self._sent_since_pruned = MAX_SENT

    @property
    def waiting(self) -> int:
        return self._waiting

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def put(self, sighting: OutgoingSighting, count: int) -> int:
        """Append a sighting; gives how many old ones had to make room."""
        attribute = None if sighting.attribute is None else _storable(sighting.attribute)
        value = None if sighting.value is None else _storable(sighting.value[:MAX_VALUE])
        source = source_as_kept(_storable(sighting.source))
        order = f"value:{value}" if attribute is None else attribute
        size = sum(len(each.encode()) for each in (order, value or "", source)) + 100
        seen = max(0, min(int(sighting.seen), _LAST_SECOND))
        row = (order, attribute, value, sighting.kind, source, seen, count, size)
        with self._lock, self._transaction():
            gone = 0
            while self._waiting and (
                self._waiting >= self._max_waiting or self._bytes + size > self._max_bytes
            ):
                oldest = self._db.execute(
                    "SELECT id, size FROM waiting ORDER BY id LIMIT 1"
                ).fetchone()
                self._delete(*oldest)
                gone += 1
            self._db.execute(
                'INSERT INTO waiting ("order", attribute, value, kind, source, seen, count, size)'
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._waiting += 1
            self._bytes += size
            return gone

    def next(self, held: Collection[str]) -> _Entry | None:
        """Give the first sighting whose order is not held."""
        marks = ", ".join("?" * len(held))
        with self._lock:
            row = self._db.execute(
                f'SELECT {_COLUMNS} FROM waiting WHERE "order" NOT IN ({marks})'
                " ORDER BY id LIMIT 1",
                tuple(held),
            ).fetchone()
        return None if row is None else _Entry(*row)

    def orders_in_doubt(self) -> list[str]:
        """Give the orders of sightings of which nobody knows whether they have been sent."""
        with self._lock:
            return [row[0] for row in self._db.execute('SELECT "order" FROM waiting WHERE doubt')]

    def set_doubt(self, entry: _Entry, doubt: bool) -> None:
        """Note, before a sighting is sent, that its outcome is unknown, or that it is known."""
        with self._lock, self._transaction():
            self._db.execute("UPDATE waiting SET doubt = ? WHERE id = ?", (doubt, entry.id))

    def sent(self, entry: _Entry, uuid: str) -> None:
        """Note that MISP has one more of a sighting's count."""
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT INTO sent (target, kind, source, seen, uuid) VALUES (?, ?, ?, ?, ?)",
                (entry.target, entry.kind, entry.source, entry.seen, uuid),
            )
            if entry.count > 1:
                self._db.execute(
                    "UPDATE waiting SET count = count - 1, doubt = 0 WHERE id = ?", (entry.id,)
                )
            else:
                self._delete(entry.id, entry.size)
            self._sent_since_pruned += 1
            if self._sent_since_pruned > MAX_SENT // 100:
                self._sent_since_pruned = 0
                self._db.execute(
                    "DELETE FROM sent WHERE id <= (SELECT max(id) FROM sent) - ?", (MAX_SENT,)
                )

    def drop(self, entry: _Entry) -> None:
        """Forget a sighting."""
        with self._lock, self._transaction():
            self._delete(entry.id, entry.size)

    def fall_back(self, entry: _Entry) -> None:
        """Turn to the value, from the attribute."""
        with self._lock, self._transaction():
            self._db.execute(
                "UPDATE waiting SET attribute = NULL, doubt = 0 WHERE id = ?", (entry.id,)
            )

    def confirmed(self, entry: _Entry) -> list[str]:
        """Give the UUIDs of the sightings that look like this one and are known to be in MISP."""
        with self._lock:
            rows = self._db.execute(
                "SELECT uuid FROM sent WHERE target = ? AND seen = ? AND kind = ? AND source = ?",
                (entry.target, entry.seen, entry.kind, entry.source),
            ).fetchall()
        return [str(row[0]) for row in rows]

    def knows(self, uuid: str, targets: list[str], kind: str, source: str, seen: int) -> bool:
        """Say whether a sighting was sent from here, or is under way."""
        targets = [_storable(target) for target in targets]
        source = _storable(source)
        if not 0 <= seen <= _LAST_SECOND:
            return False
        marks = ", ".join("?" * len(targets))
        with self._lock:
            for query, arguments in (
                ("SELECT 1 FROM sent WHERE uuid = ? AND uuid != ''", (_storable(uuid),)),
                (
                    f"SELECT 1 FROM sent WHERE target IN ({marks})"
                    " AND seen = ? AND kind = ? AND source = ?",
                    (*targets, seen, kind, source),
                ),
                (
                    f"SELECT 1 FROM waiting WHERE doubt AND coalesce(attribute, value) IN ({marks})"
                    " AND seen = ? AND kind = ? AND source = ?",
                    (*targets, seen, kind, source),
                ),
            ):
                if self._db.execute(f"{query} LIMIT 1", arguments).fetchone():
                    return True
        return False

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, on disk and in what is known of it; requires holding the lock."""
        assert self._lock.locked()
        try:
            with self._db:
                yield
        except sqlite3.Error:
            self._waiting, self._bytes = self._measured()
            raise

    def _measured(self) -> tuple[int, int]:
        query = "SELECT count(*), coalesce(sum(size), 0) FROM waiting"
        count, size = self._db.execute(query).fetchone()
        return int(count), int(size)

    def _delete(self, row: int, size: int) -> None:
        assert self._lock.locked()
        if self._db.execute("DELETE FROM waiting WHERE id = ?", (row,)).rowcount:
            self._waiting -= 1
            self._bytes -= size


def _storable(text: str) -> str:
    """Give `text` without halves of surrogate pairs, which SQLite does not take."""
    return text.encode("utf-8", "backslashreplace").decode()


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file, readable by its owner alone; one that is no database is put aside."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _connection(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_name(f"{path.name}.broken")
            logger.error("%s: %s; it is put aside as %s", path, error, aside.name)  # noqa: TRY400
            path.replace(aside)
            for rest in ("-wal", "-shm"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            return _connection(path)
    except (OSError, sqlite3.Error) as error:
        raise OutboxError(f"{path}: {error}") from error


def _connection(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(path, timeout=0.5, check_same_thread=False)
    try:
        db.executescript(_SCHEMA)
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.close()
        raise
    return db
