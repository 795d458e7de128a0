"""How often the loop looks for frames: single ones at once, many together, crowds at once."""

from __future__ import annotations

import pytest
from threatbus_zmq.pace import CROWD, PACE_SECS, Pace


def looks(pace: Pace, *found: tuple[float, int]) -> list[bool]:
    """Say after each look, at a time and with so many frames, whether the next one waits."""
    waits = []
    for now, frames in found:
        pace.note(frames, now)
        waits.append(bool(pace.until))
    return waits


def test_frames_that_come_now_and_then_never_wait() -> None:
    assert looks(Pace(), (1.0, 1), (1.005, 1), (1.010, 3), (1.015, 1)) == [False] * 4


def test_of_frames_that_come_one_upon_the_other_the_second_makes_the_third_wait() -> None:
    pace = Pace()
    assert looks(pace, (1.0, 1), (1.0002, 1)) == [False, True]
    assert pace.until == pytest.approx(1.0002 + PACE_SECS)


def test_they_share_looks_as_long_as_there_are_several_in_one() -> None:
    fast = [(1.0, 1), (1.0002, 1), (1.0013, 5), (1.0024, 5), (1.0035, 2)]
    assert looks(Pace(), *fast) == [False, True, True, True, True]


@pytest.mark.parametrize("frames", [0, 1])
def test_a_look_that_was_waited_for_in_vain_ends_that(frames: int) -> None:
    pace = Pace()
    assert looks(pace, (1.0, 1), (1.0002, 1), (1.0013, frames)) == [False, True, False]


def test_crowds_never_wait() -> None:
    pace = Pace()
    assert looks(pace, (1.0, CROWD), (1.0001, CROWD), (1.0002, 500)) == [False] * 3
    assert looks(pace, (1.0003, 1), (1.0014, CROWD)) == [True, False]


def test_where_nothing_may_be_read_the_wait_is_over() -> None:
    pace = Pace()
    looks(pace, (1.0, 1), (1.0002, 1))
    pace.reset()
    assert not pace.until
