"""A bus with a Zeek endpoint, and Zeeks of both kinds on both transports."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from helpers.buses import Buses, OpenApp
from helpers.documents import encode
from helpers.services import program
from helpers.waiting import eventually
from helpers.websocket_zeek import WebSocketZeek
from helpers.zeeks import BrokerZeek, OldScript, OurScript, broker_module, subscribed

import threatbus
from testbed.ports import free_port
from threatbus.messages import INDICATOR, Message
from threatbus.queues import MessageQueue


class ZeekBus:
    """A bus with the Zeek plugin, and an app `watcher` that sees what Zeeks report."""

    def __init__(self, bus: threatbus.ThreatBus, app: OpenApp, port: int) -> None:
        self.bus = bus
        self.port = port
        self.app = app
        self._sightings: MessageQueue = app.services.outq("watcher")
        app.subscribe("stix2/sighting", self._sightings)
        self.seen: list[dict[str, Any]] = []

    def publish(self, *indicators: dict[str, Any]) -> None:
        """Publish indicators, in order."""
        self.bus.intake.put_many([Message(INDICATOR, encode(each)) for each in indicators])

    def sightings(self, count: int) -> list[dict[str, Any]]:
        """Wait for `count` sightings and give all so far."""

        def enough() -> bool:
            self.seen += [json.loads(each.data) for each in self._sightings.get_many(1000)]
            return len(self.seen) >= count

        eventually(enough, what=f"{count} sightings")
        return self.seen

    def rejected(self, text: str) -> int:
        """Wait until something was rejected with a reason that holds `text`; give how often."""
        rejected = self.bus.rejects
        return eventually(
            lambda: sum(n for (_, reason), n in rejected.counts.items() if text in reason),
            what=f"a rejection: {text}",
        )

    def subscribers(self) -> list[str]:
        """Give the names of the Zeeks that are subscribed."""
        return [name for name in self.bus.stats()["subscribers"] if name != "watcher"]


class Zeeks:
    """Makes buses with a Zeek endpoint, and Zeeks; closes the Zeeks."""

    def __init__(self, start_bus: Buses, app: OpenApp) -> None:
        self._start_bus = start_bus
        self._app = app
        self._zeeks: list[BrokerZeek | WebSocketZeek] = []

    def bus(
        self, port: int | None = None, core: dict[str, Any] | None = None, **keys: Any
    ) -> ZeekBus:
        """Start a bus; `keys` are those of its section, `core` what stands at the top level."""
        port = port or free_port()
        if keys.get("broker", True):
            broker_module()
        section = {"port": port, **keys}
        bus = self._start_bus(apps={"zeek": section, "open": None}, **(core or {}))
        return ZeekBus(bus, self._app, port)

    def old(self, bus: ZeekBus, **options: Any) -> BrokerZeek:
        """Start a Zeek with the script of 2022.5.16, and wait until it is subscribed."""
        return subscribed(self.starting(bus, partial(OldScript, **options)))

    def ours(self, bus: ZeekBus, tls: dict[str, str] | None = None, **options: Any) -> BrokerZeek:
        """Start a Zeek with our script, and wait until it is subscribed."""
        return subscribed(self.starting(bus, partial(OurScript, **options), tls))

    def starting(
        self, bus: ZeekBus, script: Callable[..., Any], tls: dict[str, str] | None = None
    ) -> BrokerZeek:
        """Start a Zeek that connects to a bus, which need not be there."""
        zeek = BrokerZeek(bus.port, script, tls)
        self._zeeks.append(zeek)
        return zeek

    def listening(self, port: int, script: Callable[..., Any], **options: Any) -> WebSocketZeek:
        """Start a Zeek that waits for the bus to connect."""
        zeek = WebSocketZeek(port, script, **options)
        self._zeeks.append(zeek)
        return zeek

    def close(self) -> None:
        """Stop all Zeeks."""
        for zeek in self._zeeks:
            zeek.close()


def server_certificate(directory: Path) -> tuple[ssl.SSLContext, str]:
    """Make a certificate for 127.0.0.1; give a server's context and the file to check it with."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, str(certificate)
