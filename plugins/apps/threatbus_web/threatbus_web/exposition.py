"""The metrics of the bus in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from threatbus.observe.latency import BUCKETS
from threatbus.observe.metrics import Family, families
from threatbus.observe.view import BusView

_LIMITS = [*(f"{bucket:g}" for bucket in BUCKETS), "+Inf"]


class Exposition(Collector):
    """Gives what `threatbus.observe.metrics` reads, and what the process uses."""

    def __init__(self, view: BusView) -> None:
        self._view = view
        # Its own, so that two buses in one process do not meet.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterable[Metric]:
        """Read all metrics."""
        return map(_metric, families(self._view))

    def describe(self) -> Iterator[Metric]:
        """Give nothing: what there is depends on the plugins."""
        return iter(())

    def text(self, accept: str) -> tuple[str, bytes]:
        """Give content type and text, in the format that the header ``Accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)


def _metric(family: Family) -> Metric:
    metric = family.metric
    arguments = (metric.name, metric.help)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(*arguments, labels=metric.labels)
        for labels, (counts, total) in family.histograms.items():
            buckets = [(limit, float(count)) for limit, count in zip(_LIMITS, counts, strict=True)]
            histogram.add_metric(labels, buckets, sum_value=total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    found = kind(*arguments, labels=metric.labels)
    for labels, value in family.values.items():
        found.add_metric(labels, float(value))
    return found
