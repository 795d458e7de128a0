"""Protected mode: what asks for no key is for this machine alone, unless the operator says so.

Every plugin that binds checks its address with `check_exposure`, in a rule of its schema: then
`threatbus check` says what is wrong, and the bus does not start.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from typing import Final

from threatbus.errors import ConfigError

# Linux, linux/sockios.h and netdevice(7): the IPv4 address of an interface.
_SIOCGIFADDR: Final = 0x8915
_IFREQ: Final = struct.Struct("16s24s")


def check_exposure(
    section: str, host: str, *, authenticated: bool, allow_insecure: bool, remedy: str
) -> None:
    """Raise `ConfigError` if other machines could use an endpoint without proving who they are.

    `section` is where the endpoint's settings stand (``plugins.apps.zmq``), with the keys ``host``
    and ``allow_insecure``; `host` is what it binds; `remedy` says how it is made to ask for a key.
    """
    if authenticated or allow_insecure or is_loopback(host):
        return
    reach = "where other machines can take part without any authentication"
    raise ConfigError(
        "host",
        f"{host!r}, {reach if addresses_of(host) else 'which cannot be looked up'}",
        f"a loopback address such as 127.0.0.1; or {remedy}; or, if the network is protected "
        f"otherwise, say {section}.allow_insecure: true",
    )


def is_loopback(host: str) -> bool:
    """Say whether what is bound to `host` can be reached from this machine only.

    `host` is an address, a host name, the name of a network interface, or ``*`` for all of them.
    A name is looked up; one that cannot be, or has any other address, too, counts as public.
    """
    addresses = addresses_of(host)
    return bool(addresses) and all(map(_is_loopback_address, addresses))


def addresses_of(host: str) -> list[str]:
    """Give the addresses that `host` stands for, in numbers; none if it cannot be looked up."""
    host = host.strip("[]")
    if host in ("", "*"):
        return ["0.0.0.0"]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [host]
    if address := address_of_interface(host):
        return [address]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


def _is_loopback_address(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def address_of_interface(name: str) -> str | None:
    """Give the IPv4 address that ZeroMQ binds for an interface; None if there is no such one."""
    if name not in (interface for _, interface in socket.if_nameindex()):
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(
                any_socket.fileno(), _SIOCGIFADDR, _IFREQ.pack(name.encode()[:15], b"")
            )
    except OSError:
        return "0.0.0.0"  # it has none, or none that can be seen: take it for a public one
    # A sockaddr_in follows the name: family and port, then the address.
    return socket.inet_ntoa(answer[20:24])
