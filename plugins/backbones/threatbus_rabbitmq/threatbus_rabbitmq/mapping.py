"""Messages to and from AMQP: body, properties, ids; no I/O.

Source: docs/protocol-rabbitmq.md. One AMQP message is one JSON document, whose `type` decides what
it is. Every property is optional on receipt, since nodes of Threat Bus 2022.5.16 send none.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

import msgspec
import pika

from threatbus.border import Border
from threatbus.data import MessageType
from threatbus.errors import Rejected
from threatbus.messages import (
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    TOPIC_OF_TYPE,
    EnvelopeView,
    Message,
    RequestView,
)

APP_ID: Final = "threatbus"
#: Of all messages; a fanout exchange does not look at it.
ROUTING_KEY: Final = ""
#: What the reject store calls this door.
ORIGIN: Final = "rabbitmq"
_PERSISTENT: Final = 2


class NodeIds:
    """Message ids on the wire: ``NODE:NUMBER``, where NODE names this run of this node.

    A message that comes back keeps the number that this bus gave it on acceptance; one of another
    node, or of an earlier run, is known by the whole text.
    """

    def __init__(self) -> None:
        self._prefix = f"{secrets.token_hex(8)}:"

    def to_wire(self, number: int | str) -> str:
        """Give the ``message_id`` of a message that this node publishes."""
        return f"{self._prefix}{number}"

    def from_wire(self, message_id: str) -> int | str:
        """Give the id of a message that was received."""
        if message_id.startswith(self._prefix):
            number = message_id.removeprefix(self._prefix)
            if number.isdecimal():
                return int(number)
        return message_id


def properties(message_id: str) -> pika.BasicProperties:
    """Give the properties that a published message carries."""
    return pika.BasicProperties(
        delivery_mode=_PERSISTENT,
        content_type="application/json",
        message_id=message_id,
        timestamp=int(time.time()),
        app_id=APP_ID,
    )


def wire_id(properties: pika.BasicProperties) -> str | None:
    """Give the ``message_id`` of a message that was received, None without one that is text."""
    message_id = properties.message_id
    return message_id if message_id and isinstance(message_id, str) else None


class BodyReader:
    """Turns bodies into messages; they come in through the border like everything else."""

    def __init__(self, border: Border) -> None:
        self._border = border
        self._decoder = msgspec.json.Decoder(RequestView | EnvelopeView)

    def read(self, body: bytes) -> Message:
        """Give the message in `body`; raises `Rejected`."""
        if recognised := self._border.recognise((body,)):
            return Message(recognised[0], body)
        try:
            view = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # No sound snapshot message; the border knows all else, and the words for what is wrong.
            return Message(self._border.topic_of(body), body)
        try:
            expected = TOPIC_OF_TYPE[MessageType(view.snapshot_type)]
        except ValueError as error:
            raise Rejected(f"snapshot message: {error}") from None
        if isinstance(view, RequestView):
            return Message(SNAPSHOT_REQUEST, body)
        if self._border.topic_of(bytes(view.body)) != expected:
            raise Rejected("snapshot envelope: its body is not of its snapshot_type")
        return Message(SNAPSHOT_ENVELOPE, body)
