"""Publishers that misbehave: bad input costs nobody else anything."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

import zmq

from chaos.room import Room
from chaos.scenario import Scenario
from fuzz.mutation import mutate
from fuzz.targets import TARGETS
from testbed.bus import BusProcess

#: Different bad frames that are made before the flood, which is to be as fast as sockets are.
FRAMES: Final = 2000
BURST: Final = 50


class Flood(threading.Thread):
    """Sends frames to one door as fast as the bus takes it, until stopped."""

    def __init__(self, address: str, kind: int, frames: list[bytes]) -> None:
        super().__init__(name=f"flood of {address}", daemon=True)
        self._address = address
        self._kind = kind
        self._frames = frames
        self._stop_asked = threading.Event()
        self.sent = 0

    def run(self) -> None:
        """Send; one that the door cuts off comes again."""
        with zmq.Context() as context, context.socket(self._kind) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 1000)
            socket.setsockopt(zmq.SNDTIMEO, 100)
            if self._kind == zmq.XPUB:
                socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.connect(self._address)
            while not self._stop_asked.is_set():
                try:
                    for _ in range(BURST):
                        socket.send(self._frames[self.sent % len(self._frames)])
                        self.sent += 1
                except zmq.Again:
                    continue

    def stop(self) -> None:
        """Ask it to end; returns when it has."""
        self._stop_asked.set()
        self.join(5)


class _Garbage(Scenario):
    """A flood at one door, beside an honest publisher and an honest reader."""

    def __init__(self, door: str, kind: int, frames: Callable[[random.Random], list[bytes]]):
        self._door = door
        self._kind = kind
        self._frames = frames

    def run(self, room: Room) -> None:
        """Let honest traffic flow beside the flood; ask for a heartbeat all the while."""
        bus = room.bus()
        room.client_reader(bus)
        room.publisher(bus)
        flood = Flood(bus.doors.address(self._door), self._kind, self._frames(room.dice))
        flood.start()
        room.stack.callback(flood.stop)
        memory = 0
        for _ in room.rounds(15):
            room.check(bus.answers(5), "no heartbeat is answered during the flood")
            room.pause(0.15)
            memory = max(memory, bus.resident_bytes())
        flood.stop()
        room.over()
        room.pause(1)
        room.settle()
        room.check(flood.sent > 1000, f"the flood was none: {flood.sent}")
        self.look(room, bus)
        room.check(memory < 600 * 1024 * 1024, f"memory grew to {memory:,} bytes")
        room.check_bus(bus)

    def look(self, room: Room, bus: BusProcess) -> None:
        """Hold what must hold of the bus besides."""


class GarbageAtSub(_Garbage):
    """Mutations of documents, and large ones, where documents are published."""

    name = "garbage-published"
    fault = "a publisher sends garbage at full speed"

    def __init__(self) -> None:
        super().__init__("sub", zmq.XPUB, bad_documents)

    def look(self, room: Room, bus: BusProcess) -> None:
        """Hold that the garbage was counted."""
        rejected = sum(bus.status()["rejected"].values())
        room.check(rejected > 1000, f"only {rejected} were counted as rejected")


class GarbageAtManage(_Garbage):
    """Requests that are none."""

    name = "garbage-requested"
    fault = "a client sends requests that are none at full speed"

    def __init__(self) -> None:
        super().__init__("manage", zmq.DEALER, lambda dice: _mutations("zmq-manage", dice))


class GarbageAtPub(_Garbage):
    """Subscriptions to topics that nobody issued, and frames that are no subscriptions."""

    name = "garbage-subscribed"
    fault = "a SUB sends garbage at full speed"

    def __init__(self) -> None:
        super().__init__("pub", zmq.XSUB, _bad_subscriptions)


def _mutations(target: str, dice: random.Random) -> list[bytes]:
    seeds = TARGETS[target].seeds()
    return [mutate(dice.choice(seeds), dice, seeds) for _ in range(FRAMES)]


def bad_documents(dice: random.Random) -> list[bytes]:
    """Make frames of which the border takes none."""
    # A mutation may be sound; with one more brace none is.
    spoilt = [b"stix2/indicator {" + frame for frame in _mutations("border", dice)]
    return [*spoilt, *(dice.randbytes(100_000) for _ in range(20))]


def _bad_subscriptions(dice: random.Random) -> list[bytes]:
    kinds = (b"\x00", b"\x01", b"\x01", b"\x05", b"")
    return [dice.choice(kinds) + dice.randbytes(dice.randrange(100)) for _ in range(FRAMES)]


SCENARIOS = (GarbageAtSub(), GarbageAtManage(), GarbageAtPub())
