"""The state of a bus as numbers by name, as monitoring wants them.

`METRICS` is the whole list, but for what plugins add of their own. Names follow the conventions of
Prometheus: base units, ``_total`` for what only grows. The values of all labels come from the
configuration, from this code, or from a list that cannot grow beyond a bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from threatbus.observe.counts import kind_of
from threatbus.observe.observer import PluginRecord
from threatbus.observe.report import Number, State
from threatbus.observe.view import BusView

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """What a metric is; `name` without the ``_total`` of a counter."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()

    @property
    def full_name(self) -> str:
        """What it is called in a query."""
        return self.name + ("_total" if self.kind == "counter" else "")


@dataclass
class Family:
    """A metric with its values by those of its labels."""

    metric: Metric
    values: dict[Labels, float] = field(default_factory=dict)
    histograms: dict[Labels, tuple[list[int], float]] = field(default_factory=dict)
    """Cumulative counts (by `BUCKETS`, and all), and the sum."""


def _metrics() -> Iterator[Metric]:
    counter, gauge, histogram = "counter", "gauge", "histogram"
    message = ("plugin", "topic", "type")
    outq = ("plugin", "subscriber")
    rows: list[tuple[str, str, str, Labels]] = [
        ("build_info", gauge, "Always 1; the label says which version runs.", ("version",)),
        ("uptime_seconds", gauge, "For how long the bus has been there.", ()),
        ("ready", gauge, "Whether every plugin runs and is connected.", ()),
        ("plugin_up", gauge, "Whether a configured plugin runs.", ("plugin", "kind")),
        ("connection_up", gauge, "Whether a connection stands, or is not needed now.",
         ("plugin", "connection")),
        ("reconnects", counter, "How often a connection has come back.", ("plugin", "connection")),
        ("worker_restarts", counter, "How often workers have failed and begun again.",
         ("plugin",)),
        ("messages_in", counter, "Messages that a plugin has put on the bus.", message),
        ("messages_out", counter, "Messages put into the outqs of a plugin's subscribers.",
         message),
        ("rejected", counter, "Messages that were not let in.", ("origin", "reason")),
        ("rejected_not_kept", counter, "Rejected messages that the reject store does not hold.",
         ()),
        ("refused", counter, "Messages that came while the bus was stopping.", ()),
        ("dropped", counter, "Messages that an outq has let go undelivered.", outq),
        ("subscribers", gauge, "Subscriptions there are.", ("plugin",)),
        ("inq_messages", gauge, "Messages that wait for a backbone.", ("backbone",)),
        ("inq_bytes", gauge, "Bytes that wait for a backbone.", ("backbone",)),
        ("outq_messages", gauge, "Messages that wait for a subscriber.", outq),
        ("outq_bytes", gauge, "Bytes that wait for a subscriber.", outq),
        ("outq_lag_seconds", gauge, "How long a message has waited that still does.", outq),
        ("stalled_subscribers", gauge, "Connected subscribers that take nothing.", ("plugin",)),
        ("delivery_latency_seconds", histogram,
         "From acceptance until the subscriber's plugin took it from its outq; sampled.",
         ("plugin",)),
        ("snapshot_bodies_outdated", counter, "Snapshot bodies that something newer overtook.",
         ()),
        ("snapshot_answers_unclaimed", counter, "Snapshot answers that nobody here waits for.",
         ()),
        ("ring_messages", gauge, "Messages that `threatbus trace` looks through.", ()),
        ("ring_bytes", gauge, "Bytes that these keep in memory.", ()),
    ]  # fmt: skip
    for name, kind, text, labels in rows:
        yield Metric(f"threatbus_{name}", kind, text, labels)  # type: ignore[arg-type]


#: Every metric of the core, by its name without ``threatbus_``.
METRICS: Final = {each.name.removeprefix("threatbus_"): each for each in _metrics()}
#: Seconds without taking anything after which a connected subscriber counts as stalled.
STALLED_SECS: Final = 5.0


def families(view: BusView) -> list[Family]:
    """Read everything, plugins' own numbers included."""
    found = {name: Family(metric) for name, metric in METRICS.items()}

    def put(name: str, value: float, *labels: str) -> None:
        found[name].values[labels] = value

    put("build_info", 1, view.version)
    put("uptime_seconds", view.uptime_seconds)
    put("ready", not view.problems())
    put("rejected_not_kept", view.rejects.not_kept)
    put("refused", view.intake.refused)
    put("snapshot_answers_unclaimed", view.snapshots.unclaimed)
    put("snapshot_bodies_outdated", sum(record.outdated_bodies for _, record in view.records()))
    put("ring_messages", view.observer.ring.messages)
    put("ring_bytes", view.observer.ring.bytes)
    for (origin, reason), count in view.rejects.counts.items():
        put("rejected", count, origin, reason)
    for backbone, inq in view.inqs.items():
        stats = inq.stats()
        put("inq_messages", stats.messages, backbone)
        put("inq_bytes", stats.bytes, backbone)
    own: list[Family] = []
    for plugin, record in view.records():
        put("plugin_up", plugin.runs, plugin.name, plugin.kind)
        _read_plugin(found, record)
        own += _own_numbers(plugin.name, record.report.numbers())
    return [*found.values(), *own]


def _read_plugin(found: Mapping[str, Family], record: PluginRecord) -> None:
    plugin = record.name
    found["worker_restarts"].values[plugin,] = record.report.restarts
    for each in record.report.connections():
        found["connection_up"].values[plugin, each.name] = each.state is not State.DOWN
        found["reconnects"].values[plugin, each.name] = each.reconnects
    if record.kind == "backbone":
        return
    for name, totals in (
        ("messages_in", record.received.by_topic()),
        ("messages_out", record.delivered()),
    ):
        for topic, count in totals.items():
            if count:
                found[name].values[plugin, topic, kind_of(topic)] = count
    _read_outqs(found, record)
    states = record.report.reader_states().values()
    stalled = sum(each.connected and each.stalled_seconds > STALLED_SECS for each in states)
    found["stalled_subscribers"].values[plugin,] = stalled
    found["delivery_latency_seconds"].histograms[plugin,] = record.latency.read()


def _read_outqs(found: Mapping[str, Family], record: PluginRecord) -> None:
    """Read the outqs of a plugin; those with the same label are one."""
    outlets = record.outlets()
    found["subscribers"].values[record.name,] = len(outlets)
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for label, dropped in record.dropped_by_gone().items():
        sums["dropped"][label] += dropped
    for outlet in outlets:
        stats = outlet.queue.stats()
        sums["outq_messages"][outlet.label] += stats.messages
        sums["outq_bytes"][outlet.label] += stats.bytes
        sums["dropped"][outlet.label] += stats.dropped
        lag = sums["outq_lag_seconds"]
        lag[outlet.label] = max(lag[outlet.label], stats.lag_seconds)
    for name, by_label in sums.items():
        for label, value in by_label.items():
            found[name].values[record.name, label] = value


def _own_numbers(plugin: str, numbers: list[Number]) -> Iterator[Family]:
    safe = "".join(char if char.isascii() and char.isalnum() else "_" for char in plugin.lower())
    for each in numbers:
        metric = Metric(f"threatbus_{safe}_{each.name}", each.kind, each.help)
        yield Family(metric, {(): each.value})
