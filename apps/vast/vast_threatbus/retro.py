"""Retro matching: each new indicator is looked for in what is stored already."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice
from typing import Final

from threatbus.logger import RateLimited
from threatbus.workers import Backoff, StoppableWorker
from vast_threatbus import pipelines
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine, EngineClosed, EngineError, EngineTimeout, encoded
from vast_threatbus.mapping import Watched
from vast_threatbus.registry import Registry
from vast_threatbus.reporting import Hits
from vast_threatbus.table import MAX_RETRY_SECS, make_empty

logger = logging.getLogger("threatbus.vast.retro")

#: Indicators that one query looks for at most: the stored events are read once for all of them.
BATCH: Final = 10_000
#: Queries that run at once at most, whatever is configured: each reads all that is stored.
MAX_QUERIES: Final = 8


class Backlog:
    """Indicators that wait for their query; each of them once. May be used from any thread."""

    def __init__(self) -> None:
        # Guards the indicators, and is notified when there are some, or of the end.
        self._filled = threading.Condition()
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._closed = False

    def add(self, ids: list[str]) -> None:
        """Append indicators."""
        with self._filled:
            self._waiting.update(dict.fromkeys(ids))
            self._filled.notify()

    def give_back(self, ids: list[str]) -> None:
        """Put indicators to the front again, as their query failed."""
        with self._filled:
            for each in reversed(ids):
                self._waiting[each] = None
                self._waiting.move_to_end(each, last=False)
            self._filled.notify()

    def take(self) -> list[str]:
        """Wait for indicators and give up to `BATCH`; none when it was closed."""
        with self._filled:
            self._filled.wait_for(lambda: self._waiting or self._closed)
            batch = [] if self._closed else list(islice(self._waiting, BATCH))
            for each in batch:
                del self._waiting[each]
            return batch

    def close(self) -> None:
        """Let go whoever waits."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()

    def __len__(self) -> int:
        return len(self._waiting)


class RetroMatching(StoppableWorker):
    """Looks for what waits, a batch with each query; several of them share the backlog.

    It puts the batch into a lookup table of its own, number `number`, and has all stored events
    enriched from that. What is withdrawn meanwhile is not reported.

    Blocks in `Backlog.take`, which `Backlog.close` ends, in pipelines, which the closing of the
    engine ends, in `Hits.put_retro`, which the closing of the hits ends, and between two attempts
    in a wait that `stop` ends. Ends when `stop` was called.
    """

    def __init__(
        self,
        number: int,
        backlog: Backlog,
        engine: Engine,
        registry: Registry,
        hits: Hits,
        counters: Counters,
        *,
        source: str,
        table: str,
        max_events: int,
        timeout: float,
    ) -> None:
        super().__init__(name=f"retro matching {number}")
        self._backlog = backlog
        self._engine = engine
        self._registry = registry
        self._hits = hits
        self._counters = counters
        self._table = f"{table}-retro-{number}"
        self._pipeline = pipelines.retro(source, self._table, max_events)
        self._timeout = timeout
        self._backoff = Backoff(0.1, MAX_RETRY_SECS)
        self._log = RateLimited(logger)
        # Whether it was logged that the node is away.
        self._lost = False
        #: How many indicators the query is about that runs.
        self.looking_for = 0

    def run(self) -> None:
        """Look for what waits until asked to stop."""
        while self._running():
            batch = self._backlog.take()
            self.looking_for = len(batch)
            try:
                if wanted := self._registry.known(batch):
                    self._look_for(wanted)
                    self._lost = False
                    self._backoff.reset()
            except EngineClosed:
                self._backlog.give_back(batch)
                return
            except EngineError as error:
                self._failed(batch, error)
            finally:
                self.looking_for = 0

    def _look_for(self, wanted: Mapping[str, Watched]) -> None:
        self._counters.add("retro_queries")
        self._fill_table(wanted)
        try:
            for line in self._engine.query(self._pipeline, self._timeout):
                self._hits.put_retro(line)
        except EngineTimeout:
            self._counters.add("retro_timeouts")
            self._log.log(
                "timeout",
                logging.WARNING,
                "%d indicators were not looked for in all that is stored, as that takes more than "
                "%g s (retro_match_timeout); what was found until then is reported",
                len(wanted),
                self._timeout,
            )

    def _fill_table(self, wanted: Mapping[str, Watched]) -> None:
        make_empty(self._engine, self._table)
        ids: dict[str, list[str]] = {}
        for indicator_id, each in wanted.items():
            ids.setdefault(each.key, []).append(indicator_id)
        rows = encoded({"key": key, "ids": those} for key, those in ids.items())
        self._engine.run(pipelines.update(self._table), [rows])

    def _failed(self, batch: list[str], error: EngineError) -> None:
        self._backlog.give_back(batch)
        if not self._lost:
            logger.warning("stored events cannot be looked at: %s; trying again", error)
            self._lost = True
        self._stop_asked.wait(self._backoff.next())
