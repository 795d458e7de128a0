"""An app on the bus: a subscription and an outlet that stand in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from threatbus.client.background import Answer, Answers, Receiver, Sender, Teller
from threatbus.client.connection import DEFAULT_TIMEOUT_SECS, Deadline, Session
from threatbus.client.endpoint import Endpoint
from threatbus.client.publisher import USUAL_FRAME_BYTES, Publisher
from threatbus.client.subscriber import Subscriber
from threatbus.errors import Overflow, Rejected
from threatbus.gate import Gate
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_ENVELOPE, Message
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.workers import StoppableWorker

#: What waits in an app at most, coming in or going out.
BOUNDS: Final = Bounds(100_000, 64 * 1024 * 1024)
#: Frames that a SUB of an app reads ahead; the bus keeps what it has no room for.
READ_AHEAD: Final = 10_000
#: Seconds that `App.close` waits for the bus to take what is left.
CLOSE_SECS: Final = 5.0


class App(Session):
    """Takes part in a bus for as long as the ``with`` block lasts, whether or not the bus is up.

    `topics` may be empty for an app that only publishes. `snapshot` (days) asks for history with
    every subscription, also one that had to be made again. `answer` gives the objects for a
    snapshot request, as bytes; it is called in a thread of its own. `on_change` is told in one
    line, from any thread, when the bus is lost, found again, or something could not be delivered.

    What comes waits until `receive` takes it; beyond `bounds` the bus keeps it. What is published
    waits until the bus takes it; beyond `bounds` `publish` waits, and then says so. What was
    under way when a connection broke is sent again, so it may arrive twice, with the same id.

    Threads: ``app receiver`` owns the subscription and its heartbeats, ``app sender`` the outlet,
    ``app answers`` calls `answer`. They meet in queues; each wait ends soon after
    `close`, the one in the receiver's poll at once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        topics: Sequence[str] = (),
        *,
        snapshot: float = 0,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECS,
        answer: Answer | None = None,
        bounds: Bounds = BOUNDS,
        max_message_size: int = USUAL_FRAME_BYTES,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start; returns at once, the bus is found in the background."""
        self._max_message_size = max_message_size
        self._on_change = on_change = Teller(on_change)
        self._inbox = MessageQueue("app inbox", bounds, OverflowPolicy.BLOCK, gate=Gate())
        self._gate = Gate()
        self._outbox = MessageQueue("app outbox", bounds, OverflowPolicy.BLOCK, gate=self._gate)
        # Makes waiting for room and putting one step, so that publishers in several threads do
        # not exceed the bounds together.
        self._publishing = threading.Lock()
        self._closed = False
        requests = MessageQueue("snapshot requests", Bounds(1000), OverflowPolicy.DROP_OLDEST)
        self._receiver = Receiver(
            lambda: Subscriber(
                endpoint,
                topics,
                snapshot=snapshot,
                name=name,
                timeout=timeout,
                read_ahead=READ_AHEAD,
                on_change=on_change,
            ),
            self._inbox,
            requests if answer is not None else None,
            on_change,
        )
        self._sender = Sender(
            lambda: Publisher(endpoint, name=name and f"{name} (outlet)", timeout=timeout),
            self._outbox,
            on_change,
        )
        self._workers: list[StoppableWorker] = [self._sender]
        if topics:
            self._workers.append(self._receiver)
        if answer is not None:
            self._workers.append(Answers(answer, requests, self._publish_envelope, on_change))
        for worker in self._workers:
            worker.start()

    # Receiving.

    def receive(self, limit: int = 500, timeout: float | None = None) -> list[Message]:
        """Take up to `limit` messages; none when `timeout` seconds are over or it was closed."""
        return self._inbox.get_many(limit, timeout)

    def messages(self) -> Iterator[Message]:
        """Give message after message, until `close`."""
        while not self._closed:
            yield from self.receive()

    @property
    def connected(self) -> bool:
        """Whether the subscription stands: the bus has answered lately, and knows this app."""
        return self._receiver.subscribed

    @property
    def subscriptions(self) -> int:
        """How many subscriptions were made; each after the first means that the bus was lost.

        What was published in between may be missing. It grows before the first message of the
        new subscription comes.
        """
        return self._receiver.subscriptions

    # Publishing.

    def publish(self, topic: str, data: bytes, timeout: float | None = None) -> None:
        """Publish one document; waits while too much waits already.

        Raises `Overflow` when there is no room within `timeout` seconds or the app is closed,
        and `Rejected` for a document that is larger than the bus takes.
        """
        if len(data) + len(topic) + 1 > self._max_message_size:
            raise Rejected(f"{len(data):,} bytes are more than the bus takes in one message")
        deadline = Deadline(timeout)
        with self._publishing:
            if not self._closed and not self._gate.wait(deadline.remaining()):
                raise Overflow("the bus takes nothing, and no more can wait for it")
            if self._closed:
                raise Overflow("the app is closed")
            self._outbox.put_many([Message(topic, data)])

    def publish_indicator(self, data: bytes, timeout: float | None = None) -> None:
        """Publish an indicator; see `publish`."""
        self.publish(INDICATOR, data, timeout)

    def publish_sighting(self, data: bytes, timeout: float | None = None) -> None:
        """Publish a sighting; see `publish`."""
        self.publish(SIGHTING, data, timeout)

    @property
    def waiting(self) -> int:
        """How many messages wait to be taken by the bus."""
        return self._outbox.unfinished

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the bus has been handed all that was published; False if it was not."""
        return self._outbox.join(timeout)

    def close(self, linger: float = CLOSE_SECS) -> None:
        """Hand over what is left, for `linger` seconds at most, and end. Idempotent.

        What could not be delivered is counted and told to `on_change`.
        """
        if self._closed:
            return
        self._closed = True
        deadline = Deadline(linger)
        for worker in self._workers:
            if worker is not self._sender:
                worker.stop()
        self._outbox.join(linger)
        left = self.waiting
        self._sender.stop()
        # Before the joins: who waits for a message or for room is let go.
        self._inbox.close()
        self._gate.retire()
        for worker in self._workers:
            worker.join((deadline.remaining() or 0) + DEFAULT_TIMEOUT_SECS)
        self._receiver.release()
        self._outbox.close()
        if left:
            self._on_change(f"{left:,} messages could not be delivered to the bus")

    def _publish_envelope(self, data: bytes) -> None:
        self.publish(SNAPSHOT_ENVELOPE, data)
