"""Subscribers that misbehave: nobody else loses anything, and they lose nothing in silence."""

from __future__ import annotations

import json
from typing import Any

import zmq

from chaos.ledger import Sheet
from chaos.load import RawReader
from chaos.room import FLOOD_RATE, Room
from chaos.scenario import Scenario


class Stalls(Scenario):
    """What is for it waits in its outq, and comes when it reads again."""

    name = "subscriber-stalls"
    fault = "a subscriber reads nothing for a while"

    def run(self, room: Room) -> None:
        """Stall it until far more than the sockets hold is waiting."""
        bus = room.bus()
        room.client_reader(bus)
        stalling = room.raw_reader(bus, high_water_mark=10)
        room.publisher(bus, rate=FLOOD_RATE)
        room.pause(0.5)
        stalling.pause()
        room.pause(3)
        room.until(lambda: _waiting(bus.status()) > 1000, "messages wait for the one that stalls")
        stalling.resume()
        room.over()
        room.ends(bus, after=0.5)


class Overflows(Scenario):
    """Its outq is full: it is told at its next heartbeat, and may subscribe again."""

    name = "subscriber-overflows"
    fault = "a subscriber stalls until its outq is full"

    def run(self, room: Room) -> None:
        """Stall it until its subscription ends; the other reader gets everything."""
        bus = room.bus(queues={"outq_messages": 2000})
        room.client_reader(bus)
        stalling = RawReader(Sheet("stalling"), bus.doors, high_water_mark=10)
        room.stack.callback(stalling.stop)
        room.publisher(bus, rate=FLOOD_RATE)
        stalling.pause()
        room.until(lambda: "full" in bus.log, "the log says that its outq is full")
        stalling.resume()
        room.until(lambda: stalling.subscriptions > 0, "it was told, and has subscribed again")
        room.over()
        before = len(stalling.sheet.arrived)
        room.pause(1)
        room.settle()
        room.check(len(stalling.sheet.arrived) > before, "nothing comes after it subscribed again")
        room.check(
            stalling.sheet.reordered == 0
            and stalling.sheet.copies.total() == len(stalling.sheet.copies),
            "what it got before and after is out of order or repeated",
        )
        room.check_bus(bus)


class Flaps(Scenario):
    """Its connection breaks again and again: at least once, in order."""

    name = "subscriber-flaps"
    fault = "a subscriber's connection cut at random bytes"
    may_repeat = True

    def run(self, room: Room) -> None:
        """Cut its connection; nothing of it is lost."""
        bus = room.bus()
        way = room.proxy(bus.doors.pub)
        room.raw_reader(bus, pub_port=way.port)
        room.client_reader(bus)
        room.publisher(bus, rate=FLOOD_RATE)
        for _ in room.rounds(12):
            way.cut_after(room.dice.randrange(1, 300_000))
            room.pause(0.1, 0.4)
            way.cut()
        room.over()
        room.ends(bus)


class Vanishes(Scenario):
    """Many that come, and go without a word: they are forgotten after the grace time."""

    name = "subscriber-vanishes"
    fault = "200 subscribers vanish without a word"

    def run(self, room: Room) -> None:
        """Subscribe many, connect half of them, and be gone."""
        bus = room.bus_in_use(zmq={"grace": 1})
        descriptors = bus.descriptors()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for topic in _subscribe(context, bus.doors.address("manage"), 200)[::2]:
            sub = context.socket(zmq.SUB)
            sub.connect(bus.doors.address("pub"))
            sub.subscribe(topic)
        room.pause(1)
        context.destroy(linger=0)
        room.over()
        room.until(lambda: len(_outqs(bus.status())) <= 1, "those who are gone are forgotten")
        room.pause(0.5)
        room.settle()
        room.until(lambda: bus.descriptors() <= descriptors + 5, "their descriptors are given back")
        room.check_bus(bus)


class SubscribesAThousandTimes(Scenario):
    """One app that subscribes a thousand times, reads from none, and unsubscribes."""

    name = "subscriber-thousandfold"
    fault = "one app subscribes a thousand times"

    def run(self, room: Room) -> None:
        """Subscribe, let traffic flow, unsubscribe."""
        bus = room.bus_in_use(zmq={"max_requests_per_second": 100_000})
        with zmq.Context() as context:
            manage = bus.doors.address("manage")
            topics = _subscribe(context, manage, 1000)
            room.pause(1)
            with context.socket(zmq.REQ) as req:
                req.connect(manage)
                for topic in topics:
                    req.send(json.dumps({"action": "unsubscribe", "topic": topic}).encode())
                    room.check(b"success" in req.recv(), "an unsubscription is refused")
        room.over()
        room.pause(0.5)
        room.settle()
        room.check(len(_outqs(bus.status())) <= 1, "outqs of subscriptions that have ended remain")
        room.check_bus(bus)


def _outqs(status: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = status["subscribers"]
    return found


def _waiting(status: dict[str, Any]) -> int:
    """Give the most messages that wait for one subscriber."""
    return max((each["waiting"] for each in _outqs(status).values()), default=0)


def _subscribe(context: zmq.Context[zmq.Socket[bytes]], manage: str, count: int) -> list[str]:
    """Subscribe `count` times; gives the point-to-point topics."""
    topics = []
    with context.socket(zmq.REQ) as req:
        req.connect(manage)
        for _ in range(count):
            req.send(b'{"action": "subscribe", "topic": "stix2/indicator", "snapshot": 0}')
            topics.append(json.loads(req.recv())["topic"])
    return topics


SCENARIOS = (
    Stalls(),
    Overflows(),
    Flaps(),
    Vanishes(),
    SubscribesAThousandTimes(),
)
