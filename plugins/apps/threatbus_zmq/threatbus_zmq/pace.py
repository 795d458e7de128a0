"""How often the endpoint's loop looks for frames.

A turn of the loop costs several times what a message in it costs. So where messages come every
fraction of a millisecond, those of a millisecond share a turn; one that comes after a pause, and
those that come in crowds, wait for nothing.
"""

from __future__ import annotations

from typing import Final

#: Seconds between two looks at frames that come more often than that.
PACE_SECS: Final = 0.001
#: Frames in one look from which on a turn is worth its while.
CROWD: Final = 50


class Pace:
    """When to look again, by what was found. Belongs to the loop; times are those of its clock."""

    def __init__(self) -> None:
        #: Before when there is no looking for frames; 0: look at once.
        self.until = 0.0
        self._last = 0.0

    def reset(self) -> None:
        """Look at once."""
        self.until = 0.0

    def note(self, frames: int, now: float) -> None:
        """Note that there were so many `frames` at the time `now`."""
        paced, self.until = bool(self.until), 0.0
        if not frames:
            return
        keep_to_it = frames > 1 if paced else now - self._last < PACE_SECS
        if keep_to_it and frames < CROWD:
            self.until = now + PACE_SECS
        self._last = now
