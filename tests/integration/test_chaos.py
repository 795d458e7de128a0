"""The chaos suite on real parts: it sees what a bad relay does, and a quick fault holds."""

from __future__ import annotations

import random
import threading

import pytest
import zmq
from helpers.waiting import SOON

from chaos.room import Broker, Room
from chaos.scenario import Scenario, play
from chaos.subscribers import Flaps
from chaos.uptime import pass_hours
from chaos.visits import Share
from testbed.ports import free_port


class Relay(threading.Thread):
    """Between a bus and a SUB: drops every so manieth frame, or sends it twice.

    Started by its scenario; blocks in one poll, and ends within 50 ms of `stop`.
    """

    def __init__(self, pub: int, *, drops: int = 0, repeats: int = 0) -> None:
        super().__init__(name="relay", daemon=True)
        self.port = free_port()
        self._pub = pub
        self._drops = drops
        self._repeats = repeats
        self._stop_asked = threading.Event()

    def run(self) -> None:
        with (
            zmq.Context() as context,
            context.socket(zmq.XSUB) as bus,
            context.socket(zmq.XPUB) as app,
        ):
            bus.connect(f"tcp://127.0.0.1:{self._pub}")
            app.bind(f"tcp://127.0.0.1:{self.port}")
            poller = zmq.Poller()
            for each in (bus, app):
                each.setsockopt(zmq.LINGER, 0)
                poller.register(each, zmq.POLLIN)
            passed = 0
            while not self._stop_asked.is_set():
                ready = dict(poller.poll(50))
                if app in ready:
                    bus.send(app.recv())
                if bus in ready:
                    frame = bus.recv()
                    passed += 1
                    if not (self._drops and passed % self._drops == 0):
                        app.send(frame)
                    if self._repeats and passed % self._repeats == 0:
                        app.send(frame)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(SOON)


class BadRelay(Scenario):
    """A reader behind a relay that does what no bus may."""

    name = "bad-relay"
    fault = "a relay that drops or repeats"

    def __init__(self, *, drops: int = 0, repeats: int = 0) -> None:
        self._drops = drops
        self._repeats = repeats

    def run(self, room: Room) -> None:
        bus = room.bus()
        relay = Relay(bus.doors.pub, drops=self._drops, repeats=self._repeats)
        relay.start()
        room.stack.callback(relay.stop)
        room.raw_reader(bus, pub_port=relay.port)
        room.publisher(bus, rate=200)
        room.pause(0.5)
        room.settle(quiet=0.5)


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [({}, "held"), ({"drops": 10}, "BROKEN: lost"), ({"repeats": 10}, "BROKEN: repeated")],
    ids=["neither", "drops", "repeats"],
)
def test_the_verdict_is_what_the_relay_does(bad: dict[str, int], verdict: str) -> None:
    outcome = play(BadRelay(**bad), 1, 1.0, Broker())
    assert outcome.verdict.startswith(verdict), outcome
    assert bool(outcome.lost) == bool(bad.get("drops"))
    assert bool(outcome.duplicated) == bool(bad.get("repeats"))


def test_a_connection_that_is_cut_again_and_again_loses_nothing() -> None:
    outcome = play(Flaps(), 1, 0.2, Broker())
    assert outcome.held, outcome
    assert outcome.delivered == outcome.owed > 0


def test_an_hour_of_a_day_passes_with_all_its_visitors() -> None:
    share = Share(guests=6, heartbeats=5, rejected=50, unusual=2, scrapes=5, looks=2, reloads=1)
    (hour,) = pass_hours(1, 3000, share, random.Random(1))
    assert (hour.messages, hour.wrong, hour.failures) == (3000, 0, 0)
