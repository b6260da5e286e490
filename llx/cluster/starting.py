"""Starting one unit: its devices, its process. Blocking parts run in a thread."""

import asyncio
from collections.abc import Sequence

from llx.agent.devices import Need, plan, shortage
from llx.agent.node import NodeAgent
from llx.api import InstanceState
from llx.cluster.desired import need_of
from llx.cluster.unit import Unit
from llx.specs import GatewaySpec, InstanceSpec


async def start_unit(
    unit: Unit, agent: NodeAgent, needs: Sequence[Need], cores_each: int | None
) -> None:
    """Start the unit's process; it says itself how it gets on from there.

    Args:
        unit: What to start; nothing else acts on it meanwhile.
        agent: Where.
        needs: Of all instances of the cluster, so that each gets its fair part of the cores.
        cores_each: Cores per instance, if the operator said so.

    Raises:
        ConflictError: It runs already, or there are not enough devices.
        RemoteError: It cannot be started; says why.
    """
    unit.state, unit.detail, unit.is_ours = InstanceState.STARTING, "starting its process", True
    unit.ready_after_s = None
    match unit.spec:
        case InstanceSpec() as spec:
            unit.devices = await asyncio.to_thread(_start, spec, agent, needs, cores_each)
        case GatewaySpec() as spec:
            await asyncio.to_thread(agent.start_gateway, spec)


def _start(
    spec: InstanceSpec, agent: NodeAgent, needs: Sequence[Need], cores_each: int | None
) -> list[str]:
    ledger = agent.ledger
    with agent.claiming:
        held = ledger.held()
        planned = plan(ledger.inventory, held, needs, cores_each)
        allocation = held.get(spec.name) or planned.get(spec.name)
        if allocation is None:
            raise shortage(ledger.inventory, held, need_of(spec))
        ledger.claim(spec.name, allocation)
    agent.start_instance(spec, allocation)
    return allocation.devices
