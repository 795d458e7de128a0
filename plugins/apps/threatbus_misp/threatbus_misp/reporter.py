"""Sightings on the bus to MISP: which of them are reported, and which MISP has from here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from threatbus.errors import Rejected
from threatbus.logger import RateLimited
from threatbus.messages import SIGHTING, Message
from threatbus.queues import MessageQueue
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.index import IndexUnusable
from threatbus_misp.mapping import model, sightings
from threatbus_misp.outbox import Outbox
from threatbus_misp.outbox_store import OutgoingSighting

logger = logging.getLogger("threatbus.misp.sightings")

#: Sightings that are taken from the outq at once.
BATCH: Final = 500
#: Seconds at most between two looks at an index that cannot be read.
RETRY_CAP_SECS: Final = 30.0


class Reporter(StoppableWorker):
    """Takes sightings from the bus and puts those that are this MISP's into its outbox.

    `subscribe` gives a new outq, which sightings come in; `knows` says whether an attribute was
    ever published; `by_value` is whether a sighting of any other is reported by its value.

    Started by the instance. Blocks on its outq, which `stop` closes, and between two looks at an
    index that cannot be read, which `stop` ends; the outbox takes what it is given at once. An outq
    that was full, and so was closed, is followed by a new one. Ends after `stop`.
    """

    def __init__(
        self,
        name: str,
        subscribe: Callable[[], MessageQueue],
        outbox: Outbox,
        knows: Callable[[str], bool],
        by_value: bool,
    ) -> None:
        super().__init__(name=f"{name} sightings")
        self._instance = name
        self._subscribe = subscribe
        self._outbox = outbox
        self._knows = knows
        self._by_value = by_value
        self._log = RateLimited(logger)
        # Another one only from the worker itself.
        self.outq = subscribe()

    def run(self) -> None:
        """Take until stopped."""
        while self._running():
            batch = self.outq.get_many(BATCH, timeout=None, finish=False)
            for message in batch:
                self._report_at_last(message)
            self.outq.task_done(len(batch))
            # In this order: stop() closes it, too.
            if self.outq.closed and self._running():
                self._subscribe_anew()

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self.outq.close()

    def _subscribe_anew(self) -> None:
        full, self.outq = self.outq, self._subscribe()
        missed = full.stats().dropped
        self._outbox.missed(missed)
        logger.error(
            "%s: %d sightings are not reported: more came than could be kept in time; it goes on "
            "with those that come now",
            self.name,
            missed,
        )

    def _report_at_last(self, message: Message) -> None:
        """Report a sighting; waits while the index cannot be read."""
        backoff = Backoff(0.5, RETRY_CAP_SECS)
        while True:
            try:
                self._report(message)
                return
            except IndexUnusable as error:
                delay = backoff.next()
                logger.error("%s: %s; tried again in %.0f s", self.name, error, delay)  # noqa: TRY400
                if self._stop_asked.wait(delay):
                    return

    def _report(self, message: Message) -> None:
        if message.topic != SIGHTING:
            return
        try:
            request = sightings.request_of(message.data)
        except Rejected as error:
            self._log.log(
                "sighting", logging.WARNING, "%s: not reported: %s", self._instance, error
            )
            return
        if request is None or request.from_misp:
            return
        known = request.uuid is not None and self._knows(request.uuid)
        by_value = self._by_value and request.value is not None
        if not known and not by_value:
            return
        self._outbox.put(
            OutgoingSighting(
                attribute=request.uuid if known else None,
                seen=request.timestamp or int(time.time()),
                value=request.value if by_value else None,
                kind=str(request.type.value),
                source=request.source,
                count=request.count,
            )
        )


def is_ours(outbox: Outbox, sighting: model.Sighting) -> bool:
    """Say whether a sighting that MISP announces is one that has gone through `outbox`."""
    attribute = sighting.attribute
    return outbox.is_ours(
        uuid=sighting.uuid or "",
        attribute=sightings.attribute_uuid_of(sighting) or "",
        value=attribute.value if attribute is not None else (sighting.value or ""),
        kind=str(sighting.type or 0),
        source=sighting.source or "",
        seen=sighting.date_sighting or 0,
    )
