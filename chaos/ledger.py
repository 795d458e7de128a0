"""The account of one scenario: exact, since every message is numbered by its publisher."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Number(NamedTuple):
    """One message: whose it is, and the how manieth, from 0."""

    publisher: str
    number: int


@dataclass
class Sheet:
    """What one reader got. Belongs to the reader's thread until that has ended."""

    reader: str
    copies: Counter[Number] = field(default_factory=Counter)
    #: When each came first (`time.monotonic`).
    arrived: dict[Number, float] = field(default_factory=dict)
    #: Messages that came for the first time after a later one of their publisher.
    reordered: int = 0
    _newest: dict[str, int] = field(default_factory=dict)

    def note(self, number: Number) -> None:
        """Note one copy of a message."""
        self.copies[number] += 1
        if self.copies[number] > 1:
            return
        self.arrived[number] = time.monotonic()
        newest = self._newest.get(number.publisher, -1)
        if number.number < newest:
            self.reordered += 1
        else:
            self._newest[number.publisher] = number.number


class Ledger:
    """All that was sent, and the sheets of those who were to get it. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # When each message of a publisher was sent, by its number.
        self._sent: dict[str, list[float]] = {}
        self._sheets: list[Sheet] = []
        # Spans of time in which what is sent may be lost, since the promise excludes it.
        self._excluded: list[tuple[float, float]] = []
        #: When the fault was over (`time.monotonic`); None: there was no such moment.
        self.over_at: float | None = None

    def opens(self, reader: str) -> Sheet:
        """Give a sheet for a reader that is to get everything that is sent."""
        sheet = Sheet(reader)
        with self._lock:
            self._sheets.append(sheet)
        return sheet

    def sends(self, publisher: str) -> Number:
        """Give the number of the next message, which is sent now."""
        with self._lock:
            times = self._sent.setdefault(publisher, [])
            times.append(time.monotonic())
            return Number(publisher, len(times) - 1)

    def exclude(self, start: float, end: float) -> None:
        """What is sent in this span may be lost (`time.monotonic`)."""
        self._excluded.append((start, end))

    @property
    def sent(self) -> int:
        """How many messages were sent."""
        with self._lock:
            return sum(map(len, self._sent.values()))

    @property
    def owed(self) -> int:
        """How many deliveries there are to be."""
        return self.sent * len(self._sheets)

    @property
    def delivered(self) -> int:
        """How many of these there have been."""
        return sum(len(sheet.arrived) for sheet in self._sheets)

    @property
    def behind(self) -> int:
        """How many deliveries are still to come of what has been sent so far."""
        return self.owed - self.delivered

    @property
    def duplicated(self) -> int:
        """How many copies came beyond the first."""
        return sum(sheet.copies.total() - len(sheet.copies) for sheet in self._sheets)

    @property
    def reordered(self) -> int:
        """How many came for the first time after a later one of their publisher."""
        return sum(sheet.reordered for sheet in self._sheets)

    def lost(self) -> list[Number]:
        """Give what did not arrive, once per reader that lacks it."""
        return [
            each for sheet in self._sheets for each in self._numbers() if each not in sheet.arrived
        ]

    def lost_in_breach(self) -> list[Number]:
        """Give what of `lost` no exclusion covers."""
        return [
            each
            for each in self.lost()
            if not any(start <= self._sent_at(each) <= end for start, end in self._excluded)
        ]

    def foreign(self) -> int:
        """Say how many messages came that nobody has sent."""
        known = set(self._numbers())
        return sum(len(sheet.arrived.keys() - known) for sheet in self._sheets)

    def recovery(self) -> float | None:
        """Give the seconds from the end of the fault to the first message that was sent after it.

        At the reader that waited longest; None if there was no such moment or no such message.
        """
        if self.over_at is None or not self._sheets:
            return None
        firsts = []
        for sheet in self._sheets:
            later = [
                arrived
                for number, arrived in list(sheet.arrived.items())
                if self._sent_at(number) >= self.over_at
            ]
            if not later:
                return None
            firsts.append(min(later))
        return max(firsts) - self.over_at

    def _numbers(self) -> Iterable[Number]:
        with self._lock:
            counts = {publisher: len(times) for publisher, times in self._sent.items()}
        return (Number(name, n) for name, count in counts.items() for n in range(count))

    def _sent_at(self, number: Number) -> float:
        times = self._sent.get(number.publisher, [])
        return times[number.number] if number.number < len(times) else float("-inf")
