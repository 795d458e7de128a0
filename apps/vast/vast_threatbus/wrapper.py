"""All parts, wired: what runs between the bus and one node."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from threatbus.client import App
from threatbus.client.connection import Deadline
from threatbus.messages import INDICATOR
from threatbus.workers import StoppableWorker
from vast_threatbus.commands import Transformation, make_sink
from vast_threatbus.config import VastConfig
from vast_threatbus.counters import Counters
from vast_threatbus.engine import Engine
from vast_threatbus.listening import Listening
from vast_threatbus.live import LiveMatching
from vast_threatbus.metrics import Metrics
from vast_threatbus.registry import Registry
from vast_threatbus.reporting import Hits, Memory, Reporting
from vast_threatbus.retro import MAX_QUERIES, Backlog, RetroMatching
from vast_threatbus.table import LookupTable

logger = logging.getLogger("threatbus.vast")

NAME = "vast-threatbus"
#: Seconds that stopping may take to report what was found, and to hand it to the bus.
DRAIN_SECS = 5.0
#: Seconds that all threads together may take to end.
JOIN_SECS = 5.0


class Wrapper:
    """Connects one node to the bus, from its making until `stop`; neither of them need be up.

    Threads: ``listening`` reads what the bus says, ``lookup table`` and ``live matching`` are
    for the events to come, ``retro matching N`` for those from before, ``reporting`` and
    ``metrics`` for what leaves. Each says in its class what it blocks on and how it ends.
    """

    def __init__(self, config: VastConfig) -> None:
        self._config = config
        self.counters = Counters()
        self.registry = Registry(config.max_indicators)
        self.engine = Engine(config.program, config.node)
        self.hits = Hits(self.counters)
        self.backlog = Backlog()
        self.table = LookupTable(self.engine, self.registry, self.counters, config.table)
        self.live = LiveMatching(
            self.engine,
            self.table,
            self.hits,
            self.counters,
            config.live_match_source,
            config.table,
        )
        self.retro = [self._retro_matching(number) for number in range(_tasks(config))]
        self.app = App(
            config.bus,
            [INDICATOR],
            snapshot=config.snapshot,
            name=NAME,
            on_change=logger.warning,
        )
        self._sources = self._listening_and_matching()
        self._reporting = self._reporters()
        self._metrics = [] if config.metrics is None else [Metrics(config.metrics, self.values)]
        # Those first that others hand something to.
        for worker in (*self._metrics, *self._reporting, *self._sources):
            worker.start()

    def values(self) -> Mapping[str, int]:
        """Give all counters and gauges by name."""
        return {
            **self.counters.totals(),
            "indicators": len(self.registry),
            "table_waiting": self.table.waiting,
            "live_runs": int(self.live.runs),
            "retro_backlog": len(self.backlog),
            "retro_looking_for": sum(each.looking_for for each in self.retro),
            "hits_waiting": self.hits.waiting,
            "sightings_waiting": self.app.waiting,
            "bus_connected": int(self.app.connected),
            "pipelines_started": self.engine.started,
        }

    def stop(self) -> None:
        """Stop looking, report what was found, and end. Says what could not be reported."""
        # No more hits.
        for worker in self._sources:
            worker.stop()
        self.backlog.close()
        self.engine.close()
        self.hits.drain(DRAIN_SECS)
        for worker in self._reporting:
            worker.stop()
        self.hits.close()
        _join(self._sources)
        _join(self._reporting)
        self.app.close(DRAIN_SECS)
        for each in self._metrics:
            each.stop()
        _join(self._metrics)
        logger.info(
            "stopped: %d sightings reported, %d hits lost, %d indicators not looked for in what is "
            "stored",
            self.counters["sightings"],
            self.counters["hits_lost"],
            len(self.backlog),
        )

    def _listening_and_matching(self) -> list[StoppableWorker]:
        live, retro = self._config.live_match, self._config.retro_match
        listening = Listening(
            self.app,
            self.registry,
            self.counters,
            self.table if live else None,
            self.backlog if retro else None,
            self._config.forget_unnamed_after,
        )
        found: list[StoppableWorker] = [listening]
        if live:
            found += [self.table, self.live]
        if retro:
            found += self.retro
        return found

    def _retro_matching(self, number: int) -> RetroMatching:
        return RetroMatching(
            number,
            self.backlog,
            self.engine,
            self.registry,
            self.hits,
            self.counters,
            source=self._config.retro_match_source,
            table=self._config.table,
            max_events=self._config.retro_match_max_events,
            timeout=self._config.retro_match_timeout,
        )

    def _reporters(self) -> list[Reporting]:
        """Give one, which keeps the order, or several if there are commands to wait for."""
        command, sink = self._config.transform_context, make_sink(self._config.sink)
        transformation = None if command is None else Transformation(command)
        count = 1 if transformation is None and sink is None else _tasks(self._config)
        memory = Memory()
        return [
            Reporting(
                self.hits,
                memory,
                self.registry,
                self.counters,
                self.app,
                transformation,
                sink,
            )
            for _ in range(count)
        ]


def _tasks(config: VastConfig) -> int:
    return min(config.max_background_tasks, MAX_QUERIES)


def _join(workers: Iterable[StoppableWorker]) -> None:
    deadline = Deadline(JOIN_SECS)
    for worker in workers:
        worker.join(deadline.remaining())
        if worker.is_alive():
            logger.warning("%s does not end and is left behind", worker.name)
