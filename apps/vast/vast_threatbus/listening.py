"""What the bus says, to the registry, and from there to table and queries."""

from __future__ import annotations

import logging

from threatbus.client import App, Indicator, Message, read
from threatbus.errors import Rejected
from threatbus.logger import RateLimited
from threatbus.workers import StoppableWorker
from vast_threatbus.counters import Counters
from vast_threatbus.registry import Change, Registry
from vast_threatbus.reporting import LOOK_SECS
from vast_threatbus.retro import Backlog
from vast_threatbus.table import LookupTable

logger = logging.getLogger("threatbus.vast.listening")


class Listening(StoppableWorker):
    """Takes in indicators, as many at once as have come.

    Blocks in `App.receive` for `LOOK_SECS`. Ends when `stop` was called.
    """

    def __init__(
        self,
        app: App,
        registry: Registry,
        counters: Counters,
        table: LookupTable | None,
        backlog: Backlog | None,
    ) -> None:
        super().__init__(name="listening")
        self._app = app
        self._registry = registry
        self._counters = counters
        # Who has to know; None: that kind of matching is off.
        self._table = table
        self._backlog = backlog
        self._log = RateLimited(logger)

    def run(self) -> None:
        """Listen until asked to stop."""
        while self._running():
            if messages := self._app.receive(timeout=LOOK_SECS):
                self._take_in(messages)

    def _take_in(self, messages: list[Message]) -> None:
        keys: set[str] = set()
        new: dict[str, None] = {}
        for message in messages:
            indicator = self._read(message)
            if indicator is None:
                continue
            change, changed = self._registry.learn(indicator)
            keys |= changed
            if change is Change.NEW:
                new[indicator.id] = None
            elif change is Change.LEFT_OUT:
                self._leave_out(indicator)
        if self._table is not None:
            self._table.changed(keys)
        if self._backlog is not None and new:
            self._backlog.add(list(new))

    def _read(self, message: Message) -> Indicator | None:
        try:
            found = read(message)
        except Rejected as error:
            self._counters.add("indicators_left_out")
            self._log.log("rejected", logging.WARNING, "a message is left out: %s", error)
            return None
        return found if isinstance(found, Indicator) else None

    def _leave_out(self, indicator: Indicator) -> None:
        self._counters.add("indicators_left_out")
        self._log.log(
            "left out",
            logging.INFO,
            "%s is not looked for: its pattern is none of a single address, domain, URL or hash, "
            "or there are more than max_indicators",
            indicator.id,
        )
