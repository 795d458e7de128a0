"""What a scenario works with; all of it is stopped and removed when the scenario ends."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Self, TypeVar

from chaos.ledger import Ledger
from chaos.load import ClientReader, Publisher, RawReader, Reader
from testbed.bus import BusProcess
from testbed.proxy import Proxy, proxy
from testbed.rabbit import RabbitNode
from threatbus.errors import ThreatBusError

#: Messages a second of one publisher, unless a scenario wants others.
RATE: Final = 400.0
#: Messages a second where much is to pile up.
FLOOD_RATE: Final = 3000.0
#: Seconds for something that takes milliseconds on a quiet machine.
PATIENCE_SECS: Final = 20.0
#: Seconds without anything new after which what is missing counts as lost.
QUIET_SECS: Final = 3.0
#: Seconds that a bus which has caught up may take to hand over the rest.
SETTLE_SECS: Final = 45.0

ReaderT = TypeVar("ReaderT", bound=Reader)


class Broker:
    """One RabbitMQ for all scenarios that want one, started when the first does."""

    def __init__(self) -> None:
        self._node: RabbitNode | None = None

    def node(self) -> RabbitNode:
        """Give the node, running."""
        if self._node is None:
            self._node = RabbitNode()
            self._node.start()
        return self._node

    def close(self) -> None:
        """Stop it."""
        if self._node is not None:
            self._node.close()


class Room:
    """One scenario's own: seeded dice, how long its traffic lasts, its ledger and its parts."""

    def __init__(self, name: str, seed: int, scale: float, broker: Broker) -> None:
        self.name = name
        self.dice = random.Random(f"{seed} {name}")
        #: What the usual lengths of time are multiplied with.
        self.scale = scale
        self.ledger = Ledger()
        self.broker = broker
        #: Keeps what has to be undone.
        self.stack = ExitStack()
        #: What was found broken besides the ledger's counts.
        self.broken: list[str] = []
        #: What is worth telling although nothing is broken.
        self.notes: list[str] = []
        self._publishers: list[Publisher] = []
        self._readers: list[Reader] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for publisher in self._publishers:
                publisher.stop()
            for reader in self._readers:
                reader.stop()
        finally:
            self.stack.close()

    # Parts.

    def bus(self, **options: Any) -> BusProcess:
        """Start a bus; see `BusProcess`."""
        return self.stack.enter_context(BusProcess(**options))

    def rabbit_bus(self, node: str, port: int, **section: Any) -> BusProcess:
        """Start a bus on the RabbitMQ at `port`, with a queue of its own."""
        rabbitmq = {
            "port": port,
            "exchange_name": f"chaos-{self.name}",
            "queue": {"name_suffix": f"{self.name}-{node}"},
            **section,
        }
        return self.bus(backbones={"rabbitmq": rabbitmq})

    def proxy(self, port: int) -> Proxy:
        """Put a proxy in front of a port."""
        return self.stack.enter_context(proxy(port))

    def publisher(self, bus: BusProcess, name: str = "p", rate: float = RATE) -> Publisher:
        """Start a publisher; returns when the bus listens to it."""
        return self.publishes(Publisher(self.ledger, name, bus.doors.address("sub"), rate=rate))

    def publishes(self, publisher: Publisher) -> Publisher:
        """Start this publisher; returns when somebody listens to it."""
        publisher.start()
        self._publishers.append(publisher)
        if not publisher.connected.wait(PATIENCE_SECS):
            raise ThreatBusError("the publisher is heard by nobody")
        return publisher

    def client_reader(self, bus: BusProcess, name: str = "client") -> ClientReader:
        """Subscribe an app on the client library."""
        return self._reads(ClientReader(self.ledger.opens(name), bus.doors))

    def raw_reader(self, bus: BusProcess, name: str = "raw", **options: int) -> RawReader:
        """Subscribe an app of the old kind."""
        return self._reads(RawReader(self.ledger.opens(name), bus.doors, **options))

    def _reads(self, reader: ReaderT) -> ReaderT:
        self._readers.append(reader)
        return reader

    # Time.

    def pause(self, low: float, high: float | None = None) -> None:
        """Let things go on for a while: seconds, drawn between two bounds if there are two."""
        seconds = low if high is None else self.dice.uniform(low, high)
        time.sleep(seconds * self.scale)

    def rounds(self, count: int) -> range:
        """Give numbers for so many rounds of a fault, more in a longer run."""
        return range(max(1, round(count * self.scale)))

    def over(self) -> None:
        """Say that the fault is over: from now on the time to recover counts."""
        self.ledger.over_at = time.monotonic()

    def until(
        self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECS
    ) -> bool:
        """Wait for something; what does not come is noted as broken."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.broken.append(f"not within {seconds:.0f} s: {what}")
                return False
            time.sleep(0.02)
        return True

    def settle(self, quiet: float = QUIET_SECS) -> None:
        """Stop the publishers; wait until everything has arrived, or nothing does any more.

        The latter is so when nothing has come for `quiet` seconds. After a fault they go on until
        one message that was sent later has come through.
        """
        if self.ledger.over_at is not None:
            self.until(lambda: self.ledger.recovery() is not None, "a message comes through again")
        for publisher in self._publishers:
            publisher.stop()
        deadline = time.monotonic() + SETTLE_SECS
        seen, since = -1, time.monotonic()
        while self.ledger.delivered < self.ledger.owed and time.monotonic() < deadline:
            if self.ledger.delivered != seen:
                seen, since = self.ledger.delivered, time.monotonic()
            elif time.monotonic() - since > quiet:
                break
            time.sleep(0.05)
        for reader in self._readers:
            reader.stop()
            if reader.failure is not None:
                self.broken.append(f"{reader.sheet.reader} failed: {reader.failure!r}")

    def check(self, holds: bool, otherwise: str) -> None:
        """Note `otherwise` as broken unless something holds."""
        if not holds:
            self.broken.append(otherwise)

    def check_felt(self, least: int, fault: str) -> None:
        """Hold that a fault which holds messages up does so now: `least` of them are behind."""
        behind = self.ledger.behind
        self.check(behind >= least, f"{fault}, and only {behind} messages were held up by it")

    def check_bus(self, bus: BusProcess) -> None:
        """Hold that a bus lives, answers, and that no worker of it has failed."""
        self.check(bus.is_alive(), "the bus has ended")
        self.check(bus.is_alive() and bus.answers(5), "the bus does not answer")
        self.check("Traceback" not in bus.log, f"the bus logs a traceback: {_last_line(bus.log)}")


def _last_line(log: str) -> str:
    tail = log[log.rindex("Traceback") :] if "Traceback" in log else log
    lines = [line.strip() for line in tail.splitlines()]
    return next((line for line in lines if "Error" in line), lines[-1] if lines else "")[:200]
