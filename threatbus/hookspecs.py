"""The hooks of Threat Bus: what a plugin may implement, when it is called, and by whom.

A plugin names itself in one of two setuptools entry point groups; the entry point's name is the
name of its section in the configuration::

    setup(
        name="threatbus-example",
        entry_points={"threatbus.app": ["example = threatbus_example.plugin:ExamplePlugin"]},
    )

    class ExamplePlugin:
        @threatbus.app
        def run(self, config, logging, inq, subscribe_callback, unsubscribe_callback): ...

The entry point may name a class, which is instantiated without arguments for each bus, or (the
way of Threat Bus 2022.5.16) a module with functions. An implementation may leave out arguments
that it does not need; new ones are only ever added at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import msgspec

    from threatbus.data import SnapshotRequest
    from threatbus.doctor.check import Check
    from threatbus.services import Services

APP_GROUP = "threatbus.app"
BACKBONE_GROUP = "threatbus.backbone"

#: Marks a hook implementation of an app plugin.
app = pluggy.HookimplMarker(APP_GROUP)
#: Marks a hook implementation of a backbone plugin.
backbone = pluggy.HookimplMarker(BACKBONE_GROUP)

_app_spec = pluggy.HookspecMarker(APP_GROUP)
_backbone_spec = pluggy.HookspecMarker(BACKBONE_GROUP)

SubscribeCallback = Callable[..., str | None]
"""``subscribe_callback(topic, q, time_delta=None)``: see `AppSpec.run`."""
UnsubscribeCallback = Callable[[str | list[str], Any], None]
"""``unsubscribe_callback(topic, q)``: see `AppSpec.run`."""


class AppSpec:
    """Hooks of an app plugin, in the order in which they are called."""

    @_app_spec
    def config_schema(self) -> type[msgspec.Struct]:  # type: ignore[empty-body]
        """Before the start: give the schema of the plugin's section.

        With it, unknown keys, wrong values and broken rules (`threatbus.config.rule`) are found
        before anything runs; without it only what `config_validators` says is checked.
        """

    @_app_spec
    def config_validators(self) -> Sequence[object]:  # type: ignore[empty-body]
        """Before the start: give dynaconf ``Validator`` objects (the old way to check)."""

    @_app_spec
    def run(
        self,
        config: Any,
        logging: Any,
        inq: Any,
        subscribe_callback: SubscribeCallback,
        unsubscribe_callback: UnsubscribeCallback,
        services: Services,
    ) -> None:
        """Start: open the endpoint, start workers, and return.

        `config` is all of ``plugins.apps``; the plugin's section stands under its entry point's
        name. `logging` is the ``logging`` section, for `threatbus.logger.setup`. What the
        endpoint takes in goes to `inq`.

        ``subscribe_callback(topic, q, time_delta=None)`` lets `q` receive what matches `topic` (a
        prefix, or a list of them); with a positive ``timedelta`` the history of that span is asked
        for, and the id of the (first) snapshot is returned. ``unsubscribe_callback(topic, q)``
        ends it. `q` is a `MessageQueue` made by ``services.outq``, which is closed when its last
        topic is unsubscribed, and when it has overflowed, which ends its subscription; or any
        ``queue.Queue`` or ``multiprocessing.JoinableQueue``, which then receives plain stix2
        objects, and snapshot requests of others as data classes.

        ``services.report`` takes what is to be seen of the plugin: connections, workers, numbers.

        A `ThreatBusError` raised here stops the start of the bus; anything else is logged, and
        the bus starts without the plugin. In both cases `stop` is called, to end what has begun.
        """

    @_app_spec
    def snapshot(self, snapshot_request: SnapshotRequest, result_q: Any) -> None:
        """Answer a request for history: put a `SnapshotEnvelope` per object on `result_q`.

        Called in a thread of its own per plugin, one request at a time; it may take long.
        """

    @_app_spec
    def stop_intake(self) -> None:
        """At the end, first: take nothing more in. On return all that was taken is on inq."""

    @_app_spec
    def drain(self, deadline: float) -> int:  # type: ignore[empty-body]
        """At the end, when inq is empty: hand what waits in outqs to whoever reads.

        Returns when that is done, or at `deadline` (``time.monotonic()``); gives the number of
        messages that remain.
        """

    @_app_spec
    def stop(self) -> None:
        """At the end, last: close the endpoint and end the workers, or what there is of them.

        Also called when `run` has raised.
        """

    @_app_spec
    def diagnose(  # type: ignore[empty-body]
        self, section: msgspec.Struct | None, state_directory: Path, bus_pid: int | None
    ) -> Iterable[Check]:
        """Outside a bus, for `threatbus doctor`: give a `Check` for each thing that must work.

        `section` is the plugin's own, converted to its schema (None without a schema). `bus_pid` is
        the process of the bus that runs with this state directory; None: none does. Nothing is
        connected here: that is for the checks, which run in threads, with a timeout each, and
        disturb nothing. A check that fails raises `CheckFailed` with the next step.
        """


class BackboneSpec:
    """Hooks of a backbone plugin."""

    @_backbone_spec
    def config_schema(self) -> type[msgspec.Struct]:  # type: ignore[empty-body]
        """Before the start: give the schema of the plugin's section, as for apps."""

    @_backbone_spec
    def config_validators(self) -> Sequence[object]:  # type: ignore[empty-body]
        """Before the start: give dynaconf ``Validator`` objects, as for apps."""

    @_backbone_spec
    def run(self, config: Any, logging: Any, inq: Any, services: Services) -> None:
        """Start: take messages from `inq` and pass them on, in workers; return at once.

        `config` is all of ``plugins.backbones``. `inq` is a `MessageQueue` of this backbone's own:
        every configured backbone sees every message. What is raised here means what it means for
        apps.
        """

    @_backbone_spec
    def subscribe(self, topic: str, q: Any) -> None:
        """Let `q` receive every message whose topic begins with `topic`, once.

        Called from any thread, possibly several times with the same `q` and other topics.
        """

    @_backbone_spec
    def unsubscribe(self, topic: str, q: Any) -> None:
        """End what `subscribe` began with the same arguments."""

    @_backbone_spec
    def drain(self, deadline: float) -> int:  # type: ignore[empty-body]
        """At the end: return when all that was on inq has been handed on, or at `deadline`.

        Gives the number of messages that were not.
        """

    @_backbone_spec
    def stop(self) -> None:
        """At the end, and when `run` has raised: end the workers and close connections."""

    @_backbone_spec
    def diagnose(  # type: ignore[empty-body]
        self, section: msgspec.Struct | None, state_directory: Path, bus_pid: int | None
    ) -> Iterable[Check]:
        """Outside a bus, for `threatbus doctor`: give a `Check` for each thing, as for apps."""
