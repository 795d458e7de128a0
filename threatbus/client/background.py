"""The threads of an app: one receives, one publishes, one answers snapshot requests."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from threatbus.client import documents
from threatbus.client.publisher import Publisher
from threatbus.client.subscriber import MAX_RETRY_SECS, Subscriber
from threatbus.data import SnapshotRequest
from threatbus.errors import BusUnreachable, Overflow, Refused, Rejected, Undelivered
from threatbus.messages import SNAPSHOT_REQUEST, Message
from threatbus.queues import MessageQueue
from threatbus.workers import Backoff, StoppableWorker

#: Seconds after which a worker looks whether it is to end.
LOOK_SECS: Final = 0.2
#: Messages that are handed to the bus in one go.
BATCH: Final = 100
#: What was published last is published again after the connection broke: nobody can say what of
#: it has arrived. As many messages and seconds as may be under way.
UNSURE_MESSAGES: Final = 10_000
UNSURE_SECS: Final = 30.0
#: Seconds in which the same line is told once.
TOLD_SECS: Final = 5.0

Answer = Callable[[SnapshotRequest], Iterable[bytes]]
Connected = TypeVar("Connected")


class Teller:
    """Tells what has changed; what two threads find out at the same time, once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        # Guards the last line and its time.
        self._lock = threading.Lock()
        self._last = ("", 0.0)

    def __call__(self, line: str) -> None:
        """Tell it, unless it was told a moment ago."""
        now = time.monotonic()
        with self._lock:
            last, at = self._last
            if line == last and now - at < TOLD_SECS:
                return
            self._last = (line, now)
        self._tell(line)


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

    @property
    def subscriptions(self) -> int:
        """How many subscriptions were made."""
        return 0 if self._subscriber is None else self._subscriber.subscriptions

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
            why = str(error).splitlines()[0].rstrip(".")
            if why != told:
                on_change(f"{why}; trying again until it does")
                told = why
        stop_asked.wait(backoff.next())
    return None
