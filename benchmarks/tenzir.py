"""Indicators into the lookup table of a Tenzir node: over the bus, and as rows of one pipeline."""

from __future__ import annotations

import multiprocessing as mp
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from vast_threatbus.config import VastConfig
from vast_threatbus.wrapper import Wrapper

from benchmarks.systems import spawn, started
from testbed.ports import Doors
from testbed.tenzir import TenzirNode
from threatbus.client import Endpoint, Publisher

#: Seconds after which something that should happen is given up.
GIVE_UP_SECS = 60.0


class Ingested(NamedTuple):
    """How long it took, and with how many pipelines."""

    seconds: float
    pipelines: int


def bare(node: TenzirNode, count: int) -> Ingested:
    """One pipeline that updates a table with `count` rows."""
    name = f"bare{uuid.uuid4().hex}"
    node.run(f'context_create_lookup_table "{name}"')
    rows = [{"key": _host(n), "ids": [f"indicator--{uuid.uuid4()}"]} for n in range(count)]
    began = time.monotonic()
    node.run(
        f'from_stdin {{ read_ndjson raw=true }}\ncontext_update "{name}", key=key, value=ids',
        rows,
    )
    return Ingested(time.monotonic() - began, 1)


def over_the_bus(node: TenzirNode, count: int) -> Ingested:
    """`count` indicators that a publisher in a process of its own has ready, until all are in."""
    with started() as bus:
        config = VastConfig(
            vast=node.endpoint,
            vast_binary=node.program,
            threatbus=bus.doors.address("manage"),
            snapshot=0,
            retro_match=False,
            table=f"t{uuid.uuid4().hex}",
        )
        wrapper = Wrapper(config)
        try:
            _wait_for(lambda: wrapper.app.connected and wrapper.live.runs)
            # The pipeline of live matching needs the processor for its start.
            time.sleep(1)
            before = wrapper.engine.started
            seconds = _publish_and_wait(wrapper, bus.doors, count)
            pipelines = wrapper.engine.started - before
            found = len(node.table(config.table))
        finally:
            wrapper.stop()
    if found != count:
        raise RuntimeError(f"{found} of {count} indicators are in the table")
    return Ingested(seconds, pipelines)


def _publish_and_wait(wrapper: Wrapper, doors: Doors, count: int) -> float:
    ours, theirs = mp.Pipe()
    publisher = spawn.Process(target=_publish, args=(doors.manage, count, theirs), daemon=True)
    publisher.start()
    try:
        ours.recv()
        began = time.monotonic()
        ours.send("go")
        _wait_for(lambda: len(wrapper.registry) == count and not wrapper.table.waiting)
        return time.monotonic() - began
    finally:
        publisher.kill()
        publisher.join()


def _publish(port: int, count: int, control: Connection) -> None:
    documents = [_indicator(number) for number in range(count)]
    with Publisher(Endpoint("127.0.0.1", port)) as publisher:
        control.send("ready")
        control.recv()
        for document in documents:
            publisher.publish("stix2/indicator", document)
        publisher.finish()
        control.recv()


def _host(number: int) -> str:
    return f"host{number}.example.com"


def _indicator(number: int) -> bytes:
    return (
        '{"type":"indicator","spec_version":"2.1",'
        f'"id":"indicator--{uuid.uuid4()}",'
        '"created":"2026-11-24T12:00:00.000Z","modified":"2026-11-24T12:00:00.000Z",'
        f'"pattern":"[domain-name:value = \'{_host(number)}\']","pattern_type":"stix",'
        '"valid_from":"2026-11-24T12:00:00Z"}'
    ).encode()


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + GIVE_UP_SECS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not happen")
        time.sleep(0.002)
