"""Hooks of the ZeroMQ app plugin."""

from __future__ import annotations

import logging as std_logging
from collections.abc import Iterable
from typing import Any

import msgspec

import threatbus
from threatbus.doctor import Check
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.services import Services
from threatbus_zmq.config import ZmqConfig
from threatbus_zmq.endpoint import Endpoint

logger = std_logging.getLogger("threatbus.zmq")


class ZmqPlugin:
    """Lets apps subscribe, receive and publish over ZeroMQ."""

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None

    @threatbus.app
    def config_schema(self) -> type[msgspec.Struct]:
        """Give the schema of the section."""
        return ZmqConfig

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
        """Open the endpoint and serve it."""
        section = services.section
        settings = section if isinstance(section, ZmqConfig) else ZmqConfig()
        endpoint = Endpoint(settings, services, inq, subscribe_callback, unsubscribe_callback)
        self._endpoint = endpoint
        endpoint.open()
        endpoint.start()
        logger.info(
            "listening on %s: manage %d, pub %d, sub %d",
            settings.host,
            settings.manage,
            settings.pub,
            settings.sub,
        )
        if endpoint.gatekeeper is not None:
            logger.info(
                "only clients with authorised keys take part, %d are known; public key %s",
                len(endpoint.gatekeeper.ring),
                endpoint.gatekeeper.public_key,
            )

    @threatbus.app
    def stop_intake(self) -> None:
        """Take what publishers have sent so far, then no more."""
        if self._endpoint is not None:
            self._endpoint.stop_intake()

    @threatbus.app
    def drain(self, deadline: float) -> int:
        """Deliver what waits to whoever reads."""
        return self._endpoint.drain(deadline) if self._endpoint is not None else 0

    @threatbus.app
    def stop(self) -> None:
        """Close the endpoint."""
        if self._endpoint is None:
            return
        self._endpoint.stop()
        if self._endpoint.is_alive():
            self._endpoint.join()
        self._endpoint.close()
        self._endpoint = None

    @threatbus.app
    def diagnose(self, section: msgspec.Struct | None, bus_pid: int | None) -> Iterable[Check]:
        """Give the checks of `threatbus doctor`."""
        from threatbus_zmq.doctor import checks  # noqa: PLC0415 (the bus needs it not)

        settings = section if isinstance(section, ZmqConfig) else ZmqConfig()
        return checks(settings, bus_pid)
