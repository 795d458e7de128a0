"""Numbered messages: who publishes them, and who notes them down as they come."""

from __future__ import annotations

import json
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from chaos.ledger import Ledger, Number, Sheet
from testbed.ports import Doors
from threatbus.client import Endpoint, Subscriber
from threatbus.errors import ThreatBusError

#: Seconds between two looks at what is due.
TICK_SECS: Final = 0.005
#: Seconds after which a raw app asks whether its subscription stands.
HEARTBEAT_SECS: Final = 1.0
_DOMAIN: Final = ".example.com"


class _View(msgspec.Struct):
    name: str = ""


def domain_of(number: Number) -> str:
    """Give the domain that stands for a message."""
    return f"{number.publisher}-{number.number}{_DOMAIN}"


def number_of(data: bytes) -> Number:
    """Give the number of a document that came."""
    name = msgspec.json.decode(data, type=_View).name
    publisher, _, number = name.removesuffix(_DOMAIN).rpartition("-")
    return Number(publisher, int(number))


def indicator(number: Number) -> bytes:
    """Make the indicator with this number."""
    moment = "2026-11-24T08:15:30.123Z"
    document = {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid4()}",
        "created": moment,
        "modified": moment,
        "name": domain_of(number),
        "pattern": f"[domain-name:value = '{domain_of(number)}']",
        "pattern_type": "stix",
        "valid_from": moment,
    }
    return b"stix2/indicator " + json.dumps(document).encode()


def unusual(number: Number) -> bytes:
    """Make the same, but such that the border has to ask the STIX library."""
    topic, _, data = indicator(number).partition(b" ")
    document = json.loads(data)
    document["granular_markings"] = [{"lang": "en", "selectors": ["name"]}]
    return topic + b" " + json.dumps(document).encode()


class Publisher(threading.Thread):
    """Publishes numbered messages at a rate until stopped; its socket drops nothing.

    Connects to a bus, or binds (as MISP's publisher does) with ``bind``. It sends while its peer's
    subscription stands, that is while it is connected; `make` makes the frame of a number.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        address: str,
        *,
        rate: float,
        make: Callable[[Number], bytes] = indicator,
        bind: bool = False,
    ) -> None:
        super().__init__(name=f"publisher {name}", daemon=True)
        self._ledger = ledger
        self._label = name
        self._address = address
        self._rate = rate
        self._make = make
        self._bind = bind
        self._stop_asked = threading.Event()
        #: Set when somebody listens.
        self.connected = threading.Event()

    def run(self) -> None:
        """Publish what is due, every few milliseconds; ends when stopped and all has left."""
        with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.LINGER, 5000)
            (socket.bind if self._bind else socket.connect)(self._address)
            listens = False
            while not self._stop_asked.wait(TICK_SECS):
                while socket.poll(0):
                    listens = socket.recv()[:1] == b"\x01"
                    began, done = time.monotonic(), 0
                if not listens:
                    # What is sent to nobody, ZeroMQ drops.
                    continue
                self.connected.set()
                due = int((time.monotonic() - began) * self._rate)
                while done < due:
                    socket.send(self._make(self._ledger.sends(self._label)))
                    done += 1

    def stop(self) -> None:
        """Ask it to end; returns when it has."""
        self._stop_asked.set()
        self.join(10)


class Reader(threading.Thread, ABC):
    """Notes what comes for one subscription, on a sheet. It can be told not to read."""

    def __init__(self, sheet: Sheet) -> None:
        super().__init__(name=sheet.reader, daemon=True)
        self.sheet = sheet
        self._stop_asked = threading.Event()
        self._reading = threading.Event()
        self._reading.set()
        #: What ended it before its time.
        self.failure: BaseException | None = None
        #: How often it had to subscribe again.
        self.subscriptions = 0

    def pause(self) -> None:
        """Read nothing more."""
        self._reading.clear()

    def resume(self) -> None:
        """Read again."""
        self._reading.set()

    def stop(self) -> None:
        """Ask it to end; returns when it has."""
        self._stop_asked.set()
        self._reading.set()
        self.join(10)

    def run(self) -> None:
        """Read until stopped."""
        try:
            self.read()
        except Exception as error:  # noqa: BLE001 (the scenario shows it as its verdict)
            self.failure = error

    @abstractmethod
    def read(self) -> None:
        """Read until stopped; what it raises is kept."""


class ClientReader(Reader):
    """An app on our client library, which subscribes again by itself."""

    def __init__(self, sheet: Sheet, doors: Doors) -> None:
        super().__init__(sheet)
        endpoint = Endpoint(doors.host, doors.manage)
        self._subscriber = Subscriber(
            endpoint, ["stix2"], timeout=1.0, name=sheet.reader, on_change=self._on_change
        )
        self.start()

    def read(self) -> None:
        """Read until stopped."""
        with self._subscriber:
            while not self._stop_asked.is_set():
                self._reading.wait()
                for message in self._subscriber.receive(timeout=0.1):
                    self.sheet.note(number_of(message.data))

    def _on_change(self, what: str) -> None:
        if what.startswith("subscribed again"):
            self.subscriptions += 1


class RawReader(Reader):
    """An app as they were written for 2022.5.16: REQ, SUB, and a heartbeat.

    `pub_port` may be that of a proxy. It reads `high_water_mark` frames ahead.
    """

    def __init__(
        self, sheet: Sheet, doors: Doors, *, pub_port: int = 0, high_water_mark: int = 1000
    ) -> None:
        super().__init__(sheet)
        self._manage = doors.address("manage")
        self._pub = f"tcp://127.0.0.1:{pub_port}" if pub_port else doors.address("pub")
        self._high_water_mark = high_water_mark
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.p2p = str(self.ask(action="subscribe", topic="stix2", snapshot=0)["topic"])
        self.start()

    def ask(self, **request: object) -> dict[str, Any]:
        """Make one request; `ThreatBusError` without an answer in 5 s."""
        with self._context.socket(zmq.REQ) as req:
            req.setsockopt(zmq.LINGER, 0)
            req.setsockopt(zmq.RECONNECT_IVL, 20)
            req.connect(self._manage)
            req.send(json.dumps(request).encode())
            if not req.poll(5000):
                raise ThreatBusError(f"no answer to {request}")
            reply: dict[str, Any] = json.loads(req.recv())
            return reply

    def read(self) -> None:
        """Read until stopped."""
        heartbeat_at = time.monotonic() + HEARTBEAT_SECS
        with self._context, self._context.socket(zmq.SUB) as sub:
            sub.setsockopt(zmq.RCVHWM, self._high_water_mark)
            sub.setsockopt(zmq.RCVBUF, 65536)
            sub.setsockopt(zmq.LINGER, 0)
            sub.setsockopt(zmq.RECONNECT_IVL, 20)
            sub.connect(self._pub)
            sub.subscribe(self.p2p)
            while not self._stop_asked.is_set():
                self._reading.wait()
                if sub.poll(100):
                    self.sheet.note(number_of(sub.recv().partition(b" ")[2]))
                if time.monotonic() >= heartbeat_at:
                    heartbeat_at = time.monotonic() + HEARTBEAT_SECS
                    self._show_sign_of_life(sub)

    def _show_sign_of_life(self, sub: zmq.Socket[bytes]) -> None:
        if self.ask(action="heartbeat", topic=self.p2p)["status"] != "success":
            self.p2p = str(self.ask(action="subscribe", topic="stix2", snapshot=0)["topic"])
            sub.subscribe(self.p2p)
            self.subscriptions += 1
