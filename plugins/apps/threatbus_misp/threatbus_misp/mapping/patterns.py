"""Attribute values to STIX patterns and back.

One table says what each MISP type becomes (`MISP_TYPES` lists them). A type that is one value
becomes one comparison, in the form that sensors understand (``[ipv4-addr:value = '…']``); a
composite (``domain|ip``) becomes comparisons joined by AND inside one observation. STIX lets AND
join only comparisons of one object type, hence ``network-traffic:dst_ref.value`` wherever a port
stands beside an address or a name. Rules stay as they are, under a pattern type of their own.

`value_of` reads more than `pattern_of` writes: the dialect of misp-stix too (``dst_ref.type``,
ports and sizes as strings, rules in square brackets, ``hashes.SHA256`` and ``hashes.'SHA-256'``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address
from typing import Final, NamedTuple

STIX: Final = "stix"

#: Pattern type by MISP type, for rules.
RULES: Final = {
    "yara": "yara",
    "sigma": "sigma",
    "snort": "snort",
    "suricata": "suricata",
    "zeek": "zeek",
    "bro": "zeek",
}


class Pattern(NamedTuple):
    """A pattern and its language, ``stix`` or that of a rule."""

    text: str
    pattern_type: str = STIX


class MispValue(NamedTuple):
    """What a pattern says in MISP's terms; a composite's halves are joined by ``|``.

    `types` are all MISP types that this pattern may stem from, the likeliest first.
    """

    types: tuple[str, ...]
    value: str


class _NoPattern(Exception):
    """Why a value makes no pattern."""


# Hashes: the name in STIX, and the number of digits where the STIX library looks at it. The
# library knows no more than these; any text passes as a hash of another name.
_HASHES: Final[dict[str, tuple[str, int | None]]] = {
    "md5": ("MD5", 32),
    "sha1": ("'SHA-1'", 40),
    "sha224": ("'SHA-224'", 56),
    "sha256": ("'SHA-256'", 64),
    "sha384": ("'SHA-384'", 96),
    "sha512": ("'SHA-512'", 128),
    # Not SHA-224 and SHA-256, whose values differ. A name in STIX has no slash.
    "sha512/224": ("'SHA-512-224'", 56),
    "sha512/256": ("'SHA-512-256'", 64),
    "sha3-224": ("'SHA3-224'", 56),
    "sha3-256": ("'SHA3-256'", 64),
    "sha3-384": ("'SHA3-384'", 96),
    "sha3-512": ("'SHA3-512'", 128),
    "ssdeep": ("SSDEEP", None),
    "tlsh": ("TLSH", None),
    "authentihash": ("AUTHENTIHASH", None),
    "cdhash": ("CDHASH", None),
    "imphash": ("IMPHASH", None),
    "impfuzzy": ("IMPFUZZY", None),
    "pehash": ("PEHASH", None),
    "telfhash": ("TELFHASH", None),
    "vhash": ("VHASH", None),
}
_NO_FILENAME_COMPOSITE: Final = ("cdhash", "telfhash")

_HTTP_REQUEST: Final = "network-traffic:extensions.'http-request-ext'"

# Types whose value is compared with one property, as it is.
_PROPERTIES: Final = {
    "domain": "domain-name:value",
    "hostname": "domain-name:value",
    "url": "url:value",
    "uri": "url:value",
    "link": "url:value",
    "email": "email-addr:value",
    "email-src": "email-message:from_ref.value",
    "email-dst": "email-message:to_refs[*].value",
    "email-src-display-name": "email-message:from_ref.display_name",
    "email-dst-display-name": "email-message:to_refs[*].display_name",
    "email-subject": "email-message:subject",
    "email-body": "email-message:body",
    "email-header": "email-message:received_lines[*]",
    "email-message-id": "email-message:message_id",
    "email-reply-to": "email-message:additional_header_fields.reply_to",
    "email-x-mailer": "email-message:additional_header_fields.x_mailer",
    "email-attachment": "email-message:body_multipart[*].body_raw_ref.name",
    "filename": "file:name",
    "attachment": "file:name",
    "mac-address": "mac-addr:value",
    "mutex": "mutex:name",
    "regkey": "windows-registry-key:key",
    "http-method": f"{_HTTP_REQUEST}.request_method",
    "user-agent": f"{_HTTP_REQUEST}.request_header.'User-Agent'",
    "cookie": f"{_HTTP_REQUEST}.request_header.Cookie",
    # STIX has no property for these; the type is MISP's own.
    "ja3-fingerprint-md5": "x-misp-ja3-fingerprint-md5:value",
    "jarm-fingerprint": "x-misp-jarm-fingerprint:value",
    "hassh-md5": "x-misp-hassh-md5:value",
    "hasshserver-md5": "x-misp-hasshserver-md5:value",
    "community-id": "x-misp-community-id:value",
    "favicon-mmh3": "x-misp-favicon-mmh3:value",
}

# Largest values: ports are 16 bits, AS numbers 32; a size is any that 64 bits can hold.
_MAX_PORT: Final = 65_535
_MAX_AS_NUMBER: Final = 2**32 - 1
_MAX_SIZE: Final = 2**64 - 1

_KEY: Final = "windows-registry-key:key"
_DATA: Final = "windows-registry-key:values[*].data"
_DST: Final = "network-traffic:dst_ref.value"
_SRC: Final = "network-traffic:src_ref.value"
_DST_PORT: Final = "network-traffic:dst_port"
_SRC_PORT: Final = "network-traffic:src_port"

_OCTETS: Final = frozenset(map(str, range(256)))
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_SSDEEP_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/+:."
)
_MAX_SSDEEP: Final = 128  # what the STIX library takes; ssdeep itself ends near 110


def _text(value: str) -> str:
    """Write a STIX string literal."""
    if "\\" in value or "'" in value:
        value = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{value}'"


def _filled(value: str) -> str:
    if not value:
        raise _NoPattern("empty")
    return value


def _number(value: str, largest: int) -> str:
    # int() is bounded by the length, for it takes quadratic time and refuses thousands of digits.
    if not (value.isascii() and value.isdigit() and len(value) <= 30 and int(value) <= largest):
        raise _NoPattern(f"not a whole number from 0 to {largest}")
    return value.lstrip("0") or "0"


def _address_type(value: str) -> str:
    """Give the object type of an IP address or a CIDR block, as the value has it."""
    address, slash, prefix = value.partition("/")
    if ":" in address:
        kind, bits = "ipv6-addr", 128
        _check_ipv6(address)
    else:
        kind, bits = "ipv4-addr", 32
        # A tenth of what ipaddress needs; most addresses are of this kind.
        octets = address.split(".")
        if len(octets) != 4 or not _OCTETS.issuperset(octets):
            raise _NoPattern("not an IP address")
    if slash and not (
        prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and int(prefix) <= bits
    ):
        raise _NoPattern("not a CIDR block")
    return kind


def _check_ipv6(address: str) -> None:
    if "%" in address:  # a zone is any text, and means nothing elsewhere
        raise _NoPattern("an IPv6 address with a zone")
    try:
        IPv6Address(address)
    except AddressValueError:
        raise _NoPattern("not an IP address") from None


def _hash_value(value: str, misp_type: str, digits: int | None) -> str:
    if digits is not None:
        if len(value) != digits or not _HEX_DIGITS.issuperset(value):
            raise _NoPattern(f"not the {digits} hexadecimal digits of {misp_type}")
    elif misp_type == "ssdeep" and not (
        len(value) <= _MAX_SSDEEP and _SSDEEP_CHARACTERS.issuperset(value)
    ):
        raise _NoPattern("not an ssdeep hash")
    return _filled(value)


def _halves(value: str, *, last: bool = True) -> tuple[str, str]:
    """Split a composite at its last ``|``, or at its first where the second half may hold one."""
    first, bar, second = value.rpartition("|") if last else value.partition("|")
    if not bar:
        raise _NoPattern("a composite value without |")
    return _filled(first), _filled(second)


Maker = Callable[[str], str]


def _property(path: str) -> Maker:
    head = f"[{path} = "
    return lambda value: f"{head}{_text(_filled(value))}]"


def _hash(misp_type: str, path: str) -> Maker:
    name, digits = _HASHES[misp_type]
    head = f"[{path}.{name} = '"
    return lambda value: f"{head}{_escaped(_hash_value(value, misp_type, digits))}']"


def _escaped(value: str) -> str:
    return _text(value)[1:-1]


def _filename_and_hash(misp_type: str) -> Maker:
    name, digits = _HASHES[misp_type]

    def make(value: str) -> str:
        filename, found = _halves(value)
        found = _hash_value(found, misp_type, digits)
        return f"[file:name = {_text(filename)} AND file:hashes.{name} = {_text(found)}]"

    return make


def _address(value: str) -> str:
    return f"[{_address_type(value)}:value = '{value}']"


def _address_and_port(reference: str, port_path: str) -> Maker:
    def make(value: str) -> str:
        address, port = _halves(value)
        _address_type(address)
        return f"[{reference} = '{address}' AND {port_path} = {_number(port, _MAX_PORT)}]"

    return make


def _hostname_and_port(value: str) -> str:
    name, port = _halves(value)
    return f"[{_DST} = {_text(name)} AND {_DST_PORT} = {_number(port, _MAX_PORT)}]"


def _domain_and_address(value: str) -> str:
    name, address = _halves(value)
    _address_type(address)
    return (
        f"[domain-name:value = {_text(name)}"
        f" AND domain-name:resolves_to_refs[*].value = '{address}']"
    )


def _registry_value(value: str) -> str:
    key, data = _halves(value, last=False)
    return f"[{_KEY} = {_text(key)} AND {_DATA} = {_text(data)}]"


def _as_number(value: str) -> str:
    # MISP strips the prefix when it saves, but did not always.
    number = value[2:] if value[:2] in ("AS", "as", "As") else value
    return f"[autonomous-system:number = {_number(number, _MAX_AS_NUMBER)}]"


def _github_user(value: str) -> str:
    return (
        "[user-account:account_type = 'github'"
        f" AND user-account:account_login = {_text(_filled(value))}]"
    )


_MAKERS: Final[dict[str, Maker]] = {
    **{misp_type: _property(path) for misp_type, path in _PROPERTIES.items()},
    **{misp_type: _hash(misp_type, "file:hashes") for misp_type in _HASHES},
    **{
        f"filename|{misp_type}": _filename_and_hash(misp_type)
        for misp_type in _HASHES
        if misp_type not in _NO_FILENAME_COMPOSITE
    },
    "malware-sample": _filename_and_hash("md5"),
    **{
        f"x509-fingerprint-{misp_type}": _hash(misp_type, "x509-certificate:hashes")
        for misp_type in ("md5", "sha1", "sha256")
    },
    "ip-src": _address,
    "ip-dst": _address,
    "ip-src|port": _address_and_port(_SRC, _SRC_PORT),
    "ip-dst|port": _address_and_port(_DST, _DST_PORT),
    "hostname|port": _hostname_and_port,
    "domain|ip": _domain_and_address,
    "port": lambda value: f"[{_DST_PORT} = {_number(value, _MAX_PORT)}]",
    "AS": _as_number,
    "size-in-bytes": lambda value: f"[file:size = {_number(value, _MAX_SIZE)}]",
    "regkey|value": _registry_value,
    "github-username": _github_user,
}

#: Every MISP type that can become a pattern, if the value is one of that type.
MISP_TYPES: Final = frozenset(_MAKERS) | frozenset(RULES)


def pattern_of(misp_type: str, value: str) -> Pattern | None:
    """Give the pattern of an attribute, or None if there is none; `why_no_pattern` says why.

    `value` is MISP's: a composite's halves joined by ``|``. The reference parser accepts every
    pattern that comes out of this, and the STIX library an indicator with it.
    """
    try:
        return _pattern(misp_type, value)
    except _NoPattern:
        return None


def why_no_pattern(misp_type: str, value: str) -> str:
    """Say in a few words why `pattern_of` gave None, without quoting the value."""
    try:
        _pattern(misp_type, value)
    except _NoPattern as error:
        return str(error)
    return "there is a pattern" if misp_type in MISP_TYPES else "no pattern for this type"


def _pattern(misp_type: str, value: str) -> Pattern | None:
    maker = _MAKERS.get(misp_type)
    if maker is not None:
        return Pattern(maker(value))
    language = RULES.get(misp_type)
    if language is None:
        return None
    if not value.strip():
        raise _NoPattern("empty")
    # In none of these languages does a rule begin with a bracket; misp-stix puts rules in two.
    if value[0] == "[":
        raise _NoPattern(f"not a {misp_type} rule")
    return Pattern(value, language)


# The way back. Paths are compared in a plain form: no quotes, no indices, hash names in upper
# case without hyphens.

_COMPARISON = re.compile(
    r"""\s*(?P<path>[a-zA-Z][a-zA-Z0-9-]*:(?:'(?:[^'\\]|\\.)*'|[^'\s=!<>()\[\]]|\[(?:\d+|\*)\])+)
    \s*=\s*
    (?:'(?P<text>(?:[^'\\]|\\['\\])*)'|(?P<number>\d+))\s*""",
    re.VERBOSE | re.DOTALL,
)
_JOIN = re.compile(r"AND(?=\s)")
_INDEX = re.compile(r"\[(?:\d+|\*)\]")
_ESCAPE = re.compile(r"\\(['\\])")

#: Most comparisons of an observation that the way back looks at; MISP's have six at most.
_MAX_COMPARISONS: Final = 16


def _plain_path(path: str) -> str:
    path = _INDEX.sub("", path).replace("'", "")
    head, hashes, name = path.partition(":hashes.")
    return f"{head}{hashes}{name.replace('-', '').upper()}" if hashes else path


def _types_by_paths() -> dict[tuple[str, ...], tuple[str, ...]]:
    """List the MISP types by the paths that their patterns compare, in the order of the value."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}

    def add(misp_type: str, *paths: str) -> None:
        plain = tuple(map(_plain_path, paths))
        found[plain] = (*found.get(plain, ()), misp_type)

    for misp_type, path in _PROPERTIES.items():
        add(misp_type, path)
    for misp_type, (name, _) in _HASHES.items():
        add(misp_type, f"file:hashes.{name}")
        if misp_type not in _NO_FILENAME_COMPOSITE:
            add(f"filename|{misp_type}", "file:name", f"file:hashes.{name}")
    add("malware-sample", "file:name", "file:hashes.MD5")
    for misp_type in ("md5", "sha1", "sha256"):
        add(f"x509-fingerprint-{misp_type}", f"x509-certificate:hashes.{_HASHES[misp_type][0]}")
    for kind in ("ipv4-addr", "ipv6-addr"):
        add("ip-dst", f"{kind}:value")
        add("ip-src", f"{kind}:value")
        add("ip-dst|port", f"{kind}:value", _DST_PORT)
        add("ip-src|port", f"{kind}:value", _SRC_PORT)
        add("domain|ip", "domain-name:value", f"{kind}:value")
    for misp_type in ("ip-dst", "hostname", "domain"):
        add(misp_type, _DST)
    add("ip-src", _SRC)
    add("ip-dst|port", _DST, _DST_PORT)
    add("hostname|port", _DST, _DST_PORT)
    add("ip-src|port", _SRC, _SRC_PORT)
    add("hostname|port", "domain-name:value", _DST_PORT)
    add("domain|ip", "domain-name:value", "domain-name:resolves_to_refs[*].value")
    add("port", _DST_PORT)
    add("port", _SRC_PORT)
    add("AS", "autonomous-system:number")
    add("size-in-bytes", "file:size")
    add("regkey|value", _KEY, _DATA)
    add("github-username", "user-account:account_login")
    # Names that others give to the same headers.
    add("email-reply-to", "email-message:additional_header_fields.Reply-To")
    add("email-x-mailer", "email-message:additional_header_fields.X-Mailer")
    return found


_TYPES: Final[dict[tuple[str, ...], tuple[str, ...]]] = _types_by_paths()
# The table by sets, for comparisons may stand in any order.
_ORDERS: Final[dict[frozenset[str], tuple[str, ...]]] = {
    frozenset(paths): paths for paths in _TYPES
}

# What misp-stix adds to a pattern and MISP's value does not hold.
_BESIDE_THE_VALUE: Final = ("network-traffic:dst_ref.type", "network-traffic:src_ref.type")


def value_of(pattern: str, pattern_type: str = STIX) -> MispValue | None:
    """Split a pattern into MISP's types and value; None for what no MISP attribute can say.

    A sighting that names only a pattern finds its attribute by this. Whatever `pattern_of` makes
    splits back into the value it was made of, up to leading zeros and the prefix of ``AS174``.
    """
    if pattern_type != STIX:
        types = tuple(each for each, language in RULES.items() if language == pattern_type)
        if not types:
            return None
        wrapped = pattern[:1] == "[" and pattern[-1:] == "]"
        return MispValue(types, pattern[1:-1] if wrapped else pattern)
    compared = _comparisons(pattern)
    if compared is None:
        return None
    account = compared.pop("user-account:account_type", None)
    for path in _BESIDE_THE_VALUE:
        compared.pop(path, None)
    if "file:name" in compared or "file:hashes.MD5" in compared:
        for path in [each for each in compared if each.startswith("file:content_ref.")]:
            del compared[path]
    paths = _ORDERS.get(frozenset(compared))
    if paths is None:
        return None
    types = _TYPES[paths]
    if (types == ("github-username",)) != (account == "github"):
        return None
    if paths[0] == _DST and not _is_address(compared[_DST]):
        types = tuple(each for each in types if not each.startswith("ip-"))
    return MispValue(types, "|".join(compared[path] for path in paths))


def _is_address(value: str) -> bool:
    try:
        _address_type(value)
    except _NoPattern:
        return False
    return True


def _comparisons(pattern: str) -> dict[str, str] | None:
    """Read one observation of equality comparisons joined by AND; None for anything else."""
    pattern = pattern.strip()
    if not (pattern.startswith("[") and pattern.endswith("]")):
        return None
    found: dict[str, str] = {}
    position = 1
    for _ in range(_MAX_COMPARISONS):
        comparison = _COMPARISON.match(pattern, position)
        if comparison is None:
            return None
        path, text = _plain_path(comparison["path"]), comparison["text"]
        if path in found:
            return None
        found[path] = comparison["number"] if text is None else _ESCAPE.sub(r"\1", text)
        position = comparison.end()
        if position == len(pattern) - 1:
            return found
        join = _JOIN.match(pattern, position)
        if join is None:
            return None
        position = join.end()
    return None
