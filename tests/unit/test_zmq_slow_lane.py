"""Frames that the fast path is unsure of: each is dealt with, in order, when that is possible."""

from __future__ import annotations

from typing import Any, cast

import pytest
from helpers.documents import indicator_message, name_of
from helpers.waiting import eventually, finished
from threatbus_zmq import receiver
from threatbus_zmq.receiver import Batch, SlowLane

from threatbus.errors import Undecided
from threatbus.messages import Message


class Reader:
    """Reads a frame as the indicator of that name, but only once it may."""

    def __init__(self) -> None:
        self.attempts = 0
        self.able = False

    def recognise(self, _: Any) -> list[Message]:
        return []

    def read(self, frame: bytes) -> tuple[list[Message], list[Any]]:
        self.attempts += 1
        if not self.able:
            raise Undecided("no descriptor is left")
        return [indicator_message(name=frame.decode())], []


class Collector:
    """What stands for inq and for the reject store."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rejected: list[str] = []

    def put_many(self, messages: list[Message]) -> None:
        self.names += map(name_of, messages)

    def add(self, _: str, reason: str, __: bytes) -> None:
        self.rejected.append(reason)


def test_a_frame_that_the_border_cannot_look_at_now_waits_with_those_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiver, "RETRY_SECS", 0.01)
    reader, collector = Reader(), Collector()
    lane = SlowLane(
        cast("Any", reader), cast("Any", collector), cast("Any", collector), lambda: None
    )
    lane.start()
    lane.take(Batch([b"first", b"second"]))
    eventually(lambda: reader.attempts > 2)
    assert (collector.names, collector.rejected) == ([], [])
    reader.able = True
    eventually(lambda: collector.names == ["first", "second"])
    assert collector.rejected == []
    lane.stop()
    finished(cast("Any", lane))


def test_a_bus_that_stops_does_not_wait_for_what_cannot_be_looked_at() -> None:
    reader, collector = Reader(), Collector()
    lane = SlowLane(
        cast("Any", reader), cast("Any", collector), cast("Any", collector), lambda: None
    )
    lane.start()
    lane.take(Batch([b"first"]))
    eventually(lambda: reader.attempts > 0)
    lane.stop()
    finished(cast("Any", lane))
    assert collector.rejected == ["internal error: Undecided"]
