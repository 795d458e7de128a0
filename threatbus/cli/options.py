"""Options that several commands have, and how they are read."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from threatbus import config
from threatbus.cli.outcome import say
from threatbus.client import DEFAULT_ENDPOINT, DEFAULT_TIMEOUT_SECS, Endpoint
from threatbus.client.endpoint import read_keys
from threatbus.config.secrets import is_readable_by_all
from threatbus.config.source import KEY_FILE_VARIABLE
from threatbus.control import SOCKET_NAME
from threatbus.keyfiles import ClientKeys

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(
    commands: Commands, name: str, summary: str, details: str
) -> argparse.ArgumentParser:
    """Add a subcommand; `summary` for the list of commands, `details` below its own options."""
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    """Add ``-c``. Suppressed by default, so that a subcommand keeps what stood before its name."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=default,
        help="configuration file (default: config.yaml or config.yml in the current directory)",
    )


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Add what a command needs to find a running bus."""
    parser.add_argument(
        "--endpoint",
        metavar="tcp://HOST:PORT",
        type=endpoint,
        default=DEFAULT_ENDPOINT,
        help="where the bus listens for subscriptions, its plugins.apps.zmq.manage "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        type=key_file,
        default=os.environ.get(KEY_FILE_VARIABLE) or None,
        help="the keys of this client, for a bus that asks for some; `threatbus keys client` "
        f"makes them (default: what {KEY_FILE_VARIABLE} names)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=positive,
        default=DEFAULT_TIMEOUT_SECS,
        help="how long the bus may take to answer (default: %(default)g)",
    )


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add what a command needs to find the control socket of a running bus."""
    add_config(parser)
    parser.add_argument(
        "--socket",
        metavar="PATH",
        type=Path,
        help=f"the bus's control socket (default: {SOCKET_NAME} in the state_directory that the "
        "configuration says)",
    )


def socket_path(arguments: argparse.Namespace) -> Path:
    """Find the control socket, as the options of `add_socket` say; raises InvalidConfig."""
    given: Path | None = arguments.socket
    return state_directory(arguments.config) / SOCKET_NAME if given is None else given


def state_directory(config_file: str | None) -> Path:
    """Find where the bus of this configuration keeps its files; raises InvalidConfig."""
    return Path(config.read_core(config.load(config_file)).state_directory)


def bus_endpoint(arguments: argparse.Namespace) -> Endpoint:
    """Give the endpoint that the options of `add_endpoint` say, with its keys."""
    found: Endpoint = arguments.endpoint
    return replace(found, keys=arguments.key_file)


def endpoint(text: str) -> Endpoint:
    """Read an endpoint, for argparse."""
    try:
        return Endpoint.parse(text, key_file="")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def key_file(text: str) -> ClientKeys | None:
    """Read the file with a client's keys, for argparse."""
    try:
        keys = read_keys(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if keys is not None and is_readable_by_all(text):
        say(f"warning: every user of this machine can read {text}; chmod 600 it")
    return keys


def positive(text: str) -> float:
    """Read a number of seconds, for argparse."""
    number = _number(text)
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def days(text: str) -> float:
    """Read a number of days, for argparse."""
    number = _number(text)
    if not 0 <= number <= 36_500:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 0 to 36500")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
