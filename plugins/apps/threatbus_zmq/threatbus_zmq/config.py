"""The section ``plugins.apps.zmq``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from threatbus.config import ByteSize, Port, PositiveInt, Seconds, Secret, rule
from threatbus.errors import ConfigError
from threatbus.keyfiles import is_key
from threatbus.protected import check_exposure

SECTION: Final = "plugins.apps.zmq"


class CurveConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``curve``: encryption, and which keys may take part. A secret key switches on."""

    secret_key: Secret = ""
    """The secret key of this bus, as `threatbus keys server` makes it."""
    clients: str = ""
    """Directory of the clients that may take part, a file with key and rights for each."""

    @rule
    def clients_need_a_secret_key(self) -> None:
        """Raise `ConfigError` for clients that nobody asks for their keys."""
        if self.clients and not self.secret_key:
            needed = "there too, or clients empty; `threatbus keys server` makes one"
            raise ConfigError("secret_key", None, needed)

    @rule
    def secret_key_is_a_key(self) -> None:
        """Raise `ConfigError` for text that is none."""
        if self.secret_key and not is_key(self.secret_key):
            what = "40 characters, as `threatbus keys server` writes them"
            raise ConfigError("secret_key", "no CURVE key", what)

    @rule
    def a_secret_key_needs_clients(self) -> None:
        """Raise `ConfigError` for a bus that would let nobody in."""
        if self.secret_key and not Path(self.clients or "/dev/null").is_dir():
            found = repr(self.clients) if self.clients else None
            raise ConfigError("clients", found, "a directory that is there")


class ZmqConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses and limits of the ZeroMQ endpoint; every key has a default."""

    host: Annotated[
        str, msgspec.Meta(min_length=1, description="an address, a name, an interface, or *")
    ] = "127.0.0.1"
    """Where the three ports are bound; ``*`` is every address of the machine."""
    allow_insecure: bool = False
    """Whether `host` may be a public address although no `curve` asks for keys."""
    manage: Port = 13370
    """Port at which apps subscribe (REQ/REP)."""
    pub: Port = 13371
    """Port from which apps receive (they connect a SUB)."""
    sub: Port = 13372
    """Port to which apps publish (they connect a PUB)."""
    curve: CurveConfig = CurveConfig()
    max_message_size: ByteSize = 10 * 1024 * 1024
    """Largest frame that is taken; the connection of whoever sends a larger one is closed."""
    grace: Seconds = 60.0
    """How long a subscriber may be away, or not have come yet, before it is forgotten."""
    max_subscribers: PositiveInt = 10_000
    """How many subscriptions there may be at once."""
    max_subscribers_per_peer: PositiveInt = 5_000
    """How many of them one key, or without keys one host, may have."""
    max_requests_per_second: PositiveInt = 2_000
    """Management requests that one key, or without keys one connection, may make."""

    @rule
    def pub_has_a_port_of_its_own(self) -> None:
        """Raise `ConfigError` for a port that is given twice."""
        if self.pub == self.manage:
            raise ConfigError("pub", f"the number {self.pub}", "another port than manage")

    @rule
    def sub_has_a_port_of_its_own(self) -> None:
        """Raise `ConfigError` for a port that is given twice."""
        if self.sub in (self.manage, self.pub):
            raise ConfigError("sub", f"the number {self.sub}", "another port than manage and pub")

    @rule
    def asks_for_keys_where_others_can_reach_it(self) -> None:
        """Raise `ConfigError` for an endpoint that is open to the network."""
        check_exposure(
            SECTION,
            self.host,
            authenticated=bool(self.curve.secret_key),
            allow_insecure=self.allow_insecure,
            remedy=f"{SECTION}.curve, which asks for keys (docs/security.md)",
        )
