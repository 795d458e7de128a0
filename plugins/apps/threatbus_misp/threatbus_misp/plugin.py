"""Hooks of the MISP app plugin."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

import threatbus
from threatbus.data import SnapshotRequest
from threatbus.doctor import Check
from threatbus.hookspecs import SubscribeCallback, UnsubscribeCallback
from threatbus.intake import Intake
from threatbus.messages import SIGHTING
from threatbus.observe.report import PluginReport
from threatbus.services import Services
from threatbus_misp.config import MispConfig

if TYPE_CHECKING:
    from threatbus_misp.instance import Instance


class MispPlugin:
    """Brings what happens in MISP onto the bus, and sightings back."""

    def __init__(self) -> None:
        self._instances: list[Instance] = []
        self._unsubscribe: UnsubscribeCallback | None = None

    @threatbus.app
    def config_schema(self) -> type[msgspec.Struct]:
        """Give the schema of the section."""
        return MispConfig

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
        """Start every instance. A MISP that does not answer is waited for.

        Raises `InvalidConfig` if a Python module is missing that an instance needs.
        """
        # These import the drivers.
        from threatbus_misp.index import IndexUnusable  # noqa: PLC0415
        from threatbus_misp.instance import Instance  # noqa: PLC0415
        from threatbus_misp.outbox_store import OutboxError  # noqa: PLC0415

        section = services.section
        settings = section if isinstance(section, MispConfig) else MispConfig()
        settings.check_modules()
        self._unsubscribe = unsubscribe_callback
        self._offer_numbers(services.report)
        for name, each in settings.by_name.items():
            directory = services.state_directory / "misp" / name
            try:
                instance = Instance(name, each, services, inq, directory)
            except (IndexUnusable, OutboxError) as error:
                # The bus does without this plugin; a ThreatBusError would keep it from starting.
                raise OSError(str(error)) from None
            self._instances.append(instance)
            instance.start()
            instance.report(subscribe_callback)

    @threatbus.app
    def snapshot(self, snapshot_request: SnapshotRequest, result_q: Any) -> None:  # noqa: ARG002
        """Answer a request for history, from every MISP that has an API."""
        for instance in self._instances:
            instance.answer(snapshot_request)

    @threatbus.app
    def stop_intake(self) -> None:
        """Take nothing more in from MISP."""
        for instance in self._instances:
            instance.stop_intake()

    @threatbus.app
    def drain(self, deadline: float) -> int:
        """Keep the sightings that are under way: on disk, until MISP has them."""
        return sum(instance.drain(deadline) for instance in self._instances)

    @threatbus.app
    def stop(self) -> None:
        """Stop every instance."""
        for instance in self._instances:
            instance.stop()
            if self._unsubscribe is not None and instance.outq is not None:
                self._unsubscribe(SIGHTING, instance.outq)
        self._instances.clear()

    @threatbus.app
    def diagnose(self, section: msgspec.Struct | None) -> Iterable[Check]:
        """Give the checks of `threatbus doctor`."""
        from threatbus_misp.doctor import checks  # noqa: PLC0415 (the bus needs it not)

        settings = section if isinstance(section, MispConfig) else MispConfig()
        return checks(settings)

    def _offer_numbers(self, report: PluginReport) -> None:
        """Offer what only this plugin knows, of all instances together."""
        for name, text in (
            ("published", "Indicators and sightings that came from MISP onto the bus."),
            ("withdrawn", "Indicators that were withdrawn, since MISP says so."),
            ("filtered", "Changes in MISP that the configuration keeps off the bus."),
            ("unmapped", "Changes of attributes that STIX has no pattern for."),
        ):
            report.counter(name, text, partial(self._counted, name))
        for name, text in (
            ("sightings_sent", "Sightings that MISP has taken."),
            ("sightings_refused", "Sightings that MISP does not want."),
            ("sightings_dropped", "Sightings for MISP that there was no room for."),
        ):
            report.counter(name, text, partial(self._outbox_counted, name.partition("_")[2]))
        report.gauge(
            "sightings_waiting",
            "Sightings that wait on disk for MISP.",
            partial(self._outbox_counted, "waiting"),
        )

    def _counted(self, name: str) -> int:
        return sum(getattr(each.reconciler.counters, name) for each in self._instances)

    def _outbox_counted(self, name: str) -> int:
        outboxes = [each.outbox for each in list(self._instances) if each.outbox is not None]
        return sum(getattr(each.counts, name) for each in outboxes)
