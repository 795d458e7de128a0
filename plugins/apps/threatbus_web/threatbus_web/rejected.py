"""The newest rejected messages, without their documents."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any, Final

from threatbus.rejects import FILE_NAMES, stored

#: How many are given.
SHOWN: Final = 100


class RejectedList:
    """Reads the reject store again only when its files have changed. Any thread may ask."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Guards the two fields below.
        self._lock = threading.Lock()
        self._state: list[tuple[int, int]] | None = None
        self._newest: list[dict[str, Any]] = []

    def newest(self) -> list[dict[str, Any]]:
        """Give the newest ones, the newest first; raises OSError."""
        with self._lock:
            state = self._look()
            if state != self._state:
                kept = deque(stored(self._directory), maxlen=SHOWN)
                self._newest = [
                    {
                        "number": each.number,
                        "time": each.time,
                        "origin": each.origin,
                        "reason": each.reason,
                        "size": each.size,
                    }
                    for each in reversed(kept)
                ]
                self._state = state
            return self._newest

    def _look(self) -> list[tuple[int, int]]:
        found = []
        for name in FILE_NAMES:
            try:
                status = (self._directory / name).stat()
            except FileNotFoundError:
                found.append((0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_size))
        return found
