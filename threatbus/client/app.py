"""An app on the bus: a subscription and an outlet that stand in the background."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from threatbus.client import documents
from threatbus.client.connection import DEFAULT_TIMEOUT_SECS, Deadline, Session
from threatbus.client.endpoint import Endpoint
from threatbus.client.publisher import USUAL_FRAME_BYTES, Publisher
from threatbus.client.subscriber import MAX_RETRY_SECS, Subscriber
from threatbus.data import SnapshotRequest
from threatbus.errors import BusUnreachable, Overflow, Refused, Rejected, Undelivered
from threatbus.gate import Gate
from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_ENVELOPE, SNAPSHOT_REQUEST, Message
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.workers import Backoff, StoppableWorker

#: What waits in an app at most, coming in or going out.
BOUNDS: Final = Bounds(100_000, 64 * 1024 * 1024)
#: Frames that a SUB of an app reads ahead; the bus keeps what it has no room for.
READ_AHEAD: Final = 10_000
#: Seconds after which a worker looks whether it is to end.
LOOK_SECS: Final = 0.2
#: Messages that are handed to the bus in one go.
BATCH: Final = 100
#: What was published last is published again after the connection broke: nobody can say what of
#: it has arrived. As many messages and seconds as may be under way.
UNSURE_MESSAGES: Final = 10_000
UNSURE_SECS: Final = 30.0
#: Seconds that `App.close` waits for the bus to take what is left.
CLOSE_SECS: Final = 5.0

Answer = Callable[[SnapshotRequest], Iterable[bytes]]
Connected = TypeVar("Connected")


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
    ``app answers`` calls `answer`. They meet in queues; each wait ends within `LOOK_SECS` of
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
        self._on_change = on_change
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


class Receiver(StoppableWorker):
    """Keeps the subscription up and moves what comes into the inbox.

    Blocks in the subscriber's poll, which the closing of a pipe ends, and between two attempts
    to subscribe in a wait that `stop` ends. Ends when `stop` was called.
    """

    def __init__(
        self,
        subscribe: Callable[[], Subscriber],
        inbox: MessageQueue,
        requests: MessageQueue | None,
        on_change: Callable[[str], None],
    ) -> None:
        super().__init__(name="app receiver")
        self._subscribe = subscribe
        self._inbox = inbox
        # Where snapshot requests go; None: nobody answers them, they are left out.
        self._requests = requests
        self._on_change = on_change
        # Once the first subscription was made; others ask it how things stand.
        self._subscriber: Subscriber | None = None
        # The write end is closed by stop(), which ends the poll that watches the read end.
        self._watched, self._stopper = os.pipe()
        self._stopping = threading.Lock()

    def stop(self) -> None:
        """Ask it to end, also in the middle of a poll."""
        super().stop()
        with self._stopping:
            if self._stopper >= 0:
                os.close(self._stopper)
                self._stopper = -1

    def run(self) -> None:
        """Subscribe, as often as it takes, and receive."""
        subscriber = _connected(self._subscribe, self._stop_asked, self._on_change)
        if subscriber is None:
            return
        with subscriber:
            self._subscriber = subscriber
            while self._running():
                if self._inbox.full():
                    # What is not read waits at the bus; the signs of life go on.
                    subscriber.keep_up(LOOK_SECS)
                else:
                    self._sort(subscriber.receive(watch=self._watched))

    @property
    def subscribed(self) -> bool:
        """Whether the subscription stands."""
        return self._subscriber is not None and self._subscriber.stands

    def release(self) -> None:
        """Give the pipe back, once the thread has ended or was never started."""
        self.stop()
        if not self.is_alive() and self._watched >= 0:
            os.close(self._watched)
            self._watched = -1

    def _sort(self, messages: list[Message]) -> None:
        requests = [message for message in messages if message.topic == SNAPSHOT_REQUEST]
        if requests:
            messages = [message for message in messages if message.topic != SNAPSHOT_REQUEST]
            if self._requests is not None:
                self._requests.put_many(requests)
        self._inbox.put_many(messages)


class Sender(StoppableWorker):
    """Publishes what waits in the outbox; opens a new outlet whenever one is lost.

    Blocks in `MessageQueue.get_many` for `LOOK_SECS`, in the publisher while the bus takes
    nothing, and between attempts in a wait that `stop` ends. Ends when `stop` was called.
    """

    def __init__(
        self,
        connect: Callable[[], Publisher],
        outbox: MessageQueue,
        on_change: Callable[[str], None],
    ) -> None:
        super().__init__(name="app sender")
        self._connect = connect
        self._outbox = outbox
        self._on_change = on_change
        # When it was handed over, and what; of this thread alone. The bus does not acknowledge.
        self._unsure: deque[tuple[float, Message]] = deque(maxlen=UNSURE_MESSAGES)
        # How many at the end of `_unsure` are not yet done with in the outbox.
        self._unfinished = 0
        self._backoff = Backoff(0.1, MAX_RETRY_SECS)

    def run(self) -> None:
        """Publish until asked to stop."""
        while self._running():
            publisher = _connected(self._connect, self._stop_asked, self._on_change)
            if publisher is None:
                return
            with publisher:
                publisher.settle()
                try:
                    self._send_again(publisher)
                    self._send(publisher)
                    publisher.finish()
                except Undelivered as error:
                    self._on_change(f"{error.reason}; what was under way is sent again")
                    self._stop_asked.wait(self._backoff.next())

    def _send_again(self, publisher: Publisher) -> None:
        for _, message in list(self._unsure):
            publisher.publish(message.topic, message.data)
        self._done()

    def _send(self, publisher: Publisher) -> None:
        while self._running():
            publisher.check_connected()
            batch = self._outbox.get_many(BATCH, LOOK_SECS, finish=False)
            now = time.monotonic()
            # First of all, so that none is forgotten if the connection breaks among them.
            self._unsure.extend((now, message) for message in batch)
            self._unfinished = len(batch)
            for message in batch:
                publisher.publish(message.topic, message.data)
            self._done()
            while self._unsure and self._unsure[0][0] < now - UNSURE_SECS:
                self._unsure.popleft()
            self._backoff.reset()

    def _done(self) -> None:
        if self._unfinished:
            self._outbox.task_done(self._unfinished)
            self._unfinished = 0


class Answers(StoppableWorker):
    """Answers snapshot requests, one after the other.

    Blocks in `MessageQueue.get_many` for `LOOK_SECS`, in the app's `answer`, and while the
    outbox has no room. Ends when `stop` was called.
    """

    def __init__(
        self,
        answer: Answer,
        requests: MessageQueue,
        publish: Callable[[bytes], None],
        on_change: Callable[[str], None],
    ) -> None:
        super().__init__(name="app answers")
        self._answer = answer
        self._requests = requests
        self._publish = publish
        self._on_change = on_change

    def run(self) -> None:
        """Answer until asked to stop."""
        while self._running():
            for message in self._requests.get_many(1, LOOK_SECS):
                try:
                    self._answer_one(message)
                except (Rejected, Overflow) as error:
                    self._on_change(f"a snapshot request is not answered: {error}")

    def _answer_one(self, message: Message) -> None:
        request = documents.read(message)
        assert isinstance(request, SnapshotRequest)
        for body in self._answer(request):
            if not self._running():
                return
            self._publish(documents.envelope(request, body))


def _connected(
    connect: Callable[[], Connected], stop_asked: threading.Event, on_change: Callable[[str], None]
) -> Connected | None:
    """Connect, trying until it works; None if asked to stop. Tells why it does not."""
    backoff = Backoff(0.1, MAX_RETRY_SECS)
    told = ""
    while not stop_asked.is_set():
        try:
            return connect()
        except (BusUnreachable, Refused) as error:
            why = str(error).splitlines()[0]
            if why != told:
                on_change(f"{why}; trying again until it does")
                told = why
        stop_asked.wait(backoff.next())
    return None
