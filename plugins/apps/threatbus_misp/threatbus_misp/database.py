"""SQLite files of the state directory: how they are opened, and put aside when they are broken."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

#: Seconds after which a file is taken to be in use: a bus that has it keeps it while it runs.
BUSY_SECS: Final = 0.5

_BROKEN: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _OtherVersion(sqlite3.DatabaseError):
    """A file with other tables."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


def opened(path: Path, schema: str, version: int, *, page_size: int = 4096) -> sqlite3.Connection:
    """Open a file with the tables of `schema`, a new one if there is none, for its owner alone.

    `version` changes when the tables do. Raises `OSError` and SQLite's errors, among them one that
    `is_broken` for a file of another version.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What is not for everybody in MISP is not for everybody here.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_SECS, check_same_thread=False, isolation_level=None)
    try:
        # Exclusive: of two buses with one file, each would know half of the truth.
        db.executescript(
            f"""
            PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA page_size = {page_size};
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = NORMAL;
            """
        )
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            db.executescript(f"BEGIN;{schema}PRAGMA user_version = {version};COMMIT;")
        elif found != version:
            raise _OtherVersion(f"it is of version {found}, not {version}")
    except BaseException:
        close(db)
        raise
    return db


def close(db: sqlite3.Connection) -> None:
    """Close a file, whatever state it is in."""
    with suppress(sqlite3.Error):
        db.close()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all of what happens within, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk has SQLite roll back by itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def is_broken(error: Exception) -> bool:
    """Say whether an error of SQLite's means that the file can be read no more."""
    return _code(error) in _BROKEN


def put_aside(path: Path) -> Path:
    """Make room for a new file; gives where the broken one is now."""
    aside = path.with_name(f"{path.name}.broken")
    path.replace(aside)
    for rest in ("-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)
    return aside


def reason_of(error: Exception) -> str:
    """Say what an error of SQLite's, or of the system's, means to the operator."""
    if _code(error) == sqlite3.SQLITE_BUSY:
        return "another bus uses it; give each a state_directory of its own"
    return str(error)


def _code(error: Exception) -> int:
    """Give SQLite's primary code; errors of the module's own have none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
