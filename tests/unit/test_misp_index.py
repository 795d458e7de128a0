"""The index on disk: what it remembers, and what becomes of a file that is no good."""

from __future__ import annotations

import logging
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from threatbus_misp import index as module
from threatbus_misp.index import Entry, Index, IndexUnusable

EVENT = "f2aa1394-d4b7-4208-b85c-277e07d99db2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "misp" / "index.sqlite"


Reopen = Callable[[], Index]


@pytest.fixture
def reopen(path: Path) -> Iterator[Reopen]:
    """Opens the index, and closes it where it was open before."""
    opened: list[Index] = []

    def made() -> Index:
        for each in opened:
            each.close()
        opened.append(Index(path))
        return opened[-1]

    yield made
    opened[-1].close()


@pytest.fixture
def index(reopen: Reopen) -> Index:
    return reopen()


def entry(number: int = 0, **changes: object) -> Entry:
    made = Entry(
        uuid=str(uuid.UUID(int=number + (4 << 76) + (8 << 60))),
        event=EVENT,
        pattern=f"[domain-name:value = '{number}.example']",
        pattern_type="stix",
        created=1,
        modified=2,
        marking_refs="",
        published=True,
        content=b"content",
    )
    return msgspec.structs.replace(made, **changes)


def put(index: Index, *entries: Entry) -> None:
    with index.transaction():
        for each in entries:
            index.put(each)


def in_table(index: Index) -> int:
    count: int = index._db.execute("SELECT count(*) FROM attributes").fetchone()[0]
    return count


# What it remembers.


def test_an_entry_is_found_at_once_and_after_the_next_start(index: Index, reopen: Reopen) -> None:
    put(index, entry(1))
    assert index.entry(entry(1).uuid) == entry(1)
    again = reopen()
    assert again.entry(entry(1).uuid) == entry(1)
    assert again.entry(entry(2).uuid) is None


def test_entries_are_written_to_the_table_when_many_have_come_together(
    index: Index, reopen: Reopen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_JOURNALED", 10)
    for number in range(9):
        put(index, entry(number))
    assert in_table(index) == 0
    put(index, entry(9), entry(0, modified=7))
    assert in_table(index) == 10
    put(index, entry(10))
    again = reopen()
    found = [again.entry(entry(number).uuid) for number in range(11)]
    assert found == [entry(0, modified=7), *(entry(number) for number in range(1, 11))]


def test_an_event_has_its_published_attributes_wherever_they_are_written(index: Index) -> None:
    put(index, entry(1), entry(2), entry(3))
    with index.transaction():
        index.put(entry(2, published=False))
        index.put(entry(4))
        found = {each.uuid for each in index.published_of(EVENT)}
    assert found == {entry(number).uuid for number in (1, 3, 4)}


def test_what_is_undone_leaves_what_was_there_before(index: Index, reopen: Reopen) -> None:
    put(index, entry(1))

    def fail() -> None:
        with index.transaction():
            index.put(entry(1, modified=9))
            index.put(entry(2))
            # Writes the journal to the table.
            index.published_of(EVENT)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert index.entry(entry(1).uuid) == entry(1)
    assert index.entry(entry(2).uuid) is None
    again = reopen()
    assert again.entry(entry(1).uuid) == entry(1)


def test_the_file_is_for_its_owner_alone(index: Index, path: Path) -> None:
    put(index, entry())
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# Files that are no good.


def test_a_file_that_is_no_database_is_put_aside_and_a_new_one_begun(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"nonsense " * 1000)
    index = Index(path, now=lambda: 1_800_000_000.5)
    put(index, entry(1))
    assert index.renewed == 1_800_000_000
    assert path.with_name("index.sqlite.broken").read_bytes().startswith(b"nonsense")
    assert "is put aside as index.sqlite.broken" in caplog.text
    index.close()
    again = Index(path)
    assert again.renewed == 1_800_000_000
    assert again.entry(entry(1).uuid) == entry(1)
    again.close()


def test_a_file_of_another_version_is_put_aside(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1")
    Index(path).close()
    assert path.with_name("index.sqlite.broken").exists()


def test_a_file_that_breaks_while_it_is_in_use_is_put_aside(
    index: Index,
    reopen: Reopen,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "MAX_JOURNALED", 1)
    put(index, *(entry(number) for number in range(2000)))
    with index.transaction():
        number = index.put_out([("stix2/indicator", b"{}")])
    query = "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'attributes'"
    pages = [row[0] for row in index._db.execute(query).fetchall()]
    index.close()
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * 16384)
            file.write(b"x" * 16384)
    index = reopen()
    assert index.renewed == 0
    with pytest.raises(IndexUnusable, match="malformed"):
        put(index, *(entry(number) for number in range(2000)))
    assert "is put aside" in caplog.text
    assert index.renewed > 0
    put(index, entry(1))
    assert index.entry(entry(1).uuid) == entry(1)
    with index.transaction():
        # Whoever settles what was handed over before means other messages.
        assert index.put_out([("stix2/indicator", b"{}")]) > number


@pytest.mark.parametrize("harm", ["a file in place of the directory", "in use", "a directory"])
def test_a_file_that_cannot_be_used_is_named(path: Path, harm: str) -> None:
    other = None
    if harm == "in use":
        other = Index(path)
    elif harm == "a directory":
        path.mkdir(parents=True)
    else:
        path.parent.write_text("")
    with pytest.raises(IndexUnusable, match=r"the index .*index\.sqlite cannot be opened: "):
        Index(path)
    if other is not None:
        other.close()


def test_a_disk_that_is_full_is_an_error_and_nothing_of_it_is_written(
    index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    (pages,) = index._db.execute("PRAGMA page_count").fetchone()
    index._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(IndexUnusable, match=r"cannot be written: .*full"):
        put(index, *(entry(number) for number in range(5000)))
    assert index.entry(entry(1).uuid) is None
    assert not caplog.records
    index._db.execute("PRAGMA max_page_count = 1000000")
    put(index, entry(1))
    assert index.entry(entry(1).uuid) == entry(1)
