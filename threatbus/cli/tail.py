"""``threatbus tail``: shows what a running bus carries."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from threatbus.cli import display
from threatbus.cli.options import add_command, add_endpoint, bus_endpoint, days
from threatbus.cli.outcome import OK, ended_by_sigterm, say
from threatbus.client import Subscriber
from threatbus.messages import INDICATOR, INTERNAL_PREFIX, SIGHTING, STIX_PREFIX, Message

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
On a terminal there is one readable line per message: time of arrival, type, operation, pattern,
name, source and id. Elsewhere, and with --json, each line is the STIX object as it was published
(JSON lines; only line breaks within a document are replaced by blanks). Requests for snapshots
are no STIX objects: a terminal shows them, JSON output leaves them out.

When the bus is restarted, tail subscribes again and says so on standard error. Ctrl-C ends it
(exit code 130), as does the end of who reads its output (exit code 0); exit code 3: no bus answers.

examples:
  threatbus tail
  threatbus tail --topic stix2/indicator --snapshot 30
  threatbus tail --json | jq -r .pattern
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "tail", "show what a running bus carries", DETAILS)
    add_endpoint(parser)
    parser.add_argument(
        "--topic",
        action="append",
        metavar="PREFIX",
        help=f"what to show, may be given more than once (default: {STIX_PREFIX}, everything)",
    )
    parser.add_argument(
        "--snapshot",
        metavar="DAYS",
        type=days,
        default=0,
        help="ask the others on the bus for what they know from the last DAYS days, too",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines also on a terminal")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Subscribe and print until something ends it."""
    as_json = arguments.json or not sys.stdout.isatty()
    encode = json_lines if as_json else readable_lines
    with (
        ended_by_sigterm(),
        Subscriber(
            bus_endpoint(arguments),
            arguments.topic or [STIX_PREFIX],
            snapshot=arguments.snapshot,
            name="threatbus tail",
            timeout=arguments.timeout,
            on_change=say,
        ) as subscriber,
    ):
        for topic in filter(_matches_nothing, arguments.topic or ()):
            say(f"nothing of the bus begins with {topic!r}; try {INDICATOR} or {SIGHTING}")
        if not as_json:
            say(f"subscribed at {arguments.endpoint}, waiting for messages; Ctrl-C ends")
        output = sys.stdout.fileno()
        while True:
            messages = subscriber.receive(watch=output)
            try:
                _write(output, encode(messages))
            except BrokenPipeError:
                return OK
            if not messages:
                return OK


def _matches_nothing(prefix: str) -> bool:
    """Say whether no topic of the bus begins with `prefix`; those of foreign plugins may."""
    if prefix.startswith(INTERNAL_PREFIX):
        return False
    return not any(topic.startswith(prefix) for topic in (INDICATOR, SIGHTING, INTERNAL_PREFIX))


def json_lines(messages: Iterable[Message]) -> bytes:
    """Write STIX objects as JSON lines."""
    return b"".join(
        # In JSON a raw line break stands between tokens only, where a blank means the same.
        message.data.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
        for message in messages
        if message.topic.startswith(STIX_PREFIX)
    )


def readable_lines(messages: Iterable[Message]) -> bytes:
    """Write a line for people per message."""
    now = time.strftime("%H:%M:%S")
    lines = (f"{now}  {display.line(message)}\n" for message in messages)
    encoding = sys.stdout.encoding or "utf-8"
    return "".join(lines).encode(encoding, "backslashreplace")


def _write(output: int, data: bytes) -> None:
    """Write all of it, past Python's buffer: nothing is left to be flushed into a closed pipe."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(output, rest) :]
