"""What error messages say: what was found, what is allowed, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from threatbus.config.annotations import arguments, bare, choices, keys, members, metas, shape
from threatbus.config.values import EnvText
from threatbus.errors import ConfigError, InvalidConfig

_SECRET: Final = (
    r"passw|passphrase|secret|token|credential|(?:^|_)(?:api_?|private_?)?keys?$|(?:^|_)pass$"
)
_LONGEST_SHOWN: Final = 60  # characters of a wrong value
_MOST_LISTED: Final = 16  # known keys in one message


def invalid(key: str, found: str, what: str) -> InvalidConfig:
    """The error of a configuration that cannot even be looked into."""
    return InvalidConfig([ConfigError(key, found, what)])


def is_secret(path: str) -> bool:
    """Whether the name of a setting says that its value must not be shown."""
    return any(re.search(_SECRET, part, re.IGNORECASE) for part in path.split("."))


def describe(value: object, path: str = "") -> str:
    """What was found, in words; not the value itself where `path` names a secret."""
    origin = f" (from {value.variable})" if isinstance(value, EnvText) else ""
    if value is None or (origin and not value):
        return f"empty{origin}"
    if isinstance(value, dict):
        return f"a mapping{origin}"
    if isinstance(value, list | tuple):
        return f"a list{origin}"
    kinds = {bool: "boolean", int: "number", float: "number", str: "text"}
    kind = next((word for base, word in kinds.items() if isinstance(value, base)), "value")
    if is_secret(path):
        return f"a {kind} that is not shown{origin}"
    shown = _shown(value)
    return f"the {kind} {shown!r}{origin}" if kind == "text" else f"the {kind} {shown}{origin}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = re.sub(r"://[^/@\s]+@", "://***@", str(value))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def allowed(annotation: Any) -> str:
    """What a setting of this type may be, in words."""
    for meta in metas(annotation):
        if meta.description:
            return meta.description
    inner = arguments(annotation)
    match shape(annotation):
        case "anything":
            return "any value"
        case "union":
            null = " or empty" if type(None) in inner else ""
            return " or ".join(allowed(member) for member in members(annotation)) + null
        case "section":
            return f"a section with {listed(keys(bare(annotation)), 'any', 'of the keys ')}"
        case "mapping":
            return "a mapping"
        case "sequence":
            named = inner and shape(inner[0]) != "anything"
            return f"a list of {allowed(inner[0])}" if named else "a list"
        case "choice":
            return f"one of {', '.join(str(choice) for choice in choices(annotation))}"
        case "scalar":
            return _scalar(bare(annotation)) + _bounds(metas(annotation))


def _scalar(base: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(base) or f"a {getattr(base, '__name__', base)}"


def _bounds(annotated: Iterable[msgspec.Meta]) -> str:
    limits = [
        (words, limit)
        for meta in annotated
        for words, limit in (
            ("of at least", meta.ge),
            ("above", meta.gt),
            ("of at most", meta.le),
            ("below", meta.lt),
            ("with a length of at least", meta.min_length),
            ("with a length of at most", meta.max_length),
            ("that matches", meta.pattern),
        )
        if limit is not None
    ]
    return " " + " and ".join(f"{words} {limit}" for words, limit in limits) if limits else ""


def listed(names: Sequence[str], one: str, of: str) -> str:
    """The known keys in one phrase, which begins with `one` and `of`."""
    if not names:
        return "no key at all"
    more = ", …" if len(names) > _MOST_LISTED else ""
    return f"{one} {of}{', '.join(names[:_MOST_LISTED])}{more}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one probably meant."""
    import difflib  # noqa: PLC0415 (11 ms that only a mistake costs)

    folded = {key.casefold().replace("-", "_"): key for key in known}
    close = difflib.get_close_matches(name.casefold().replace("-", "_"), list(folded), n=1)
    return folded[close[0]] if close else None
