"""The configuration file: keys, defaults, and what is wrong with a value."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from threatbus.client import Endpoint
from threatbus.client.endpoint import read_keys
from threatbus.config import (
    LoggingConfig,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    Text,
    check_section,
    load,
    rule,
)
from threatbus.errors import ConfigError, InvalidConfig

#: What the names of environment variables begin with: VAST_THREATBUS_LIVE_MATCH=false.
PREFIX: Final = "VAST_THREATBUS"
#: Where a node of Tenzir listens unless told otherwise.
NODE_PORT: Final = 5158
#: The sink that is no command.
STDOUT: Final = "STDOUT"

TableName = Annotated[
    str,
    msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]+\Z", description="letters, digits, _ and -"),
]
Days = Annotated[float, msgspec.Meta(ge=0, le=36_500, description="a number of days, or 0")]


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``metrics``."""

    interval: Seconds = 10.0
    """Seconds between two lines."""
    filename: Text = "metrics.log"
    """The file that gets them."""


class VastConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in the file; every key has a default."""

    vast: Text = f"localhost:{NODE_PORT}"
    """Where the node listens."""
    vast_binary: Text = "tenzir"
    """The program that runs pipelines: a path, or a name to be found."""
    threatbus: Text = "localhost:13370"
    """Where the bus listens for subscriptions, its ``plugins.apps.zmq.manage``."""
    key_file: Text | None = None
    """The client's keys for a bus that asks for them, as `threatbus keys client` makes them."""
    snapshot: Days = 30.0
    """Days of indicators to ask for at the start; 0: none."""
    logging: LoggingConfig = LoggingConfig()
    live_match: bool = True
    """Whether events are matched as they are imported."""
    live_match_source: Text = "export live=true"
    """The beginning of the pipeline for that: where events come from."""
    retro_match: bool = True
    """Whether each new indicator is looked for in stored events."""
    retro_match_source: Text = "export"
    """The beginning of the pipeline for that."""
    retro_match_max_events: NonNegativeInt = 0
    """Most events that are reported for one indicator; 0: all."""
    retro_match_timeout: Seconds = 60.0
    """Seconds that one query may take."""
    max_background_tasks: PositiveInt = 2
    """Queries that run at once, and commands for contexts that do."""
    max_indicators: PositiveInt = 1_000_000
    """Indicators that are kept; further ones are left out and counted."""
    table: TableName = "threatbus"
    """Name of the lookup table in the node."""
    metrics: MetricsConfig | None = None
    transform_context: Text | None = None
    """Command that is given a context and prints the one to report."""
    sink: Text | None = None
    """Where contexts go instead of sightings to the bus: STDOUT, or a command."""

    @rule
    def vast_is_an_endpoint(self) -> None:
        """Raise `ConfigError` for one that cannot be parsed."""
        _check_endpoint("vast", self.vast)

    @rule
    def threatbus_is_an_endpoint(self) -> None:
        """Raise `ConfigError` for one that cannot be parsed."""
        _check_endpoint("threatbus", self.threatbus)

    @rule
    def key_file_can_be_read(self) -> None:
        """Raise `ConfigError` for a file without the keys of a client."""
        try:
            read_keys(self.key_file or "")
        except ValueError as error:
            what = f"a readable key file ({error})"
            raise ConfigError("key_file", repr(self.key_file), what) from None

    @rule
    def transform_context_can_be_run(self) -> None:
        """Raise `ConfigError` for a command that is not there."""
        if self.transform_context is not None:
            _check_command("transform_context", self.transform_context)

    @rule
    def sink_can_be_run(self) -> None:
        """Raise `ConfigError` for a command that is not there."""
        if self.sink is not None and self.sink != STDOUT:
            _check_command("sink", self.sink)

    @rule
    def matches_something(self) -> None:
        """Raise `ConfigError` for a wrapper with nothing to do."""
        if not (self.live_match or self.retro_match):
            raise ConfigError("retro_match", "false, as is live_match", "true, or live_match is")

    @rule
    def program_is_installed(self) -> None:
        """Raise `ConfigError` for one that is not, or is VAST of old."""
        if Path(self.vast_binary).name == "vast":
            what = "tenzir, which VAST is called since version 4"
            raise ConfigError("vast_binary", "vast", what)
        if _found(self.vast_binary) is None:
            raise ConfigError(
                "vast_binary",
                f"{self.vast_binary!r}, which is not installed",
                "the program `tenzir`; try `pip install --no-deps tenzir`",
            )

    @property
    def program(self) -> str:
        """The path of the program that runs pipelines."""
        return _found(self.vast_binary) or self.vast_binary

    @property
    def node(self) -> Endpoint:
        """Where the node listens."""
        return Endpoint.parse(self.vast, key_file="", default_port=NODE_PORT)

    @property
    def bus(self) -> Endpoint:
        """Where the bus listens."""
        return Endpoint.parse(self.threatbus, self.key_file)


def read(path: str | None) -> tuple[VastConfig, Sequence[str]]:
    """Read the file, and the environment over it; gives warnings as well.

    Raises `InvalidConfig` with everything that is wrong.
    """
    warnings: list[str] = []
    found, errors = check_section(load(path, prefix=PREFIX).tree(), VastConfig, "", warnings)
    if found is None:
        raise InvalidConfig(errors)
    return found, warnings


def _found(program: str) -> str | None:
    # One that was installed beside this command is found without an activated environment.
    beside = str(Path(sys.executable).parent / program)
    return shutil.which(program) or shutil.which(beside)


def _check_endpoint(key: str, text: str) -> None:
    try:
        Endpoint.parse(text, key_file="")
    except ValueError:
        raise ConfigError(key, repr(text), "HOST:PORT") from None


def _check_command(key: str, text: str) -> None:
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise ConfigError(key, f"{text!r} ({error})", "a command, quoted as for a shell") from None
    if not arguments or shutil.which(arguments[0]) is None:
        raise ConfigError(key, f"{text!r}, which cannot be run", "a command that is installed")
