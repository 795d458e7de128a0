"""Live matching: events as they are imported."""

from __future__ import annotations

import logging
import time

from threatbus.logger import RateLimited
from threatbus.workers import HEALTHY_AFTER_SECS, Backoff, StoppableWorker
from vast_threatbus import pipelines
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine, EngineClosed, EngineError
from vast_threatbus.reporting import LOOK_SECS, Hits
from vast_threatbus.table import LookupTable

logger = logging.getLogger("threatbus.vast.live")


class LiveMatching(StoppableWorker):
    """Keeps one pipeline up that prints events in which something of the table is found.

    It begins once the table is kept. When the node leaves, the table is written anew and the
    pipeline is started again; what was imported in between has not been looked at.

    Blocks in the pipeline, which the closing of the engine ends, and in waits of `LOOK_SECS`
    for the table. Ends when `stop` was called.
    """

    def __init__(
        self,
        engine: Engine,
        table: LookupTable,
        hits: Hits,
        counters: Counters,
        source: str,
        table_name: str,
    ) -> None:
        super().__init__(name="live matching")
        self._engine = engine
        self._table = table
        self._hits = hits
        self._counters = counters
        self._pipeline = pipelines.live(source, table_name)
        self._backoff = Backoff()
        self._log = RateLimited(logger)
        #: Whether the pipeline runs.
        self.runs = False

    def run(self) -> None:
        """Match until asked to stop."""
        while self._running():
            if not self._table.kept.wait(LOOK_SECS):
                continue
            try:
                self._match()
            except EngineClosed:
                return
            except EngineError as error:
                self._counters.add("live_restarts")
                self._log.log(
                    "lost",
                    logging.WARNING,
                    "live matching is interrupted: %s; starting again",
                    error,
                )
                self._table.write_anew()
                self._stop_asked.wait(self._backoff.next())

    def _match(self) -> None:
        self.runs = True
        logger.info("live matching runs")
        began = time.monotonic()
        try:
            for line in self._engine.follow(self._pipeline):
                self._hits.put_live(line)
        finally:
            self.runs = False
            # One that ends at once is refused by the node, which will not change its mind soon.
            if time.monotonic() - began >= HEALTHY_AFTER_SECS:
                self._backoff.reset()
