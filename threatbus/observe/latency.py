"""How long a message takes from its acceptance until its reader has it.

Not every message is timed. A queue follows one after the other, and times one of those about every
`threatbus.queues.TIMING_SECS`. So one that is read quickly gives a hundred samples a second at
most, and one that is not read gives none, but says for how long its message has waited.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import Final

#: Seconds; upper bounds of the buckets, from one turn of a loop to a broker that was away.
BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
    600.0,
)  # fmt: skip
#: Seconds within which the times of two batches need not be told apart.
RESOLUTION_SECS: Final = 0.001
#: Batches whose time of acceptance is remembered.
MAX_ARRIVALS: Final = 4096


class Histogram:
    """Durations in seconds, sorted into `BUCKETS`. Safe to use from several threads."""

    def __init__(self) -> None:
        # Guards the fields below.
        self._lock = threading.Lock()
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        bucket = bisect_left(BUCKETS, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += seconds

    def read(self) -> tuple[list[int], float]:
        """Give the cumulative count of each bucket, the last one being all, and the sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class Arrivals:
    """When this bus accepted a message, by its id.

    The newest batch is known exactly, those before it to `RESOLUTION_SECS`. Of older ones every
    second is forgotten again and again, so that the time of one that has been under way for long
    is known the less exactly, and never lost.
    """

    def __init__(self, limit: int = MAX_ARRIVALS) -> None:
        self._limit = limit
        # First id of the newest batch and its time: one reference, so it is read as a whole.
        self._newest = (0, 0.0)
        # When the next batch is remembered beyond its being the newest; belongs to note().
        self._due = 0.0
        # Guards the two lists, which grow together: first id of a batch, monotonic time.
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._times: list[float] = []

    def note(self, first_id: int, now: float) -> None:
        """Note that the batch that begins with `first_id` was accepted.

        Called in the order of the ids, by one thread at a time.
        """
        self._newest = (first_id, now)
        if now < self._due:
            return
        self._due = now + RESOLUTION_SECS
        with self._lock:
            self._ids.append(first_id)
            self._times.append(now)
            if len(self._ids) > self._limit:
                del self._ids[1 : self._limit // 2 : 2]
                del self._times[1 : self._limit // 2 : 2]

    def time_of(self, message_id: int | str) -> float | None:
        """Give the time of acceptance; None for a message of another bus, and one without id."""
        if not isinstance(message_id, int) or not message_id:
            return None
        first_id, accepted = self._newest
        if message_id >= first_id:
            return accepted
        with self._lock:
            place = bisect_right(self._ids, message_id) - 1
            return self._times[place] if place >= 0 else None


class Stopwatch:
    """Times messages for one plugin; what a `MessageQueue` asks and tells."""

    def __init__(self, arrivals: Arrivals, histogram: Histogram) -> None:
        self._arrivals = arrivals
        self._histogram = histogram

    def started(self, message_id: int | str) -> float | None:
        """Give the monotonic time at which a message was accepted, if it is known."""
        return self._arrivals.time_of(message_id)

    def stopped(self, started: float) -> None:
        """Note that a message which was accepted at `started` has been taken just now."""
        self._histogram.observe(time.monotonic() - started)
