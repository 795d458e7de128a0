"""What was published of one MISP: the index on disk that changes are compared with.

MISP names the value of a deleted attribute only sometimes, tells of a deleted event without its
attributes, and of much not at all. What the index holds is enough to withdraw the right indicator,
and to tell what has changed while nobody listened.

Messages are written to the index (`outbox`) in the transaction that says they were published, and
taken out when the bus has passed them on: whenever the bus is killed, none is lost, and one may
come twice with the same id and `modified`.

UUIDs are random, so every new one changes another page of the file. Entries are therefore written
twice: at once to a `journal`, one row for a transaction; and to the table when many have come
together, which takes a fraction of what writing them one by one does. Those of the journal are in
memory as well, so whoever reads does not see the difference.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from threatbus.errors import ThreatBusError
from threatbus_misp import database

logger = logging.getLogger("threatbus.misp.index")

#: Changes when the tables do; an index of another version is made anew, and healing fills it.
VERSION: Final = 2
#: Attributes that are read with one statement.
READ_AT_ONCE: Final = 500
#: Entries of the journal (a few hundred bytes each) after which they are written to the table.
MAX_JOURNALED: Final = 10_000
#: Sightings that are known again when they come again.
MAX_SIGHTINGS: Final = 100_000
#: Bytes of a page of the file, and kibibytes of it that are kept in memory.
PAGE_BYTES: Final = 16_384
CACHE_KIB: Final = 16 * 1024

#: Name of the note that says when an index had to be begun anew.
RENEWED: Final = "renewed"

_SCHEMA: Final = """
CREATE TABLE attributes (
    uuid BLOB UNIQUE NOT NULL, event BLOB NOT NULL, published INTEGER NOT NULL, entry BLOB NOT NULL
);
CREATE INDEX attributes_by_event ON attributes (event);
CREATE TABLE journal (number INTEGER PRIMARY KEY, entries BLOB NOT NULL);
CREATE TABLE events (uuid TEXT PRIMARY KEY, id TEXT NOT NULL, context BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX events_by_id ON events (id);
CREATE TABLE sightings (number INTEGER PRIMARY KEY, uuid TEXT UNIQUE NOT NULL);
CREATE TABLE outbox (number INTEGER PRIMARY KEY, messages BLOB NOT NULL);
CREATE TABLE missing (event TEXT PRIMARY KEY, whole INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class IndexUnusable(ThreatBusError):
    """The index cannot be opened or written: the disk is full, or the file is not ours."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
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

    Everything is written within `transaction`, and is on disk when that has ended; what only reads
    may be within `reading` instead. Both raise `IndexUnusable`.

    A file that SQLite cannot read, or that another version of the bus has written, is put aside,
    and an empty one takes its place: see `renewed`.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Open the index, a new one if there is none; raises `IndexUnusable`."""
        self._path = path
        self._now = now
        # Entries that are in the journal, and those of this transaction: neither is in the table.
        self._journaled: dict[str, Entry] = {}
        self._unwritten: dict[str, Entry] = {}
        # Whether this transaction has written the journal's to the table.
        self._flushed = False
        # What was read for this transaction: one look for many costs a third.
        self._read: dict[str, Entry | None] = {}
        # The number of the last messages in the outbox; grows also when the index is renewed.
        self._number = 0
        #: When the index had to be begun anew, an epoch; 0: never.
        self.renewed = 0
        try:
            try:
                self._db = self._opened()
            except sqlite3.DatabaseError as error:
                if not database.is_broken(error):
                    raise
                self._renew(str(error))
        except (sqlite3.Error, OSError) as error:
            raise self._unusable("opened", error) from error

    def _opened(self) -> sqlite3.Connection:
        db = database.opened(self._path, _SCHEMA, VERSION, page_size=PAGE_BYTES)
        try:
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            rows = db.execute("SELECT entries FROM journal ORDER BY number").fetchall()
            for entry in (entry for row in rows for entry in _ENTRIES.decode(row[0])):
                self._journaled[entry.uuid] = entry
            (last,) = db.execute("SELECT max(number) FROM outbox").fetchone()
            renewed = db.execute("SELECT value FROM notes WHERE name = ?", (RENEWED,)).fetchone()
        except BaseException:
            database.close(db)
            raise
        self._number = max(self._number, last or 0)
        self.renewed = int(renewed[0]) if renewed else 0
        return db

    def _renew(self, reason: str) -> None:
        """Put the file aside and begin anew."""
        aside = database.put_aside(self._path)
        logger.error(
            "the index %s cannot be read (%s): it is put aside as %s, and a new one begun. What "
            "was published before is compared with MISP as far as there is an api.key",
            self._path,
            reason,
            aside.name,
        )
        for kept in (self._journaled, self._unwritten, self._read):
            kept.clear()
        self._db = self._opened()
        self.renewed = int(self._now())
        self.put_note(RENEWED, str(self.renewed))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of what happens within, or nothing of it."""
        with self.reading("written"):
            try:
                with database.transaction(self._db):
                    yield
                    self._write()
                if self._flushed:
                    self._journaled.clear()
                else:
                    self._journaled |= self._unwritten
            finally:
                self._unwritten.clear()
                self._read.clear()
                self._flushed = False

    @contextmanager
    def reading(self, what: str = "read") -> Iterator[None]:
        """Translate what goes wrong within."""
        try:
            yield
        except sqlite3.Error as error:
            if database.is_broken(error):
                database.close(self._db)
                try:
                    self._renew(str(error))
                except (sqlite3.Error, OSError) as another:
                    raise self._unusable("begun anew", another) from another
            raise self._unusable(what, error) from error

    def _unusable(self, what: str, error: Exception) -> IndexUnusable:
        reason = database.reason_of(error)
        return IndexUnusable(f"the index {self._path} cannot be {what}: {reason}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Attributes.

    def entry(self, uuid: str) -> Entry | None:
        """Give what is known of an attribute."""
        found = self._unwritten.get(uuid) or self._journaled.get(uuid)
        if found is not None:
            return found
        if uuid in self._read:
            return self._read[uuid]
        row = self._db.execute(
            "SELECT entry FROM attributes WHERE uuid = ?", (_key(uuid),)
        ).fetchone()
        return _ENTRY.decode(row[0]) if row else None

    def read(self, uuids: Sequence[str]) -> None:
        """Read what is known of many attributes at once, for `entry` within this transaction."""
        for start in range(0, len(uuids), READ_AT_ONCE):
            asked = uuids[start : start + READ_AT_ONCE]
            self._read |= dict.fromkeys(asked)
            places = ", ".join("?" * len(asked))
            rows = self._db.execute(
                f"SELECT entry FROM attributes WHERE uuid IN ({places})", list(map(_key, asked))
            )
            self._read |= {entry.uuid: entry for entry in (_ENTRY.decode(row[0]) for row in rows)}

    def published_of(self, event: str) -> list[Entry]:
        """Give what is known of an event's attributes that are published; in a transaction."""
        self._flush()
        rows = self._db.execute(
            "SELECT entry FROM attributes WHERE event = ? AND published", (_key(event),)
        )
        return [_ENTRY.decode(row[0]) for row in rows.fetchall()]

    def has_any_of(self, event: str) -> bool:
        """Say whether any attribute of an event is known; within a transaction."""
        self._flush()
        found = self._db.execute("SELECT 1 FROM attributes WHERE event = ? LIMIT 1", (_key(event),))
        return found.fetchone() is not None

    def put(self, entry: Entry) -> None:
        """Remember an attribute, within a transaction."""
        self._unwritten[entry.uuid] = entry

    def _write(self) -> None:
        """Write what this transaction has put: to the journal, or to the table if it is much."""
        if self._flushed or len(self._journaled) + len(self._unwritten) >= MAX_JOURNALED:
            self._flush()
        elif self._unwritten:
            entries = _encode(list(self._unwritten.values()))
            self._db.execute("INSERT INTO journal (entries) VALUES (?)", (entries,))

    def _flush(self) -> None:
        """Write to the table what is not there yet; within a transaction."""
        entries = self._unwritten if self._flushed else self._journaled | self._unwritten
        if entries:
            # In order, so that each page of the file is written once.
            self._db.executemany(
                "INSERT OR REPLACE INTO attributes VALUES (?, ?, ?, ?)",
                sorted(map(_row, entries.values())),
            )
        if not self._flushed and self._journaled:
            self._db.execute("DELETE FROM journal")
        self._flushed = True

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

    def last_row(self) -> int:
        """Give the number of the last row of the table; within a transaction."""
        self._flush()
        (last,) = self._db.execute("SELECT max(rowid) FROM attributes").fetchone()
        return last or 0

    def events_of_unseen(self, first: int, end: int) -> list[str]:
        """Give the events with published attributes that this comparison has not seen.

        Of the rows from `first` to before `end`: a look at all of them takes its time.
        """
        rows = self._db.execute(
            "SELECT DISTINCT event FROM attributes WHERE rowid >= ? AND rowid < ? "
            "AND published AND uuid NOT IN (SELECT uuid FROM seen)",
            (first, end),
        )
        return [_text(row[0]) for row in rows.fetchall()]

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

    # Events to ask for.

    def put_missing(self, event: str, *, whole: bool) -> None:
        """Remember that an event, by id or UUID, is to be asked for."""
        self._db.execute(
            "INSERT INTO missing VALUES (?, ?) ON CONFLICT DO UPDATE SET whole = whole OR ?",
            (event, whole, whole),
        )

    def missing(self) -> list[str]:
        """Give the events that are to be asked for."""
        return [row[0] for row in self._db.execute("SELECT event FROM missing")]

    def is_whole_missing(self, event: str) -> bool:
        """Say whether all of an event is wanted, however old."""
        query = "SELECT 1 FROM missing WHERE event = ? AND whole"
        return self._db.execute(query, (event,)).fetchone() is not None

    def remove_missing(self, event: str) -> None:
        """Forget that an event is to be asked for."""
        self._db.execute("DELETE FROM missing WHERE event = ?", (event,))

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
        self._number += 1
        row = (self._number, _encode(messages))
        self._db.execute("INSERT INTO outbox VALUES (?, ?)", row)
        return self._number

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
_ENTRIES: Final = msgspec.msgpack.Decoder(list[Entry])
_ENTRY: Final = msgspec.msgpack.Decoder(Entry)
_encode: Final = msgspec.msgpack.Encoder().encode


def _key(uuid: str) -> bytes:
    """Give a UUID as it is stored: what is small is written faster. Nothing stays nothing."""
    return bytes.fromhex(uuid.replace("-", ""))


def _text(key: bytes) -> str:
    return str(UUID(bytes=key)) if key else ""


def _row(entry: Entry) -> tuple[bytes, bytes, bool, bytes]:
    return (_key(entry.uuid), _key(entry.event), entry.published, _encode(entry))
