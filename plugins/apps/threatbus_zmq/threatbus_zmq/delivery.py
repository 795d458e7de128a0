"""One subscriber as the endpoint's loop sees it: what waits for it, and how its SUB fares."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from threatbus.messages import Message
from threatbus.queues import MessageQueue
from threatbus_zmq import mapping
from threatbus_zmq.connections import Connection, hang_up, stands
from threatbus_zmq.pipes import Outflow
from threatbus_zmq.window import Window

logger = logging.getLogger("threatbus.zmq.delivery")

#: Seconds until a stalled subscriber is tried again: at first, and at most.
FIRST_RETRY_SECS: Final = 0.001
MAX_RETRY_SECS: Final = 0.05
#: Seconds that a full pipe is waited for when the subscriber has connected anew meanwhile.
HALF_OPEN_SECS: Final = 2.0


class Delivery:
    """The way to one subscriber. Belongs to the loop, but for its outq."""

    def __init__(self, p2p: str, name: str, now: float, key: str | None = None) -> None:
        self.p2p = p2p
        self.name = name
        # The public key of the client that subscribed; None where no keys are asked for.
        self.key = key
        # Set by the publisher right after construction: the outq calls back with this object.
        self.outq: MessageQueue
        self.heads = mapping.Heads(p2p)
        # Batches taken from the outq, or from the window, and not sent yet.
        self.pending: deque[list[Message]] = deque()
        self.window = Window()
        # What its SUBs have subscribed to, each with its connection: None if that is unknown.
        self.subscribed: list[tuple[bytes, Connection | None]] = []
        self.was_connected = False
        self.last_sign = now
        # When a full pipe is tried again, and after which delay if it is still full then.
        self.retry_at = 0.0
        self.retry_delay = FIRST_RETRY_SECS
        # Since when the pipe has taken nothing; None while it does. The first is set anew when old
        # connections are cut off.
        self._stalled_since: float | None = None
        self._idle_since: float | None = None
        self.outflow = Outflow()
        # Messages sent, sent again after a reconnect, and possibly lost at one.
        self.sent = 0
        self.sent_again = 0
        self.uncovered = 0

    @property
    def connected(self) -> bool:
        """Whether a SUB for the topic is there."""
        return bool(self.subscribed)

    @property
    def waiting(self) -> int:
        """How many messages wait for this subscriber."""
        return sum(map(len, self.pending)) + self.outq.qsize()

    def idle(self, now: float) -> float:
        """Give the seconds for which its pipe has taken nothing of what waits; 0 if it does."""
        since = self._idle_since
        return max(0.0, now - since) if self.connected and since is not None else 0.0

    def flows(self) -> None:
        """Note that its pipe has taken something."""
        self.retry_delay = FIRST_RETRY_SECS
        self._stalled_since = self._idle_since = None

    def stalls(self, now: float) -> None:
        """Try again later; cut off old connections if they may be what takes no messages.

        The peer of an old one may have vanished, and the new one must not wait until that is
        certain.
        """
        self.retry_at = now + self.retry_delay
        self.retry_delay = min(self.retry_delay * 2, MAX_RETRY_SECS)
        if self._idle_since is None:
            self._idle_since = now
        if self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since > HALF_OPEN_SECS:
            self._stalled_since = now
            self._cut_off_old_connections()

    def cut_off(self) -> None:
        """Break the connections of its SUBs."""
        for _, source in self.subscribed:
            hang_up(source)

    def unsubscribed(self, prefix: bytes, source: Connection | None) -> None:
        """Remove one entry for `prefix`: of `source`, else of a connection that stands no more."""
        mine = [entry for entry in self.subscribed if entry[0] == prefix]
        if not mine:
            return
        if source is not None:
            fitting = [entry for entry in mine if entry[1] == source]
        else:
            fitting = [entry for entry in mine if entry[1] is not None and not stands(entry[1])]
        self.subscribed.remove((fitting or mine)[0])

    def _cut_off_old_connections(self) -> None:
        newest = self.subscribed[-1][1] if self.subscribed else None
        for _, source in self.subscribed:
            if newest is not None and source != newest:
                logger.debug("an old connection of %s is cut off", self.name)
                hang_up(source)
