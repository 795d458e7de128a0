"""Questions of the network that the checks of several plugins ask."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import Final

from threatbus.errors import CheckFailed
from threatbus.protected import address_of_interface

#: Seconds that a connection may take.
CONNECT_SECS: Final = 5.0
#: State of a socket that listens, in /proc/net/tcp (proc(5)).
_LISTENS: Final = "0A"


def reach(host: str, port: int, setting: str, timeout_secs: float = CONNECT_SECS) -> None:
    """Connect to a TCP port and hang up at once.

    `setting` is the key that names it, or the keys. Raises `CheckFailed` that says what is in the
    way: no such host, nobody listens, no answer.
    """
    where = f"{host}:{port}"
    try:
        socket.create_connection((host, port), timeout_secs).close()
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckFailed(
            f"there is no host {host!r} ({reason})", f"correct {setting}, or the name service"
        ) from None
    except ConnectionRefusedError:
        raise CheckFailed(
            f"nothing listens at {where}", f"start what is to listen there, or correct {setting}"
        ) from None
    except TimeoutError:
        raise CheckFailed(
            f"{where} does not answer within {timeout_secs:g} s",
            f"look for a firewall in between, or correct {setting}",
        ) from None
    except OSError as error:
        raise CheckFailed(
            f"{where} cannot be reached ({error.strerror or error})",
            f"look at the route to it, or correct {setting}",
        ) from None


def check_port(host: str, port: int, section: str, bus_pid: int | None, key: str = "port") -> str:
    """Say whether the bus can listen on a port, or already does; raises `CheckFailed`.

    `host` is an address, a name, an interface, or ``*``; `section` is where the key ``host`` and
    the one of the port, `key`, stand; `bus_pid` is as for the hook `diagnose`. The port is bound
    for a moment and not listened on, so no client notices.
    """
    where = f"port {port} of {host}"
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _taken(where, port, f"{section}.{key}", bus_pid)
        raise _cannot_bind(error, where, f"{section}.host", f"{section}.{key}") from None
    return f"{where} is free"


def _bind(host: str, port: int) -> None:
    wanted = "0.0.0.0" if host == "*" else address_of_interface(host) or host.strip("[]")
    found = socket.getaddrinfo(wanted, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: what a connection of a moment ago has left is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _taken(where: str, port: int, key: str, bus_pid: int | None) -> str:
    holders = listeners(port)
    if bus_pid is not None and bus_pid in holders:
        return f"the bus that runs (process {bus_pid}) listens on {where}"
    names = ", ".join(f"process {pid}{_name_of(pid)}" for pid in holders)
    by_whom = names or "a process of another user"
    raise CheckFailed(
        f"{where} is taken by {by_whom}",
        f"end that, or choose another {key}; `ss -ltnp sport = :{port}`, as root, shows who has it",
    )


def _cannot_bind(error: OSError, where: str, host_key: str, port_key: str) -> CheckFailed:
    if isinstance(error, socket.gaierror):
        return CheckFailed(f"{where}: there is no such host", f"correct {host_key}")
    if error.errno == errno.EADDRNOTAVAIL:
        return CheckFailed(f"{where} is of another machine", f"set {host_key} to one of this one's")
    if error.errno == errno.EACCES:
        return CheckFailed(f"{where} is for root alone", f"choose a {port_key} above 1023")
    return CheckFailed(f"{where} cannot be bound ({error.strerror or error})", f"see {host_key}")


def listeners(port: int) -> list[int]:
    """Give the processes that listen on a TCP port, as far as this user may see them (proc(5))."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return []
    return sorted(
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and not sockets.isdisjoint(_descriptors(process))
    )


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _descriptors(process: Path) -> set[str]:
    found = set()
    # Another user's process, or one that has just ended or closed something.
    with contextlib.suppress(OSError):
        for each in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(each.readlink()))
    return found


def _name_of(pid: int) -> str:
    try:
        return f" ({Path('/proc', str(pid), 'comm').read_text().strip()})"
    except OSError:
        return ""
