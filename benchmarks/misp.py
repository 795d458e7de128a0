"""MISP over ZeroMQ: the bus's receiver, mapping and index beside a receiver that only decodes."""

from __future__ import annotations

import json
import multiprocessing as mp
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import zmq

from benchmarks.load import GIVE_UP_SECS, Report, Result, readers
from benchmarks.systems import EVERYTHING, bus, spawn
from testbed.ports import free_port

_TEMPLATE: dict[str, Any] = {
    "Attribute": {
        "id": "1",
        "event_id": "1",
        "object_id": "0",
        "object_relation": None,
        "category": "Network activity",
        "type": "domain",
        "value1": "",
        "value2": "",
        "to_ids": True,
        "uuid": "",
        "timestamp": "1795486613",
        "distribution": "5",
        "sharing_group_id": "0",
        "comment": "seen in a phishing campaign",
        "deleted": False,
        "disable_correlation": False,
        "first_seen": None,
        "last_seen": None,
        "value": "",
        "Sighting": [],
    },
    "Event": {
        "id": "1",
        "date": "2026-11-24",
        "info": "an event with many attributes",
        "uuid": "f2aa1394-d4b7-4208-b85c-277e07d99db2",
        "published": False,
        "analysis": "1",
        "threat_level_id": "2",
        "org_id": "1",
        "orgc_id": "1",
        "distribution": "0",
        "sharing_group_id": "0",
        "Orgc": {"id": "1", "uuid": "41a17e87-b786-4c52-bb39-be63c6cebb5e", "name": "ORGNAME"},
    },
    "action": "add",
}


def _publish(port: int, count: int, control: Connection) -> None:
    """Publish `count` attributes as fast as it goes, as MISP would one by one."""
    frames = []
    for _ in range(count):
        name = str(uuid.uuid4())
        attribute = {**_TEMPLATE["Attribute"], "uuid": name, "value": f"{name[:13]}.example"}
        document = {**_TEMPLATE, "Attribute": attribute}
        frames.append(b"misp_json_attribute " + json.dumps(document).encode())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pub = context.socket(zmq.XPUB)
    pub.setsockopt(zmq.SNDHWM, 0)
    pub.setsockopt(zmq.XPUB_NODROP, 1)
    pub.bind(f"tcp://127.0.0.1:{port}")
    pub.recv()
    control.send("connected")
    control.recv()
    for frame in frames:
        pub.send(frame)
    control.recv()
    context.destroy(linger=0)


def _decode(port: int, count: int, control: Connection) -> None:
    """Receive and decode; sends how many came, and in how many seconds."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, 0)
    sub.setsockopt(zmq.RCVTIMEO, GIVE_UP_SECS * 1000)
    sub.subscribe(b"misp_json_attribute")
    sub.connect(f"tcp://127.0.0.1:{port}")
    received, first = 0, 0.0
    try:
        while received < count:
            frame = sub.recv()
            json.loads(frame.partition(b" ")[2])
            received += 1
            first = first or time.monotonic()
    except zmq.Again:
        pass
    control.send((received, time.monotonic() - first))
    context.destroy(linger=0)


@contextmanager
def _publisher(port: int, count: int) -> Iterator[Connection]:
    """Run the publisher: it says when somebody listens, and begins when it is told to."""
    ours, theirs = mp.Pipe()
    process = spawn.Process(target=_publish, args=(port, count, theirs), daemon=True)
    process.start()
    try:
        yield ours
        ours.send("end")
    finally:
        process.join(10)
        process.kill()


def bare(count: int) -> Result:
    """Measure the receiver that only decodes."""
    port = free_port()
    ours, theirs = mp.Pipe()
    reader = spawn.Process(target=_decode, args=(port, count, theirs), daemon=True)
    with _publisher(port, count) as control:
        reader.start()
        control.recv()
        control.send("go")
        received, seconds = ours.recv()
    reader.join(10)
    return Result("decoder", count, max(seconds, 1e-9), count - received, 0.0, 0, [], [])


def through_the_bus(count: int) -> Result:
    """Measure the bus, from MISP's publisher to a subscriber."""
    port = free_port()
    with (
        bus([EVERYTHING], apps=f"misp: {{zmq: {{host: 127.0.0.1, port: {port}}}}}") as system,
        readers(system, count, timed=False) as pipes,
        _publisher(port, count) as control,
    ):
        control.recv()
        control.send("go")
        report: Report = pipes[0].recv()
    seconds = max(report.last - report.first, 1e-9)
    return Result("threatbus", count, seconds, count - report.received, 0.0, 0, [], [])
