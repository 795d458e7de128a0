"""What the two transports have in common: the interface, and what comes in over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from threatbus.observe.report import Connection
from threatbus_zeek.values import Event


@dataclass(frozen=True)
class PeerAdded:
    """A Zeek has connected, or been connected to; `peer` names it as long as it stays."""

    peer: str


@dataclass(frozen=True)
class PeerLost:
    """The connection to a Zeek has ended."""

    peer: str


@dataclass(frozen=True)
class Arrived:
    """A message from some Zeek, in Python's values; `raw` is the frame, where there is one."""

    topic: str
    value: Any
    raw: bytes | None = None


@dataclass(frozen=True)
class Garbled:
    """Something that is no message, and why."""

    reason: str
    raw: bytes


Incoming = PeerAdded | PeerLost | Arrived | Garbled


class Transport(Protocol):
    """A way to Zeek.

    Belongs to the thread of its link from `open` to `close`, except for `wake` and `interrupt`,
    which any thread may call at any time.
    """

    #: Where it says how it is.
    state: Connection

    @property
    def name(self) -> str:
        """What logs call it; also the origin of what is rejected."""

    @property
    def keeps_its_peer(self) -> bool:
        """Whether its peer, when it comes back, is taken for the one that went."""

    def open(self) -> None:
        """Listen, or begin to connect; called once. Raises `InvalidConfig` if that cannot be."""

    def receive(self, timeout: float | None, *, reading: bool) -> Sequence[Incoming]:
        """Give what has come in, waiting up to `timeout` seconds (None: for ever) or for `wake`.

        Without `reading`, messages stay where they are, and their senders wait.
        """

    def publish(self, topic: str, event: Event) -> None:
        """Hand over an event. May block while the other side does not read.

        Raises `ConnectionLost` if it was not handed over.
        """

    def wake(self) -> None:
        """End a wait in `receive`, this or the next one."""

    def interrupt(self) -> None:
        """End a `publish` that blocks, for good: the transport is about to be closed."""

    def close(self) -> None:
        """End all connections, after what has been handed over; idempotent."""
