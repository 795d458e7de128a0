"""The command ``vast-threatbus``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Final

from threatbus import logger as logs
from threatbus.cli.options import add_config
from threatbus.cli.outcome import FAILED, OK, WRONG_USAGE
from threatbus.cli.run import Signals
from threatbus.cli.text import printable
from threatbus.errors import ConfigError, InvalidConfig, ThreatBusError
from threatbus.notify import notify
from vast_threatbus.config import VastConfig, read
from vast_threatbus.retro import MAX_QUERIES
from vast_threatbus.wrapper import NAME, Wrapper

logger = logging.getLogger("threatbus.vast")

DETAILS: Final = """\
Indicators on the bus are looked for in the events of a Tenzir node, in those to come and in those
that are stored; what is found is published as sightings. Neither bus nor node need be up.

SIGTERM or Ctrl-C stops it: what was found is reported first. SIGHUP reopens log files and reads
log levels anew. Exit codes: 2 the configuration is wrong.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal ends it; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Connect Tenzir, formerly VAST, to Threat Bus.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser, None)
    arguments = parser.parse_args(argv)
    signals = Signals()
    signals.install()
    try:
        config, warnings = read(arguments.config)
        logs.setup(config.logging, "threatbus")
    except ThreatBusError as error:
        return _fail(error)
    for warning in warnings:
        logger.warning("configuration: %s", warning)
    _run(config, arguments.config, signals)
    return OK


def _run(config: VastConfig, path: str | None, signals: Signals) -> None:
    if config.max_background_tasks > MAX_QUERIES:
        logger.info(
            "max_background_tasks: %d are run at once, as one looks for many indicators",
            MAX_QUERIES,
        )
    wrapper = Wrapper(config)
    logger.info("running: node %s, bus %s", config.node, config.bus)
    notify("READY=1")
    while (caught := signals.wait()) == signal.SIGHUP:
        _reload(path)
    logger.info("%s: stopping", caught.name)
    notify("STOPPING=1")
    wrapper.stop()


def _reload(path: str | None) -> None:
    """Read the section `logging` again; a configuration that is wrong changes nothing."""
    try:
        logs.setup(read(path)[0].logging, "threatbus")
    except ThreatBusError as error:
        for line in str(error).splitlines():
            logger.error("not reloaded: %s", line)  # noqa: TRY400
    else:
        logger.info("SIGHUP: log files are open anew, log levels as configured")


def _fail(error: ThreatBusError) -> int:
    for line in str(error).splitlines():
        sys.stderr.write(f"{NAME}: {printable(line)}\n")
    return WRONG_USAGE if isinstance(error, ConfigError | InvalidConfig) else FAILED
