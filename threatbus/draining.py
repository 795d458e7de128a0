"""Waiting for those who read, at the end of a bus."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Seconds between two looks; nobody says when a foreign queue is read.
LOOK_SECS: Final = 0.005


def wait_while_it_drains(waiting: Callable[[], int], deadline: float, patience: float) -> None:
    """Return when nothing is `waiting` any more, or for `patience` seconds has not become less.

    At `deadline` (``time.monotonic()``) at the latest.
    """
    least, since = waiting(), time.monotonic()
    while least and time.monotonic() < min(deadline, since + patience):
        time.sleep(LOOK_SECS)
        now = waiting()
        if now < least:
            least, since = now, time.monotonic()
