"""How commands end: exit codes, and what standard error says."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Final, NoReturn

from threatbus.cli.text import printable
from threatbus.errors import BusUnreachable, ConfigError, InvalidConfig, ThreatBusError

OK: Final = 0
FAILED: Final = 1
"""The bus does not start, or not all was published."""
WRONG_USAGE: Final = 2
"""The command line or the configuration is wrong."""
UNREACHABLE: Final = 3
"""Nothing answers where the bus should be."""
INTERRUPTED: Final = 128 + signal.SIGINT
"""Ctrl-C, as shells count it."""


def say(text: str) -> None:
    """Write to standard error, each line with the command's name, nothing in it raw."""
    with contextlib.suppress(OSError, ValueError):
        for line in text.splitlines():
            sys.stderr.write(f"threatbus: {printable(line)}\n")
        sys.stderr.flush()


def failure(error: ThreatBusError) -> int:
    """Say what went wrong and give the exit code for it."""
    say(str(error))
    if isinstance(error, InvalidConfig):
        for warning in error.warnings:
            say(f"warning: {warning}")
    if isinstance(error, ConfigError | InvalidConfig):
        return WRONG_USAGE
    return UNREACHABLE if isinstance(error, BusUnreachable) else FAILED


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C does, so that it unsubscribes on its way out."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(signum: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
