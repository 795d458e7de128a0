"""`make soak`: a day of uptime in minutes, and whether the last hour finds the bus as the first.

An hour is what passes a bus in an hour at so many messages a second, and what comes beside
(`visits.Share`). It passes as fast as the machine goes; only the clock is not faster, so grace and
the timeout of snapshots are short. After each hour the bus is measured at rest.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from chaos.soak import MIB, Footprint
from chaos.stream import Stream
from chaos.visits import Share, Visitors, web_section
from testbed.bus import BusProcess
from testbed.ports import free_port

#: Messages a second that an hour stands for.
RATE: Final = 200
HOURS: Final = 24
#: Seconds that an hour may take, and the guests of it to be forgotten.
HOUR_SECS: Final = 600.0
REST_SECS: Final = 60.0
#: Seconds without a subscriber, and of a snapshot, in the place of a minute and five of them.
GRACE_SECS: Final = 1
SNAPSHOT_SECS: Final = 2
#: Bytes that its memory may differ by: half a byte per message of a day.
SLACK_BYTES: Final = 8 * MIB
#: How much more processor time a message of the last hour may take than one of the first: the
#: machine does other things, too.
COSTLIER: Final = 1.5

_HEADING: Final = (
    "after", "messages", "visitors", "wrong", "memory, MiB", "threads", "descriptors",
    "processor s / 100,000",
)  # fmt: skip


class Hour(NamedTuple):
    """The bus after so many hours."""

    number: int
    messages: int
    guests: int
    #: Messages that were lost, came twice, or out of order.
    wrong: int
    #: Failures that the bus has logged.
    failures: int
    footprint: Footprint
    #: Processor seconds that 100,000 messages of this hour took, with what came beside.
    cost: float

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows of it."""
        bus = self.footprint
        return (
            f"{self.number} h", f"{self.messages:,}", f"{self.guests:,}", f"{self.wrong}",
            f"{bus.memory / MIB:.1f}", f"{bus.threads}", f"{bus.descriptors}", f"{self.cost:.2f}",
        )  # fmt: skip


def main() -> int:
    """Let the hours pass; 1 if something has grown or a message was lost."""
    parser = argparse.ArgumentParser(prog="python -m chaos.uptime", description=__doc__)
    parser.add_argument("--hours", type=int, default=HOURS, help=f"how many (default {HOURS})")
    parser.add_argument("--rate", type=int, default=RATE, help=f"messages/s (default {RATE})")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is random")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    began = time.monotonic()
    dice = random.Random(options.seed)
    hours = pass_hours(options.hours, options.rate * 3600, Share(), dice)
    if options.markdown:
        options.markdown.write_text(_markdown(hours))
    broken = verdict(hours[0], hours[-1])
    print(f"\n{'; '.join(broken) or 'nothing has grown'}; {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


def verdict(first: Hour, last: Hour) -> list[str]:
    """Say what is worse in the last hour than in the first, a line each."""
    broken = last.footprint.growth(first.footprint, SLACK_BYTES)
    if last.cost > COSTLIER * first.cost:
        broken.append(f"processor time grew from {first.cost:.2f} to {last.cost:.2f}")
    if last.wrong:
        broken.append(f"{last.wrong} messages lost, repeated or out of order")
    if last.failures:
        broken.append(f"{last.failures} failures in the log of the bus")
    return broken


def pass_hours(count: int, messages: int, share: Share, dice: random.Random) -> list[Hour]:
    """Let so many hours pass a bus, each of so many `messages`; print a line after each."""
    web_port = free_port()
    hours: list[Hour] = []
    _print(_HEADING)
    with (
        BusProcess(
            zmq={"grace": GRACE_SECS},
            apps={"web": web_section(web_port)},
            snapshot_timeout=SNAPSHOT_SECS,
        ) as bus,
        Visitors(bus, web_port, dice) as visitors,
        Stream(bus.doors) as stream,
    ):
        for number in range(1, count + 1):
            spent = bus.cpu_seconds()
            stream.go_on(number * messages)
            try:
                visitors.come(share)
                _wait(partial(stream.is_at, number * messages), HOUR_SECS)
                spent = bus.cpu_seconds() - spent
                _wait(visitors.have_left, REST_SECS)
            except Exception as error:
                error.add_note(f"the log of the bus ends with\n{bus.log[-2000:]}")
                raise
            hours.append(
                Hour(
                    number,
                    stream.received,
                    number * share.guests,
                    stream.wrong,
                    bus.log.count("Traceback"),
                    Footprint.of(bus),
                    spent / messages * 1e5,
                )
            )
            _print(hours[-1].cells)
        if hours[-1].failures:
            # Only here: the log goes with the bus.
            print(f"\nthe last failure:\n{bus.log[bus.log.rindex('Traceback') - 500 :][:3000]}")
    return hours


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"an hour does not end within {seconds:.0f} s")
        time.sleep(0.1)


def _print(cells: tuple[str, ...]) -> None:
    padded = [f"{cell:>{max(len(title), 10)}}" for cell, title in zip(cells, _HEADING, strict=True)]
    print("  ".join(padded), flush=True)


def _markdown(hours: list[Hour]) -> str:
    lines = [f"| {' | '.join(_HEADING)} |", "|---" + "|--:" * (len(_HEADING) - 1) + "|"]
    lines += [f"| {' | '.join(hour.cells)} |" for hour in hours]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
