"""Bodies, ids and names of the RabbitMQ backbone."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from helpers.documents import (
    envelope_message,
    indicator,
    indicator_message,
    request_message,
    sighting,
    sighting_message,
)
from threatbus_rabbitmq.config import QueueConfig, RabbitMQConfig
from threatbus_rabbitmq.consumer import RecentIds
from threatbus_rabbitmq.mapping import BodyReader, NodeIds

from threatbus.border import Border
from threatbus.config import check_section
from threatbus.data import MessageType
from threatbus.errors import Rejected
from threatbus.messages import Message

reader = BodyReader(Border())


@pytest.mark.parametrize(
    "message",
    [
        indicator_message(),
        indicator_message(x_custom={"deep": [1]}, pattern="[a:b = 'c'] FOLLOWEDBY [a:b = 'd']"),
        sighting_message(),
        request_message(MessageType.SIGHTING, "some-id"),
        envelope_message("some-id", indicator()),
        envelope_message("some-id", sighting()),
    ],
    ids=lambda message: message.topic,
)
def test_a_body_gives_the_message_that_it_was(message: Message) -> None:
    read = reader.read(message.data)
    assert (read.topic, read.data) == (message.topic, message.data)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"type": "malware"}, "malware"),
        ({"type": "snapshotrequest", "snapshot_type": 1}, "snapshot"),
        ({"type": "snapshotrequest", "snapshot_type": 9, "snapshot_id": "x", "snapshot": 1.0}, "9"),
        (
            {
                "type": "snapshotenvelope",
                "snapshot_type": MessageType.SIGHTING.value,
                "snapshot_id": "x",
                "body": indicator(),
            },
            "not of its snapshot_type",
        ),
        (
            {
                "type": "snapshotenvelope",
                "snapshot_type": MessageType.INDICATOR.value,
                "snapshot_id": "x",
                "body": {"type": "indicator"},
            },
            "",
        ),
        ([], ""),
    ],
)
def test_a_body_that_is_no_message_is_rejected_with_a_reason(document: Any, reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        reader.read(json.dumps(document).encode())
    assert reason in raised.value.reason
    assert raised.value.reason


def test_an_id_of_this_run_comes_back_as_the_number_that_it_was() -> None:
    ids = NodeIds()
    assert ids.from_wire(ids.to_wire(17)) == 17


@pytest.mark.parametrize("found", ["", "17", "other:17", ":", "\u0661"])
def test_any_other_id_stays_the_text_that_it_is(found: str) -> None:
    assert NodeIds().from_wire(found) == found


def test_ids_of_two_runs_never_meet() -> None:
    here, there = NodeIds(), NodeIds()
    assert here.to_wire(1) != there.to_wire(1)
    assert there.from_wire(here.to_wire(1)) == here.to_wire(1)


def test_as_many_ids_are_remembered_as_said_and_the_oldest_are_forgotten() -> None:
    recent = RecentIds(3)
    for each in "abc":
        assert each not in recent
        recent.add(each)
        assert each in recent
    recent.add("d")
    assert [each for each in "abcd" if each in recent] == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"queue": {"name_suffix": "é" * 130}}, "queue.name_suffix: is a name of 270 bytes in all"),
        ({"exchange_name": "é" * 130}, "exchange_name: is a name of 260 bytes in all"),
        ({"vhost": "x" * 256}, "vhost: is a name of 256 bytes in all"),
        ({"queue": {"max_items": 2**63}}, "a whole number from 0 to 1000000000000"),
        ({"queue": {"expires": 1e9}}, "at most ten years"),
    ],
)
def test_what_amqp_has_no_room_for_is_a_config_error(section: dict[str, Any], said: str) -> None:
    _, errors = check_section(section, RabbitMQConfig, "rabbitmq")
    assert len(errors) == 1
    assert said in str(errors[0])


def test_a_queue_is_named_after_the_host_unless_told_otherwise() -> None:
    assert QueueConfig().name == f"threatbus.{socket.gethostname()}"
    assert QueueConfig(name_join_symbol="-", name_suffix="x").name == "threatbus-x"
