"""Ports that nobody listens on, and the three that an endpoint listens on."""

from __future__ import annotations

import contextlib
import socket
from typing import Self


def free_ports(count: int) -> list[int]:
    """Give `count` different TCP ports of the loopback interface that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


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
