"""What every backbone must do, whatever carries its messages.

A backbone is done when a subclass of `BackboneContract` passes::

    class TestMine(BackboneContract):
        connects_nodes = True

        def make(self) -> object:
            return MyBackbone()

        def section(self, node: int) -> dict[str, object]:
            return {"host": "localhost", "port": …, "name": f"node-{node}"}

Outlets are what the bus hands to `subscribe`: they take batches of messages (`put_many`), or
plain objects one by one (`put`), as backbones for Threat Bus 2022.5.16 hand them over. A bare
``queue.Queue`` is not among them: the bus wraps every queue.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import (
    envelope_message,
    indicator,
    indicator_message,
    indicators,
    request_message,
    sighting_message,
)
from helpers.waiting import SCALE, eventually, finished, in_threads

from threatbus.border import Border
from threatbus.config import LoggingConfig, Section, check_section
from threatbus.data import MessageType
from threatbus.gate import Gate
from threatbus.hookspecs import BACKBONE_GROUP
from threatbus.intake import Intake
from threatbus.messages import INDICATOR, SIGHTING, Message
from threatbus.plugins import Plugin
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.rejects import RejectStore
from threatbus.services import Services


class Outlet:
    """Keeps what a backbone delivers, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.got: list[Message] = []

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Take a batch."""
        with self._lock:
            self.got.extend(batch)

    def put(self, item: object) -> None:
        """Take one plain object."""
        self.put_many([Message.from_object(item)])

    def data(self) -> list[bytes]:
        """Give the documents that came."""
        with self._lock:
            return [message.data for message in self.got]


class FailingOutlet(Outlet):
    """Raises whenever something is handed to it."""

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:
        """Fail."""
        raise RuntimeError("the outlet has a bug")


class Node:
    """One backbone as a bus runs it."""

    def __init__(
        self, implementation: object, name: str, section: dict[str, object], directory: Path
    ) -> None:
        self.plugin = Plugin(name, BACKBONE_GROUP, implementation)
        gate = Gate()
        rejects = RejectStore(directory, 100, 1 << 20)
        self.inq = MessageQueue(f"inq of {name}", Bounds(10_000), OverflowPolicy.BLOCK, gate=gate)
        self.intake = Intake(gate, rejects)
        schema = self.plugin.call("config_schema")
        checked: Any = None
        if schema is not None:
            checked, errors = check_section(section, schema, f"plugins.backbones.{name}")
            assert not errors, errors
        self._arguments = {
            "config": Section({name: section}),
            "logging": LoggingConfig(),
            "inq": self.inq,
            "services": Services(
                section=checked,
                border=Border(),
                rejects=rejects,
                state_directory=directory,
                outq_bounds=Bounds(),
                overflow=OverflowPolicy.DISCONNECT,
                outq_gate=Gate(upstream=gate),
            ),
        }

    def run(self) -> None:
        """Start the backbone; its sources may put from now on."""
        self.plugin.call("run", **self._arguments)
        self.intake.attach(self.inq)

    def publish(self, *batch: Message) -> None:
        """Accept messages, as from one app plugin."""
        self.intake.put_many(batch)

    def subscribe(self, topic: str, *topics: str, outlet: Outlet | None = None) -> Outlet:
        """Subscribe an outlet, a new one unless given, to these topics."""
        outlet = outlet or Outlet()
        for each in (topic, *topics):
            self.plugin.call("subscribe", topic=each, q=outlet)
        return outlet

    def unsubscribe(self, topic: str, outlet: Outlet) -> None:
        """End a subscription."""
        self.plugin.call("unsubscribe", topic=topic, q=outlet)

    def drain(self, seconds: float) -> int:
        """Do what the bus does with what is in flight at its end."""
        if self.plugin.has("drain"):
            return int(self.plugin.call("drain", deadline=time.monotonic() + seconds))
        self.inq.join(seconds)
        return self.inq.qsize()

    def stop(self) -> None:
        """Stop the backbone."""
        self.plugin.call("stop")


class BackboneContract(ABC):
    """The tests; a subclass says how its backbone is made and what it can do."""

    #: Name of the backbone's section.
    name = "contract"
    #: Whether two nodes with the same section exchange messages.
    connects_nodes = False
    #: Whether a node that was down gets what others published meanwhile.
    persists = False
    #: Seconds that a message may take to its outlet.
    patience = 10.0 * SCALE
    #: Seconds that stopping may take.
    stop_patience = 2.0 * SCALE
    #: Messages in tests with many of them.
    many = 2000

    @abstractmethod
    def make(self) -> object:
        """Give a new backbone: the object that the loader would make."""

    def section(self, node: int) -> dict[str, object]:
        """Give the configuration of node number `node`; nodes of one test can meet."""
        return {}

    @pytest.fixture(autouse=True)
    def _nodes(self, tmp_path: Path) -> Iterator[None]:
        self._directory = tmp_path
        self._running: list[Node] = []
        self._numbers = itertools.count(1)
        yield
        for node in reversed(self._running):
            node.stop()

    def start(self, number: int | None = None, *, running: bool = True) -> Node:
        """Start a node, a new one or again the one with this number; stopped after the test."""
        number = number or next(self._numbers)
        directory = self._directory / f"node-{number}"
        node = Node(self.make(), self.name, self.section(number), directory)
        self._running.append(node)
        if running:
            node.run()
        return node

    def arrived(self, outlet: Outlet, *batch: Message) -> None:
        """Wait until `outlet` has got exactly `batch`, in this order."""
        wanted = [message.data for message in batch]
        self.complete(outlet, len(wanted))
        assert outlet.data() == wanted

    def complete(self, outlet: Outlet, count: int) -> None:
        """Wait until `outlet` has got `count` messages."""
        eventually(lambda: len(outlet.got) >= count, self.patience, f"{count} messages arrive")

    def settled(self, node: Node) -> None:
        """Wait until all that was published before has been delivered: by one more message."""
        outlet = node.subscribe("stix2/")
        marker = indicator_message()
        node.publish(marker)
        eventually(lambda: marker.data in outlet.data(), self.patience)
        node.unsubscribe("stix2/", outlet)

    # Who gets what.

    def test_every_matching_outlet_gets_every_message_once_in_order(self) -> None:
        node = self.start()
        outlets = [node.subscribe("stix2/indicator") for _ in range(3)]
        batch = indicators(self.many)
        for start in range(0, len(batch), 7):
            node.publish(*batch[start : start + 7])
        for outlet in outlets:
            self.arrived(outlet, *batch)

    def test_a_topic_matches_every_message_topic_that_begins_with_it(self) -> None:
        node = self.start()
        wanted = {
            "stix2": {INDICATOR, SIGHTING},
            "stix2/": {INDICATOR, SIGHTING},
            INDICATOR: {INDICATOR},
            SIGHTING: {SIGHTING},
            "stix2/indicator/more": set(),
            "x": set(),
        }
        outlets = {topic: node.subscribe(topic) for topic in wanted}
        batch = [indicator_message(), sighting_message(), indicator_message()]
        node.publish(*batch)
        self.settled(node)
        for topic, outlet in outlets.items():
            fitting = [message.data for message in batch if message.topic in wanted[topic]]
            # The last one is what `settled` published.
            assert outlet.data()[: len(fitting)] == fitting, topic
            assert len(outlet.got) <= len(fitting) + 1, topic

    def test_an_outlet_with_several_topics_gets_what_matches_any_of_them(self) -> None:
        node = self.start()
        outlet = node.subscribe(INDICATOR, SIGHTING)
        batch = [indicator_message(), sighting_message(), indicator_message(), sighting_message()]
        node.publish(*batch)
        self.arrived(outlet, *batch)

    def test_an_outlet_whose_topics_overlap_gets_each_message_once(self) -> None:
        node = self.start()
        outlet = node.subscribe("stix2", "stix2/", INDICATOR)
        batch = [indicator_message(), sighting_message(), indicator_message()]
        node.publish(*batch)
        self.settled(node)
        assert outlet.data()[:3] == [message.data for message in batch]
        assert len(outlet.got) == 4

    def test_snapshot_messages_travel_like_all_others(self) -> None:
        node = self.start()
        internal, stix = node.subscribe("threatbus/"), node.subscribe("stix2/")
        request = request_message(MessageType.INDICATOR, "some-id")
        answer = envelope_message("some-id", indicator())
        node.publish(request, answer)
        self.arrived(internal, request, answer)
        assert [message.topic for message in internal.got] == [request.topic, answer.topic]
        assert stix.got == []

    def test_messages_that_nobody_wants_are_no_trouble(self) -> None:
        node = self.start()
        node.publish(*indicators(100))
        outlet = node.subscribe("stix2")
        batch = indicators(3)
        node.publish(*batch)
        eventually(lambda: batch[-1].data in outlet.data(), self.patience)
        assert node.drain(self.patience) == 0

    # What a message is.

    def test_the_bytes_of_a_message_are_not_touched(self) -> None:
        node = self.start()
        outlet = node.subscribe("stix2")
        plain = indicator_message(name="bücher \u2028 \U0001f600", x_own={"deep": [1, 2.50, None]})
        spaced = Message(INDICATOR, plain.data.replace(b": ", b" :\r\n\t "))
        large = indicator_message(description="x" * 500_000)
        node.publish(plain, spaced, large)
        self.arrived(outlet, plain, spaced, large)

    def test_a_message_keeps_topic_and_id(self) -> None:
        node = self.start()
        outlet = node.subscribe("stix2")
        batch = [indicator_message(), sighting_message()]
        node.publish(*batch)
        self.arrived(outlet, *batch)
        expected = [(message.topic, message.id) for message in batch]
        assert [(message.topic, message.id) for message in outlet.got] == expected

    # While things change.

    def test_after_unsubscribing_nothing_comes_any_more(self) -> None:
        node = self.start()
        outlet, other = node.subscribe("stix2"), node.subscribe("stix2")
        first, second = indicators(2)
        node.publish(first)
        self.arrived(outlet, first)
        node.unsubscribe("stix2", outlet)
        node.publish(second)
        self.arrived(other, first, second)
        assert outlet.data() == [first.data]

    def test_unsubscribing_one_topic_leaves_the_others(self) -> None:
        node = self.start()
        outlet = node.subscribe(INDICATOR, SIGHTING)
        node.unsubscribe(INDICATOR, outlet)
        wanted = sighting_message()
        node.publish(indicator_message(), wanted)
        self.arrived(outlet, wanted)

    def test_unsubscribing_what_is_not_subscribed_is_no_error(self) -> None:
        node = self.start()
        node.unsubscribe("stix2", Outlet())
        outlet = node.subscribe("stix2")
        node.unsubscribe("stix2/sighting", outlet)
        message = indicator_message()
        node.publish(message)
        self.arrived(outlet, message)

    def test_a_steady_outlet_misses_nothing_while_others_come_and_go(self) -> None:
        node = self.start()
        steady = node.subscribe("stix2")
        batch = indicators(self.many)
        passers: list[Outlet] = []
        done = threading.Event()

        def publish() -> None:
            for message in batch:
                node.publish(message)
            done.set()

        def come_and_go() -> None:
            while not done.is_set():
                passers.append(node.subscribe("stix2"))
                time.sleep(0.001)
                node.unsubscribe("stix2", passers[-1])

        in_threads(publish, come_and_go, timeout=self.patience * 3)
        self.arrived(steady, *batch)
        numbers = {message.data: number for number, message in enumerate(batch)}
        for passer in passers:
            got = [numbers[data] for data in passer.data()]
            assert got == list(range(got[0], got[0] + len(got))) if got else True

    def test_each_of_several_publishers_is_heard_in_its_own_order(self) -> None:
        node = self.start()
        outlets = [node.subscribe("stix2"), node.subscribe(INDICATOR)]
        publishers = [indicators(self.many // 4) for _ in range(4)]

        def publish(batch: list[Message]) -> None:
            for start in range(0, len(batch), 5):
                node.publish(*batch[start : start + 5])

        in_threads(
            *[partial(publish, batch) for batch in publishers],
            timeout=self.patience * 3,
        )
        total = sum(map(len, publishers))
        for outlet in outlets:
            self.complete(outlet, total)
            got = outlet.data()
            assert max(Counter(got).values()) == 1
            for batch in publishers:
                mine = {message.data for message in batch}
                assert [data for data in got if data in mine] == [m.data for m in batch]

    def test_an_outlet_that_fails_costs_the_others_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        node = self.start()
        before = node.subscribe("stix2")
        node.subscribe("stix2", outlet=FailingOutlet())
        after = node.subscribe("stix2")
        batch = indicators(20)
        with caplog.at_level(logging.ERROR):
            for message in batch:
                node.publish(message)
            for outlet in (before, after):
                self.arrived(outlet, *batch)
        assert "the outlet has a bug" in caplog.text

    # The end.

    def test_draining_returns_when_everything_has_been_delivered(self) -> None:
        node = self.start()
        outlet = node.subscribe("stix2")
        batch = indicators(self.many)
        node.publish(*batch)
        node.intake.close(self.patience)
        assert node.drain(self.patience) == 0
        assert outlet.data() == [message.data for message in batch]

    def test_draining_an_idle_backbone_takes_no_time(self) -> None:
        node = self.start()
        began = time.monotonic()
        assert node.drain(self.patience) == 0
        assert time.monotonic() - began < self.stop_patience

    def test_stopping_is_quick_and_can_be_repeated(self) -> None:
        node = self.start()
        node.subscribe("stix2")
        node.publish(*indicators(10))
        began = time.monotonic()
        node.stop()
        assert time.monotonic() - began < self.stop_patience
        node.stop()

    def test_a_backbone_that_never_ran_can_be_stopped(self) -> None:
        self.start(running=False).stop()

    def test_stopping_leaves_no_thread_behind(self) -> None:
        before = set(threading.enumerate())
        node = self.start()
        node.subscribe("stix2")
        node.publish(*indicators(10))
        node.stop()
        for thread in set(threading.enumerate()) - before:
            finished(thread, self.stop_patience)

    def test_publishing_while_it_stops_harms_nobody(self) -> None:
        node = self.start()
        node.subscribe("stix2")

        def publish() -> None:
            for message in indicators(200):
                node.publish(message)

        in_threads(publish, node.stop)

    # Several nodes.

    def test_two_nodes_meet_only_if_that_is_what_the_backbone_is_for(self) -> None:
        here, there = self.start(), self.start()
        outlets = [here.subscribe("stix2"), there.subscribe("stix2")]
        batch = indicators(50)
        here.publish(*batch)
        self.arrived(outlets[0], *batch)
        if self.connects_nodes:
            self.arrived(outlets[1], *batch)
            return
        self.settled(there)
        assert len(outlets[1].got) == 1

    def test_a_node_that_was_down_gets_what_others_published_meanwhile(self) -> None:
        if not (self.connects_nodes and self.persists):
            pytest.skip("this backbone keeps nothing for nodes that are down")
        here, there = self.start(), self.start()
        there.subscribe("stix2")
        there.stop()
        batch = indicators(50)
        here.publish(*batch)
        back = self.start(2, running=False)
        outlet = back.subscribe("stix2")
        back.run()
        self.arrived(outlet, *batch)
