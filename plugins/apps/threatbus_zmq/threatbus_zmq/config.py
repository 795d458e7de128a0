"""The section ``plugins.apps.zmq``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from threatbus.config import ByteSize, Port, PositiveInt, Seconds


class ZmqConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses and limits of the ZeroMQ endpoint; every key has a default."""

    host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    """Address to bind: an IP address, a host name, an interface, or * for all."""
    manage: Port = 13370
    """Port at which apps subscribe (REQ/REP)."""
    pub: Port = 13371
    """Port from which apps receive (they connect a SUB)."""
    sub: Port = 13372
    """Port to which apps publish (they connect a PUB)."""
    max_message_size: ByteSize = 10 * 1024 * 1024
    """Largest frame that is taken; the connection of whoever sends a larger one is closed."""
    grace: Seconds = 60.0
    """How long a subscriber may be away, or not have come yet, before it is forgotten."""
    max_subscribers: PositiveInt = 10_000
    """How many subscriptions there may be at once."""
