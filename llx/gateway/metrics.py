"""One `/metrics` page over the front ends of all pools.

vLLM registers its metrics in the process-wide registry, under fixed names, with `engine="<slot>"`.
Two pools would collide there, and a slot number tells nobody anything. So each pool's collectors
are moved to a registry of its own as soon as they exist, and the page merges all registries,
writing instance names where vLLM wrote slots and leaving out slots that no instance ever had.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llx.gateway.counters import Counters

SlotNames = Callable[[], dict[str, str]]


class PoolMetrics:
    """The metrics of one pool's front end."""

    def __init__(self, pool: str, slot_names: SlotNames) -> None:
        self._pool = pool
        self._slot_names = slot_names
        self._registry = CollectorRegistry()

    def adopt(self) -> None:
        """Take over what vLLM has registered since the last pool was adopted, anew each time."""
        self._registry = CollectorRegistry()
        for collector in list(REGISTRY._collector_to_names):
            names = REGISTRY._collector_to_names[collector]
            if any(name.startswith("vllm") for name in names):
                REGISTRY.unregister(collector)
                self._registry.register(collector)

    def collect(self) -> Iterator[Metric]:
        """The pool's metric families, slots replaced by instance names."""
        names = self._slot_names()
        for family in self._registry.collect():
            samples = []
            for sample in family.samples:
                slot = sample.labels.get("engine")
                if slot is None:
                    samples.append(sample)
                elif slot in names:
                    samples.append(sample._replace(labels={**sample.labels, "engine": names[slot]}))
            family.samples = samples
            yield family


class GatewayMetrics(Collector):
    """All of the gateway's metrics as one collector."""

    def __init__(self, counters: Callable[[], Iterable[tuple[str, int, Counters]]]) -> None:
        self._counters = counters
        self._pools: list[PoolMetrics] = []

    def add_pool(self, pool: PoolMetrics) -> None:
        """Include a pool's metrics from now on."""
        self._pools.append(pool)

    def drop_pool(self, pool: PoolMetrics) -> None:
        """Leave a pool's metrics out from now on: it is no more."""
        self._pools.remove(pool)

    def collect(self) -> Iterator[Metric]:
        """Families of every registry, those of the same name merged."""
        merged: dict[str, Metric] = {}
        sources: list[Collector | PoolMetrics] = [REGISTRY, *self._pools]
        for source in sources:
            for family in source.collect():
                if family.name in merged:
                    merged[family.name].samples.extend(family.samples)
                else:
                    merged[family.name] = family
        yield from merged.values()
        yield from self._own()

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> list[Metric]:
        """Nothing up front: names depend on what vLLM registers."""
        return []

    def _own(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(
            "llx:requests_in_flight",
            "Generations that have come and not finished.",
            labels=["model"],
        )
        families = {
            "num_requests": _counter("llx:requests", "Generations that have come."),
            "num_finished": _counter("llx:requests_finished", "Generations that finished."),
            "num_failed": _counter("llx:requests_failed", "Generations that ended in an error."),
            "num_recovered": _counter(
                "llx:requests_recovered", "Generations that went on elsewhere, tokens and all."
            ),
            "num_redispatched": _counter(
                "llx:requests_redispatched", "Generations sent to another instance before a token."
            ),
            "num_bypassed": _counter(
                "llx:requests_bypassed", "Generations dispatched without the scheduler."
            ),
            "num_dropped_outputs": _counter(
                "llx:outputs_dropped", "Outputs refused for their epoch or offset."
            ),
            "output_tokens": _counter("llx:output_tokens", "Tokens accepted from instances."),
        }
        for pool, num_in_flight, counters in self._counters():
            in_flight.add_metric([pool], num_in_flight)
            for field, family in families.items():
                family.add_metric([pool], getattr(counters, field))
        yield in_flight
        yield from families.values()


def _counter(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=["model"])
