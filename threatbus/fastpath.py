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
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from itertools import product
from operator import attrgetter
from typing import Any, ClassVar, Literal, NamedTuple, cast

import msgspec

from threatbus import patterns

#: Nesting up to which a document is carried; the bus reads nothing that is deeper than four.
MAX_DEPTH = 100

#: Documents that are checked together, and how many it takes to have an advantage of it.
RUN = 50
FEW = 2

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


class _PlainIndicator(_Indicator, tag="indicator", forbid_unknown_fields=True, gc=False):
    """An indicator with no property but those declared."""


class _PlainSighting(_Sighting, tag="sighting", forbid_unknown_fields=True, gc=False):
    """A sighting with no property but those declared."""


class _OrdinaryIndicator(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What most indicators have, in the order in which the library writes it.

    Beside what every indicator is checked for, its type says all about it.
    """

    # No tag: the decoder insists on one only where it has to choose.
    type: Literal["indicator"]
    spec_version: Literal["2.1"]
    id: str
    created: str
    modified: str
    name: str | None = None
    description: str | None = None
    indicator_types: list[str] | None = None
    pattern: str
    pattern_type: Literal["stix"]
    pattern_version: Literal["2.1"] | None = None
    valid_from: str
    kill_chain_phases: list[_KillChainPhase] | None = None
    revoked: bool | None = None
    labels: list[str] | None = None
    confidence: int | None = None
    lang: str | None = None
    x_threatbus_source: str | None = None
    x_threatbus_update: str | None = None


_Document = _Indicator | _Sighting

_NAMES = {kind.topic: {*kind.__struct_fields__, "type"} for kind in (_Indicator, _Sighting)}

# Names that are arguments of the library's constructors, or that it treats in a way of its own.
_UNSURE_NAMES = frozenset(
    {"allow_custom", "custom_properties", "granular_markings", "interoperability", "self"}
)

# The library parses an id with uuid.UUID, which is laxer, and wants the RFC 4122 variant.
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
_is_observed_data = re.compile(rf"observed-data--{_UUID}").fullmatch
_is_place = re.compile(rf"(?:identity|location)--{_UUID}").fullmatch
_is_extension = re.compile(rf"extension-definition--{_UUID}").fullmatch
_is_sightable = re.compile(
    r"(?:indicator|attack-pattern|campaign|course-of-action|grouping|identity|incident"
    r"|infrastructure|intrusion-set|location|malware|malware-analysis|note|observed-data|opinion"
    rf"|report|threat-actor|tool|vulnerability)--{_UUID}"
).fullmatch

# A shape is a text with every hexadecimal digit turned into 0. It costs a fifth of a regular
# expression, and of many texts, line by line, hardly more than of one.
_TO_SHAPE = bytes.maketrans(b"0123456789abcdefABCDEF", b"0" * 22)
# datetime.strptime with %S.%fZ or %SZ, as the library uses it, takes one to six decimals.
_MOMENT_SHAPES = frozenset(
    f"0000-00-00T00:00:00{fraction}Z".encode()
    for fraction in ("", *("." + "0" * n for n in range(1, 7)))
)
_UUID_SHAPE = "00000000-0000-0000-0000-000000000000"
_VARIANTS = frozenset("89abAB")


class _Keys(NamedTuple):
    """A kind of keys: ids of one type, each with so many times, joined by "|"."""

    prefix: str
    shapes: frozenset[bytes]

    @classmethod
    def of(cls, name: str, moments: int = 0) -> _Keys:
        """Make the kind for ids of type `name` with `moments` times."""
        head = f"{name}--{_UUID_SHAPE}".encode().translate(_TO_SHAPE)
        combinations = product(_MOMENT_SHAPES, repeat=moments)
        return cls(f"{name}--", frozenset(b"|".join((head, *times)) for times in combinations))


_INDICATOR_IDS = _Keys.of("indicator")
_INDICATORS = _Keys.of("indicator", 3)
_SIGHTINGS = _Keys.of("sighting", 2)
_IDENTITIES = _Keys.of("identity")
_MARKINGS = _Keys.of("marking-definition")
_to_be_checked = attrgetter("id", "created", "modified", "valid_from", "pattern")
_from_iso = datetime.fromisoformat  # checks the calendar, once the shape is right

# What a decoder raises; ValueError besides for a day that is in no calendar.
_NOT_CERTAIN = (msgspec.MsgspecError, ValueError, RecursionError)


class FastPath:
    """The certain part of the border; `recognise` is all there is to call.

    An instance holds decoders and no state of its messages: any number of threads may share it.
    """

    def __init__(self) -> None:
        # Three tiers, since a decoder is the quicker the less it knows.
        self._decode_ordinary = msgspec.json.Decoder(_OrdinaryIndicator).decode
        # Knows every property by name, so that there is no need to look at anything else.
        self._decode_plain = msgspec.json.Decoder(_PlainIndicator | _PlainSighting).decode
        # Lets further properties pass, whose names and values are then looked at.
        self._decode_any = msgspec.json.Decoder(_Document).decode
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
            if len(run) >= FEW and self._are_ordinary(run):
                topics += [INDICATOR_TOPIC] * len(run)
                continue
            recognised = self._recognise_run(run)
            topics += recognised
            if len(recognised) < len(run):
                break
        return topics

    def _are_ordinary(self, run: Sequence[bytes]) -> bool:
        decode = self._decode_ordinary
        try:
            return _ordinary_are_certain([decode(data) for data in run])
        except _NOT_CERTAIN:
            return False

    def _recognise_run(self, run: Sequence[bytes]) -> list[str]:
        found = self._decode_run(run)
        topics = [document.topic for document in found]
        parts = [(found, run)] if len(set(topics)) == 1 else _by_kind(found, run)
        if all(_are_certain(*part) for part in parts):
            return topics
        for number, document in enumerate(found):
            if not _are_certain((document,), run[number:]):
                return topics[:number]
        return topics

    def _decode_run(self, run: Sequence[bytes]) -> list[_Document]:
        """Decode documents, up to the first that no tier takes."""
        found: list[_Document] = []
        decode: Callable[[bytes], _Document] = self._decode_plain
        try:
            for data in run:
                try:
                    found.append(decode(data))
                except _NOT_CERTAIN:
                    # Those behind it will be of its kind: to fail costs more than to look.
                    decode = self._decode_custom
                    found.append(decode(data))
        except _NOT_CERTAIN:
            pass
        return found

    def _decode_custom(self, data: bytes) -> _Document:
        """Decode a document with properties of any name; ValueError if it is not certain."""
        document: _Document = self._decode_any(data)
        # The typed decoder skips over what it does not know without checking its UTF-8.
        names = self._decode_untyped(data).keys()
        # A custom property may hold anything; its name must begin with a lower-case letter.
        for name in names - _NAMES[document.topic]:
            if not "a" <= name[:1] <= "z" or name in _UNSURE_NAMES:
                raise ValueError(name)
        if not depth_is_at_most(MAX_DEPTH, data):
            raise ValueError(MAX_DEPTH)
        return document


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


def _ordinary_are_certain(run: Sequence[_OrdinaryIndicator]) -> bool:
    """Check what the decoder could not, of all at once; ValueError for a day in no calendar."""
    ids, created, modified, valid_from, texts = zip(*map(_to_be_checked, run), strict=True)
    return (
        _keys_are_certain(ids, _INDICATOR_IDS)
        and _moments_are_certain({*created, *modified, *valid_from})
        and patterns.are_certain(texts)
    )


def _by_kind(
    run: Sequence[_Document], documents: Sequence[bytes]
) -> Iterable[tuple[Sequence[_Document], Sequence[bytes]]]:
    """Part a run into its indicators and its sightings, with their documents."""
    for kind in (_Indicator, _Sighting):
        numbers = [number for number, document in enumerate(run) if isinstance(document, kind)]
        if numbers:
            yield [run[number] for number in numbers], [documents[number] for number in numbers]


def _are_certain(run: Sequence[_Document], documents: Sequence[bytes]) -> bool:
    """Check what the decoder could not; all are indicators, or all are sightings."""
    authors = [it.created_by_ref for it in run if it.created_by_ref is not None]
    markings = [ref for it in run if it.object_marking_refs for ref in it.object_marking_refs]
    try:
        if authors and not _keys_are_certain(authors, _IDENTITIES):
            return False
        if markings and not _keys_are_certain(markings, _MARKINGS):
            return False
        if isinstance(run[0], _Indicator):
            certain = _indicators_are_certain(cast(Sequence[_Indicator], run))
        else:
            certain = _sightings_are_certain(cast(Sequence[_Sighting], run), documents)
    except ValueError:  # a day that is in no calendar
        return False
    return certain and all(map(_common_is_certain, run, documents))


def _indicators_are_certain(run: Sequence[_Indicator]) -> bool:
    keys = [f"{it.id}|{it.created}|{it.modified}|{it.valid_from}" for it in run]
    if not _keys_are_certain(keys, _INDICATORS):
        return False
    for it in run:
        created, modified, valid_from = it.created, it.modified, it.valid_from
        _from_iso(created)
        if modified != created:
            _from_iso(modified)
        if valid_from != created:
            _from_iso(valid_from)
        # The library looks into a pattern only if its type is exactly "stix", and takes the grammar
        # of STIX 2.0 for every version but 2.1.
        if it.pattern_type == "stix" and not (
            it.pattern_version in (None, "2.1") and patterns.is_certain(it.pattern)
        ):
            return False
        until = it.valid_until
        if until is not None and not (_is_moment(until) and _is_later(until, valid_from)):
            return False
    return True


def _sightings_are_certain(run: Sequence[_Sighting], documents: Sequence[bytes]) -> bool:
    keys = [f"{it.id}|{it.created}|{it.modified}" for it in run]
    if not _keys_are_certain(keys, _SIGHTINGS):
        return False
    for it, data in zip(run, documents, strict=False):
        created, modified, first, last = it.created, it.modified, it.first_seen, it.last_seen
        _from_iso(created)
        if modified != created:
            _from_iso(modified)
        if first is not None and not _is_moment(first):
            return False
        if last is not None and last != first:
            if not _is_moment(last):
                return False
            if first is not None and not _is_later(last, first):
                return False
        if it.count is not None and not 0 <= it.count <= 999_999_999:
            return False
        if it.observed_data_refs and not all(map(_is_observed_data, it.observed_data_refs)):
            return False
        if it.where_sighted_refs and not all(map(_is_place, it.where_sighted_refs)):
            return False
        if not _is_sightable(it.sighting_of_ref):
            return False
        # What may hold anything.
        context, indicator = it.x_threatbus_sighting_context, it.x_threatbus_indicator
        if not (context is indicator is None or depth_is_at_most(MAX_DEPTH, data)):
            return False
    return True


def _common_is_certain(it: _Document, data: bytes) -> bool:
    if it.external_references:
        for reference in it.external_references:
            if reference.url is reference.description is reference.external_id is None:
                return False
    # Extensions with an id are unknown to the library, which takes any content from them; those
    # with a name (archive-ext, …) it checks, wherever they stand.
    return it.extensions is None or (
        all(map(_is_extension, it.extensions)) and depth_is_at_most(MAX_DEPTH, data)
    )


def _keys_are_certain(keys: Sequence[str], kind: _Keys) -> bool:
    """Say whether ids of that kind, and times with them, look as the library takes them.

    Of all at once, since a call costs as much as what it does here.
    """
    lines = "\n".join(keys)
    shapes = lines.encode().translate(_TO_SHAPE)
    first, variant = shapes[: len(keys[0])], len(kind.prefix) + 19
    if shapes == b"\n".join([first] * len(keys)):
        # As nearly always: no need to take them apart.
        known, variants = [first], lines[variant :: len(first) + 1]
    else:
        known, variants = shapes.split(b"\n"), "".join([key[variant : variant + 1] for key in keys])
    return (
        len(known) in (1, len(keys))
        and kind.shapes.issuperset(known)
        # The shapes are right, so each line has one place for its prefix, and for its variant.
        and lines.count(kind.prefix) == len(keys)
        and _VARIANTS.issuperset(variants)
        and "T24" not in lines  # datetime.fromisoformat takes it for the next day, strptime not
    )


def _moments_are_certain(moments: Collection[str]) -> bool:
    """Say whether all are times as the library takes them; ValueError if not in any calendar."""
    lines = "\n".join(moments)
    shapes = lines.encode().translate(_TO_SHAPE).split(b"\n")
    if not (
        len(shapes) == len(moments)
        and _MOMENT_SHAPES.issuperset(shapes)
        and "T24" not in lines  # see above
    ):
        return False
    for moment in moments:
        _from_iso(moment)
    return True


def _is_moment(text: str) -> bool:
    return _moments_are_certain((text,))


def _is_later(moment: str, other: str) -> bool:
    """Say whether a time is later than another by a second at least.

    Equal to the second: whether the decimals are in order is the library's question.
    """
    return moment[:19] > other[:19]
