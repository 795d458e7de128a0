"""Loaders and readers, each a process of its own, and the runs that are made of them."""

from __future__ import annotations

import json
import multiprocessing as mp
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import median, quantiles

import zmq

from benchmarks.systems import System, spawn

#: Seconds without a message after which a reader takes the rest for lost.
GIVE_UP_SECS = 20


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


def _load(system: System, count: int, rate: float, control: Connection) -> None:
    """Publish `count` indicators, `rate` a second (0: as fast as possible); nothing is dropped."""
    frames = [b"stix2/indicator " + indicator() for _ in range(min(count, 5000))]
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
            pub.send(b"stix2/indicator " + indicator(str(time.monotonic_ns())))
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


def _read(system: System, prefix: bytes, count: int, timed: bool, control: Connection) -> None:
    """Receive `count` messages, then send a `Report`."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, 0)
    sub.setsockopt(zmq.RCVTIMEO, GIVE_UP_SECS * 1000)
    sub.connect(system.receive_from)
    sub.subscribe(prefix)
    control.send("subscribed")
    report = Report()
    step = max(1, count // 100)
    try:
        while report.received < count:
            frame = sub.recv()
            report.received += 1
            if report.received % step == 1 or step == 1:
                report.marks.append(time.monotonic())
            if timed:
                sent = int(json.loads(frame.partition(b" ")[2])["name"])
                report.latencies.append((time.monotonic_ns() - sent) / 1e9)
    except zmq.Again:
        pass
    report.first = report.marks[0] if report.marks else 0.0
    report.last = time.monotonic()
    control.send(report)


@dataclass(frozen=True)
class Result:
    """What one run showed; latencies in seconds, processor time of the system alone."""

    system: str
    messages: int
    seconds: float
    lost: int
    cpu_seconds: float
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
def readers(system: System, count: int, *, timed: bool) -> Iterator[list[Connection]]:
    """Run one reader per prefix of `system`, each waiting for `count` messages."""
    pipes, processes = [], []
    for prefix in system.prefixes:
        ours, theirs = mp.Pipe()
        process = spawn.Process(
            target=_read, args=(system, prefix, count, timed, theirs), daemon=True
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


def run(system: System, count: int, rate: float = 0) -> Result:
    """Publish `count` indicators through `system` to all its subscribers, and wait for them."""
    ours, theirs = mp.Pipe()
    loader = spawn.Process(target=_load, args=(system, count, rate, theirs), daemon=True)
    with readers(system, count, timed=bool(rate)) as pipes:
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
        sum(count - report.received for report in reports),
        cpu,
        [latency for report in reports for latency in report.latencies],
        reports[0].marks,
    )
