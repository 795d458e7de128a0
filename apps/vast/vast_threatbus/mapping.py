"""Between STIX and the node's lookup table. Pure functions: no socket, no process."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from threatbus.client import Indicator, MatchType, sighting
from threatbus.errors import Rejected
from threatbus.stix2_helpers import split_object_path_and_value

#: What sightings say they come from.
SOURCE: Final = "VAST"
#: Longest value that is looked for, in characters; nothing that a sensor sees is longer.
MAX_VALUE: Final = 8192
#: Where events say when they happened.
TIME_FIELDS: Final = ("timestamp", "ts", "time")

_HASH: Final = re.compile(r"(?:file|artifact|x509-certificate):hashes\..+")


class Watched(NamedTuple):
    """What is looked for on behalf of one indicator."""

    key: str
    """What stands in the lookup table: all lower case, addresses in their canonical form."""
    value: str
    """The value as the indicator has it."""
    exact: bool
    """Whether upper and lower case matter; the table does not tell them apart."""


class Hit(msgspec.Struct):
    """One line that a pipeline prints: an event in which a key was found."""

    key: str
    event: str
    """The event in JSON."""
    ids: list[str] | None = None
    """The indicators that were asked about; None: all that have the key."""


def watched(indicator: Indicator) -> Watched | None:
    """Give what to look for; None for a pattern that says more than a lookup can.

    Carried are single values that mean the same wherever in an event they stand: addresses,
    domains, URLs, hashes. The name of a file or a user would be found in places where it means
    something else.
    """
    if indicator.pattern_type != "stix":
        return None
    found = split_object_path_and_value(indicator.pattern)
    if found is None or not 0 < len(found[1]) <= MAX_VALUE:
        return None
    path, value = found
    if path in ("ipv4-addr:value", "ipv6-addr:value"):
        address = _canonical_address(value)
        return None if address is None else Watched(address, value, exact=False)
    if path == "domain-name:value":
        return Watched(_lower(value).rstrip(".") or value, value, exact=False)
    if path == "url:value":
        return Watched(_lower(value), value, exact=True)
    if path in ("email-addr:value", "mac-addr:value") or _HASH.fullmatch(path):
        return Watched(_lower(value), value, exact=False)
    return None


def _lower(text: str) -> str:
    """Give a text in lower case as the node does: each character by itself, and as one character.

    Python looks at the neighbours of a Greek sigma, and makes two characters of a dotted I.
    """
    return text.lower() if text.isascii() else "".join(each.lower()[0] for each in text)


def _canonical_address(value: str) -> str | None:
    """Give an address as the node writes it; None for a network, which a lookup cannot find."""
    try:
        network = ipaddress.ip_interface(value)
    except ValueError:
        return None
    if network.network.num_addresses != 1:
        return None
    if isinstance(network, ipaddress.IPv6Interface) and network.ip.ipv4_mapped is not None:
        return str(network.ip.ipv4_mapped)
    return str(network.ip)


def hit(line: bytes) -> Hit:
    """Read a line of a pipeline; `Rejected` says why it is none."""
    try:
        return msgspec.json.decode(line, type=Hit)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Rejected(f"no hit: {error}") from None


def holds(event: str, wanted: Watched) -> bool:
    """Say whether the event really holds the value, if upper and lower case matter."""
    return not wanted.exact or wanted.value in _texts(_decoded(event.encode()))


def to_sighting(
    indicator_id: str,
    wanted: Watched,
    match_type: MatchType,
    event: str,
    context: bytes | None,
) -> bytes:
    """Write the sighting of an indicator in `event`; `context` is JSON, None leaves it out."""
    return sighting(
        indicator_id,
        match_type=match_type,
        value=wanted.value,
        context=None if context is None else msgspec.Raw(context),
        source=SOURCE,
        seen=_time_of(_decoded(event.encode())),
    )


def checked_context(output: bytes) -> bytes:
    """Give what a command printed, if it is one JSON document; `Rejected` if not."""
    text = output.strip()
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Rejected(f"it printed no JSON ({error})") from None
    return text


def _decoded(document: bytes) -> Any:
    try:
        return msgspec.json.decode(document)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _time_of(event: Any) -> datetime | None:
    """Give the time at which the event says that it happened."""
    for field in TIME_FIELDS:
        text = event.get(field) if isinstance(event, dict) else None
        if isinstance(text, str):
            try:
                moment = datetime.fromisoformat(text)
                return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
            except (ValueError, OverflowError):
                continue
    return None
