"""One MISP with all that belongs to it: sources, index, healing, snapshots, sightings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from threatbus.data import SnapshotRequest
from threatbus.errors import Overflow
from threatbus.hookspecs import SubscribeCallback
from threatbus.intake import Intake
from threatbus.messages import SIGHTING, Message
from threatbus.queues import MessageQueue
from threatbus.services import Services
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp import reporter, snapshots
from threatbus_misp.answers import Answers
from threatbus_misp.config import InstanceConfig
from threatbus_misp.healing import Healer
from threatbus_misp.index import Index, IndexUnusable
from threatbus_misp.mapping import model
from threatbus_misp.messages import Messages
from threatbus_misp.missing import Missing
from threatbus_misp.outbox import Outbox
from threatbus_misp.receiver_kafka import KafkaSource
from threatbus_misp.receiver_zmq import ZmqSource
from threatbus_misp.reconciler import Reconciler
from threatbus_misp.reporter import Reporter
from threatbus_misp.rest import MispApi

logger = logging.getLogger("threatbus.misp")

JOIN_SECS = 3.0
#: Seconds at most between two attempts to write an index that cannot be written.
RETRY_CAP_SECS = 30.0
#: Seconds after which whoever waits for the bus notices that it is to stop.
NOTICE_SECS = 0.1
#: Seconds that the bus may take to pass on all that is in flight, while no source puts more.
PASS_ON_SECS = 30.0


class Instance:
    """Wires the parts of one MISP, starts and stops them.

    ::

        ZmqSource, KafkaSource ──> Messages ─┐
                                             ├─> Reconciler ──> Index ──> Handover ──> inq
        Healer ──> (MispApi) ──> Answers ────┘
        outq ──> Reporter ──> Outbox ──> (MispApi)
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
        self._services = services
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
        self.messages = Messages(config, self.reconciler)
        handover, answers = self.reconciler.handover, Answers(config, self.reconciler)
        self.healer = Healer(name, config, self.api, handover, answers, self.missing, now)
        self._sources: list[ZmqSource | KafkaSource] = []
        if config.zmq is not None:
            self._sources.append(ZmqSource(name, config.zmq, self._take, self.missing))
        if config.kafka is not None:
            self._sources.append(KafkaSource(name, config.kafka, self._take, self.missing))
        self._reporter: Reporter | None = None
        self._tell_how_it_is()

    def start(self) -> None:
        """Start the workers."""
        self.healer.start()
        for source in self._sources:
            source.start()
        if self.outbox is not None:
            self.outbox.start()

    def report(self, subscribe: SubscribeCallback) -> None:
        """Have sightings on the bus reported to this MISP, if that is wanted."""
        if self.outbox is None:
            return

        def subscribed() -> MessageQueue:
            outq = self._services.outq(f"sightings to {self.name}")
            subscribe(SIGHTING, outq)
            return outq

        by_value, knows = self.config.sightings.by_value, self.reconciler.knows
        self._reporter = Reporter(self.name, subscribed, self.outbox, knows, by_value)
        self._services.report.worker(self._reporter)
        self._reporter.start()

    @property
    def outq(self) -> MessageQueue | None:
        """What is subscribed to sightings."""
        return self._reporter.outq if self._reporter is not None else None

    def answer(self, request: SnapshotRequest) -> None:
        """Answer a request for history."""
        if self.api is not None:
            snapshots.answer(
                self.name,
                self.config,
                self.api,
                self.reconciler,
                request,
                self.put,
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
        outq = self.outq
        if outq is None:
            return 0
        outq.join(max(0.0, deadline - time.monotonic()))
        return outq.unfinished

    def stop(self) -> None:
        """Stop what is left and close the files."""
        self.stop_intake()
        workers = [each for each in (self._reporter, self.outbox) if each is not None]
        for worker in workers:
            worker.stop()
        for worker in workers:
            if worker.is_alive():
                worker.join(JOIN_SECS)
        try:
            self.reconciler.handover.settle()
        except IndexUnusable as error:
            logger.error("%s: %s; the next start may repeat messages", self.name, error)  # noqa: TRY400
        if self.outbox is not None:
            self.outbox.close()
        self.index.close()
        if self.api is not None:
            self.api.close()

    def _tell_how_it_is(self) -> None:
        """Have the connections and workers of this MISP be seen from outside."""
        report = self._services.report
        if self.api is not None:
            self.api.connections.state = report.connection(f"{self.name} REST")
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

    def _take(self, documents: Sequence[bytes]) -> None:
        """Apply MISP's messages; waits while the index cannot be written, so that none is lost.

        Raises `IndexUnusable` if it is to stop meanwhile.
        """
        backoff = Backoff(0.5, RETRY_CAP_SECS)
        while True:
            try:
                self.messages.take(documents)
                return
            except IndexUnusable as error:
                # ZeroMQ drops what comes while nobody reads.
                self.missing.gap("the index could not be used")
                delay = backoff.next()
                logger.error("%s: %s; tried again in %.0f s", self.name, error, delay)  # noqa: TRY400
                if self._stopping.wait(delay):
                    raise

    def _reject(self, reason: str, data: bytes) -> None:
        self._services.rejects.add(self.name, reason, data)

    def _is_ours(self, sighting: model.Sighting) -> bool:
        return self.outbox is not None and reporter.is_ours(self.outbox, sighting)
