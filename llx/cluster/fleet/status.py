"""The control API's resources, made from what the driver knows: pure functions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llx.api import (
    ClusterState,
    GatewayStatus,
    GpuStatus,
    HostState,
    HostStatus,
    InstanceState,
    InstanceStatus,
    LoadStatus,
    ModelStatus,
    PaceStatus,
)
from llx.cluster.fleet.gateway_line import GatewayView
from llx.cluster.fleet.host_unit import HostUnit
from llx.cluster.fleet.unit import Unit
from llx.core.dispatch import Candidate, freeness
from llx.core.latency_buckets import Buckets, quantile_s
from llx.core.model import InstanceId, InstanceLoad
from llx.settings import ModelSettings
from llx.specs import GatewaySpec, InstanceSpec
from llx.wire import InstancePace

_COMING = frozenset({InstanceState.STARTING, InstanceState.LOADING, InstanceState.STOPPING})
_GONE = frozenset({InstanceState.FAILED, InstanceState.STOPPED, InstanceState.LOST})


@dataclass(frozen=True, slots=True)
class States:
    """All that decides the cluster's state: states by model, and the gateways'."""

    instances: dict[str, list[InstanceState]]
    gateways: list[InstanceState]
    is_connected: bool
    """Every ready gateway says that it has a session with every ready instance."""
    is_stopping: bool
    has_served: bool
    """It was ready once in this life of the head."""
    are_hosts_ready: bool = True


def cluster_state(states: States) -> ClusterState:
    """The state of the whole.

    stopping: someone asked for it. failed: every gateway, or every instance of some model.
    starting: not all is ready yet, and never was. degraded: it serves, something is missing.
    ready: all is.
    """
    if states.is_stopping:
        return ClusterState.STOPPING
    if _is_gone(states.gateways) or any(map(_is_gone, states.instances.values())):
        return ClusterState.FAILED
    everything = [*states.gateways, *(each for pool in states.instances.values() for each in pool)]
    is_whole = all(each is InstanceState.READY for each in everything) and states.is_connected
    if is_whole and states.are_hosts_ready:
        return ClusterState.READY
    serves = InstanceState.READY in states.gateways and all(
        InstanceState.READY in pool for pool in states.instances.values()
    )
    is_settled = not any(each in _COMING for each in everything) and states.is_connected
    if serves and (states.has_served or is_settled):
        return ClusterState.DEGRADED
    return ClusterState.STARTING


def instance_status(
    unit: Unit, spec: InstanceSpec, load: tuple[InstanceLoad, float] | None, log: str
) -> InstanceStatus:
    """One instance."""
    return InstanceStatus(
        name=unit.name,
        model=spec.pool,
        host=unit.host,
        engine=spec.engine.value,
        state=unit.state,
        detail=unit.detail,
        pid=unit.pid,
        devices=unit.devices,
        addresses=unit.known or unit_addresses(unit),
        started_at=unit.started_at,
        ready_after_s=unit.ready_after_s,
        restarts=unit.restarts,
        last_failure=unit.last_failure,
        load=None if load is None else _load_status(unit.name, *load),
        log=log,
        is_cordoned=unit.is_cordoned,
    )


def pace_status(paces: Sequence[InstancePace]) -> PaceStatus | None:
    """What gateways say of one instance, taken together; None: nothing."""
    if not paces:
        return None
    ttft, itl = Counter[int](), Counter[int]()
    for each in paces:
        ttft.update(each.ttft)
        itl.update(each.itl)
    return PaceStatus(
        tokens_per_s=round(sum(each.tokens_per_s for each in paces), 1),
        ttft_p50_ms=_quantile_ms(ttft, 0.5),
        ttft_p99_ms=_quantile_ms(ttft, 0.99),
        itl_p50_ms=_quantile_ms(itl, 0.5),
        itl_p99_ms=_quantile_ms(itl, 0.99),
    )


def _quantile_ms(counts: Buckets, share: float) -> float | None:
    found = quantile_s(counts, share)
    return None if found is None else round(found * 1e3, 3)


def unit_use(host: HostUnit | None, name: str) -> dict[str, float | None]:
    """What an instance or gateway uses of its host, as its status has it.

    Not known of one whose agent does not answer, or has not measured it yet.
    """
    if host is None or host.view is None or not host.answers:
        return {"cores_used": None}
    cores = host.view.cpu_use.by_process.get(name)
    held = host.view.held.get(name)
    devices = () if held is None or cores is None else held.devices
    shares = [each.use_percent for each in host.view.gpus if each.id in devices]
    known = [each for each in shares if each is not None]
    if not known:
        return {"cores_used": cores}
    return {"cores_used": cores, "gpu_percent": round(sum(known) / len(known), 1)}


def unit_addresses(unit: Unit) -> list[str]:
    """What its process says that it listens on, once ready."""
    seen = unit.observed
    if seen is None or seen.said is None or not seen.is_running:
        return []
    return seen.said.addresses


def gateway_status(
    unit: Unit,
    spec: GatewaySpec,
    view: GatewayView | None,
    missing: Sequence[str],
    log: str,
    silent_s: float | None = None,
) -> GatewayStatus:
    """One gateway.

    `missing`: ready instances that it has no session with; `silent_s`: how long it has not
    answered, if for long.
    """
    report = None if view is None else view.report
    counters: dict[str, Any] = {} if report is None else {
        "in_flight": report.in_flight,
        "requests": report.num_requests,
        "finished": report.num_finished,
        "failed": report.num_failed,
        "refused": report.num_refused,
        "output_tokens": report.output_tokens,
        "certificate": report.certificate,
        "certificate_ends_at": report.certificate_ends_at or None,
    }  # fmt: skip
    detail = unit.detail
    if unit.state is InstanceState.READY:
        if silent_s is not None:
            detail = tell_silence(silent_s)
        elif view is None or view.is_silent:
            detail = "not heard of lately" if view is not None else "not heard of yet"
        elif missing:
            detail = f"connecting to {', '.join(missing)}"
    return GatewayStatus(
        name=unit.name,
        host=unit.host,
        url=gateway_url(unit, spec, view),
        state=unit.state,
        detail=detail,
        pid=unit.pid,
        started_at=unit.started_at,
        ready_after_s=unit.ready_after_s,
        connected=[] if report is None else [str(each) for each in report.connected],
        llx_version="" if view is None else view.hello.llx_version,
        restarts=unit.restarts,
        last_failure=unit.last_failure,
        log=log,
        **counters,
    )


def tell_silence(silent_s: float) -> str:
    """Of what should be ready, and is not heard of."""
    return f"does not answer since {silent_s:.0f} s"


def gateway_url(unit: Unit, spec: GatewaySpec, view: GatewayView | None) -> str:
    """Where clients reach it: as it says itself, else as configured; empty if not known yet."""
    if view is not None:
        return view.hello.url
    addresses = unit.known or unit_addresses(unit)
    if addresses:
        return addresses[0]
    scheme = "https" if spec.is_tls else "http"
    return f"{scheme}://{spec.host}:{spec.port}" if spec.port else ""


def host_status(host: HostUnit, units: Iterable[Unit], now: float) -> HostStatus:
    """One host; `units`: all of the cluster, `now` on the monotonic clock."""
    here = [unit for unit in units if unit.host == host.name]
    names = {
        kind: [unit.name for unit in here if isinstance(unit.spec, kind)]
        for kind in (InstanceSpec, GatewaySpec)
    }
    status = HostStatus(
        name=host.name,
        state=host.state,
        detail=host.detail,
        is_cordoned=host.is_cordoned,
        instances=names[InstanceSpec],
        gateways=names[GatewaySpec],
        last_heard_s=None if host.heard_at is None else round(now - host.heard_at, 1),
    )
    view = host.view
    if view is None:
        return status
    holders = {device: name for name, each in view.held.items() for device in each.devices}
    foreign = view.foreign_gpus
    gpus = [
        GpuStatus(
            label=each.label,
            holder=holders.get(each.id, ""),
            is_busy=each.id in foreign,
            use_percent=each.use_percent if host.answers else None,
        )
        for each in view.gpus
    ]
    return status.model_copy(
        update={
            "address": view.address,
            "platform": view.platform,
            "cpus": view.cpu_count,
            "cores_used": view.cpu_use.of_host if host.answers else None,
            "gpus": gpus,
            "memory_total_bytes": view.memory_total_bytes,
            "memory_free_bytes": view.memory_free_bytes,
            "disk_free_bytes": view.disk_free_bytes,
            "llx_version": view.llx_version,
            "vllm_version": view.vllm_version,
        }
    )


def are_ready(hosts: Iterable[HostUnit]) -> bool:
    """Whether every host that is to stay can be used."""
    return all(host.state is HostState.READY for host in hosts if not host.is_leaving)


def that_count(states: Iterable[InstanceState], least: int) -> list[InstanceState]:
    """Of the states of a model's instances those that the cluster's depends on.

    If as many as its minimum are ready, nothing is missing: scaling starts the others.
    """
    found = list(states)
    num_ready = found.count(InstanceState.READY)
    return [InstanceState.READY] * num_ready if num_ready >= least else found


def model_status(
    model: ModelSettings, states: Sequence[InstanceState], shortage: str
) -> ModelStatus:
    """One model; `states` of the instances that should run."""
    return ModelStatus(
        name=model.name,
        source=model.model,
        engine=model.engine.value,
        instances_min=model.instances.min,
        instances_max=model.instances.max,
        instances_wanted=len(states),
        shortage=shortage,
        instances_ready=sum(each is InstanceState.READY for each in states),
    )


def _is_gone(states: Sequence[InstanceState]) -> bool:
    """Whether there is none that serves or may come to."""
    return bool(states) and all(each in _GONE for each in states)


def _load_status(name: str, load: InstanceLoad, age_s: float) -> LoadStatus:
    return LoadStatus(
        blocks_total=load.total,
        blocks_used=load.used,
        running=load.num_running,
        waiting=load.num_waiting,
        waiting_demand_blocks=load.waiting_demand,
        preempted=load.num_preempted,
        freeness=float(freeness(Candidate(InstanceId(name), load))),
        age_s=age_s,
    )
