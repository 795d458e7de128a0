"""What plugins say of themselves: ``services.report``.

A plugin says when a connection of its comes and goes, which workers it has, and how to read the
numbers that only it knows. It is asked when somebody looks, and never on the message path::

    broker = services.report.connection("publisher")
    broker.down("connecting to broker.example:5672")
    broker.up("connected to broker.example:5672")
    services.report.gauge("unmapped_indicators", "Indicators that have no counterpart.", read)
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from threatbus.logger import RateLimited

if TYPE_CHECKING:
    from threatbus.workers import StoppableWorker

logger = logging.getLogger("threatbus.observe")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
# In an address: user and password, and what follows a question mark.
_SECRETS: Final = (
    (re.compile(r"(?<=//)[^/@\s]*@"), ""),
    (re.compile(r"(//[^\s?]*)\?\S*"), r"\1"),
)


class State(StrEnum):
    """How a connection is."""

    IDLE = "idle"
    """Not needed so far; nothing is known against it."""
    UP = "up"
    DOWN = "down"
    """Away, or not there yet; the plugin tries."""


@dataclass(frozen=True)
class ConnectionStatus:
    """A connection at one moment; `since_seconds` is how long it has been as it is."""

    name: str
    state: State
    detail: str
    since_seconds: float
    reconnects: int


class Connection:
    """One connection, or endpoint, of a plugin; the plugin says how it is, from any thread."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        # Guards the fields below.
        self._lock = threading.Lock()
        self._state = State.IDLE
        self._detail = ""
        self._since = clock()
        self._reconnects = 0
        self._was_up = False

    def up(self, detail: str = "") -> None:
        """Say that it stands; `detail` says with whom."""
        self._set(State.UP, detail)

    def down(self, detail: str) -> None:
        """Say that it does not; `detail` says why, and what is tried."""
        self._set(State.DOWN, detail)

    def read(self) -> ConnectionStatus:
        """Give how it is."""
        with self._lock:
            since = max(0.0, self._clock() - self._since)
            return ConnectionStatus(
                self.name, self._state, self._detail, round(since, 1), self._reconnects
            )

    def _set(self, state: State, detail: str) -> None:
        with self._lock:
            if state is State.UP and self._state is not State.UP:
                self._reconnects += self._was_up
                self._was_up = True
            if state is not self._state:
                self._since = self._clock()
            # An address may hold a password.
            self._state, self._detail = state, _without_secrets(detail)


@dataclass(frozen=True)
class Number:
    """A number of a plugin's own, as it was read."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float


@dataclass(frozen=True)
class ReaderState:
    """What a plugin knows of one of its subscribers besides its outq."""

    connected: bool
    """Whether its reader is there."""
    stalled_seconds: float = 0.0
    """For how long it has taken nothing although something waits."""
    waiting: int = 0
    """Messages that wait for it, those that were taken from the outq included."""


class PluginReport:
    """What one plugin says of itself; the plugin calls it from any thread, at any time."""

    def __init__(self, plugin: str = "plugin") -> None:
        self._plugin = plugin
        # Guards changes of the collections below.
        self._lock = threading.Lock()
        self._connections: dict[str, Connection] = {}
        self._workers: list[StoppableWorker] = []
        self._numbers: dict[str, tuple[Literal["counter", "gauge"], str, Callable[[], float]]] = {}
        self._readers: list[Callable[[], Mapping[str, ReaderState]]] = []
        self._log = RateLimited(logger)

    # What a plugin calls.

    def connection(self, name: str) -> Connection:
        """Give the connection of this name; what it is not said of is idle.

        The name becomes the value of a label, so it must come from the configuration, not from a
        peer.
        """
        name = _without_secrets(name)
        with self._lock:
            return self._connections.setdefault(name, Connection(name))

    def worker(self, worker: StoppableWorker) -> None:
        """Have the restarts of `worker` counted, and itself said to be one that ended."""
        with self._lock:
            self._workers.append(worker)

    def counter(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Offer a number that only grows, as the metric ``threatbus_PLUGIN_NAME_total``."""
        self._offer("counter", name, text, read)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Offer a number that goes up and down, as the metric ``threatbus_PLUGIN_NAME``."""
        self._offer("gauge", name, text, read)

    def readers(self, read: Callable[[], Mapping[str, ReaderState]]) -> None:
        """Offer what is known of the plugin's subscribers, by the names of their outqs."""
        with self._lock:
            self._readers.append(read)

    # What the bus reads.

    def connections(self) -> list[ConnectionStatus]:
        """Give all connections, in the order in which they were named."""
        with self._lock:
            found = list(self._connections.values())
        return [each.read() for each in found]

    @property
    def restarts(self) -> int:
        """How often workers have failed and begun again."""
        return sum(worker.failures for worker in list(self._workers))

    @property
    def lost_workers(self) -> list[str]:
        """The names of workers that have ended although nobody asked them to."""
        return [worker.name for worker in list(self._workers) if worker.lost]

    def numbers(self) -> list[Number]:
        """Read the plugin's own numbers; one that cannot be read is left out, and logged."""
        found = []
        for name, (kind, text, read) in list(self._numbers.items()):
            try:
                found.append(Number(name, kind, text, float(read())))
            # It is the plugin's own code, and must not take the other numbers with it.
            except Exception:  # noqa: BLE001 (logged)
                self._failed(name)
        return found

    def reader_states(self) -> dict[str, ReaderState]:
        """Read what the plugin knows of its subscribers, by the names of their outqs."""
        found: dict[str, ReaderState] = {}
        for read in list(self._readers):
            try:
                found.update(read())
            # As above.
            except Exception:  # noqa: BLE001 (logged)
                self._failed("readers")
        return found

    def _offer(
        self, kind: Literal["counter", "gauge"], name: str, text: str, read: Callable[[], float]
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a metric: a-z, 0-9 and _ are")
        with self._lock:
            self._numbers[name] = (kind, text, read)

    def _failed(self, what: str) -> None:
        self._log.log(
            what, logging.ERROR, "plugin %s: %s cannot be read", self._plugin, what, exc_info=True
        )


def _without_secrets(text: str) -> str:
    """Give `text` with addresses as far as they name a place."""
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return text
