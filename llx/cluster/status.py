"""The control API's resources, made from what the driver knows: pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llx.api import (
    ClusterState,
    GatewayStatus,
    InstanceState,
    InstanceStatus,
    LoadStatus,
    ModelStatus,
)
from llx.cluster.gateway_line import GatewayView
from llx.cluster.unit import Unit
from llx.core.dispatch import Candidate, freeness
from llx.core.model import InstanceId, InstanceLoad
from llx.settings import ModelSettings
from llx.specs import GatewaySpec, InstanceSpec

HERE = "localhost"
_COMING = frozenset({InstanceState.STARTING, InstanceState.LOADING, InstanceState.STOPPING})


@dataclass(frozen=True, slots=True)
class States:
    """All that decides the cluster's state: states by model, and the gateway's."""

    instances: dict[str, list[InstanceState]]
    gateway: InstanceState
    is_connected: bool
    """The gateway says that it has a session with every ready instance."""
    is_stopping: bool
    has_served: bool
    """It was ready once in this life of the head."""


def cluster_state(states: States) -> ClusterState:
    """The state of the whole.

    stopping: someone asked for it. failed: the gateway, or every instance of some model. starting:
    not all is ready yet, and never was. degraded: it serves, something is missing. ready: all is.
    """
    if states.is_stopping:
        return ClusterState.STOPPING
    if _is_lost([states.gateway]) or any(map(_is_lost, states.instances.values())):
        return ClusterState.FAILED
    everything = [states.gateway, *(each for pool in states.instances.values() for each in pool)]
    if all(each is InstanceState.READY for each in everything) and states.is_connected:
        return ClusterState.READY
    serves = states.gateway is InstanceState.READY and all(
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
        host=HERE,
        engine=spec.engine.value,
        state=unit.state,
        detail=unit.detail,
        pid=unit.pid,
        devices=unit.devices,
        addresses=unit.addresses,
        started_at=unit.started_at,
        ready_after_s=unit.ready_after_s,
        restarts=unit.restarts,
        load=None if load is None else _load_status(unit.name, *load),
        log=log,
    )


def gateway_status(
    unit: Unit, spec: GatewaySpec, view: GatewayView | None, missing: Sequence[str], log: str
) -> GatewayStatus:
    """One gateway; `missing`: ready instances that it has no session with."""
    report = None if view is None else view.report
    counters = {} if report is None else {
        "in_flight": report.in_flight,
        "requests": report.num_requests,
        "finished": report.num_finished,
        "failed": report.num_failed,
        "refused": report.num_refused,
        "output_tokens": report.output_tokens,
    }  # fmt: skip
    detail = unit.detail
    if unit.state is InstanceState.READY:
        if view is None or view.is_silent:
            detail = "not heard of lately" if view is not None else "not heard of yet"
        elif missing:
            detail = f"connecting to {', '.join(missing)}"
    return GatewayStatus(
        name=unit.name,
        host=HERE,
        url=gateway_url(unit, spec, view),
        state=unit.state,
        detail=detail,
        pid=unit.pid,
        started_at=unit.started_at,
        ready_after_s=unit.ready_after_s,
        connected=[] if report is None else [str(each) for each in report.connected],
        log=log,
        **counters,
    )


def gateway_url(unit: Unit, spec: GatewaySpec, view: GatewayView | None) -> str:
    """Where clients reach it: as it says itself, else as configured; empty if not known yet."""
    if view is not None:
        return view.hello.url
    if unit.addresses:
        return unit.addresses[0]
    return f"http://{spec.host}:{spec.port}" if spec.port else ""


def model_status(model: ModelSettings, states: Iterable[InstanceState]) -> ModelStatus:
    """One model."""
    return ModelStatus(
        name=model.name,
        source=model.model,
        engine=model.engine.value,
        instances_min=model.instances.min,
        instances_max=model.instances.max,
        instances_ready=sum(each is InstanceState.READY for each in states),
    )


def _is_lost(states: Sequence[InstanceState]) -> bool:
    """Whether there is none that serves or may come to."""
    return bool(states) and all(
        each in {InstanceState.FAILED, InstanceState.STOPPED} for each in states
    )


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
