"""Bytes to lines."""

from __future__ import annotations

#: Longest line that is kept; an event that is longer does not fit into a sighting anyway.
MAX_BYTES = 8 * 1024 * 1024


class Lines:
    """Cuts what comes in pieces into lines; what is too long is left out and counted."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        # The pieces of a line whose end has not come, and their length.
        self._pieces: list[bytes] = []
        self._length = 0
        self.left_out = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Give the lines that `data` completes, without their ends."""
        first, *others = data.split(b"\n")
        self._append(first)
        lines = []
        for piece in others:
            if self._length > self._max_bytes:
                self.left_out += 1
            else:
                lines.append(b"".join(self._pieces))
            self._pieces, self._length = [], 0
            self._append(piece)
        return [line for line in lines if line.strip()]

    def _append(self, piece: bytes) -> None:
        self._length += len(piece)
        if self._length > self._max_bytes:
            self._pieces = []
        elif piece:
            self._pieces.append(piece)
