"""One long stream of numbered documents, all different: who sends it, and who checks it.

Both are processes of their own that share counters, since millions of messages leave no room for a
ledger: a message is right if its number is one more than that of the one before.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from typing import Any, Final, Self

import zmq

from testbed.ports import Doors
from threatbus.client import Endpoint, Subscriber

_spawn: Final = mp.get_context("spawn")

#: Messages that may be under way: a queue that grows for want of processor time is not growth.
WINDOW: Final = 5_000
#: Every so manieth document is a sighting.
SIGHTING_EVERY: Final = 50
#: Messages between two looks at what is under way.
BURST: Final = 500
#: Seconds between two looks while there is nothing to do.
TICK_SECS: Final = 0.001
#: Seconds that the reader may take to begin, and each process to end.
START_SECS: Final = 30.0
STOP_SECS: Final = 10.0

_TIME: Final = b"2026-11-24T08:15:30.123Z"
_MARK: Final = b'"soak '
_INDICATOR: Final = (
    b'stix2/indicator {"type":"indicator","spec_version":"2.1",'
    b'"id":"indicator--%08x-1111-4111-8111-%012x","created":"' + _TIME + b'",'
    b'"modified":"' + _TIME + b'","name":"soak %d","indicator_types":["malicious-activity"],'
    b'"description":"Seen in a campaign against our example","pattern":"[%b]",'
    b'"pattern_type":"stix","valid_from":"' + _TIME + b'"}'
)
_SIGHTING: Final = (
    b'stix2/sighting {"type":"sighting","spec_version":"2.1",'
    b'"id":"sighting--%08x-1111-4111-8111-%012x","created":"' + _TIME + b'",'
    b'"modified":"' + _TIME + b'","description":"soak %d","last_seen":"' + _TIME + b'",'
    b'"count":1,"sighting_of_ref":"indicator--%08x-1111-4111-8111-%012x"}'
)
_PATTERNS: Final = (
    b"domain-name:value = 'c%d.example.com'",
    b"url:value = 'http://example.com/%d'",
    b"file:hashes.MD5 = '%032x'",
    b"email-addr:value = 'a%d@example.com'",
)


def document(number: int) -> bytes:
    """Make the frame with this number: an indicator of some kind, now and then a sighting."""
    low = number & 0xFFFFFFFF
    if number % SIGHTING_EVERY == 0:
        return _SIGHTING % (low, number, number, low, number)
    pattern = _PATTERNS[number % len(_PATTERNS)] % number
    return _INDICATOR % (low, number, number, pattern)


def number_of(data: bytes) -> int | None:
    """Give the number of a document; None if it is none of these."""
    start = data.find(_MARK)
    if start < 0:
        return None
    start += len(_MARK)
    return int(data[start : data.index(b'"', start)])


class Stream:
    """The stream through one bus, for a ``with`` block. It stops at each goal that it is given."""

    def __init__(self, doors: Doors) -> None:
        self._shared = _Shared()
        self._processes = [
            _spawn.Process(target=task, args=(doors, self._shared), daemon=True)
            for task in (_read, _send)
        ]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        if not self._shared.subscribed.wait(START_SECS):
            self.close()
            raise TimeoutError("the reader of the stream does not subscribe")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def received(self) -> int:
        """How many messages have come; all of them once and in order if `wrong` is 0."""
        return int(self._shared.received.value)

    @property
    def wrong(self) -> int:
        """How many came after another one than the one before it."""
        return int(self._shared.wrong.value)

    def go_on(self, goal: int) -> None:
        """Send until there have been `goal` messages in all; returns at once."""
        self._shared.goal.value = goal

    def is_at(self, goal: int) -> bool:
        """Say whether so many have come; `RuntimeError` if nobody sends or reads any more."""
        if not all(process.is_alive() for process in self._processes):
            raise RuntimeError("the sender or the reader of the stream has ended")
        return self.received >= goal

    def close(self) -> None:
        """End both processes."""
        self._shared.ended.set()
        for process in self._processes:
            process.join(STOP_SECS)
            process.kill()


class _Shared:
    """What the processes know of each other; each number is written by one of them."""

    def __init__(self) -> None:
        self.goal: Any = _spawn.Value("q", 0, lock=False)
        self.received: Any = _spawn.Value("q", 0, lock=False)
        self.wrong: Any = _spawn.Value("q", 0, lock=False)
        self.subscribed: Any = _spawn.Event()
        self.ended: Any = _spawn.Event()


def _send(doors: Doors, shared: _Shared) -> None:
    shared.subscribed.wait()
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(doors.address("sub"))
        socket.recv()  # the subscription of the bus has arrived
        sent = 0
        while not shared.ended.is_set():
            room = WINDOW - (sent - shared.received.value)
            due = min(BURST, shared.goal.value - sent, room)
            if due <= 0:
                time.sleep(TICK_SECS)
                continue
            for number in range(sent, sent + due):
                socket.send(document(number))
            sent += due


def _read(doors: Doors, shared: _Shared) -> None:
    with Subscriber(Endpoint(doors.host, doors.manage), ["stix2"], name="soak") as subscriber:
        shared.subscribed.set()
        expected = 0
        while not shared.ended.is_set():
            for message in subscriber.receive(timeout=0.2):
                number = number_of(message.data)
                if number is None:
                    continue
                if number != expected:
                    shared.wrong.value += 1
                expected = number + 1
                shared.received.value += 1
