"""Recognise patterns that the STIX library surely accepts, without its grammar.

Two thirds of what ``stix2.parse`` needs for an indicator go into its pattern. Part of the fast path
(`threatbus.fastpath`): yes is a promise that the library accepts the pattern, no means "ask it".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Patterns: equality comparisons joined by AND and OR. Everything else is the grammar's business.
# Chains are bounded, because the library walks the syntax tree by recursion.
_WS = r"[ \t\r\n]"
_KEYWORDS = (
    "AND|OR|NOT|FOLLOWEDBY|LIKE|MATCHES|ISSUPERSET|ISSUBSET|EXISTS|LAST|IN|START|STOP|SECONDS"
    "|true|false|WITHIN|REPEATS|TIMES"
)
_NO_KEYWORD = rf"(?!(?:{_KEYWORDS})(?![A-Za-z0-9_-]))"
_TYPE = rf"{_NO_KEYWORD}[A-Za-z_][A-Za-z0-9_-]*+"
_KEY = rf"(?:{_NO_KEYWORD}[A-Za-z_][A-Za-z0-9_]*+|'[^'\\]++')"
_STEP = rf"(?:\.{_KEY}|\[(?:\*|0|[1-9][0-9]{{0,8}})\])"
_STRING = r"'(?:[^'\\]++|\\['\\])*+'"
_NUMBER = r"-?(?:(?:0|[1-9][0-9]*+)(?![0-9.])|[0-9]++\.[0-9]++)"
_LITERAL = rf"(?:{_STRING}|{_NUMBER}|true|false)"
_COMPARISON = rf"{_TYPE}:{_KEY}{_STEP}{{0,16}}+{_WS}*+!?={_WS}*+{_LITERAL}"
_JOIN = rf"{_WS}++(?:AND|OR){_WS}++"
_OBSERVATION = rf"\[{_WS}*+{_COMPARISON}(?:{_JOIN}{_COMPARISON}){{0,63}}+{_WS}*+\]"
_is_ordinary = re.compile(
    rf"{_WS}*+{_OBSERVATION}(?:{_JOIN}{_OBSERVATION}){{0,63}}+{_WS}*+"
).fullmatch

# How a pattern begins, up to the quote, that is one comparison of an object's usual property.
_PLAIN_BEGINNINGS = frozenset(
    f"[{path} = "
    for path in (
        "autonomous-system:name",
        "directory:path",
        "domain-name:value",
        "email-addr:value",
        "email-message:subject",
        "file:name",
        "ipv4-addr:value",
        "ipv6-addr:value",
        "mac-addr:value",
        "mutex:name",
        "software:name",
        "url:value",
        "user-account:account_login",
        "user-account:user_id",
        "windows-registry-key:key",
    )
)
# The end of such a pattern and the beginning of the next, where they stand line by line.
_PLAIN_SEAMS = frozenset(f"]\n{beginning}" for beginning in _PLAIN_BEGINNINGS)

# Wherever a path holds the step `hashes`, the library checks the value by the last step's name.
_HEX = "[0-9a-fA-F]"
_is_one_hash = re.compile(
    r"\[(?:file|x509-certificate):hashes\.(?>"
    rf"(?:MD5|'MD5') ?= ?'{_HEX}{{32}}'"
    rf"|'SHA-1' ?= ?'{_HEX}{{40}}'"
    rf"|'SHA-256' ?= ?'{_HEX}{{64}}'"
    rf"|'SHA-512' ?= ?'{_HEX}{{128}}'"
    r")\]"
).fullmatch
_find_hashes = re.compile(rf"hashes'?\.('?)([A-Za-z0-9_-]++)\1{_WS}*+!?={_WS}*+'([^']*+)'").findall
_HASH_DIGITS = {
    "MD5": (32,),
    "MD6": (32, 40, 56, 64, 96, 128),
    "RIPEMD160": (40,),
    "SHA1": (40,),
    "SHA224": (56,),
    "SHA256": (64,),
    "SHA384": (96,),
    "SHA512": (128,),
    "SHA3224": (56,),
    "SHA3256": (64,),
    "SHA3384": (96,),
    "SHA3512": (128,),
    "WHIRLPOOL": (128,),
}
_is_hex = re.compile(rf"{_HEX}++").fullmatch
_is_ssdeep = re.compile(r"[a-zA-Z0-9/+:.]{1,128}+").fullmatch


def are_certain(patterns: Sequence[str]) -> bool:
    """Say whether the library surely accepts all of `patterns`, as STIX patterns of version 2.1."""
    return _are_plain(patterns) or all(map(is_certain, patterns))


def is_certain(pattern: str) -> bool:
    """Say whether the library surely accepts `pattern`, as a STIX pattern of version 2.1."""
    parts = pattern.split("'")
    if (
        len(parts) == 3
        and parts[0] in _PLAIN_BEGINNINGS
        and parts[2] == "]"
        and "\\" not in pattern
        and "hashes" not in pattern
    ):
        return True
    if "hashes" not in pattern:
        return _is_ordinary(pattern) is not None
    return _is_one_hash(pattern) is not None or (
        _hashes_are_certain(pattern) and _is_ordinary(pattern) is not None
    )


def _are_plain(patterns: Sequence[str]) -> bool:
    """Say whether each compares one usual property with one text, and names no hash anywhere.

    Most do, and to look at all of them together costs half as much as one by one.
    """
    lines = "\n".join(patterns)
    parts = lines.split("'")
    return (
        len(parts) == 2 * len(patterns) + 1
        and parts[0] in _PLAIN_BEGINNINGS
        and parts[-1] == "]"
        and _PLAIN_SEAMS.issuperset(parts[2:-1:2])
        # Every line break is one of those seams, so no text holds one, and none is two patterns'.
        and lines.count("\n") == len(patterns) - 1
        and "\\" not in lines
        and "hashes" not in lines
    )


def _hashes_are_certain(pattern: str) -> bool:
    """Say whether each `hashes` in a pattern is a path's last step but one with a good value."""
    comparisons = _find_hashes(pattern)
    # One match per occurrence: none is part of another match, followed by more steps, or a value.
    if len(comparisons) != pattern.count("hashes"):
        return False
    for _, name, value in comparisons:
        kind = name.replace("-", "").upper()
        if kind == "SSDEEP":
            if not _is_ssdeep(value):
                return False
        elif kind in _HASH_DIGITS and not (len(value) in _HASH_DIGITS[kind] and _is_hex(value)):
            return False
    return True
