"""What is known to be missing of one MISP: noted by whoever finds out, asked for by the healer."""

from __future__ import annotations

import threading


class Missing:
    """Events to ask for, and whether there is a gap since everything was known.

    Callable from any thread; the healer waits in `wait`. `can_ask` is whether there is an API.
    """

    def __init__(self, *, can_ask: bool) -> None:
        self._can_ask = can_ask
        # Guards the fields below.
        self._changed = threading.Condition()
        # Events to be asked for, by id or UUID, in the order in which they were named, and the
        # number under which each was named last.
        self._events: dict[str, int] = {}
        self._named = 0
        # Why everything since the noted moment is to be asked for, and how often it was said.
        self._gap: str | None = "start"
        self._gaps = 1
        self._listening = False
        self._behind = False
        self._woken = False

    def event(self, event: str) -> bool:
        """Have an event asked for, by id or UUID; False where there is no API to ask."""
        if not self._can_ask:
            return False
        with self._changed:
            self._named += 1
            self._events[event] = self._named
            self._changed.notify_all()
        return True

    def gap(self, reason: str) -> None:
        """Say that messages may have been missed up to now; from now on they come."""
        with self._changed:
            self._gap = reason
            self._gaps += 1
            self._listening = True
            self._changed.notify_all()

    def lost(self) -> None:
        """Say that no messages come any more."""
        with self._changed:
            self._listening = False

    def behind(self, behind: bool) -> None:
        """Say whether messages wait that are not read yet, and may be old."""
        with self._changed:
            self._behind = behind

    @property
    def listening(self) -> bool:
        """Whether messages come, so that nothing is missed."""
        with self._changed:
            return self._listening

    @property
    def up_to_date(self) -> bool:
        """Whether no old message waits to be read."""
        with self._changed:
            return not self._behind

    @property
    def nothing(self) -> bool:
        """Whether nothing is missing, as far as is known."""
        with self._changed:
            return self._gap is None and not self._events

    def wait(self, timeout: float) -> None:
        """Wait until something is missing, `wake` is called, or `timeout` seconds have passed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._gap is not None or self._events or self._woken, timeout
            )
            self._woken = False

    def wake(self) -> None:
        """End a wait."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def first_gap(self) -> tuple[str, int] | None:
        """Give why there is a gap, and the number to `close` it with; None if there is none."""
        with self._changed:
            return (self._gap, self._gaps) if self._gap is not None else None

    def close(self, gap: int) -> None:
        """Say that a gap is healed, unless there was another one since."""
        with self._changed:
            if gap == self._gaps:
                self._gap = None

    def first_event(self) -> tuple[str, int] | None:
        """Give the event that is to be asked for next, and the number it is `found` with."""
        with self._changed:
            return next(iter(self._events.items()), None)

    def found(self, event: str, number: int) -> bool:
        """Say that an event has been asked for; False if it was named again since, and stays."""
        with self._changed:
            if self._events.get(event) != number:
                return False
            del self._events[event]
            return True
