"""The bus at one moment: what commands, the web plugin and tests see of it."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from threatbus.intake import Intake
from threatbus.observe import trace as tracing
from threatbus.observe.observer import Observer, PluginRecord
from threatbus.observe.passages import Filter, Follower
from threatbus.observe.report import ReaderState, State
from threatbus.queues import MessageQueue
from threatbus.rejects import RejectStore
from threatbus.snapshots import Snapshots
from threatbus.subscribers import Subscriber

BusState = Literal["starting", "running", "stopping"]


@dataclass(frozen=True)
class PluginState:
    """A configured plugin, and whether it runs."""

    name: str
    kind: Literal["app", "backbone"]
    runs: bool


class BusView:
    """Reads the parts of a bus; changes nothing. Callable from any thread.

    Nothing of the configuration is in what it gives but names and addresses without passwords.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        intake: Intake,
        inqs: Mapping[str, MessageQueue],
        rejects: RejectStore,
        snapshots: Snapshots,
        subscribers: Callable[[], Sequence[Subscriber]],
        plugins: Callable[[], Sequence[PluginState]],
        state: Callable[[], BusState],
    ) -> None:
        self.observer = observer
        self.intake = intake
        self.inqs = inqs
        self.rejects = rejects
        self.snapshots = snapshots
        self.subscribers = subscribers
        self.plugins = plugins
        self.state = state
        self.version = importlib.metadata.version("threatbus")
        # By the wall clock and the monotonic one.
        self.started_at = datetime.now(UTC)
        self._started = time.monotonic()

    @property
    def uptime_seconds(self) -> float:
        """For how long the bus has been there."""
        return time.monotonic() - self._started

    def stats(self) -> dict[str, Any]:
        """Give the counters of all queues, subscribers and rejects.

        Subscribers go by name; of several with one name all but the first get a number.
        """
        return {
            "accepted": self.intake.accepted,
            "refused": self.intake.refused,
            "inq": {name: dict(vars(inq.stats())) for name, inq in self.inqs.items()},
            "subscribers": self._subscribers(),
            "rejected": {f"{o}: {reason}": n for (o, reason), n in self.rejects.counts.items()},
            "rejected_not_kept": self.rejects.not_kept,
            "unclaimed_snapshot_answers": self.snapshots.unclaimed,
            "lost_parts": [plugin.name for plugin in self.plugins() if not plugin.runs],
        }

    def status(self) -> dict[str, Any]:
        """Say how the bus is doing: what `stats` gives, which parts run, and what is wrong."""
        problems = self.problems()
        return {
            "version": self.version,
            "pid": os.getpid(),
            "state": self.state(),
            "started": self.started_at.isoformat(timespec="seconds"),
            "uptime_seconds": round(self.uptime_seconds, 1),
            "ready": not problems,
            "problems": problems,
            "plugins": [self._plugin(plugin) for plugin in self.plugins()],
            **self.stats(),
        }

    def problems(self) -> list[str]:
        """Say what keeps the bus from being ready, a sentence each; empty if it is ready."""
        return list(self._problems())

    def unready_plugins(self) -> list[str]:
        """Give the names of plugins that do not run, or lack a connection."""
        return [
            plugin.name
            for plugin in self.plugins()
            if not plugin.runs
            or any(each.state is State.DOWN for each in self._connections(plugin))
        ]

    def trace(self, wanted: str) -> dict[str, Any]:
        """Say where an id or a value came from and where it went; see `threatbus.observe.trace`."""
        readers = self.reader_states()
        outqs = {}
        for subscriber in self.subscribers():
            stats = subscriber.queue.stats()
            known = readers.get(subscriber.name)
            waiting = max(stats.messages, known.waiting if known else 0)
            outqs[subscriber.name] = tracing.OutqState(stats.put, waiting)
        return tracing.trace(self.observer.ring, wanted, outqs)

    def follow(self, wanted: Filter) -> Follower:
        """Begin to follow what passes."""
        return Follower(self.observer.ring, wanted)

    def records(self) -> Sequence[tuple[PluginState, PluginRecord]]:
        """Give every configured plugin with what is seen of it."""
        return [(each, self.observer.plugin(each.name, each.kind)) for each in self.plugins()]

    def reader_states(self) -> dict[str, ReaderState]:
        """Give what plugins know of their subscribers, by the names of their outqs."""
        found: dict[str, ReaderState] = {}
        for _, record in self.records():
            found.update(record.report.reader_states())
        return found

    # Inside.

    def _problems(self) -> Iterator[str]:
        if self.state() != "running":
            yield f"the bus is {self.state()}"
        for plugin in self.plugins():
            if not plugin.runs:
                yield f"{plugin.name} did not start; the log says why"
            for each in self._connections(plugin):
                if each.state is State.DOWN:
                    yield f"{plugin.name}: {each.name} is down: {each.detail}"

    def _connections(self, plugin: PluginState) -> Sequence[Any]:
        return self.observer.plugin(plugin.name, plugin.kind).report.connections()

    def _plugin(self, plugin: PluginState) -> dict[str, Any]:
        report = self.observer.plugin(plugin.name, plugin.kind).report
        return {
            "name": plugin.name,
            "kind": plugin.kind,
            "state": "running" if plugin.runs else "lost",
            "connections": [dict(vars(each)) for each in report.connections()],
            "worker_restarts": report.restarts,
            "numbers": {each.name: each.value for each in report.numbers()},
        }

    def _subscribers(self) -> dict[str, Any]:
        readers = self.reader_states()
        found: dict[str, Any] = {}
        for subscriber in self.subscribers():
            name = subscriber.name
            if name in found:
                name = f"{name} ({len(found) + 1})"
            found[name] = {
                **vars(subscriber.queue.stats()),
                "outdated_bodies": subscriber.outdated_bodies,
                "plugin": subscriber.outlet.plugin if subscriber.outlet else "",
                "topics": sorted(subscriber.topics.copy()),
                **_reader(readers.get(subscriber.name)),
            }
        return found


def _reader(state: ReaderState | None) -> dict[str, Any]:
    if state is None:
        return {"connected": None, "stalled_seconds": 0.0, "waiting": None}
    return dict(vars(state))
