"""Messages by topic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from threatbus.messages import INDICATOR, SIGHTING, SNAPSHOT_ENVELOPE, SNAPSHOT_REQUEST, Message

#: The topics that are counted apart; what else a plugin of the old kind may put is "other".
TOPICS: Final = (INDICATOR, SIGHTING, SNAPSHOT_REQUEST, SNAPSHOT_ENVELOPE)
OTHER: Final = "other"

_topic_of = attrgetter("topic")

TopicCount = Sequence[tuple[str, int]]
"""How many messages there are of each topic."""


def topics_of(batch: Sequence[Message]) -> TopicCount:
    """Count `batch`, which is not empty, by topic. Nearly every batch has only one."""
    if len(batch) == 1:
        return ((batch[0].topic, 1),)
    topics = list(map(_topic_of, batch))
    first = topics[0]
    count = topics.count(first)
    return ((first, count),) if count == len(topics) else tuple(Counter(topics).items())


def kind_of(topic: str) -> str:
    """Give the type of message that travels on `topic`: ``indicator``, ``snapshotrequest``, …."""
    return topic.rpartition("/")[2]


class TopicTotals:
    """Totals by topic. Whoever adds sees to it that nobody else does so at the same time."""

    def __init__(self) -> None:
        self._totals = dict.fromkeys((*TOPICS, OTHER), 0)

    def add(self, counted: TopicCount) -> None:
        """Add what `topics_of` gave."""
        totals = self._totals
        for topic, count in counted:
            try:
                totals[topic] += count
            except KeyError:
                totals[OTHER] += count

    def by_topic(self) -> dict[str, int]:
        """Give the totals; from any thread."""
        return dict(self._totals)


def summed(totals: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add totals of several kinds up, topic by topic."""
    total: dict[str, int] = dict.fromkeys((*TOPICS, OTHER), 0)
    for each in totals:
        for topic, count in each.items():
            total[topic] += count
    return total
