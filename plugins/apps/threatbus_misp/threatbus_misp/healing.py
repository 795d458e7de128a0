"""Asks MISP over REST for what no message has told: gaps, pulled events, tags, deletions.

While messages come, everything is known up to now; the index notes that moment. After a gap (the
bus was down, the connection was lost, MISP was silent) whatever changed since is asked for and
reconciled. As MISP does not tell of everything, all of it is compared from time to time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from threatbus.errors import Rejected
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.answers import Answers
from threatbus_misp.config import InstanceConfig
from threatbus_misp.filters import asked_for
from threatbus_misp.handover import Handover
from threatbus_misp.index import IndexUnusable
from threatbus_misp.mapping import model
from threatbus_misp.missing import Missing
from threatbus_misp.rest import MispApi
from threatbus_misp.rest_errors import MispDenied, MispInterrupted, MispRefusal, MispUnreachable

logger = logging.getLogger("threatbus.misp.healing")

T = TypeVar("T")

#: Seconds before the noted moment from which changes are asked for again: clocks differ, and MISP
#: takes a while from a timestamp to its message. What is known already changes nothing.
OVERLAP_SECS: Final = 300
#: Seconds between two notes that everything is known.
NOTE_SECS: Final = 10.0
RETRY_CAP_SECS: Final = 30.0
#: Times that MISP may fail with one event, before the bus goes on without it.
MAX_STRIKES: Final = 3
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
        handover: Handover,
        answers: Answers,
        missing: Missing,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name=f"{name} healing")
        self._instance = name
        self._config = config
        self._api = api
        self._handover = handover
        self._answers = answers
        self._missing = missing
        self._now = now
        self._backoff = Backoff(0.5, RETRY_CAP_SECS)
        # Whether the events that the last run was still to ask for are known.
        self._remembered = False
        # How often in a row MISP has failed with an event.
        self._strikes: dict[str, int] = {}

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self._missing.wake()

    def run(self) -> None:
        """Ask for what is missing until stopped."""
        while self._running():
            try:
                self._handover.recover()
                self._remember()
                self._missing.wait(self._until_due())
                self._handover.settle()
                self._do_next()
                self._backoff.reset()
            except MispInterrupted:
                return
            except MispUnreachable as error:
                delay = self._backoff.next()
                logger.warning("%s: %s; tried again in %.0f s", self._instance, error, delay)
                self._stop_asked.wait(delay)
            except MispRefusal as error:
                # There is something for the operator to put right.
                self._wait_after(error, RETRY_CAP_SECS)
            except IndexUnusable as error:
                self._missing.gap("the index could not be used")
                self._wait_after(error, self._backoff.next())

    def _remember(self) -> None:
        """Take up what the last run, or the index that was lost, has left to do."""
        self._answers.horizon = self._horizon()
        if not self._remembered:
            for event in self._answers.missing():
                self._missing.event(event)
            self._remembered = True

    def _wait_after(self, error: MispRefusal | IndexUnusable, delay: float) -> None:
        logger.error("%s: %s; tried again in %.0f s", self._instance, error, delay)
        self._stop_asked.wait(delay)

    def _horizon(self) -> int:
        """Give the moment of the first start, less the history that it was to publish.

        What is older comes onto the bus only when it changes. Where the index has been lost, there
        is no telling what was on the bus, so all that there is comes.
        """
        if self._answers.index_renewed:
            return 0
        if (noted := self._answers.note(HORIZON)) is not None:
            return int(noted)
        horizon = int(self._now() - self._backfill_secs)
        self._answers.put_note(HORIZON, str(horizon))
        return horizon

    @property
    def _backfill_secs(self) -> float:
        return self._config.backfill * 86_400

    def _until_due(self) -> float:
        """Give the seconds until something is due by itself."""
        due = NOTE_SECS
        if self._api is not None and self._config.full_comparison:
            due = min(due, self._next_comparison() - self._now())
        return max(0.0, due)

    def _next_comparison(self) -> float:
        compared = float(self._answers.note(COMPARED_AT) or 0.0)
        if compared > self._now():
            # The clock was ahead then, and nobody knows by how much.
            return 0.0
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
        elif api is not None and (named := missing.first_event()) is not None:
            event, number = named
            self._apply_event(api, event)
            self._answers.found(event, lambda: missing.found(event, number))
        elif api is not None and self._is_comparison_due():
            self._compare(api)
        elif missing.listening:
            moment = self._now()
            if api is not None:
                self._ask_whether_there(api, self._answers.new_events())
            self._note_known_until(moment)

    def _is_comparison_due(self) -> bool:
        return bool(self._config.full_comparison) and self._next_comparison() <= self._now()

    def _note_known_until(self, moment: float) -> None:
        if self._missing.up_to_date:
            self._answers.put_note(KNOWN_UNTIL, str(int(moment)))

    def _heal(self, api: MispApi, reason: str) -> None:
        # Whether the key is good is better known now than when it is needed.
        api.connect(self._running)
        noted = self._answers.note(KNOWN_UNTIL)
        if noted is not None:
            since = max(0, int(noted) - OVERLAP_SECS)
        else:
            first_start = int(self._answers.horizon + self._backfill_secs)
            since = self._answers.index_renewed or first_start
            self._publish_history(api)
        progress = _Progress(self._instance, f"changes since {_shown(since)} ({reason})", self._now)
        done = set()
        for pages in (
            api.events(changed_since=since, running=self._running),
            api.events(published_since=since, running=self._running),
        ):
            for found in (each for page in pages for each in page):
                event = str(found.get("uuid") or found.get("id"))
                if event not in done:
                    done.add(event)
                    self._apply_event(api, event)
                    progress.note("events", 1)
        progress.note("deleted events", self._ask_whether_there(api, self._answers.events()))
        for page in self._pages(api.sightings(since, running=self._running)):
            self._answers.apply_sightings(self._read(page, model.read_sighting))
            progress.note("sightings", len(page))
        progress.end()

    def _publish_history(self, api: MispApi) -> None:
        since = self._answers.horizon
        if self._config.backfill or self._answers.index_renewed:
            progress = _Progress(self._instance, f"history since {_shown(since)}", self._now)
            for page in self._pages(
                api.attributes_changed(since, only=asked_for(self._config), running=self._running)
            ):
                self._answers.apply_attributes(self._read(page, model.read_attribute))
                progress.note("attributes", len(page))
            progress.end()
        self._answers.put_note(COMPARED_AT, str(int(self._now())))

    def _pages(self, pages: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        """Give pages; what messages say while one is asked for and applied is newer than it."""
        while True:
            with self._answers.asking():
                page = next(pages, None)
                if page is None:
                    return
                yield page

    def _apply_event(self, api: MispApi, event: str) -> None:
        """Ask for an event and apply it; one that MISP cannot give costs the others nothing."""
        try:
            with self._answers.asking():
                self._apply_found(event, api.event(event, running=self._running))
        except MispDenied:
            raise
        except MispRefusal as error:
            self._leave_out(event, error)
        except MispUnreachable as error:
            if not (error.answered or error.maybe_done) or not self._struck_out(event):
                raise
            # Whether it is MISP that fails, or this event.
            api.existing_events([event], running=self._running)
            self._leave_out(event, error)
        self._strikes.pop(event, None)

    def _apply_found(self, event: str, found: dict[str, Any] | None) -> None:
        if found is None:
            self._answers.apply_absence(event)
            return
        try:
            self._answers.apply_event(model.read_event(found), event)
        except Rejected as error:
            logger.warning("%s: event %s cannot be read: %s", self._instance, event, error.reason)

    def _struck_out(self, event: str) -> bool:
        self._strikes[event] = self._strikes.get(event, 0) + 1
        return self._strikes[event] >= MAX_STRIKES

    def _leave_out(self, event: str, error: MispRefusal | MispUnreachable) -> None:
        logger.error(
            "%s: event %s is left out until it changes again: %s", self._instance, event, error
        )

    def _ask_whether_there(self, api: MispApi, events: Sequence[str]) -> int:
        """Ask which events are there, and give the number of those that are gone."""
        gone = 0
        for start in range(0, len(events), EVENTS_PER_REQUEST):
            asked = events[start : start + EVENTS_PER_REQUEST]
            with self._answers.asking():
                there = set(api.existing_events(asked, running=self._running))
                gone += self._answers.apply_existence(asked, there)
        return gone

    def _compare(self, api: MispApi) -> None:
        """Compare everything that was published with what there is in MISP."""
        began = self._now()
        progress = _Progress(self._instance, "a full comparison", self._now)
        self._answers.begin_comparison()
        for page in self._pages(
            api.attributes_changed(0, only=asked_for(self._config), running=self._running)
        ):
            self._answers.compare(self._read(page, model.read_attribute))
            progress.note("attributes", len(page))
        for event in self._answers.doubtful():
            self._apply_event(api, event)
            progress.note("events in doubt", 1)
        self._answers.put_note(COMPARED_AT, str(int(began)))
        progress.end()

    def _read(self, page: Iterable[dict[str, Any]], read: Callable[[dict[str, Any]], T]) -> list[T]:
        objects = []
        for found in page:
            try:
                objects.append(read(found))
            except Rejected as error:
                logger.warning("%s: %s", self._instance, error.reason)
        return objects


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
