"""Who is at the other end of a connection, as far as the bus can tell."""

from __future__ import annotations

from dataclasses import dataclass

from threatbus_zmq.keyring import Client


@dataclass(frozen=True)
class Peer:
    """Who sent a request."""

    #: The client whose key it has proved to have; None where no keys are asked for.
    client: Client | None = None
    #: The host that it came from.
    host: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.client.name if self.client is not None else self.host

    @property
    def key(self) -> str | None:
        """Its public key; None where no keys are asked for."""
        return self.client.key if self.client is not None else None

    @property
    def identity(self) -> str:
        """By what its subscriptions are counted together: its key, else its host."""
        return self.key or self.host

    def may_read(self, topic: str) -> bool:
        """Say whether it may subscribe to `topic`."""
        return self.client is None or self.client.may_read(topic)
