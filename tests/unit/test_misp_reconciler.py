"""The reconciler between its callers, the disk and the bus: order, races, failures of each."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers.waiting import finished, wait_for
from integration.misp_helpers import EVENT, attribute_message, captured, changed
from threatbus_misp import handover
from threatbus_misp import index as index_module
from threatbus_misp.answers import Answers
from threatbus_misp.config import InstanceConfig
from threatbus_misp.index import Index, IndexUnusable
from threatbus_misp.mapping import model
from threatbus_misp.messages import Messages
from threatbus_misp.missing import Missing
from threatbus_misp.reconciler import Reconciler

from threatbus.errors import Overflow
from threatbus.messages import Message


class FakeBus:
    """Takes messages; full while `room` is clear, and slow to pass on while `flows` is."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.room = threading.Event()
        self.room.set()
        self.waiting = threading.Event()
        self.flows = threading.Event()
        self.flows.set()
        self.stopping = False
        # How often somebody waited until all was passed on.
        self.waits = 0

    def put(self, messages: Sequence[Message]) -> None:
        self.waiting.set()
        wait_for(self.room, "room in the bus")
        if self.stopping:
            raise Overflow("stopping")
        self.messages += [json.loads(message.data) for message in messages]

    def has_passed_on(self, *, wait: bool = False) -> bool:
        self.waits += wait
        return wait or self.flows.is_set()

    def shown(self) -> list[tuple[str, bool]]:
        return [(each["pattern"], each.get("revoked", False)) for each in self.messages]


class Fixture:
    """A reconciler on a file, and what it asks for and rejects."""

    def __init__(self, path: Path, bus: FakeBus, **config: Any) -> None:
        self.bus = bus
        self.path = path
        self.index = Index(path)
        self.asked: list[str] = []
        self.rejected: list[str] = []
        section = msgspec.convert(config, InstanceConfig)
        self.reconciler = Reconciler(
            "misp",
            section,
            self.index,
            bus,
            self._ask,
            lambda reason, _: self.rejected.append(reason),
            lambda _: False,
            lambda: 1_800_000_000.0,
        )
        self.handover = self.reconciler.handover
        self.messages = Messages(section, self.reconciler)
        self.answers = Answers(section, self.reconciler)

    def _ask(self, event: str) -> bool:
        self.asked.append(event)
        return True

    def take(self, *documents: dict[str, Any]) -> None:
        self.messages.take([json.dumps(document).encode() for document in documents])

    def answer(self, *attributes: dict[str, Any], **event: Any) -> None:
        """Apply an event as REST gives it."""
        info = captured("attribute_add")["Event"]["info"]
        found = {"id": "1", "uuid": EVENT, "info": info, "Attribute": list(attributes), **event}
        self.answers.apply_event(model.read_event(found))


Make = Callable[..., Fixture]


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def make(tmp_path: Path, bus: FakeBus) -> Iterator[Make]:
    made: list[Fixture] = []

    def maker(**config: Any) -> Fixture:
        for each in made:
            each.index.close()
        made.append(Fixture(tmp_path / "misp" / "index.sqlite", bus, **config))
        return made[-1]

    yield maker
    for each in made:
        each.index.close()


def ip(last: int) -> str:
    return f"[ipv4-addr:value = '192.0.2.{last}']"


def fill_disk(index: Index) -> None:
    """Let the file grow no more."""
    (pages,) = index._db.execute("PRAGMA page_count").fetchone()
    index._db.execute(f"PRAGMA max_page_count = {pages}")


def empty_disk(index: Index) -> None:
    index._db.execute("PRAGMA max_page_count = 1000000")


# The bus.


def test_who_only_asks_something_does_not_wait_for_a_bus_that_is_full(
    make: Make, bus: FakeBus
) -> None:
    misp = make()
    bus.room.clear()
    source = threading.Thread(target=misp.take, args=(attribute_message(),), daemon=True)
    source.start()
    wait_for(bus.waiting, "the source at the full bus")
    asking = threading.Thread(target=misp.reconciler.knows, args=(EVENT,), daemon=True)
    asking.start()
    finished(asking)
    bus.room.set()
    finished(source)


def test_messages_reach_the_bus_in_the_order_in_which_the_index_has_them(
    make: Make, bus: FakeBus
) -> None:
    misp = make()
    added = captured("attribute_add")
    bus.room.clear()
    first = threading.Thread(target=misp.take, args=(added,), daemon=True)
    first.start()
    wait_for(bus.waiting, "the first source")
    deletion = captured("attribute_soft_delete")
    second = threading.Thread(target=misp.take, args=(deletion,), daemon=True)
    second.start()
    bus.room.set()
    finished(first)
    finished(second)
    assert [revoked for _, revoked in bus.shown()] == [False, True]


def test_what_waits_on_disk_is_bounded_while_the_bus_never_rests(
    make: Make, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "MAX_UNSETTLED", 10)
    misp = make()
    bus.flows.clear()
    for _ in range(35):
        misp.take(attribute_message())
        misp.handover.settle()
        assert len(misp.index.outbox()[1]) < 10
    assert bus.waits == 3


def test_what_a_bus_that_is_stopping_does_not_take_is_published_by_the_next_and_then_forgotten(
    make: Make, bus: FakeBus
) -> None:
    bus.stopping = True
    make().take(attribute_message(value="192.0.2.1"))
    assert bus.messages == []
    bus.stopping = False
    misp = make()
    misp.take(attribute_message(value="192.0.2.2"))
    assert bus.shown() == [(ip(1), False), (ip(2), False)]
    misp = make()
    misp.handover.recover()
    assert len(bus.messages) == 4
    misp.handover.settle()
    make().handover.recover()
    assert len(bus.messages) == 4


# Kills.


class Killed(BaseException):
    """The bus is not there any more."""


class Killer:
    """Kills a bus at a step: what is on disk then is all that the next one has."""

    def __init__(self, misp: Fixture, step: int, grave: Path) -> None:
        self._left = step
        self._home = misp.path.parent
        self._grave = grave
        db = misp.index._db
        misp.index._db = Steps(db, self)  # type: ignore[assignment]
        misp.handover._bus = Steps(misp.bus, self)

    def step(self) -> None:
        """Count one step; the last one is the end."""
        self._left -= 1
        if self._left == 0:
            shutil.copytree(self._home, self._grave)
            raise Killed


class Steps:
    """Tells a killer of each call, before and after it."""

    def __init__(self, inner: Any, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            self._killer.step()
            result = found(*args, **kwargs)
            self._killer.step()
            return result

        return called


def test_a_kill_between_any_two_steps_loses_nothing_and_repeats_only_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that entries move from the journal to the table meanwhile.
    monkeypatch.setattr(index_module, "MAX_JOURNALED", 3)
    one, two, three = (attribute_message(value=f"192.0.2.{number}") for number in (1, 2, 3))
    edited = changed(one, value="192.0.2.100", timestamp="1795487000") | {"action": "edit"}
    deleted = two | {"action": "soft-delete"}
    step, killed = 0, True
    while killed:
        step += 1
        bus, grave = FakeBus(), tmp_path / f"grave-{step}"
        misp = Fixture(tmp_path / f"home-{step}" / "index.sqlite", bus)
        killed = False
        Killer(misp, step, grave)
        try:
            misp.take(one, two)
            misp.handover.settle()
            misp.take(edited, deleted, three)
            misp.handover.settle()
        except Killed:
            killed = True
        if killed:
            again = Fixture(grave / "index.sqlite", bus)
            again.handover.recover()
            again.answer(as_rest(edited), as_rest(three))
            again.index.close()
        last = {found["id"]: (found["pattern"], "revoked" in found) for found in bus.messages}
        expected = {ip(100): False, ip(3): False}
        assert dict(last.values()) in (expected, expected | {ip(2): True}), step
        versions: dict[tuple[str, str], Any] = {}
        for found in bus.messages:
            assert versions.setdefault((found["id"], found["modified"]), found) == found, step
    assert step > 40


# The disk.


def test_nothing_of_what_a_full_disk_did_not_take_is_published_and_all_of_it_once_there_is_room(
    make: Make, bus: FakeBus
) -> None:
    misp = make()
    documents = [
        attribute_message(value=f"192.0.2.{number}", comment="x" * 9000) for number in range(20)
    ]
    fill_disk(misp.index)
    with pytest.raises(IndexUnusable, match=r"index\.sqlite cannot be written: .*full"):
        misp.take(*documents)
    assert bus.messages == []
    empty_disk(misp.index)
    misp.take(attribute_message(type="domain", value="small.example"))
    assert [pattern for pattern, _ in bus.shown()] == ["[domain-name:value = 'small.example']"]
    misp.take(*documents)
    assert len(bus.messages) == 21


# REST and messages, at the same time.


def as_rest(message: dict[str, Any]) -> dict[str, Any]:
    return dict(message["Attribute"])


def test_what_was_added_while_rest_answered_is_not_withdrawn_by_the_answer(
    make: Make, bus: FakeBus
) -> None:
    misp = make()
    old, new = attribute_message(value="192.0.2.1"), attribute_message(value="192.0.2.2")
    misp.take(old)
    with misp.answers.asking():
        misp.take(new)
        misp.answer(as_rest(old))
    assert bus.shown() == [(ip(1), False), (ip(2), False)]
    with misp.answers.asking():
        misp.answer(as_rest(old))
    assert bus.shown()[2:] == [(ip(2), True)]


@pytest.mark.parametrize("deletion", ["attribute_soft_delete", "attribute_hard_delete"])
def test_what_was_deleted_while_rest_answered_is_not_brought_back_by_the_answer(
    make: Make, bus: FakeBus, deletion: str
) -> None:
    misp = make()
    added = captured("attribute_add")
    misp.take(added)
    with misp.answers.asking():
        misp.take(captured(deletion))
        misp.answer(as_rest(added))
        misp.answers.apply_attributes([model.read_attribute(as_rest(added))])
    assert [revoked for _, revoked in bus.shown()] == [False, True]


@pytest.mark.parametrize("message", ["deleted", "published"])
def test_what_a_message_says_of_a_whole_event_is_newer_than_the_answer_of_rest(
    make: Make, bus: FakeBus, message: str
) -> None:
    misp = make()
    added = captured("attribute_add")
    misp.take(added)
    event = {"id": "1", "uuid": EVENT, "Attribute": []}
    with misp.answers.asking():
        misp.take({"Event": event} | ({"action": "delete"} if message == "deleted" else {}))
        misp.answer(as_rest(added))
        answer = as_rest(added) | {"Event": {"id": "1", "uuid": EVENT}}
        misp.answers.apply_attributes([model.read_attribute(answer)])
    assert [revoked for _, revoked in bus.shown()] == [False, True]


def test_a_message_that_rest_has_overtaken_is_left_out(make: Make, bus: FakeBus) -> None:
    misp = make()
    message = attribute_message(value="192.0.2.1", timestamp="1795486000")
    misp.answer(as_rest(message) | {"value": "192.0.2.2", "timestamp": "1795487000"})
    misp.take(message)
    assert bus.shown() == [(ip(2), False)]


def test_an_old_attribute_that_waits_for_its_events_tags_is_no_history(
    make: Make, bus: FakeBus
) -> None:
    misp = make(exclude_tags=["secret"])
    misp.answers.horizon = 1_900_000_000
    message = attribute_message("edit", value="192.0.2.1")
    misp.take(message)
    assert misp.asked == [EVENT]
    assert bus.messages == []
    assert not misp.reconciler.knows(message["Attribute"]["uuid"])
    # Also after a kill.
    misp = make(exclude_tags=["secret"])
    misp.answers.horizon = 1_900_000_000
    misp.answer(as_rest(message), as_rest(attribute_message(value="192.0.2.2")))
    assert bus.shown() == [(ip(1), False)]
    (found,) = bus.messages
    assert found["created"] == found["modified"]


@pytest.mark.parametrize("reference", ["../../users/view/1", "1/../../x", "", "-1", "9" * 30])
def test_an_event_is_asked_for_by_a_number_or_uuid_only(make: Make, reference: str) -> None:
    misp = make()
    misp.take({"Event": reference, "Server": "2", "action": "add_from_connected_server"})
    assert misp.asked == []
    assert misp.rejected == ["the event is neither a number nor a UUID"]


def test_an_event_that_rest_has_never_shown_is_not_taken_for_deleted(
    make: Make, bus: FakeBus
) -> None:
    misp = make(api={"key": "k" * 40})
    misp.take(attribute_message(value="192.0.2.1"))
    assert misp.answers.new_events() == [EVENT]
    assert misp.answers.apply_existence([EVENT], []) == 0
    assert misp.answers.new_events() == []
    assert misp.answers.apply_existence([EVENT], [EVENT]) == 0
    assert bus.shown() == [(ip(1), False)]
    assert misp.answers.apply_existence([EVENT], []) == 1
    assert bus.shown()[1:] == [(ip(1), True)]


# Sightings.


def false_positive(number: int) -> dict[str, Any]:
    found = captured("sighting_add_false_positive")
    found["Sighting"]["uuid"] = f"22222222-2222-4222-8222-22222222222{number}"
    return found


def test_a_false_positive_that_is_told_again_counts_once(make: Make, bus: FakeBus) -> None:
    misp = make(false_positive_limit=2)
    misp.take(captured("attribute_add"), false_positive(1), false_positive(1))
    misp.answers.apply_sightings([model.read_sighting(false_positive(1)["Sighting"])])
    assert [each["type"] for each in bus.messages] == ["indicator", "sighting"]
    misp.take(false_positive(2))
    assert [each.get("revoked") for each in bus.messages[2:]] == [True, None]


def test_false_positives_that_are_deleted_do_not_count(make: Make, bus: FakeBus) -> None:
    misp = make(false_positive_limit=2)
    deletion = false_positive(1) | {"action": "delete"}
    misp.take(captured("attribute_add"), false_positive(1), deletion, deletion, false_positive(2))
    assert [each["type"] for each in bus.messages] == ["indicator", "sighting", "sighting"]
    misp.take(false_positive(3))
    assert bus.messages[3]["revoked"] is True


@pytest.mark.parametrize(("moment", "withdrawn"), [("1795400000", False), ("1795500000", True)])
def test_an_expiration_that_rest_tells_of_counts_if_no_edit_is_later(
    make: Make, bus: FakeBus, moment: str, withdrawn: bool
) -> None:
    misp = make()
    misp.take(changed(captured("attribute_add"), timestamp="1795486613"))
    expired = captured("sighting_add_uuid")["Sighting"] | {"type": "2", "date_sighting": moment}
    misp.answers.apply_sightings([model.read_sighting(expired)])
    assert [revoked for _, revoked in bus.shown()][1:] == ([True] if withdrawn else [])


# What is missing.


def test_an_event_that_is_named_again_while_it_is_asked_for_is_asked_for_again() -> None:
    missing = Missing(can_ask=True)
    missing.event("7")
    named = missing.first_event()
    assert named is not None
    missing.event("7")
    missing.found(*named)
    assert missing.first_event() is not None
    missing.found(*(missing.first_event() or ("", 0)))
    assert missing.first_event() is None
