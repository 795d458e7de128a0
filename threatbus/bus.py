"""The bus: wires plugins, queues and subscribers, and takes them down again in order.

::

    app plugins ──> Intake ──> inq of each backbone ──> Subscriber ──> outq ──> app plugins
                                (TopicTable)       └──> Snapshots

It knows subscribers and messages, and nothing of the tools at the ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

import threatbus.logger as bus_logging
from threatbus import config as bus_config
from threatbus import plugins
from threatbus.border import Border
from threatbus.control import ControlSocket
from threatbus.draining import wait_while_it_drains
from threatbus.errors import ControlError, PluginError, Refused
from threatbus.gate import Gate
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.intake import Intake
from threatbus.messages import INTERNAL_PREFIX
from threatbus.observe.observer import Kind, Observer, PluginRecord
from threatbus.observe.view import BusState, BusView, PluginState
from threatbus.plugins import InstalledPlugin, Plugin
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.rejects import RejectStore
from threatbus.services import Services
from threatbus.snapshots import Snapshots
from threatbus.subscribers import Subscriber
from threatbus.subscriptions import Subscriptions

logger = logging.getLogger("threatbus.bus")

#: Seconds that one plugin's `stop` may take before the bus goes on without it.
STOP_TIMEOUT_SECS = 5.0
#: Stands for a section that is not there; null is one that is.
_NONE: Final = object()


class ThreatBus:
    """One running bus. Made by `threatbus.start`; ended by `stop`.

    Objects it owns: the gates, the intake, one inq per backbone, the subscriptions, the snapshots,
    the reject store, the observer, the control socket. Two buses in one process share none of them.
    """

    def __init__(
        self, checked: bus_config.Checked, apps: Sequence[Plugin], backbones: Sequence[Plugin]
    ):
        core = checked.core
        self.checked = checked
        # Plugins of the old kind read it by item as well as by attribute.
        self._plain_logging = bus_config.Section(msgspec.to_builtins(core.logging))
        self._backbones = list(backbones)
        self._apps = list(apps)
        self._drain_timeout = core.drain_timeout
        directory = Path(core.state_directory)
        self.rejects = RejectStore(directory, core.rejected.messages, core.rejected.bytes)
        self.observer = Observer(core.trace.messages, core.trace.bytes)
        self.control = ControlSocket(
            directory, {"status": lambda _: self.status(), "trace": self._trace}
        )
        self._gate = Gate()
        self._outq_gate = Gate(upstream=self._gate)
        self.intake = Intake(self._gate, self.rejects)
        # The same for each app plugin, under its name.
        self._intakes = {app.name: self.intake.of_plugin(self._record(app)) for app in apps}
        self._inqs = {
            backbone.name: MessageQueue(
                f"inq of {backbone.name}",
                Bounds(core.queues.inq_messages, core.queues.inq_bytes),
                OverflowPolicy.BLOCK,
                gate=self._gate,
            )
            for backbone in backbones
        }
        self._border = Border()
        self.subscriptions = Subscriptions(self._make_outq, self._forget)
        self.snapshots = Snapshots(
            self.subscriptions.current,
            core.snapshot_timeout,
            several_backbones=len(backbones) > 1,
        )
        # Serialises stop(); set once everything is down.
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        self._failed: list[Plugin] = []
        self._state: BusState = "starting"
        self.view = BusView(
            observer=self.observer,
            intake=self.intake,
            inqs=self._inqs,
            rejects=self.rejects,
            snapshots=self.snapshots,
            subscribers=self.subscriptions.current,
            plugins=self._plugin_states,
            state=lambda: self._state,
        )

    @property
    def running(self) -> bool:
        """Whether the bus has not been stopped."""
        return not self._stopped.is_set()

    @property
    def lost_parts(self) -> list[str]:
        """The names of configured plugins that the bus does without, since they did not start."""
        return [plugin.name for plugin in self._failed]

    @property
    def lost_workers(self) -> list[str]:
        """The names of workers, the bus's and its plugins', that ended without being asked to."""
        own = [worker.name for worker in (self.rejects, self.control) if worker.lost]
        reports = [record.report for record in self.observer.plugins()]
        return own + [name for report in reports for name in report.lost_workers]

    def _start(self) -> None:
        self.rejects.start()
        self._open_control()
        started: list[Plugin] = []
        try:
            self._start_backbones(started)
            self._start_apps(started)
        except BaseException:
            self.intake.close(timeout=0)
            self._take_down(started, time.monotonic())
            raise
        for name in self.lost_parts:
            logger.error("running WITHOUT plugin %s, see above", name)
        self._state = "running"

    def _open_control(self) -> None:
        try:
            self.control.open()
            self.control.start()
        except ControlError as error:
            # Messages flow without it, and its sentence says all: no traceback.
            logger.error("running WITHOUT control socket: %s", error)  # noqa: TRY400

    def _start_backbones(self, started: list[Plugin]) -> None:
        for backbone in list(self._backbones):
            inq = self._inqs[backbone.name]
            # Also if it fails halfway: what it has begun it is asked to end.
            started.append(backbone)
            if plugins.start(
                backbone,
                config=self.checked.plain_backbones,
                logging=self._plain_logging,
                inq=inq,
                services=self._services(backbone, self.checked.backbones),
            ):
                self.intake.attach(inq)
            else:
                self._backbones.remove(backbone)
                self._do_without(backbone, started)
        if not self._backbones:
            raise PluginError("no backbone runs, so no message could reach anyone: see above")
        self.subscriptions.backbones_are(self._backbones)
        for backbone in self._backbones:
            backbone.call_safely("subscribe", topic=INTERNAL_PREFIX, q=self.snapshots)

    def _start_apps(self, started: list[Plugin]) -> None:
        self.snapshots.start(
            {app.name: self._snapshot_hook(app) for app in self._apps if app.has("snapshot")}
        )
        for app in list(self._apps):
            started.append(app)
            if not plugins.start(
                app,
                config=self.checked.plain_apps,
                logging=self._plain_logging,
                inq=self._intakes[app.name],
                subscribe_callback=partial(self._subscribe, app),
                unsubscribe_callback=self.unsubscribe,
                services=self._services(app, self.checked.apps),
            ):
                self._apps.remove(app)
                self._do_without(app, started)

    def _do_without(self, plugin: Plugin, started: list[Plugin]) -> None:
        """Take down a plugin that has not started."""
        started.remove(plugin)
        self._failed.append(plugin)
        self._end_plugin(plugin, STOP_TIMEOUT_SECS)

    def _services(self, plugin: Plugin, sections: Mapping[str, msgspec.Struct | None]) -> Services:
        queues = self.checked.core.queues
        return Services(
            section=sections.get(plugin.name),
            border=self._border,
            rejects=self.rejects,
            state_directory=Path(self.checked.core.state_directory),
            outq_bounds=Bounds(queues.outq_messages, queues.outq_bytes),
            overflow=OverflowPolicy(queues.overflow),
            outq_gate=self._outq_gate,
            report=self._record(plugin).report,
            view=self.view,
        )

    def _make_outq(self, name: str) -> MessageQueue:
        """Make the queue that stands before a foreign one."""
        queues = self.checked.core.queues
        policy = OverflowPolicy(queues.overflow)
        return MessageQueue(
            name,
            Bounds(queues.outq_messages, queues.outq_bytes),
            policy,
            label="foreign queue",
            gate=self._outq_gate,
        )

    def _record(self, plugin: Plugin) -> PluginRecord:
        """Give what is seen of a plugin."""
        return self.observer.plugin(plugin.name, _kind(plugin))

    def _snapshot_hook(self, app: Plugin) -> Callable[[Any], None]:
        def answer(request: Any) -> None:
            app.call("snapshot", snapshot_request=request, result_q=self._intakes[app.name])

        return answer

    # What app plugins call.

    def subscribe(
        self, topic: str | list[str], q: object, time_delta: timedelta | None = None
    ) -> str | None:
        """Let `q` receive what matches `topic`; see `threatbus.hookspecs.AppSpec.run`."""
        return self._subscribe(None, topic, q, time_delta)

    def _subscribe(
        self,
        app: Plugin | None,
        topic: str | list[str],
        q: object,
        time_delta: timedelta | None = None,
    ) -> str | None:
        topics = [topic] if isinstance(topic, str) else list(topic)
        subscriber = self.subscriptions.admit(
            q,
            drained_by_plugin=app is not None and app.has("drain"),
            record=self._record(app) if app is not None else None,
        )
        opened = []
        if time_delta is not None and time_delta > timedelta(0):
            # Before the first live message: what comes live is what a snapshot must not overwrite.
            opened = self.snapshots.open(subscriber, topics, time_delta)
        self.subscriptions.add(topics, q)
        if not opened:
            return None
        # Not waiting: the caller may be an event loop, and requests are few.
        self.intake.put_many([request for _, request in opened], wait=False)
        return opened[0][0]

    def unsubscribe(self, topic: str | list[str], q: object) -> None:
        """End what `subscribe` began."""
        topics = [topic] if isinstance(topic, str) else list(topic)
        self.subscriptions.remove(topics, q)

    def _forget(self, gone: Subscriber) -> None:
        self.snapshots.forget(gone)

    # Seeing inside.

    def stats(self) -> dict[str, Any]:
        """Give the counters of all queues, subscribers and rejects; see `BusView.stats`."""
        return self.view.stats()

    def status(self) -> dict[str, Any]:
        """Say how the bus is doing; see `BusView.status`."""
        return self.view.status()

    def _trace(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer the command `trace` of the control socket."""
        wanted = request.get("of")
        if not isinstance(wanted, str) or not wanted:
            raise Refused("trace wants to know of what: an id or a value, as text")
        return self.view.trace(wanted)

    def _plugin_states(self) -> list[PluginState]:
        running = [*self._backbones, *self._apps]
        return [
            PluginState(plugin.name, _kind(plugin), plugin not in self._failed)
            for plugin in [*running, *self._failed]
        ]

    # While it runs.

    def reload(self, config: Any) -> None:
        """Reopen log files and set log levels as `config` (see `start`) says; the rest stays.

        What else is different there is logged, since it takes a restart. Raises `InvalidConfig`
        or `ConfigError` and changes nothing if anything in `config` is wrong.
        """
        checked = _configured(
            config, plugins.installed(APP_GROUP), plugins.installed(BACKBONE_GROUP)
        )
        if waiting := self._changed_sections(checked):
            logger.warning("takes effect at the next start only: %s", ", ".join(waiting))

    def _changed_sections(self, new: bus_config.Checked) -> list[str]:
        """Name what differs from the configuration that runs, apart from logging."""
        old = self.checked
        ours = [name for name in old.core.__struct_fields__ if name not in ("logging", "plugins")]
        changed = [name for name in ours if getattr(old.core, name) != getattr(new.core, name)]
        for group, before, after in (
            ("backbones", old.plain_backbones, new.plain_backbones),
            ("apps", old.plain_apps, new.plain_apps),
        ):
            names = sorted(before.keys() | after.keys())
            different = (
                name for name in names if before.get(name, _NONE) != after.get(name, _NONE)
            )
            changed += [f"plugins.{group}.{name}" for name in different]
        return changed

    # The end.

    def stop(self) -> None:
        """Stop the bus and wait until it is down; callable from any thread, and again.

        1. Sources: app plugins take nothing more in, and inq closes.
        2. What is in flight reaches the outqs, then whoever reads, within the drain timeout.
        3. Plugins stop: apps, then backbones, each with a time limit of its own. The control socket
           answers until then.
        """
        with self._stopping:
            if self._stopped.is_set():
                return
            self._state = "stopping"
            began = time.monotonic()
            deadline = began + self._drain_timeout
            for app in self._apps:
                self._call_within(STOP_TIMEOUT_SECS, app, "stop_intake")
            self.snapshots.stop()
            self.intake.close(max(0.0, deadline - time.monotonic()))
            remaining = self._drain(deadline)
            self._take_down([*self._backbones, *self._apps], deadline)
            self._stopped.set()
        log = logger.warning if remaining else logger.info
        log(
            "stopped after %.1f s: %d messages accepted, %d rejected, %d not delivered",
            time.monotonic() - began,
            self.intake.accepted,
            self.rejects.total,
            remaining,
        )

    def _drain(self, deadline: float) -> int:
        """Let what is in flight reach its readers; give the number of messages that did not."""
        remaining = 0
        for backbone in self._backbones:
            if backbone.has("drain"):
                left = self._drain_by_plugin(backbone, deadline)
            else:
                left = _drain_inq(self._inqs[backbone.name], deadline)
            if left:
                logger.warning("%d messages remain in backbone %s", left, backbone.name)
            remaining += left
        remaining += self.subscriptions.hand_over(deadline)
        for app in self._apps:
            remaining += self._drain_by_plugin(app, deadline)
        return remaining + self.subscriptions.drain(deadline)

    def _drain_by_plugin(self, plugin: Plugin, deadline: float) -> int:
        seconds = max(0.0, deadline - time.monotonic()) + 1
        return self._call_within(seconds, plugin, "drain", deadline=deadline) or 0

    def _take_down(self, started: Sequence[Plugin], deadline: float) -> None:
        """Stop the plugins that were started, the last one first, then what is the bus's own."""
        for plugin in reversed(started):
            self._end_plugin(plugin, max(STOP_TIMEOUT_SECS, deadline - time.monotonic() + 1))
        self.subscriptions.close()
        self.snapshots.stop()
        self.rejects.stop()
        self.control.stop()
        self.rejects.join(STOP_TIMEOUT_SECS)
        if self.control.ident is not None:
            self.control.join(STOP_TIMEOUT_SECS)
        self.control.close()

    def _end_plugin(self, plugin: Plugin, seconds: float) -> None:
        if plugin.group == BACKBONE_GROUP:
            # Whoever still waits at it is woken.
            self._inqs[plugin.name].close()
        self._call_within(seconds, plugin, "stop")

    def _call_within(self, seconds: float, plugin: Plugin, hook: str, **arguments: object) -> Any:
        """Call a hook in a thread of its own, so that a plugin that hangs does not hang the bus."""
        if not plugin.has(hook):
            return None
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(plugin.call_safely(hook, **arguments)),
            name=f"{hook} of {plugin.name}",
            daemon=True,
        )
        thread.start()
        thread.join(seconds)
        if not results:
            logger.error("plugin %s hangs in %s(); going on without it", plugin.name, hook)
            return None
        return results[0]


def start(config: Any) -> ThreatBus:
    """Start a bus from a Dynaconf object (or what `threatbus.config.load` gives).

    Returns when every plugin runs. Raises `InvalidConfig` with all that is wrong with the
    configuration and its plugins, `PluginError` if no backbone runs, and whatever `ThreatBusError`
    a plugin raises to say that the bus must not start without it.
    """
    apps, backbones = plugins.installed(APP_GROUP), plugins.installed(BACKBONE_GROUP)
    checked = _configured(config, apps, backbones)
    bus = ThreatBus(checked, _loaded(apps, checked.apps), _loaded(backbones, checked.backbones))
    bus._start()
    return bus


def _configured(
    config: Any, apps: dict[str, InstalledPlugin], backbones: dict[str, InstalledPlugin]
) -> bus_config.Checked:
    """Check a configuration, and log as it says from now on."""
    checked = bus_config.read(config, apps, backbones)
    bus_logging.setup(checked.core.logging, "threatbus")
    for warning in checked.warnings:
        logger.warning("%s", warning)
    return checked


def _drain_inq(inq: MessageQueue, deadline: float) -> int:
    """Let a backbone of the old kind take what is on its inq; give what it has not taken."""

    def waiting() -> int:
        # It says task_done() for each message, if it keeps to the API.
        return inq.unfinished + inq.qsize()

    wait_while_it_drains(waiting, deadline, STOP_TIMEOUT_SECS)
    return inq.qsize()


def _loaded(found: dict[str, InstalledPlugin], wanted: Any) -> list[Plugin]:
    return [found[name].loaded for name in wanted]


def _kind(plugin: Plugin) -> Kind:
    return "backbone" if plugin.group == BACKBONE_GROUP else "app"
