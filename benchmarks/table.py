"""The table that is printed: a line per measurement, the bus beside its bare counterpart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.load import Result

MIB = 1024 * 1024


def line(what: str, ours: str, theirs: str = "", ratio: str = "", goal: str = "") -> None:
    """Print one line."""
    print(f"{what:<52} {ours:>12} {theirs:>12} {ratio:>7}   {goal}".rstrip(), flush=True)


def head() -> None:
    """Print the line above all others."""
    line("", "threatbus", "bare", "ratio", "goal")


def absent(what: str, why: str) -> None:
    """Print that something was not measured."""
    line(what, "-", "-", "-", f"not measured: {why}")


def both(what: str, ours: float, theirs: float, goal: str, form: str = ",.0f") -> None:
    """Print two numbers and their ratio."""
    ratio = f"{ours / theirs:.2f}" if theirs else "-"
    line(what, format(ours, form), format(theirs, form), ratio, goal)


def rates(what: str, ours: Sequence[Result], theirs: Sequence[Result], goal: str) -> None:
    """Print messages per second, medians of runs, and how many messages were lost in all runs."""
    both(what, _middle(ours, lambda r: r.rate), _middle(theirs, lambda r: r.rate), goal)
    line("  lost", f"{sum(r.lost for r in ours)}", f"{sum(r.lost for r in theirs)}", "", "0")


def costs(ours: Sequence[Result], theirs: Sequence[Result], goal: str = "") -> None:
    """Print processor time per 100,000 messages, and the most memory that was resident."""
    both(
        "  processor seconds per 100,000 messages",
        _middle(ours, lambda r: r.cpu_seconds / r.messages * 1e5),
        _middle(theirs, lambda r: r.cpu_seconds / r.messages * 1e5),
        goal,
        ".2f",
    )
    both(
        "  peak memory, MiB",
        _middle(ours, lambda r: r.peak_bytes / MIB),
        _middle(theirs, lambda r: r.peak_bytes / MIB),
        "",
        ".0f",
    )


def latencies(
    rate: float, ours: Sequence[Result], theirs: Sequence[Result], median_goal: str, p99_goal: str
) -> None:
    """Print latencies at a fixed rate, medians of runs."""
    for what, of, goal in (
        ("median", lambda r: r.median_latency, median_goal),
        ("p99", lambda r: r.p99_latency, p99_goal),
    ):
        name = f"  {what} latency at {rate:,.0f} msg/s, ms"
        both(name, _middle(ours, of) * 1e3, _middle(theirs, of) * 1e3, goal, ".2f")


def _middle(results: Sequence[Result], of: Callable[[Result], float]) -> float:
    return median(of(result) for result in results)
