"""The bus: wires plugins, queues and subscribers, and takes them down again in order.

::

    app plugins ──> Intake ──> inq of each backbone ──> Subscriber ──> outq ──> app plugins
                                (TopicTable)       └──> Snapshots

It knows subscribers and messages, and nothing of the tools at the ends.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import threatbus.logger as bus_logging
from threatbus import config as bus_config
from threatbus import plugins
from threatbus.border import Border
from threatbus.errors import PluginError
from threatbus.gate import Gate
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.intake import Intake
from threatbus.messages import INTERNAL_PREFIX, STIX_PREFIX
from threatbus.plugins import InstalledPlugin, Plugin
from threatbus.queues import Bounds, MessageQueue, OverflowPolicy
from threatbus.rejects import RejectStore
from threatbus.services import Services
from threatbus.snapshots import Snapshots
from threatbus.subscribers import ForeignFeeder, ForeignQueue, Subscriber

logger = logging.getLogger("threatbus.bus")

#: Seconds that one plugin's `stop` may take before the bus goes on without it.
STOP_TIMEOUT_SECS = 5.0


@dataclass(frozen=True)
class _Subscription:
    """A subscribed queue: what it was given as, what backbones see, who feeds it."""

    given: object
    subscriber: Subscriber
    feeder: ForeignFeeder | None


class Subscriptions:
    """All subscribers of a bus; the only place that calls the backbones' subscribe hooks.

    Callable from any thread. One lock orders changes, so that a subscriber's topics and what the
    backbones know of them stay the same.
    """

    def __init__(self, outq_bounds: Bounds) -> None:
        self._backbones: Sequence[Plugin] = ()
        self._outq_bounds = outq_bounds
        # Guards the two fields below, and the topics of every subscriber.
        self._lock = threading.RLock()
        self._by_queue: dict[int, _Subscription] = {}
        self._numbers = itertools.count(1)

    def backbones_are(self, backbones: Sequence[Plugin]) -> None:
        """Say which backbones run; called once, before the first subscription."""
        self._backbones = backbones

    def add(self, topics: Sequence[str], q: object) -> Subscriber:
        """Let `q` receive what matches `topics`, besides what it receives already."""
        with self._lock:
            found = self._by_queue.get(id(q)) or self._admit(q)
            for topic in _stix_only(topics):
                if topic in found.subscriber.topics:
                    continue
                found.subscriber.topics.add(topic)
                self._tell("subscribe", topic, found.subscriber)
            return found.subscriber

    def remove(self, topics: Sequence[str], q: object) -> Subscriber | None:
        """End subscriptions of `q`; gives the subscriber if these were its last ones."""
        with self._lock:
            found = self._by_queue.get(id(q))
            if found is None:
                return None
            for topic in _stix_only(topics):
                if topic in found.subscriber.topics:
                    found.subscriber.topics.discard(topic)
                    self._tell("unsubscribe", topic, found.subscriber)
            if found.subscriber.topics:
                return None
            del self._by_queue[id(q)]
        if found.feeder is not None:
            found.feeder.stop()
        return found.subscriber

    def current(self) -> list[Subscriber]:
        """Give all subscribers."""
        with self._lock:
            return [found.subscriber for found in self._by_queue.values()]

    def close(self) -> None:
        """End all subscriptions."""
        with self._lock:
            everything = [(list(f.subscriber.topics), f.given) for f in self._by_queue.values()]
        for topics, q in everything:
            self.remove(topics, q)

    def _admit(self, q: object) -> _Subscription:
        several = len(self._backbones) > 1
        feeder = None
        if isinstance(q, MessageQueue):
            outq = q
        else:
            outq = MessageQueue(
                f"foreign queue {next(self._numbers)}",
                self._outq_bounds,
                on_overflow=lambda: self._end_foreign(q),
            )
            foreign = cast("ForeignQueue", q)
            feeder = ForeignFeeder(outq, foreign, lambda: self._end_foreign(q))
            feeder.start()
        subscriber = Subscriber(outq.name, outq, several_backbones=several)
        found = _Subscription(q, subscriber, feeder)
        self._by_queue[id(q)] = found
        return found

    def _end_foreign(self, q: object) -> None:
        """End the subscription of a foreign queue that overflowed or refused."""
        with self._lock:
            found = self._by_queue.get(id(q))
            topics = list(found.subscriber.topics) if found else []
        if found is not None:
            logger.error("%s is unsubscribed: it does not take its messages", found.subscriber.name)
            self.remove(topics, q)

    def _tell(self, hook: str, topic: str, subscriber: Subscriber) -> None:
        for backbone in self._backbones:
            backbone.call_safely(hook, topic=topic, q=subscriber)


def _stix_only(topics: Sequence[str]) -> list[str]:
    """Give the topics as backbones get them: the bus's internal messages are for nobody else.

    A topic so short that it would match both is narrowed to STIX.
    """
    narrowed = []
    for topic in topics:
        if STIX_PREFIX.startswith(topic):
            narrowed.append(STIX_PREFIX if INTERNAL_PREFIX.startswith(topic) else topic)
        else:
            narrowed.append(topic)
    return [topic for topic in narrowed if not topic.startswith(INTERNAL_PREFIX.rstrip("/"))]


class ThreatBus:
    """One running bus. Made by `threatbus.start`; ended by `stop`.

    Objects it owns: the gate, the intake, one inq per backbone, the subscriptions, the snapshots,
    the reject store. Two buses in one process share none of them.
    """

    def __init__(
        self, checked: bus_config.Checked, apps: Sequence[Plugin], backbones: Sequence[Plugin]
    ):
        core = checked.core
        self._checked = checked
        self._backbones = list(backbones)
        self._apps = list(apps)
        self._drain_timeout = core.drain_timeout
        directory = Path(core.state_directory)
        self.rejects = RejectStore(directory, core.rejected.messages, core.rejected.bytes)
        self._gate = Gate()
        self.intake = Intake(self._gate, self.rejects)
        self._inqs = {
            backbone.name: MessageQueue(
                f"inq of {backbone.name}",
                Bounds(core.queues.inq_messages, core.queues.inq_bytes),
                OverflowPolicy.BLOCK,
                gate=self._gate,
            )
            for backbone in backbones
        }
        outq_bounds = Bounds(core.queues.outq_messages, core.queues.outq_bytes)
        self.subscriptions = Subscriptions(outq_bounds)
        self.snapshots = Snapshots(self.subscriptions.current, core.snapshot_timeout)
        self._outq_bounds = outq_bounds
        self._border = Border()
        # Serialises stop(); set once everything is down.
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        self._failed: list[str] = []

    @property
    def running(self) -> bool:
        """Whether the bus has not been stopped."""
        return not self._stopped.is_set()

    @property
    def lost_parts(self) -> list[str]:
        """The names of configured plugins that the bus does without, since they did not start."""
        return list(self._failed)

    def _start(self) -> None:
        self.rejects.start()
        started: list[Plugin] = []
        try:
            self._start_backbones(started)
            self._start_apps(started)
        except BaseException:
            for plugin in reversed(started):
                plugin.call_safely("stop")
            self.rejects.stop()
            raise
        for name in self._failed:
            logger.error("running WITHOUT plugin %s, see above", name)

    def _start_backbones(self, started: list[Plugin]) -> None:
        for backbone in list(self._backbones):
            inq = self._inqs[backbone.name]
            if not plugins.start(
                backbone,
                config=self._checked.plain_backbones,
                logging=self._checked.core.logging,
                inq=inq,
                services=self._services(self._checked.backbones.get(backbone.name)),
            ):
                self._failed.append(backbone.name)
                self._backbones.remove(backbone)
                continue
            started.append(backbone)
            self.intake.attach(inq)
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
            if plugins.start(
                app,
                config=self._checked.plain_apps,
                logging=self._checked.core.logging,
                inq=self.intake,
                subscribe_callback=self.subscribe,
                unsubscribe_callback=self.unsubscribe,
                services=self._services(self._checked.apps.get(app.name)),
            ):
                started.append(app)
            else:
                self._failed.append(app.name)
                self._apps.remove(app)

    def _services(self, section: Any) -> Services:
        return Services(
            section=section,
            border=self._border,
            rejects=self.rejects,
            state_directory=Path(self._checked.core.state_directory),
            outq_bounds=self._outq_bounds,
            overflow=OverflowPolicy(self._checked.core.queues.overflow),
            gate=self._gate,
        )

    def _snapshot_hook(self, app: Plugin) -> Callable[[Any], None]:
        def answer(request: Any) -> None:
            app.call("snapshot", snapshot_request=request, result_q=self.intake)

        return answer

    # What app plugins call.

    def subscribe(
        self, topic: str | list[str], q: object, time_delta: timedelta | None = None
    ) -> str | None:
        """Let `q` receive what matches `topic`; see `threatbus.hookspecs.AppSpec.run`."""
        topics = [topic] if isinstance(topic, str) else list(topic)
        subscriber = self.subscriptions.add(topics, q)
        if time_delta is None or time_delta <= timedelta(0):
            return None
        opened = self.snapshots.open(subscriber, topics, time_delta)
        # Not waiting: the caller may be an event loop, and requests are few.
        self.intake.put_many([request for _, request in opened], wait=False)
        return opened[0][0] if opened else None

    def unsubscribe(self, topic: str | list[str], q: object) -> None:
        """End what `subscribe` began."""
        topics = [topic] if isinstance(topic, str) else list(topic)
        gone = self.subscriptions.remove(topics, q)
        if gone is not None:
            self.snapshots.forget(gone)

    # Seeing inside.

    def stats(self) -> dict[str, Any]:
        """Give the counters of all queues, subscribers and rejects."""
        return {
            "accepted": self.intake.accepted,
            "inq": {name: asdict(inq.stats()) for name, inq in self._inqs.items()},
            "subscribers": {s.name: asdict(s.queue.stats()) for s in self.subscriptions.current()},
            "rejected": {f"{o}: {reason}": n for (o, reason), n in self.rejects.counts.items()},
            "lost_parts": self.lost_parts,
        }

    # The end.

    def stop(self) -> None:
        """Stop the bus and wait until it is down; callable from any thread, and again.

        1. Sources: app plugins take nothing more in, and inq closes.
        2. What is in flight reaches the outqs, then whoever reads, within the drain timeout.
        3. Plugins stop: apps, then backbones, each with a time limit of its own.
        """
        with self._stopping:
            if self._stopped.is_set():
                return
            began = time.monotonic()
            deadline = began + self._drain_timeout
            for app in self._apps:
                app.call_safely("stop_intake")
            self.intake.close()
            remaining = self._drain(deadline)
            for plugin in (*reversed(self._apps), *reversed(self._backbones)):
                self._stop_plugin(plugin, deadline)
            self.subscriptions.close()
            self.snapshots.stop()
            self.rejects.stop()
            self.rejects.join(STOP_TIMEOUT_SECS)
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
                left = backbone.call_safely("drain", deadline=deadline) or 0
            else:
                inq = self._inqs[backbone.name]
                # Of the old kind: it says task_done() for each message, if it keeps to the API.
                inq.join(max(0.0, min(deadline - time.monotonic(), STOP_TIMEOUT_SECS)))
                left = inq.qsize()
            if left:
                logger.warning("%d messages remain in backbone %s", left, backbone.name)
            remaining += left
        for app in self._apps:
            remaining += app.call_safely("drain", deadline=deadline) or 0
        return remaining

    def _stop_plugin(self, plugin: Plugin, deadline: float) -> None:
        """Call `stop` in a thread of its own, so that a plugin that hangs does not hang the bus."""
        thread = threading.Thread(
            target=plugin.call_safely, args=("stop",), name=f"stop {plugin.name}", daemon=True
        )
        thread.start()
        thread.join(max(STOP_TIMEOUT_SECS, deadline - time.monotonic() + 1))
        if thread.is_alive():
            logger.error("plugin %s does not stop; going on without it", plugin.name)


def start(config: Any) -> ThreatBus:
    """Start a bus from a Dynaconf object (or what `threatbus.config.load` gives).

    Returns when every plugin runs. Raises `InvalidConfig` with all that is wrong with the
    configuration, `PluginError` for a plugin that cannot be loaded, and whatever `ThreatBusError`
    a plugin raises to say that the bus must not start without it.
    """
    apps, backbones = plugins.installed(APP_GROUP), plugins.installed(BACKBONE_GROUP)
    checked = bus_config.read(config, apps, backbones)
    bus_logging.setup(checked.core.logging, "threatbus")
    for warning in checked.warnings:
        logger.warning("%s", warning)
    bus = ThreatBus(checked, _loaded(apps, checked.apps), _loaded(backbones, checked.backbones))
    bus._start()
    return bus


def _loaded(found: dict[str, InstalledPlugin], wanted: Any) -> list[Plugin]:
    return [found[name].loaded for name in wanted]
