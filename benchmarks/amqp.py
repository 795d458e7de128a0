"""A bare pika publisher and a bare consumer: what RabbitMQ and pika do with no bus around them."""

from __future__ import annotations

import multiprocessing as mp
import time
from multiprocessing.connection import Connection
from typing import Any

import pika

from benchmarks.load import GIVE_UP_SECS, Result, indicator
from benchmarks.systems import spawn

EXCHANGE = "bare"
#: As the bus has them by default.
WINDOW = 1000
PREFETCH = 1000
#: Messages that the consumer acknowledges together.
ACKNOWLEDGED = 100


def _parameters(port: int) -> pika.ConnectionParameters:
    return pika.ConnectionParameters("127.0.0.1", port)


def _publish(port: int, count: int, control: Connection) -> None:
    """Publish persistent messages, with at most `WINDOW` of them unconfirmed."""
    bodies = [indicator() for _ in range(min(count, 5000))]
    properties = pika.BasicProperties(delivery_mode=2)
    sent = confirmed = 0

    def pump(channel: Any) -> None:
        nonlocal sent
        while sent < count and sent - confirmed < WINDOW:
            channel.basic_publish(EXCHANGE, "", bodies[sent % len(bodies)], properties)
            sent += 1

    def on_open(connection: Any) -> None:
        connection.channel(on_open_callback=on_channel)

    def on_channel(channel: Any) -> None:
        def on_confirmed(frame: Any) -> None:
            nonlocal confirmed
            tag = frame.method.delivery_tag
            confirmed = max(confirmed, tag) if frame.method.multiple else confirmed + 1
            pump(channel)
            if confirmed >= count:
                connection.close()

        def begin(_: Any) -> None:
            control.send("connected")
            control.recv()
            pump(channel)

        channel.confirm_delivery(on_confirmed, callback=begin)

    connection = pika.SelectConnection(
        _parameters(port),
        on_open_callback=on_open,
        on_close_callback=lambda closed, _: closed.ioloop.stop(),
    )
    connection.ioloop.start()


def _consume(port: int, count: int, control: Connection) -> None:
    """Receive `count` messages; sends how many came, and when the first and the last did."""
    received, first, last = 0, 0.0, 0.0

    def on_message(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal received, first, last
        received += 1
        last = time.monotonic()
        first = first or last
        if received % ACKNOWLEDGED == 0 or received == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if received == count:
            connection.close()

    def on_channel(channel: Any) -> None:
        def consume(_: Any) -> None:
            channel.basic_consume("bare", on_message, callback=lambda _: control.send("ready"))

        channel.exchange_declare(EXCHANGE, "fanout", durable=True)
        channel.queue_declare("bare", durable=True)
        channel.queue_bind("bare", EXCHANGE)
        channel.basic_qos(prefetch_count=PREFETCH, callback=consume)

    connection = pika.SelectConnection(
        _parameters(port),
        on_open_callback=lambda opened: opened.channel(on_open_callback=on_channel),
        on_close_callback=lambda closed, _: closed.ioloop.stop(),
    )
    connection.ioloop.call_later(3 * GIVE_UP_SECS, connection.ioloop.stop)
    connection.ioloop.start()
    control.send((received, first, last))


def bare(port: int, count: int) -> Result:
    """Pass `count` indicators through the broker at `port`, as fast as it goes."""
    pipes = []
    processes = []
    for target in (_consume, _publish):
        ours, theirs = mp.Pipe()
        process = spawn.Process(target=target, args=(port, count, theirs), daemon=True)
        process.start()
        ours.recv()
        pipes.append(ours)
        processes.append(process)
    pipes[1].send("go")
    received, first, last = pipes[0].recv()
    for process in processes:
        process.join(10)
        process.kill()
    return Result("pika", count, max(last - first, 1e-9), count - received, 0.0, 0, [], [])
