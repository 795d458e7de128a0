"""Small questions that plugins ask of STIX patterns."""

from __future__ import annotations

import re

# One comparison for equality with a string: object path, then the quoted value in which
# backslash escapes the quote and itself (STIX 2.1, section 9.5 and 9.8).
_POINT_IOC = re.compile(
    r"""\s*\[\s*
    (?P<path>[a-zA-Z][a-zA-Z0-9-]*:(?:'(?:[^'\\]|\\.)*'|[^'\s=!<>()\[\]]|\[(?:\d+|\*)\])+)
    \s*=\s*
    '(?P<value>(?:[^'\\]|\\['\\])*)'
    \s*\]\s*""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(['\\])")


def is_point_equality_ioc(pattern: str) -> bool:
    """Say whether `pattern` is one comparison of the form ``[object:path = 'value']``."""
    return _POINT_IOC.fullmatch(pattern) is not None


def split_object_path_and_value(pattern: str) -> tuple[str, str] | None:
    """Split ``[object:path = 'value']`` into path and unescaped value; None for other patterns."""
    found = _POINT_IOC.fullmatch(pattern)
    if found is None:
        return None
    return found["path"], _ESCAPE.sub(r"\1", found["value"])
