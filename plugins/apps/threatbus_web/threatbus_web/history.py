"""What flowed in the last quarter of an hour, so that a page shows it when it is opened."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from threatbus import StoppableWorker
from threatbus.observe.view import BusView

#: Seconds between two samples, and how many are kept: a quarter of an hour.
INTERVAL_SECS: Final = 5.0
SAMPLES: Final = 181


@dataclass(frozen=True)
class _Sample:
    """Totals at one moment; `epoch` by the wall clock, `at` by the monotonic one."""

    epoch: float
    at: float
    taken_in: int
    handed_out: int
    rejected: int
    dropped: int
    waiting: int


class History(StoppableWorker):
    """Samples the totals of the bus; started by the plugin's `run`.

    It blocks in a wait of `INTERVAL_SECS` that `stop` ends, and ends after that.
    """

    def __init__(self, view: BusView) -> None:
        super().__init__(name="web history")
        self._view = view
        # Appended to by this thread alone; a copy of a deque is made in one step.
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)

    def run(self) -> None:
        """Sample until stopped."""
        while self._running():
            self._samples.append(self._sample())
            self._stop_asked.wait(INTERVAL_SECS)

    def points(self) -> dict[str, Any]:
        """Give, for each pair of samples: epoch, rates a second, and what waited.

        The last point reaches up to now, so that a page needs not wait for the next sample.
        """
        samples = list(self._samples)
        newest = self._sample()
        if samples and newest.at - samples[-1].at >= 1.0:
            samples.append(newest)
        return {
            "interval_seconds": INTERVAL_SECS,
            "span_seconds": INTERVAL_SECS * (SAMPLES - 1),
            "fields": ["time", "in", "out", "rejected", "dropped", "waiting"],
            "points": [_point(*pair) for pair in pairwise(samples)],
        }

    def _sample(self) -> _Sample:
        view = self._view
        handed_out = dropped = waiting = 0
        for _, record in view.records():
            handed_out += sum(record.delivered().values())
            dropped += sum(record.dropped_by_gone().values())
            for outlet in record.outlets():
                stats = outlet.queue.stats()
                dropped += stats.dropped
                waiting += stats.messages
        return _Sample(
            time.time(),
            time.monotonic(),
            view.intake.accepted,
            handed_out,
            view.rejects.total,
            dropped,
            waiting,
        )


def _point(before: _Sample, after: _Sample) -> list[float]:
    seconds = max(after.at - before.at, 1e-6)

    def rate(earlier: int, later: int) -> float:
        return round(max(0, later - earlier) / seconds, 2)

    return [
        round(after.epoch, 1),
        rate(before.taken_in, after.taken_in),
        rate(before.handed_out, after.handed_out),
        rate(before.rejected, after.rejected),
        rate(before.dropped, after.dropped),
        after.waiting,
    ]
