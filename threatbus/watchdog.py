"""Signs of life for the service manager, which restarts a service without any (sd_notify(3))."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from threatbus.logger import RateLimited
from threatbus.notify import notify

if TYPE_CHECKING:
    from threatbus.bus import ThreatBus

logger = logging.getLogger("threatbus.watchdog")

#: Signs of life within the time after which the manager gives the service up.
SIGNS_PER_TIMEOUT: Final = 3


class Watchdog:
    """Gives a sign of life as long as the bus is whole; does nothing without such a manager.

    The main thread calls `look` every `interval` seconds. There is no sign, and so in the end a
    restart, if the main thread hangs, if one of the bus's locks is never given back, or if a worker
    has ended although nobody asked it to.
    """

    def __init__(self, bus: ThreatBus) -> None:
        self._bus = bus
        self._log = RateLimited(logger)
        #: Seconds between two looks; None: nobody wants signs.
        self.interval = _wanted_interval()

    def look(self) -> None:
        """Give a sign, or say in the log why not."""
        if self.interval is None:
            return
        # These take the locks by which subscribers and queues are kept: one that hangs is noticed.
        self._bus.subscriptions.settle()
        self._bus.stats()
        if lost := self._bus.lost_workers:
            names = ", ".join(lost)
            self._log.log(names, logging.ERROR, "no sign of life: worker %s has ended", names)
            return
        notify("WATCHDOG=1")


def _wanted_interval() -> float | None:
    """Read how often the manager wants to hear of this process (sd_watchdog_enabled(3))."""
    timeout = os.environ.get("WATCHDOG_USEC", "")
    if not timeout.isdecimal() or int(timeout) == 0:
        return None
    # Set for another process, this one's parent.
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(timeout) / 1e6 / SIGNS_PER_TIMEOUT
