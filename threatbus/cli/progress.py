"""A progress line on a terminal, for what takes longer than a second."""

from __future__ import annotations

import time
from typing import Final, TextIO

SHOW_AFTER_SECS: Final = 1.0
SHOW_EVERY_SECS: Final = 0.2
WIDTH: Final = 24


class Progress:
    """Shows how many objects have gone and, if the `total` of bytes is known, how far that is."""

    def __init__(self, stream: TextIO, total: int | None) -> None:
        self._stream = stream
        self._total = total
        self._began = time.monotonic()
        self._next = self._began + SHOW_AFTER_SECS if stream.isatty() else float("inf")
        self._shown = False

    def show(self, count: int, done: int) -> None:
        """Say that `count` objects have gone, which were `done` bytes; seldom writes."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SHOW_EVERY_SECS
        rate = count / (now - self._began)
        self._stream.write(f"\r\x1b[K{self._bar(done)}{count:,} objects, {rate:,.0f}/s")
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Make room for other lines."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def _bar(self, done: int) -> str:
        if not self._total:
            return ""
        part = min(1.0, done / self._total)
        return f"[{'#' * round(part * WIDTH):<{WIDTH}}] {part:4.0%}  "
