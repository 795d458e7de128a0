"""Where a bus is to be found, and by which keys it is spoken to."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from threatbus.config.source import KEY_FILE_VARIABLE
from threatbus.errors import BusUnreachable, InvalidConfig
from threatbus.keyfiles import ClientKeys, read_file
from threatbus.protected import address_of_interface

if TYPE_CHECKING:
    import zmq

DEFAULT_PORT: Final = 13370
DEFAULT_ENDPOINT: Final = f"tcp://127.0.0.1:{DEFAULT_PORT}"
#: What is bound to the one is reached by the other.
_ONE_OF: Final = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Endpoint:
    """Where a bus listens for subscriptions (plugins.apps.zmq.manage)."""

    host: str
    port: int = DEFAULT_PORT
    #: With whose keys it is spoken to; None for a bus that asks for none.
    keys: ClientKeys | None = None

    @classmethod
    def parse(
        cls, text: str, key_file: str | None = None, default_port: int = DEFAULT_PORT
    ) -> Endpoint:
        """Read ``tcp://HOST:PORT``, ``HOST:PORT`` or ``HOST``; ValueError says what is wrong.

        `key_file` is the file with the client's keys, as `threatbus keys client` makes it; None:
        the one that the environment variable THREATBUS_KEY_FILE names, if any; "": none.
        """
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
        if key_file is None:
            key_file = os.environ.get(KEY_FILE_VARIABLE, "")
        keys = read_keys(key_file)
        return cls(host, default_port if port is None else port, keys)

    @classmethod
    def of_bound(cls, host: str, port: int) -> Endpoint:
        """Say where on this machine to connect to what is bound to `host`.

        That is an address, with or without brackets, a name, an interface, or ``*`` for all.
        """
        host = address_of_interface(host) or host.strip("[]")
        return cls(_ONE_OF.get(host, host), port)

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Have `socket`, which is yet to be connected, speak with the keys, if there are any."""
        if self.keys is not None:
            import zmq  # noqa: PLC0415

            socket.setsockopt(zmq.CURVE_SERVERKEY, self.keys.server_key.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public_key.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret_key.encode())

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


def read_keys(file: str) -> ClientKeys | None:
    """Read the file with a client's keys; None without a name. ValueError says what is wrong."""
    if not file:
        return None
    try:
        return read_file(Path(file), ClientKeys)
    except OSError as error:
        raise ValueError(f"the key file {file} cannot be read: {error.strerror}") from None
    except InvalidConfig as error:
        raise ValueError(f"{file} is no key file of a client: {error}") from None
