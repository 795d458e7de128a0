"""From this node's queue to the outqs: acknowledged when every matching outq has the message."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from threatbus.errors import Rejected
from threatbus.gate import Gate
from threatbus.messages import Message
from threatbus.rejects import RejectStore
from threatbus_rabbitmq.config import RabbitMQConfig
from threatbus_rabbitmq.connection import PRECONDITION_FAILED, RESOURCE_LOCKED, BrokerWorker
from threatbus_rabbitmq.mapping import ORIGIN, ROUTING_KEY, BodyReader, NodeIds, wire_id

logger = logging.getLogger("threatbus.rabbitmq.consumer")

#: Messages that are handed over and acknowledged together, at most.
BATCH: Final = 200
#: Bytes that are kept while an outq makes everybody wait; beyond, the broker shall keep them.
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
#: Message ids that are remembered, to tell what comes for the second time: far more than
#: publishers have unconfirmed, or this node unacknowledged, when a connection breaks.
REMEMBERED_IDS: Final = 100_000


class RecentIds:
    """The last ids that were seen, up to a number of them."""

    def __init__(self, limit: int = REMEMBERED_IDS) -> None:
        self._limit = limit
        self._in_order: deque[str] = deque()
        self._known: set[str] = set()

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._known

    def add(self, message_id: str) -> None:
        """Remember an id that is not among the remembered ones."""
        self._known.add(message_id)
        self._in_order.append(message_id)
        if len(self._in_order) > self._limit:
            self._known.discard(self._in_order.popleft())


class Consumer(BrokerWorker):
    """Declares and binds this node's queue, and hands on what is in it.

    A node that has just started waits for its first subscriber (at most ``hold`` seconds) before
    it consumes, so that what waited for it is not poured out before anyone listens. Every
    ``heartbeat`` seconds it makes sure that the queue is still bound. `deliver`
    sorts a batch into the outqs; nothing is delivered while `gate` is shut. `on_bound` hears
    whether the queue is bound.
    """

    def __init__(
        self,
        config: RabbitMQConfig,
        reader: BodyReader,
        ids: NodeIds,
        deliver: Callable[[Sequence[Message]], None],
        gate: Gate,
        rejects: RejectStore,
        on_bound: Callable[[bool], None],
    ) -> None:
        super().__init__("RabbitMQ consumer", config)
        self._reader = reader
        self._ids = ids
        self._deliver = deliver
        self._gate = gate
        self._rejects = rejects
        self._on_bound = on_bound
        # Received and not yet handed on, with the id it came with; the tag of the newest.
        self._batch: list[tuple[str | None, Message]] = []
        self._batch_bytes = 0
        self._newest_tag = 0
        self._flush_planned = False
        self._recent = RecentIds()
        self._consumer_tag: str | None = None
        # Whether the broker has let this channel have the queue, has bound it, has ever done so.
        self._is_declared = False
        self._is_bound = False
        self._was_bound = False
        # How many others take messages from the queue.
        self._others = 0
        self._hold_until = time.monotonic() + config.hold
        # Set by release(), from any thread: somebody listens.
        self._released = False
        # Guards the two fields below; wait_for() waits on it.
        self._progress = threading.Condition()
        self._consuming = False
        # The highest number of this node's own messages that has come back.
        self._last_own_number = 0
        #: How many messages came from the broker, and how many of them for the second time, which
        #: were dropped.
        self.received = 0
        self.duplicates = 0
        gate.on_open(lambda: self.call(self._go_on))

    def release(self) -> None:
        """Say that there is a subscriber: consuming may begin. Callable from any thread."""
        if not self._released:
            self._released = True
            self.call(self._consume)

    def wait_for(self, number: int, deadline: float) -> bool:
        """Wait until this node's own message `number` has come back and been handed on.

        Gives up at `deadline` (``time.monotonic()``), and when nothing comes in.
        """
        with self._progress:
            self._progress.wait_for(
                lambda: self._last_own_number >= number or not self._consuming,
                max(0.0, deadline - time.monotonic()),
            )
            return self._last_own_number >= number

    def bind_again(self) -> None:
        """Say that this node's queue is not bound although it was. Callable from any thread."""
        self.call(lambda: self.hang_up(f"queue {self.config.queue.name} is not bound any more"))

    def finish(self, deadline: float) -> None:
        """Take no more, for good: what is not acknowledged stays in the queue for the next start.

        On return nothing more is delivered, unless this took until `deadline`.
        """
        self.stop()
        with self._progress:
            self._progress.wait_for(
                lambda: not self._consuming, max(0.0, deadline - time.monotonic())
            )

    def on_channel(self) -> None:
        """Declare and bind the queue, then consume."""
        queue, channel, guarded = self.config.queue, self.channel, self.guarded

        def bind(_: Any) -> None:
            self._is_declared = True
            self._bind(callback=guarded(limit))

        def limit(_: Any) -> None:
            channel.basic_qos(prefetch_count=self.config.prefetch, callback=guarded(begin))

        def begin(_: Any) -> None:
            self._begin()

        self._is_declared = False
        channel.add_on_cancel_callback(guarded(self._on_cancelled))
        channel.queue_declare(**queue.declaration, callback=guarded(bind))

    def on_lost(self) -> None:
        """Forget what is not acknowledged: the broker sends it again."""
        self._batch.clear()
        self._batch_bytes = 0
        self._newest_tag = 0
        # What was planned has gone with the connection.
        self._flush_planned = False
        self._consumer_tag = None
        self._is_bound = False
        self._on_bound(False)
        self._note(consuming=False)

    def on_refused(self, code: int, reason: str) -> str | None:
        """Name the difference between the queue that is there and the one that is configured."""
        if self._is_declared or code not in (RESOURCE_LOCKED, PRECONDITION_FAILED):
            return None
        if code == RESOURCE_LOCKED and self._was_bound:
            # By this bus's own last connection, of whose end the broker has not heard yet.
            return None
        name = self.config.queue.name
        if "inequivalent" not in reason and code == PRECONDITION_FAILED:
            return (
                f"queue {name} cannot be made as the configuration says ({reason}). Change "
                "plugins.backbones.rabbitmq.queue"
            )
        return (
            f"queue {name} is there with other arguments than the configuration says, or in use by "
            f"one node alone ({reason}). Nothing is passed on until the bus is started again: with "
            "plugins.backbones.rabbitmq.queue as the queue is, or with another name_suffix, or "
            f"after the queue was deleted with what is in it (rabbitmqctl delete_queue {name})"
        )

    def _begin(self) -> None:
        self.succeeded()
        self._is_bound = self._was_bound = True
        self._on_bound(True)
        self.call_later(self.config.heartbeat, self._check)
        left = self._hold_until - time.monotonic()
        self._released = self._released or left <= 0
        if self._released:
            self._consume()
            return
        logger.info("waiting up to %.0f s for a first subscriber before messages are taken", left)
        self.call_later(left, self.release)

    def _consume(self) -> None:
        """Begin to take messages, unless that has begun, or has to wait."""
        if not (self._is_bound and self._released and self._gate.is_open):
            return
        if self._consumer_tag is not None:
            return
        self._consumer_tag = self.channel.basic_consume(
            self.config.queue.name, self.guarded(self._on_message)
        )
        self._note(consuming=True)

    def _bind(self, callback: Callable[[Any], None] | None = None) -> None:
        """Bind the queue; with the key of what is published, for an exchange that is no fanout."""
        queue, exchange = self.config.queue.name, self.config.exchange_name
        self.channel.queue_bind(queue, exchange, ROUTING_KEY, callback=callback)

    def _check(self) -> None:
        """Make sure that nobody has deleted exchange, queue or binding, and see who else is here.

        What is gone closes the channel, and is made anew with the next one.
        """
        if not self._is_bound:
            return
        name = self.config.queue.name
        self._bind()
        self.channel.queue_declare(name, passive=True, callback=self.guarded(self._on_counted))
        self.call_later(self.config.heartbeat, self._check)

    def _on_counted(self, frame: Any) -> None:
        others = frame.method.consumer_count - (self._consumer_tag is not None)
        if others > self._others:
            logger.warning(
                "queue %s has %d more who take from it, and what they take does not come here: "
                "every bus needs a queue.name_suffix of its own",
                self.config.queue.name,
                others,
            )
        self._others = others

    def _on_cancelled(self, _: Any) -> None:
        self.hang_up(f"queue {self.config.queue.name} was deleted; it is made anew")

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if channel is not self.channel:
            return
        self._newest_tag = method.delivery_tag
        self.received += 1
        self._read(wire_id(properties), body)
        if len(self._batch) >= BATCH:
            self._flush()
        elif not self._flush_planned:
            # After those that have arrived together with this one.
            self._flush_planned = True
            self.call_later(0, self._flush_as_planned)
        if self._batch_bytes > MAX_HELD_BYTES and not self._gate.is_open:
            # The broker has them all once this connection is closed.
            self.hang_up("an outq is full, and what waits for it is large")

    def _read(self, message_id: str | None, body: bytes) -> None:
        try:
            message = self._reader.read(body)
        except Rejected as error:
            self._rejects.add(ORIGIN, error.reason, body)
            return
        if message_id is not None:
            message.id = self._ids.from_wire(message_id)
        self._batch.append((message_id, message))
        self._batch_bytes += len(body)

    def _flush_as_planned(self) -> None:
        self._flush_planned = False
        self._flush()

    def _go_on(self) -> None:
        """Go on now that the gate is open."""
        self._consume()
        self._flush()

    def _flush(self) -> None:
        """Hand on and acknowledge what has come; not while an outq makes everybody wait."""
        if self.channel is None or not self._newest_tag or not self._gate.is_open:
            return
        fresh, new_ids = self._first_copies()
        self._batch.clear()
        self._batch_bytes = 0
        if fresh:
            self._deliver(fresh)
        # Not before: what could not be handed on comes again, and must not be dropped then.
        for message_id in new_ids:
            self._recent.add(message_id)
        self.channel.basic_ack(self._newest_tag, multiple=True)
        self._newest_tag = 0
        own = [message.id for message in fresh if isinstance(message.id, int)]
        if own:
            self._note(last_own_number=own[-1])

    def _first_copies(self) -> tuple[list[Message], Iterable[str]]:
        """Give what of the batch comes for the first time (without an id: always), and its ids."""
        fresh: list[Message] = []
        new_ids: dict[str, None] = {}
        for message_id, message in self._batch:
            if message_id is not None:
                if message_id in new_ids or message_id in self._recent:
                    self.duplicates += 1
                    continue
                new_ids[message_id] = None
            fresh.append(message)
        return fresh, new_ids

    def _note(self, *, consuming: bool | None = None, last_own_number: int = 0) -> None:
        with self._progress:
            if consuming is not None:
                self._consuming = consuming
            self._last_own_number = max(self._last_own_number, last_own_number)
            self._progress.notify_all()
