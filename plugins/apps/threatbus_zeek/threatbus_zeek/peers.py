"""Which connected Zeek a subscription is of, where its events do not say so; no I/O."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Names of Zeeks that have gone, by which they are known when they come back.
MAX_GONE: Final = 1000


class Peers:
    """The connected Zeeks, each with whether a subscription is known to be its own.

    Broker tells which peers there are, and which events come, but not from whom. A Zeek that is
    added subscribes at once, so a new subscription is of a peer that has none. A connection that
    comes back has its old name.
    """

    def __init__(self) -> None:
        self._claimed: dict[str, bool] = {}
        # Claimed ones that have gone.
        self._gone: deque[str] = deque(maxlen=MAX_GONE)

    def __len__(self) -> int:
        return len(self._claimed)

    def add(self, peer: str) -> None:
        """Note that a Zeek is there."""
        self._claimed[peer] = peer in self._gone

    def remove(self, peer: str) -> None:
        """Note that a Zeek is gone."""
        if self._claimed.pop(peer, False):
            self._gone.append(peer)

    def mark(self, peer: str) -> None:
        """Note that a Zeek has its subscription."""
        self._claimed[peer] = True

    def has_subscription(self, peer: str) -> bool:
        """Say whether a Zeek is known to have its subscription."""
        return self._claimed.get(peer, False)

    @property
    def awaits_none(self) -> bool:
        """Whether all that are there have a subscription."""
        return all(self._claimed.values())

    def claim(self) -> set[str]:
        """Give those that a new subscription may be of; if that is only one, it is that."""
        unclaimed = {peer for peer, claimed in self._claimed.items() if not claimed}
        if len(unclaimed) == 1:
            self._claimed[next(iter(unclaimed))] = True
        return unclaimed or set(self._claimed)
