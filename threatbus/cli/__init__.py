"""The command ``threatbus``: one module per subcommand, this one puts them together.

Exit codes are listed in `threatbus.cli.outcome`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from threatbus.cli import check, doctor, keys, plugins, publish, rejected, run, status, tail, trace
from threatbus.cli.options import add_config
from threatbus.cli.outcome import INTERRUPTED, failure
from threatbus.errors import ThreatBusError

EXAMPLES = """\
examples:
  threatbus -c config.yaml                run the bus
  threatbus                               the same with config.yaml or config.yml in the current
                                          directory, or with environment variables alone
  threatbus check -c config.yaml          say all that is wrong with a configuration
  threatbus doctor -c config.yaml         connect to all it names and say what does not work
  threatbus plugins                       list what is installed
  threatbus status                        see how a running bus is doing
  threatbus trace evil.example            see where an indicator came from and went
  threatbus tail                          watch what a running bus carries
  threatbus publish indicators.json       publish STIX objects to a running bus
  threatbus rejected                      list what was not let in, and why
  threatbus keys server                   make keys, so that only their owners take part
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; gives the exit code."""
    _fill_standard_streams()
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except ThreatBusError as error:
        return failure(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _fill_standard_streams() -> None:
    """Have those that the process was started without (``>&-``) lead nowhere.

    Else the next socket that is opened would be standard output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="threatbus",
        description="Threat Bus connects security tools by STIX-2 messages. "
        "Without a command it runs the bus.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("threatbus")
    parser.add_argument("--version", action="version", version=f"threatbus {version}")
    add_config(parser, default=None)
    parser.set_defaults(command=run.command)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (run, check, doctor, plugins, status, trace, tail, publish, rejected, keys):
        module.add_parser(commands)
    return parser
