"""Where a bus is to be found, and why nothing answers there."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from threatbus.errors import BusUnreachable

DEFAULT_PORT: Final = 13370
DEFAULT_ENDPOINT: Final = f"tcp://127.0.0.1:{DEFAULT_PORT}"
#: Seconds that finding out why nothing answers may take, twice.
PROBE_SECS: Final = 1.0


@dataclass(frozen=True)
class Endpoint:
    """Where a bus listens for subscriptions (plugins.apps.zmq.manage)."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_PORT) -> Endpoint:
        """Read ``tcp://HOST:PORT``, ``HOST:PORT`` or ``HOST``; ValueError says what is wrong."""
        rest = text.removeprefix("tcp://")
        if rest.count(":") > 1 and not rest.startswith("["):
            # An IPv6 address by itself; with a port it needs brackets.
            rest = f"[{rest}]"
        try:
            found = urlsplit(f"//{rest}")
            host, port = found.hostname, found.port
        except ValueError as error:
            raise ValueError(f"{text!r} is not of the form tcp://HOST:PORT ({error})") from None
        if not host or found.netloc != rest or port == 0:
            raise ValueError(f"{text!r} is not of the form tcp://HOST:PORT")
        return cls(host, default_port if port is None else port)

    def address(self, port: int | None = None) -> str:
        """Give the address of `port` on the same host, as ZeroMQ writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port if port is None else port}"

    def __str__(self) -> str:
        return self.address()


def needs_ipv6(endpoint: Endpoint) -> Literal[0, 1]:
    """Say whether the host has no IPv4 address; raises `BusUnreachable` if it has none at all.

    ZeroMQ tries one address of a name only, and the bus listens on IPv4 unless it is told to.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BusUnreachable(
            f"there is no host {endpoint.host!r} to find a Threat Bus on: {reason}"
        ) from None
    return 0 if any(family == socket.AF_INET for family, *_ in found) else 1


def explain_silence(endpoint: Endpoint, timeout: float) -> str:
    """Say what was tried, what was found, and what to check. Looks at the endpoint to find out."""
    return (
        f"no Threat Bus answers at {endpoint} (waited {timeout:g} s): {_probe(endpoint)}\n"
        "Check that the bus is running, that plugins.apps.zmq is in its configuration, and that "
        "host and port are those of its `manage` endpoint."
    )


def _probe(endpoint: Endpoint) -> str:
    """Find out why nothing answers, by an ordinary connection."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), PROBE_SECS) as connection:
            connection.settimeout(PROBE_SECS)
            greeting = connection.recv(1)
    except ConnectionRefusedError:
        return "the connection was refused, so nothing listens there."
    except TimeoutError:
        return "nothing reacts to a connection there, or what does says nothing."
    except OSError as error:
        return f"{error.strerror or error}."
    # Every ZMTP peer begins with this byte, before it has been told anything.
    if greeting == b"\xff":
        return (
            "a ZeroMQ socket listens there, but does not reply. It may be another port of the bus "
            "(`pub` or `sub`), or a bus that hangs."
        )
    return "something listens there, but it does not speak ZeroMQ."
