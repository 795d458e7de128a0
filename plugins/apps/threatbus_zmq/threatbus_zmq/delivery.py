"""One subscriber as the endpoint's loop sees it: what waits for it, and how it gets there."""

from __future__ import annotations

from collections import deque

from threatbus.messages import Message
from threatbus.queues import MessageQueue
from threatbus_zmq.reader import Reader
from threatbus_zmq.window import Window


class Delivery:
    """The way to one subscriber. Belongs to the loop, but for its outq."""

    def __init__(self, p2p: str, name: str, now: float, key: str | None = None) -> None:
        self.p2p = p2p
        self.topic = p2p.encode()
        self.name = name
        # The public key of the client that subscribed; None where no keys are asked for.
        self.key = key
        # Set by the publisher right after construction: the outq calls back with this object.
        self.outq: MessageQueue
        # Batches taken from the outq, or from the window, and not sent yet.
        self.pending: deque[list[Message]] = deque()
        self.window = Window()
        # The connections of its SUBs, the newest last. Mostly there is one.
        self.links: list[Reader] = []
        self.was_connected = False
        self.last_sign = now
        # Before when nothing is sent, since its SUB may have more to say of what it wants.
        self.settled_at = 0.0
        # Messages sent, those sent again included.
        self.sent = 0
        # Messages that the last connection had not taken when it ended; they are in the window.
        self.cut_short = 0

    @property
    def connected(self) -> bool:
        """Whether a SUB for the topic is there."""
        return bool(self.links)

    @property
    def blocked(self) -> bool:
        """Whether nothing is to be sent for now, since it is not read as fast."""
        # For each message that comes alone; `any` over a generator costs thrice as much.
        for link in self.links:  # noqa: SIM110
            if link.blocked:
                return True
        return False

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent to this subscriber."""
        return sum(map(len, self.pending)) + self.outq.qsize()

    @property
    def unsent(self) -> int:
        """How many messages have been handed to its connections that did not take them yet."""
        return max((link.unsent(self.p2p) for link in list(self.links)), default=0)

    @property
    def undelivered(self) -> int:
        """How many messages no connection to it has taken yet; from any thread."""
        return self.waiting + self.unsent + self.cut_short

    def idle(self, now: float) -> float:
        """Give the seconds for which nothing of what waits was taken; 0 if it is; any thread."""
        since = [link.blocked_since for link in list(self.links)]
        return max((now - start for start in since if start is not None), default=0.0)

    def note_sent(self, batch: list[Message], size: int) -> None:
        """Remember `batch`, of `size` bytes, which has just been sent."""
        self.sent += len(batch)
        self.window.add(batch, size, max([link.widest for link in self.links], default=0))
