"""Hits to sightings, which go to the bus, or to contexts, which go to the sink."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from threatbus.client import App, MatchType, Message
from threatbus.errors import Overflow, Rejected
from threatbus.gate import Gate
from threatbus.logger import RateLimited
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.workers import StoppableWorker
from vast_threatbus.commands import CommandFailed, Sink, Transformation
from vast_threatbus.counters import Counters
from vast_threatbus.mapping import Hit, Watched, hit, holds, to_sighting
from vast_threatbus.registry import Registry

logger = logging.getLogger("threatbus.vast.reporting")

#: Hits that wait to be reported at most. Behind them the app has room for as many sightings as
#: its own bounds say.
BOUNDS: Final = Bounds(10_000, 64 * 1024 * 1024)
#: Seconds after which a worker looks whether it is to end.
LOOK_SECS: Final = 0.2
#: Hits that a reporter takes at once.
BATCH: Final = 100
#: Live reports that are remembered, so that no query makes them again.
REMEMBERED: Final = 10_000


class Hits:
    """The hits that wait to be reported; a line of a pipeline each. May be used by any thread."""

    def __init__(self, counters: Counters) -> None:
        self._gate = Gate()
        self._queue = MessageQueue("hits", BOUNDS, OverflowPolicy.BLOCK, gate=self._gate)
        self._counters = counters
        self._log = RateLimited(logger)

    def put_live(self, line: bytes) -> None:
        """Hand over a hit that cannot wait: the node drops events, in silence, while it does."""
        self._counters.add("live_hits")
        if self._gate.is_open:
            self._queue.put_many([Message(MatchType.LIVE.value, line)])
        else:
            self._lose(1)

    def put_retro(self, line: bytes) -> None:
        """Hand over a hit, once there is room for it."""
        self._counters.add("retro_hits")
        self._gate.wait()
        self._queue.put_many([Message(MatchType.RETRO.value, line)])

    def take(self) -> list[Message]:
        """Give some, with the type of the match as topic; say `done` for each."""
        return self._queue.get_many(BATCH, LOOK_SECS, finish=False)

    def done(self) -> None:
        """Say that one has been dealt with."""
        self._queue.task_done()

    @property
    def waiting(self) -> int:
        """How many wait or are being reported."""
        return self._queue.unfinished

    def drain(self, timeout: float) -> None:
        """Wait until all are reported."""
        self._queue.join(timeout)

    def close(self) -> None:
        """Take no more, and count what is left as lost."""
        self._gate.retire()
        if left := self.waiting:
            self._lose(left)
        self._queue.close()

    def _lose(self, count: int) -> None:
        self._counters.add("hits_lost", count)
        self._log.log(
            "lost",
            logging.ERROR,
            "hits are lost, as they cannot be reported (%d so far)",
            self._counters["hits_lost"],
        )


class Memory:
    """Remembers what was reported live lately. May be used from any thread."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        # Guards the reports: indicator and digest of the event, the newest one last.
        self._lock = threading.Lock()
        self._reports: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def is_second(self, indicator_id: str, event: str, match_type: MatchType) -> bool:
        """Say whether a stored event was reported when it was imported; remember a live one.

        An event that comes while its indicator waits for its query is found by both. The other
        way round nothing can be said: what is imported may be equal to what is stored.
        """
        report = (indicator_id, hashlib.blake2b(event.encode(), digest_size=16).digest())
        with self._lock:
            if match_type is MatchType.RETRO:
                return report in self._reports
            self._reports[report] = None
            self._reports.move_to_end(report)
            if len(self._reports) > self._size:
                self._reports.popitem(last=False)
        return False


class Reporting(StoppableWorker):
    """Reports hits; there may be several of them, which then share hits and memory.

    Blocks in `Hits.take` for `LOOK_SECS`, in a command for as long as that may take, and while
    the app has no room, in waits of `LOOK_SECS`. Ends when `stop` was called.
    """

    def __init__(
        self,
        hits: Hits,
        memory: Memory,
        registry: Registry,
        counters: Counters,
        app: App,
        transformation: Transformation | None = None,
        sink: Sink | None = None,
    ) -> None:
        super().__init__(name="reporting")
        self._hits = hits
        self._memory = memory
        self._registry = registry
        self._counters = counters
        self._app = app
        self._transformation = transformation
        self._sink = sink
        self._log = RateLimited(logger)

    def run(self) -> None:
        """Report until asked to stop."""
        while self._running():
            for message in self._hits.take():
                try:
                    self._report(message)
                finally:
                    self._hits.done()

    def _report(self, message: Message) -> None:
        match_type = MatchType(message.topic)
        try:
            found = hit(message.data)
        except Rejected as error:
            self._counters.add("hits_unreadable")
            self._log.log("unreadable", logging.ERROR, "a hit is left out: %s", error)
            return
        for indicator_id, wanted in self._matching(found):
            if not self._memory.is_second(indicator_id, found.event, match_type):
                self._deliver(indicator_id, wanted, match_type, found)

    def _matching(self, found: Hit) -> Iterator[tuple[str, Watched]]:
        # Asked of the registry, not of the table: what was withdrawn is reported no longer, even
        # if the table does not know it yet.
        for indicator_id, wanted in self._registry.current(found.key):
            asked = found.ids is None or indicator_id in found.ids
            if asked and holds(found.event, wanted):
                yield indicator_id, wanted

    def _deliver(
        self, indicator_id: str, wanted: Watched, match_type: MatchType, found: Hit
    ) -> None:
        context = self._context(wanted, match_type, found.event.encode())
        if self._sink is not None:
            self._to_sink(self._sink, context)
            return
        seen = to_sighting(indicator_id, wanted, match_type, found.event, context)
        try:
            self._publish(seen)
        except Rejected as error:
            # Larger than the bus takes: that it was seen is known at least.
            self._log.log("large", logging.WARNING, "a context is left out: %s", error)
            self._publish(to_sighting(indicator_id, wanted, match_type, found.event, None))

    def _context(self, wanted: Watched, match_type: MatchType, event: bytes) -> bytes | None:
        if self._transformation is None:
            return event
        try:
            return self._transformation.apply(event, wanted.value, match_type)
        except CommandFailed as error:
            # What the command was to hide does not leave without it.
            self._counters.add("transformations_failed")
            self._log.log("command", logging.ERROR, "a context is left out: %s", error)
            return None

    def _to_sink(self, sink: Sink, context: bytes | None) -> None:
        if context is None:
            return
        try:
            sink.write(context)
            self._counters.add("sightings")
        except CommandFailed as error:
            self._counters.add("sink_failed")
            self._log.log("sink", logging.ERROR, "a context is lost: %s", error)

    def _publish(self, sighting: bytes) -> None:
        while True:
            try:
                self._app.publish_sighting(sighting, timeout=LOOK_SECS)
            except Overflow:
                if not self._running():
                    self._counters.add("hits_lost")
                    return
            else:
                self._counters.add("sightings")
                return
