"""Types for schemas, and the core's own schema: every key outside the plugins' sections.

The description of a type is what an error message says is allowed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

#: What an address is to be that a plugin binds, for when it cannot.
FREE: Final = "free; `threatbus doctor` says who has it"
Port = Annotated[int, Meta(ge=1, le=65535, description="a port between 1 and 65535")]
Seconds = Annotated[float, Meta(gt=0, description="a number of seconds above 0")]
SecondsOrZero = Annotated[float, Meta(ge=0, description="a number of seconds, or 0")]
PositiveInt = Annotated[int, Meta(ge=1, description="a whole number above 0")]
NonNegativeInt = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
Ratio = Annotated[float, Meta(ge=0, le=1, description="a number between 0 and 1")]
Text = Annotated[str, Meta(min_length=1, description="text that is not empty")]
Host = Annotated[str, Meta(min_length=1, description="a host name or an address")]
#: Never shown; the key with ``_file`` after it names a file that holds the value instead.
Secret = Annotated[str, Meta(description="text", extra={"secret": True})]
#: Settings of some library, of which those that are secret may come from files in the same way.
SecretSettings = Annotated[
    dict[str, Any], Meta(description="a mapping", extra={"secret_files": True})
]
ByteSize = Annotated[
    int,
    Meta(
        ge=1,
        description='a number of bytes above 0, such as 65536, "64 kB" or "256 MiB"',
        extra={"unit": "bytes"},
    ),
]
Verbosity = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["text", "json"]
Overflow = Literal["disconnect", "drop_oldest", "block"]

MIB: Final = 1024 * 1024


def default_state_directory() -> str:
    """Where state is kept: systemd's directory, else the user's own, else /var/lib/threatbus."""
    # systemd separates several directories by colons; the first is the unit's main one.
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.split(":")[0]
    if base := os.environ.get("XDG_STATE_HOME"):
        return str(Path(base) / "threatbus")
    try:
        return str(Path.home() / ".local" / "state" / "threatbus")
    except RuntimeError:  # a container's user need not have a home
        return "/var/lib/threatbus"


class LoggingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `logging`."""

    console: bool = True
    """Whether to write to standard error."""
    console_verbosity: Verbosity = "INFO"
    """The least that is written there."""
    console_format: LogFormat = "text"
    """One line of text per entry, or one JSON object."""
    file: bool = False
    """Whether to write to a file."""
    file_verbosity: Verbosity = "INFO"
    """The least that is written there."""
    file_format: LogFormat = "text"
    """As for the console."""
    filename: Text = "threatbus.log"
    """Which file."""


class PluginsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `plugins`: names of plugins and their sections, as yet unchecked."""

    apps: dict[str, Any] = {}
    """A section per app plugin: the endpoints. Without one nobody can take part; a warning."""
    backbones: dict[str, Any] = {}
    """A section per backbone, which passes messages on; at least one is needed."""


class QueuesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `queues`: bounds of inq and of each outq, and what a full outq does."""

    outq_messages: PositiveInt = 1_000_000
    """Most messages in an outq."""
    outq_bytes: ByteSize = 256 * MIB
    """Most bytes in an outq."""
    inq_messages: PositiveInt = 100_000
    """Most messages in inq."""
    inq_bytes: ByteSize = 256 * MIB
    """Most bytes in inq."""
    overflow: Overflow = "disconnect"
    """What a full outq does."""


class RejectedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `rejected`: bounds of the store of messages that the border did not let in."""

    messages: PositiveInt = 1000
    """Most messages that are kept."""
    bytes: ByteSize = 16 * MIB
    """Most bytes that are kept."""


class TraceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `trace`: bounds of what `threatbus trace` and the page look through."""

    messages: PositiveInt = 20_000
    """Most messages that are kept."""
    bytes: ByteSize = 16 * MIB
    """Most bytes that are kept."""


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at the top level of the configuration."""

    logging: LoggingConfig = LoggingConfig()
    plugins: PluginsConfig = msgspec.field(default_factory=PluginsConfig)
    queues: QueuesConfig = QueuesConfig()
    rejected: RejectedConfig = RejectedConfig()
    trace: TraceConfig = TraceConfig()
    snapshot_timeout: Seconds = 300.0
    """A snapshot that has had no answer for this long is over."""
    drain_timeout: Seconds = 10.0
    """How long stopping may take to deliver what is in flight."""
    state_directory: Text = msgspec.field(default_factory=default_state_directory)
    """Where the bus keeps what it writes."""
