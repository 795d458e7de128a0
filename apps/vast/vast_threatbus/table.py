"""The node's lookup table, kept as the registry says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from threatbus.workers import Backoff, StoppableWorker
from vast_threatbus import pipelines
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine, EngineClosed, EngineError
from vast_threatbus.registry import Registry

logger = logging.getLogger("threatbus.vast.table")

#: Rows that one process writes.
ROWS: Final = 50_000
#: Longest delay between two attempts to reach the node.
MAX_RETRY_SECS: Final = 2.0


class LookupTable(StoppableWorker):
    """Writes what has changed, all that has meanwhile with one process.

    Whoever changes the registry says so by `changed`. At the start, and whenever the node was
    away, the table is emptied and written anew: what is in it is what this wrapper knows.

    Blocks in a wait that `changed`, `write_anew` and `stop` end and that lasts until the next
    indicator expires, in pipelines, which the closing of the engine ends, and between two
    attempts in a wait that `stop` ends. Ends when `stop` was called.
    """

    def __init__(self, engine: Engine, registry: Registry, counters: Counters, name: str) -> None:
        super().__init__(name="lookup table")
        self._engine = engine
        self._registry = registry
        self._counters = counters
        self._table = name
        # Set when there is something to do; guards nothing.
        self._work = threading.Event()
        # Guards the next three.
        self._lock = threading.Lock()
        # Keys whose indicators are others than those in the table.
        self._changed: set[str] = set()
        # How many keys are being written.
        self._writing = 0
        # Whether nobody knows what is in the table.
        self._unknown = True
        #: Set while the table is there and is kept.
        self.kept = threading.Event()
        self._backoff = Backoff(0.1, MAX_RETRY_SECS)
        # Whether it was logged that the node is away.
        self._lost = False

    def changed(self, keys: Iterable[str]) -> None:
        """Take note of keys whose indicators are others now, or that one expires earlier."""
        with self._lock:
            self._changed.update(keys)
        self._work.set()

    def write_anew(self) -> None:
        """Have the table made and written anew: the node was away, or may have been."""
        with self._lock:
            self._unknown = True
        self.kept.clear()
        self._work.set()

    @property
    def waiting(self) -> int:
        """How many keys are yet to be written, or are being written."""
        with self._lock:
            return len(self._changed) + self._writing

    def stop(self) -> None:
        """Ask it to end, also in the middle of a wait."""
        super().stop()
        self._work.set()

    def run(self) -> None:
        """Write until asked to stop."""
        self._work.set()
        while self._running():
            self._work.wait(self._until_expiry())
            self._work.clear()
            self._expire()
            try:
                self._write()
            except EngineClosed:
                return
            except EngineError as error:
                self._failed(error)

    def _expire(self) -> None:
        keys = self._registry.expire(datetime.now(UTC))
        with self._lock:
            self._changed |= keys

    def _until_expiry(self) -> float | None:
        moment = self._registry.next_expiry()
        if moment is None:
            return None
        # A wait of years is more than a lock can do.
        return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), 3600.0)

    def _write(self) -> None:
        with self._lock:
            anew, self._unknown = self._unknown, False
            keys, self._changed = self._changed, set()
            if anew:
                keys = set(self._registry.keys())
            self._writing = len(keys)
        if anew:
            self._empty()
        rows = [(key, self._registry.ids(key)) for key in keys]
        self._send(pipelines.update, ({"key": key, "ids": ids} for key, ids in rows if ids))
        if not anew:
            self._send(pipelines.erase, ({"key": key} for key, ids in rows if not ids))
        with self._lock:
            self._writing = 0
        if anew:
            self.kept.set()
            logger.info("the lookup table %r is written: %d keys", self._table, len(keys))
        self._backoff.reset()
        self._lost = False

    def _empty(self) -> None:
        try:
            self._engine.run(pipelines.reset(self._table))
        except EngineClosed:
            raise
        except EngineError:
            # There is none yet; if that is not why, this says what is.
            self._engine.run(pipelines.create(self._table))

    def _send(self, pipeline: Callable[[str], str], rows: Iterator[dict[str, object]]) -> None:
        while some := list(islice(rows, ROWS)):
            self._engine.run(pipeline(self._table), some)
            self._counters.add("table_writes")

    def _failed(self, error: EngineError) -> None:
        if not self._lost:
            logger.warning("the lookup table cannot be written: %s; trying again", error)
            self._lost = True
        # What of it has been written, nobody knows.
        self.write_anew()
        self._stop_asked.wait(self._backoff.next())
