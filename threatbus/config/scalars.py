"""Numbers, booleans and text: what may be written for them, in quotes or not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from threatbus.config.annotations import bare, metas
from threatbus.config.values import EnvText

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


def to_scalar(value: object, annotation: Any) -> object:
    """The value as the annotation's type, whose bounds are not looked at; raises ValueError.

    A type that is not converted here (`datetime.timedelta`) gets the value as it is.
    """
    base = bare(annotation)
    if isinstance(value, EnvText):
        value = value.as_text() if base is str else value.uncast()
    if any((meta.extra or {}).get("unit") == "bytes" for meta in metas(annotation)):
        return _size(value)
    return _CONVERSIONS[base](value) if base in _CONVERSIONS else value


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError


def _int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise ValueError


def _float(value: object) -> float:
    number = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
    if isinstance(value, str) and re.fullmatch(number, value.strip()):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError


def _str(value: object) -> str:
    # A whole number reads the same written out (YAML 1.2 takes `0123` for text); what a float
    # looked like in the file cannot be told.
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise ValueError


def _size(value: object) -> int:
    size = r"(?i)([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(i?)b?"
    if isinstance(value, str) and (match := re.fullmatch(size, value.strip())):
        number, letter, binary = match.groups()
        if binary and not letter:
            raise ValueError
        power = " kmgt".index(letter.lower() or " ")
        return int(float(number) * (1024 if binary else 1000) ** power)
    return _int(value)


_CONVERSIONS: Final[Mapping[Any, Callable[[object], object]]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
}
