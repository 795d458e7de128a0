"""Hooks of the Zeek app plugin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

import threatbus
from threatbus.doctor import Check
from threatbus.errors import ConfigError, InvalidConfig
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.services import Services
from threatbus_zeek.broker_transport import BrokerTransport
from threatbus_zeek.config import ZeekConfig
from threatbus_zeek.link import Link
from threatbus_zeek.transport import Transport
from threatbus_zeek.websocket_transport import WebSocketTransport


class ZeekPlugin:
    """Gives Zeeks indicators and takes their sightings, over Broker and over WebSocket."""

    def __init__(self) -> None:
        self._links: list[Link] = []

    @threatbus.app
    def config_schema(self) -> type[msgspec.Struct]:
        """Give the schema of the section."""
        return ZeekConfig

    @threatbus.app
    def run(
        self,
        config: Any,  # noqa: ARG002
        logging: Any,  # noqa: ARG002
        inq: Intake,
        subscribe_callback: SubscribeCallback,
        unsubscribe_callback: UnsubscribeCallback,
        services: Services,
    ) -> None:
        """Open every transport and serve it."""
        section = services.section
        settings = section if isinstance(section, ZeekConfig) else ZeekConfig()
        errors: list[ConfigError] = []
        report = services.report
        for transport in _transports(settings):
            transport.state = report.connection(transport.name.removeprefix("zeek "))
            link = Link(
                settings, services, inq, subscribe_callback, unsubscribe_callback, transport
            )
            report.worker(link)
            report.readers(link.manager.reader_states)
            try:
                link.start()
                self._links.append(link)
            except InvalidConfig as error:
                errors.extend(error.errors)
        report.gauge("peers", "Zeeks that are connected.", self._peers)
        report.counter(
            "unmapped_indicators",
            "Indicators without a counterpart in Zeek, once per subscription.",
            lambda: sum(link.manager.unmapped for link in self._links),
        )
        if errors:
            self.stop()
            raise InvalidConfig(errors)

    @threatbus.app
    def stop_intake(self) -> None:
        """Take the sightings that have come so far, then no more."""
        for link in self._links:
            link.stop_intake()

    @threatbus.app
    def drain(self, deadline: float) -> int:
        """Deliver what waits to the Zeeks that take it."""
        return sum(link.drain(deadline) for link in self._links)

    @threatbus.app
    def stop(self) -> None:
        """Close every transport."""
        for link in self._links:
            link.end()
        self._links.clear()

    @threatbus.app
    def diagnose(self, section: msgspec.Struct | None, bus_pid: int | None) -> Iterable[Check]:
        """Give the checks of `threatbus doctor`."""
        from threatbus_zeek.doctor import checks  # noqa: PLC0415 (the bus needs it not)

        settings = section if isinstance(section, ZeekConfig) else ZeekConfig()
        return checks(settings, bus_pid)

    def _peers(self) -> int:
        return sum(link.manager.peers for link in self._links)


def _transports(settings: ZeekConfig) -> Iterator[Transport]:
    if settings.broker:
        yield BrokerTransport(settings)
    for url in dict.fromkeys(settings.websockets):
        yield WebSocketTransport(url, settings)
