"""Hooks of the in-memory backbone.

It has nothing to wait for, so it has no thread: messages are sorted into the outqs by whichever
thread puts them on inq, without a hand-over in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

import threatbus
from threatbus.doctor import Check
from threatbus.queues import MessageQueue
from threatbus.routing import Outlet, TopicTable


class InMemoryConfig(msgspec.Struct, frozen=True):
    """The section ``plugins.backbones.inmem``: it has no keys."""


class InMemoryBackbone:
    """Passes every message on to the subscribers of this process."""

    def __init__(self) -> None:
        self._table = TopicTable()

    @threatbus.backbone
    def config_schema(self) -> type[msgspec.Struct]:
        """Give the schema of the section."""
        return InMemoryConfig

    @threatbus.backbone
    def run(self, config: Any, logging: Any, inq: MessageQueue) -> None:  # noqa: ARG002
        """Have what is put on `inq` delivered at once."""
        inq.consume(self._table.deliver)

    @threatbus.backbone
    def subscribe(self, topic: str, q: Outlet) -> None:
        """Let `q` receive what matches `topic`."""
        self._table.subscribe(topic, q)

    @threatbus.backbone
    def unsubscribe(self, topic: str, q: Outlet) -> None:
        """End a subscription."""
        self._table.unsubscribe(topic, q)

    @threatbus.backbone
    def drain(self, deadline: float) -> int:  # noqa: ARG002
        """Give 0: nothing ever waits here."""
        return 0

    @threatbus.backbone
    def diagnose(self) -> Iterable[Check]:
        """Give no check of `threatbus doctor`: it connects to nothing."""
        return ()
