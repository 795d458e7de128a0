"""What a plugin gives `threatbus doctor`: the hook `diagnose`, see `threatbus.hookspecs`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Seconds that a check has unless it says otherwise.
DEFAULT_TIMEOUT_SECS: Final = 15.0


@dataclass(frozen=True)
class Check:
    """One thing that must work, such as a connection."""

    #: What is looked at, in a word or two.
    name: str
    #: Says in words what works, or raises `CheckFailed`. Runs in a thread that is left behind when
    #: the time is over, so it ends by itself. What it says holds no secret.
    probe: Callable[[], str]
    #: Seconds after which it is not waited for any more.
    timeout_secs: float = DEFAULT_TIMEOUT_SECS
