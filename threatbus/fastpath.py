"""Recognise the ordinary STIX 2.1 indicator or sighting without the STIX library.

``stix2.parse`` needs most of a millisecond for a document, two thirds of it for the grammar of
its pattern. Nearly all documents on a bus look alike, and a typed decoder with a look at ids,
times and pattern is certain about those in a microsecond or two. `FastPath` knows two answers: the
topic, which is a promise that the library accepts the document, or none, which only means "ask
the library" (`threatbus.border`). Each check here is as strict as the library's or stricter,
never laxer; what the library's rule is stands beside it.

The library's registries are taken as they are after its import: whoever registers a class of
their own for an extension changes the library's verdict, not this one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import product
from typing import Any, ClassVar, Literal

import msgspec

#: Nesting up to which a document is carried; the bus reads nothing that is deeper than four.
MAX_DEPTH = 100

#: Documents that are checked together. One that is not plain has its run looked at one by one.
RUN = 20

INDICATOR_TOPIC = "stix2/indicator"
SIGHTING_TOPIC = "stix2/sighting"


class _KillChainPhase(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    kill_chain_name: str
    phase_name: str


class _ExternalReference(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    source_name: str
    description: str | None = None
    url: str | None = None
    external_id: str | None = None


# The library drops a property that is null before it checks anything, so null means absent.
# Not declared, hence never certain: granular_markings, whose selectors it evaluates.
class _Common(msgspec.Struct, kw_only=True, gc=False, tag_field="type"):
    spec_version: Literal["2.1"]
    id: str
    created: str
    modified: str
    created_by_ref: str | None = None
    revoked: bool | None = None
    labels: list[str] | None = None
    confidence: int | None = None
    lang: str | None = None
    external_references: list[_ExternalReference] | None = None
    object_marking_refs: list[str] | None = None
    extensions: dict[str, dict[str, Any]] | None = None
    x_threatbus_source: str | None = None


class _Indicator(_Common, tag="indicator", kw_only=True, gc=False):
    pattern: str
    pattern_type: str
    valid_from: str
    valid_until: str | None = None
    pattern_version: str | None = None
    name: str | None = None
    description: str | None = None
    indicator_types: list[str] | None = None
    kill_chain_phases: list[_KillChainPhase] | None = None
    x_threatbus_update: str | None = None
    x_threatbus_match_type: str | None = None

    topic: ClassVar[str] = INDICATOR_TOPIC

    def is_certain(self, data: bytes) -> bool:
        """Check what the decoder could not; ValueError for a day that is in no calendar."""
        return _indicators_are_certain((self,), (data,))


class _Sighting(_Common, tag="sighting", kw_only=True, gc=False):
    sighting_of_ref: str
    first_seen: str | None = None
    last_seen: str | None = None
    count: int | None = None
    summary: bool | None = None
    description: str | None = None
    observed_data_refs: list[str] | None = None
    where_sighted_refs: list[str] | None = None
    x_threatbus_indicator: Any = None
    x_threatbus_indicator_value: str | None = None
    x_threatbus_sighting_context: Any = None

    topic: ClassVar[str] = SIGHTING_TOPIC

    def is_certain(self, data: bytes) -> bool:
        """Check what the decoder could not; ValueError for a day that is in no calendar."""
        return _sighting_is_certain(self, data)


class _PlainIndicator(_Indicator, tag="indicator", forbid_unknown_fields=True, gc=False):
    """An indicator with no property but those declared."""


class _PlainSighting(_Sighting, tag="sighting", forbid_unknown_fields=True, gc=False):
    """A sighting with no property but those declared."""


_NAMES = {kind.topic: {*kind.__struct_fields__, "type"} for kind in (_Indicator, _Sighting)}

# Names that are arguments of the library's constructors, or that it treats in a way of its own.
_UNSURE_NAMES = frozenset(
    {"allow_custom", "custom_properties", "granular_markings", "interoperability", "self"}
)

# The library parses an id with uuid.UUID, which is laxer, and wants the RFC 4122 variant.
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
_is_marking = re.compile(rf"marking-definition--{_UUID}").fullmatch
_is_observed_data = re.compile(rf"observed-data--{_UUID}").fullmatch
_is_place = re.compile(rf"(?:identity|location)--{_UUID}").fullmatch
_is_extension = re.compile(rf"extension-definition--{_UUID}").fullmatch
_is_sightable = re.compile(
    r"(?:indicator|attack-pattern|campaign|course-of-action|grouping|identity|incident"
    r"|infrastructure|intrusion-set|location|malware|malware-analysis|note|observed-data|opinion"
    rf"|report|threat-actor|tool|vulnerability)--{_UUID}"
).fullmatch

# A shape is a text with every hexadecimal digit turned into 0. It costs a fifth of a regular
# expression, and one look into a set settles an id and its timestamps together.
_TO_SHAPE = bytes.maketrans(b"0123456789abcdefABCDEF", b"0" * 22)
# datetime.strptime with %S.%fZ or %SZ, as the library uses it, takes one to six decimals.
_MOMENT_SHAPES = tuple(
    f"0000-00-00T00:00:00{fraction}Z" for fraction in ("", *("." + "0" * n for n in range(1, 7)))
)
_MOMENT_SHAPE_SET = frozenset(shape.encode() for shape in _MOMENT_SHAPES)
_UUID_SHAPE = "00000000-0000-0000-0000-000000000000"
_IDENTITY_SHAPE = f"identity--{_UUID_SHAPE}".encode().translate(_TO_SHAPE)
_INDICATOR_SHAPES = frozenset(
    "|".join((f"indicator--{_UUID_SHAPE}", *moments)).encode().translate(_TO_SHAPE)
    for moments in product(_MOMENT_SHAPES, repeat=3)
)
_SIGHTING_SHAPES = frozenset(
    "|".join((f"sighting--{_UUID_SHAPE}", *moments)).encode().translate(_TO_SHAPE)
    for moments in product(_MOMENT_SHAPES, repeat=2)
)
_VARIANTS = frozenset("89abAB")
_from_iso = datetime.fromisoformat  # checks the calendar, once the shape is right

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
_PLAIN_COMPARISONS = frozenset(
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


class FastPath:
    """The certain part of the border; `recognise` is all there is to call.

    An instance holds decoders and no state of its messages: any number of threads may share it.
    """

    def __init__(self) -> None:
        # The first tier knows every property by name and has no need to look at anything else.
        self._decode_plain = msgspec.json.Decoder(_PlainIndicator | _PlainSighting).decode
        # The second lets further properties pass, whose names and values are then looked at.
        self._decode = msgspec.json.Decoder(_Indicator | _Sighting).decode
        self._decode_untyped = msgspec.json.Decoder().decode

    def recognise(self, documents: Sequence[bytes]) -> list[str]:
        """Give the topics of JSON documents (UTF-8), up to the first to "ask the library" about.

        A topic (``stix2/indicator`` or ``stix2/sighting``) means that
        ``stix2.parse(document, allow_custom=True)`` gives an Indicator or a Sighting of STIX 2.1.
        That a document gets none never means "rejected". Raises nothing, whatever the bytes are.
        """
        topics: list[str] = []
        for start in range(0, len(documents), RUN):
            run = documents[start : start + RUN]
            if self._are_plain_indicators(run):
                topics += [INDICATOR_TOPIC] * len(run)
                continue
            for data in run:
                topic = self._recognise_one(data)
                if topic is None:
                    return topics
                topics.append(topic)
        return topics

    def _are_plain_indicators(self, run: Sequence[bytes]) -> bool:
        decode = self._decode_plain
        try:
            found = [decode(data) for data in run]
            kinds = {document.topic for document in found}
            return kinds == {INDICATOR_TOPIC} and _indicators_are_certain(found, run)
        # Not such a document, or a day that is in no calendar.
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False

    def _recognise_one(self, data: bytes) -> str | None:
        try:
            document: _Indicator | _Sighting = self._decode_plain(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._recognise_custom(data)
        try:
            return document.topic if document.is_certain(data) else None
        except ValueError:  # a day that is in no calendar
            return None

    def _recognise_custom(self, data: bytes) -> str | None:
        try:
            document = self._decode(data)
            # The typed decoder skips over what it does not know without checking its UTF-8.
            names = self._decode_untyped(data).keys()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        custom = names - _NAMES[document.topic]
        # A custom property may hold anything; its name must begin with a lower-case letter.
        for name in custom:
            if not "a" <= name[:1] <= "z" or name in _UNSURE_NAMES:
                return None
        if not depth_is_at_most(MAX_DEPTH, data):
            return None
        try:
            return document.topic if document.is_certain(data) else None
        except ValueError:
            return None


def depth_is_at_most(limit: int, data: bytes) -> bool:
    """Say whether valid JSON nests no deeper than `limit` arrays and objects."""
    # Fewer brackets than the limit, wherever they stand, cannot nest deeper.
    if data.count(b"[") + data.count(b"{") <= limit:
        return True
    level: list[Any] = [msgspec.json.decode(data)]
    for _ in range(limit + 1):
        containers = [value for value in level if isinstance(value, dict | list)]
        if not containers:
            return True
        level = []
        for container in containers:
            level.extend(container.values() if isinstance(container, dict) else container)
    return False


def _indicators_are_certain(run: Sequence[_Indicator], documents: Sequence[bytes]) -> bool:
    """Check what is common to all at once, since a call costs as much as what it does here."""
    keys = "\n".join([f"{it.id}|{it.created}|{it.modified}|{it.valid_from}" for it in run])
    shapes = keys.encode().translate(_TO_SHAPE).split(b"\n")
    if not (
        len(shapes) == len(run)
        and _INDICATOR_SHAPES.issuperset(shapes)
        # The shapes are right, so each line has one place for an "indicator--" and its variant.
        and keys.count("indicator--") == len(run)
        and _VARIANTS.issuperset([it.id[30] for it in run])
        and "T24" not in keys  # datetime.fromisoformat takes it for the next day, strptime not
    ):
        return False
    for it, data in zip(run, documents, strict=True):
        created, modified, valid_from = it.created, it.modified, it.valid_from
        _from_iso(created)
        if modified != created:
            _from_iso(modified)
        if valid_from != created:
            _from_iso(valid_from)
        # The library looks into a pattern only if its type is exactly "stix".
        if it.pattern_type == "stix" and not _pattern_is_certain(it.pattern, it.pattern_version):
            return False
        if it.valid_until is not None and not (
            # Equal to the second: whether the decimals are in order is the library's question.
            _is_moment(it.valid_until) and it.valid_until[:19] > valid_from[:19]
        ):
            return False
        if not (
            it.created_by_ref is None
            and it.object_marking_refs is None
            and it.external_references is None
            and it.extensions is None
        ) and not _common_is_certain(it, data):
            return False
    return True


def _sighting_is_certain(it: _Sighting, data: bytes) -> bool:
    created, modified = it.created, it.modified
    key = f"{it.id}|{created}|{modified}"
    if (
        key.encode().translate(_TO_SHAPE) not in _SIGHTING_SHAPES
        or key[:10] != "sighting--"
        or key[29] not in _VARIANTS
        or "T24" in key
    ):
        return False
    _from_iso(created)
    if modified != created:
        _from_iso(modified)
    if not _is_sightable(it.sighting_of_ref):
        return False
    first, last = it.first_seen, it.last_seen
    if first is not None and not _is_moment(first):
        return False
    if last is not None and last != first:
        if not _is_moment(last):
            return False
        if first is not None and not last[:19] > first[:19]:
            return False
    if it.count is not None and not 0 <= it.count <= 999_999_999:
        return False
    if it.observed_data_refs and not all(map(_is_observed_data, it.observed_data_refs)):
        return False
    if it.where_sighted_refs and not all(map(_is_place, it.where_sighted_refs)):
        return False
    if (
        it.x_threatbus_sighting_context is not None or it.x_threatbus_indicator is not None
    ) and not depth_is_at_most(MAX_DEPTH, data):
        return False
    return _common_is_certain(it, data)


def _common_is_certain(it: _Common, data: bytes) -> bool:
    author = it.created_by_ref
    if author is not None and not (
        author.encode().translate(_TO_SHAPE) == _IDENTITY_SHAPE
        and author[:10] == "identity--"
        and author[29] in _VARIANTS
    ):
        return False
    if it.object_marking_refs and not all(map(_is_marking, it.object_marking_refs)):
        return False
    if it.external_references:
        for reference in it.external_references:
            if reference.url is reference.description is reference.external_id is None:
                return False
    if it.extensions is not None:
        # Extensions with an id are unknown to the library, which takes any content from them;
        # those with a name (archive-ext, …) it checks, wherever they stand.
        return all(map(_is_extension, it.extensions)) and depth_is_at_most(MAX_DEPTH, data)
    return True


def _is_moment(text: str) -> bool:
    if text.encode().translate(_TO_SHAPE) not in _MOMENT_SHAPE_SET or text[11:13] == "24":
        return False
    _from_iso(text)
    return True


def _pattern_is_certain(pattern: str, version: str | None) -> bool:
    # The library takes the grammar of STIX 2.0 for every version but 2.1.
    if version is not None and version != "2.1":
        return False
    # Most patterns compare one plain path with one text: that needs no regular expression.
    parts = pattern.split("'")
    if (
        len(parts) == 3
        and parts[2] == "]"
        and parts[0] in _PLAIN_COMPARISONS
        and "\\" not in pattern
        and "hashes" not in pattern
    ):
        return True
    if "hashes" not in pattern:
        return _is_ordinary(pattern) is not None
    return _is_one_hash(pattern) is not None or (
        _hashes_are_certain(pattern) and _is_ordinary(pattern) is not None
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
