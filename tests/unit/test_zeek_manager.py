"""Which Zeek is which: what the manager makes of peers and wishes, in whatever order they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import indicators
from threatbus_zeek.config import ZeekConfig
from threatbus_zeek.manager import EARLY_SECS, Manager
from threatbus_zeek.subscriptions import SETTLE_SECS
from threatbus_zeek.transport import Arrived, Incoming, PeerAdded, PeerLost
from threatbus_zeek.values import Count, Event

from threatbus.border import Border
from threatbus.gate import Gate
from threatbus.intake import Intake
from threatbus.observe.report import Connection
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.rejects import RejectStore
from threatbus.services import Services

GRACE = 60.0


class Transport:
    """Keeps what is published."""

    name = "transport"

    def __init__(self, *, keeps_its_peer: bool) -> None:
        self.keeps_its_peer = keeps_its_peer
        self.state = Connection(self.name)
        self.published: list[tuple[str, Event]] = []
        self.on_publish: Callable[[Event], object] = lambda event: None

    def open(self) -> None: ...

    def receive(self, timeout: float | None, *, reading: bool) -> Sequence[Incoming]:
        return ()

    def publish(self, topic: str, event: Event) -> None:
        self.published.append((topic, event))
        self.on_publish(event)

    def wake(self) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class Zeeks:
    """A manager with a clock that a test sets, and what it subscribed."""

    def __init__(self, *, keeps_its_peer: bool = False) -> None:
        self.now = 1000.0
        self.queues: list[MessageQueue] = []
        self.transport = Transport(keeps_its_peer=keeps_its_peer)
        self.rejects = RejectStore(Path("/nowhere"), 10, 1000)
        gate = Gate()
        services = Services(
            None, Border(), self.rejects, Path("/nowhere"), Bounds(), OverflowPolicy.BLOCK, gate
        )
        self.manager = Manager(
            ZeekConfig(grace=GRACE),
            services,
            Intake(gate, self.rejects),
            lambda topic, q, delta=None: self.queues.append(q),
            lambda topic, q: None,
            self.transport,
            lambda: self.now,
        )

    def come(self, *peers: str) -> None:
        for peer in peers:
            self.manager.take(PeerAdded(peer))

    def go(self, *peers: str) -> None:
        for peer in peers:
            self.manager.take(PeerLost(peer))

    def say(self, name: str, *args: Any) -> None:
        event = (f"Tenzir::{name}", args)
        self.manager.take(Arrived("threatbus/manage", (Count(1), Count(1), event)))

    def subscribe(self) -> None:
        self.say("subscribe", "stix2/indicator", timedelta(0))

    def join(self, suffix: str) -> None:
        self.say("join", f"stix2{suffix}", "stix2", timedelta(0), "zeek")

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.manager.serve()

    @property
    def topics(self) -> list[str]:
        """The topics of the acknowledgements."""
        acks = ("Tenzir::subscription_acknowledged", "Tenzir::joined")
        return [event.args[0] for _, event in self.transport.published if event.name in acks]

    def told(self, topic: str) -> int:
        """How many items were published to a topic."""
        return sum(
            1 for to, event in self.transport.published if to == topic and "intel" in event.name
        )


@pytest.fixture
def zeeks() -> Zeeks:
    return Zeeks()


@pytest.mark.parametrize("wish", ["subscribe", "join"])
def test_zeek_hears_of_its_subscription_when_it_is_there(zeeks: Zeeks, wish: str) -> None:
    """Registered first, then announced: nothing that is published in between is missed."""
    subscribed: list[int] = []
    zeeks.transport.on_publish = lambda event: subscribed.append(len(zeeks.queues))
    zeeks.come("a")
    if wish == "join":
        zeeks.join("abcdefghijk")
    else:
        zeeks.subscribe()
    assert subscribed == [1]


def test_a_wish_that_comes_before_its_peer_is_the_peers(zeeks: Zeeks) -> None:
    zeeks.come("a")
    zeeks.subscribe()
    zeeks.subscribe()
    assert len(zeeks.topics) == 1
    zeeks.come("b")
    assert len(zeeks.topics) == 2
    # What is b's goes with b, and what is a's stays.
    zeeks.go("b")
    zeeks.later(GRACE + 1)
    assert len(zeeks.manager) == 1


def test_a_wish_that_comes_before_any_peer_is_served(zeeks: Zeeks) -> None:
    zeeks.subscribe()
    zeeks.come("a")
    (topic,) = zeeks.topics
    zeeks.queues[0].put_many(indicators(3))
    zeeks.later(SETTLE_SECS)
    assert zeeks.told(topic) == 3


def test_a_wish_that_no_peer_comes_for_is_served_all_the_same(zeeks: Zeeks) -> None:
    zeeks.come("a")
    zeeks.subscribe()
    zeeks.subscribe()
    timeout = zeeks.manager.timeout()
    assert timeout is not None
    assert timeout <= EARLY_SECS
    zeeks.later(EARLY_SECS)
    assert len(zeeks.topics) == 2


def test_our_script_and_the_old_one_do_not_take_each_others_peers(zeeks: Zeeks) -> None:
    zeeks.come("ours")
    zeeks.join("abcdefghijk")
    zeeks.come("old")
    zeeks.subscribe()
    zeeks.go("old")
    zeeks.say("received", "stix2abcdefghijk", Count(0))
    zeeks.later(GRACE - 1)
    zeeks.say("received", "stix2abcdefghijk", Count(0))
    zeeks.later(2)
    assert len(zeeks.manager) == 1


def test_one_of_ours_that_comes_back_takes_nobodys_place(zeeks: Zeeks) -> None:
    zeeks.come("ours")
    zeeks.join("abcdefghijk")
    zeeks.go("ours")
    zeeks.come("ours")
    zeeks.say("received", "stix2abcdefghijk", Count(0))
    zeeks.come("old")
    zeeks.subscribe()
    # So what is known to be old's goes with it.
    zeeks.go("old")
    zeeks.later(GRACE - 1)
    zeeks.say("received", "stix2abcdefghijk", Count(0))
    zeeks.later(2)
    assert len(zeeks.manager) == 1


def test_two_that_come_together_are_kept_as_long_as_one_is_there(zeeks: Zeeks) -> None:
    """Which is which nobody can tell: rather one too many than one too few."""
    zeeks.come("a", "b")
    zeeks.subscribe()
    zeeks.subscribe()
    zeeks.go("a")
    zeeks.later(GRACE + 1)
    assert len(zeeks.manager) == 2
    zeeks.go("b")
    zeeks.later(GRACE + 1)
    assert len(zeeks.manager) == 0


@pytest.mark.parametrize("early", [False, True])
def test_one_that_comes_back_keeps_its_topic(zeeks: Zeeks, early: bool) -> None:
    zeeks.come("a")
    zeeks.subscribe()
    zeeks.later(SETTLE_SECS)
    zeeks.go("a")
    zeeks.queues[0].put_many(indicators(5))
    zeeks.later(1)
    (topic,) = zeeks.topics
    assert zeeks.told(topic) == 0
    if early:
        zeeks.subscribe()
    zeeks.come("a")
    if not early:
        zeeks.subscribe()
    zeeks.later(SETTLE_SECS)
    assert zeeks.topics == [topic, topic]
    assert zeeks.told(topic) == 5
    assert len(zeeks.manager) == 1


def test_over_websocket_the_one_that_comes_is_the_one_that_went() -> None:
    zeeks = Zeeks(keeps_its_peer=True)
    zeeks.come("connection 1")
    zeeks.subscribe()
    zeeks.go("connection 1")
    zeeks.come("connection 2")
    zeeks.subscribe()
    (first, second) = zeeks.topics
    assert first == second


def test_a_subscription_that_does_not_exist_is_told_to_its_topic(zeeks: Zeeks) -> None:
    zeeks.say("received", "stix2abcdefghijk", Count(7))
    ((topic, event),) = zeeks.transport.published
    assert (topic, event.name) == ("stix2abcdefghijk", "Tenzir::not_joined")


def test_the_topic_of_another_kind_of_subscription_cannot_be_joined(zeeks: Zeeks) -> None:
    zeeks.come("a")
    zeeks.subscribe()
    (topic,) = zeeks.topics
    zeeks.say("join", topic, "stix2/indicator", timedelta(0), "thief")
    assert zeeks.rejects.total == 1
