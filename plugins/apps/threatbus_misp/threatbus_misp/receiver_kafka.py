"""What MISP publishes to Kafka: the same documents as over ZeroMQ, without a topic in front.

Source: docs/protocol-misp.md. Offsets are committed when the bus has taken what they stand for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from threatbus.errors import ThreatBusError
from threatbus.observe.report import Connection
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.config import KafkaConfig

logger = logging.getLogger("threatbus.misp.kafka")

#: Messages that are handed over together.
BATCH: Final = 1000
#: Seconds that Kafka may take to say which topics it has.
METADATA_SECS: Final = 10.0
RECONNECT_CAP_SECS: Final = 30.0


class KafkaUnusable(ThreatBusError):
    """Kafka cannot be read: it is away, a topic is missing, a setting is wrong."""


class KafkaSource(StoppableWorker):
    """Receives from one Kafka.

    Started by the instance. It blocks in librdkafka for at most ``poll_interval`` seconds, which is
    how long `stop` may take, and in `take` while the bus cannot take more. What ends a connection
    is said, and tried again after a while.
    """

    def __init__(
        self, name: str, config: KafkaConfig, take: Callable[[Sequence[bytes]], None]
    ) -> None:
        super().__init__(name=f"{name} kafka")
        self._config = config
        self._take = take
        self._backoff = Backoff(0.5, RECONNECT_CAP_SECS)
        #: Where it is said how the connection is; the instance sets its own before the start.
        self.state = Connection("kafka")

    def run(self) -> None:
        """Receive until stopped."""
        self.state.down("connecting")
        while self._running():
            try:
                self._receive()
            except KafkaUnusable as error:
                delay = self._backoff.next()
                self.state.down(f"trying again: {error}")
                logger.warning("%s: %s; tried again in %.0f s", self.name, error, delay)
                self._stop_asked.wait(delay)

    def _receive(self) -> None:
        # librdkafka takes 60 ms to load: only who uses it pays.
        import confluent_kafka  # noqa: PLC0415

        settings = {
            "group.id": "threatbus",
            "auto.offset.reset": "earliest",
            **self._config.config,
            "enable.auto.commit": False,
        }
        try:
            consumer = confluent_kafka.Consumer(settings, logger=logger)
        except confluent_kafka.KafkaException as error:
            raise KafkaUnusable(f"its settings do not work: {_reason(error)}") from None
        try:
            self._check_topics(consumer)
            consumer.subscribe(self._config.topics)
            topics = ", ".join(self._config.topics)
            logger.info("%s reads %s", self.name, topics)
            self.state.up(f"reading {topics}")
            self._backoff.reset()
            while self._running():
                self._hand_over(consumer)
        except confluent_kafka.KafkaException as error:
            raise KafkaUnusable(_reason(error)) from None
        finally:
            consumer.close()

    def _check_topics(self, consumer: Any) -> None:
        """Raise `KafkaUnusable` for topics that are not there: librdkafka would wait for ever."""
        known = consumer.list_topics(timeout=METADATA_SECS).topics
        missing = [topic for topic in self._config.topics if topic not in known]
        if missing:
            there = ", ".join(sorted(name for name in known if not name.startswith("__"))) or "none"
            raise KafkaUnusable(
                f"plugins.apps.misp.kafka.topics: {', '.join(missing)} does not exist, but topics "
                f"that MISP writes are needed; Kafka has: {there}"
            )

    def _hand_over(self, consumer: Any) -> None:
        messages = consumer.consume(BATCH, self._config.poll_interval)
        documents = []
        for message in messages:
            if message.error() is None:
                documents.append(message.value() or b"")
            elif not message.error().retriable():
                raise KafkaUnusable(message.error().str())
        if documents:
            self._take(documents)
            # Those that were taken are on disk, in the index; a repeated one changes nothing.
            consumer.commit(asynchronous=True)


def _reason(error: Exception) -> str:
    """Give librdkafka's own words."""
    inner = error.args[0] if error.args else error
    return inner.str() if hasattr(inner, "str") else str(inner)
