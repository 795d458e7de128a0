"""Asks MISP over REST for what no message has told: gaps, pulled events, tags, deletions.

While messages come, everything is known up to now; the index notes that moment. After a gap (the
bus was down, the connection was lost, MISP was silent) whatever changed since is asked for and
reconciled. As MISP does not tell of everything, all of it is compared from time to time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from threatbus.errors import Rejected
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.config import InstanceConfig
from threatbus_misp.mapping import model
from threatbus_misp.missing import Missing
from threatbus_misp.reconciler import Reconciler
from threatbus_misp.rest import (
    AttributeFilter,
    MispApi,
    MispInterrupted,
    MispRefusal,
    MispUnreachable,
)

logger = logging.getLogger("threatbus.misp.healing")

#: Seconds before the noted moment from which changes are asked for again: clocks differ, and MISP
#: takes a while from a timestamp to its message. What is known already changes nothing.
OVERLAP_SECS: Final = 300
#: Seconds between two notes that everything is known.
NOTE_SECS: Final = 10.0
RETRY_CAP_SECS: Final = 30.0
#: Events whose existence one request asks for.
EVENTS_PER_REQUEST: Final = 200
#: Seconds between two lines on progress.
PROGRESS_SECS: Final = 10.0

KNOWN_UNTIL: Final = "known until"
COMPARED_AT: Final = "compared at"
HORIZON: Final = "horizon"


class Healer(StoppableWorker):
    """Keeps what is known of one MISP complete.

    Started by the instance. It blocks in `Missing` until there is something to ask for or a
    comparison is due, and in requests to MISP, which give up when it is to stop. A MISP that does
    not answer is tried again with growing delays. Whenever it is awake, it notes what the bus has
    passed on.
    """

    def __init__(
        self,
        name: str,
        config: InstanceConfig,
        api: MispApi | None,
        reconciler: Reconciler,
        missing: Missing,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name=f"{name} healing")
        self._instance = name
        self._config = config
        self._api = api
        self._reconciler = reconciler
        self._missing = missing
        self._now = now
        self._backoff = Backoff(0.5, RETRY_CAP_SECS)

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self._missing.wake()

    def run(self) -> None:
        """Ask for what is missing until stopped."""
        self._reconciler.recover()
        self._reconciler.horizon = int(self._reconciler.note(HORIZON) or 0)
        while self._running():
            try:
                self._missing.wait(self._until_due())
                self._reconciler.settle()
                self._do_next()
                self._backoff.reset()
            except MispInterrupted:
                return
            except MispUnreachable as error:
                delay = self._backoff.next()
                logger.warning("%s: %s; tried again in %.0f s", self._instance, error, delay)
                self._stop_asked.wait(delay)
            except MispRefusal as error:
                delay = RETRY_CAP_SECS
                logger.error("%s: %s; tried again in %.0f s", self._instance, error, delay)  # noqa: TRY400
                self._stop_asked.wait(delay)

    def _until_due(self) -> float:
        """Give the seconds until something is due by itself."""
        due = NOTE_SECS
        if self._api is not None and self._config.full_comparison:
            due = min(due, self._next_comparison() - self._now())
        return max(0.0, due)

    def _next_comparison(self) -> float:
        compared = float(self._reconciler.note(COMPARED_AT) or 0.0)
        return compared + self._config.full_comparison

    def _do_next(self) -> None:
        api, missing = self._api, self._missing
        if (gap := missing.first_gap()) is not None:
            reason, number = gap
            began = self._now()
            if api is not None:
                self._heal(api, reason)
            self._note_known_until(began)
            missing.close(number)
        elif api is not None and (event := missing.first_event()) is not None:
            self._apply_event(api, event)
            missing.found(event)
        elif api is not None and self._is_comparison_due():
            self._compare(api)
        elif missing.listening:
            self._note_known_until(self._now())

    def _is_comparison_due(self) -> bool:
        return bool(self._config.full_comparison) and self._next_comparison() <= self._now()

    def _note_known_until(self, moment: float) -> None:
        self._reconciler.put_note(KNOWN_UNTIL, str(int(moment)))

    def _heal(self, api: MispApi, reason: str) -> None:
        # Whether the key is good is better known now than when it is needed.
        api.connect(self._running)
        noted = self._reconciler.note(KNOWN_UNTIL)
        if noted is None:
            self._first_start(api)
            return
        since = max(0, int(noted) - OVERLAP_SECS)
        progress = _Progress(self._instance, f"changes since {_shown(since)} ({reason})", self._now)
        for page in api.events(changed_since=since, running=self._running):
            for found in page:
                self._apply_event(api, str(found.get("uuid") or found.get("id")))
                progress.note("events", 1)
        for page in api.events(published_since=since, running=self._running):
            for found in page:
                self._apply_event(api, str(found.get("uuid") or found.get("id")))
                progress.note("published events", 1)
        self._find_deleted_events(api, progress)
        progress.end()

    def _first_start(self, api: MispApi) -> None:
        now = self._now()
        since = int(now - self._config.backfill * 86_400)
        # What is older comes onto the bus only when it changes.
        self._reconciler.put_note(HORIZON, str(since))
        self._reconciler.horizon = since
        if self._config.backfill:
            progress = _Progress(self._instance, f"history since {_shown(since)}", self._now)
            for page in api.attributes_changed(
                since, deleted=False, only=self._wanted(), running=self._running
            ):
                self._reconciler.apply_attributes(self._read(page))
                progress.note("attributes", len(page))
            progress.end()
        self._reconciler.put_note(COMPARED_AT, str(int(now)))

    def _wanted(self) -> AttributeFilter:
        return AttributeFilter(
            to_ids=True,
            published=True if self._config.published_only else None,
            enforce_warninglist=self._config.warninglists,
        )

    def _apply_event(self, api: MispApi, event: str) -> None:
        found = api.event(event, running=self._running)
        if found is None:
            if uuid := self._reconciler.visible_uuid_of(event):
                self._reconciler.event_gone(uuid)
            return
        try:
            self._reconciler.apply_event(model.read_event(found))
        except Rejected as error:
            logger.warning("%s: event %s cannot be read: %s", self._instance, event, error.reason)

    def _find_deleted_events(self, api: MispApi, progress: _Progress) -> None:
        known = self._reconciler.visible_events()
        for start in range(0, len(known), EVENTS_PER_REQUEST):
            asked = known[start : start + EVENTS_PER_REQUEST]
            there = set(api.existing_events(asked, running=self._running))
            for uuid in asked:
                if uuid not in there:
                    self._reconciler.event_gone(uuid)
                    progress.note("deleted events", 1)

    def _compare(self, api: MispApi) -> None:
        """Compare everything that was published with what there is in MISP."""
        began = self._now()
        progress = _Progress(self._instance, "a full comparison", self._now)
        self._reconciler.begin_comparison()
        for page in api.attributes_changed(
            0, deleted=False, only=self._wanted(), running=self._running
        ):
            self._reconciler.compare(list(self._read(page)))
            progress.note("attributes", len(page))
        for event in self._reconciler.doubtful():
            self._apply_event(api, event)
            progress.note("events in doubt", 1)
        self._reconciler.put_note(COMPARED_AT, str(int(began)))
        progress.end()

    def _read(self, page: Iterable[dict[str, Any]]) -> Iterable[model.Attribute]:
        for found in page:
            try:
                yield model.read_attribute(found)
            except Rejected as error:
                logger.warning("%s: %s", self._instance, error.reason)


class _Progress:
    """Says what is going on, once in a while, and what came of it."""

    def __init__(self, name: str, what: str, now: Callable[[], float]) -> None:
        self._name = name
        self._what = what
        self._now = now
        self._began = self._last = now()
        self._counts: dict[str, int] = {}
        logger.info("%s: asking for %s", name, what)

    def note(self, what: str, count: int) -> None:
        """Count something that was dealt with."""
        self._counts[what] = self._counts.get(what, 0) + count
        if self._now() - self._last >= PROGRESS_SECS:
            self._last = self._now()
            logger.info("%s: %s so far: %s", self._name, self._what, self._shown())

    def end(self) -> None:
        """Say that it is done."""
        took = self._now() - self._began
        logger.info("%s: %s: %s, in %.1f s", self._name, self._what, self._shown(), took)

    def _shown(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self._counts.items()) or "nothing"


def _shown(epoch: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch))
