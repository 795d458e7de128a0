"""What `threatbus doctor` looks at: broker, login, vhost, exchange and queue.

Over a connection of its own. What is declared actively is declared only once it is there, so
nothing is made; nothing is bound, consumed or claimed.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterator
from typing import Any, Final

import pika
import pika.exceptions

from threatbus.doctor import Check, reach
from threatbus.errors import CheckFailed
from threatbus_rabbitmq.config import RabbitMQConfig
from threatbus_rabbitmq.connection import (
    NOT_FOUND,
    RESOURCE_LOCKED,
    TLS_SECTION,
    causes,
    explain,
    parameters,
)

SECTION: Final = "plugins.backbones.rabbitmq"
#: Reply code of AMQP 0-9-1: the user may not do that.
ACCESS_REFUSED: Final = 403


def checks(config: RabbitMQConfig, bus_pid: int | None) -> Iterator[Check]:
    """Give the checks of this section."""
    yield Check("connection", lambda: _check_connection(config))
    yield Check("exchange", lambda: _check_exchange(config))
    yield Check("queue", lambda: _check_queue(config, bus_pid))


def _check_connection(config: RabbitMQConfig) -> str:
    reach(config.host, config.port, f"{SECTION}.host and {SECTION}.port")
    _close(_connect(config))
    return f"{config.username} is let into vhost {config.vhost} of {config.host}:{config.port}"


def _check_exchange(config: RabbitMQConfig) -> str:
    name = config.exchange_name
    with _channel(config) as channel:
        try:
            channel.exchange_declare(name, "fanout", passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                return f"{name} is not there yet; the first bus makes it"
            raise _refused(config, error) from None
        try:
            channel.exchange_declare(name, "fanout", durable=config.exchange_durable)
        except pika.exceptions.ChannelClosedByBroker as error:
            if "'type'" in error.reply_text:
                raise CheckFailed(
                    f"{name} is there, but no fanout exchange ({error.reply_text})",
                    f"choose another {SECTION}.exchange_name, the same for all buses",
                ) from None
            if error.reply_code == ACCESS_REFUSED:
                raise _refused(config, error) from None
            # Durable or not, the bus takes it as it is.
    return f"{name} is there"


def _check_queue(config: RabbitMQConfig, bus_pid: int | None) -> str:
    queue = config.queue
    with _channel(config) as channel:
        try:
            found = channel.queue_declare(queue.name, passive=True).method
            waiting, consumers = found.message_count, found.consumer_count
            channel.queue_declare(**queue.declaration)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                return f"{queue.name} is not there yet; the bus makes it"
            if error.reply_code == ACCESS_REFUSED:
                raise _refused(config, error) from None
            if error.reply_code == RESOURCE_LOCKED and queue.exclusive and bus_pid is not None:
                return f"{queue.name} is in use by one bus alone"
            raise CheckFailed(
                f"{queue.name} is there and cannot be used as configured ({error.reply_text})",
                f"set {SECTION}.queue as the queue is, choose another name_suffix, or delete the "
                f"queue with what is in it (rabbitmqctl delete_queue {queue.name})",
            ) from None
    if consumers and bus_pid is None:
        raise CheckFailed(
            f"{queue.name} is consumed by somebody else, who gets half of the messages",
            f"give each bus a {SECTION}.queue.name_suffix of its own, or end the other one",
        )
    return f"{queue.name} is there as configured, {waiting} messages wait in it"


@contextlib.contextmanager
def _channel(config: RabbitMQConfig) -> Iterator[Any]:
    """Open a channel for a ``with`` block; raises `CheckFailed` if that cannot be done."""
    try:
        connection = _connect(config)
    except CheckFailed:
        # Why not, the check of the connection says.
        raise CheckFailed("not looked at, for want of a connection", "mend that first") from None
    try:
        yield connection.channel()
    except pika.exceptions.AMQPConnectionError as error:
        raise CheckFailed(explain(error), "look into the log of RabbitMQ") from None
    finally:
        _close(connection)


def _connect(config: RabbitMQConfig) -> pika.BlockingConnection:
    # What it says of a failed attempt, the finding says in fewer words.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    wanted = parameters(config)
    wanted.client_properties = {"connection_name": "threatbus doctor"}
    try:
        return pika.BlockingConnection(wanted)
    except (pika.exceptions.AMQPError, OSError) as error:
        raise CheckFailed(explain(error), _next_step(error, config)) from None


def _close(connection: pika.BlockingConnection) -> None:
    with contextlib.suppress(pika.exceptions.AMQPError, OSError):
        connection.close()


def _next_step(error: BaseException, config: RabbitMQConfig) -> str:
    (*_, cause) = causes(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"name the certificates that are trusted in {TLS_SECTION}.ca"
    if isinstance(cause, ssl.SSLError):
        return (
            f"look whether port {config.port} is one for TLS; if not, {TLS_SECTION}.enabled: false"
        )
    if isinstance(cause, pika.exceptions.ProbableAuthenticationError):
        return (
            f"correct {SECTION}.username and {SECTION}.password (guest is let in from the "
            "broker's own machine only), or rabbitmqctl add_user"
        )
    if isinstance(cause, pika.exceptions.ProbableAccessDeniedError):
        return f"correct {SECTION}.vhost, or rabbitmqctl add_vhost and set_permissions"
    if isinstance(cause, pika.exceptions.ConnectionClosedByBroker):
        return f"correct {SECTION}.vhost: {cause.reply_text}"
    return (
        f"look into the log of RabbitMQ; if port {config.port} is one for TLS, "
        f"{TLS_SECTION}.enabled: true"
    )


def _refused(config: RabbitMQConfig, error: pika.exceptions.ChannelClosedByBroker) -> CheckFailed:
    return CheckFailed(
        f"{config.username} may not do that ({error.reply_text})",
        f"rabbitmqctl set_permissions -p {config.vhost} {config.username} '.*' '.*' '.*'",
    )
