"""A bus from end to end: who gets what, and what it says of itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from helpers.buses import Buses, OpenApp, TestPlugins
from helpers.documents import (
    id_of,
    indicator,
    indicator_message,
    indicators,
    sighting_message,
    stix_object,
)
from helpers.waiting import SOON, eventually, in_threads

import threatbus
from threatbus.errors import InvalidConfig, Overflow, PluginError
from threatbus.messages import Message

APPS = {"open": None}


class OtherApp(OpenApp):
    """A second app of the same bus, or one of another bus."""


def test_a_message_goes_from_app_to_app(start_bus: Buses, open_app: OpenApp) -> None:
    start_bus(APPS)
    outq = open_app.services.outq("somebody")
    open_app.subscribe("stix2", outq)
    message = indicator_message()
    open_app.inq.put_many([message])
    assert outq.get_many(10) == [message]


def test_overlapping_topics_give_one_copy_and_end_one_by_one(
    start_bus: Buses, open_app: OpenApp
) -> None:
    start_bus(APPS)
    outq = open_app.services.outq("somebody")
    open_app.subscribe(["stix2", "stix2/indicator"], outq)
    open_app.subscribe("stix2/", outq)
    batch = [indicator_message(), sighting_message()]
    open_app.inq.put_many(batch)
    assert outq.get_many(10) == batch
    open_app.unsubscribe(["stix2", "stix2/"], outq)
    batch = [indicator_message(), sighting_message()]
    open_app.inq.put_many(batch)
    assert outq.get_many(10) == batch[:1]
    open_app.unsubscribe("stix2/indicator", outq)
    assert outq.closed, "with its last topic"


@pytest.mark.parametrize("topic", ["", "s", "stix2"])
def test_short_topics_match_stix_messages(topic: str, start_bus: Buses, open_app: OpenApp) -> None:
    start_bus(APPS)
    outq = open_app.services.outq("somebody")
    open_app.subscribe(topic, outq)
    open_app.inq.put_many(indicators(2))
    assert outq.qsize() == 2
    open_app.unsubscribe(topic, outq)
    open_app.inq.put_many(indicators(2))
    assert outq.closed


@pytest.mark.parametrize(
    "topic", ["", "t", "threat", "threatbus", "threatbus/", "threatbus/snapshotenvelope"]
)
def test_nobody_reads_the_messages_that_the_bus_keeps_to_itself(
    topic: str, start_bus: Buses, open_app: OpenApp
) -> None:
    start_bus(APPS)
    outq = open_app.services.outq("curious")
    open_app.subscribe(topic, outq)
    envelope = threatbus.data.SnapshotEnvelope(
        threatbus.data.MessageType.INDICATOR, "some-id", stix_object(indicator())
    )
    open_app.inq.put(envelope)
    assert outq.empty()


def test_a_queue_that_is_closed_cannot_subscribe(start_bus: Buses, open_app: OpenApp) -> None:
    start_bus(APPS)
    outq = open_app.services.outq("somebody")
    outq.close()
    with pytest.raises(Overflow, match="somebody is closed"):
        open_app.subscribe("stix2", outq)


def test_a_queue_may_lose_its_topics_and_come_back_as_a_new_one(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS)
    for number in range(20):
        outq = open_app.services.outq(f"somebody {number}")
        open_app.subscribe("stix2", outq)
        open_app.inq.put_many(indicators(1))
        assert outq.qsize() == 1
        open_app.unsubscribe("stix2", outq)
        open_app.unsubscribe("stix2", outq)
    assert bus.stats()["subscribers"] == {}


def test_several_publishers_and_subscribers_that_come_and_go(
    start_bus: Buses, open_app: OpenApp
) -> None:
    start_bus(APPS)
    steady = open_app.services.outq("steady")
    open_app.subscribe("stix2", steady)
    batches = [indicators(300) for _ in range(3)]

    def publish(batch: list[Message]) -> None:
        for message in batch:
            open_app.inq.put_many([message])

    def come_and_go() -> None:
        for _ in range(100):
            outq = open_app.services.outq("passer")
            open_app.subscribe("stix2", outq)
            open_app.unsubscribe("stix2", outq)

    in_threads(*[partial(publish, batch) for batch in batches], come_and_go)
    got = steady.get_many(10_000)
    for batch in batches:
        ids = {message.id for message in batch}
        assert [message for message in got if message.id in ids] == batch


def test_two_buses_in_one_process_do_not_meet(start_bus: Buses, plugins: TestPlugins) -> None:
    apps = {"here": OpenApp(), "there": OtherApp()}
    for name, app in apps.items():
        plugins.app(name, app)
    buses = [start_bus({name: None}) for name in apps]
    outqs = {}
    for name, app in apps.items():
        outqs[name] = app.services.outq(name)
        app.subscribe("stix2", outqs[name])
    apps["here"].inq.put_many(indicators(3))
    apps["there"].inq.put(stix_object(indicator()))
    assert {name: outq.qsize() for name, outq in outqs.items()} == {"here": 3, "there": 1}
    buses[0].stop()
    apps["there"].inq.put_many(indicators(1))
    assert outqs["there"].qsize() == 2
    assert [bus.stats()["accepted"] for bus in buses] == [3, 2]


def test_stats_tell_what_is_where(start_bus: Buses, open_app: OpenApp) -> None:
    bus = start_bus(APPS)
    for _ in range(2):
        outq = open_app.services.outq("twin")
        open_app.subscribe("stix2", outq)
    open_app.inq.put_many(indicators(3))
    open_app.inq.put(None)
    stats = bus.stats()
    assert stats["accepted"] == 3
    assert stats["inq"]["inmem"]["put"] == 3
    assert list(stats["subscribers"]) == ["twin", "twin (2)"]
    assert stats["subscribers"]["twin"]["messages"] == 3
    assert sum(stats["rejected"].values()) == 1
    assert stats["lost_parts"] == []
    assert bus.running
    bus.stop()
    assert not bus.running


class BrokenBackbone:
    @threatbus.backbone
    def run(self) -> None:
        raise OSError("no broker")


def test_a_plugin_that_does_not_start_is_named_and_the_bus_goes_on(
    start_bus: Buses,
    plugins: TestPlugins,
    open_app: OpenApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        @threatbus.app
        def run(self) -> None:
            raise OSError("port in use")

    plugins.app("broken", Broken)
    plugins.backbone("brokenbone", BrokenBackbone)
    bus = start_bus({"broken": None, "open": None}, {"brokenbone": None, "inmem": None})
    assert bus.lost_parts == ["brokenbone", "broken"]
    assert "port in use" in caplog.text
    assert "running WITHOUT plugin broken, see above" in caplog.text
    outq = open_app.services.outq("somebody")
    open_app.subscribe("stix2", outq)
    message = indicator_message()
    open_app.inq.put_many([message])
    assert [id_of(each) for each in outq.get_many(10)] == [id_of(message)]
    assert open_app.inq.empty(), "nothing waits for the backbone that does not run"


def test_without_any_backbone_that_runs_the_start_fails(
    start_bus: Buses, plugins: TestPlugins, open_app: OpenApp
) -> None:
    plugins.backbone("brokenbone", BrokenBackbone)
    with pytest.raises(PluginError, match="no backbone runs"):
        start_bus(APPS, {"brokenbone": None})
    assert open_app.calls == []


def test_a_typo_in_a_hook_stops_the_start_with_what_was_meant(
    start_bus: Buses, plugins: TestPlugins
) -> None:
    class Typo:
        @threatbus.app
        def snapshots(self) -> None:
            raise AssertionError

    plugins.app("typo", Typo)
    meant = r"snapshots\(\) is no hook.*did you mean snapshot\(\)"
    with pytest.raises(InvalidConfig, match=rf"plugins\.apps\.typo: .*{meant}"):
        start_bus({"typo": None})


def test_a_worker_of_a_plugin_that_raises_is_logged_and_begins_again(
    start_bus: Buses, plugins: TestPlugins, caplog: pytest.LogCaptureFixture
) -> None:
    class Worker(threatbus.StoppableWorker):
        runs = 0

        def run(self) -> None:
            type(self).runs += 1
            if self.runs < 3:
                raise RuntimeError("the peer sent nonsense")
            self._stop_asked.wait()

    class App:
        def __init__(self) -> None:
            self.worker = Worker(name="the reader")

        @threatbus.app
        def run(self) -> None:
            self.worker.start()

        @threatbus.app
        def stop(self) -> None:
            self.worker.stop()
            self.worker.join()

    plugins.app("mine", App)
    bus = start_bus({"mine": None})
    eventually(lambda: Worker.runs == 3)
    assert "worker the reader failed (2 so far) and is started again in" in caplog.text
    assert "RuntimeError: the peer sent nonsense" in caplog.text
    bus.stop()


def _bad_objects() -> list[Any]:
    import stix2  # noqa: PLC0415

    return [
        None,
        indicator(),
        "text",
        stix2.v20.Indicator(labels=["x"], pattern="[file:name = 'x']"),
        stix2.v21.Malware(name="malware", is_family=False),
    ]


def test_bad_objects_on_inq_are_kept_for_the_operator_and_cost_nobody_anything(
    start_bus: Buses, open_app: OpenApp
) -> None:
    bus = start_bus(APPS)
    outq = open_app.services.outq("somebody")
    open_app.subscribe("stix2", outq)
    for item in _bad_objects():
        open_app.inq.put(item)
    open_app.inq.put(stix_object(indicator(x_own="kept")))
    got: Any = outq.get(timeout=SOON)
    assert got["x_own"] == "kept"
    assert bus.rejects.total == len(_bad_objects())
    path = bus.rejects.path
    bus.stop()
    assert len(path.read_bytes().splitlines()) == len(_bad_objects())


def test_a_state_directory_that_cannot_be_written_is_no_reason_to_fail(
    start_bus: Buses, open_app: OpenApp, caplog: pytest.LogCaptureFixture
) -> None:
    bus = start_bus(APPS, state_directory="/proc/nowhere")
    open_app.inq.put(None)
    eventually(lambda: bus.stats()["rejected_not_kept"] == 1)
    assert "rejected messages not kept" in caplog.text
    bus.stop()
