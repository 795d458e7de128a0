"""Sightings for MISP: kept on disk, sent in order, once each."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.waiting import eventually, finished, in_threads, wait_for
from threatbus_misp import outbox_store as module
from threatbus_misp.outbox import Outbox, OutboxCounts
from threatbus_misp.outbox_store import OutboxError, OutgoingSighting
from threatbus_misp.rest_errors import MispDenied, MispInterrupted, MispRefusal, MispUnreachable

from threatbus.workers import Backoff

NAME = "http://misp"
UNKNOWN = "Could not add the Sighting. Reason: No valid attributes found that match the criteria."


def away(**more: Any) -> MispUnreachable:
    return MispUnreachable(NAME, "Connection refused", **more)


def lost() -> MispUnreachable:
    """A connection that ended before the answer."""
    return away(maybe_done=True)


class FakeMisp:
    """The interface of `MispApi`, with faults by the attribute: an error, before or after."""

    name = NAME

    def __init__(self) -> None:
        self.sightings: list[dict[str, Any]] = []
        # What was asked, in order: "add" or "find", and the attribute or value.
        self.calls: list[tuple[str, str]] = []
        # Called with the target before (`refuse`) or after (`lose`) a sighting is added.
        self.refuse: Callable[[str], Exception | None] = lambda _: None
        self.lose: Callable[[str], Exception | None] = lambda _: None
        self.refuse_search: Callable[[str], Exception | None] = lambda _: None
        # Clear to let calls hang until they are interrupted.
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()

    def add_sighting(self, *, running: Any = None, **sighting: Any) -> dict[str, Any]:
        target = sighting["attribute"] or sighting["value"]
        self._called("add", target, running)
        if (error := self.refuse(target)) is not None:
            raise error
        number = len(self.sightings) + 1
        added = {"id": str(number), "uuid": f"uuid-{number}", "attribute_id": target, **sighting}
        self.sightings.append(added)
        if (error := self.lose(target)) is not None:
            raise error
        return added

    def find_sightings(self, *, running: Any = None, **sighting: Any) -> list[dict[str, Any]]:
        target = sighting["attribute"] or sighting["value"]
        self._called("find", target, running)
        if (error := self.refuse_search(target)) is not None:
            raise error
        return [s for s in self.sightings if s.items() >= sighting.items()]

    def _called(self, what: str, target: str, running: Any) -> None:
        self.calls.append((what, target))
        self.asked.set()
        while not self.answers.wait(0.005):
            if not running():
                raise MispInterrupted(NAME)

    def seen(self) -> list[tuple[str, int]]:
        return [(s["attribute"] or s["value"], s["seen"]) for s in self.sightings]


def once(*errors: Exception) -> Callable[[str], Exception | None]:
    """Give one error after the other, then None."""
    left = list(errors)
    return lambda _: left.pop(0) if left else None


def for_ever(target: str, error: Callable[[], Exception]) -> Callable[[str], Exception | None]:
    return lambda found: error() if found == target else None


class Boxes:
    """Makes outboxes on one file, with the delays of a test."""

    def __init__(self, directory: Path, misp: FakeMisp) -> None:
        self.directory = directory
        self.misp = misp
        self._made: list[Outbox] = []

    def open(self, *, start: bool = True, **more: Any) -> Outbox:
        options = {"settle": 0.01, "backoff": Backoff(0.005, 0.02), **more}
        box = Outbox(self.directory, self.misp, **options)
        self._made.append(box)
        if start:
            box.start()
        return box

    def end(self, box: Outbox) -> None:
        box.stop()
        if box.ident is not None:
            finished(box)
        box.close()

    def end_all(self) -> None:
        for box in self._made:
            self.end(box)


@pytest.fixture
def misp() -> FakeMisp:
    return FakeMisp()


@pytest.fixture
def boxes(tmp_path: Path, misp: FakeMisp) -> Iterator[Boxes]:
    made = Boxes(tmp_path / "state", misp)
    yield made
    made.end_all()


def sighting(attribute: str | None = "a", seen: int = 1, **more: Any) -> OutgoingSighting:
    return OutgoingSighting(attribute, seen, **{"source": "zeek", **more})


def emptied(box: Outbox) -> None:
    eventually(lambda: box.counts.waiting == 0, what="an empty outbox")


# The way of a sighting.


def test_what_is_put_reaches_misp_with_all_its_fields(boxes: Boxes, misp: FakeMisp) -> None:
    """Time, count and source were lost, and the UUID stood in the wrong field."""
    box = boxes.open()
    assert box.put(sighting("a", 17, kind="1", source=" zeek@sensor1 "))
    emptied(box)
    (sent,) = misp.sightings
    assert (sent["attribute"], sent["value"]) == ("a", None)
    assert (sent["seen"], sent["kind"], sent["source"]) == (17, "1", "zeek@sensor1")
    eventually(lambda: box.counts == OutboxCounts(sent=1))


def test_sightings_of_an_attribute_arrive_in_the_order_they_were_put(
    boxes: Boxes, misp: FakeMisp
) -> None:
    misp.refuse = once(away(), away(maybe_done=True), away())
    box = boxes.open()
    for seen in range(20):
        box.put(sighting("ab"[seen % 2], seen))
    emptied(box)
    for attribute in "ab":
        assert [s for a, s in misp.seen() if a == attribute] == list(
            range("ab".index(attribute), 20, 2)
        )


def test_a_count_becomes_as_many_sightings_up_to_a_bound(boxes: Boxes, misp: FakeMisp) -> None:
    box = boxes.open(max_count=5)
    box.put(sighting("a", count=3))
    box.put(sighting("b", count=1_000_000))
    emptied(box)
    assert misp.seen() == [("a", 1)] * 3 + [("b", 1)] * 5


def test_a_value_is_the_target_where_there_is_no_attribute(boxes: Boxes, misp: FakeMisp) -> None:
    box = boxes.open()
    box.put(sighting(None, value="198.51.100.7"))
    emptied(box)
    assert misp.sightings[0]["attribute"] is None
    assert misp.sightings[0]["value"] == "198.51.100.7"


def test_a_value_is_the_fallback_for_an_attribute_that_misp_does_not_know(
    boxes: Boxes, misp: FakeMisp
) -> None:
    misp.refuse = for_ever("a", lambda: MispRefusal(NAME, UNKNOWN))
    box = boxes.open()
    box.put(sighting("a", value="evil.example"))
    emptied(box)
    assert misp.seen() == [("evil.example", 1)]
    assert box.counts.refused == 0


@pytest.mark.parametrize("fields", [{"attribute": None}, {"kind": "3"}])
def test_what_can_be_no_sighting_is_refused_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sighting"):
        OutgoingSighting(**{"attribute": "a", "seen": 1, **fields})


def test_text_and_time_that_no_database_takes_are_kept_all_the_same(
    boxes: Boxes, misp: FakeMisp
) -> None:
    box = boxes.open()
    assert box.put(sighting("a", 10**30, source="\ud800" + "x" * 300))
    assert box.put(sighting(None, -1, value="\udfff\0"))
    emptied(box)
    assert len(misp.sightings) == 2
    assert len(misp.sightings[0]["source"]) == 255
    assert not box.is_ours(**announced(uuid="\ud800", source="\ud800", seen=10**30))


def test_many_threads_put_at_once(boxes: Boxes, misp: FakeMisp) -> None:
    box = boxes.open()
    in_threads(
        *(lambda i=i: [box.put(sighting(f"{i}", seen)) for seen in range(50)] for i in range(4))
    )
    emptied(box)
    for i in range(4):
        assert [s for a, s in misp.seen() if a == f"{i}"] == list(range(50))


# MISP is away.


def test_put_does_not_wait_for_a_misp_that_hangs(boxes: Boxes, misp: FakeMisp) -> None:
    misp.answers.clear()
    box = boxes.open()
    box.put(sighting("a"))
    wait_for(misp.asked, "the first attempt")
    for seen in range(100):
        assert box.put(sighting("a", seen))
    assert box.counts.waiting == 101


def test_stop_interrupts_a_call_that_hangs(boxes: Boxes, misp: FakeMisp) -> None:
    misp.answers.clear()
    box = boxes.open()
    box.put(sighting("a"))
    wait_for(misp.asked, "the first attempt")
    box.stop()
    finished(box, 2.0)
    assert box.counts.waiting == 1


def test_stop_interrupts_the_wait_between_two_attempts(boxes: Boxes, misp: FakeMisp) -> None:
    misp.refuse = lambda _: away()
    box = boxes.open(backoff=Backoff(600, 600))
    box.put(sighting("a"))
    wait_for(misp.asked, "the first attempt")
    for seen in range(100):  # which do not hurry it
        box.put(sighting("b", seen))
    box.stop()
    finished(box, 2.0)
    assert misp.calls == [("add", "a")]


def test_an_idle_outbox_stops_at_once(boxes: Boxes) -> None:
    for _ in range(20):
        box = boxes.open(start=False)
        box.start()
        boxes.end(box)


def test_sightings_wait_until_misp_is_back_and_the_log_says_so(
    boxes: Boxes, misp: FakeMisp, caplog: pytest.LogCaptureFixture
) -> None:
    """One failure ended the worker for good, with a lock held that snapshots waited for."""
    caplog.set_level(logging.INFO, "threatbus.misp.outbox")
    misp.refuse = once(*(away() for _ in range(5)))
    box = boxes.open()
    for seen in range(3):
        box.put(sighting("a", seen))
    emptied(box)
    assert misp.seen() == [("a", 0), ("a", 1), ("a", 2)]
    assert misp.calls.count(("add", "a")) == 8
    lines = [record.getMessage() for record in caplog.records]
    assert any("Connection refused" in line and "next attempt in" in line for line in lines)
    assert len([line for line in lines if "Connection refused" in line]) <= 2
    assert any("takes sightings again" in line for line in lines)


def test_a_key_that_misp_does_not_accept_loses_nothing(
    boxes: Boxes, misp: FakeMisp, caplog: pytest.LogCaptureFixture
) -> None:
    denied = MispDenied(NAME, "Authentication failed", 403)
    misp.refuse = once(*[denied] * 4)
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert misp.seen() == [("a", 1)]
    eventually(lambda: box.counts == OutboxCounts(sent=1))
    assert "Authentication failed" in caplog.text
    assert ("find", "a") not in misp.calls


# What MISP does not want.


def test_a_refused_sighting_is_dropped_with_misps_reason_and_the_next_goes_on(
    boxes: Boxes, misp: FakeMisp, caplog: pytest.LogCaptureFixture
) -> None:
    misp.refuse = for_ever("a", lambda: MispRefusal(NAME, UNKNOWN))
    box = boxes.open()
    for _ in range(50):
        box.put(sighting("a"))
    box.put(sighting("b"))
    emptied(box)
    assert misp.seen() == [("b", 1)]
    eventually(lambda: box.counts == OutboxCounts(sent=1, refused=50))
    assert UNKNOWN in caplog.text
    boxes.end(box)
    assert caplog.text.count("does not take") <= 2


@pytest.mark.parametrize("answered", [True, False], ids=["500", "timeout"])
def test_one_sighting_that_misp_always_fails_with_does_not_hold_up_the_others(
    boxes: Boxes, misp: FakeMisp, answered: bool
) -> None:
    error = away(maybe_done=True, answered=answered)
    misp.refuse = for_ever("poison", lambda: error)
    box = boxes.open()
    box.put(sighting("poison"))

    def dropped() -> bool:
        box.put(sighting("good"))
        return box.counts.refused == 1

    eventually(dropped, what="the end of the sighting that cannot be sent")
    emptied(box)


def test_others_are_sent_first_also_where_the_delay_is_longer_than_the_wait_for_one_in_doubt(
    boxes: Boxes, misp: FakeMisp
) -> None:
    misp.refuse = for_ever("poison", lambda: away(maybe_done=True, answered=True))
    box = boxes.open(settle=0.01, backoff=Backoff(0.1, 0.1))
    box.put(sighting("poison"))
    box.put(sighting("good"))
    eventually(lambda: misp.seen() == [("good", 1)], what="the sighting that can be sent")


def test_no_sighting_is_given_up_while_misp_takes_none(boxes: Boxes, misp: FakeMisp) -> None:
    back = threading.Event()
    misp.refuse = lambda _: None if back.is_set() else away(maybe_done=True, answered=True)
    box = boxes.open()
    for attribute in ("a", "b"):
        box.put(sighting(attribute))
    eventually(lambda: len(misp.calls) > 30, what="many attempts")
    back.set()
    emptied(box)
    assert sorted(misp.seen()) == [("a", 1), ("b", 1)]


# Once.


def test_a_sighting_whose_answer_was_lost_is_looked_for_and_counts_once(
    boxes: Boxes, misp: FakeMisp
) -> None:
    misp.lose = once(lost())
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert misp.seen() == [("a", 1)]
    assert misp.calls == [("add", "a"), ("find", "a")]
    eventually(lambda: box.counts == OutboxCounts(sent=1))


def test_a_sighting_that_did_not_arrive_is_sent_again(boxes: Boxes, misp: FakeMisp) -> None:
    misp.refuse = once(lost(), lost())
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert misp.seen() == [("a", 1)]
    assert [what for what, _ in misp.calls] == ["add", "find", "add", "find", "add"]


def test_what_was_certainly_not_sent_is_not_looked_for(boxes: Boxes, misp: FakeMisp) -> None:
    misp.refuse = once(away(), away())
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert ("find", "a") not in misp.calls


def test_equal_sightings_are_told_apart_when_an_answer_is_lost(
    boxes: Boxes, misp: FakeMisp
) -> None:
    """Two sensors' reports of one second: the one in MISP is not taken for the lost one."""
    misp.refuse = once(*[None] * 1, lost())  # type: ignore[arg-type]
    box = boxes.open()
    for _ in range(3):
        box.put(sighting("a"))
    emptied(box)
    assert misp.seen() == [("a", 1)] * 3


@pytest.mark.parametrize("arrived", [True, False])
def test_a_count_is_right_however_often_answers_are_lost(
    boxes: Boxes, misp: FakeMisp, arrived: bool
) -> None:
    errors = once(lost(), lost(), lost())
    misp.lose, misp.refuse = (errors, misp.refuse) if arrived else (misp.lose, errors)
    box = boxes.open()
    box.put(sighting("a", count=5))
    emptied(box)
    assert misp.seen() == [("a", 1)] * 5
    eventually(lambda: box.counts.sent == 5)


def test_a_doubt_outlasts_a_key_that_is_not_accepted(boxes: Boxes, misp: FakeMisp) -> None:
    misp.lose = once(lost())
    misp.refuse_search = once(*[MispDenied(NAME, "expired", 403)] * 3)
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert misp.seen() == [("a", 1)]


def test_where_misp_cannot_be_searched_the_sighting_is_sent_again(
    boxes: Boxes, misp: FakeMisp, caplog: pytest.LogCaptureFixture
) -> None:
    misp.refuse = once(lost())
    misp.refuse_search = lambda _: MispRefusal(NAME, "no such route", 404)
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert misp.seen() == [("a", 1)]
    assert "may count twice" in caplog.text


def test_misp_has_time_to_finish_before_it_is_searched(boxes: Boxes, misp: FakeMisp) -> None:
    misp.lose = once(lost())
    box = boxes.open(settle=0.3)
    box.put(sighting("a"))
    box.put(sighting("b"))
    eventually(lambda: ("add", "b") in misp.calls)
    assert ("find", "a") not in misp.calls
    emptied(box)
    assert misp.calls[-1] == ("find", "a")


# On disk.


def test_what_waits_is_sent_after_the_next_start(boxes: Boxes, misp: FakeMisp) -> None:
    box = boxes.open(start=False)
    for seen in range(5):
        box.put(sighting("a", seen, count=2))
    boxes.end(box)
    again = boxes.open()
    assert again.counts.waiting <= 5
    emptied(again)
    assert misp.seen() == [("a", seen) for seen in range(5) for _ in range(2)]


def test_an_end_in_the_middle_of_an_attempt_makes_no_second_sighting(
    boxes: Boxes, misp: FakeMisp
) -> None:
    """The answer never came: MISP has the sighting, and the disk says only that it was tried."""
    arrived = threading.Event()

    def never_answered(_: str) -> Exception:
        arrived.set()
        return MispInterrupted(NAME)

    misp.lose = never_answered
    box = boxes.open()
    box.put(sighting("a"))
    wait_for(arrived)
    boxes.end(box)
    misp.lose = lambda _: None
    emptied(boxes.open())
    assert misp.seen() == [("a", 1)]


def test_misp_has_time_to_finish_what_a_killed_bus_has_sent(boxes: Boxes, misp: FakeMisp) -> None:
    misp.lose = once(MispInterrupted(NAME))
    box = boxes.open()
    box.put(sighting("a"))
    finished(box)
    boxes.end(box)
    again = boxes.open(settle=0.3)
    again.put(sighting("b"))
    emptied(again)
    assert misp.calls == [("add", "a"), ("add", "b"), ("find", "a")]


def test_the_oldest_are_dropped_and_counted_when_too_many_wait(
    boxes: Boxes, misp: FakeMisp, caplog: pytest.LogCaptureFixture
) -> None:
    box = boxes.open(start=False, max_waiting=10)
    for seen in range(25):
        box.put(sighting("a", seen))
    eventually(lambda: box.counts == OutboxCounts(waiting=10, dropped=15))
    assert "oldest dropped" in caplog.text
    box.start()
    emptied(box)
    assert [seen for _, seen in misp.seen()] == list(range(15, 25))


def test_the_bytes_on_disk_are_bounded_too(boxes: Boxes) -> None:
    box = boxes.open(start=False, max_bytes=100_000)
    for _ in range(20):
        box.put(sighting(None, value="x" * 1_000_000))
    assert box.counts.waiting == 1
    for _ in range(20):
        box.put(sighting("a", value="x" * 10_000))
    assert 8 <= box.counts.waiting <= 10


def test_a_disk_that_fails_costs_a_log_line(boxes: Boxes, caplog: pytest.LogCaptureFixture) -> None:
    box = boxes.open(start=False)
    box.close()
    assert not box.put(sighting("a"))
    assert not box.is_ours(**announced())
    assert box.counts.dropped == 1
    assert "is lost" in caplog.text


def test_a_file_that_is_no_database_is_put_aside(
    boxes: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    boxes.directory.mkdir()
    file = boxes.directory / "sightings.sqlite"
    file.write_bytes(b"no database at all" * 1000)
    box = boxes.open()
    box.put(sighting("a"))
    emptied(box)
    assert file.with_name("sightings.sqlite.broken").exists()
    assert "put aside" in caplog.text


@pytest.mark.parametrize("table", ["waiting", "sent"])
def test_a_file_that_is_broken_in_part_is_put_aside_and_later_sightings_are_sent(
    table: str, boxes: Boxes, misp: FakeMisp, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is read at the start, what was sent is written when MISP has taken something."""
    boxes.end(boxes.open(start=False))
    file = boxes.directory / "sightings.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as db:
        query = "SELECT rootpage FROM sqlite_master WHERE tbl_name = ?"
        pages = [row[0] for row in db.execute(query, (table,))]
    with file.open("r+b") as opened:
        for page in pages:
            opened.seek((page - 1) * 4096)
            opened.write(b"x" * 4096)
    box = boxes.open()
    box.put(sighting("a"))
    eventually(lambda: "put aside as sightings.sqlite.broken" in caplog.text)
    box.put(sighting("b"))
    emptied(box)
    assert ("b", 1) in misp.seen()
    assert file.with_name("sightings.sqlite.broken").exists()


def test_a_second_bus_with_the_same_file_is_an_error(boxes: Boxes) -> None:
    boxes.open()
    with pytest.raises(OutboxError, match="another bus uses it; give each a state_directory"):
        boxes.open()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path, misp: FakeMisp) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError):
        Outbox(tmp_path / "file" / "state", misp)


def test_only_the_owner_can_read_the_file(boxes: Boxes) -> None:
    boxes.open().put(sighting("a"))
    for file in boxes.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_what_is_remembered_of_sent_sightings_is_bounded(
    boxes: Boxes, misp: FakeMisp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SENT", 100)
    box = boxes.open()
    for seen in range(300):
        box.put(sighting("a", seen))
    emptied(box)
    boxes.end(box)
    with sqlite3.connect(boxes.directory / "sightings.sqlite") as db:
        (rows,) = db.execute("SELECT count(*) FROM sent").fetchone()
    assert 100 <= rows <= 110


# What MISP announces.


def announced(**fields: Any) -> dict[str, Any]:
    return {
        "uuid": "other",
        "source": "zeek",
        "kind": "0",
        "seen": 1,
        "attribute": "a",
        "value": "x|evil.example",
        **fields,
    }


def test_a_sighting_that_was_sent_from_here_is_known_again(boxes: Boxes, misp: FakeMisp) -> None:
    box = boxes.open()
    box.put(sighting("a"))
    box.put(sighting(None, 2, value="evil.example"))
    emptied(box)
    assert box.is_ours(**announced(uuid="uuid-1", source="?"))
    assert box.is_ours(**announced())
    assert box.is_ours(**announced(seen=2, attribute="z", value="y|evil.example"))
    for other in ({"source": "them"}, {"kind": "1"}, {"seen": 3}):
        assert not box.is_ours(**announced(**other))
    assert not box.is_ours(**announced(attribute="b", value=""))
    assert not box.is_ours(**announced(attribute="", value=""))


def test_an_announcement_that_is_faster_than_the_answer_is_known_too(
    boxes: Boxes, misp: FakeMisp
) -> None:
    misp.answers.clear()
    box = boxes.open()
    assert not box.is_ours(**announced())
    box.put(sighting("a"))
    wait_for(misp.asked)
    assert box.is_ours(**announced())


# Whatever happens.


def test_a_worker_that_fails_begins_again_and_sends_nothing_twice(
    boxes: Boxes, misp: FakeMisp
) -> None:
    misp.lose = once(ZeroDivisionError())
    box = boxes.open()
    box.put(sighting("a"))
    box.put(sighting("b"))
    emptied(box)
    assert box.failures == 1
    assert sorted(misp.seen()) == [("a", 1), ("b", 1)]
