"""Every series of the head's page: name, kind, labels, what it says. docs/metrics.md shows them.

Names begin with ``llx:`` as vLLM's with ``vllm:``. A counter's samples end in ``_total``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Kind(StrEnum):
    """Prometheus' kinds."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """One family of samples. `name` without the ``_total`` of a counter."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    text: str


def _gauge(name: str, labels: str, text: str) -> Series:
    return Series(f"llx:{name}", Kind.GAUGE, tuple(labels.split()), text)


def _counter(name: str, labels: str, text: str) -> Series:
    return Series(f"llx:{name}", Kind.COUNTER, tuple(labels.split()), text)


def _histogram(name: str, labels: str, text: str) -> Series:
    return Series(f"llx:{name}", Kind.HISTOGRAM, tuple(labels.split()), text)


_INSTANCE: Final = "model instance host"

_ALL: Final = (
    # ---- the cluster
    _gauge("cluster_info", "cluster platform version vllm", "1; what the cluster is and runs."),
    _gauge("cluster_state", "state", "1 for the state that `llx status` shows, else 0."),
    _gauge("term", "", "The head's term: raised at each start of a head."),
    _gauge("head_started_seconds", "", "When this head started, in Unix seconds."),
    _counter("events", "kind", "Events of the audit trail (`llx events`), by kind."),
    # ---- models
    _gauge("instances", "model state", "Instances, by state."),
    _gauge("instances_wanted", "model", "Instances that should run: what scaling asks for."),
    _gauge("instances_min", "model", "Never fewer."),
    _gauge("instances_max", "model", "Never more."),
    _gauge("instances_short", "model", "1: scaling has not got what it wants, `llx model ls`."),
    _gauge("policy_paused", "model", "1: nothing is moved or scaled by rule."),
    _gauge("rollout_state", "model state", "1 for the state of the model's last rollout, else 0."),
    _gauge("rollout_revision", "model", "Counts what its instances were started with."),
    _gauge("rollout_instances", "model part", "Instances that are new, former, or leaving."),
    # ---- instances
    _gauge("instance_up", _INSTANCE, "1: ready, and heard of."),
    _gauge("instance_cordoned", _INSTANCE, "1: gets nothing new, for its own or its host's sake."),
    _gauge("instance_freeness", _INSTANCE, "Free blocks for each request of its batch."),
    _gauge("instance_blocks", _INSTANCE, "KV blocks that it has."),
    _gauge("instance_blocks_used", _INSTANCE, "KV blocks in use."),
    _gauge("instance_running", _INSTANCE, "Requests that it runs."),
    _gauge("instance_waiting", _INSTANCE, "Requests that wait there."),
    _gauge("instance_waiting_blocks", _INSTANCE, "KV blocks that those need."),
    _gauge("instance_moving_out", _INSTANCE, "Requests on their way to another instance."),
    _gauge("instance_report_age_seconds", _INSTANCE, "Since its last load report."),
    _gauge("instance_cpu_cores", _INSTANCE, "CPU cores that it uses; none while not known."),
    _gauge("instance_gpu_percent", _INSTANCE, "How busy its GPUs are; none while not known."),
    _counter("instance_preemptions", _INSTANCE, "Preemptions since its engine's start."),
    _counter("instance_restarts", _INSTANCE, "Starts of it again, since the head's start."),
    # ---- gateways
    _gauge("gateways", "state", "Gateways, by state."),
    _gauge("gateway_up", "gateway host", "1: ready, and heard of."),
    _gauge("gateway_in_flight", "gateway host", "Generations that it has."),
    _gauge("gateway_connected", "gateway host", "Instances that it has a session with."),
    _gauge("gateway_cpu_cores", "gateway host", "CPU cores that it uses; none while not known."),
    _counter("gateway_refused", "gateway host", "Requests that it refused, since its start."),
    _counter("gateway_restarts", "gateway host", "Starts of it again, since the head's start."),
    # ---- hosts
    _gauge("hosts", "state", "Hosts, by state."),
    _gauge("host_up", "host", "1: ready."),
    _gauge("host_cordoned", "host", "1: gets nothing new."),
    _gauge("host_silent_seconds", "host", "How long nothing of it has been heard."),
    _gauge("host_cpus", "host", "CPU cores."),
    _gauge("host_cpu_cores", "host", "Cores in use, by whomever; none while not known."),
    _gauge("host_gpus", "host use", "GPUs: held by llx, used by others (foreign), or free."),
    _gauge("host_gpu_percent", "host gpu", "How busy each GPU is; none while not known."),
    _gauge("host_memory_bytes", "host", "Main memory."),
    _gauge("host_memory_free_bytes", "host", "Of that, free."),
    _gauge("host_disk_free_bytes", "host", "Free where llx keeps its files."),
    # ---- queues and decisions
    _gauge("queue_waiting", "model priority_class", "Requests in the central queue."),
    _gauge("queue_oldest_seconds", "model priority_class", "How long the first has waited; or 0."),
    _gauge("queue_limit", "model priority_class", "More of them than this are refused."),
    _counter(
        "decisions",
        "model decision why",
        "What the scheduler decided: placed, held or refused a request; move, grow, shrink. "
        "`why`: the rule, or the reason of a refusal.",
    ),
    _histogram("decision_seconds", "model", "What a request that arrives costs the scheduler."),
    _histogram(
        "placement_wait_seconds",
        "model priority_class",
        "From a request's arrival at its gateway, or the loss of its instance, until it has one.",
    ),
    # ---- migrations
    _gauge("migrations_open", "", "Migrations under way."),
    _counter(
        "migrations",
        "ordered_by outcome",
        "Migrations that ended; `ordered_by` policy, or request (an operator's, a drain's). One "
        "of which nobody said how it ended is unknown, and counted again when somebody does.",
    ),
    _histogram(
        "migration_downtime_seconds", "", "Last token of the source to first of the target."
    ),
    _histogram("migration_seconds", "", "From the order to the end, of those that moved."),
    _histogram("migration_bytes", "", "Bytes of KV that were copied, of the same."),
)

SERIES: Final[Mapping[str, Series]] = MappingProxyType({each.name: each for each in _ALL})
"""By name."""
