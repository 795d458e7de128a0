"""What comes to a bus beside its traffic: subscribers, bad input, a scraper, an operator."""

from __future__ import annotations

import http.client
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Self

import zmq

from chaos.ledger import Number
from chaos.load import indicator, unusual
from chaos.publishers import bad_documents
from testbed.bus import BusProcess
from threatbus.client import App, Endpoint
from threatbus.data import MessageType, SnapshotRequest
from threatbus.errors import ThreatBusError

#: What the names of guests begin with.
_GUEST: Final = "guest"
_TOKEN: Final = "a-token-for-a-day-of-visits"
#: What Prometheus, the page and a probe ask for.
_PATHS: Final = ("/metrics", "/api/status", "/api/history", "/api/rejected", "/readyz")
#: Objects that answer a snapshot request.
_HISTORY: Final = 50
#: Milliseconds that a guest waits for messages, and that a request waits for its answer.
_GUEST_MS: Final = 20
_ANSWER_MS: Final = 20_000
#: Different frames of bad input.
_BAD: Final = 500


@dataclass(frozen=True)
class Share:
    """What one hour brings."""

    guests: int = 100
    heartbeats: int = 720
    rejected: int = 7200
    unusual: int = 100
    scrapes: int = 240
    looks: int = 60
    reloads: int = 1


def web_section(port: int) -> dict[str, object]:
    """Give the section of the web plugin that lets visitors in at `port`."""
    return {"port": port, "token": _TOKEN}


class Visitors:
    """All visitors of one bus, whose web endpoint is at `web_port`; for a ``with`` block."""

    def __init__(self, bus: BusProcess, web_port: int, dice: random.Random) -> None:
        self._bus = bus
        self._web_port = web_port
        self._dice = dice
        self._bad = bad_documents(dice)[:_BAD]
        # Keeps what has to be undone.
        self._stack = ExitStack()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._publisher = self._context.socket(zmq.XPUB)

    def __enter__(self) -> Self:
        doors = self._bus.doors
        self._stack.enter_context(self._context)
        self._stack.enter_context(self._publisher)
        self._publisher.setsockopt(zmq.XPUB_NODROP, 1)
        self._publisher.setsockopt(zmq.LINGER, 0)
        self._publisher.connect(doors.address("sub"))
        self._publisher.recv()  # the subscription of the bus has arrived
        endpoint = Endpoint(doors.host, doors.manage)
        # One that has nothing to receive, but a history.
        self._stack.enter_context(App(endpoint, ["stix2/none"], answer=_history, name="history"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def come(self, share: Share) -> None:
        """Do all that one hour brings, in a random order."""
        kinds: list[tuple[int, Callable[[], object]]] = [
            (share.guests, self._guest),
            (share.heartbeats, lambda: self._ask(action="heartbeat", topic="none")),
            (share.rejected, lambda: self._publisher.send(self._dice.choice(self._bad))),
            (share.unusual, self._publish_unusual),
            (share.scrapes, self._scrape),
            (share.looks, self._bus.status),
            (share.reloads, lambda: self._bus.signal(signal.SIGHUP)),
        ]
        steps = [step for count, step in kinds for _ in range(count)]
        self._dice.shuffle(steps)
        for step in steps:
            step()

    def have_left(self) -> bool:
        """Say whether the bus has forgotten all guests."""
        return not any(name.startswith(_GUEST) for name in self._bus.status()["subscribers"])

    def _guest(self) -> None:
        """Subscribe, receive a little, and leave; half of them without a word.

        The latter want sightings, of which there are few: in the second until they are forgotten
        there is as much of everything as in minutes of a real day, and it would wait for them.
        """
        says_goodbye = self._dice.random() < 0.5
        p2p = self._ask(
            action="subscribe",
            topic=self._dice.choice(("stix2", "stix2/indicator"))
            if says_goodbye
            else "stix2/sighting",
            snapshot=self._dice.choice((0, 0, 0, 7)),
            name=f"{_GUEST} {self._dice.getrandbits(32):x}",
        )["topic"]
        with self._context.socket(zmq.SUB) as sub:
            sub.setsockopt(zmq.LINGER, 0)
            sub.connect(self._bus.doors.address("pub"))
            sub.subscribe(str(p2p))
            while sub.poll(_GUEST_MS) and self._dice.random() < 0.98:
                sub.recv()
            self._ask(action="heartbeat", topic=p2p)
            if says_goodbye:
                self._ask(action="unsubscribe", topic=p2p)

    def _publish_unusual(self) -> None:
        self._publisher.send(unusual(Number("visitor", self._dice.getrandbits(32))))

    def _scrape(self) -> None:
        scraper = http.client.HTTPConnection("127.0.0.1", self._web_port, timeout=_ANSWER_MS / 1000)
        try:
            path = self._dice.choice(_PATHS)
            scraper.request("GET", path, headers={"Authorization": f"Bearer {_TOKEN}"})
            answer = scraper.getresponse()
            answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise ThreatBusError(f"{path} answers {answer.status}")
        finally:
            scraper.close()

    def _ask(self, **request: object) -> dict[str, Any]:
        with self._context.socket(zmq.REQ) as req:
            req.setsockopt(zmq.LINGER, 0)
            req.connect(self._bus.doors.address("manage"))
            req.send(json.dumps(request).encode())
            if not req.poll(_ANSWER_MS):
                raise ThreatBusError(f"no answer to {request}")
            reply: dict[str, Any] = json.loads(req.recv())
            return reply


def _history(request: SnapshotRequest) -> Iterator[bytes]:
    if request.snapshot_type is MessageType.INDICATOR:
        for number in range(_HISTORY):
            yield indicator(Number("history", number)).partition(b" ")[2]
