"""What is seen of a bus: counted, timed, kept and told, without a bus."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from helpers.documents import (
    encode,
    envelope_message,
    id_of,
    indicator,
    indicator_message,
    indicators,
    sighting,
    sighting_message,
)
from helpers.waiting import Clock, eventually, in_threads

from threatbus.gate import Gate
from threatbus.intake import Intake
from threatbus.messages import INDICATOR, SIGHTING, Message
from threatbus.observe.counts import topics_of
from threatbus.observe.latency import BUCKETS, Arrivals, Histogram
from threatbus.observe.observer import OTHER_LABEL, Labels, Observer
from threatbus.observe.passages import Filter, Follower, messages_of, shown
from threatbus.observe.report import Connection, PluginReport, State
from threatbus.observe.ring import MAX_NAMED, Ring
from threatbus.observe.trace import OutqState, trace
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy, size_of
from threatbus.rejects import RejectStore
from threatbus.subscribers import Subscriber
from threatbus.workers import StoppableWorker


class Parts:
    """An intake of one plugin, an inq that delivers at once, and subscribers."""

    def __init__(self, tmp_path: Any, messages: int = 100, size: int = 1 << 20) -> None:
        self.observer = Observer(messages, size)
        self.ring = self.observer.ring
        self.record = self.observer.plugin("zmq", "app")
        rejects = RejectStore(tmp_path, 10, 1000)
        self.intake = Intake(Gate(), rejects).of_plugin(self.record)
        self.subscribers: list[Subscriber] = []
        inq = MessageQueue("inq")
        inq.consume(self._deliver)
        self.intake.attach(inq)

    def subscribe(self, name: str, **options: Any) -> MessageQueue:
        queue = MessageQueue(name, **options)
        outlet = self.record.subscribed(queue)
        self.subscribers.append(Subscriber(name, queue, several_backbones=False, outlet=outlet))
        return queue

    def trace(self, wanted: str) -> dict[str, Any]:
        states = {
            each.name: OutqState(each.queue.given, each.queue.qsize()) for each in self.subscribers
        }
        return trace(self.ring, wanted, states)

    def _deliver(self, batch: Any, _: int) -> None:
        for subscriber in self.subscribers:
            subscriber.put_many(batch)


@pytest.fixture
def parts(tmp_path: Any) -> Parts:
    return Parts(tmp_path)


# Counting


def test_a_batch_is_counted_by_topic() -> None:
    mixed = [indicator_message(), sighting_message(), indicator_message()]
    assert dict(topics_of(mixed)) == {INDICATOR: 2, SIGHTING: 1}
    assert topics_of(indicators(3)) == ((INDICATOR, 3),)


def test_what_a_plugin_puts_and_its_subscribers_get_is_counted(parts: Parts) -> None:
    parts.subscribe("one")
    parts.subscribe("two")
    parts.intake.put_many([*indicators(3), sighting_message()])
    assert parts.record.received.by_topic()[INDICATOR] == 3
    assert parts.record.received.by_topic()[SIGHTING] == 1
    assert parts.record.delivered()[INDICATOR] == 6


def test_totals_outlive_the_subscriber(parts: Parts) -> None:
    parts.subscribe("one", bounds=Bounds(2), policy=OverflowPolicy.DROP_OLDEST)
    parts.intake.put_many(indicators(3))
    (subscriber,) = parts.subscribers
    assert subscriber.outlet is not None
    subscriber.outlet.ended()
    subscriber.outlet.ended()
    assert parts.record.delivered()[INDICATOR] == 3
    assert parts.record.dropped_by_gone() == {"one": 1}


def test_a_topic_that_nobody_knows_counts_as_other(parts: Parts) -> None:
    parts.intake.put_many([Message(f"made/up/{number}", b"{}") for number in range(50)])
    assert parts.record.received.by_topic()["other"] == 50
    assert len(parts.record.received.by_topic()) == 5


def test_several_threads_that_put_lose_no_count(parts: Parts) -> None:
    def put() -> None:
        for _ in range(200):
            parts.intake.put_many(indicators(2))

    in_threads(*[put] * 4)
    assert parts.record.received.by_topic()[INDICATOR] == 1600 == parts.intake.accepted


def test_names_that_apps_give_themselves_cannot_fill_monitoring() -> None:
    labels = Labels(limit=3)
    given = [labels.of(f"app {number}") for number in range(10)]
    assert given == ["app 0", "app 1", "app 2", *[OTHER_LABEL] * 7]
    assert labels.of("app 1") == "app 1"
    assert len(Labels().of("x" * 1000)) == 64
    assert Labels().of("a\nb\x1b") == "a?b?"


# Timing


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a queue time every message that it follows."""
    monkeypatch.setattr("threatbus.queues.TIMING_SECS", 0.0)


def samples_of(parts: Parts) -> int:
    return parts.record.latency.read()[0][-1]


@pytest.mark.usefixtures("often")
def test_a_queue_times_one_message_after_the_other(parts: Parts) -> None:
    queue = parts.subscribe("one")
    for _ in range(3):
        parts.intake.put_many(indicators(5))
    eventually(lambda: queue.stats().lag_seconds > 0)
    assert samples_of(parts) == 0, "nothing was taken yet"
    queue.get_many(100)
    assert samples_of(parts) == 1
    assert queue.stats().lag_seconds == 0
    parts.intake.put_many(indicators(1))
    queue.get_many(1)
    assert samples_of(parts) == 2
    assert 0 < parts.record.latency.read()[1] < 60


@pytest.mark.usefixtures("often")
def test_a_message_is_timed_until_it_is_taken_itself(parts: Parts) -> None:
    queue = parts.subscribe("one")
    parts.intake.put_many(indicators(2))
    parts.intake.put_many(indicators(2))
    queue.get_many(1)
    assert samples_of(parts) == 1
    parts.intake.put_many(indicators(2))
    queue.get_many(3)
    assert samples_of(parts) == 1, "the next one that is timed came with the last batch"
    queue.get_many(1)
    assert samples_of(parts) == 2


def test_a_quick_queue_is_not_timed_over_and_over_and_its_lag_is_known_all_the_same(
    parts: Parts,
) -> None:
    queue = parts.subscribe("one")
    for _ in range(100):
        parts.intake.put_many(indicators(1))
        queue.get_many(1)
    assert 1 <= samples_of(parts) < 90
    parts.intake.put_many(indicators(1))
    eventually(lambda: queue.stats().lag_seconds > 0)


@pytest.mark.usefixtures("often")
def test_a_queue_that_lets_go_of_the_timed_message_times_another(parts: Parts) -> None:
    queue = parts.subscribe("one", bounds=Bounds(2), policy=OverflowPolicy.DROP_OLDEST)
    for _ in range(4):
        parts.intake.put_many(indicators(1))
    queue.get_many(2)
    before = samples_of(parts)
    parts.intake.put_many(indicators(1))
    queue.get_many(1)
    assert samples_of(parts) == before + 1


def test_arrivals_are_forgotten_bit_by_bit_and_never_all() -> None:
    arrivals = Arrivals(limit=64)
    for number in range(10_000):
        arrivals.note(1 + 10 * number, float(number))
    assert arrivals.time_of(1 + 10 * 9_999) == 9_999
    assert arrivals.time_of(10 * 9_999) == 9_998, "of the batch that it is in"
    old = arrivals.time_of(10 * 5_000)
    assert old is not None
    assert 0 <= old <= 5_000
    assert len(arrivals._ids) <= 64
    assert arrivals.time_of("of another bus") is None
    assert arrivals.time_of(0) is None


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.003, 0.003, 9999.0):
        histogram.observe(seconds)
    counts, total = histogram.read()
    assert counts[0] == 1
    assert counts[BUCKETS.index(0.005)] == 3
    assert counts[-1] == 4
    assert counts[-2] == 3
    assert total == pytest.approx(9999.006)


# The ring


def test_the_ring_holds_no_more_messages_and_bytes_than_it_may(tmp_path: Any) -> None:
    few = Parts(tmp_path, messages=10)
    for _ in range(50):
        few.intake.put_many(indicators(3))
    assert few.ring.messages == 9
    assert few.ring.recorded == 150
    small = Parts(tmp_path, size=10_000)
    for _ in range(50):
        small.intake.put_many(indicators(2))
        assert 0 < small.ring.bytes <= 10_000
    small.intake.put_many([indicator_message(description="x" * 20_000)])
    assert small.ring.messages == 0, "what is larger than all of it is not kept"


def test_the_ring_remembers_some_subscribers_by_name_and_counts_the_others(parts: Parts) -> None:
    for number in range(MAX_NAMED + 7):
        parts.subscribe(f"app {number}")
    parts.intake.put_many(indicators(1))
    (passed,) = messages_of(parts.ring.passages())
    assert len(passed.to) == MAX_NAMED
    assert passed.more == 7
    parts.intake.put_many(indicators(1))
    assert parts.ring.bytes > MAX_NAMED * 100, "what they take is counted with the next batch"


def test_a_snapshot_does_not_push_everything_else_out(parts: Parts) -> None:
    parts.intake.put_many(indicators(1))
    for _ in range(200):
        parts.intake.put_many([envelope_message("id", indicator())])
    assert parts.ring.recorded == 1


def test_parts_of_a_batch_are_put_together_again(parts: Parts) -> None:
    """As when a batch is parted by topic, or comes back from a broker."""
    mixed = [*indicators(2), sighting_message()]
    parts.intake.put_many(mixed)
    parts.ring.delivered(mixed[:2], "one", 2)
    parts.ring.delivered(mixed[2:], "two", 9)
    first, second, third = messages_of(parts.ring.passages())
    assert (first.plugin, first.to) == ("zmq", [("one", 1)])
    assert second.to == [("one", 2)]
    assert third.to == [("two", 9)]


def test_a_message_of_another_bus_is_said_to_be(parts: Parts) -> None:
    message = indicator_message()
    message.id = "node-7"
    parts.ring.delivered([message], "one", 1)
    (passed,) = messages_of(parts.ring.passages())
    assert shown(passed)["plugin"] == "another bus"


# Following


def follow(ring: Ring, **wanted: str) -> Follower:
    return Follower(ring, Filter(**wanted))


def test_a_follower_gets_what_comes_once(parts: Parts) -> None:
    parts.subscribe("one")
    parts.intake.put_many(indicators(2))
    follower = follow(parts.ring)
    assert follower.news(10) == ([], 0)
    parts.intake.put_many(indicators(3))
    news, skipped = follower.news(10)
    assert [each["name"] for each in news] == ["0", "1", "2"]
    assert news[0]["to"] == ["one"]
    assert skipped == 0
    assert follower.news(10) == ([], 0)


def test_a_follower_that_is_behind_is_told_how_many_it_missed(tmp_path: Any) -> None:
    parts = Parts(tmp_path, messages=5)
    follower = follow(parts.ring)
    for _ in range(10):
        parts.intake.put_many(indicators(2))
    news, skipped = follower.news(3)
    assert len(news) == 3
    assert skipped == 17


def test_a_follower_gets_only_what_it_wants(parts: Parts) -> None:
    wanted = indicator("[domain-name:value = 'Evil.Example']", name="ümlaut")
    for each in (indicator(), wanted):
        parts.intake.put_many([Message(INDICATOR, encode(each))])
    parts.intake.put_many([sighting_message()])

    def found(**filters: str) -> list[str]:
        return [each["id"] for each in follow(parts.ring, **filters).backlog(10)]

    assert found(text="evil.EXAMPLE") == [wanted["id"]]
    assert found(text="ümlaut") == [wanted["id"]], "which is escaped in the document"
    assert len(found(kind="sighting")) == 1
    assert len(found(topic="stix2/ind")) == 2
    assert len(found()) == 3
    assert len(follow(parts.ring).backlog(2)) == 2


def test_a_document_of_unexpected_types_is_shown_all_the_same(parts: Parts) -> None:
    odd = {"id": 7, "pattern": ["a"], "name": {"b": 1}, "count": "x", "sighting_of_ref": 3}
    parts.intake.put_many([Message(SIGHTING, encode(odd)), Message(INDICATOR, b"\xff")])
    first, second = follow(parts.ring).backlog(10)
    assert first["id"] == "7"
    assert second["id"] == ""


# Tracing


def test_a_trace_says_from_where_when_and_to_whom(parts: Parts) -> None:
    reading, sleeping = parts.subscribe("reading"), parts.subscribe("sleeping")
    known = indicator("[domain-name:value = 'evil.example']", x_threatbus_source="MISP 1")
    parts.intake.put_many([indicator_message(), Message(INDICATOR, encode(known))])
    reading.get_many(10)
    sleeping.get_many(1)
    for wanted in ("evil.example", "EVIL.example", known["id"]):
        (found,) = parts.trace(wanted)["objects"]
        (entry,) = found["messages"]
        assert found["id"] == known["id"]
        assert not found["withdrawn"]
        assert (entry["plugin"], entry["source"]) == ("zmq", "MISP 1")
        assert entry["to"] == [
            {"subscriber": "reading", "state": "taken"},
            {"subscriber": "sleeping", "state": "waiting"},
        ]


def test_a_trace_says_that_an_indicator_was_withdrawn_and_by_whom_it_was_seen(parts: Parts) -> None:
    known = indicator("[ipv4-addr:value = '198.51.100.7']")
    for topic, document in (
        (INDICATOR, known),
        (SIGHTING, sighting(known["id"], x_threatbus_indicator_value="198.51.100.7")),
        (SIGHTING, sighting(known["id"])),
        (INDICATOR, {**known, "revoked": True}),
    ):
        parts.intake.put_many([Message(topic, encode(document))])
    (found,) = parts.trace("198.51.100.7")["objects"]
    assert found["withdrawn"]
    assert found["withdrawn_at"] == found["messages"][-1]["time"]
    assert found["sightings"] == 2
    assert [each["operation"] for each in found["messages"]] == ["ADD", "", "", "REMOVE"]
    parts.intake.put_many([Message(INDICATOR, encode(known))])
    assert not parts.trace(known["id"])["objects"][0]["withdrawn"], "it is back"


def test_a_value_is_found_as_a_whole_only(parts: Parts) -> None:
    parts.intake.put_many([Message(INDICATOR, encode(indicator("[a:b = 'evil.example.com']")))])
    assert parts.trace("evil.example")["objects"] == []
    assert parts.trace("evil.example.com")["objects"]


def test_a_value_with_quotes_is_found(parts: Parts) -> None:
    pattern = r"[file:name = 'it\'s C:\\x']"
    parts.intake.put_many([Message(INDICATOR, encode(indicator(pattern)))])
    assert parts.trace(r"it's C:\x")["objects"]


def test_what_is_not_found_is_said_to_be_with_what_was_looked_through(tmp_path: Any) -> None:
    parts = Parts(tmp_path, messages=2)
    assert not parts.trace("x")["looked_through"]["has_let_go"]
    message = indicator_message()
    parts.intake.put_many([message])
    for _ in range(3):
        parts.intake.put_many(indicators(1))
    answer = parts.trace(id_of(message))
    assert answer["objects"] == []
    assert answer["looked_through"]["messages"] == 2
    assert answer["looked_through"]["has_let_go"]


def test_an_answer_is_bounded(parts: Parts) -> None:
    known = indicator("[a:b = 'c']")
    for _ in range(100):
        parts.intake.put_many([Message(INDICATOR, encode({**indicator("[a:b = 'c']")}))])
    assert len(parts.trace("c")["objects"]) == 20
    assert parts.trace("c")["more_objects"] == 80
    assert parts.trace(known["id"])["objects"] == []


def test_a_subscriber_that_has_gone_is_said_to_have(parts: Parts) -> None:
    parts.subscribe("one")
    message = indicator_message()
    parts.intake.put_many([message])
    parts.subscribers.clear()
    (found,) = parts.trace(id_of(message))["objects"]
    assert found["messages"][0]["to"] == [{"subscriber": "one", "state": "unsubscribed since"}]


# What plugins say


def test_a_connection_that_comes_back_is_counted() -> None:
    clock = Clock()
    connection = Connection("broker", clock)
    assert connection.read().state is State.IDLE
    connection.down("connecting")
    connection.up("connected")
    connection.up("connected")
    assert connection.read().reconnects == 0, "the first time is no reconnect"
    clock.now += 5
    assert connection.read().since_seconds == 5
    connection.down("lost")
    assert connection.read().detail == "lost"
    assert connection.read().since_seconds == 0
    connection.up()
    assert connection.read().reconnects == 1


def test_a_password_in_an_address_is_not_shown() -> None:
    report = PluginReport("zeek")
    connection = report.connection("websocket wss://user:secret@zeek.example/v1?key=secret")
    connection.down("trying wss://user:secret@zeek.example/v1?key=secret again; is it there? yes")
    assert "secret" not in str(report.connections())
    assert connection.read().detail == "trying wss://zeek.example/v1 again; is it there? yes"


def test_a_number_that_cannot_be_read_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    report = PluginReport("misp")
    report.gauge("broken", "Fails.", lambda: 1 / 0)
    report.counter("fine", "Works.", lambda: 7)
    assert [(each.name, each.value) for each in report.numbers()] == [("fine", 7)]
    assert "plugin misp: broken cannot be read" in caplog.text


def test_a_name_that_is_no_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="is no name of a metric"):
        PluginReport().gauge("Not a name", "", lambda: 0)


def test_restarts_of_all_workers_are_added_up() -> None:
    ended = threading.Event()

    class Failing(StoppableWorker):
        def run(self) -> None:
            if self.failures < 2:
                raise RuntimeError("again")
            ended.set()

    report = PluginReport()
    worker = Failing()
    report.worker(worker)
    worker.start()
    assert ended.wait(10)
    assert report.restarts == 2


def test_the_size_that_the_ring_counts_is_that_of_the_queues() -> None:
    ring = Ring(10, 1 << 20)
    batch = indicators(2)
    ring.delivered(batch, "one", 2)
    assert ring.bytes > size_of(batch)
