"""Hooks of the web plugin."""

from __future__ import annotations

import logging as std_logging
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

import threatbus
from threatbus.config import FREE
from threatbus.doctor import Check
from threatbus.errors import ConfigError, InvalidConfig, PluginError
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.protected import is_loopback
from threatbus.services import Services
from threatbus_web.config import SECTION, WebConfig

if TYPE_CHECKING:
    from threatbus_web.history import History
    from threatbus_web.server import Server

logger = std_logging.getLogger("threatbus.web")

JOIN_SECS: Final = 2.0


class WebPlugin:
    """Shows the bus over HTTP: health, metrics, an API, a page.

    Its parts, with the library for metrics, are imported when it runs, not when it is looked at.
    """

    def __init__(self) -> None:
        self._server: Server | None = None
        self._history: History | None = None

    @threatbus.app
    def config_schema(self) -> type[msgspec.Struct]:
        """Give the schema of the section."""
        return WebConfig

    @threatbus.app
    def run(
        self,
        config: Any,  # noqa: ARG002
        logging: Any,  # noqa: ARG002
        inq: Intake,
        subscribe_callback: SubscribeCallback,  # noqa: ARG002
        unsubscribe_callback: UnsubscribeCallback,  # noqa: ARG002
        services: Services,
    ) -> None:
        """Open the endpoint and serve it."""
        from threatbus_web.history import History  # noqa: PLC0415
        from threatbus_web.publisher import Publisher  # noqa: PLC0415
        from threatbus_web.rejected import RejectedList  # noqa: PLC0415
        from threatbus_web.server import BACKLOG, Server  # noqa: PLC0415
        from threatbus_web.site import Site  # noqa: PLC0415
        from threatbus_web.tokens import token_of  # noqa: PLC0415

        settings = services.section if isinstance(services.section, WebConfig) else WebConfig()
        if services.view is None:
            raise PluginError("the web plugin needs a bus that can be seen (services.view)")
        token = token_of(settings, services.state_directory)
        listener = _listen(settings.host, settings.port, BACKLOG)
        stopping = threading.Event()
        self._history = History(services.view)
        site = Site(
            services.view,
            self._history,
            RejectedList(services.state_directory),
            Publisher(services.border, inq, services.rejects),
            token,
            stopping,
        )
        self._server = server = Server(settings, site, stopping, listener)
        report = services.report
        for worker in (self._history, server):
            report.worker(worker)
            worker.start()
        report.gauge("connections", "Open connections.", lambda: server.connections)
        report.gauge("streams", "Open streams of passing messages.", lambda: server.streams)
        report.counter(
            "streams_let_go", "Streams that were ended since nobody read them.",
            lambda: server.let_go,
        )  # fmt: skip
        address = f"http://{_shown(settings.host)}:{settings.port}/"
        report.connection("endpoint").up(f"listening on {address}")
        logger.info("the page is at %s", address)
        if not is_loopback(settings.host):
            logger.warning(
                "%s is open to other machines, without encryption: put a proxy with TLS before it",
                address,
            )

    @threatbus.app
    def stop(self) -> None:
        """Close the endpoint and end all connections."""
        workers = [each for each in (self._server, self._history) if each is not None]
        for worker in workers:
            worker.stop()
        for worker in workers:
            if worker.is_alive():
                worker.join(JOIN_SECS)
        if self._server is not None:
            self._server.close()
        self._server = self._history = None

    @threatbus.app
    def diagnose(
        self, section: msgspec.Struct | None, state_directory: Path, bus_pid: int | None
    ) -> Iterable[Check]:
        """Give the checks of `threatbus doctor`."""
        from threatbus_web.doctor import checks  # noqa: PLC0415 (the bus needs it not)

        settings = section if isinstance(section, WebConfig) else WebConfig()
        return checks(settings, state_directory, bus_pid)


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """Bind; raises `InvalidConfig` if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        found = f"{_shown(host)}:{port}, which cannot be bound ({error.strerror or error})"
        raise InvalidConfig([ConfigError(f"{SECTION}.port", found, FREE)]) from None
    listener.setblocking(False)
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
