"""Commands of the operator's: they are run as they stand in the configuration, without a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from typing import Final, Protocol

from threatbus.client import MatchType
from threatbus.errors import Rejected, ThreatBusError
from vast_threatbus.config import STDOUT
from vast_threatbus.mapping import checked_context

#: Seconds that a command may take for one context.
COMMAND_SECS: Final = 10.0
#: Bytes of what a command says on standard error that are logged.
MAX_COMPLAINT: Final = 300


class CommandFailed(ThreatBusError):
    """A command could not be run, took too long, or says that it failed."""


class Transformation:
    """The command ``transform_context``: it reads a context and prints the one to report.

    ``%ioc`` in it stands for the value that was found, ``%matchtype`` for LIVE or RETRO. The
    command is split into its arguments first and the values are put in then, so whatever they
    hold stays within one argument.
    """

    def __init__(self, command: str) -> None:
        self._arguments = shlex.split(command)

    def arguments(self, value: str, match_type: MatchType) -> list[str]:
        """Give the arguments for one context, the program first."""
        program, *others = self._arguments
        return [program, *(_filled_in(each, value, match_type) for each in others)]

    def apply(self, context: bytes, value: str, match_type: MatchType) -> bytes:
        """Give the context to report; raises `CommandFailed`."""
        output = _run(self.arguments(value, match_type), context)
        try:
            return checked_context(output)
        except Rejected as error:
            raise CommandFailed(f"{self._arguments[0]}: {error}") from None


def _filled_in(argument: str, value: str, match_type: MatchType) -> str:
    # One pass: a value that holds a placeholder is left as it is.
    parts = argument.split("%ioc")
    return value.join(part.replace("%matchtype", match_type.value) for part in parts)


class Sink(Protocol):
    """Where contexts go instead of sightings to the bus."""

    def write(self, context: bytes) -> None:
        """Hand over one context; raises `CommandFailed`."""


class StandardOutput:
    """The sink ``STDOUT``: a line per context."""

    def __init__(self) -> None:
        # Keeps lines of several threads apart.
        self._lock = threading.Lock()

    def write(self, context: bytes) -> None:
        """Print it."""
        try:
            with self._lock:
                sys.stdout.buffer.write(context + b"\n")
                sys.stdout.buffer.flush()
        except (OSError, ValueError) as error:
            raise CommandFailed(f"standard output: {error}") from None


class CommandSink:
    """A sink that is a command: it is run for each context, which it reads from its input."""

    def __init__(self, command: str) -> None:
        self._arguments = shlex.split(command)

    def write(self, context: bytes) -> None:
        """Run the command."""
        _run(self._arguments, context + b"\n")


def make_sink(setting: str | None) -> Sink | None:
    """Give the sink that the configuration names, if any."""
    if setting is None:
        return None
    return StandardOutput() if setting == STDOUT else CommandSink(setting)


def _run(arguments: list[str], given: bytes) -> bytes:
    program = arguments[0]
    try:
        done = subprocess.run(
            arguments, input=given, capture_output=True, timeout=COMMAND_SECS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{program} took more than {COMMAND_SECS:.0f} s") from None
    # ValueError: no argument can hold a NUL; UnicodeError is one, too.
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{program} cannot be run: {error}") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:MAX_COMPLAINT]
        raise CommandFailed(f"{program} ended with {done.returncode}: {said or 'no word'}")
    return done.stdout
