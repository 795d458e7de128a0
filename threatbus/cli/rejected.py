"""``threatbus rejected``: shows what the border did not let in, and publishes it again."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from threatbus.cli.options import (
    add_command,
    add_config,
    add_endpoint,
    bus_endpoint,
    state_directory,
)
from threatbus.cli.outcome import FAILED, OK, ended_by_sigterm, say
from threatbus.cli.publish import Publishing
from threatbus.cli.text import printable, shortened, table
from threatbus.client import Publisher
from threatbus.rejects import StoredReject, stored

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
Reads the bus's reject store, whether the bus runs or not. Each message has a number that stays
its own.

  list       what is kept, the newest last (also without any word)
  show N     one message: why it was rejected on standard error, its document on standard output
  publish N  sends it to the bus again, for when what was wrong with the bus or its configuration
             is mended. To mend the document itself: show N > FILE, edit, threatbus publish FILE.

Works for the user that the bus runs as (and for root). Exit codes: 0 done, 1 there is no such
message, or it is rejected again or may not have arrived, 3 no bus answers.

examples:
  threatbus rejected -c config.yaml
  threatbus rejected show 12 > fixed.json
  threatbus rejected publish 12
  threatbus rejected list --directory /var/lib/threatbus
"""
HEADING: Final = ("NUMBER", "TIME", "ORIGIN", "BYTES", "REASON")
_LONGEST_REASON: Final = 120


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "rejected", "list what was not let in, and why", DETAILS)
    parser.add_argument("action", nargs="?", choices=list(ACTIONS), default="list")
    parser.add_argument("number", metavar="N", nargs="?", type=int, help="for show and publish")
    add_config(parser)
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        help="the bus's state directory (default: what the configuration says)",
    )
    add_endpoint(parser)
    parser.set_defaults(command=command, parser=parser)


def command(arguments: argparse.Namespace) -> int:
    """List, show or publish."""
    if (arguments.number is None) != (arguments.action == "list"):
        arguments.parser.error("show and publish take the number of a message, list takes none")
    directory = arguments.directory or state_directory(arguments.config)
    try:
        kept = list(stored(directory))
    except OSError as error:
        say(f"{directory} cannot be read: {error.strerror or error}. Run it as the bus's user")
        return FAILED
    if arguments.action == "list":
        return _list(kept, directory)
    found = next((each for each in kept if each.number == arguments.number), None)
    if found is None:
        say(f"there is no message {arguments.number} in {directory}; see `threatbus rejected`")
        return FAILED
    return ACTIONS[arguments.action](found, arguments)


def _list(kept: list[StoredReject], directory: Path) -> int:
    if not kept:
        say(f"nothing that was rejected is kept in {directory}")
        if not directory.exists():
            say("there is no such directory: give the bus's with -c or --directory")
        return OK
    rows = [
        (
            str(each.number),
            each.time,
            each.origin,
            f"{each.size:,}",
            shortened(each.reason, _LONGEST_REASON),
        )
        for each in kept
    ]
    sys.stdout.write(table([HEADING, *rows]))
    return OK


def _show(found: StoredReject, _: argparse.Namespace) -> int:
    topic, document = _parted(found.content)
    say(f"number {found.number}, at {found.origin}, {found.time}, {found.size:,} bytes")
    say(f"reason: {found.reason}")
    if topic:
        say(f"topic: {topic}")
    if _is_cut(found):
        say(f"only the first {len(found.content):,} bytes were kept")
    if sys.stdout.isatty():
        text = document.decode(errors="backslashreplace")
        sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")
    else:
        sys.stdout.buffer.write(document)
        sys.stdout.buffer.write(os.linesep.encode())
    return OK


def _publish(found: StoredReject, arguments: argparse.Namespace) -> int:
    if _is_cut(found):
        say(
            f"message {found.number} has {found.size:,} bytes, of which only the first "
            f"{len(found.content):,} were kept: it must be published by whoever sent it"
        )
        return FAILED
    _, document = _parted(found.content)
    with (
        ended_by_sigterm(),
        Publisher(
            bus_endpoint(arguments), name="threatbus rejected", timeout=arguments.timeout
        ) as publisher,
    ):
        return Publishing(publisher, io.BytesIO(document), str(arguments.endpoint)).run()


ACTIONS: Final = {"list": lambda *_: OK, "show": _show, "publish": _publish}


def _parted(content: bytes) -> tuple[str, bytes]:
    """Part a ZeroMQ frame into its topic and the document; what has no topic is all document."""
    topic, blank, document = content.partition(b" ")
    if not blank or content.lstrip()[:1] in (b"{", b"["):
        return "", content
    return topic.decode(errors="backslashreplace"), document


def _is_cut(found: StoredReject) -> bool:
    return len(found.content) < found.size
