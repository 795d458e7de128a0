"""The gate: who waits, who is let through, who is told."""

from __future__ import annotations

import threading

from helpers.waiting import SOON, finished, wait_for

from threatbus.gate import Gate


def waiting_thread(gate: Gate) -> threading.Thread:
    thread = threading.Thread(target=gate.wait, daemon=True)
    thread.start()
    return thread


def test_a_new_gate_is_open() -> None:
    gate = Gate()
    assert gate.is_open
    assert gate.wait(0)


def test_a_shut_gate_lets_nobody_through_until_every_holder_has_opened_it() -> None:
    gate = Gate()
    gate.shut("a")
    gate.shut("b")
    thread = waiting_thread(gate)
    assert not gate.open("a")
    assert not gate.wait(0.01)
    assert thread.is_alive()
    assert gate.open("b")
    finished(thread)


def test_a_gate_keeps_the_one_upstream_shut_but_not_the_other_way_round() -> None:
    outer = Gate()
    inner = Gate(upstream=outer)
    inner.shut("outq")
    assert not outer.is_open
    outer.shut("inq")
    assert inner.open("outq")
    assert inner.is_open
    assert not outer.is_open
    outer.open("inq")
    assert outer.is_open


def test_who_waits_upstream_hears_when_the_last_gate_opens() -> None:
    outer = Gate()
    inner = Gate(upstream=outer)
    told: list[str] = []
    outer.on_open(lambda: told.append("outer"))
    inner.on_open(lambda: told.append("inner"))
    inner.shut("outq")
    thread = waiting_thread(outer)
    assert inner.open("outq")
    inner.announce()
    finished(thread)
    assert told == ["inner", "outer"]
    outer.shut("inq")
    inner.shut("outq")
    inner.open("outq")
    inner.announce()
    assert told == ["inner", "outer", "inner"]


def test_shutting_twice_needs_one_opening() -> None:
    gate = Gate()
    assert gate.shut("a")
    assert not gate.shut("a")
    assert gate.open("a")
    assert gate.is_open


def test_opening_what_one_does_not_hold_changes_nothing() -> None:
    gate = Gate()
    gate.shut("a")
    assert not gate.open("b")
    assert not gate.is_open


def test_a_wait_ends_without_success_when_its_time_is_over() -> None:
    gate = Gate()
    gate.shut("a")
    assert not gate.wait(0.01)


def test_callbacks_may_use_the_gate_and_one_that_fails_does_not_keep_the_others_from_it() -> None:
    gate = Gate()
    called = threading.Event()

    def fail() -> None:
        raise RuntimeError("a source has a bug")

    def shut_again() -> None:
        gate.shut("b")
        gate.open("b")
        called.set()

    gate.on_open(fail)
    gate.on_open(shut_again)
    gate.shut("a")
    assert gate.open("a")
    gate.announce()
    wait_for(called)


def test_a_retired_gate_lets_who_waits_through_and_cannot_be_shut_again() -> None:
    gate = Gate()
    gate.shut("a")
    thread = waiting_thread(gate)
    gate.retire()
    finished(thread)
    assert not gate.shut("b")
    assert gate.wait(SOON)
