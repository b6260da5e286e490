"""A page of samples of the series in `series`, and nothing else."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import assert_never

from prometheus_client import PROCESS_COLLECTOR, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llx.cluster.metrics.series import SERIES, Kind, Series
from llx.cluster.metrics.tally import Histogram

Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Page:
    """Samples, added one by one; labels in the order of `Series.labels`."""

    def __init__(self) -> None:
        self._families = {name: _family(each) for name, each in SERIES.items()}

    def add(self, name: str, value: float, *labels: str) -> None:
        """A sample of a gauge or counter; `name` without ``llx:``."""
        family = self._family(name, labels)
        assert not isinstance(family, HistogramMetricFamily), f"{name} is a histogram"
        family.add_metric(labels, float(value))

    def add_histogram(self, name: str, values: Histogram, *labels: str) -> None:
        """The samples of a histogram."""
        family = self._family(name, labels)
        assert isinstance(family, HistogramMetricFamily), f"{name} is no histogram"
        family.add_metric(labels, values.buckets(), values.sum)

    def add_state(self, name: str, states: Iterable[StrEnum], now: str, *labels: str) -> None:
        """A sample for each of some states: 1 for that of now, 0 for the others."""
        for each in states:
            self.add(name, each == now, *labels, each.value)

    def families(self) -> list[Metric]:
        """Those with a sample, and what Python knows of this process."""
        own: list[Metric] = [each for each in self._families.values() if each.samples]
        return [*own, *PROCESS_COLLECTOR.collect()]

    def _family(self, name: str, labels: tuple[str, ...]) -> Family:
        key = f"llx:{name}"
        assert len(labels) == len(SERIES[key].labels), f"{key}: labels are {SERIES[key].labels}"
        return self._families[key]


def render(families: Iterable[Metric]) -> bytes:
    """The page in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(list(families)))
    return generate_latest(registry)


class _Fixed(Collector):
    """What was collected before, on another thread."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families

    def describe(self) -> list[Metric]:
        return []


def _family(series: Series) -> Family:
    make: Callable[..., Family]
    match series.kind:
        case Kind.GAUGE:
            make = GaugeMetricFamily
        case Kind.COUNTER:
            make = CounterMetricFamily
        case Kind.HISTOGRAM:
            make = HistogramMetricFamily
        case _:
            assert_never(series.kind)
    return make(series.name, series.text, labels=series.labels)
