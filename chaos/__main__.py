"""`python -m chaos`: break things around the bus, count, and print the table."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from chaos import brokers, buses, publishers, soak, subscribers
from chaos.room import Broker
from chaos.scenario import Outcome, Scenario, play

SCENARIOS: tuple[Scenario, ...] = (
    *brokers.SCENARIOS,
    *buses.SCENARIOS,
    *subscribers.SCENARIOS,
    *publishers.SCENARIOS,
    *soak.SCENARIOS,
)
#: Minutes that all scenarios take at the usual length, about.
USUAL_MINUTES = 4.5
HEADING = ("fault", "sent", "delivered", "lost", "duplicated", "recovery", "verdict")


def main() -> int:
    """Play the scenarios; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is random")
    parser.add_argument("--minutes", type=float, default=USUAL_MINUTES, help="about how long")
    parser.add_argument("--only", metavar="NAME", action="append", help="such as rabbitmq-*, soak")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    chosen = [each for each in SCENARIOS if _is_wanted(each.name, options.only)]
    if not chosen:
        parser.error("no such scenario; there are " + ", ".join(each.name for each in SCENARIOS))
    broker = Broker()
    outcomes: list[Outcome] = []
    began = time.monotonic()
    scale = options.minutes / USUAL_MINUTES
    print(_line(HEADING), flush=True)
    try:
        for scenario in chosen:
            outcomes.append(play(scenario, options.seed, scale, broker))
            print(_line(_cells(outcomes[-1])), flush=True)
    finally:
        broker.close()
    if options.markdown:
        options.markdown.write_text(_markdown(outcomes))
    failed = sum(not outcome.held for outcome in outcomes)
    seconds = time.monotonic() - began
    print(
        f"\n{len(outcomes)} faults, {failed} promises broken; seed {options.seed}; {seconds:.0f} s"
    )
    return 1 if failed else 0


def _is_wanted(name: str, patterns: list[str] | None) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    recovery = "" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
    counts = (outcome.sent, outcome.delivered, outcome.lost, outcome.duplicated)
    return (outcome.name, *(f"{count:,}" for count in counts), recovery, outcome.verdict)


def _line(cells: Iterable[str]) -> str:
    name, sent, delivered, lost, duplicated, recovery, verdict = cells
    return f"{name:24}{sent:>9}{delivered:>11}{lost:>8}{duplicated:>12}{recovery:>10}  {verdict}"


def _markdown(outcomes: Iterable[Outcome]) -> str:
    lines = [f"| {' | '.join(HEADING)} |", "|---|--:|--:|--:|--:|--:|---|"]
    for outcome in outcomes:
        _, *cells, verdict = _cells(outcome)
        lines.append(f"| {outcome.fault} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
