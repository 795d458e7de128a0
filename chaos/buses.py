"""The bus itself: killed, out of disk, out of descriptors, at a time that jumps."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Final

import zmq

from chaos.ledger import Number
from chaos.load import Publisher, domain_of, indicator, unusual
from chaos.publishers import Flood, bad_documents
from chaos.room import Room
from chaos.scenario import Scenario
from testbed.bus import BusProcess
from testbed.disk import SmallDisk
from testbed.ports import free_ports
from threatbus.rejects import StoredReject, stored

#: Where Debian's package ``faketime`` puts it.
_FAKETIME: Final = "/usr/lib/*/faketime/libfaketimeMT.so.1"
#: How far the wall clock jumps from the true time.
JUMPS_SECS: Final = (-86400 * 400, -7200, -61, 61, 7200, 86400 * 400)


class BusKilled(Scenario):
    """What is in the memory of a bus dies with it; everything else flows again by itself."""

    name = "bus-killed"
    fault = "a bus killed at random points and started again"

    def run(self, room: Room) -> None:
        """Kill it, again and again; nobody but the operator does anything about it."""
        bus = room.bus()
        reader = room.client_reader(bus)
        room.publisher(bus)
        for round_number in room.rounds(3):
            room.pause(0.3, 1.2)
            killed = time.monotonic()
            bus.kill()
            room.pause(0, 0.5)
            bus.start()
            subscriptions = round_number + 1
            room.until(
                lambda wanted=subscriptions: reader.subscriptions >= wanted,  # type: ignore[misc]
                "the reader has subscribed again",
            )
            # What was in its memory, and what was published before the reader was back.
            room.ledger.exclude(killed - 0.5, time.monotonic() + 0.2)
        time.sleep(0.3)
        room.over()
        room.pause(1)
        room.settle()
        room.check_bus(bus)


class DiskFull(Scenario):
    """Reject store, log file, MISP's index and outbox have no room: messages flow all the same."""

    name = "disk-full"
    fault = "disk full: reject store, log file, MISP's index and outbox"

    def run(self, room: Room) -> None:
        """Fill the disk under a running bus with traffic on all that writes, and free it."""
        misp, closed = free_ports(2)
        with contextlib.ExitStack() as stack:
            bus = BusProcess(
                apps={
                    "misp": {
                        "zmq": {"host": "127.0.0.1", "port": misp},
                        "api": {"host": f"http://127.0.0.1:{closed}", "key": "k" * 40},
                    }
                },
                # Less than the disk, or it would never have room again.
                rejected={"bytes": 256 * 1024},
                logging={
                    "console_verbosity": "INFO",
                    "file": True,
                    "filename": "state/threatbus.log",
                },
            )
            disk = _disk(room, bus, stack)
            room.stack.enter_context(bus)
            # On leaving, the bus goes before its disk.
            room.stack.push(stack.pop_all())
            self._play(room, bus, disk, misp)

    def _play(self, room: Room, bus: BusProcess, disk: SmallDisk | Limit, misp: int) -> None:
        room.client_reader(bus)
        room.publisher(bus, rate=200)
        address = f"tcp://127.0.0.1:{misp}"
        room.publishes(Publisher(room.ledger, "m", address, rate=100, make=attribute, bind=True))
        door = bus.doors.address("sub")
        room.publishes(Publisher(room.ledger, "s", door, rate=50, make=sighting))
        room.pause(1)
        disk.fill()
        garbage = Flood(bus.doors.address("sub"), zmq.XPUB, bad_documents(room.dice))
        garbage.start()
        room.stack.callback(garbage.stop)
        room.pause(3)
        garbage.stop()
        room.check(bus.is_alive() and bus.answers(5), "the bus does not answer on a full disk")
        room.check("rejected messages not kept" in bus.log, "the reject store found room")
        disk.free()
        room.over()
        room.pause(1.5)
        # MISP's messages wait until the index can be written, which is tried again after a while.
        room.settle(quiet=30)
        room.check(bus.is_alive() and bus.answers(5), "the bus does not answer")
        before = {line.number for line in _rejects(bus)}
        _publish_one(bus, b"stix2/indicator {")
        room.until(
            lambda: bool({line.number for line in _rejects(bus)} - before),
            "rejects are kept again when there is room",
        )


class Descriptors(Scenario):
    """No descriptor is left: who is there keeps what they have, and others come later."""

    name = "descriptor-limit"
    fault = "all descriptors of the bus in use"

    def run(self, room: Room) -> None:
        """Take the rest of the descriptors away from a running bus, with traffic of all kinds."""
        bus = room.bus()
        room.client_reader(bus)
        room.publisher(bus)
        door = bus.doors.address("sub")
        exhausted = threading.Event()

        def make(number: Number) -> bytes:
            # For the first unusual one the bus has to load the STIX library.
            return unusual(number) if exhausted.is_set() else indicator(number)

        room.publishes(Publisher(room.ledger, "u", door, rate=50, make=make))
        room.pause(0.5)
        limit, hard = bus.descriptors(), resource.prlimit(bus.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(bus.pid, resource.RLIMIT_NOFILE, (limit, hard))
        exhausted.set()
        with contextlib.ExitStack() as stack:
            for name in ("pub", "sub", "manage") * 10:
                connection = stack.enter_context(socket.socket())
                connection.connect(("127.0.0.1", getattr(bus.doors, name)))
            room.pause(3)
            room.check(bus.descriptors() >= limit, "the limit was not reached")
            room.check("publishers wait" in bus.log, "the log does not say that publishers wait")
        # Those who wanted in are gone; the operator gives it a little more.
        resource.prlimit(bus.pid, resource.RLIMIT_NOFILE, (limit + 50, hard))
        room.over()
        room.until(lambda: bus.answers(1), "new connections are taken again")
        room.pause(1)
        room.settle()
        room.check_bus(bus)


class ClockJumps(Scenario):
    """The wall clock jumps by hours and days, both ways: nothing that waits is decided by it."""

    name = "clock-jumps"
    fault = "the wall clock jumps by hours and days, both ways"

    def run(self, room: Room) -> None:
        """Run a bus whose clock a file decides, and rewrite the file."""
        found = sorted(Path("/").glob(_FAKETIME.removeprefix("/")))
        if not found:
            room.broken.append("the Debian package faketime is missing")
            return
        clock = Path(room.stack.enter_context(tempfile.TemporaryDirectory()), "clock")
        clock.write_text("+0")
        bus = room.bus(
            zmq={"grace": 5},
            environment={
                "LD_PRELOAD": str(found[0]),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        room.client_reader(bus)
        room.raw_reader(bus)
        room.publisher(bus)
        for _ in room.rounds(6):
            clock.write_text(f"{room.dice.choice(JUMPS_SECS):+}")
            # The time that a reject bears shows whether the clock has jumped.
            _publish_one(bus, b"weather/today {}")
            room.pause(0.4)
        started = bus.status()["uptime_seconds"]
        room.check(0 <= started < 120, f"it says that it runs since {started} s")
        clock.write_text("+0")
        room.over()
        room.pause(1)
        room.settle()
        room.check_bus(bus)
        years = {line.time[:4] for line in _rejects(bus)}
        room.check(len(years) > 1, f"its clock has not jumped: {years}")
        room.check("has been away" not in bus.log, "a subscriber was taken for one who is away")


class Limit:
    """A disk that is full for one process: no file of it may grow (RLIMIT_FSIZE)."""

    def __init__(self, bus: BusProcess) -> None:
        self._bus = bus

    def fill(self) -> None:
        """Let no file grow."""
        self._set(1)

    def free(self) -> None:
        """Let files grow."""
        self._set(resource.RLIM_INFINITY)

    def _set(self, size: int) -> None:
        hard = resource.prlimit(self._bus.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self._bus.pid, resource.RLIMIT_FSIZE, (size, hard))


def attribute(number: Number) -> bytes:
    """Make the message of MISP about the attribute that becomes the indicator with this number."""
    document = {
        "Attribute": {
            "id": str(number.number + 1),
            "event_id": "1",
            "object_id": "0",
            "category": "Network activity",
            "type": "domain",
            "value": domain_of(number),
            "to_ids": True,
            "uuid": str(uuid.uuid4()),
            "timestamp": "1795486613",
            "deleted": False,
        },
        "Event": {"id": "1", "uuid": "f2aa1394-d4b7-4208-b85c-277e07d99db2", "info": "chaos"},
        "action": "add",
    }
    return b"misp_json_attribute " + json.dumps(document).encode()


def sighting(number: Number) -> bytes:
    """Make the sighting with this number, which is to be reported to MISP."""
    moment = "2026-11-24T08:15:30.123Z"
    document = {
        "type": "sighting",
        "spec_version": "2.1",
        "id": f"sighting--{uuid.uuid4()}",
        "created": moment,
        "modified": moment,
        "sighting_of_ref": f"indicator--{uuid.uuid4()}",
        "name": domain_of(number),
    }
    return b"stix2/sighting " + json.dumps(document).encode()


def _disk(room: Room, bus: BusProcess, stack: contextlib.ExitStack) -> SmallDisk | Limit:
    """Give the bus a small disk for its state, or where none can be mounted a limit."""
    try:
        return stack.enter_context(SmallDisk(Path(bus.config["state_directory"])))
    except PermissionError:
        room.notes.append("by RLIMIT_FSIZE, since nothing can be mounted")
        return Limit(bus)


def _rejects(bus: BusProcess) -> list[StoredReject]:
    """Give what is in its reject store."""
    return list(stored(Path(bus.config["state_directory"])))


def _publish_one(bus: BusProcess, frame: bytes, wait: float = 2.0) -> None:
    """Publish one frame, if the bus lets us in within `wait` seconds."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.LINGER, int(wait * 1000))
        socket.connect(bus.doors.address("sub"))
        if socket.poll(int(wait * 1000)):
            socket.send(frame)


SCENARIOS = (BusKilled(), DiskFull(), Descriptors(), ClockJumps())
