"""Hooks of the RabbitMQ backbone."""

from __future__ import annotations

import logging as std_logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

import threatbus
from threatbus.doctor import Check
from threatbus.errors import ThreatBusError
from threatbus.messages import INTERNAL_PREFIX
from threatbus.observe.report import PluginReport
from threatbus.queues import MessageQueue
from threatbus.routing import Outlet, TopicTable
from threatbus.services import Services
from threatbus_rabbitmq.config import RabbitMQConfig

if TYPE_CHECKING:
    from threatbus_rabbitmq.consumer import Consumer
    from threatbus_rabbitmq.publisher import Publisher

#: Seconds that the start waits for the first attempt to connect.
START_SECS = 5.0
#: Seconds that the consumer has to let go of its queue, at the end of the drain time.
FINISH_SECS = 0.5
#: Seconds that a worker has to end, beyond what it gives the broker.
JOIN_SECS = 2.0


class RabbitMQBackbone:
    """Passes messages on through a RabbitMQ that several buses share.

    ::

        inq ──> Publisher ──> exchange ──> this node's queue ──> Consumer ──> TopicTable ──> outqs
                                      └──> queues of other nodes

    pika is imported when the backbone runs, not when it is looked at.
    """

    def __init__(self) -> None:
        self._table = TopicTable()
        self._publisher: Publisher | None = None
        self._consumer: Consumer | None = None
        # Whether anybody but the bus itself has subscribed.
        self._has_listener = False

    @threatbus.backbone
    def config_schema(self) -> type[msgspec.Struct]:
        """Give the schema of the section."""
        return RabbitMQConfig

    @threatbus.backbone
    def run(
        self,
        config: Any,  # noqa: ARG002
        logging: Any,  # noqa: ARG002
        inq: MessageQueue,
        services: Services,
    ) -> None:
        """Start publishing and consuming.

        Returns when this node's queue is bound, or the broker is not there: then the workers wait
        for it. Raises `BrokerRefusal` if it is there and does not let this node take part.
        """
        from threatbus_rabbitmq.consumer import Consumer  # noqa: PLC0415
        from threatbus_rabbitmq.mapping import BodyReader, NodeIds  # noqa: PLC0415
        from threatbus_rabbitmq.publisher import Publisher  # noqa: PLC0415

        # It tells of each failed attempt with several tracebacks; what matters the workers say.
        std_logging.getLogger("pika").setLevel(std_logging.CRITICAL)
        section = services.section
        settings = section if isinstance(section, RabbitMQConfig) else RabbitMQConfig()
        ids = NodeIds()
        self._publisher = Publisher(settings, inq, ids, services.rejects)
        self._consumer = Consumer(
            settings,
            BodyReader(services.border),
            ids,
            self._table.deliver,
            services.outq_gate,
            services.rejects,
            self._publisher.permit,
        )
        self._publisher.when_unrouted(self._consumer.bind_again)
        inq.when_ready(self._publisher.note_ready)
        report_to(services.report, self._publisher, self._consumer)
        if self._has_listener:
            self._consumer.release()
        self._consumer.start()
        self._publisher.start()
        deadline = time.monotonic() + START_SECS
        try:
            for worker in (self._consumer, self._publisher):
                worker.wait_until_tried(deadline - time.monotonic())
        except ThreatBusError:
            self.stop()
            raise

    @threatbus.backbone
    def subscribe(self, topic: str, q: Outlet) -> None:
        """Let `q` receive what matches `topic`."""
        self._table.subscribe(topic, q)
        # The bus itself is there from the start, and nobody who listens.
        if not topic.startswith(INTERNAL_PREFIX):
            self._has_listener = True
            if self._consumer is not None:
                self._consumer.release()

    @threatbus.backbone
    def unsubscribe(self, topic: str, q: Outlet) -> None:
        """End a subscription."""
        self._table.unsubscribe(topic, q)

    @threatbus.backbone
    def drain(self, deadline: float) -> int:
        """Have the broker confirm all of inq, and deliver what of it comes back to this node.

        Then nothing more is taken: what other nodes send waits in the queue for the next start.
        """
        if self._publisher is None or self._consumer is None:
            return 0
        left = self._publisher.drain(deadline)
        self._consumer.wait_for(self._publisher.last_number, deadline)
        self._consumer.finish(max(deadline, time.monotonic() + FINISH_SECS))
        return left

    @threatbus.backbone
    def stop(self) -> None:
        """Close both connections."""
        workers = [worker for worker in (self._publisher, self._consumer) if worker is not None]
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(JOIN_SECS)
        self._publisher = self._consumer = None

    @threatbus.backbone
    def diagnose(self, section: msgspec.Struct | None, bus_pid: int | None) -> Iterable[Check]:
        """Give the checks of `threatbus doctor`."""
        from threatbus_rabbitmq.doctor import checks  # noqa: PLC0415 (the bus needs it not)

        settings = section if isinstance(section, RabbitMQConfig) else RabbitMQConfig()
        return checks(settings, bus_pid)


def report_to(report: PluginReport, publisher: Publisher, consumer: Consumer) -> None:
    """Offer what is to be seen of both connections from outside."""
    publisher.state = report.connection("publisher")
    consumer.state = report.connection("consumer")
    for worker in (publisher, consumer):
        report.worker(worker)
    report.counter(
        "received",
        "Messages that came from RabbitMQ, this bus's own included.",
        lambda: consumer.received,
    )
    report.counter(
        "duplicates",
        "Messages that came from RabbitMQ once more and were dropped.",
        lambda: consumer.duplicates,
    )
    report.counter(
        "confirmed", "Messages that RabbitMQ has confirmed.", lambda: publisher.confirmed
    )
    report.counter(
        "published_again",
        "Messages published once more, since they were not confirmed.",
        lambda: publisher.repeated,
    )
    report.gauge(
        "unconfirmed",
        "Messages that RabbitMQ has not confirmed yet.",
        lambda: publisher.unconfirmed,
    )
