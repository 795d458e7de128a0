"""What one peer may ask of the ZeroMQ endpoint, so that the others get their share."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from helpers.keys import Keys
from helpers.waiting import SCALE, SOON, Clock, eventually, finished
from threatbus_zmq.limits import BURST_SECS, FORGET_SECS, MAX_PEERS, RateLimit

from integration.zmq_helpers import App, Apps, ZmqBus

#: Seconds within which a flood of another's holds nobody up.
SOON_ENOUGH = 2.0 * SCALE
HEARTBEAT = b'{"action": "heartbeat", "topic": "x"}'


@contextmanager
def flood(sender: zmq.Socket[bytes], *frames: bytes) -> Iterator[None]:
    """Send the same message as fast as it goes, in a thread of its own."""
    ended = threading.Event()

    def run() -> None:
        sender.setsockopt(zmq.SNDTIMEO, 100)
        while not ended.is_set():
            try:
                sender.send_multipart(frames)
            except zmq.Again:
                continue

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        finished(thread)


def usual(times: int, action: Callable[[], object]) -> float:
    """The median of so many calls, in seconds: a busy machine holds up one, a flood all of them."""
    taken = []
    for _ in range(times):
        began = time.monotonic()
        action()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


# Counting.


def test_a_peer_may_do_so_much_at_once_and_then_so_much_a_second() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    assert [limit.take("a") for _ in range(21)] == [True] * int(10 * BURST_SECS) + [False]
    assert limit.take("b"), "another has a count of its own"
    clock.now += 0.5
    assert [limit.take("a") for _ in range(6)] == [True] * 4 + [False] * 2


def test_who_goes_on_when_told_to_stop_is_flooding_until_it_is_quiet() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    for _ in range(39):
        limit.take("a")
    assert not limit.is_flooding("a")
    limit.take("a")
    assert limit.is_flooding("a")
    clock.now += 1
    limit.take("a")
    assert not limit.is_flooding("a")
    assert not limit.is_flooding("b")


def test_peers_without_number_take_no_memory_without_bound() -> None:
    limit = RateLimit(10)
    for number in range(MAX_PEERS + 100):
        limit.take(number)
    assert len(limit._left) == MAX_PEERS


def test_a_peer_that_is_quiet_until_it_may_do_everything_again_takes_none_at_all() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    for _ in range(100):
        limit.take("flood")
    clock.now += FORGET_SECS
    limit.take("b")
    assert "flood" in limit._left
    clock.now += 0.1
    limit.take("b")
    assert "flood" not in limit._left
    assert [limit.take("flood") for _ in range(21)] == [True] * int(10 * BURST_SECS) + [False]


# Requests.


def test_too_many_requests_are_told_so_and_then_cost_the_connection(
    zmq_apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    bus = zmq_apps.bus(max_requests_per_second=10)
    app = zmq_apps.app(bus)
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    ends = app.ends_of(dealer)
    for _ in range(39):
        dealer.send_multipart([b"", HEARTBEAT])
    replies = [json.loads(dealer.recv_multipart()[1]) for _ in range(39)]
    told = [reply for reply in replies if "max_requests_per_second" in reply["reason"]]
    assert 15 <= len(told) <= 20
    assert not ends.poll(0)
    for _ in range(100):
        dealer.send_multipart([b"", HEARTBEAT])
    assert ends.poll(int(SOON * 1000)), "it is still connected"
    assert "makes too many management requests" in caplog.text


def test_connections_of_one_host_have_a_count_each(zmq_apps: Apps) -> None:
    bus = zmq_apps.bus(max_requests_per_second=1)
    app = zmq_apps.app(bus)
    # Each by a connection of its own.
    for _ in range(20):
        assert "reason" not in app.ask(action="subscribe", topic="stix2")


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
def test_a_flood_of_requests_keeps_nobody_elses_waiting(
    zmq_apps: Apps, tmp_path: Path, with_keys: bool
) -> None:
    keys = Keys(tmp_path / "keys") if with_keys else None
    bus = zmq_apps.bus(**({} if keys is None else {"curve": keys.section}))
    attacker, app = (
        zmq_apps.app(bus, keys=None if keys is None else keys.client(name))
        for name in ("attacker", "app")
    )
    eventually(lambda: not app.is_refused("manage", zmq.REQ))
    app.subscribe("stix2").connect().connected()
    dealer = attacker.socket(zmq.DEALER, bus.address("manage"))
    with flood(dealer, b"", b'{"action": "subscribe", "topic": "stix2"}'):
        eventually(lambda: bus.endpoint.requests.rate._left, what="the flood has begun")

        def pass_a_message() -> None:
            app.publish_numbered(1, 1)
            app.receive_until(1)

        assert usual(20, app.heartbeat) < SOON_ENOUGH
        assert usual(20, pass_a_message) < SOON_ENOUGH
    assert len(bus.endpoint.manager) <= 5001


def test_a_request_that_is_too_large_closes_the_connection_of_its_sender_alone(
    bus: ZmqBus, app: App, publisher: App
) -> None:
    publisher.subscribe("stix2")
    dealer = app.socket(zmq.DEALER, bus.address("manage"))
    ends = app.ends_of(dealer)
    dealer.send_multipart([b"", b"x" * 2_000_000])
    assert ends.poll(int(SOON * 1000)), "it is still connected"
    assert publisher.heartbeat() == "success"


# Subscriptions.


def test_a_host_has_so_many_subscriptions_and_no_more(zmq_apps: Apps) -> None:
    bus = zmq_apps.bus(max_subscribers_per_peer=3)
    apps = [zmq_apps.app(bus).subscribe("stix2") for _ in range(3)]
    reply = apps[0].ask(action="subscribe", topic="stix2")
    assert reply["status"] == "error"
    assert "max_subscribers_per_peer" in reply["reason"]
    apps[0].ask(action="unsubscribe", topic=apps[1].p2p)
    apps[0].subscribe("stix2")


def test_a_key_has_so_many_subscriptions_and_leaves_the_others_theirs(
    zmq_apps: Apps, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys")
    first, second = keys.client("first"), keys.client("second")
    bus = zmq_apps.bus(max_subscribers_per_peer=2, curve=keys.section)
    for _ in range(2):
        zmq_apps.app(bus, keys=first).subscribe("stix2")
    reply = zmq_apps.app(bus, keys=first).ask(action="subscribe", topic="stix2")
    assert "first has 2 subscriptions already" in reply["reason"]
    zmq_apps.app(bus, keys=second).subscribe("stix2")


# Messages.


@pytest.mark.parametrize(
    "frame",
    [b"stix2/indicator {1", b"stix2/indicator " + b"[" * 100_000, b"weather/today {}"],
    ids=["no JSON", "100 kB of it", "a topic that nobody has"],
)
def test_garbage_at_full_speed_keeps_nobody_elses_messages_waiting(
    zmq_apps: Apps, bus: ZmqBus, publisher: App, app: App, frame: bytes
) -> None:
    publisher.subscribe("stix2").connect().connected()
    with flood(app.pub, frame):
        eventually(lambda: bus.bus.rejects.total > 100, what="the flood has begun")

        def pass_a_message() -> None:
            publisher.publish_numbered(1, 1)
            publisher.receive_until(1)

        assert usual(20, pass_a_message) < SOON_ENOUGH
        publisher.publish_numbered(2, 500)
        assert publisher.receive_until(501, timeout=10 * SCALE) == list(range(2, 502))
