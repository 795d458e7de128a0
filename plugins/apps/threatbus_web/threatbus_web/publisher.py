"""What clients publish by HTTP: through the border, with a clear answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from threatbus.border import Border
from threatbus.errors import NotCarried, Rejected
from threatbus.intake import Intake
from threatbus.messages import Message
from threatbus.rejects import RejectStore

ORIGIN: Final = "web publish"
#: Reasons that one answer holds.
MAX_REASONS: Final = 100


@dataclass
class Outcome:
    """What became of one document."""

    accepted: int = 0
    skipped: int = 0
    """Objects in a bundle or list that are of a type the bus does not carry."""
    rejected: list[dict[str, Any]] = field(default_factory=list)
    """Number of the object (from 1) and the reason, of the first `MAX_REASONS`."""
    rejected_more: int = 0


class Publisher:
    """Takes STIX objects in; any number of threads may publish."""

    def __init__(self, border: Border, inq: Intake, rejects: RejectStore) -> None:
        self._border = border
        self._inq = inq
        self._rejects = rejects

    @property
    def open(self) -> bool:
        """Whether the bus takes something now: it is not full, nor stopping."""
        return self._inq.writable

    def publish(self, data: bytes) -> Outcome:
        """Publish an object, a bundle or a list of objects, byte for byte as they stand there.

        What the border does not let in is rejected, and the rest published. Raises `Overflow` if
        the bus has begun to stop.
        """
        outcome = Outcome()
        messages = []
        try:
            members = self._members(data)
        except Rejected as error:
            self._reject(outcome, 1, error.reason, data)
            return outcome
        for number, member in enumerate([data] if members is None else members, 1):
            try:
                messages.append(Message(self._border.topic_of(member), member))
            except NotCarried as error:
                if members is None:
                    self._reject(outcome, number, error.reason, member)
                else:
                    outcome.skipped += 1
            except Rejected as error:
                self._reject(outcome, number, error.reason, member)
        if messages:
            # The caller has looked whether there is room; this batch is still taken.
            self._inq.put_many(messages, wait=False)
        outcome.accepted = len(messages)
        return outcome

    def _members(self, data: bytes) -> list[bytes] | None:
        """Give the objects in a bundle or list; None for a single one."""
        if data.lstrip()[:1] != b"[":
            return self._border.unpack(data)
        try:
            return [bytes(each) for each in msgspec.json.decode(data, type=list[msgspec.Raw])]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Rejected("a list that is no JSON") from None

    def _reject(self, outcome: Outcome, number: int, reason: str, data: bytes) -> None:
        self._rejects.add(ORIGIN, reason, data)
        if len(outcome.rejected) < MAX_REASONS:
            outcome.rejected.append({"object": number, "reason": reason})
        else:
            outcome.rejected_more += 1
