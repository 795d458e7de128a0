"""What the bus says, and what time does, to the registry, and from there to table and queries."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Final

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

_WHY_LEFT_OUT: Final = {
    Change.LEFT_OUT: (
        logging.INFO,
        "its pattern is none of a single address, domain, URL or hash",
    ),
    Change.TOO_MANY: (logging.WARNING, "there are max_indicators of them already"),
}


class Listening(StoppableWorker):
    """Takes in indicators, as many at once as have come, and lets go of those that have expired.

    Those that were known before the bus was away, and of which it says nothing when it is back,
    may have been withdrawn meanwhile; nobody can say. They stay for `unnamed` days; 0: for ever.

    Blocks in `App.receive` for `LOOK_SECS`. Ends when `stop` was called.
    """

    def __init__(
        self,
        app: App,
        registry: Registry,
        counters: Counters,
        table: LookupTable | None,
        backlog: Backlog | None,
        unnamed: float,
    ) -> None:
        super().__init__(name="listening")
        self._app = app
        self._registry = registry
        self._counters = counters
        # Who has to know; None: that kind of matching is off.
        self._table = table
        self._backlog = backlog
        self._unnamed = timedelta(days=unnamed)
        # How many subscriptions the app had made when it was last looked.
        self._subscriptions = 0
        self._log = RateLimited(logger)

    def run(self) -> None:
        """Listen until asked to stop."""
        while self._running():
            messages = self._app.receive(timeout=LOOK_SECS)
            # Before anything that comes with a new subscription is taken in.
            self._doubt()
            keys = self._let_go() | self._take_in(messages)
            if self._table is not None and keys:
                self._table.changed(keys)

    def _doubt(self) -> None:
        before, self._subscriptions = self._subscriptions, self._app.subscriptions
        if self._unnamed and before and before != self._subscriptions:
            self._registry.doubt(datetime.now(UTC) + self._unnamed)

    def _let_go(self) -> set[str]:
        """Forget what has expired; gives the keys whose indicators are others now."""
        now = datetime.now(UTC)
        forgotten, keys = self._registry.forget_doubted(now)
        if forgotten:
            self._counters.add("indicators_forgotten", forgotten)
            logger.warning(
                "%d indicators are looked for no longer: the bus was away and has not named them "
                "since (forget_unnamed_after)",
                forgotten,
            )
        return keys | self._registry.expire(now)

    def _take_in(self, messages: list[Message]) -> set[str]:
        """Learn what has come; gives the keys whose indicators are others now."""
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
            elif change in (Change.LEFT_OUT, Change.TOO_MANY):
                self._leave_out(indicator.id, change)
        if self._backlog is not None and new:
            self._backlog.add(list(new))
        return keys

    def _read(self, message: Message) -> Indicator | None:
        try:
            found = read(message)
        except Rejected as error:
            self._counters.add("indicators_left_out")
            self._log.log("rejected", logging.WARNING, "a message is left out: %s", error)
            return None
        return found if isinstance(found, Indicator) else None

    def _leave_out(self, indicator_id: str, change: Change) -> None:
        self._counters.add("indicators_left_out")
        level, why = _WHY_LEFT_OUT[change]
        self._log.log(change.value, level, "%s is not looked for: %s", indicator_id, why)
