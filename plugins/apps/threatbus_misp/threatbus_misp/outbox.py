"""Sightings on their way to MISP: on disk until MISP has them.

A sighting is put into a queue on disk, whether or not MISP is there, and sent by a worker of its
own. MISP recognises no repetition, and the UUID of a sighting is MISP's to give; so a sighting is
marked before it is sent, and where the outcome is not known (the connection broke, the bus was
killed), MISP is asked whether it has arrived before it is sent again. It arrives once.

What MISP refuses is dropped, with its reason in the log; but a key that MISP does not accept is a
matter for the operator, and the sightings wait until it is settled. When more wait than there is
room for, the oldest are dropped. All is counted: `Outbox.counts`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from threatbus.logger import RateLimited
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.outbox_store import OutboxStore, OutgoingSighting, Waiting
from threatbus_misp.rest_connections import Running
from threatbus_misp.rest_errors import MispDenied, MispInterrupted, MispRefusal, MispUnreachable

logger = logging.getLogger("threatbus.misp.outbox")

#: Sightings that may wait, and the bytes of their texts.
MAX_WAITING: Final = 100_000
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
#: Sightings added for one with a count; MISP has no count, and a sensor may report millions.
MAX_COUNT: Final = 100
#: Seconds between two attempts while MISP is away: at first, and at most.
FIRST_RETRY_SECS: Final = 0.5
RETRY_CAP_SECS: Final = 30.0
#: Seconds after an attempt of unknown outcome before MISP is searched: it may still be at work.
SETTLE_SECS: Final = 10.0
#: How often MISP may fail with one sighting while it takes others, before that one is dropped.
MAX_STRIKES: Final = 5

#: Sightings whose failures are counted.
_MAX_STRUCK: Final = 1000
#: How MISP says that it has no such attribute.
_NO_ATTRIBUTE: Final = "No valid attributes found"


@dataclass(frozen=True)
class OutboxCounts:
    """What became of the sightings since the bus was started."""

    waiting: int = 0
    """On disk at the moment."""

    sent: int = 0
    refused: int = 0
    """Dropped because MISP does not want them."""

    dropped: int = 0
    """Dropped because there was no room, on disk or in the queue."""


class SightingsApi(Protocol):
    """What the worker needs of `rest.MispApi`."""

    @property
    def name(self) -> str:
        """The address of MISP."""

    def add_sighting(
        self,
        *,
        attribute: str | None = None,
        value: str | None = None,
        kind: str = "0",
        source: str = "",
        seen: int | None = None,
        running: Running | None = None,
    ) -> dict[str, Any]:
        """Add a sighting."""

    def find_sightings(
        self,
        *,
        attribute: str | None = None,
        value: str | None = None,
        kind: str = "0",
        source: str = "",
        seen: int,
        running: Running | None = None,
    ) -> list[dict[str, Any]]:
        """Find the sightings that `add_sighting` has made."""


class Outbox(StoppableWorker):
    """Takes sightings from any thread and sends them in its own.

    Everything that waits is in one file, ``directory/name``; one bus at a time may use it.
    The worker is started by the plugin; it blocks until something is put, until the time for
    the next attempt has come, or in a call of `api`, and `stop` ends each of these waits. What
    has not been sent by then is sent after the next start.
    """

    def __init__(
        self,
        directory: Path,
        api: SightingsApi,
        *,
        name: str = "sightings.sqlite",
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_WAITING_BYTES,
        max_count: int = MAX_COUNT,
        settle: float = SETTLE_SECS,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"sightings to {api.name}")
        self._api = api
        self._max_count = max_count
        self._settle = settle
        self._clock = clock
        self._store = OutboxStore(directory / name, max_waiting, max_bytes)
        # Set when there is something new to send, or to stop.
        self._wake = threading.Event()
        self._log = RateLimited(logger)
        # Guards the three counts.
        self._lock = threading.Lock()
        self._sent = 0
        self._refused = 0
        self._dropped = 0
        # The rest belongs to the worker. The delay between attempts while MISP is away.
        self._retry = backoff or Backoff(FIRST_RETRY_SECS, RETRY_CAP_SECS)
        # When an order may be tried again (by the clock), where others need not wait for it.
        self._held: dict[str, float] = {}
        # Per sighting that MISP fails with: how often, and `_sent` when it last did.
        self._strikes: dict[int, tuple[int, int]] = {}
        # Whether the last attempt failed.
        self._away = False

    @property
    def counts(self) -> OutboxCounts:
        """How many sightings wait, and what became of the others."""
        with self._lock:
            return OutboxCounts(self._store.waiting, self._sent, self._refused, self._dropped)

    def put(self, sighting: OutgoingSighting) -> bool:
        """Keep a sighting until MISP has it. Waits for the disk, never for MISP.

        Gives False, with a log line, when the disk does not take it.
        """
        count = max(1, min(sighting.count, self._max_count))
        if sighting.count > count:
            self._log.log(
                "count",
                logging.WARNING,
                "a sighting of %s has count %d, of which MISP gets %d",
                sighting.attribute or sighting.value,
                sighting.count,
                count,
            )
        try:
            gone = self._store.put(sighting, count)
        except sqlite3.Error as error:
            self._count(dropped=1)
            self._log.log("disk", logging.ERROR, "a sighting for MISP is lost: %s", error)
            return False
        if gone:
            self._count(dropped=gone)
            self._log.log(
                "full",
                logging.WARNING,
                "too many sightings wait for MISP at %s: the %d oldest dropped",
                self._api.name,
                gone,
            )
        self._wake.set()
        return True

    def missed(self, count: int) -> None:
        """Count sightings that were let go on their way here."""
        self._count(dropped=count)

    def is_ours(
        self, *, uuid: str, attribute: str, value: str, kind: str, source: str, seen: int
    ) -> bool:
        """Say whether a sighting that MISP announces is one that came from here.

        The announcement may be faster than the answer to our own request, so one that is under way
        and looks the same is ours too.
        """
        targets = [each for each in (attribute, value, *value.split("|")) if each]
        try:
            return self._store.knows(uuid, targets, kind, source, seen)
        except sqlite3.Error as error:
            self._log.log("disk", logging.ERROR, "sightings sent to MISP: %s", error)
            return False

    def stop(self) -> None:
        """Ask the worker to end; what is not sent yet stays on disk."""
        super().stop()
        self._wake.set()

    def close(self) -> None:
        """Close the file; for after the worker's end."""
        self._store.close()

    def run(self) -> None:
        """Send what waits, one after the other. Ends: stop()."""
        # MISP may be at work with what was sent just before a sudden end.
        settled = self._clock() + self._settle
        self._held = dict.fromkeys(self._store.orders_in_doubt(), settled)
        while True:
            self._wake.clear()
            if not self._running():
                break
            now = self._clock()
            self._held = {order: until for order, until in self._held.items() if until > now}
            entry = self._store.next(self._held)
            if entry is None:
                until = min(self._held.values(), default=None)
                self._wake.wait(None if until is None else max(0.0, until - now))
                continue
            try:
                self._send(entry)
            except MispInterrupted:
                break
            except MispRefusal as refusal:
                self._after_refusal(entry, refusal)
            except MispUnreachable as error:
                self._after_failure(entry, error)
            else:
                self._after_success()
        self._log.flush()

    # One attempt.

    def _send(self, entry: Waiting) -> None:
        """Send one sighting; if it may have been sent before, look for it in MISP first."""
        arguments = entry.arguments()
        if entry.doubt and self._is_there(entry, arguments):
            return
        self._store.set_doubt(entry, True)
        try:
            added = self._api.add_sighting(**arguments, running=self._running)
        except MispRefusal:
            self._store.set_doubt(entry, False)
            raise
        except MispUnreachable as error:
            if not error.maybe_done:
                self._store.set_doubt(entry, False)
            raise
        self._store.sent(entry, str(added.get("uuid") or ""))
        self._count(sent=1)

    def _is_there(self, entry: Waiting, arguments: dict[str, Any]) -> bool:
        try:
            found = self._api.find_sightings(**arguments, running=self._running)
        except MispDenied:
            raise
        except MispRefusal as refusal:
            self._log.log(
                "search",
                logging.WARNING,
                "%s; a sighting of %s is sent again and may count twice",
                refusal,
                entry.target,
            )
            return False
        uuid = self._arrived(entry, found)
        if uuid is None:
            return False
        self._store.sent(entry, uuid)
        self._count(sent=1)
        return True

    def _arrived(self, entry: Waiting, found: list[dict[str, Any]]) -> str | None:
        """Give the UUID of the sighting that is in doubt, if `found` holds it.

        `found` may also hold others of the same source and second, which MISP had confirmed.
        """
        per_attribute: dict[object, list[str]] = {}
        for sighting in found:
            uuids = per_attribute.setdefault(sighting.get("attribute_id"), [])
            uuids.append(str(sighting.get("uuid") or ""))
        most = max(per_attribute.values(), key=len, default=[])
        confirmed = self._store.confirmed(entry)
        if len(most) <= len(confirmed):
            return None
        return next((uuid for uuid in most if uuid not in confirmed), "")

    def _after_success(self) -> None:
        self._retry.reset()
        if self._away:
            self._away = False
            logger.info(
                "MISP at %s takes sightings again; %d wait", self._api.name, self._store.waiting
            )

    def _after_refusal(self, entry: Waiting, refusal: MispRefusal) -> None:
        if isinstance(refusal, MispDenied):
            self._wait(refusal)
            return
        unknown = _NO_ATTRIBUTE in refusal.reason
        if unknown and entry.attribute is not None and entry.value is not None:
            self._store.fall_back(entry)
        else:
            self._refuse(entry, refusal.reason)
        self._after_success()

    def _after_failure(self, entry: Waiting, error: MispUnreachable) -> None:
        if error.maybe_done and self._struck_out(entry):
            self._refuse(entry, error.reason)
            return
        self._wait(error)
        if error.maybe_done:
            # It alone may be the reason, so the others go first now, however long the delay was.
            self._held[entry.order] = self._clock() + self._settle

    def _struck_out(self, entry: Waiting) -> bool:
        """Say whether MISP fails with this sighting again and again, while it takes others."""
        strikes, sent = self._strikes.get(entry.id, (0, -1))
        if sent != self._sent:
            strikes += 1
        self._strikes[entry.id] = (strikes, self._sent)
        if len(self._strikes) > _MAX_STRUCK:
            del self._strikes[next(iter(self._strikes))]
        return strikes > MAX_STRIKES

    def _refuse(self, entry: Waiting, reason: str) -> None:
        self._store.drop(entry)
        self._strikes.pop(entry.id, None)
        self._count(refused=1)
        self._log.log(
            "refused",
            logging.WARNING,
            "MISP at %s does not take the sighting of %s: %s",
            self._api.name,
            entry.attribute or entry.value,
            reason,
        )

    def _wait(self, error: MispRefusal | MispUnreachable) -> None:
        """Wait for the next attempt. Ends early: stop()."""
        self._away = True
        delay = self._retry.next()
        self._log.log(
            "away",
            logging.WARNING,
            "%s; %d sightings wait, next attempt in %.1f s",
            error,
            self._store.waiting,
            delay,
        )
        self._stop_asked.wait(delay)

    def _count(self, sent: int = 0, refused: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self._sent += sent
            self._refused += refused
            self._dropped += dropped
