"""What MISP publishes to Kafka: the same documents as over ZeroMQ, without a topic in front.

Source: docs/protocol-misp.md. Offsets are committed when the bus has taken what they stand for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from threatbus.errors import ThreatBusError
from threatbus.observe.report import Connection
from threatbus.workers import Backoff, StoppableWorker
from threatbus_misp.config import KafkaConfig
from threatbus_misp.missing import Missing

logger = logging.getLogger("threatbus.misp.kafka")

#: Messages that are handed over together.
BATCH: Final = 1000
#: Seconds that Kafka may take to say which topics it has, and after which `stop` is noticed.
METADATA_SECS: Final = 5
NOTICE_SECS: Final = 1
RECONNECT_CAP_SECS: Final = 30.0
POLL_CAP_SECS: Final = 1.0


class KafkaUnusable(ThreatBusError):
    """Kafka cannot be read: it is away, a topic is missing, a setting is wrong."""


class KafkaSource(StoppableWorker):
    """Receives from one Kafka.

    Started by the instance. It blocks in librdkafka for at most ``poll_interval`` seconds, and no
    more than `POLL_CAP_SECS`, which is how long `stop` may take, and in `take` while the bus cannot
    take more. What ends a connection is said, and tried again after a while.

    `missing` hears of a gap once all that had waited in Kafka is read: topics are read side by
    side, so an old message of one may have come after a newer one of another.
    """

    def __init__(
        self,
        name: str,
        config: KafkaConfig,
        take: Callable[[Sequence[bytes]], None],
        missing: Missing,
    ) -> None:
        super().__init__(name=f"{name} kafka")
        self._config = config
        self._take = take
        self._missing = missing
        self._caught_up = False
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
            # What these would say is what this module sees to.
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": False,
        }
        try:
            consumer = confluent_kafka.Consumer(settings, logger=logger)
        except confluent_kafka.KafkaException as error:
            raise KafkaUnusable(f"its settings do not work: {_reason(error)}") from None
        try:
            self._check_topics(consumer)
            consumer.subscribe(self._config.topics)
            self._caught_up = False
            self._missing.behind(True)
            topics = ", ".join(self._config.topics)
            logger.info("%s reads %s", self.name, topics)
            self.state.up(f"reading {topics}")
            self._backoff.reset()
            while self._running():
                self._hand_over(consumer)
        except confluent_kafka.KafkaException as error:
            raise KafkaUnusable(_reason(error)) from None
        finally:
            self._missing.lost()
            consumer.close()

    def _check_topics(self, consumer: Any) -> None:
        """Raise `KafkaUnusable` for topics that are not there: librdkafka would wait for ever."""
        known = self._topics(consumer)
        missing = [topic for topic in self._config.topics if topic not in known]
        if missing:
            there = ", ".join(sorted(name for name in known if not name.startswith("__"))) or "none"
            raise KafkaUnusable(
                f"kafka.topics: {', '.join(missing)} does not exist, but topics "
                f"that MISP writes are needed; Kafka has: {there}"
            )

    def _topics(self, consumer: Any) -> Collection[str]:
        """Ask Kafka which topics it has; asked in short turns, since nothing else ends a wait."""
        import confluent_kafka  # noqa: PLC0415

        for turn in range(METADATA_SECS // NOTICE_SECS):
            try:
                topics: Collection[str] = consumer.list_topics(timeout=NOTICE_SECS).topics
            except confluent_kafka.KafkaException as error:
                if not self._running() or turn == METADATA_SECS // NOTICE_SECS - 1:
                    servers = self._config.config.get("bootstrap.servers", "")
                    raise KafkaUnusable(
                        f"no answer from kafka.config.bootstrap.servers ({servers}): "
                        f"{_reason(error)}"
                    ) from None
            else:
                return topics
        return ()

    def _hand_over(self, consumer: Any) -> None:
        # Asked for all at once, librdkafka would wait until there are so many.
        messages = consumer.consume(1, min(self._config.poll_interval, POLL_CAP_SECS))
        if messages:
            messages += consumer.consume(BATCH, 0)
        elif not self._caught_up and consumer.assignment():
            self._caught_up = True
            self._missing.behind(False)
            self._missing.gap("Kafka is read up to now")
        documents, offsets = [], {}
        for message in messages:
            if message.error() is None:
                documents.append(message.value() or b"")
                offsets[message.topic(), message.partition()] = message.offset() + 1
            elif not message.error().retriable():
                raise KafkaUnusable(message.error().str())
        if documents:
            self._take(documents)
            # Those that were taken are on disk, in the index; a repeated one changes nothing.
            # Exactly these: left to itself, librdkafka commits what is read by the time it sends.
            self._commit(consumer, offsets)

    def _commit(self, consumer: Any, offsets: Mapping[tuple[str, int], int]) -> None:
        from confluent_kafka import TopicPartition  # noqa: PLC0415

        taken = [TopicPartition(*where, offset) for where, offset in offsets.items()]
        consumer.commit(offsets=taken, asynchronous=True)


def _reason(error: Exception) -> str:
    """Give librdkafka's own words."""
    inner = error.args[0] if error.args else error
    return inner.str() if hasattr(inner, "str") else str(inner)
