"""What is counted, for the metrics and for whoever asks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

Counted = Literal[
    "indicators_left_out",
    "indicators_forgotten",
    "table_writes",
    "live_hits",
    "live_restarts",
    "retro_queries",
    "retro_timeouts",
    "retro_hits",
    "sightings",
    "hits_lost",
    "hits_unreadable",
    "transformations_failed",
    "sink_failed",
]


class Counters:
    """Totals since the start; may be used from any thread."""

    def __init__(self) -> None:
        # Guards the totals.
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter(dict.fromkeys(get_args(Counted), 0))

    def add(self, name: Counted, count: int = 1) -> None:
        """Count."""
        with self._lock:
            self._totals[name] += count

    def __getitem__(self, name: Counted) -> int:
        with self._lock:
            return self._totals[name]

    def totals(self) -> Mapping[str, int]:
        """Give all of them."""
        with self._lock:
            return dict(self._totals)
