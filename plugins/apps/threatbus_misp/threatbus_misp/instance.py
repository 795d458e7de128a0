"""One MISP with all that belongs to it: sources, index, healing, snapshots, sightings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from threatbus.data import SnapshotRequest
from threatbus.errors import Overflow, Rejected
from threatbus.intake import Intake
from threatbus.logger import RateLimited
from threatbus.messages import SIGHTING, Message
from threatbus.observe.report import PluginReport
from threatbus.queues import MessageQueue
from threatbus.services import Services
from threatbus.workers import StoppableWorker
from threatbus_misp import snapshots
from threatbus_misp.config import InstanceConfig
from threatbus_misp.healing import Healer
from threatbus_misp.index import Index
from threatbus_misp.mapping import model, sightings
from threatbus_misp.missing import Missing
from threatbus_misp.outbox import Outbox, OutgoingSighting
from threatbus_misp.receiver_kafka import KafkaSource
from threatbus_misp.receiver_zmq import ZmqSource
from threatbus_misp.reconciler import Reconciler
from threatbus_misp.rest import MispApi

logger = logging.getLogger("threatbus.misp")

#: Sightings that are taken from the outq at once.
BATCH = 500
JOIN_SECS = 3.0
#: Seconds after which whoever waits for the bus notices that it is to stop.
NOTICE_SECS = 0.1
#: Seconds that the bus may take to pass on all that is in flight, while no source puts more.
PASS_ON_SECS = 30.0


class SightingsReader(StoppableWorker):
    """Takes sightings from the bus and puts those that are this MISP's into its outbox.

    Started by the instance. Blocks on its outq, which `stop` closes; the outbox takes what it is
    given at once. Ends with its outq.
    """

    def __init__(self, name: str, outq: MessageQueue, take: Callable[[Message], None]) -> None:
        super().__init__(name=f"{name} sightings")
        self.outq = outq
        self._take = take

    def run(self) -> None:
        """Take until the outq is closed."""
        while self._running() and not self.outq.closed:
            batch = self.outq.get_many(BATCH, timeout=None, finish=False)
            for message in batch:
                self._take(message)
            self.outq.task_done(len(batch))

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        self.outq.close()


class Instance:
    """Wires the parts of one MISP, starts and stops them.

    ::

        ZmqSource ───┐                      ┌─> Index
        KafkaSource ─┼─> Reconciler ────────┤
        Healer ──────┘   (MispApi)          └─> inq
        outq ──> SightingsReader ──> Outbox ──> (MispApi)
    """

    def __init__(
        self,
        name: str,
        config: InstanceConfig,
        services: Services,
        inq: Intake,
        directory: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.config = config
        self._inq = inq
        self._rejects = services.rejects
        self._log = RateLimited(logger)
        self._stopping = threading.Event()
        api = config.api
        self.api = (
            MispApi(api.host, api.key, api.ssl, timeout=(5.0, api.timeout)) if api.key else None
        )
        self.index = Index(directory / "index.sqlite")
        self.outbox = (
            Outbox(directory, self.api)
            if self.api is not None and config.sightings.enabled
            else None
        )
        self.missing = Missing(can_ask=self.api is not None)
        self.reconciler = Reconciler(
            name,
            config,
            self.index,
            self,
            self.missing.event,
            self._reject,
            self._is_ours,
            now,
        )
        self.healer = Healer(name, config, self.api, self.reconciler, self.missing, now)
        self._sources: list[ZmqSource | KafkaSource] = []
        if config.zmq is not None:
            self._sources.append(ZmqSource(name, config.zmq, self.reconciler.take, self.missing))
        if config.kafka is not None:
            self._sources.append(KafkaSource(name, config.kafka, self.reconciler.take))
        self._reader: SightingsReader | None = None
        self._report_to(services.report)

    def start(self) -> None:
        """Start the workers."""
        self.healer.start()
        for source in self._sources:
            source.start()
        if self.outbox is not None:
            self.outbox.start()

    def report(self, outq: MessageQueue) -> None:
        """Report sightings that come in `outq` to this MISP."""
        self._reader = SightingsReader(self.name, outq, self._report)
        self._reader.start()

    def answer(self, request: SnapshotRequest) -> None:
        """Answer a request for history."""
        if self.api is not None:
            snapshots.answer(
                self.name,
                self.config,
                self.api,
                self.reconciler,
                request,
                self._inq,
                lambda: not self._stopping.is_set(),
            )

    def stop_intake(self) -> None:
        """Take in nothing more."""
        self._stopping.set()
        workers: Sequence[StoppableWorker] = [*self._sources, self.healer]
        for worker in workers:
            worker.stop()
        for worker in workers:
            if worker.is_alive():
                worker.join(JOIN_SECS)

    def drain(self, deadline: float) -> int:
        """Put what is in the outq into the outbox; give what is left."""
        if self._reader is None:
            return 0
        outq = self._reader.outq
        outq.join(max(0.0, deadline - time.monotonic()))
        return outq.unfinished

    def stop(self) -> None:
        """Stop what is left and close the files."""
        self.stop_intake()
        workers = [each for each in (self._reader, self.outbox) if each is not None]
        for worker in workers:
            worker.stop()
        for worker in workers:
            if worker.is_alive():
                worker.join(JOIN_SECS)
        self.reconciler.settle()
        if self.outbox is not None:
            self.outbox.close()
        self.index.close()
        if self.api is not None:
            self.api.close()

    def _report_to(self, report: PluginReport) -> None:
        """Have the connections and workers of this MISP be seen from outside."""
        if self.api is not None:
            self.api.state = report.connection(f"{self.name} REST")
        for source in self._sources:
            source.state = report.connection(source.name)
        for worker in (*self._sources, self.healer, self.outbox):
            if worker is not None:
                report.worker(worker)

    # What the parts call.

    def put(self, messages: Sequence[Message]) -> None:
        """Hand messages to the bus; waits while it cannot take more, `Overflow` when it stops."""
        while not self._inq.gate.wait(NOTICE_SECS):
            if self._stopping.is_set():
                raise Overflow("the bus is stopping, and is full")
        self._inq.put_many(messages, wait=False)

    def has_passed_on(self, *, wait: bool = False) -> bool:
        """Say whether the bus has passed on all that was put; may wait a while for it.

        While it waits, so do all who put: in a stream that does not end inq is never empty.
        """
        if self._inq.join(0) or not wait:
            return self._inq.join(0)
        gate, deadline = self._inq.gate, time.monotonic() + PASS_ON_SECS
        gate.shut(self)
        try:
            while not (done := self._inq.join(NOTICE_SECS)):
                if self._stopping.is_set() or time.monotonic() >= deadline:
                    break
            return done
        finally:
            if gate.open(self):
                gate.announce()

    def _reject(self, reason: str, data: bytes) -> None:
        self._rejects.add(self.name, reason, data)

    def _is_ours(self, sighting: model.Sighting) -> bool:
        if self.outbox is None:
            return False
        attribute = sighting.attribute
        return self.outbox.is_ours(
            {
                "uuid": sighting.uuid or "",
                "type": str(sighting.type or 0),
                "source": sighting.source or "",
                "date_sighting": sighting.date_sighting or 0,
                "attribute_uuid": sightings.attribute_uuid_of(sighting) or "",
                "Attribute": {
                    "uuid": attribute.uuid if attribute is not None else "",
                    "value": attribute.value if attribute is not None else (sighting.value or ""),
                },
            }
        )

    def _report(self, message: Message) -> None:
        """Put a sighting into the outbox, if it is one of this MISP's attributes."""
        if self.outbox is None or message.topic != SIGHTING:
            return
        try:
            request = sightings.request_of(message.data)
        except Rejected as error:
            self._log.log("sighting", logging.WARNING, "%s: not reported: %s", self.name, error)
            return
        if request is None or request.from_misp:
            return
        known = request.uuid is not None and self.reconciler.knows(request.uuid)
        by_value = self.config.sightings.by_value and request.value is not None
        if not known and not by_value:
            return
        self.outbox.put(
            OutgoingSighting(
                attribute=request.uuid if known else None,
                seen=request.timestamp or int(time.time()),
                value=request.value if by_value else None,
                kind=str(request.type.value),
                source=request.source,
                count=request.count,
            )
        )
