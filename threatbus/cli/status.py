"""``threatbus status``: says how a running bus is doing, by way of its control socket."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from threatbus.cli.options import add_command, add_socket, socket_path
from threatbus.cli.outcome import FAILED, OK, say
from threatbus.cli.text import byte_size, duration, printable, table
from threatbus.control import ask
from threatbus.observe.metrics import STALLED_SECS

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
Shows since when the bus runs, its plugins and their connections, how many messages it has accepted
and rejected (by origin and reason), and per queue: how much waits now (DEPTH, BYTES), the most that
has waited (HIGH), how much has come (IN) and how much was let go undelivered (DROPPED). inq is what
waits for a backbone, an outq what waits for a subscriber.

Works for the user that the bus runs as (and for root). Exit codes: 0 it runs, 1 it runs without a
part or a connection, which is named, 3 no bus answers.

examples:
  threatbus status
  threatbus status -c /etc/threatbus/config.yaml
  threatbus status --socket /var/lib/threatbus/control.sock
  threatbus status --json | jq .subscribers
"""
CONNECTION_HEADING: Final = ("PLUGIN", "CONNECTION", "STATE", "FOR", "RECONNECTS", "WHAT")
QUEUE_HEADING: Final = ("QUEUE", "OF", "DEPTH", "BYTES", "HIGH", "IN", "DROPPED")


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "status", "say how a running bus is doing", DETAILS)
    add_socket(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Ask the bus and print what it says."""
    status = ask(socket_path(arguments), "status")
    if arguments.json:
        shown = msgspec.json.format(msgspec.json.encode(status)).decode() + "\n"
    else:
        shown = "\n".join(tables(status))
    sys.stdout.write(shown)
    if lost := status["lost_parts"]:
        say(f"the bus runs WITHOUT {', '.join(lost)}; its log says why they did not start")
    for name in stalled(status):
        say(f"{name} takes nothing: see what its reader does, or what `queues.overflow` is for")
    down = list(connections(status, "down"))
    for name, connection in down:
        say(f"{name}: {connection['name']} is down: {connection['detail']}")
    return FAILED if lost or down else OK


def connections(status: dict[str, Any], state: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the connections of all plugins (those in `state`, if any) with the plugin's name."""
    for plugin in status["plugins"]:
        for connection in plugin["connections"]:
            if state in ("", connection["state"]):
                yield plugin["name"], connection


def stalled(status: dict[str, Any]) -> list[str]:
    """Give the names of subscribers that are there and take nothing."""
    return [
        name
        for name, each in status["subscribers"].items()
        if each["stalled_seconds"] > STALLED_SECS
    ]


def tables(status: dict[str, Any]) -> Iterator[str]:
    """Give what is shown to people, a table at a time."""
    yield (
        printable(
            f"Threat Bus {status['version']} (process {status['pid']}) is {status['state']}, "
            f"up for {duration(status['uptime_seconds'])} since {status['started']}"
        )
        + "\n"
    )
    plugins = [(each["kind"], each["name"], each["state"]) for each in status["plugins"]]
    yield table([("KIND", "PLUGIN", "STATE"), *plugins])
    if rows := list(_connections(status)):
        yield table([CONNECTION_HEADING, *rows])
    yield table([("MESSAGES", "COUNT"), *_counts(status)])
    yield table([QUEUE_HEADING, *_queues(status)])


def _connections(status: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for plugin, each in connections(status):
        yield (
            plugin,
            each["name"],
            each["state"],
            duration(each["since_seconds"]),
            f"{each['reconnects']:,}",
            each["detail"],
        )


def _counts(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "accepted", f"{status['accepted']:,}"
    yield "rejected", f"{sum(status['rejected'].values()):,}"
    for reason, count in sorted(status["rejected"].items(), key=lambda item: -item[1]):
        yield f"  {reason}", f"{count:,}"
    if status["rejected_not_kept"]:
        yield "rejected and not kept", f"{status['rejected_not_kept']:,}"
    if status["refused"]:
        yield "refused while stopping", f"{status['refused']:,}"


def _queues(status: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for queue, kind in (("inq", "inq"), ("subscribers", "outq")):
        for name, stats in status[queue].items():
            yield (
                kind,
                name,
                f"{stats['messages']:,}",
                byte_size(stats["bytes"]),
                f"{stats['high_water']:,}",
                f"{stats['put']:,}",
                f"{stats['dropped']:,}",
            )
