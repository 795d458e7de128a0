"""From inq to the exchange: persistent, confirmed in a window, again after a lost connection."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Final

import pika.exceptions
import pika.spec

from threatbus.messages import Message
from threatbus.queues import MessageQueue
from threatbus_rabbitmq.config import RabbitMQConfig
from threatbus_rabbitmq.connection import BrokerWorker
from threatbus_rabbitmq.mapping import NodeIds, properties

logger = logging.getLogger("threatbus.rabbitmq.publisher")

#: Seconds after which messages that the broker did not take are offered again.
REFUSED_RETRY_SECS: Final = 1.0


class Publisher(BrokerWorker):
    """Takes messages from inq and has the broker confirm them; until then inq counts them as its.

    It publishes while `permit` says so: when this node's own queue is bound. Without broker or
    permission nothing is taken from inq, which fills up to its bounds.
    """

    def __init__(self, config: RabbitMQConfig, inq: MessageQueue, ids: NodeIds) -> None:
        super().__init__("RabbitMQ publisher", config)
        self._inq = inq
        self._ids = ids
        # Published and not yet confirmed, oldest first: (delivery tag on this channel, message).
        self._unconfirmed: deque[tuple[int, Message]] = deque()
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

    def permit(self, permitted: bool) -> None:
        """Let messages go out, or keep them back: without this node's queue its own are lost."""
        self._permitted = permitted
        if permitted:
            self.call(self._pump)

    def drain(self, deadline: float) -> int:
        """Wait until the broker has confirmed all of inq, or `deadline`; give what it has not."""
        self._inq.join(max(0.0, deadline - time.monotonic()))
        return self._inq.unfinished

    def on_channel(self) -> None:
        """Have the broker confirm, then publish."""
        self._last_tag = 0
        self.channel.confirm_delivery(
            self.guarded(self._on_confirmed), callback=self.guarded(lambda _: self._begin())
        )

    def on_lost(self) -> None:
        """Keep what is unconfirmed for the next channel, in order."""
        self._confirming = False
        self._again.extendleft(message for _, message in reversed(self._unconfirmed))
        self.repeated += len(self._unconfirmed)
        self._unconfirmed.clear()

    def _begin(self) -> None:
        self._confirming = True
        self.succeeded()
        self._pump()

    def _pump(self) -> None:
        """Publish until the window is full or nothing is left."""
        self._asked.clear()
        while self._confirming and self._permitted:
            room = self.config.confirm_window - len(self._unconfirmed)
            batch = self._next_batch(room) if room > 0 else []
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
        if isinstance(message.id, int):
            self.last_number = max(self.last_number, message.id)
        if not self._confirming:
            return
        try:
            self.channel.basic_publish(
                self.config.exchange_name,
                "",
                message.data,
                properties(self._ids.to_wire(message.id)),
            )
        except pika.exceptions.AMQPError as error:
            # The channel is going, and its end is about to be told.
            logger.debug("publishing fails: %r", error)
            self._confirming = False

    def _on_confirmed(self, frame: Any) -> None:
        """Let go of what the broker has; offer again, a little later, what it refused."""
        method = frame.method
        done = self._take_out(method.delivery_tag, multiple=method.multiple)
        if isinstance(method, pika.spec.Basic.Ack):
            self.confirmed += len(done)
            self._inq.task_done(len(done))
            self._pump()
            return
        self._log.log("refused", logging.WARNING, "the broker refuses messages; trying again")
        self._again.extendleft(reversed(done))
        self.call_later(REFUSED_RETRY_SECS, self._pump)

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
