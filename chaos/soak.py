"""Long traffic with subscribers that come and go: nothing of the bus grows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Self

import zmq

from chaos.ledger import Sheet
from chaos.load import ClientReader, RawReader, Reader
from chaos.publishers import Flood, bad_documents
from chaos.room import FLOOD_RATE, Room
from chaos.scenario import Scenario
from testbed.bus import BusProcess

#: Seconds of traffic in a run of the usual length, a quarter of which warms up.
SOAK_SECS: Final = 30.0
MIB: Final = 1024 * 1024
#: Bytes that its memory may differ by between two moments of the same load.
SLACK_BYTES: Final = 24 * MIB


class Soak(Scenario):
    """Memory, threads and descriptors at the end are those after the first quarter."""

    name = "soak"
    fault = "accelerated traffic, subscribers come and go"

    def run(self, room: Room) -> None:
        """Let traffic flow at a rate that makes minutes into hours; measure twice."""
        bus = room.bus_in_use(rate=FLOOD_RATE / 2, zmq={"grace": 2})
        ends = time.monotonic() + SOAK_SECS * room.scale
        warm = time.monotonic() + SOAK_SECS * room.scale / 4
        early = None
        guests = 0
        while time.monotonic() < ends:
            guests += self._visit(room, bus)
            if early is None and time.monotonic() > warm:
                early = _at_rest(bus)
        late = _at_rest(bus)
        room.settle()
        room.check_bus(bus)
        room.notes.append(f"{guests} subscribers came and went")
        if early is None:
            room.broken.append("it was over before there was anything to compare with")
        else:
            room.broken += late.growth(early, SLACK_BYTES, leaving=4)
            room.notes.append(
                f"memory {early.memory / MIB:.0f} to {late.memory / MIB:.0f} MiB, threads "
                f"{early.threads} to {late.threads}, descriptors {early.descriptors} to "
                f"{late.descriptors}"
            )

    def _visit(self, room: Room, bus: BusProcess) -> int:
        """Have a few guests come, read a little, and leave in their different ways."""
        guests: list[Reader] = [ClientReader(Sheet("guest"), bus.doors) for _ in range(3)]
        old = RawReader(Sheet("guest"), bus.doors)
        guests.append(old)
        flood = Flood(bus.doors.address("sub"), zmq.XPUB, bad_documents(room.dice)[:200])
        flood.start()
        time.sleep(0.3)
        flood.stop()
        # One of the old kind leaves without a word now and then.
        if room.dice.random() < 0.5:
            old.ask(action="unsubscribe", topic=old.p2p)
        for guest in guests:
            guest.stop()
        return len(guests)


@dataclass(frozen=True)
class Footprint:
    """What a bus uses, when its guests have left."""

    memory: int
    """Resident bytes."""
    threads: int
    descriptors: int

    @classmethod
    def of(cls, bus: BusProcess) -> Self:
        """Measure a bus."""
        return cls(bus.resident_bytes(), bus.threads(), bus.descriptors())

    def growth(self, early: Footprint, slack: int, *, leaving: int = 0) -> list[str]:
        """Say what has grown since `early`, a line each.

        Memory may differ by `slack` bytes, descriptors by those of guests that are `leaving`.
        """
        found = []
        grown = self.memory - early.memory
        if grown > slack:
            found.append(f"memory grew by {grown / MIB:.0f} MiB")
        for what, before, now in (
            ("threads", early.threads, self.threads),
            ("descriptors", early.descriptors + leaving, self.descriptors),
        ):
            if now > before:
                found.append(f"{what} grew from {before} to {now}")
        return found


def _at_rest(bus: BusProcess) -> Footprint:
    """Measure a bus that its guests have left a moment ago."""
    time.sleep(0.5)
    return Footprint.of(bus)


SCENARIOS = (Soak(),)
