"""What is measured, case by case; each prints its lines of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Final

from benchmarks import amqp, misp, status, systems, table, tenzir, zeek
from benchmarks.load import Result, indicator, readers, run
from benchmarks.systems import EVERYTHING
from benchmarks.table import MIB
from testbed.ports import free_port
from testbed.rabbit import RabbitNode
from testbed.tenzir import TenzirNode

#: Runs of what takes long.
FEW_ROUNDS: Final = 3


def _in_turn(
    topics: Sequence[str], count: int, rate: float, rounds: int, *, mixed: bool = False
) -> tuple[list[Result], list[Result]]:
    """Give results of the bus and of the forwarder, run in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        with systems.forwarder(topics) as system:
            theirs.append(run(system, count, rate, mixed=mixed))
        with systems.bus(topics) as system:
            ours.append(run(system, count, rate, mixed=mixed))
    return ours, theirs


def _subscribers(number: int, count: int, rounds: int, goal: float | None) -> None:
    """As fast as it goes, to `number` subscribers that want everything."""
    ours, theirs = _in_turn([EVERYTHING] * number, count, 0, rounds)
    wanted = f"at least {goal}" if goal else ""
    table.rates(f"messages/s, subscribers: {number}", ours, theirs, wanted)
    table.costs(ours, theirs)


def throughput(rounds: int) -> None:
    """As fast as it goes, to 1 subscriber and to 10."""
    _subscribers(1, 300_000, rounds, 0.5)
    _subscribers(10, 50_000, rounds, 0.75)


def many(rounds: int) -> None:
    """As fast as it goes, to 100 subscribers, and to some that want one kind of object each."""
    _subscribers(100, 5_000, min(rounds, FEW_ROUNDS), None)
    topics = ["stix2/indicator", "stix2/sighting"] * 5
    ours, theirs = _in_turn(topics, 100_000, 0, min(rounds, FEW_ROUNDS), mixed=True)
    table.rates("messages/s, subscribers: 10, each to one of two topics", ours, theirs, "")
    table.costs(ours, theirs)


def latency(rounds: int) -> None:
    """At fixed rates, to one subscriber: latencies, and what a message costs the processor."""
    for rate, count, goals, cost in (
        (200, 1_000, ("at most 2", "under 5 ms"), ""),
        (5_000, 25_000, ("", "under 10 ms"), "at most 1.8"),
    ):
        table.line(f"subscribers: 1, {rate:,} msg/s", "")
        ours, theirs = _in_turn([EVERYTHING], count, rate, min(rounds, FEW_ROUNDS))
        table.latencies(rate, ours, theirs, *goals)
        table.costs(ours, theirs, cost)


def rabbitmq(rounds: int) -> None:
    """ZeroMQ in, RabbitMQ, ZeroMQ out, beside a pika publisher and a pika consumer."""
    try:
        node = RabbitNode()
    except FileNotFoundError as error:
        table.absent("messages/s through RabbitMQ", str(error))
        return
    count = 30_000
    ours, theirs = [], []
    with node:
        for _ in range(min(rounds, FEW_ROUNDS)):
            theirs.append(amqp.bare(node.port, count))
            backbones = f"{{rabbitmq: {{port: {node.port}}}}}"
            with systems.bus([EVERYTHING], backbones=backbones) as system:
                ours.append(run(system, count))
    table.rates("messages/s through RabbitMQ, beside pika", ours, theirs, "at least 0.6")


def misp_zmq(rounds: int) -> None:
    """MISP's attributes over ZeroMQ, beside a receiver that only decodes their JSON."""
    count = 50_000
    ours, theirs = [], []
    for _ in range(min(rounds, FEW_ROUNDS)):
        theirs.append(misp.bare(count))
        ours.append(misp.through_the_bus(count))
    table.rates("attributes/s from MISP, beside decoding", ours, theirs, "at least 0.25")


def scraped(rounds: int) -> None:
    """The bus looked at every second, beside the same bus that nobody looks at."""
    for number, count in ((1, 500_000), (10, 100_000)):
        _looked_at(number, count, rounds)


def _looked_at(subscribers: int, count: int, rounds: int) -> None:
    quiet: list[Result] = []
    watched: list[Result] = []
    looks: list[tuple[int, float]] = []
    for number in range(rounds):
        # In turn, and each as often the first: the machine is not the same from run to run.
        for looked_at in (False, True) if number % 2 else (True, False):
            port = free_port()
            with systems.bus([EVERYTHING] * subscribers, apps=status.section(port)) as system:
                if looked_at:
                    with status.looked_at(port, looks):
                        watched.append(run(system, count))
                else:
                    quiet.append(run(system, count))
    table.rates(
        f"messages/s, subscribers: {subscribers}, looked at or not", watched, quiet, "about 1"
    )
    table.costs(
        watched,
        quiet,
        f"about 1; {sum(n for n, _ in looks)} looks of "
        f"{median(seconds for _, seconds in looks) * 1000:.0f} ms",
    )


def backlog(_: int) -> None:
    """Messages wait for a subscriber that does not come: memory, and the rate meanwhile."""
    count = 1_000_000
    queues = "{outq_messages: 4000000, outq_bytes: 4 GiB}"
    with systems.bus([EVERYTHING] * 2, queues=queues, zmq_keys=", grace: 3600") as system:
        # The first subscription is not connected yet; the second one shows how fast it goes.
        late = replace(system, prefixes=system.prefixes[:1])
        reading = replace(system, prefixes=system.prefixes[1:])
        before = system.resident_bytes()
        result = run(reading, count)
        size = len(indicator())
        window = 8 * MIB  # what the bus remembers for the reading subscriber is no backlog
        per_message = (system.resident_bytes() - before - window) / count - size
        table.line(
            f"bytes a queued message costs beyond its {size}",
            f"{per_message:.0f}",
            goal=f"at most 200, at {count:,} queued",
        )
        steps = [later - earlier for earlier, later in pairwise(result.marks)]
        early, full = (count / 100 / median(part) for part in (steps[:20], steps[-20:]))
        table.both("messages/s, full backlog beside empty one", full, early, "about 1")
        with readers(late, count, timed=False) as pipes:
            received = pipes[0].recv().received
        table.line("messages the late subscriber then gets", f"{received:,}", goal=f"{count:,}")


def idle_subscriptions(rounds: int) -> None:
    """One subscriber that reads, beside the same among 2,000 that nothing matches."""
    idle = ["stix2/sighting"] * 2_000
    alone: list[Result] = []
    among: list[Result] = []
    for _ in range(min(rounds, FEW_ROUNDS)):
        with systems.bus([EVERYTHING]) as system:
            alone.append(run(system, 200_000))
        keys = ", grace: 3600, max_subscribers: 5000"
        with systems.bus([EVERYTHING, *idle], zmq_keys=keys) as system:
            among.append(run(replace(system, prefixes=system.prefixes[:1]), 200_000))
    table.rates("messages/s, among 2,000 idle subscriptions or alone", among, alone, "about 1")


def zeek_snapshot(_: int) -> None:
    """A snapshot of 100,000 indicators to a Zeek over native Broker."""
    count = 100_000
    if not zeek.is_possible():
        table.absent("snapshot to Zeek", "Broker's Python module is not here")
        return
    theirs = zeek.bare(count)
    for script, ours in (("the old script", False), ("our script", True)):
        received = zeek.snapshot(count, ours=ours)
        complete = "complete, in order" if received.in_order else f"only {received.count:,}"
        what = f"indicators/s of a snapshot, Zeek with {script}"
        table.both(what, received.rate, theirs.rate, f"at least 0.5; {complete}")


def lookup_table(rounds: int) -> None:
    """Indicators on the bus into the lookup table of a Tenzir node, beside a bare update of it."""
    count = 10_000
    try:
        node = TenzirNode()
    except FileNotFoundError as error:
        table.absent("indicators into a lookup table", str(error))
        return
    ours, theirs = [], []
    with node:
        for _ in range(min(rounds, FEW_ROUNDS)):
            theirs.append(tenzir.bare(node, count))
            ours.append(tenzir.over_the_bus(node, count))
    our, their = (median(each.seconds for each in results) for results in (ours, theirs))
    pipelines = max(each.pipelines for each in ours)
    what = f"seconds for {count:,} indicators into Tenzir"
    table.both(what, our, their, f"at most 2; pipelines: {pipelines}", ".2f")


def at_rest(_: int) -> None:
    """Start-up, memory and processor of a bus that has nothing to do."""
    times = []
    for _start in range(5):
        with systems.started() as running:
            times.append(running.seconds)
    table.line("seconds until it answers", f"{median(times):.2f}", goal="at most 0.5 (5 starts)")
    with systems.bus([]) as system:
        time.sleep(1)
        cpu, began = system.cpu_seconds(), time.monotonic()
        time.sleep(10)
        used = (system.cpu_seconds() - cpu) / (time.monotonic() - began)
        table.line("resident MiB at rest", f"{system.resident_bytes() / MIB:.1f}", goal="under 45")
        table.line("idle processor use, % of a core", f"{used * 100:.2f}", goal="under 1")


#: Name of the part, and what measures it, given the number of rounds.
CASES: Final[Mapping[str, Callable[[int], None]]] = {
    "throughput": throughput,
    "many": many,
    "latency": latency,
    "status": scraped,
    "idle": idle_subscriptions,
    "rabbitmq": rabbitmq,
    "misp": misp_zmq,
    "tenzir": lookup_table,
    "backlog": backlog,
    "zeek": zeek_snapshot,
    "rest": at_rest,
}
