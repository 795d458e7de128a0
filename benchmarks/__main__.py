"""`make bench`: the bus beside its bare counterpart (forwarder, pika pair, …), in turn, in one run.

Single figures depend on the machine and on what else it does; the ratios are what counts.
"""

from __future__ import annotations

import argparse

from benchmarks import cases, table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (default 5)")
    parser.add_argument("--only", choices=list(cases.CASES), help="one part of the table")
    options = parser.parse_args()
    table.head()
    for name, measure in cases.CASES.items():
        if options.only in (None, name):
            measure(options.rounds)


if __name__ == "__main__":
    main()
