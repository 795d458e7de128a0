"""Snapshots go page by page: what is in memory is one page, however long the history."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from integration.misp_helpers import attribute_message
from threatbus_misp import snapshots
from threatbus_misp.config import InstanceConfig
from threatbus_misp.index import IndexUnusable
from threatbus_misp.mapping.model import Attribute
from threatbus_misp.reconciler import Reconciler
from threatbus_misp.rest import MispApi
from threatbus_misp.rest_errors import MispUnreachable

from threatbus.data import MessageType, SnapshotRequest
from threatbus.errors import Overflow
from threatbus.messages import Message

PAGES = 5


class FakeApi:
    """Gives pages of one attribute, notes in `log` that it was asked for one."""

    def __init__(
        self, log: list[str], fails_at: int = PAGES, error: Exception | None = None
    ) -> None:
        self._log = log
        self._fails_at = fails_at
        self._error = error or MispUnreachable("there", "it is away")

    def attributes_changed(self, since: int, **_: Any) -> Iterator[list[dict[str, Any]]]:
        for number in range(PAGES):
            if number == self._fails_at:
                raise self._error
            self._log.append("asked")
            yield [attribute_message()["Attribute"]]


class FakeReconciler:
    """Takes every attribute for an indicator."""

    def current(self, attribute: Attribute) -> bytes:
        return json.dumps({"name": attribute.value}).encode()


def answer(api: FakeApi, log: list[str], room: int = PAGES) -> None:
    def put(messages: Sequence[Message]) -> None:
        if log.count("put") == room:
            raise Overflow("the bus is stopping")
        log.append("put")
        (message,) = messages
        assert json.loads(message.data)["body"] == {"name": "198.51.100.7"}

    snapshots.answer(
        "misp",
        InstanceConfig(),
        cast(MispApi, api),
        cast(Reconciler, FakeReconciler()),
        SnapshotRequest(MessageType.INDICATOR, str(uuid.uuid4()), timedelta(days=1)),
        put,
        lambda: True,
    )


def test_each_page_is_handed_over_before_the_next_is_asked_for() -> None:
    """The whole history was in memory at once."""
    log: list[str] = []
    answer(FakeApi(log), log)
    assert log == ["asked", "put"] * PAGES


@pytest.mark.parametrize(
    "error", [MispUnreachable("there", "it is away"), IndexUnusable("the index is closed")]
)
def test_what_fails_ends_the_answer_with_what_there_was(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    answer(FakeApi(log, fails_at=2, error=error), log)
    assert log == ["asked", "put"] * 2
    assert f"the snapshot ends after 2 objects: {error}" in caplog.text


def test_a_bus_that_is_stopping_ends_the_answer() -> None:
    log: list[str] = []
    answer(FakeApi(log), log, room=1)
    assert log == ["asked", "put", "asked"]
