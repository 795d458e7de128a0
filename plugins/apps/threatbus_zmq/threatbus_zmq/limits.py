"""How much one peer may ask for, so that there is something left for the others."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

#: Seconds of requests that a peer may make at once after it was quiet; and how many more are
#: answered with an error before its connection is closed.
BURST_SECS: Final = 2.0
#: Peers that are remembered at most; those that were quiet for longest are forgotten.
MAX_PEERS: Final = 10_000
#: Seconds after which a quiet peer may do as much as one that is new, so that it need not be
#: remembered.
FORGET_SECS: Final = 2 * BURST_SECS


class RateLimit:
    """Counts what each peer does against what it may do per second (a token bucket per peer)."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._burst = per_second * BURST_SECS
        self._clock = clock
        # By peer: what is left to it, and when that was so. In the order of their last action.
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, peer: Hashable) -> bool:
        """Count one action of `peer`; False if it is one too many."""
        now = self._clock()
        left, since = self._left.pop(peer, (self._burst, now))
        left = min(self._burst, left + (now - since) * self.per_second) - 1
        self._left[peer] = (max(left, -self._burst), now)
        self._forget_quiet(now)
        return left >= 0

    def is_flooding(self, peer: Hashable) -> bool:
        """Say whether `peer` goes on and on although it is told that it is too much."""
        return self._left.get(peer, (0.0, 0.0))[0] <= -self._burst

    def _forget_quiet(self, now: float) -> None:
        while len(self._left) > MAX_PEERS or now - self._oldest_action() > FORGET_SECS:
            self._left.popitem(last=False)

    def _oldest_action(self) -> float:
        return next(iter(self._left.values()))[1]
