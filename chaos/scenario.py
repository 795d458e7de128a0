"""What a scenario is: a fault, the promise that it is held against, and the verdict."""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from chaos.room import Broker, Room


class Scenario(ABC):
    """One fault. Subclasses say what is promised under it, and do it in `run`."""

    #: What `--only` calls it.
    name: ClassVar[str]
    #: The fault in a few words, for the table.
    fault: ClassVar[str]
    #: Whether a message may come twice; never otherwise.
    may_repeat: ClassVar[bool] = False

    @abstractmethod
    def run(self, room: Room) -> None:
        """Do it: start parts, let traffic flow, break something, mend it, settle."""


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    name: str
    fault: str
    sent: int
    owed: int
    delivered: int
    lost: int
    duplicated: int
    recovery: float | None
    broken: tuple[str, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        """Whether every promise held."""
        return not self.broken

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return (
            "; ".join(("held", *self.notes)) if self.held else "BROKEN: " + "; ".join(self.broken)
        )


def play(scenario: Scenario, seed: int, scale: float, broker: Broker) -> Outcome:
    """Run one scenario and judge it; what it raises is a broken promise, too."""
    began = time.monotonic()
    with Room(scenario.name, seed, scale, broker) as room:
        try:
            scenario.run(room)
        except Exception:  # noqa: BLE001 (the table goes on; the verdict says what it was)
            room.broken.append(traceback.format_exc(limit=-3).strip().replace("\n", " | "))
        return judge(scenario, room, time.monotonic() - began)


def judge(scenario: Scenario, room: Room, seconds: float) -> Outcome:
    """Hold the ledger against what the scenario promises."""
    ledger = room.ledger
    broken = list(room.broken)
    lost, breach = ledger.lost(), ledger.lost_in_breach()
    if breach:
        broken.append(f"lost {len(breach)}, such as {min(breach)}")
    elif lost:
        room.notes.append("lost only what the promise excludes")
    if ledger.duplicated and not scenario.may_repeat:
        broken.append(f"repeated {ledger.duplicated}")
    if ledger.reordered:
        broken.append(f"out of order {ledger.reordered}")
    if ledger.foreign():
        broken.append(f"{ledger.foreign()} that nobody sent")
    if not ledger.sent:
        broken.append("nothing was sent")
    if ledger.over_at is not None and ledger.recovery() is None:
        broken.append("nothing arrived after the fault was over")
    return Outcome(
        scenario.name,
        scenario.fault,
        ledger.sent,
        ledger.owed,
        ledger.delivered,
        len(lost),
        ledger.duplicated,
        ledger.recovery(),
        tuple(broken),
        tuple(room.notes),
        seconds,
    )
