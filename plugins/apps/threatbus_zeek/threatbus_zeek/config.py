"""The section ``plugins.apps.zeek``."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from threatbus.config import Host, Port, PositiveInt, Seconds
from threatbus.errors import ConfigError

SECTION: Final = "plugins.apps.zeek"
#: Where Zeek's WebSocket API is, on every server that has one.
WEBSOCKET_PATH: Final = "/v1/messages/json"

_is_namespace: Final = re.compile(r"[A-Za-z_]\w*(?:::[A-Za-z_]\w*)*").fullmatch


class ZeekConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Transports and limits towards Zeek; every key has a default."""

    host: Host = "127.0.0.1"
    """Address at which the bus listens for Zeeks that speak Broker."""
    port: Port = 47761
    """Port of the same."""
    module_namespace: str = "Tenzir"
    """Module of the script that Zeek runs: what its events' names begin with."""
    broker: bool = True
    """Whether the bus listens for Broker at all."""
    disable_ssl: bool = False
    """Whether Broker goes without TLS; must be the same on both sides (Broker::disable_ssl)."""
    websockets: list[str] = []
    """WebSocket APIs of Zeeks that the bus connects to: ws:// or wss://host:port."""
    ca_file: str = ""
    """Certificates (PEM) that wss:// servers are checked against; empty: those of the system."""
    reduce_ip_port: bool = False
    """Whether an address with a port becomes an item that matches the address at any port."""
    grace: Seconds = 60.0
    """How long a Zeek may be away before its subscription is forgotten."""
    max_subscribers: PositiveInt = 1000
    """How many subscriptions there may be at once at each transport."""
    max_indicators: PositiveInt = 1_000_000
    """Indicators per subscription of the old script whose items are remembered."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what no type says."""
        if not _is_namespace(self.module_namespace):
            found = repr(self.module_namespace)
            raise ConfigError(f"{SECTION}.module_namespace", found, "the name of a Zeek module")
        for url in self.websockets:
            checked_url(url)
        if not self.broker and not self.websockets:
            raise ConfigError(f"{SECTION}.websockets", "empty", "there, or broker true")


def checked_url(url: str) -> str:
    """Give the address of a WebSocket API with its path; raises `ConfigError`."""
    allowed = "an address such as ws://127.0.0.1:27759 or wss://zeek.example:443"
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{SECTION}.websockets", repr(url), allowed)
    path = parts.path if parts.path.strip("/") else WEBSOCKET_PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
