"""Which items of Zeek's Intel framework a STIX pattern comes down to; no I/O.

Source: docs/protocol-zeek.md ("What becomes of a pattern").

Zeek matches single values, so a pattern is read as alternatives, each a set of comparisons for
equality that must hold together (its disjunctive normal form). An alternative becomes an item
if one of its comparisons stands for the whole of it. What else a pattern may say (``LIKE``,
``NOT``, ``FOLLOWEDBY``, ``WITHIN``, …) Zeek cannot match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Final, NamedTuple

#: Items that one indicator may become, and alternatives that are looked at to find them.
MAX_ITEMS: Final = 1000
#: Parentheses within each other that a pattern may have.
MAX_DEPTH: Final = 20


class Item(NamedTuple):
    """One item of the Intel framework: its type, as Zeek names it, and its value."""

    intel_type: str
    value: str


class Comparison(NamedTuple):
    """One comparison for equality with a text; `path` is ``object:property`` without quotes."""

    path: str
    value: str


#: A set of comparisons that must hold together.
Alternative = tuple[Comparison, ...]

_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<mark>[\[\]()=])
    |(?P<text>'(?:[^'\\]|\\['\\])*')
    |(?P<path>[a-zA-Z_][\w-]*:(?:'(?:[^'\\]|\\.)*'|[\w-]+)(?:\.(?:'(?:[^'\\]|\\.)*'|[\w-]+)|\[(?:\d+|\*)\])*)
    |(?P<word>[A-Za-z]+)
    |(?P<number>-?[0-9]+(?:\.[0-9]+)?)
    |(?P<end>$)
    )""",
    re.VERBOSE,
)
_ESCAPED: Final = re.compile(r"\\(['\\])")

_SIMPLE: Final = {
    "domain-name:value": "DOMAIN",
    "email-addr:value": "EMAIL",
    "email-message:from_ref.value": "EMAIL",
    "email-message:sender_ref.value": "EMAIL",
    "file:name": "FILE_NAME",
    # As MISP's own export for Zeek has it: Zeek sees user agents as software.
    "network-traffic:extensions.http-request-ext.request_header.User-Agent": "SOFTWARE",
    "software:name": "SOFTWARE",
    "url:value": "URL",
    "user-account:account_login": "USER_NAME",
    "user-account:user_id": "USER_NAME",
}
_ADDRESS_PATHS: Final = frozenset(
    {
        "ipv4-addr:value",
        "ipv6-addr:value",
        "network-traffic:dst_ref.value",
        "network-traffic:src_ref.value",
    }
)
_HOST_PATHS: Final = frozenset({"network-traffic:dst_ref.value", "network-traffic:src_ref.value"})
_HOST_NAME: Final = re.compile(r"(?=.*[A-Za-z])[\w-]+(?:\.[\w-]+)+\.?").fullmatch
_RECIPIENT: Final = re.compile(
    r"email-message:(?:to|cc|bcc)_refs(?:\[(?:\d+|\*)\])?\.value"
).fullmatch
_RESOLVED: Final = re.compile(r"domain-name:resolves_to_refs(?:\[(?:\d+|\*)\])?\.value").fullmatch
_FILE_HASH: Final = re.compile(r"file:hashes\.[\w-]+").fullmatch
_CERTIFICATE_SHA1: Final = re.compile(r"x509-certificate:hashes\.SHA-?1", re.IGNORECASE).fullmatch
_PORT: Final = re.compile(r"network-traffic:(?:src|dst)_port").fullmatch
_PROTOCOL: Final = re.compile(r"network-traffic:protocols(?:\[(?:\d+|\*)\])?").fullmatch
# They say what kind of thing another comparison is about, and so narrow nothing down.
_QUALIFIER: Final = re.compile(
    r"network-traffic:(?:src|dst)_ref\.type|user-account:account_type"
).fullmatch
_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def items_of(pattern: str, *, reduce_ip_port: bool) -> list[Item]:
    """Give the items of a pattern, none if it has no counterpart in Zeek.

    With `reduce_ip_port` an address (or domain) with a port becomes an item without the port.
    """
    found: dict[Item, None] = {}
    try:
        for alternative in _Parser(pattern).alternatives():
            found.update(dict.fromkeys(_reduced(alternative, reduce_ip_port)))
    except _NotReducible:
        return []
    return list(found)[:MAX_ITEMS]


_Operand = Callable[[], list[Alternative]]


class _NotReducible(Exception):
    """The pattern says something that Zeek's Intel framework cannot."""


class _Parser:
    """Reads one pattern by recursive descent; `_NotReducible` for anything but AND, OR and =."""

    def __init__(self, pattern: str) -> None:
        self._tokens = _tokens(pattern)
        self._kind, self._text = next(self._tokens)
        self._depth = 0

    def alternatives(self) -> Sequence[Alternative]:
        found = self._any_of(self._observation)
        if self._kind != "end":
            raise _NotReducible
        return found

    def _any_of(self, operand: _Operand) -> list[Alternative]:
        found = self._all_of(operand)
        while self._takes("word", "OR"):
            found = found + self._all_of(operand)
            _bounded(len(found))
        return found

    def _all_of(self, operand: _Operand) -> list[Alternative]:
        found = operand()
        while self._takes("word", "AND"):
            other = operand()
            _bounded(len(found) * len(other))
            found = [left + right for left, right in product(found, other)]
        return found

    def _observation(self) -> list[Alternative]:
        if self._takes("mark", "["):
            found = self._any_of(self._comparison)
            self._expect("]")
            return found
        return self._parenthesis(self._observation)

    def _comparison(self) -> list[Alternative]:
        if self._kind != "path":
            return self._parenthesis(self._comparison)
        path = self._text.replace("'", "")
        self._advance()
        self._expect("=")
        kind, text = self._kind, self._text
        if kind not in ("text", "number"):
            raise _NotReducible
        self._advance()
        value = _ESCAPED.sub(r"\1", text[1:-1]) if kind == "text" else text
        return [(Comparison(path, value),)]

    def _parenthesis(self, operand: _Operand) -> list[Alternative]:
        self._expect("(")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotReducible
        found = self._any_of(operand)
        self._depth -= 1
        self._expect(")")
        return found

    def _takes(self, kind: str, text: str) -> bool:
        if (self._kind, self._text) != (kind, text):
            return False
        self._advance()
        return True

    def _expect(self, mark: str) -> None:
        if not self._takes("mark", mark):
            raise _NotReducible

    def _advance(self) -> None:
        self._kind, self._text = next(self._tokens, ("end", ""))


def _tokens(pattern: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position <= len(pattern):
        found = _TOKEN.match(pattern, position)
        if found is None or found.lastgroup is None:
            raise _NotReducible
        yield found.lastgroup, found[found.lastgroup]
        if found.lastgroup == "end":
            return
        position = found.end()


def _bounded(alternatives: int) -> None:
    if alternatives > MAX_ITEMS:
        raise _NotReducible


def _reduced(alternative: Alternative, reduce_ip_port: bool) -> Iterable[Item]:
    """Give the items that stand for comparisons which must hold together; none if none does."""
    parts = [part for part in alternative if not _QUALIFIER(part.path)]
    if len(parts) == 1:
        return _item(parts[0])
    hashes = [part for part in parts if _FILE_HASH(part.path)]
    if hashes and all(part.path.startswith("file:") for part in parts):
        # A hash is the file, whatever else is said of it.
        return [item for part in hashes for item in _item(part)]
    ports = [part for part in parts if _PORT(part.path) or _PROTOCOL(part.path)]
    if ports and not reduce_ip_port:
        return ()
    rest = [part for part in parts if part not in ports]
    domains = [part for part in rest if part.path == "domain-name:value"]
    addresses = [part for part in rest if part.path in _ADDRESS_PATHS or _RESOLVED(part.path)]
    if len(domains) == 1 and len(domains) + len(addresses) == len(rest):
        return _item(domains[0])
    return _item(rest[0]) if len(rest) == 1 and rest == addresses else ()


def _item(comparison: Comparison) -> Iterable[Item]:
    path, value = comparison
    if path in _HOST_PATHS and _HOST_NAME(value):
        return (Item("DOMAIN", value),)
    if path in _ADDRESS_PATHS:
        return _address(value)
    if _FILE_HASH(path):
        kind = "FILE_HASH"
    elif _CERTIFICATE_SHA1(path):
        kind = "CERT_HASH"
    elif _RECIPIENT(path):
        kind = "EMAIL"
    else:
        kind = _SIMPLE.get(path, "")
    if kind == "URL":
        # Zeek's URLs have no scheme.
        value = _SCHEME.sub("", value, count=1) if _SCHEME.match(value) else value
    return (Item(kind, value),) if kind and value else ()


def _address(value: str) -> Iterable[Item]:
    """Give the item of an address or subnet; none for a text that Zeek could not convert."""
    if "%" in value:
        return ()
    try:
        if "/" in value:
            return (Item("SUBNET", str(ip_network(value, strict=False))),)
        return (Item("ADDR", str(ip_address(value))),)
    except ValueError:
        return ()
