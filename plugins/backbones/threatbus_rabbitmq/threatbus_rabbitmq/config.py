"""The section ``plugins.backbones.rabbitmq``."""

from __future__ import annotations

import socket
from typing import Annotated, Any, Final, Literal

import msgspec

from threatbus.config import (
    Host,
    Port,
    PositiveInt,
    SecondsOrZero,
    Secret,
    Text,
    rule,
)
from threatbus.errors import ConfigError

#: A name as AMQP limits it, with room for what is put around it.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, description="a name")]
Heartbeat = Annotated[
    int, msgspec.Meta(ge=1, le=600, description="a whole number of seconds from 1 to 600")
]
#: RabbitMQ has 63 bits for it.
Items = Annotated[
    int, msgspec.Meta(ge=0, le=10**12, description="a whole number from 0 to 1000000000000")
]
#: Ten years: RabbitMQ's timers have their limits.
Expiry = Annotated[
    float, msgspec.Meta(ge=0, le=315_360_000, description="seconds, 0 or more, at most ten years")
]
#: AMQP has two bytes for it.
Prefetch = Annotated[
    int, msgspec.Meta(ge=1, le=65535, description="a whole number from 1 to 65535")
]


#: Bytes that AMQP allows for a name.
_MAX_NAME_BYTES: Final = 255


def _check_length(key: str, name: str) -> None:
    size = len(name.encode())
    if size > _MAX_NAME_BYTES:
        found = f"a name of {size} bytes in all"
        raise ConfigError(key, found, f"one of {_MAX_NAME_BYTES} bytes at most")


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``tls``: whether the connection is encrypted, and who trusts whom."""

    enabled: bool = False
    """Whether TLS is spoken; the broker's port for it is usually 5671."""
    ca: str = ""
    """File with the certificates that are trusted; empty: those of the system."""
    cert: str = ""
    """File with the certificate of this bus, if the broker asks for one."""
    key: str = ""
    """File with the key of `cert`; empty: it is in the same file."""
    verify: bool = True
    """Whether the broker's certificate and host name are checked."""


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``queue``: this node's queue. All but the name is fixed when it is first made."""

    name_suffix: str = ""
    """What tells this node's queue from the others; empty: the host name."""
    name_join_symbol: str = "."
    """What stands between ``threatbus`` and the suffix."""
    durable: bool = True
    """Whether the queue survives a restart of the broker."""
    auto_delete: bool = False
    """Whether the queue goes when this node disconnects, and with it what was in it."""
    exclusive: bool = False
    """Whether only this connection may use the queue, which goes with it."""
    lazy: bool = False
    """Whether messages are kept on disk; matters to RabbitMQ before 3.12."""
    type: Literal["classic", "quorum"] = "classic"
    """Quorum queues are replicated in a cluster of brokers."""
    max_items: Items = 0
    """Messages that the queue holds at most, 0 for no limit; RabbitMQ drops the oldest
    beyond, in silence."""
    expires: Expiry = 0.0
    """Seconds without a consumer after which the queue goes, for nodes that never return; 0: no."""

    @rule
    def name_is_short_enough(self) -> None:
        """Raise `ConfigError` for one that is too long for AMQP."""
        _check_length("name_suffix", self.name)

    @property
    def name(self) -> str:
        """The queue's name."""
        suffix = self.name_suffix or socket.gethostname()
        return f"threatbus{self.name_join_symbol}{suffix}"

    @property
    def arguments(self) -> dict[str, object]:
        """The queue's optional arguments, as RabbitMQ calls them."""
        found: dict[str, object] = {}
        if self.type != "classic":
            found["x-queue-type"] = self.type
        if self.lazy:
            found["x-queue-mode"] = "lazy"
        if self.max_items:
            found["x-max-length"] = self.max_items
        if self.expires:
            found["x-expires"] = max(1, round(self.expires * 1000))
        return found

    @property
    def declaration(self) -> dict[str, Any]:
        """How the queue is declared, by the names of pika's ``queue_declare``."""
        return {
            "queue": self.name,
            "durable": self.durable,
            "exclusive": self.exclusive,
            "auto_delete": self.auto_delete,
            "arguments": self.arguments,
        }


class RabbitMQConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is, and how this node takes part."""

    host: Host = "127.0.0.1"
    """The broker's host."""
    port: Port = 5672
    """The broker's port; 5671 is usual with TLS."""
    username: str = "guest"
    """Who this bus is to the broker."""
    password: Secret = "guest"
    """The password of `username`."""
    vhost: Text = "/"
    """The virtual host."""
    exchange_name: Name = "threatbus"
    """The fanout exchange that all nodes share."""
    exchange_durable: bool = True
    """Whether the exchange survives a restart of the broker, where this node has to make it; one
    that is there is taken as it is."""
    queue: QueueConfig = QueueConfig()
    tls: TlsConfig = TlsConfig()
    heartbeat: Heartbeat = 10
    """Seconds between two signs of life; without any, the broker counts as gone after at most
    twice this and 10 s."""
    prefetch: Prefetch = 1000
    """Messages that the broker sends ahead of their acknowledgement."""
    confirm_window: PositiveInt = 1000
    """Messages that are published ahead of their confirmation."""
    hold: SecondsOrZero = 60.0
    """Seconds that a node that has just started waits for a first subscriber before it consumes."""

    @rule
    def exchange_name_is_short_enough(self) -> None:
        """Raise `ConfigError` for one that is too long for AMQP."""
        _check_length("exchange_name", self.exchange_name)

    @rule
    def vhost_is_short_enough(self) -> None:
        """Raise `ConfigError` for one that is too long for AMQP."""
        _check_length("vhost", self.vhost)
