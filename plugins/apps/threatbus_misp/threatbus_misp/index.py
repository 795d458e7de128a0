"""What was published of one MISP: the index on disk that changes are compared with.

MISP names the value of a deleted attribute only sometimes, tells of a deleted event without its
attributes, and of much not at all. What the index holds is enough to withdraw the right indicator,
and to tell what has changed while nobody listened.

Messages are written to the index (`outbox`) in the transaction that says they were published, and
taken out when the bus has passed them on: whenever the bus is killed, none is lost, and one may
come twice with the same id and `modified`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from threatbus.errors import ThreatBusError

#: Changes when the tables do; an index of another version is made anew, and healing fills it.
VERSION = 1
#: Attributes that are read with one statement.
READ_AT_ONCE = 500

_SCHEMA = """
CREATE TABLE attributes (
    uuid BLOB UNIQUE NOT NULL, event TEXT NOT NULL,
    pattern TEXT NOT NULL, pattern_type TEXT NOT NULL,
    created INTEGER NOT NULL, modified INTEGER NOT NULL, marking_refs TEXT NOT NULL,
    published INTEGER NOT NULL, content BLOB NOT NULL, false_positives INTEGER NOT NULL,
    expired_at INTEGER NOT NULL, edited INTEGER NOT NULL
);
CREATE INDEX attributes_by_event ON attributes (event);
CREATE TABLE events (uuid TEXT PRIMARY KEY, id TEXT NOT NULL, context BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX events_by_id ON events (id);
CREATE TABLE sightings (number INTEGER PRIMARY KEY, uuid TEXT UNIQUE NOT NULL);
CREATE TABLE outbox (number INTEGER PRIMARY KEY, messages BLOB NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


#: Sightings that are known again when they come again.
MAX_SIGHTINGS: Final = 100_000


class IndexUnusable(ThreatBusError):
    """The index cannot be opened or written: the disk is full, or the file is not ours."""


class Entry(msgspec.Struct, frozen=True):
    """What is known of one attribute that was published, or is about to be."""

    uuid: str
    event: str
    pattern: str
    pattern_type: str
    #: Moments of the first version and of the newest one, in milliseconds since 1970, UTC.
    created: int
    modified: int
    #: The markings of the newest version, joined by blanks.
    marking_refs: str
    #: Whether the newest version is an indicator that holds, rather than its withdrawal.
    published: bool
    #: Tells whether an attribute has changed since; empty before the first version.
    content: bytes
    false_positives: int = 0
    #: Epoch of the sighting that said it has expired; it returns with a later edit.
    expired_at: int = -1
    #: MISP's timestamp of the newest edit that is known, an epoch.
    edited: int = 0


class Index:
    """One SQLite file. Its owner sees to it that one thread at a time calls it.

    Everything happens within `transaction`, and is on disk when that has ended.
    """

    def __init__(self, path: Path) -> None:
        """Open the index, a new one if there is none; raises `IndexUnusable`."""
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What is not for everybody in MISP is not for everybody here.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            # Entries of this transaction that are not written yet: many at once cost a third.
            self._unwritten: dict[str, Entry] = {}
            # What was read for this transaction: one look for many costs a third, too.
            self._read: dict[str, Entry | None] = {}
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint = 4000")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
            elif version != VERSION:
                raise IndexUnusable(
                    f"{path} is of version {version}, this is {VERSION}: move it away, and the bus "
                    "compares all that there is"
                )
        except (sqlite3.Error, OSError) as error:
            raise IndexUnusable(f"the index {path} cannot be used: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of what happens within, or nothing of it; raises `IndexUnusable`."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._write()
                self._db.execute("COMMIT")
            except BaseException:
                self._unwritten.clear()
                # A full disk has SQLite roll back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._read.clear()
        except sqlite3.Error as error:
            raise IndexUnusable(f"the index {self._path} cannot be written: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Attributes.

    def entry(self, uuid: str) -> Entry | None:
        """Give what is known of an attribute."""
        if (unwritten := self._unwritten.get(uuid)) is not None:
            return unwritten
        if uuid in self._read:
            return self._read[uuid]
        row = self._db.execute("SELECT * FROM attributes WHERE uuid = ?", (_key(uuid),)).fetchone()
        return _entry(row) if row else None

    def read(self, uuids: Sequence[str]) -> None:
        """Read what is known of many attributes at once, for `entry` within this transaction."""
        for start in range(0, len(uuids), READ_AT_ONCE):
            asked = uuids[start : start + READ_AT_ONCE]
            self._read |= dict.fromkeys(asked)
            places = ", ".join("?" * len(asked))
            rows = self._db.execute(
                f"SELECT * FROM attributes WHERE uuid IN ({places})", list(map(_key, asked))
            )
            self._read |= {entry.uuid: entry for entry in map(_entry, rows)}

    def entries_of(self, event: str) -> list[Entry]:
        """Give what is known of an event's attributes."""
        self._write()
        rows = self._db.execute("SELECT * FROM attributes WHERE event = ?", (event,)).fetchall()
        return [_entry(row) for row in rows]

    def put(self, entry: Entry) -> None:
        """Remember an attribute, within a transaction."""
        self._unwritten[entry.uuid] = self._read[entry.uuid] = entry

    def _write(self) -> None:
        if self._unwritten:
            places = ", ".join("?" * len(Entry.__struct_fields__))
            self._db.executemany(
                f"INSERT OR REPLACE INTO attributes VALUES ({places})",
                [
                    (_key(entry.uuid), *msgspec.structs.astuple(entry)[1:])
                    for entry in self._unwritten.values()
                ],
            )
            self._unwritten.clear()

    def begin_comparison(self) -> None:
        """Begin to note which attributes there are in MISP."""
        self._db.execute(
            "CREATE TEMP TABLE IF NOT EXISTS seen (uuid BLOB PRIMARY KEY) WITHOUT ROWID"
        )
        self._db.execute("DELETE FROM seen")

    def see(self, uuids: Iterable[str]) -> None:
        """Note that there are attributes with these UUIDs."""
        self._db.executemany(
            "INSERT OR IGNORE INTO seen VALUES (?)", ((_key(uuid),) for uuid in uuids)
        )

    def events_of_unseen(self) -> list[str]:
        """Give the events with published attributes that have not been seen in this comparison."""
        rows = self._db.execute(
            "SELECT DISTINCT event FROM attributes "
            "WHERE published AND uuid NOT IN (SELECT uuid FROM seen)"
        ).fetchall()
        return [row[0] for row in rows]

    # Events.

    def event(self, uuid: str) -> bytes | None:
        """Give what was remembered of an event."""
        row = self._db.execute("SELECT context FROM events WHERE uuid = ?", (uuid,)).fetchone()
        return row[0] if row else None

    def event_with_id(self, number: str) -> str | None:
        """Give the UUID of the event that has this id in its MISP."""
        row = self._db.execute("SELECT uuid FROM events WHERE id = ?", (number,)).fetchone()
        return row[0] if row else None

    def put_event(self, uuid: str, number: str, context: bytes) -> None:
        """Remember an event."""
        self._db.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?)", (uuid, number, context))

    def events(self) -> Iterator[bytes]:
        """Give what was remembered of every event."""
        return (row[0] for row in self._db.execute("SELECT context FROM events"))

    # Sightings.

    def add_sighting(self, uuid: str) -> bool:
        """Remember a sighting; False if it was known."""
        added = self._db.execute("INSERT OR IGNORE INTO sightings (uuid) VALUES (?)", (uuid,))
        if not added.rowcount:
            return False
        number = added.lastrowid or 0
        self._db.execute("DELETE FROM sightings WHERE number <= ?", (number - MAX_SIGHTINGS,))
        return True

    def remove_sighting(self, uuid: str) -> bool:
        """Forget a sighting; False if it was not known."""
        return bool(self._db.execute("DELETE FROM sightings WHERE uuid = ?", (uuid,)).rowcount)

    # Messages that the bus may not have passed on yet.

    def put_out(self, messages: Sequence[tuple[str, bytes]]) -> int:
        """Remember messages (topic and document) until they are settled; gives their number."""
        row = (msgspec.msgpack.encode(messages),)
        return self._db.execute("INSERT INTO outbox (messages) VALUES (?)", row).lastrowid or 0

    def outbox(self) -> tuple[int, list[tuple[str, bytes]]]:
        """Give the messages that were not settled, in order, and the number of the last ones."""
        rows = self._db.execute("SELECT number, messages FROM outbox ORDER BY number").fetchall()
        messages = [message for _, data in rows for message in _MESSAGES.decode(data)]
        return (rows[-1][0] if rows else 0), messages

    def settle(self, number: int) -> None:
        """Forget the messages up to `number`."""
        self._db.execute("DELETE FROM outbox WHERE number <= ?", (number,))

    # Notes, such as until when everything is known.

    def note(self, name: str) -> str | None:
        """Give a note."""
        row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def put_note(self, name: str, value: str) -> None:
        """Write a note."""
        self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))


_MESSAGES: Final = msgspec.msgpack.Decoder(list[tuple[str, bytes]])


def _key(uuid: str) -> bytes:
    """Give a UUID as it is stored: UUIDs are random, so what is small is written faster."""
    return bytes.fromhex(uuid.replace("-", ""))


def _entry(row: tuple[Any, ...]) -> Entry:
    found = dict(zip(Entry.__struct_fields__, row, strict=True))
    found |= {"uuid": str(UUID(bytes=found["uuid"])), "published": bool(found["published"])}
    return Entry(**found)
