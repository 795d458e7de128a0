"""The file in which sightings wait for MISP, and which remembers those that MISP has."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from threatbus.errors import ThreatBusError
from threatbus_misp import database
from threatbus_misp.rest import source_as_kept

logger = logging.getLogger("threatbus.misp.outbox")

#: Sightings that MISP has and that are remembered, to know them again when MISP announces them.
MAX_SENT: Final = 100_000
#: Characters of a value; MISP compares no more.
MAX_VALUE: Final = 65_535
#: The last second that is kept; what lies beyond is no time at all.
_LAST_SECOND: Final = 2**40

#: Changes when the tables do.
VERSION: Final = 1
_SCHEMA: Final = """
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
class Waiting:
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


_COLUMNS: Final = ", ".join(f'"{field.name}"' for field in fields(Waiting))


class OutboxStore:
    """The queue on disk. Each method is one transaction; any thread may call it.

    There is one connection, used under a lock that is held for a transaction and no longer. A file
    that SQLite cannot read is put aside, and an empty one takes its place. The methods raise
    `sqlite3.Error`.
    """

    def __init__(self, path: Path, max_waiting: int, max_bytes: int) -> None:
        """Open the file, a new one if there is none; raises `OutboxError`."""
        self._path = path
        self._max_waiting = max(1, max_waiting)
        self._max_bytes = max_bytes
        # Guards all below.
        self._lock = threading.Lock()
        self._sent_since_pruned = MAX_SENT
        try:
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not database.is_broken(error):
                    raise
                self._renew(error)
        except (OSError, sqlite3.Error) as error:
            raise OutboxError(f"{path} cannot be opened: {database.reason_of(error)}") from error

    def _open(self) -> None:
        self._db = database.opened(self._path, _SCHEMA, VERSION)
        try:
            self._waiting, self._bytes = self._measured()
        except BaseException:
            database.close(self._db)
            raise

    def _renew(self, error: sqlite3.Error) -> None:
        """Put the file aside and begin anew."""
        aside = database.put_aside(self._path)
        logger.error(
            "%s cannot be read (%s): it is put aside as %s, and with it the sightings that waited",
            self._path,
            error,
            aside.name,
        )
        self._open()

    @property
    def waiting(self) -> int:
        """How many sightings wait."""
        return self._waiting

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            database.close(self._db)

    def put(self, sighting: OutgoingSighting, count: int) -> int:
        """Append a sighting; gives how many old ones had to make room."""
        attribute = None if sighting.attribute is None else _storable(sighting.attribute)
        value = None if sighting.value is None else _storable(sighting.value[:MAX_VALUE])
        source = source_as_kept(_storable(sighting.source))
        order = f"value:{value}" if attribute is None else attribute
        size = sum(len(each.encode()) for each in (order, value or "", source)) + 100
        seen = max(0, min(int(sighting.seen), _LAST_SECOND))
        row = (order, attribute, value, sighting.kind, source, seen, count, size)
        with self._transaction():
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

    def next(self, held: Collection[str]) -> Waiting | None:
        """Give the first sighting whose order is not held."""
        marks = ", ".join("?" * len(held))
        with self._reading():
            row = self._db.execute(
                f'SELECT {_COLUMNS} FROM waiting WHERE "order" NOT IN ({marks})'
                " ORDER BY id LIMIT 1",
                tuple(held),
            ).fetchone()
        return None if row is None else Waiting(*row)

    def orders_in_doubt(self) -> list[str]:
        """Give the orders of sightings of which nobody knows whether they have been sent."""
        with self._reading():
            return [row[0] for row in self._db.execute('SELECT "order" FROM waiting WHERE doubt')]

    def set_doubt(self, entry: Waiting, doubt: bool) -> None:
        """Note, before a sighting is sent, that its outcome is unknown, or that it is known."""
        with self._transaction():
            self._db.execute("UPDATE waiting SET doubt = ? WHERE id = ?", (doubt, entry.id))

    def sent(self, entry: Waiting, uuid: str) -> None:
        """Note that MISP has one more of a sighting's count."""
        with self._transaction():
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

    def drop(self, entry: Waiting) -> None:
        """Forget a sighting."""
        with self._transaction():
            self._delete(entry.id, entry.size)

    def fall_back(self, entry: Waiting) -> None:
        """Turn to the value, from the attribute."""
        with self._transaction():
            self._db.execute(
                "UPDATE waiting SET attribute = NULL, doubt = 0 WHERE id = ?", (entry.id,)
            )

    def confirmed(self, entry: Waiting) -> list[str]:
        """Give the UUIDs of the sightings that look like this one and are known to be in MISP."""
        with self._reading():
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
        with self._reading():
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

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Have the file to oneself; if it turns out to be broken, it is put aside."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                if database.is_broken(error):
                    database.close(self._db)
                    self._renew(error)
                raise

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, on disk and in what is known of it."""
        with self._reading():
            try:
                with database.transaction(self._db):
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
