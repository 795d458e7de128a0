"""`make bench`: the bus beside its bare counterpart (forwarder, pika pair), in turn, in one run.

Single figures depend on the machine and on what else it does; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median

from benchmarks import amqp, misp, status, systems, tenzir, zeek
from benchmarks.load import Result, indicator, readers, run
from testbed.ports import free_port
from testbed.rabbit import RabbitNode
from testbed.tenzir import TenzirNode

MIB = 1024 * 1024


def _row(what: str, ours: str, theirs: str, ratio: str, goal: str) -> None:
    print(f"{what:<44} {ours:>14} {theirs:>14} {ratio:>9}   {goal}", flush=True)


def _in_turn(
    subscribers: int, count: int, rate: float, rounds: int
) -> tuple[list[Result], list[Result]]:
    ours, theirs = [], []
    for _ in range(rounds):
        with systems.forwarder(subscribers) as system:
            theirs.append(run(system, count, rate))
        with systems.bus(subscribers) as system:
            ours.append(run(system, count, rate))
    return ours, theirs


def throughput(subscribers: int, count: int, rounds: int, goal: float) -> None:
    """As fast as it goes."""
    ours, theirs = _in_turn(subscribers, count, 0, rounds)
    our_rate, their_rate = (median(r.rate for r in results) for results in (ours, theirs))
    lost = sum(result.lost for result in ours + theirs)
    _row(
        f"messages/s, {subscribers} subscriber(s)",
        f"{our_rate:,.0f}",
        f"{their_rate:,.0f}",
        f"{our_rate / their_rate:.2f}",
        f"at least {goal}; lost: {lost}",
    )


def latency(rate: float, count: int, rounds: int) -> None:
    """At a fixed rate, one subscriber: latencies and what a message costs the processor."""
    ours, theirs = _in_turn(1, count, rate, rounds)

    def compare(what: str, of: Callable[[Result], float], unit: float, goal: str) -> None:
        our, their = (median(of(r) for r in results) for results in (ours, theirs))
        _row(
            f"{what} at {rate:,.0f} msg/s",
            f"{our * unit:.2f}",
            f"{their * unit:.2f}",
            f"{our / their:.2f}" if their else "-",
            goal,
        )

    compare("median latency, ms,", lambda r: r.median_latency, 1e3, "at most 2")
    compare("p99 latency, ms,", lambda r: r.p99_latency, 1e3, "under 5 ms")
    compare("processor µs per message", lambda r: r.cpu_seconds / r.messages, 1e6, "")


def rabbitmq(count: int, rounds: int) -> None:
    """ZeroMQ in, RabbitMQ, ZeroMQ out, beside a pika publisher and a pika consumer."""
    try:
        node = RabbitNode()
    except FileNotFoundError as error:
        _row("messages/s through RabbitMQ", "-", "-", "-", str(error))
        return
    ours, theirs = [], []
    with node:
        for _ in range(rounds):
            theirs.append(amqp.bare(node.port, count))
            with systems.bus(1, backbones=f"{{rabbitmq: {{port: {node.port}}}}}") as system:
                ours.append(run(system, count))
    our_rate, their_rate = (median(r.rate for r in results) for results in (ours, theirs))
    _row(
        "messages/s through RabbitMQ, beside pika",
        f"{our_rate:,.0f}",
        f"{their_rate:,.0f}",
        f"{our_rate / their_rate:.2f}",
        f"at least 0.5; lost: {sum(result.lost for result in ours + theirs)}",
    )


def misp_zmq(count: int, rounds: int) -> None:
    """MISP's attributes over ZeroMQ, beside a receiver that only decodes their JSON."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(misp.bare(count))
        ours.append(misp.through_the_bus(count))
    our_rate, their_rate = (median(r.rate for r in results) for results in (ours, theirs))
    _row(
        "attributes/s from MISP, beside decoding",
        f"{our_rate:,.0f}",
        f"{their_rate:,.0f}",
        f"{our_rate / their_rate:.2f}",
        f"at least 0.25; lost: {sum(result.lost for result in ours + theirs)}",
    )


def scraped(subscribers: int, count: int, rounds: int) -> None:
    """The bus looked at every second, beside the same bus that nobody looks at."""
    quiet: list[Result] = []
    watched: list[Result] = []
    looks: list[tuple[int, float]] = []
    for number in range(rounds):
        # In turn, and each as often the first: the machine is not the same from run to run.
        for looked_at in (False, True) if number % 2 else (True, False):
            port = free_port()
            with systems.bus(subscribers, apps=status.section(port)) as system:
                if looked_at:
                    with status.looked_at(port, looks):
                        watched.append(run(system, count))
                else:
                    quiet.append(run(system, count))
    ours, theirs = (median(r.rate for r in results) for results in (watched, quiet))
    cost = [median(r.cpu_seconds / r.messages for r in results) for results in (watched, quiet)]
    what = f"{subscribers} subscriber(s), looked at or not"
    _row(f"messages/s, {what}", f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}", "about 1")
    _row(
        f"processor µs per message, {what}",
        f"{cost[0] * 1e6:.2f}",
        f"{cost[1] * 1e6:.2f}",
        f"{cost[0] / cost[1]:.2f}",
        f"about 1; {sum(n for n, _ in looks)} looks of "
        f"{median(seconds for _, seconds in looks) * 1000:.0f} ms",
    )


def backlog(count: int) -> None:
    """`count` messages wait for a subscriber that does not come: memory, and the rate meanwhile."""
    queues = "{outq_messages: 4000000, outq_bytes: 4 GiB}"
    with systems.bus(2, queues=queues, zmq_keys=", grace: 3600") as system:
        # The first subscription is not connected yet; the second one shows how fast it goes.
        late = replace(system, prefixes=system.prefixes[:1])
        reading = replace(system, prefixes=system.prefixes[1:])
        before = system.resident_bytes()
        result = run(reading, count)
        size = len(indicator())
        window = 8 * MIB  # what the bus remembers for the reading subscriber is no backlog
        per_message = (system.resident_bytes() - before - window) / count - size
        _row(
            f"bytes a queued message costs beyond its {size}",
            f"{per_message:.0f}",
            "",
            "",
            f"at most 200, at {count:,} queued",
        )
        steps = [later - earlier for earlier, later in pairwise(result.marks)]
        early, full = (count / 100 / median(part) for part in (steps[:20], steps[-20:]))
        _row(
            "messages/s, full backlog beside empty one",
            f"{full:,.0f}",
            f"{early:,.0f}",
            f"{full / early:.2f}",
            "about 1",
        )
        with readers(late, count, timed=False) as pipes:
            received = pipes[0].recv().received
        _row("messages the late subscriber then gets", f"{received:,}", "", "", f"{count:,}")


def zeek_snapshot(count: int) -> None:
    """A snapshot of `count` indicators to a Zeek over native Broker."""
    if not zeek.is_possible():
        print("snapshot to Zeek: not measured, Broker's Python module is not here")
        return
    theirs = zeek.bare(count)
    for script, ours in (("the old script", False), ("our script", True)):
        received = zeek.snapshot(count, ours=ours)
        complete = "complete, in order" if received.in_order else f"only {received.count:,}"
        _row(
            f"indicators/s of a snapshot, Zeek with {script}",
            f"{received.rate:,.0f}",
            f"{theirs.rate:,.0f}",
            f"{received.rate / theirs.rate:.2f}",
            f"at least 0.5; {complete}",
        )


def lookup_table(count: int, rounds: int) -> None:
    """Indicators on the bus into the lookup table of a Tenzir node, beside a bare update of it."""
    try:
        node = TenzirNode()
    except FileNotFoundError as error:
        _row("indicators into a lookup table", "-", "-", "-", str(error))
        return
    ours, theirs = [], []
    with node:
        for _ in range(rounds):
            theirs.append(tenzir.bare(node, count))
            ours.append(tenzir.over_the_bus(node, count))
    our, their = (median(each.seconds for each in results) for results in (ours, theirs))
    pipelines = max(each.pipelines for each in ours)
    _row(
        f"seconds for {count:,} indicators into Tenzir",
        f"{our:.2f}",
        f"{their:.2f}",
        f"{our / their:.2f}",
        f"at most 2; pipelines: {pipelines}",
    )


def at_rest(starts: int) -> None:
    """Start-up, memory and processor of a bus that has nothing to do."""
    times = []
    for _ in range(starts):
        with systems.started() as running:
            times.append(running.seconds)
    _row(
        "seconds until it answers", f"{median(times):.2f}", "", "", f"at most 0.5 ({starts} starts)"
    )
    with systems.bus(0) as system:
        time.sleep(1)
        cpu, began = system.cpu_seconds(), time.monotonic()
        time.sleep(10)
        used = (system.cpu_seconds() - cpu) / (time.monotonic() - began)
        _row("resident MiB at rest", f"{system.resident_bytes() / MIB:.1f}", "", "", "under 45")
        _row("idle processor use, % of a core", f"{used * 100:.2f}", "", "", "under 1")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (default 5)")
    parser.add_argument(
        "--only",
        choices=[
            "throughput",
            "latency",
            "status",
            "rabbitmq",
            "zeek",
            "misp",
            "tenzir",
            "backlog",
            "rest",
        ],
    )
    options = parser.parse_args()
    rounds = options.rounds
    parts: list[tuple[str, Callable[[], None]]] = [
        ("throughput", lambda: throughput(1, 300_000, rounds, 0.5)),
        ("throughput", lambda: throughput(10, 50_000, rounds, 0.75)),
        ("latency", lambda: latency(200, 1000, min(rounds, 3))),
        ("latency", lambda: latency(5000, 25_000, min(rounds, 3))),
        ("status", lambda: scraped(1, 500_000, rounds)),
        ("status", lambda: scraped(10, 100_000, rounds)),
        ("rabbitmq", lambda: rabbitmq(30_000, min(rounds, 3))),
        ("misp", lambda: misp_zmq(50_000, min(rounds, 3))),
        ("tenzir", lambda: lookup_table(10_000, min(rounds, 3))),
        ("backlog", lambda: backlog(1_000_000)),
        ("zeek", lambda: zeek_snapshot(100_000)),
        ("rest", lambda: at_rest(5)),
    ]
    _row("", "threatbus", "bare", "ratio", "goal")
    for name, measure in parts:
        if options.only in (None, name):
            measure()


if __name__ == "__main__":
    main()
