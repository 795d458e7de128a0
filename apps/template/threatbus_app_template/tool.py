"""The tool: replace this module by one that talks to yours."""

from __future__ import annotations

import threading


class Tool:
    """Looks for words in lines.

    The thread that hears from the bus tells it what to look for, another one gives it lines.
    """

    def __init__(self) -> None:
        # Guards the tables below, which two threads use.
        self._lock = threading.Lock()
        # What to look for, and the indicators that say so: two may name the same value.
        self._wanted: dict[str, set[str]] = {}
        # The same by indicator, so that forgetting one takes no search.
        self._values: dict[str, str] = {}

    def watch(self, value: str, indicator_id: str) -> None:
        """Look for `value` from now on."""
        with self._lock:
            self._wanted.setdefault(value, set()).add(indicator_id)
            self._values[indicator_id] = value

    def forget(self, indicator_id: str) -> None:
        """Look no longer for what that indicator named, unless another one names it too."""
        with self._lock:
            value = self._values.pop(indicator_id, None)
            if value is not None:
                self._wanted[value].discard(indicator_id)
                if not self._wanted[value]:
                    del self._wanted[value]

    def matches(self, line: str) -> list[tuple[str, str]]:
        """Give value and indicator of everything that is found in `line`."""
        with self._lock:
            return [
                (word, indicator_id)
                for word in line.split()
                for indicator_id in sorted(self._wanted.get(word, ()))
            ]
