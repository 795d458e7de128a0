"""Ports that nobody listens on, and the three that an endpoint listens on.

They are bound some time after they were picked, often by another process, and nobody may take them
meanwhile. So they are none of those that Linux gives to outgoing connections (32768 and above,
ip(7)); and a process picks one after the other, from where chance has it begin, so that it picks
none twice and hardly ever one that another process has just picked.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from typing import Final, Self

_RANGE: Final = range(16_000, 32_000)


def _candidates() -> Iterator[int]:
    # Not the generator that a test may have seeded.
    first = random.SystemRandom().randrange(len(_RANGE))
    return itertools.cycle([*_RANGE[first:], *_RANGE[:first]])


# One for the whole process, or it would pick a port twice before it is bound.
_next_candidates: Final = _candidates()


def free_ports(count: int) -> list[int]:
    """Give `count` different TCP ports of the loopback interface that are free now."""
    return list(itertools.islice(filter(_is_free, _next_candidates), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Give one free TCP port of the loopback interface."""
    return free_ports(1)[0]


class Doors:
    """Where a ZeroMQ endpoint listens."""

    def __init__(self, manage: int, pub: int, sub: int, *, host: str = "127.0.0.1") -> None:
        self.manage = manage
        self.pub = pub
        self.sub = sub
        self.host = host

    @classmethod
    def free(cls) -> Self:
        """Give doors at which nobody listens now."""
        return cls(*free_ports(3))

    @property
    def section(self) -> dict[str, int | str]:
        """The section of the plugin that opens them."""
        return {"host": self.host, "manage": self.manage, "pub": self.pub, "sub": self.sub}

    def address(self, door: str) -> str:
        """Give the address of ``manage``, ``pub`` or ``sub``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{getattr(self, door)}"
