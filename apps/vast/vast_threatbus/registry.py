"""Which indicators are current, and under which key of the lookup table."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple

from threatbus.client import Indicator
from vast_threatbus.mapping import Watched, watched

#: Entries that the list of expiries may have beyond what is current before it is cleaned.
SLACK: Final = 1000
#: What is doubted within so many seconds is forgotten together.
DOUBT_SECS: Final = 60.0


class Change(Enum):
    """What an indicator has changed."""

    NEW = "new"
    """It is looked for from now on, or by another value than before."""
    NONE = "none"
    """All is as it was."""
    GONE = "gone"
    """It was looked for, and is no longer."""
    LEFT_OUT = "left out"
    """It cannot be looked for: it is of a kind that a lookup does not find."""
    TOO_MANY = "too many"
    """It is not looked for, as there are as many as may be kept."""


class _Known(NamedTuple):
    wanted: Watched
    until: datetime | None
    # How often the registry had been doubted when the bus last named it.
    doubts: int


class Registry:
    """The current indicators; may be used from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Guards everything below.
        self._lock = threading.Lock()
        self._by_id: dict[str, _Known] = {}
        # The same by key: several indicators may name one value.
        self._by_key: dict[str, dict[str, None]] = {}
        # When which indicator expires, the next one first; entries may be out of date.
        self._expiries: list[tuple[datetime, str]] = []
        # How often it was doubted; until when what was known at which doubt may stay unnamed.
        self._doubts = 0
        self._doubted: deque[tuple[datetime, int]] = deque()

    def learn(self, indicator: Indicator) -> tuple[Change, set[str]]:
        """Take in what the bus says; gives also the keys whose indicators are others now."""
        wanted = None if indicator.is_withdrawn() else watched(indicator)
        with self._lock:
            before = self._by_id.get(indicator.id)
            if wanted is None:
                keys = self._forget(indicator.id)
                gone = before is not None or indicator.is_withdrawn()
                return (Change.GONE if gone else Change.LEFT_OUT), keys
            if before is None and len(self._by_id) >= self._limit:
                return Change.TOO_MANY, set()
            unchanged = before is not None and before.wanted == wanted
            keys = set() if unchanged else self._forget(indicator.id) | {wanted.key}
            self._by_id[indicator.id] = _Known(wanted, indicator.valid_until, self._doubts)
            self._by_key.setdefault(wanted.key, {})[indicator.id] = None
            if indicator.valid_until is not None:
                self._note_expiry(indicator.valid_until, indicator.id)
            return (Change.NONE if unchanged else Change.NEW), keys

    def expire(self, now: datetime) -> set[str]:
        """Forget what has expired at `now`; gives the keys whose indicators are others now."""
        keys: set[str] = set()
        with self._lock:
            while self._expiries and self._expiries[0][0] <= now:
                moment, indicator_id = heapq.heappop(self._expiries)
                known = self._by_id.get(indicator_id)
                if known is not None and known.until == moment:
                    keys |= self._forget(indicator_id)
        return keys

    def doubt(self, until: datetime) -> None:
        """Have `forget_doubted` forget at `until` what is known now, unless it is named again."""
        with self._lock:
            newest = self._doubted[-1][0] if self._doubted else None
            if newest is not None and until - newest < timedelta(seconds=DOUBT_SECS):
                # A bus that comes and goes makes no more of them than that.
                until = self._doubted.pop()[0]
            self._doubted.append((until, self._doubts))
            self._doubts += 1

    def forget_doubted(self, now: datetime) -> tuple[int, set[str]]:
        """Forget what was doubted and not named until `now`; gives how many, and their keys."""
        keys: set[str] = set()
        forgotten = 0
        with self._lock:
            while self._doubted and self._doubted[0][0] <= now:
                _, doubt = self._doubted.popleft()
                unnamed = [each for each, known in self._by_id.items() if known.doubts <= doubt]
                forgotten += len(unnamed)
                for each in unnamed:
                    keys |= self._forget(each)
        return forgotten, keys

    def ids(self, key: str) -> list[str]:
        """Give the indicators that name what `key` stands for."""
        with self._lock:
            return list(self._by_key.get(key, ()))

    def current(self, key: str, now: datetime | None = None) -> list[tuple[str, Watched]]:
        """Give the indicators with that key that have not expired at `now`, and their values."""
        now = now or datetime.now(UTC)
        with self._lock:
            found = [(each, self._by_id[each]) for each in self._by_key.get(key, ())]
        return [
            (each, known.wanted)
            for each, known in found
            if known.until is None or known.until > now
        ]

    def keys(self) -> list[str]:
        """Give all keys."""
        with self._lock:
            return list(self._by_key)

    def known(self, ids: Iterable[str]) -> dict[str, Watched]:
        """Give those of the indicators that are current."""
        with self._lock:
            return {each: self._by_id[each].wanted for each in ids if each in self._by_id}

    def __len__(self) -> int:
        return len(self._by_id)

    # Each of these requires holding the lock.

    def _forget(self, indicator_id: str) -> set[str]:
        before = self._by_id.pop(indicator_id, None)
        if before is None:
            return set()
        key = before.wanted.key
        ids = self._by_key[key]
        del ids[indicator_id]
        if not ids:
            del self._by_key[key]
        return {key}

    def _note_expiry(self, moment: datetime, indicator_id: str) -> None:
        heapq.heappush(self._expiries, (moment, indicator_id))
        if len(self._expiries) > 2 * len(self._by_id) + SLACK:
            # Most of them are of indicators that were prolonged or are gone.
            self._expiries = [
                (known.until, each)
                for each, known in self._by_id.items()
                if known.until is not None
            ]
            heapq.heapify(self._expiries)
