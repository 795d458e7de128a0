"""``threatbus check``: says all that is wrong with a configuration, without starting anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from threatbus import config
from threatbus.cli.options import add_command, add_config
from threatbus.cli.outcome import OK, say
from threatbus.cli.text import printable
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import installed

if TYPE_CHECKING:
    from threatbus.cli.options import Commands

DETAILS = """\
Prints every error and warning on standard error. Exit codes: 0 valid, 2 something is wrong.
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "check", "check a configuration without starting", DETAILS)
    add_config(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Check the configuration; what is wrong is raised."""
    source = config.load(arguments.config)
    checked = config.read(source, installed(APP_GROUP), installed(BACKBONE_GROUP))
    for warning in checked.warnings:
        say(f"warning: {warning}")
    name = "the environment" if source.file is None else str(source.file)
    summary = f"backbones {_listed(checked.backbones)}; apps {_listed(checked.apps)}"
    sys.stdout.write(printable(f"{name} is valid: {summary}") + "\n")
    return OK


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
