"""The command: puts bus and tool together."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import BinaryIO, NoReturn

from threatbus.cli.options import days
from threatbus.client import DEFAULT_ENDPOINT, App, Endpoint, Indicator, Message, read
from threatbus.errors import Overflow, Rejected
from threatbus_app_template.mapping import to_sighting, value_of
from threatbus_app_template.tool import Tool

logger = logging.getLogger("template-threatbus")

#: Seconds for which a sighting waits for room while the bus is away.
PUBLISH_SECS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run until standard input ends, or SIGTERM or Ctrl-C does it."""
    parser = argparse.ArgumentParser(description="Looks for indicators in standard input.")
    parser.add_argument("--endpoint", type=Endpoint.parse, default=DEFAULT_ENDPOINT)
    parser.add_argument("--snapshot", type=days, default=30, metavar="DAYS")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    signal.signal(signal.SIGTERM, _leave)
    tool = Tool()
    with App(
        arguments.endpoint,
        ["stix2/indicator"],
        snapshot=arguments.snapshot,
        name="template",
        on_change=logger.warning,
    ) as app:
        listening = threading.Thread(
            target=listen, args=(app.messages(), tool), name="indicators", daemon=True
        )
        listening.start()
        try:
            watch(lines_of(sys.stdin.buffer), tool, app)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def listen(messages: Iterable[Message], tool: Tool) -> None:
    """Tell the tool what the bus says; ends with the messages, that is when the app is closed."""
    for message in messages:
        try:
            indicator = read(message)
        except Rejected as error:
            logger.warning("left out: %s", error)
            continue
        if isinstance(indicator, Indicator):
            learn(indicator, tool)


def learn(indicator: Indicator, tool: Tool) -> None:
    """Look for a new or changed indicator, and forget one that was withdrawn."""
    tool.forget(indicator.id)
    value = value_of(indicator)
    if value is None or indicator.is_withdrawn():
        logger.info("%s is not looked for", indicator.id)
    else:
        tool.watch(value, indicator.id)
        logger.info("%s is looked for", indicator.id)


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """Give the lines of a log, in which a stranger may have written bytes that are no text."""
    return (line.decode(errors="replace") for line in stream)


def watch(lines: Iterable[str], tool: Tool, app: App) -> None:
    """Report what the tool finds."""
    for line in lines:
        for value, indicator_id in tool.matches(line):
            try:
                app.publish_sighting(
                    to_sighting(indicator_id, value, line.strip()), timeout=PUBLISH_SECS
                )
            except (Overflow, Rejected) as error:
                logger.warning("a sighting of %s is lost: %s", indicator_id, error)


def _leave(signum: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
