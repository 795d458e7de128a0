"""RabbitMQ, and the network between it and a bus: what is confirmed reaches every bus, once."""

from __future__ import annotations

import signal
import time
from abc import abstractmethod

from chaos.room import RATE, Room
from chaos.scenario import Scenario
from testbed.bus import BusProcess
from testbed.proxy import Proxy
from testbed.rabbit import RabbitNode


class _OneBusToAnother(Scenario):
    """A publisher at one bus, a reader at another, RabbitMQ between them."""

    def run(self, room: Room) -> None:
        """Let it flow, break the broker, let it flow again."""
        node = room.broker.node()
        here = room.rabbit_bus("here", node.port)
        there = room.rabbit_bus("there", node.port)
        room.client_reader(there)
        room.publisher(here)
        room.pause(1)
        self.harm(room, node)
        room.pause(1.5)
        room.settle()
        room.check_bus(here)
        room.check_bus(there)

    @abstractmethod
    def harm(self, room: Room, node: RabbitNode) -> None:
        """Break it, and mend it."""


class RabbitKilled(_OneBusToAnother):
    """SIGKILL; it has on disk what it has confirmed."""

    name = "rabbitmq-killed"
    fault = "RabbitMQ killed and started again"

    def harm(self, room: Room, node: RabbitNode) -> None:
        """Kill it at a random moment."""
        room.pause(0, 0.5)
        node.kill()
        room.pause(0.5)
        node.start()
        room.over()


class RabbitPaused(_OneBusToAnother):
    """SIGSTOP: connections stand, and nothing answers."""

    name = "rabbitmq-paused"
    fault = "RabbitMQ paused (SIGSTOP) for 3 s"

    def harm(self, room: Room, node: RabbitNode) -> None:
        """Stop and continue it."""
        node.signal(signal.SIGSTOP)
        time.sleep(3)
        room.check_felt(int(RATE), "RabbitMQ was paused")
        node.signal(signal.SIGCONT)
        room.over()


class RabbitEmptied(_OneBusToAnother):
    """It comes back without exchange, queues and messages: what it had confirmed is gone."""

    name = "rabbitmq-emptied"
    fault = "RabbitMQ restarted with an empty disk"

    def harm(self, room: Room, node: RabbitNode) -> None:
        """Stop it, remove what it has, start it."""
        stopped = time.monotonic()
        node.kill()
        node.forget()
        node.start()
        room.over()
        # What it had confirmed and not delivered; and what the one bus publishes before the
        # other one has made its queue anew.
        room.ledger.exclude(stopped - 1, time.monotonic() + 5)
        room.pause(5)


class _Network(Scenario):
    """Both buses reach RabbitMQ through proxies of their own."""

    heartbeat = 10

    def run(self, room: Room) -> None:
        """Let it flow, break the network, let it flow again."""
        node = room.broker.node()
        ways = [room.proxy(node.port) for _ in range(2)]
        here, there = (
            room.rabbit_bus(name, way.port, heartbeat=self.heartbeat)
            for name, way in zip(("here", "there"), ways, strict=True)
        )
        room.client_reader(there)
        room.publisher(here)
        room.pause(1)
        self.harm(room, ways)
        room.over()
        room.pause(1.5)
        room.settle()
        self.look(room, [here, there])

    @abstractmethod
    def harm(self, room: Room, ways: list[Proxy]) -> None:
        """Break the network, and mend it."""

    def look(self, room: Room, buses: list[BusProcess]) -> None:
        """Hold what must hold of the buses."""
        for bus in buses:
            room.check_bus(bus)


class NetworkCut(_Network):
    """Connections break, sometimes in the middle of a frame, and new ones are refused a while."""

    name = "network-cut"
    fault = "connections to RabbitMQ cut at random bytes"

    def harm(self, room: Room, ways: list[Proxy]) -> None:
        """Cut one way or the other, again and again."""
        for _ in room.rounds(6):
            way = room.dice.choice(ways)
            way.is_down = room.dice.random() < 0.5
            way.cut_after(room.dice.randrange(1, 200_000))
            room.pause(0.3, 0.8)
            way.cut()
            way.is_down = False
            room.pause(0.1, 0.5)

    def look(self, room: Room, buses: list[BusProcess]) -> None:
        """Hold that connections had to be made anew."""
        super().look(room, buses)
        again = sum(
            connection["reconnects"]
            for bus in buses
            for plugin in bus.status()["plugins"]
            for connection in plugin["connections"]
        )
        room.check(again > 0, "no connection was cut")


class NetworkDelayed(_Network):
    """Each chunk takes 150 ms."""

    name = "network-delayed"
    fault = "150 ms between the buses and RabbitMQ"

    def harm(self, room: Room, ways: list[Proxy]) -> None:
        """Delay everything for a while."""
        for way in ways:
            way.delay = 0.15
        room.pause(3)
        # What was sent in the time of one of the ways alone.
        room.check_felt(int(RATE * 0.15), "the network was slow")
        for way in ways:
            way.delay = 0.0


class NetworkHalved(_Network):
    """Half of what the traffic needs."""

    name = "network-halved"
    fault = "half of the bandwidth that the traffic needs"

    def harm(self, room: Room, ways: list[Proxy]) -> None:
        """Let half of it through for a while."""
        for way in ways:
            way.bytes_per_second = 120_000
        room.pause(3)
        # Half of what was sent meanwhile, and with a third of it there is no doubt.
        room.check_felt(int(RATE * room.scale), "the network was narrow")
        for way in ways:
            way.bytes_per_second = None


class NetworkDeaf(_Network):
    """A connection that stands and of which one direction is dead: only heartbeats tell."""

    name = "network-deaf"
    fault = "answers of RabbitMQ vanish, connections stand"
    heartbeat = 1

    def harm(self, room: Room, ways: list[Proxy]) -> None:
        """Let nothing come back on the connections that there are."""
        for way in ways:
            way.freeze(answers_only=True)
        room.until(lambda: room.ledger.behind > RATE, "the reader's bus hears nothing")

    def look(self, room: Room, buses: list[BusProcess]) -> None:
        """Hold that the buses have found out by themselves."""
        super().look(room, buses)
        for bus in buses:
            room.check("heartbeats" in bus.log, "no heartbeat was missed")
        room.notes.append(f"found out by heartbeats of {self.heartbeat} s")


class BusOnRabbitKilled(Scenario):
    """A bus that was away finds its queue full: only what was in its memory died with it."""

    name = "bus-killed-rabbitmq"
    fault = "a bus on RabbitMQ killed at random points"
    may_repeat = True

    def run(self, room: Room) -> None:
        """Kill the bus of the reader, again and again."""
        node = room.broker.node()
        here = room.rabbit_bus("here", node.port)
        there = room.rabbit_bus("there", node.port)
        room.client_reader(there)
        room.publisher(here)
        for _ in room.rounds(2):
            room.pause(0.3, 1.2)
            killed = time.monotonic()
            there.kill()
            # In its memory was what had just come.
            room.ledger.exclude(killed - 1, killed)
            room.pause(0.2, 0.8)
            there.start()
            # What waited in its queue goes through its memory first.
            room.over()
            room.until(lambda: room.ledger.recovery() is not None, "what waited has come")
        room.pause(1)
        room.settle()
        room.check_bus(here)
        room.check_bus(there)


SCENARIOS = (
    RabbitKilled(),
    RabbitPaused(),
    NetworkCut(),
    NetworkDelayed(),
    NetworkHalved(),
    NetworkDeaf(),
    BusOnRabbitKilled(),
    RabbitEmptied(),
)
