"""Back-pressure: where sources wait while something behind them is full."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable

logger = logging.getLogger("threatbus.gate")


class Gate:
    """Open, unless at least one holder keeps it shut.

    A full queue holds the gate shut until it has room. Sources with a thread of their own wait
    at it (`wait`); event loops ask (`is_open`) and are called back when it opens (`on_open`).
    Holders call `shut` and `open` under locks of their own, so callbacks are a step apart
    (`announce`): a callback may do anything.

    A gate with an `upstream` keeps that shut as well, as one of its holders: who stops at the
    inner gate is not held up by what else stops everybody at the outer one.
    """

    def __init__(self, upstream: Gate | None = None) -> None:
        self._upstream = upstream
        # Guards the fields below.
        self._changed = threading.Condition()
        self._holders: set[Hashable] = set()
        self._on_open: list[Callable[[], None]] = []
        self._retired = False

    @property
    def is_open(self) -> bool:
        """Whether sources may go on."""
        return not self._holders

    def shut(self, holder: Hashable) -> bool:
        """Keep the gate shut on behalf of `holder`, until it calls `open`. Idempotent.

        Says whether `holder` did not hold it before.
        """
        with self._changed:
            if self._retired or holder in self._holders:
                return False
            self._holders.add(holder)
            if self._upstream is not None:
                self._upstream.shut(self)
            return True

    def open(self, holder: Hashable) -> bool:
        """Let go of the gate; the last one to do so wakes whoever waits. Idempotent.

        Says whether this opened the gate: then call `announce` once you hold no lock.
        """
        with self._changed:
            if holder not in self._holders:
                return False
            self._holders.discard(holder)
            if self._holders:
                return False
            self._changed.notify_all()
            if self._upstream is not None:
                self._upstream.open(self)
            return True

    def announce(self) -> None:
        """Call back whoever wants to know that the gate has opened."""
        for callback in tuple(self._on_open):
            try:
                callback()
            # It is not the opener's business what a source does with the news.
            except Exception:
                logger.exception("a source failed when the gate opened")
        if self._upstream is not None and self._upstream.is_open:
            self._upstream.announce()

    def retire(self) -> None:
        """Open for good: who waits is let through, and nobody can shut it any more."""
        with self._changed:
            self._retired = True
            self._holders.clear()
            self._changed.notify_all()

    def on_open(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, in the thread that opens, whenever the gate opens.

        The gate may be shut again by then: `callback` has to ask.
        """
        with self._changed:
            self._on_open.append(callback)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the gate is open, at most `timeout` seconds; say whether it is."""
        if self.is_open:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._holders:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True
