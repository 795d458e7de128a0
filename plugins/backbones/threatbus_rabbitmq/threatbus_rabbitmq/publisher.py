"""From inq to the exchange: persistent, confirmed in a window, again after a lost connection."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import pika.exceptions
import pika.spec

from threatbus.messages import Message
from threatbus.queues import MessageQueue
from threatbus.rejects import RejectStore
from threatbus_rabbitmq.config import RabbitMQConfig
from threatbus_rabbitmq.connection import PRECONDITION_FAILED, BrokerWorker
from threatbus_rabbitmq.mapping import ORIGIN, ROUTING_KEY, NodeIds, properties

logger = logging.getLogger("threatbus.rabbitmq.publisher")

#: Seconds after which messages that the broker did not take are offered again.
REFUSED_RETRY_SECS: Final = 1.0
#: Bytes of messages that are published ahead of their confirmation, more or less: while the broker
#: takes nothing they fill memory besides inq.
WINDOW_BYTES: Final = 16 * 1024 * 1024

# What the broker says of a message that is larger than its max_message_size.
_TOO_LARGE: Final = re.compile(r"message size (\d+) .*larger than")


class Publisher(BrokerWorker):
    """Takes messages from inq and has the broker confirm them; until then inq counts them as its.

    It publishes while `permit` says so: when this node's own queue is bound. Without broker or
    permission nothing is taken from inq, which fills up to its bounds.
    """

    def __init__(
        self, config: RabbitMQConfig, inq: MessageQueue, ids: NodeIds, rejects: RejectStore
    ) -> None:
        super().__init__("RabbitMQ publisher", config)
        self._inq = inq
        self._ids = ids
        self._rejects = rejects
        self._on_unrouted: Callable[[], None] = lambda: None
        # Published and not yet confirmed, oldest first: (delivery tag on this channel, message).
        self._unconfirmed: deque[tuple[int, Message]] = deque()
        self._unconfirmed_bytes = 0
        # Wire ids of those that came back from the broker, for want of a queue.
        self._returned: set[str] = set()
        # What the broker did not take, in order; waits a moment, and everything else for it.
        self._refused: list[Message] = []
        # To be published before anything else: what a broken connection left unconfirmed.
        self._again: deque[Message] = deque()
        self._last_tag = 0
        # Whether the channel confirms.
        self._confirming = False
        # Set by permit(), from any thread.
        self._permitted = False
        # Whether a look at inq is on its way to the loop already: one is enough.
        self._asked = threading.Event()
        #: The highest number of a message that has been published.
        self.last_number = 0
        #: How many were confirmed, and how many published again.
        self.confirmed = 0
        self.repeated = 0

    def note_ready(self) -> None:
        """Note, in whichever thread put, that inq was empty and no longer is."""
        if not self._asked.is_set():
            self._asked.set()
            self.call(self._pump)

    @property
    def unconfirmed(self) -> int:
        """How many messages the broker has been sent and has not confirmed."""
        return len(self._unconfirmed)

    def permit(self, permitted: bool) -> None:
        """Let messages go out, or keep them back: without this node's queue its own are lost."""
        self._permitted = permitted
        if permitted:
            self.call(self._offer_again)

    def when_unrouted(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when a message finds no queue: not even this node's is bound."""
        self._on_unrouted = callback

    def drain(self, deadline: float) -> int:
        """Wait until the broker has confirmed all of inq, or `deadline`; give what it has not."""
        self._inq.join(max(0.0, deadline - time.monotonic()))
        return self._inq.unfinished

    def on_channel(self) -> None:
        """Have the broker confirm, then publish."""
        self._last_tag = 0
        self.channel.add_on_return_callback(self.guarded(self._on_returned))
        self.channel.confirm_delivery(
            self.guarded(self._on_confirmed), callback=self.guarded(lambda _: self._begin())
        )

    def on_lost(self) -> None:
        """Keep what is unconfirmed for the next channel, in order."""
        self._confirming = False
        self._again.extendleft(message for _, message in reversed(self._unconfirmed))
        self._again.extendleft(reversed(self._refused))
        self.repeated += len(self._unconfirmed) + len(self._refused)
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0
        self._refused.clear()
        self._returned.clear()

    def on_refused(self, code: int, reason: str) -> str | None:
        """Give up a message that is too large for the broker, or it would hold up all others."""
        found = _TOO_LARGE.search(reason) if code == PRECONDITION_FAILED else None
        if found is not None:
            size = int(found[1])
            too_large = [each for each in self._unconfirmed if len(each[1].data) == size]
            for each in too_large:
                self._unconfirmed.remove(each)
                self._rejects.add(ORIGIN, "larger than RabbitMQ's max_message_size", each[1].data)
            self._inq.task_done(len(too_large))
        return None

    def _begin(self) -> None:
        self._confirming = True
        self.succeeded()
        self._pump()

    def _pump(self) -> None:
        """Publish until the window is full or nothing is left."""
        self._asked.clear()
        while self._confirming and self._permitted and not self._refused:
            room = self.config.confirm_window - len(self._unconfirmed)
            has_room = room > 0 and self._unconfirmed_bytes < WINDOW_BYTES
            batch = self._next_batch(room) if has_room else []
            if not batch:
                return
            for message in batch:
                self._publish(message)

    def _next_batch(self, room: int) -> list[Message]:
        if self._again:
            return [self._again.popleft() for _ in range(min(room, len(self._again)))]
        return self._inq.get_many(room, finish=False)

    def _publish(self, message: Message) -> None:
        # Noted first: whatever happens now, it is published again unless it is confirmed.
        self._last_tag += 1
        self._unconfirmed.append((self._last_tag, message))
        self._unconfirmed_bytes += len(message.data)
        if isinstance(message.id, int):
            self.last_number = max(self.last_number, message.id)
        if not self._confirming:
            return
        try:
            self.channel.basic_publish(
                self.config.exchange_name,
                ROUTING_KEY,
                message.data,
                properties(self._ids.to_wire(message.id)),
                mandatory=True,
            )
        except pika.exceptions.AMQPError as error:
            # The channel is going, and its end is about to be told.
            logger.debug("publishing fails: %r", error)
            self._confirming = False

    def _on_confirmed(self, frame: Any) -> None:
        """Let go of what the broker has; offer again, a little later, what it has not."""
        method = frame.method
        done = self._take_out(method.delivery_tag, multiple=method.multiple)
        self._unconfirmed_bytes -= sum([len(message.data) for message in done])
        unrouted = self._unrouted_of(done) if self._returned else []
        if isinstance(method, pika.spec.Basic.Nack):
            self._log.log("refused", logging.WARNING, "the broker refuses messages; trying again")
            self._refuse(done)
            return
        if unrouted:
            self._refuse(unrouted)
            if self._permitted:
                self._permitted = False
                self._on_unrouted()
        confirmed = len(done) - len(unrouted)
        self.confirmed += confirmed
        self._inq.task_done(confirmed)
        self._pump()

    def _on_returned(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        """Note what reached no queue at all; the broker confirms it nevertheless, after this."""
        self._returned.add(properties.message_id)

    def _unrouted_of(self, confirmed: list[Message]) -> list[Message]:
        """Give those of `confirmed` that came back, and forget that they did."""
        by_id = {self._ids.to_wire(message.id): message for message in confirmed}
        unrouted = [message for wire_id, message in by_id.items() if wire_id in self._returned]
        self._returned.difference_update(by_id)
        return unrouted

    def _refuse(self, messages: list[Message]) -> None:
        if not self._refused:
            self.call_later(REFUSED_RETRY_SECS, self._offer_again)
        self._refused += messages

    def _offer_again(self) -> None:
        self._again.extendleft(reversed(self._refused))
        self._refused.clear()
        self._pump()

    def _take_out(self, tag: int, *, multiple: bool) -> list[Message]:
        unconfirmed = self._unconfirmed
        if multiple:
            done = []
            while unconfirmed and unconfirmed[0][0] <= tag:
                done.append(unconfirmed.popleft()[1])
            return done
        # Nearly always the first: the broker confirms in order, more or less.
        for position, (known, message) in enumerate(unconfirmed):
            if known == tag:
                del unconfirmed[position]
                return [message]
        return []
