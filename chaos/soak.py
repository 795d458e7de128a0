"""Long traffic with subscribers that come and go: nothing of the bus grows."""

from __future__ import annotations

import time
from typing import Final

import zmq

from chaos.ledger import Sheet
from chaos.load import ClientReader, RawReader, Reader
from chaos.publishers import Flood, bad_documents
from chaos.room import FLOOD_RATE, Room
from chaos.scenario import Scenario
from testbed.bus import BusProcess

#: Seconds of traffic in a run of the usual length, a quarter of which warms up.
SOAK_SECS: Final = 30.0
#: Bytes that its memory may differ by between two moments of the same load.
SLACK_BYTES: Final = 24 * 1024 * 1024


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
                early = _Measure(room, bus)
        late = _Measure(room, bus)
        room.settle()
        room.check_bus(bus)
        room.notes.append(f"{guests} subscribers came and went")
        if early is None:
            room.broken.append("it was over before there was anything to compare with")
        else:
            late.compare(early)

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


class _Measure:
    """What a bus uses, when its guests have left."""

    def __init__(self, room: Room, bus: BusProcess) -> None:
        time.sleep(0.5)
        self._room = room
        self.memory = bus.resident_bytes()
        self.threads = bus.threads()
        self.descriptors = bus.descriptors()

    def compare(self, early: _Measure) -> None:
        """Hold that nothing has grown since `early`."""
        check = self._room.check
        grown = self.memory - early.memory
        check(grown < SLACK_BYTES, f"memory grew by {grown / 2**20:.0f} MiB")
        check(self.threads <= early.threads, f"threads grew to {self.threads}")
        check(
            self.descriptors <= early.descriptors + 4,
            f"descriptors grew from {early.descriptors} to {self.descriptors}",
        )
        self._room.notes.append(
            f"memory {early.memory / 2**20:.0f} to {self.memory / 2**20:.0f} MiB, threads "
            f"{early.threads} to {self.threads}, descriptors {early.descriptors} to "
            f"{self.descriptors}"
        )


SCENARIOS = (Soak(),)
