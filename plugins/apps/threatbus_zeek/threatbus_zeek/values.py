"""Zeek's values in Python, the same for both transports.

================  ====================================
Zeek              Python
================  ====================================
bool              `bool`
int, count        `int`, `Count`
double            `float`
string            `str`
time, interval    aware `datetime`, `timedelta`
addr, subnet      `ipaddress` addresses and networks
port, enum        `Port`, `Enum`
vector, record    `tuple`
set, table        `frozenset`, `dict`
unset             None
================  ====================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final

ADDRESS: Final = (IPv4Address, IPv6Address)
SUBNET: Final = (IPv4Network, IPv6Network)


class Count(int):
    """An unsigned number; where Zeek expects one it does not take an `int`."""


class Enum(str):
    """The name of an enum's member, such as ``Intel::ADDR``."""


class Port(str):
    """A port with its protocol, such as ``8080/tcp``."""


@dataclass(frozen=True)
class Event:
    """An event of Zeek's: its full name and its arguments."""

    name: str
    args: tuple[Any, ...]


def text_of(raw: str | bytes) -> str:
    r"""Give a string of Zeek's as text; bytes that are no UTF-8 are shown as ``\xff``.

    Zeek's strings are bytes. A text may hold such bytes as lone surrogates ("surrogateescape").
    """
    return _bytes_of(raw).decode("utf-8", "backslashreplace")


def _bytes_of(raw: str | bytes) -> bytes:
    if isinstance(raw, bytes):
        return raw
    try:
        return raw.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half of a surrogate pair, which stands for no byte.
        return raw.encode("utf-8", "backslashreplace")


def to_json(value: Any) -> Any:
    """Give a value as JSON can hold it, for the context of a sighting.

    Times are ISO 8601 in UTC, intervals seconds, sets lists; keys of tables become text, and so
    do numbers that JSON has not (``nan``, ``inf``). Raises `TypeError` for what is no Zeek value.
    """
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case dict():
            return _object(value)
        case tuple():
            return [to_json(each) for each in value]
        case frozenset():
            return sorted((to_json(each) for each in value), key=repr)
        case _ if isinstance(value, ADDRESS + SUBNET):
            return str(value)
    raise TypeError(f"a {type(value).__name__} is no value of Zeek's")


def _object(table: Mapping[Any, Any]) -> dict[str, Any]:
    return {_key(key): to_json(value) for key, value in table.items()}


def _key(key: Any) -> str:
    """Give a key of a table as text; a table with several indexes has tuples for keys."""
    if isinstance(key, tuple):
        return ", ".join(map(_key, key))
    found = to_json(key)
    return found if isinstance(found, str) else repr(found)
