"""What can go wrong with MISP's REST API.

::

    MispError
    ├── MispUnreachable    try again later: connection, timeout, 5xx, no MISP at this address
    ├── MispRefusal        MISP said no, in its own words
    │   └── MispDenied     … to the key as such (401, 403), not to this one request
    └── MispInterrupted    the worker was asked to stop

The key is in none of their messages.
"""

from __future__ import annotations

from threatbus.errors import ThreatBusError


class MispError(ThreatBusError):
    """What went wrong with MISP: `instance` is its address, `reason` one line."""

    def __init__(self, instance: str, reason: str) -> None:
        self.instance = instance
        self.reason = reason
        super().__init__(instance, reason)

    def __str__(self) -> str:
        return f"MISP at {self.instance}: {self.reason}"


class MispUnreachable(MispError):
    """No usable answer; the same request may well succeed later.

    `maybe_done`: MISP may have received the request and acted on it. `answered`: something
    answered, if only with an error, so that another request may fare better.
    """

    def __init__(
        self, instance: str, reason: str, *, maybe_done: bool = False, answered: bool = False
    ) -> None:
        super().__init__(instance, reason)
        self.maybe_done = maybe_done
        self.answered = answered


class MispRefusal(MispError):
    """MISP said no; `reason` is its own. `status` is that of the answer, 200 among them."""

    def __init__(self, instance: str, reason: str, status: int = 200) -> None:
        super().__init__(instance, reason)
        self.status = status

    def __str__(self) -> str:
        return f"MISP at {self.instance} refuses: {self.reason}"


class MispDenied(MispRefusal):
    """MISP does not know the key, or the key's user may not do this: any such request fails."""


class MispInterrupted(MispError):
    """The caller was asked to stop while MISP was answering, or between two pages."""

    def __init__(self, instance: str) -> None:
        super().__init__(instance, "interrupted")
