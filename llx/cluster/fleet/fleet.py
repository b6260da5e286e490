"""The cluster as the control API shows it: the driver's units, their loads, the gateways' word."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llx import __version__
from llx.api import (
    ClusterState,
    ClusterStatus,
    GatewayStatus,
    HostStatus,
    InstanceState,
    InstanceStatus,
    ModelStatus,
)
from llx.cluster.driving.desired import serves_alike
from llx.cluster.fleet.agents import AgentPort
from llx.cluster.fleet.gateway_line import GatewayLine, GatewayView
from llx.cluster.fleet.host_unit import HostUnit
from llx.cluster.fleet.load_watch import LoadWatch
from llx.cluster.fleet.status import (
    States,
    are_ready,
    cluster_state,
    gateway_status,
    host_status,
    instance_status,
    model_status,
    pace_status,
    tell_silence,
    that_count,
    unit_use,
)
from llx.cluster.fleet.unit import Unit
from llx.cluster.moves.move_log import MoveLog
from llx.cluster.rollout_file import FIRST, Generation
from llx.cluster.scheduling.members import Present
from llx.core.model import InstanceId, PoolName, Term
from llx.core.scheduler.events import InstanceState as WantedState
from llx.errors import UnreachableError
from llx.pins import VLLM_VERSION
from llx.settings import ClusterSettings, ModelSettings
from llx.specs import GatewaySpec, InstanceSpec
from llx.wire import WIRE_VERSION, InstancePace, Member
from llx.yaml_reader import no_such

_SILENT_S = 5.0
"""Whoever has not been heard of for so long does not answer; a link may blink."""
_ENDED = frozenset({InstanceState.STOPPED, InstanceState.FAILED})
_UNUSABLE = frozenset({InstanceState.STOPPING, InstanceState.STOPPED, InstanceState.FAILED})
_GONE = frozenset({InstanceState.STOPPED, InstanceState.FAILED, InstanceState.LOST})


@dataclass(slots=True)
class Fleet:
    """All hosts and units of a cluster and what is known of them. Reading it changes nothing.

    Attributes:
        settings: What is asked for.
        platform: What engines compute on.
        term: This head's term.
        hosts: By name, the head's first.
        instances: By name.
        gateways: By name.
        line: What gateways say.
        loads: What instances say.
        line_address: Where gateways reach this head.
        moves: The record of migrations.
        is_stopping: A stop was asked for.
        has_served: All was ready once in this life of the head.
        shortages: By model: why scaling has not got what it wants.
        generations: As what models were rolled out.
    """

    settings: ClusterSettings
    platform: str
    term: Term
    hosts: dict[str, HostUnit]
    instances: dict[str, Unit]
    gateways: dict[str, Unit]
    line: GatewayLine
    loads: LoadWatch
    line_address: str
    procs_dir: Path
    is_stopping: bool = False
    has_served: bool = False
    moves: MoveLog = field(default_factory=MoveLog)
    shortages: dict[str, str] = field(default_factory=dict)
    generations: dict[str, Generation] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)

    def generation(self, model: str) -> Generation:
        """What a model's instances are to be."""
        return self.generations.get(model, FIRST)

    def pools(self, model: str) -> list[PoolName]:
        """A model's pools: that for new requests, then, during a rollout, perhaps another."""
        return self.generation(model).pools(model)

    def rolling(self) -> list[str]:
        """The models whose rollout is under way."""
        return [name for name, each in self.generations.items() if each.under_way is not None]

    def units(self) -> list[Unit]:
        """All gateways and all instances."""
        return [*self.gateways.values(), *self.instances.values()]

    def staying(self, model: str | None = None) -> list[Unit]:
        """The instances that should run, of one model or of all."""
        return [
            unit
            for unit in self.instances.values()
            if isinstance(unit.spec, InstanceSpec)
            and not unit.is_leaving
            and model in (None, unit.spec.pool)
        ]

    def kept_first(self) -> list[str]:
        """The instances that should run, by name: of fewer, the first of each model are kept.

        Whoever serves comes before whoever may yet, and those before whoever has failed or is lost;
        of equals the lower index.
        """
        return [unit.name for unit in sorted(self.staying(), key=self._cost_of_keeping)]

    def _cost_of_keeping(self, unit: Unit) -> tuple[int, int]:
        state, index = self._state(unit), int(unit.name.rpartition("-")[2])
        if state in _GONE:
            return 2, index
        serves = unit.known and state is not InstanceState.STOPPING and not self.is_cordoned(unit)
        return (0 if serves else 1), index

    def units_on(self, host: str) -> list[Unit]:
        """What runs, or is to run, on a host."""
        return [unit for unit in self.units() if unit.host == host]

    def unit(self, name: str) -> Unit | None:
        """The instance or gateway of that name."""
        return self.instances.get(name) or self.gateways.get(name)

    def instance_unit(self, name: str) -> Unit:
        """The unit of an instance.

        Raises:
            NotFoundError: There is none of that name.
        """
        unit = self.instances.get(name)
        if unit is None:
            raise no_such("instance", name, self.instances)
        return unit

    def named_unit(self, name: str) -> Unit:
        """The instance or gateway of that name.

        Raises:
            NotFoundError: There is none.
        """
        unit = self.unit(name)
        if unit is None:
            known = [each.name for each in self.units()]
            raise no_such("instance or gateway", name, known)
        return unit

    def host_unit(self, name: str) -> HostUnit:
        """A host.

        Raises:
            NotFoundError: There is none of that name.
        """
        host = self.hosts.get(name)
        if host is None:
            raise no_such("host", name, self.hosts)
        return host

    def agent_of(self, host: str) -> AgentPort:
        """The agent of a host.

        Raises:
            UnreachableError: The host has left the cluster.
        """
        if host not in self.hosts:
            raise UnreachableError(f"{host}: no host of this cluster any more")
        return self.hosts[host].agent

    def members(self) -> list[Member]:
        """The instances that gateways may know now, and which of them get nothing new."""
        found = []
        for name, unit in self.instances.items():
            if unit.state in _UNUSABLE or len(unit.known) < 2:
                continue
            assert isinstance(unit.spec, InstanceSpec), f"{name} is an instance"
            inward, outward = unit.known[:2]
            found.append(
                Member(
                    InstanceId(name),
                    PoolName(unit.spec.pool_key),
                    inward,
                    outward,
                    is_cordoned=self.is_cordoned(unit),
                )
            )
        return found

    def present(self, members: Iterable[Member]) -> list[Present]:
        """The same instances, in the scheduler's words."""
        return [
            Present(each.instance, each.pool, each.address_in, self._wanted(each))
            for each in members
        ]

    def _wanted(self, member: Member) -> WantedState:
        unit = self.instances[member.instance]
        host = self.hosts.get(unit.host)
        is_host_ending = host is not None and (host.is_leaving or host.is_draining)
        if unit.is_leaving or unit.state is InstanceState.DRAINING or is_host_ending:
            return WantedState.TERMINATING
        return WantedState.CORDONED if member.is_cordoned else WantedState.UP

    def is_cordoned(self, unit: Unit) -> bool:
        """Whether an instance gets nothing new, for its own or its host's sake."""
        host = self.hosts.get(unit.host)
        return (
            unit.is_cordoned
            or unit.is_leaving
            or unit.state is InstanceState.DRAINING
            or (host is not None and (host.is_cordoned or host.is_leaving))
        )

    def is_near(self, unit: Unit) -> bool:
        """Whether its host's agent can be asked to do things."""
        return unit.host in self.hosts and self.hosts[unit.host].answers

    def is_heard(self, unit: Unit) -> bool:
        """Whether the process itself was heard of just now, its host's agent aside."""
        if isinstance(unit.spec, InstanceSpec):
            return self.loads.is_up(unit.name)
        return self.gateway_view(unit) is not None

    def heard_at(self, unit: Unit, now: float) -> float | None:
        """When the process itself was last heard of, if lately; `now` on the monotonic clock."""
        if isinstance(unit.spec, InstanceSpec):
            return now if self.loads.is_up(unit.name) else None
        view = self.line.view(unit.name)
        return None if view is None else view.heard_at

    def silent_s(self, unit: Unit) -> float | None:
        """How long what should be ready has been silent; None: not for long.

        Its agent goes by what it last wrote down, and by there being a process: one that hangs, or
        to which no message gets through, is ready as far as an agent can tell.
        """
        if unit.state is not InstanceState.READY or unit.ready_since is None:
            return None
        silent_s = time.monotonic() - max(unit.ready_since, unit.heard_at or 0.0)
        return silent_s if silent_s >= _SILENT_S else None

    def gateway_view(self, unit: Unit) -> GatewayView | None:
        """What a gateway says, unless it has fallen silent."""
        view = self.line.view(unit.name)
        return None if view is None or view.is_silent else view

    def running_gateways(self) -> list[str]:
        """The gateways that are not known to have ended: they may have requests."""
        return [
            name
            for name, unit in self.gateways.items()
            if unit.host and unit.state not in _ENDED and unit.retry_at is None
        ]

    def is_ready(self) -> bool:
        """Whether everything is there and connected."""
        states = [self._state(unit) for unit in self.gateways.values()]
        states += [each for pool in self._by_model().values() for each in pool]
        is_whole = all(each is InstanceState.READY for each in states) and not self._any_missing()
        return is_whole and are_ready(self.hosts.values())

    def missing(self, gateway: Unit) -> list[str]:
        """Ready instances that a gateway has no session with, but for those that are silent."""
        view = self.gateway_view(gateway)
        report = None if view is None else view.report
        connected = set() if report is None else {str(each) for each in report.connected}
        assert isinstance(gateway.spec, GatewaySpec), f"{gateway.name} is a gateway"
        served = {pool.name for pool in gateway.spec.pools}  # all generations: it is told of them
        return [
            name
            for name, unit in self.instances.items()
            if self._state(unit) is InstanceState.READY
            and name not in connected
            and isinstance(unit.spec, InstanceSpec)
            and unit.spec.pool in served
        ]

    def status(self) -> ClusterStatus:
        """Everything, now."""
        gateways = [self._gateway_status(unit) for unit in self.gateways.values()]
        by_model = self._by_model()
        states = States(
            instances=by_model,
            gateways=[self._state(unit) for unit in self.gateways.values()],
            is_connected=not self._any_missing(),
            is_stopping=self.is_stopping,
            has_served=self.has_served,
            are_hosts_ready=are_ready(self.hosts.values()),
        )
        state = cluster_state(states)
        self.has_served = self.has_served or state is ClusterState.READY  # for it is told so now
        infos = [info for name in self.instances if (info := self.loads.info(name)) is not None]
        ready = [
            each
            for each in gateways
            if self._state(self.gateways[each.name]) is InstanceState.READY
        ]
        classes = sorted(self.settings.priority_classes, key=lambda each: each.priority)
        return ClusterStatus(
            cluster=self.settings.cluster,
            state=state,
            url=[*ready, *gateways][0].url if gateways else "",
            term=self.term,
            started_at=self.started_at,
            llx_version=__version__,
            wire_version=WIRE_VERSION,
            vllm_version=infos[0].vllm_version if infos else VLLM_VERSION,
            platform=self.platform,
            models=[self.model(model.name) for model in self.settings.models],
            instances=[self.instance(name) for name in self.instances],
            gateways=gateways,
            hosts=[self.host(name) for name in self.hosts],
            priority_classes=[each.name for each in classes],
        )

    def instance(self, name: str) -> InstanceStatus:
        """One instance.

        Raises:
            NotFoundError: There is none of that name.
        """
        unit = self.instance_unit(name)
        assert isinstance(unit.spec, InstanceSpec), f"{name} is an instance"
        status = instance_status(unit, unit.spec, self.loads.load(name), self._log(name))
        info = self.loads.info(name)
        status = status.model_copy(
            update={
                "preemptions": self.loads.num_preemptions(name),
                "moving_out": len(self.moves.leaving(name)),
                "moved_by": self.moves.moved_by(name),
                "cannot_migrate": "" if info is None else info.cannot_migrate,
                "revision": unit.spec.revision,
                "compatibility": "" if info is None else info.compatibility,
                "llx_version": "" if info is None else info.llx_version,
                "pace": pace_status(self._paces(InstanceId(name))),
                **unit_use(self.hosts.get(unit.host), name),
            }
        )
        refusal = self.loads.refusal(name)
        if refusal and unit.state is InstanceState.READY:
            return status.model_copy(update={"detail": f"refuses this head: {refusal}"})
        silent_s = self.silent_s(unit)
        if silent_s is not None:
            return status.model_copy(update={"detail": tell_silence(silent_s)})
        return status

    def _paces(self, instance: InstanceId) -> list[InstancePace]:
        """How it serves, as each gateway that is heard of says."""
        views = (self.line.view(each) for each in self.gateways)
        reports = (each.report for each in views if each is not None and not each.is_silent)
        found = (each.paces.get(instance) for each in reports if each is not None)
        return [each for each in found if each is not None]

    def model_settings(self, name: str) -> ModelSettings:
        """What the settings say of a model.

        Raises:
            NotFoundError: There is none of that name.
        """
        models = {each.name: each for each in self.settings.models}
        if name not in models:
            raise no_such("model", name, models)
        return models[name]

    def model(self, name: str) -> ModelStatus:
        """One model of the settings.

        Raises:
            NotFoundError: There is none of that name.
        """
        model = self.model_settings(name)
        states = [self._state(unit) for unit in self.staying(name)]
        return model_status(model, states, self.shortages.get(name, ""))

    def unit_status(self, unit: Unit) -> InstanceStatus | GatewayStatus:
        """One instance or gateway."""
        if isinstance(unit.spec, GatewaySpec):
            return self._gateway_status(unit)
        return self.instance(unit.name)

    def host(self, name: str) -> HostStatus:
        """One host.

        Raises:
            NotFoundError: There is none of that name.
        """
        return host_status(self.host_unit(name), self.units(), time.monotonic())

    def is_outdated(self, unit: Unit, spec: InstanceSpec | GatewaySpec) -> bool:
        """Whether what runs, by `spec`, is something else than what is asked for."""
        if isinstance(unit.spec, GatewaySpec) and isinstance(spec, GatewaySpec):
            return not serves_alike(unit.spec, spec)
        return unit.spec != spec

    def _log(self, name: str) -> str:
        """Where the log lies: a path here, if it does."""
        unit = self.unit(name)
        is_here = not self.settings.hosts or (
            unit is not None and unit.host == next(iter(self.hosts), "")
        )
        return str(self.procs_dir / name / "log") if is_here else ""

    def _gateway_status(self, unit: Unit) -> GatewayStatus:
        assert isinstance(unit.spec, GatewaySpec), f"{unit.name} is a gateway"
        view = self.line.view(unit.name)
        missing, log = self.missing(unit), self._log(unit.name)
        status = gateway_status(unit, unit.spec, view, missing, log, self.silent_s(unit))
        return status.model_copy(update=unit_use(self.hosts.get(unit.host), unit.name))

    def _any_missing(self) -> bool:
        ready = [u for u in self.gateways.values() if self._state(u) is InstanceState.READY]
        return not ready or any(self.missing(unit) for unit in ready)

    def _by_model(self) -> dict[str, list[InstanceState]]:
        """The states that count. What scaling adds to a minimum that is there is not missing."""
        return {
            each.name: that_count(map(self._state, self.staying(each.name)), each.instances.min)
            for each in self.settings.models
        }

    def _state(self, unit: Unit) -> InstanceState:
        """As it counts for the whole: what does not answer is as good as lost."""
        return unit.state if self.silent_s(unit) is None else InstanceState.LOST
