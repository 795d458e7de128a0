"""Between STIX and what the tool knows. Pure functions: no socket, no tool."""

from __future__ import annotations

from threatbus.client import Indicator, MatchType, sighting
from threatbus.stix2_helpers import split_object_path_and_value

SOURCE = "template"


def value_of(indicator: Indicator) -> str | None:
    """Give what the tool is to look for; None for a pattern that it has no use for."""
    if indicator.pattern_type != "stix":
        return None
    found = split_object_path_and_value(indicator.pattern)
    return None if found is None else found[1]


def to_sighting(indicator_id: str, value: str, line: str) -> bytes:
    """Write the sighting of `value` in `line`."""
    return sighting(
        indicator_id,
        match_type=MatchType.LIVE,
        value=value,
        context={"line": line},
        source=SOURCE,
    )
