"""The cluster as the control API shows it: the driver's units, their loads, the gateway's word."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llx import __version__
from llx.api import ClusterStatus, GatewayStatus, InstanceState, InstanceStatus
from llx.cluster.gateway_line import GatewayLine
from llx.cluster.load_watch import LoadWatch
from llx.cluster.status import (
    States,
    cluster_state,
    gateway_status,
    instance_status,
    model_status,
)
from llx.cluster.unit import Unit
from llx.core.model import InstanceId, PoolName, Term
from llx.errors import NotFoundError
from llx.pins import VLLM_VERSION
from llx.settings import ClusterSettings
from llx.specs import GatewaySpec, InstanceSpec
from llx.wire import GatewayReport, Member


@dataclass(slots=True)
class Fleet:
    """All units of a cluster and what is known of them. Reading it changes nothing.

    Attributes:
        settings: What was asked for.
        platform: What engines compute on.
        term: This head's term.
        instances: Units by name.
        gateway: The gateway's unit.
        line: What gateways say.
        loads: What instances say.
        procs_dir: Where logs lie.
        is_stopping: A stop was asked for.
        has_served: All was ready once in this life of the head.
    """

    settings: ClusterSettings
    platform: str
    term: Term
    instances: Mapping[str, Unit]
    gateway: Unit
    line: GatewayLine
    loads: LoadWatch
    procs_dir: Path
    is_stopping: bool = False
    has_served: bool = False
    started_at: float = field(default_factory=time.time)

    def units(self) -> list[Unit]:
        """The gateway and all instances."""
        return [self.gateway, *self.instances.values()]

    def instance_unit(self, name: str) -> Unit:
        """The unit of an instance.

        Raises:
            NotFoundError: There is none of that name.
        """
        unit = self.instances.get(name)
        if unit is None:
            known = ", ".join(self.instances)
            raise NotFoundError(f'no instance "{name}"', remedy=f"there are: {known}")
        return unit

    def members(self) -> list[Member]:
        """The instances that gateways may use now."""
        found = []
        for name, unit in self.instances.items():
            if unit.state is InstanceState.READY and len(unit.addresses) >= 2:
                assert isinstance(unit.spec, InstanceSpec), f"{name} is an instance"
                inward, outward = unit.addresses[:2]
                found.append(Member(InstanceId(name), PoolName(unit.spec.pool), inward, outward))
        return found

    def is_ready(self) -> bool:
        """Whether everything is there and connected."""
        states = [unit.state for unit in self.units()]
        return not self._missing() and all(each is InstanceState.READY for each in states)

    def report_of_gateway(self) -> GatewayReport | None:
        """The gateway's last report."""
        view = self.line.view(self.gateway.name)
        return None if view is None else view.report

    def status(self) -> ClusterStatus:
        """Everything, now."""
        gateway = self._gateway_status()
        by_model = self._by_model()
        states = States(
            instances=by_model,
            gateway=self.gateway.state,
            is_connected=not self._missing(),
            is_stopping=self.is_stopping,
            has_served=self.has_served,
        )
        infos = [info for name in self.instances if (info := self.loads.info(name)) is not None]
        return ClusterStatus(
            cluster=self.settings.cluster,
            state=cluster_state(states),
            url=gateway.url,
            term=self.term,
            started_at=self.started_at,
            llx_version=__version__,
            vllm_version=infos[0].vllm_version if infos else VLLM_VERSION,
            platform=self.platform,
            models=[model_status(model, by_model[model.name]) for model in self.settings.models],
            instances=[self.instance(name) for name in self.instances],
            gateways=[gateway],
        )

    def instance(self, name: str) -> InstanceStatus:
        """One instance.

        Raises:
            NotFoundError: There is none of that name.
        """
        unit = self.instance_unit(name)
        assert isinstance(unit.spec, InstanceSpec), f"{name} is an instance"
        log = str(self.procs_dir / name / "log")
        status = instance_status(unit, unit.spec, self.loads.load(name), log)
        refusal = self.loads.refusal(name)
        if refusal and unit.state is InstanceState.READY:
            return status.model_copy(update={"detail": f"refuses this head: {refusal}"})
        return status

    def _gateway_status(self) -> GatewayStatus:
        spec = self.gateway.spec
        assert isinstance(spec, GatewaySpec), "the gateway's unit runs a gateway"
        view = self.line.view(spec.name)
        log = str(self.procs_dir / spec.name / "log")
        return gateway_status(self.gateway, spec, view, self._missing(), log)

    def _missing(self) -> list[str]:
        """Ready instances that the gateway has no session with."""
        view = self.line.view(self.gateway.name)
        report = None if view is None or view.is_silent else view.report
        connected = set() if report is None else {str(each) for each in report.connected}
        ready = [n for n, unit in self.instances.items() if unit.state is InstanceState.READY]
        return [name for name in ready if name not in connected]

    def _by_model(self) -> dict[str, list[InstanceState]]:
        found: dict[str, list[InstanceState]] = {each.name: [] for each in self.settings.models}
        for unit in self.instances.values():
            assert isinstance(unit.spec, InstanceSpec), f"{unit.name} is an instance"
            found[unit.spec.pool].append(unit.state)
        return found
