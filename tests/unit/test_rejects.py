"""The reject store: what it keeps, for whom, and what a flood or a full disk does to it."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.waiting import eventually, finished

from threatbus import rejects
from threatbus.rejects import MAX_KEPT_BYTES, RejectedMessage, RejectStore, stored


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "WRITE_INTERVAL_SECS", 0.0)


class Stores:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[RejectStore] = []

    def __call__(self, messages: int = 1000, size: int = 1 << 20) -> RejectStore:
        store = RejectStore(self.directory, messages, size)
        self.started.append(store)
        store.start()
        return store


@pytest.fixture
def start_store(tmp_path: Path) -> Iterator[Stores]:
    stores = Stores(tmp_path / "state")
    yield stores
    for store in stores.started:
        close(store)


def close(store: RejectStore) -> None:
    store.stop()
    finished(store)


def records(*paths: Path) -> list[dict[str, Any]]:
    lines = [line for path in paths if path.exists() for line in path.read_bytes().splitlines()]
    return [json.loads(line) for line in lines]


def test_a_rejected_message_is_kept_with_its_time_its_origin_and_the_reason(
    start_store: Stores,
) -> None:
    store = start_store()
    store.add("zmq", "no STIX: it is empty", b"{}")
    close(store)
    [record] = records(store.path)
    assert record.pop("time").endswith("+00:00")
    assert record.pop("number") == 1
    assert record == {"origin": "zmq", "reason": "no STIX: it is empty", "size": 2, "data": "{}"}


def test_what_is_no_text_is_kept_in_base64(start_store: Stores) -> None:
    store = start_store()
    store.add("zmq", "not UTF-8", b"\xff\x00\n")
    close(store)
    [record] = records(store.path)
    assert base64.b64decode(record["data_base64"]) == b"\xff\x00\n"


def test_half_a_surrogate_pair_in_a_reason_does_no_harm(start_store: Stores) -> None:
    store = start_store()
    store.add("zm\udc00q", "bad key '\ud800'", b"{}")
    close(store)
    assert records(store.path)[0]["reason"] == "bad key '\\ud800'"


def test_only_the_owner_can_read_it(start_store: Stores) -> None:
    old_mask = os.umask(0)
    try:
        store = start_store()
        store.add("zmq", "reason", b"secret")
        close(store)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_made_private(start_store: Stores) -> None:
    start_store.directory.mkdir()
    path = start_store.directory / "rejected.jsonl"
    path.touch(0o644)
    store = start_store()
    store.add("zmq", "reason", b"secret")
    close(store)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_everything_that_was_added_before_the_stop_is_written(
    start_store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "WRITE_INTERVAL_SECS", 3600.0)
    store = start_store()
    for number in range(50):
        store.add("zmq", "reason", str(number).encode())
    close(store)
    assert [record["data"] for record in records(store.path)] == [str(n) for n in range(50)]


def test_a_large_message_is_cut_and_its_size_is_told(start_store: Stores) -> None:
    store = start_store()
    store.add("zmq", "too large", b"x" * (MAX_KEPT_BYTES + 1))
    close(store)
    [record] = records(store.path)
    assert record["size"] == MAX_KEPT_BYTES + 1
    assert len(record["data"]) == MAX_KEPT_BYTES


def test_a_flood_is_bounded_on_disk_in_messages_and_keeps_the_newest(start_store: Stores) -> None:
    store = start_store(messages=20)
    for number in range(500):
        store.add("zmq", "reason", str(number).encode())
        if number % 7 == 0:
            eventually(lambda: not store._pending)
    close(store)
    kept = [int(record["data"]) for record in records(store.older_path, store.path)]
    assert len(kept) <= 20
    assert kept[-1] == 499
    assert kept == sorted(kept)
    assert store.total == 500


@pytest.mark.parametrize("data", [b"x" * 3000, b"\x00" * 3000, b"\xff" * 3000])
def test_a_flood_is_bounded_on_disk_in_bytes_however_much_the_encoding_adds(
    start_store: Stores, data: bytes
) -> None:
    store = start_store(messages=100_000, size=100_000)
    for _ in range(300):
        store.add("zmq", "reason", data)
    close(store)
    size = sum(path.stat().st_size for path in start_store.directory.iterdir())
    assert size <= 100_000
    assert records(store.older_path, store.path)
    assert store.not_kept > 200
    assert {path.name for path in start_store.directory.iterdir()} <= {
        "rejected.jsonl",
        "rejected.1.jsonl",
    }


def test_a_message_larger_than_the_store_is_counted_and_not_kept(start_store: Stores) -> None:
    store = start_store(size=1000)
    store.add("zmq", "reason", b"x" * 2000)
    close(store)
    assert records(store.path) == []
    assert (store.total, store.not_kept) == (1, 1)


def test_what_waits_to_be_written_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "MAX_PENDING_BYTES", 10_000)
    store = RejectStore(Path("/nowhere"), 1000, 1 << 20)
    for _ in range(100):
        store.add("zmq", "reason", b"x" * 1000)
    assert len(store._pending) == 10
    assert store._pending_bytes == 10_000
    assert store.not_kept == 90


def test_reasons_are_counted_by_kind_and_the_kinds_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rejects, "MAX_REASONS", 5)
    store = RejectStore(Path("/nowhere"), 1000, 1 << 20)
    for number in range(3):
        store.add("zmq", f"bad pattern: {number}", b"")
    for number in range(20):
        store.add("zmq", f"kind {number}", b"")
    assert store.counts["zmq", "bad pattern"] == 3
    assert store.counts["zmq", "other"] == 16
    assert len(store.counts) == 6
    assert store.total == 23


def test_the_log_has_a_line_with_reason_and_origin_but_not_one_per_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = RejectStore(Path("/nowhere"), 1000, 1 << 20)
    for _ in range(100):
        store.add("zmq", "bad pattern: no bracket", b"xyz")
    assert caplog.text.count("rejected at zmq: bad pattern: no bracket (3 bytes)") == 1


def test_a_directory_that_cannot_be_made_is_told_and_ends_nothing(
    start_store: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    start_store.directory.write_text("in the way")
    store = start_store()
    store.add("zmq", "reason", b"{}")
    eventually(lambda: store.not_kept == 1)
    assert "1 rejected messages not kept" in caplog.text
    start_store.directory.unlink()
    store.add("zmq", "reason", b"{}")
    close(store)
    assert len(records(store.path)) == 1
    assert store.failures == 0


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_whole_lines_only(
    start_store: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = start_store()
    store.add("zmq", "reason", b"before")
    eventually(lambda: records(store.path))
    real_open = open

    class Full:
        """A file with room for ten bytes more."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 10

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(data[: self.room])
            self.room -= written
            return int(written)

    with monkeypatch.context() as patch:
        patch.setattr(
            "builtins.open",
            lambda path, *args, **more: (
                Full(real_open(path, *args, **more))
                if path == store.path
                else real_open(path, *args, **more)
            ),
        )
        store.add("zmq", "reason", b"lost")
        eventually(lambda: store.not_kept == 1)
    store.add("zmq", "reason", b"after")
    close(store)
    assert [record["data"] for record in records(store.path)] == ["before", "after"]


def test_a_store_of_an_earlier_run_counts_and_its_torn_line_costs_only_itself(
    start_store: Stores,
) -> None:
    first = start_store(messages=20)
    for number in range(8):
        first.add("zmq", "reason", str(number).encode())
    close(first)
    with first.path.open("ab") as file:
        file.write(b'{"time": "2026-')
    second = start_store(messages=20)
    second.add("zmq", "reason", b"8")
    close(second)
    lines = second.path.read_bytes().splitlines()
    assert [json.loads(line)["data"] for line in lines if not line.endswith(b"2026-")] == [
        str(number) for number in range(9)
    ]
    third = start_store(messages=20)
    third.add("zmq", "reason", b"9")
    close(third)
    assert [record["data"] for record in records(third.path)] == ["9"]
    assert third.older_path.read_bytes().splitlines() == lines


# Reading it back


def test_what_is_kept_is_read_back_the_oldest_first(start_store: Stores) -> None:
    store = start_store()
    store.path.parent.mkdir(parents=True)
    older = RejectedMessage(datetime.now(UTC), "zmq", "reason", 1, b"1")
    store.older_path.write_bytes(older.to_line(1))
    store.add("zmq", "reason", b"\xff")
    store.add("zmq", "reason", b"3")
    close(store)
    assert numbers(start_store) == [1, 2, 3]
    assert [each.content for each in stored(start_store.directory)] == [b"1", b"\xff", b"3"]


def test_numbers_go_on_after_a_restart_and_a_damaged_line_costs_only_itself(
    start_store: Stores,
) -> None:
    first = start_store()
    first.add("zmq", "reason", b"1")
    close(first)
    with first.path.open("ab") as file:
        file.write(b'{"number": 2, "time')
    second = start_store()
    second.add("zmq", "reason", b"2")
    close(second)
    assert numbers(start_store) == [1, 2]
    assert second.not_kept == 0


def numbers(stores: Stores) -> list[int]:
    return [each.number for each in stored(stores.directory)]
