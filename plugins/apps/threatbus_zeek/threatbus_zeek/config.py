"""The section ``plugins.apps.zeek``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from threatbus.config import Host, Port, PositiveInt, Seconds, rule
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.protected import check_exposure

SECTION: Final = "plugins.apps.zeek"
#: Where Zeek's WebSocket API is, on every server that has one.
WEBSOCKET_PATH: Final = "/v1/messages/json"

_is_namespace: Final = re.compile(r"[A-Za-z_]\w*(?:::[A-Za-z_]\w*)*").fullmatch


class BrokerTlsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``tls``: certificates for Broker, which trusts anybody without them."""

    ca: str = ""
    """File with the certificates (PEM) that a Zeek's certificate must be signed by."""
    cert: str = ""
    """File with the bus's own certificate."""
    key: str = ""
    """File with its key."""

    @rule
    def all_files_are_there_or_none_is_named(self) -> None:
        """Raise `InvalidConfig` for half of what is needed, and for files that are not there."""
        files = {"ca": self.ca, "cert": self.cert, "key": self.key}
        if not any(files.values()):
            return
        errors = [
            ConfigError(key, repr(file) if file else None, "a file that is there")
            for key, file in files.items()
            if not file or not Path(file).is_file()
        ]
        if errors:
            raise InvalidConfig(errors)


class ZeekConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Transports and limits towards Zeek; every key has a default."""

    host: Host = "127.0.0.1"
    """Address at which the bus listens for Zeeks that speak Broker."""
    port: Port = 47761
    """Port of the same."""
    allow_insecure: bool = False
    """Whether `host` may be a public address although Zeeks are not asked for a certificate."""
    module_namespace: str = "Tenzir"
    """Module of the script that Zeek runs: what its events' names begin with."""
    broker: bool = True
    """Whether the bus listens for Broker at all; it needs Broker's Python module."""
    disable_ssl: bool = False
    """Whether Broker goes without TLS; must be the same on both sides (Broker::disable_ssl)."""
    tls: BrokerTlsConfig = BrokerTlsConfig()
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

    @rule
    def module_namespace_is_the_name_of_a_module(self) -> None:
        """Raise `ConfigError` for what Zeek would not parse."""
        if not _is_namespace(self.module_namespace):
            found = repr(self.module_namespace)
            raise ConfigError("module_namespace", found, "the name of a Zeek module")

    @rule
    def websockets_are_addresses(self) -> None:
        """Raise `InvalidConfig` for those that are none."""
        errors = []
        for url in self.websockets:
            try:
                checked_url(url)
            except ConfigError as error:
                errors.append(error)
        if errors:
            raise InvalidConfig(errors)

    @rule
    def has_a_transport(self) -> None:
        """Raise `ConfigError` for a plugin that no Zeek can reach."""
        if not self.broker and not self.websockets:
            raise ConfigError("websockets", "empty", "there, or broker true")

    @rule
    def asks_for_certificates_where_others_can_reach_it(self) -> None:
        """Raise `ConfigError` for a port of Broker that is open to the network."""
        if self.broker:
            check_exposure(
                SECTION,
                self.host,
                authenticated=bool(self.tls.ca) and not self.disable_ssl,
                allow_insecure=self.allow_insecure,
                remedy=f"{SECTION}.tls, by which Zeeks show a certificate (docs/security.md)",
            )


def checked_url(url: str) -> str:
    """Give the address of a WebSocket API with its path; raises `ConfigError` for none."""
    allowed = "an address such as ws://127.0.0.1:27759 or wss://zeek.example:443"
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("websockets", repr(without_secrets(url)), allowed)
    path = parts.path if parts.path.strip("/") else WEBSOCKET_PATH
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def without_secrets(url: str) -> str:
    """Give an address without user, password and query, in which a token may be: for messages."""
    return re.sub(r"://[^/?#]*@", "://", url).partition("?")[0]
