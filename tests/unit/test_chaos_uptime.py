"""The verdict over a day of uptime, and the messages of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.soak import Footprint
from chaos.stream import SIGHTING_EVERY, document, number_of
from chaos.uptime import SLACK_BYTES, Hour, verdict
from threatbus.fastpath import FastPath

FIRST = Hour(1, 1000, 10, 0, 0, Footprint(50_000_000, 11, 41), 1.5)
LAST = FIRST._replace(number=24)


def test_a_bus_that_is_what_it_was_has_not_grown() -> None:
    assert verdict(FIRST, LAST) == []


@pytest.mark.parametrize(
    ("last", "what"),
    [
        (replace(FIRST.footprint, memory=50_000_000 + SLACK_BYTES + 1), "memory grew by 8 MiB"),
        (replace(FIRST.footprint, threads=12), "threads grew from 11 to 12"),
        (replace(FIRST.footprint, descriptors=42), "descriptors grew from 41 to 42"),
    ],
)
def test_whatever_has_grown_is_named(last: Footprint, what: str) -> None:
    assert verdict(FIRST, LAST._replace(footprint=last)) == [what]


def test_what_went_wrong_on_the_way_is_named() -> None:
    assert verdict(FIRST, LAST._replace(wrong=3, failures=1, cost=3.0)) == [
        "processor time grew from 1.50 to 3.00",
        "3 messages lost, repeated or out of order",
        "1 failures in the log of the bus",
    ]


def test_every_message_of_the_day_is_one_that_the_border_knows() -> None:
    frames = [document(number) for number in range(2 * SIGHTING_EVERY)]
    heads, bodies = zip(*(frame.split(b" ", 1) for frame in frames), strict=True)
    assert FastPath().recognise(bodies) == [head.decode() for head in heads]
    assert [number_of(body) for body in bodies] == list(range(len(frames)))
    assert len(set(bodies)) == len(frames)


def test_what_comes_beside_is_no_message_of_the_day() -> None:
    assert number_of(b'{"type":"indicator","name":"visitor-1.example.com"}') is None
