"""Loaders and readers, each a process of its own, and the runs that are made of them."""

from __future__ import annotations

import json
import multiprocessing as mp
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from statistics import median, quantiles

import zmq

from benchmarks.systems import System, spawn

#: Seconds without a message after which a reader takes the rest for lost.
GIVE_UP_SECS = 20
#: Processes that the readers of many subscriptions share.
READERS = 10
#: Messages that a reader takes from one of its sockets before it looks at the others.
READ_AT_ONCE = 1000


def indicator(name: str = "") -> bytes:
    """Make an ordinary indicator of about 500 bytes, with an id of its own."""
    moment = "2026-11-24T08:15:30.123Z"
    return json.dumps(
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": f"indicator--{uuid.uuid4()}",
            "created": moment,
            "modified": moment,
            "name": name,
            "description": "A domain that was seen in a phishing campaign against our example",
            "indicator_types": ["malicious-activity"],
            "pattern": f"[domain-name:value = 'c{uuid.uuid4().hex[:16]}.example.com']",
            "pattern_type": "stix",
            "pattern_version": "2.1",
            "valid_from": moment,
        }
    ).encode()


def sighting(name: str = "") -> bytes:
    """Make an ordinary sighting, with an id of its own; `name` stands in its description."""
    moment = "2026-11-24T08:15:30.123Z"
    return json.dumps(
        {
            "type": "sighting",
            "spec_version": "2.1",
            "id": f"sighting--{uuid.uuid4()}",
            "created": moment,
            "modified": moment,
            "description": name,
            "last_seen": moment,
            "count": 1,
            "sighting_of_ref": f"indicator--{uuid.uuid4()}",
            "x_threatbus_source": "a sensor of ours",
            "x_threatbus_sighting_context": {"noticed": True, "uid": uuid.uuid4().hex},
        }
    ).encode()


def _frame(number: int, mixed: bool, name: str = "") -> bytes:
    """Make a frame: an indicator, or every other time a sighting if they are `mixed`."""
    if mixed and number % 2:
        return b"stix2/sighting " + sighting(name)
    return b"stix2/indicator " + indicator(name)


def _load(system: System, count: int, rate: float, mixed: bool, control: Connection) -> None:
    """Publish `count` objects, `rate` a second (0: as fast as possible); nothing is dropped."""
    frames = [_frame(number, mixed) for number in range(min(count, 5000))]
    context = zmq.Context()
    pub = context.socket(zmq.XPUB)
    pub.setsockopt(zmq.SNDHWM, 0)
    pub.setsockopt(zmq.XPUB_NODROP, 1)
    pub.connect(system.publish_to)
    pub.recv()  # the subscription of the other side has arrived
    control.send("connected")
    control.recv()
    if rate:
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            pub.send(_frame(number, mixed, str(time.monotonic_ns())))
    else:
        for number in range(count):
            pub.send(frames[number % len(frames)])
    control.send("sent")
    pub.close(linger=-1)
    context.term()


@dataclass
class Report:
    """What one reader saw: when the first and the last message came, and what the run asked for."""

    received: int = 0
    first: float = 0.0
    last: float = 0.0
    latencies: list[float] = field(default_factory=list)
    #: When every hundredth part of the messages had come.
    marks: list[float] = field(default_factory=list)


def _read(
    system: System, prefixes: Sequence[bytes], count: int, timed: bool, control: Connection
) -> None:
    """Receive `count` messages on a socket per prefix, all together, then send a `Report`."""
    context = zmq.Context()
    sockets = []
    for prefix in prefixes:
        sub = context.socket(zmq.SUB)
        sub.setsockopt(zmq.RCVHWM, 0)
        sub.setsockopt(zmq.RCVTIMEO, GIVE_UP_SECS * 1000)
        sub.connect(system.receive_from)
        sub.subscribe(prefix)
        sockets.append(sub)
    control.send("subscribed")
    report = Report()
    step = max(1, count // 100)
    for frame in islice(_frames_of(sockets), count):
        report.received += 1
        if report.received % step == 1 or step == 1:
            report.marks.append(time.monotonic())
        if timed:
            report.latencies.append((time.monotonic_ns() - _sent(frame)) / 1e9)
    report.first = report.marks[0] if report.marks else 0.0
    report.last = time.monotonic()
    control.send(report)


def _frames_of(sockets: Sequence[zmq.Socket[bytes]]) -> Iterator[bytes]:
    """Give what comes in, until nothing has for long.

    One socket is simply waited for, as most apps do: to look whether there is more costs a reader
    that keeps up as much as the message.
    """
    if len(sockets) == 1:
        try:
            while True:
                yield sockets[0].recv()
        except zmq.Again:
            return
    poller = zmq.Poller()
    for each in sockets:
        poller.register(each, zmq.POLLIN)
    while ready := poller.poll(GIVE_UP_SECS * 1000):
        for each, _ in ready:
            yield from _waiting(each)


def _waiting(sub: zmq.Socket[bytes]) -> Iterator[bytes]:
    """Give what a socket has, but no more than lets the others have their turn."""
    for _ in range(READ_AT_ONCE):
        try:
            yield sub.recv(zmq.NOBLOCK)
        except zmq.Again:
            return


def _sent(frame: bytes) -> int:
    """Give the moment, in nanoseconds, at which an object of ours was sent."""
    document = json.loads(frame.partition(b" ")[2])
    return int(document.get("name") or document["description"])


@dataclass(frozen=True)
class Result:
    """What one run showed; latencies in seconds, processor time and memory of the system alone.

    What was not measured is 0 or empty.
    """

    system: str
    messages: int
    seconds: float
    lost: int
    cpu_seconds: float
    peak_bytes: int
    latencies: list[float]
    #: When the first reader had every hundredth part of the messages.
    marks: list[float]

    @property
    def rate(self) -> float:
        """Messages a second that went in."""
        return self.messages / self.seconds

    @property
    def median_latency(self) -> float:
        """The median latency in seconds."""
        return median(self.latencies)

    @property
    def p99_latency(self) -> float:
        """The latency in seconds that one message in a hundred exceeds."""
        return quantiles(self.latencies, n=100)[98]


@contextmanager
def readers(system: System, share: int, *, timed: bool) -> Iterator[list[Connection]]:
    """Run readers for the prefixes of `system`, each of which gets `share` messages."""
    pipes, processes = [], []
    for first in range(min(READERS, len(system.prefixes))):
        prefixes = system.prefixes[first::READERS]
        ours, theirs = mp.Pipe()
        process = spawn.Process(
            target=_read, args=(system, prefixes, share * len(prefixes), timed, theirs), daemon=True
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    time.sleep(0.3)  # subscriptions travel to a forwarder that does not say when they are there
    try:
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(system: System, count: int, rate: float = 0, *, mixed: bool = False) -> Result:
    """Publish `count` objects through `system` to its subscribers, and wait for them.

    All are indicators and every subscriber gets them; or, if they are `mixed`, every other one
    is a sighting, and every subscriber wants one of the two kinds.
    """
    ours, theirs = mp.Pipe()
    loader = spawn.Process(target=_load, args=(system, count, rate, mixed, theirs), daemon=True)
    share = count // 2 if mixed else count
    with readers(system, share, timed=bool(rate)) as pipes:
        loader.start()
        ours.recv()
        cpu = system.cpu_seconds()
        ours.send("go")
        reports: list[Report] = [pipe.recv() for pipe in pipes]
        cpu = system.cpu_seconds() - cpu
        loader.join()
    return Result(
        system.name,
        count,
        max(max(r.last for r in reports) - min(r.first for r in reports), 1e-9),
        share * len(system.prefixes) - sum(report.received for report in reports),
        cpu,
        system.peak_bytes(),
        [latency for report in reports for latency in report.latencies],
        reports[0].marks,
    )
