"""The node's lookup table, kept as the registry says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from threatbus.client.connection import Deadline
from threatbus.workers import Backoff, StoppableWorker
from vast_threatbus import pipelines
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine, EngineClosed, EngineError, encoded
from vast_threatbus.registry import Registry

logger = logging.getLogger("threatbus.vast.table")

#: Rows that a pipeline is given at once.
ROWS: Final = 5000
#: Seconds for which a pipeline that has had all waits for more, and seconds for which it goes on
#: doing so: it takes about 0.2 s to start one, in which a thousand indicators may come.
GATHER_SECS: Final = 0.05
MAX_GATHER_SECS: Final = 3.0
#: Longest delay between two attempts to reach the node.
MAX_RETRY_SECS: Final = 2.0


class LookupTable(StoppableWorker):
    """Writes what has changed, all that has meanwhile with one process.

    Whoever changes the registry says so by `changed`. At the start, and whenever the node was
    away, the table is emptied and written anew: what is in it is what this wrapper knows.

    Blocks in a wait that `changed`, `write_anew` and `stop` end, in pipelines, which the closing
    of the engine ends, and between two attempts in a wait that `stop` ends. Ends when `stop` was
    called.
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
        """Take note of keys whose indicators are others now."""
        with self._lock:
            self._changed.update(keys)
        self._work.set()

    def write_anew(self) -> None:
        """Have the table made and written anew: the node was away, or may have been."""
        with self._lock:
            self._unknown = True
            self._writing = 0
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
        # Also when it begins again after it has failed in the middle of something.
        self.write_anew()
        while self._running():
            if not self._unknown:
                self._work.wait()
            self._work.clear()
            try:
                self._write()
            except EngineClosed:
                return
            except EngineError as error:
                self._failed(error)

    def _write(self) -> None:
        with self._lock:
            anew, self._unknown = self._unknown, False
            if anew:
                self._changed = set(self._registry.keys())
        if anew:
            make_empty(self._engine, self._table)
        gone: set[str] = set()
        rows = self._rows(gone)
        first = next(rows, None)
        if first is not None:
            self._run(pipelines.update, chain([first], rows))
        # What has come back meanwhile is in the table.
        gone = {key for key in gone if not self._registry.ids(key)}
        if gone:
            self._run(pipelines.erase, [encoded({"key": key} for key in gone)])
        with self._lock:
            self._writing = 0
            # Unless the node has left once more.
            if anew and not self._unknown:
                self.kept.set()
        if anew:
            logger.info("the lookup table %r is written anew", self._table)
        self._backoff.reset()
        self._lost = False

    def _rows(self, gone: set[str]) -> Iterator[bytes]:
        """Give rows for what has changed, and for what does so meanwhile, as pieces of input.

        Keys that nobody names any more go to `gone`.
        """
        deadline = Deadline(MAX_GATHER_SECS)
        while keys := self._take():
            named = [(key, ids) for key in keys if (ids := self._registry.ids(key))]
            gone.difference_update(key for key, _ in named)
            gone.update(keys.difference(key for key, _ in named))
            for start in range(0, len(named), ROWS):
                some = named[start : start + ROWS]
                yield encoded({"key": key, "ids": ids} for key, ids in some)
            if deadline.over:
                return
            self._work.wait(GATHER_SECS)
            self._work.clear()

    def _take(self) -> set[str]:
        with self._lock:
            keys, self._changed = self._changed, set()
            self._writing += len(keys)
            return keys

    def _run(self, pipeline: Callable[[str], str], given: Iterable[bytes]) -> None:
        self._engine.run(pipeline(self._table), given)
        self._counters.add("table_writes")

    def _failed(self, error: EngineError) -> None:
        if not self._lost:
            logger.warning("the lookup table cannot be written: %s; trying again", error)
            self._lost = True
        # What of it has been written, nobody knows.
        self.write_anew()
        self._stop_asked.wait(self._backoff.next())


def make_empty(engine: Engine, table: str) -> None:
    """Have a lookup table of that name in the node, with nothing in it. Raises `EngineError`."""
    try:
        engine.run(pipelines.reset(table))
    except EngineClosed:
        raise
    except EngineError:
        # There is none yet; if that is not why, this says what is.
        engine.run(pipelines.create(table))
