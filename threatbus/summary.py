"""The few fields of a document that people are shown, in whatever type they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from threatbus.data import Operation
from threatbus.errors import Rejected

# A string of a STIX pattern, in which backslash escapes the quote and itself.
_LITERAL: Final = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


class Summary(msgspec.Struct):
    """What is shown of an indicator, a sighting, or a message of the bus's own."""

    id: Any = None
    pattern: Any = None
    name: Any = None
    description: Any = None
    revoked: Any = None
    sighting_of_ref: Any = None
    count: Any = None
    x_threatbus_update: Any = None
    x_threatbus_source: Any = None
    x_threatbus_indicator: Any = None
    x_threatbus_indicator_value: Any = None
    snapshot: Any = None
    snapshot_type: Any = None
    snapshot_id: Any = None

    @classmethod
    def of(cls, data: bytes) -> Summary:
        """Read a document; raises `Rejected` for what is no JSON object."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(f"cannot be read: {error}") from None

    @property
    def operation(self) -> Literal["ADD", "EDIT", "REMOVE"]:
        """What an indicator asks for; one that is revoked is removed."""
        if self.revoked is True or self.x_threatbus_update == Operation.REMOVE.value:
            return "REMOVE"
        return "EDIT" if self.x_threatbus_update == Operation.EDIT.value else "ADD"

    @property
    def seen(self) -> Any:
        """What a sighting says was seen: the pattern or the value, if it brings one."""
        indicator = self.x_threatbus_indicator
        pattern = indicator.get("pattern") if isinstance(indicator, dict) else None
        return pattern or self.x_threatbus_indicator_value

    def values(self) -> Iterator[str]:
        """Give the values that a document is about: those of its pattern, and the one seen."""
        for pattern in (self.pattern, self.seen):
            if isinstance(pattern, str):
                yield pattern
                for found in _LITERAL.finditer(pattern):
                    yield _ESCAPE.sub(r"\1", found[1])
        if isinstance(self.x_threatbus_indicator_value, str):
            yield self.x_threatbus_indicator_value
