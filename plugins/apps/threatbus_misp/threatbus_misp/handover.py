"""From the index to the bus: a message is on disk before it is handed over, until it has passed.

So whenever the bus is killed, no message is lost, and one may come twice with the same id and
`modified`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from threatbus.errors import Overflow
from threatbus.messages import Message
from threatbus_misp.index import Index

logger = logging.getLogger("threatbus.misp")

#: Messages on disk, not known to be passed on, after which sources wait for the bus to do so.
MAX_UNSETTLED: Final = 100_000


class Bus(Protocol):
    """What takes the messages."""

    def put(self, messages: Sequence[Message]) -> None:
        """Hand them over; waits while the bus cannot take more, `Overflow` when it stops."""

    def has_passed_on(self, *, wait: bool = False) -> bool:
        """Say whether the bus has passed on all that was put; waits for it, unless it stops."""


class Handover:
    """Orders those who publish for one MISP: what they `add` within `publishing` reaches the bus.

    Messages reach the bus in the order in which the index says they were published. Whoever only
    asks the index something takes `lock`, and does not wait for the bus. `forget` is called when
    what was done in a turn has not reached the disk, and so has not happened.
    """

    def __init__(self, name: str, index: Index, bus: Bus, forget: Callable[[], None]) -> None:
        self._name = name
        self._index = index
        self._bus = bus
        self._forget = forget
        # Orders those who publish; held until the bus has taken what they publish.
        self._turn = threading.Lock()
        # Whether the messages of the last run have been handed over; guarded by the turn.
        self._recovered = False
        #: Guards the index and what follows; taken within a turn, never the other way round.
        self.lock = threading.Lock()
        self._out: list[Message] = []
        # The newest message on disk that the bus has, 0 if all are settled; how many it has had.
        self._handed_over = 0
        self._unsettled = 0

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Have a turn: write what is published within, then hand it to the bus."""
        with self._turn:
            self._recover()
            with self.lock, self._all_or_nothing():
                yield
                number = self._write_out()
            self._hand_over(number)

    def add(self, topic: str, data: bytes) -> None:
        """Publish a document, within a turn."""
        self._out.append(Message(topic, data))

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            with self._index.transaction():
                yield
        except BaseException:
            # What is not on disk has not happened.
            self._out.clear()
            self._forget()
            raise

    def _write_out(self) -> int:
        return self._index.put_out([(m.topic, m.data) for m in self._out]) if self._out else 0

    def _hand_over(self, number: int) -> None:
        """Hand to the bus what is on disk; what it does not take, the next start hands over."""
        with self.lock:
            messages, self._out = self._out, []
        if not messages:
            return
        try:
            self._bus.put(messages)
        except Overflow:
            return
        with self.lock:
            self._handed_over = number
            self._unsettled += len(messages)
        if self._unsettled >= MAX_UNSETTLED:
            # A bus that takes them and passes none on is full before long, and `put` waits.
            self._unsettled = 0
            self.settle(wait=True)

    def recover(self) -> None:
        """Hand over what the last run may not have."""
        with self._turn:
            self._recover()

    def _recover(self) -> None:
        if self._recovered:
            return
        with self.lock, self._index.reading():
            number, documents = self._index.outbox()
            self._out = [Message(topic, data) for topic, data in documents]
        self._recovered = True
        if documents:
            logger.info(
                "%s: %d messages of the last run are published again", self._name, len(documents)
            )
        self._hand_over(number)

    def settle(self, *, wait: bool = False) -> None:
        """Forget the messages that the bus has passed on: no start publishes them again."""
        with self.lock:
            number = self._handed_over
        if number and self._bus.has_passed_on(wait=wait):
            with self.lock, self._index.transaction():
                self._index.settle(number)
                if number == self._handed_over:
                    self._handed_over = self._unsettled = 0
