"""``threatbus trace``: says where an indicator came from, and to whom it went."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from threatbus.cli.options import add_command, add_socket, socket_path
from threatbus.cli.outcome import FAILED, OK, say
from threatbus.cli.text import byte_size, printable, shortened, table
from threatbus.control import ask

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
WANTED is the id of an indicator or a sighting, or a value that a pattern or a sighting names, such
as evil.example. Shown is every message of it that passed lately: when, which plugin put it on the
bus, the source that it names, and which subscribers have it: taken, still waiting in their outq, or
unsubscribed since. On a terminal it is a table; elsewhere, and with --json, one JSON object.

The bus keeps what passed last in memory, as much as `trace` in its configuration allows. Works for
the user that the bus runs as (and for root). Exit codes: 0 found, 1 not among what passed last,
3 no bus answers.

examples:
  threatbus trace evil.example
  threatbus trace indicator--c3f1a1a4-0d1c-4d7f-8a45-6c1f6f3f9d10 --json | jq .objects
  threatbus trace 10.0.0.1 --socket /var/lib/threatbus/control.sock
"""
HEADING: Final = ("TIME", "WHAT", "FROM", "SOURCE", "BYTES", "TO")
_LONGEST_ABOUT: Final = 200


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "trace", "say where an indicator came from, and where it went", DETAILS
    )
    parser.add_argument("wanted", metavar="WANTED", help="an id, or a value")
    add_socket(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object also on a terminal")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Ask the bus and print what it says."""
    answer = ask(socket_path(arguments), "trace", of=arguments.wanted)
    if arguments.json or not sys.stdout.isatty():
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n")
    else:
        sys.stdout.write("\n".join(map(_shown, answer["objects"])))
    for line in advice(answer):
        say(line)
    return OK if answer["objects"] else FAILED


def advice(answer: dict[str, Any]) -> Iterator[str]:
    """Say what the answer does not hold, and what to do next."""
    if not answer["objects"]:
        yield from _not_found(answer)
    for each in answer["objects"]:
        nowhere = not any(entry["to"] or entry["to_more"] for entry in each["messages"])
        if nowhere:
            yield f"{each['id']} went to nobody so far; topics are in `threatbus status --json`"
        if waiting := _waiting(each):
            yield f"it still waits for {', '.join(waiting)}: see DEPTH in `threatbus status`"
    if more := answer["more_objects"]:
        yield f"{more:,} older objects match as well: trace one by its id"


def _not_found(answer: dict[str, Any]) -> Iterator[str]:
    looked = answer["looked_through"]
    wanted = answer["wanted"]
    if not looked["messages"]:
        yield f"{wanted} is not found: nothing has passed since the bus started"
    elif looked["has_let_go"]:
        yield (
            f"{wanted} is not among the {looked['messages']:,} messages that passed since "
            f"{looked['since']}; what passed before is not kept: `trace` in the configuration "
            f"allows {looked['max_messages']:,} messages and {byte_size(looked['max_bytes'])}"
        )
    else:
        yield (
            f"{wanted} is not among the {looked['messages']:,} messages that passed since the bus "
            "started"
        )
    yield "if it was not let in, `threatbus rejected` has it"
    yield "if it is older, `threatbus tail --snapshot DAYS` asks those who know the history"


def _waiting(traced: dict[str, Any]) -> list[str]:
    states = {to["subscriber"]: to["state"] for entry in traced["messages"] for to in entry["to"]}
    return [name for name, state in states.items() if state == "waiting"]


def _shown(traced: dict[str, Any]) -> str:
    """Give a heading and a table for one object."""
    heading = f"{traced['id']}  {shortened(traced['about'], _LONGEST_ABOUT)}"
    if traced["withdrawn"]:
        heading += f"\nwithdrawn at {traced['withdrawn_at']}"
    if traced["sightings"]:
        count = traced["sightings"]
        heading += "\nsighted once" if count == 1 else f"\nsighted {count:,} times"
    if traced["more_messages"]:
        heading += f"\n{traced['more_messages']:,} older messages are left out"
    rows = [_row(entry) for entry in traced["messages"]]
    return "\n".join(map(printable, heading.split("\n"))) + "\n" + table([HEADING, *rows])


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    to = [f"{each['subscriber']} ({each['state']})" for each in entry["to"]]
    if entry["to_more"]:
        to.append(f"and {entry['to_more']:,} more")
    return (
        entry["time"],
        entry["operation"] or entry["type"].upper(),
        entry["plugin"] or "-",
        entry["source"] or "-",
        f"{entry['bytes']:,}",
        ", ".join(to) or "nobody",
    )
