"""Making a running cluster match new settings, without touching what fits.

What is added is started by the driver's rounds like anything else that is missing. What is no
longer asked for is emptied first, then ended. Gateways that must be started again are, by
`llx.cluster.driving.rolling`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from llx.api import HostState, InstanceState
from llx.cluster.driving.actions import DRAIN_S, Actions
from llx.cluster.driving.desired import desired_gateways, desired_hosts, desired_instances
from llx.cluster.driving.emptying import Emptied, Emptying
from llx.cluster.driving.instance_verbs import figures
from llx.cluster.driving.rolling import Rolling
from llx.cluster.fleet.agents import AgentsSource
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.host_unit import HostUnit
from llx.cluster.fleet.unit import Unit
from llx.errors import ConflictError
from llx.log import get_log
from llx.settings import ClusterSettings
from llx.settings_changes import compare
from llx.specs import GatewaySpec, InstanceSpec

log = get_log(__name__)

_POLL_S = 0.1
_PATIENCE_S = 86400.0


class Converging:
    """Changes what a fleet should be.

    Args:
        fleet: The fleet.
        agents: Reaches hosts.
        actions: Acts on units.
        emptying: Empties units and hosts.
        rolling: Starts gateways again.
        watch: Begins to watch a host; returns how to end that.
    """

    def __init__(
        self,
        fleet: Fleet,
        agents: AgentsSource,
        actions: Actions,
        emptying: Emptying,
        rolling: Rolling,
        watch: Callable[[HostUnit], Callable[[], None]],
    ) -> None:
        self._fleet = fleet
        self._agents = agents
        self._actions = actions
        self._emptying = emptying
        self._rolling = rolling
        self._watch = watch
        self._tell_emptied: Callable[[Unit, Emptied], None] = lambda _unit, _done: None
        self._unwatch: dict[str, Callable[[], None]] = {}

    def begin(self) -> None:
        """Watch the hosts; go on with what a former head had begun."""
        for host in self._fleet.hosts.values():
            self._unwatch[host.name] = self._watch(host)
        if self._fleet.is_stopping:
            return
        for host in self._fleet.hosts.values():
            if host.is_leaving:
                self._actions.own(self._retire_host(host), f"retire-{host.name}")
        for unit in self._fleet.units():
            if unit.is_leaving:
                self._begin_to_retire(unit)

    def tell_emptied(self, tell: Callable[[Unit, Emptied], None]) -> None:
        """Tell from now on what became of the requests of instances that were retired."""
        self._tell_emptied = tell

    def plan(self, settings: ClusterSettings) -> list[str]:
        """What `apply` would change, in words.

        Raises:
            ConfigError: An API key is not given by its hash.
            ConflictError: A running cluster cannot change that, or not yet.
        """
        self._refuse_while_rolling()
        changes = compare(self._fleet.settings, settings)
        self._check(settings, changes.refused, changes.gateway_keys)
        gateways = self._desired_gateways(settings)
        instances = self._desired_instances(settings)
        self._refuse_leaving(
            settings, [*(each.name for each in gateways), *(each.name for each in instances)]
        )
        return changes.words if changes.gateway_keys else [*changes.words, *self._rolling.words()]

    def apply(
        self, settings: ClusterSettings, save: Callable[[ClusterSettings], None]
    ) -> list[str]:
        """Begin to make the fleet match; returns what changes, in words.

        `save` is called when nothing stands in the way and nothing has been changed yet.

        Raises:
            ConfigError: As `plan` says.
            ConflictError: Likewise.
        """
        words = self.plan(settings)
        gateways = self._desired_gateways(settings)
        instances = self._desired_instances(settings)
        save(settings)
        self._fleet.settings = settings
        self._apply_hosts(desired_hosts(settings))
        self._apply_instances(instances)
        self._apply_gateways(gateways)
        self._actions.wake()
        return words

    # ------------------------------------------------------------------ what is refused

    def _check(
        self, settings: ClusterSettings, refused: Sequence[str], gateway_keys: Sequence[str]
    ) -> None:
        name = self._fleet.settings.cluster
        again = f"`llx down --context {name}`, then `llx up` with the new settings"
        if refused:
            models = [each.split(".")[1] for each in refused if each.startswith("models.")]
            raise ConflictError(
                f"cluster {name} is running, and these cannot be changed while it does:"
                f" {', '.join(refused)}",
                remedy=f"llx rollout {models[0]} --file FILE" if models else again,
            )
        if not gateway_keys:
            return
        staying = [unit for unit in self._fleet.gateways.values() if not unit.is_leaving]
        near = [unit for unit in staying if self._fleet.is_near(unit)]
        can_take_turns = min(len(near), settings.num_gateways) >= 2
        if not can_take_turns and not all(map(_is_idle, staying)):
            raise ConflictError(
                f"{', '.join(gateway_keys)}: gateways would have to be started again, and cluster"
                f" {name} has but {len(near)} to take turns: its streams would be cut",
                remedy=f"{again}; or run two gateways, on two hosts",
            )

    def _refuse_while_rolling(self) -> None:
        for name in self._fleet.rolling():
            raise ConflictError(
                f"{name} is being rolled out",
                remedy=f"llx rollout {name}: wait for its end, or --abort it",
            )

    def _refuse_leaving(self, settings: ClusterSettings, units: Sequence[str]) -> None:
        """What is just being removed cannot be had back before it is gone."""
        hosts = [n for n in desired_hosts(settings) if n in self._fleet.hosts]
        leaving = [name for name in hosts if self._fleet.hosts[name].is_leaving]
        for name in units:
            unit = self._fleet.unit(name)
            if unit is not None and unit.is_leaving and not self.can_keep(unit):
                leaving.append(name)
        if leaving:
            raise ConflictError(
                f"{', '.join(leaving)}: still being removed", remedy="try again in a minute"
            )

    # ------------------------------------------------------------------ hosts

    def _apply_hosts(self, names: Sequence[str]) -> None:
        fleet = self._fleet
        for name in names:
            if name not in fleet.hosts:
                host = HostUnit(name, self._agents.agent(name), time.monotonic())
                fleet.hosts[name] = host
                self._unwatch[name] = self._watch(host)
                self._actions.note_host("added", name)
        for host in fleet.hosts.values():
            if host.name not in names and not host.is_leaving:
                host.is_leaving = True
                self._actions.note_host("leaving", host.name)
                self._actions.own(self._retire_host(host), f"retire-{host.name}")
        fleet.hosts = {**{name: fleet.hosts[name] for name in names}, **fleet.hosts}

    async def _retire_host(self, host: HostUnit) -> None:
        await self._wait_for_agent(host)
        done = await self._emptying.empty(self._fleet.units_on(host.name), DRAIN_S)
        if self._fleet.is_stopping:
            return
        self._unwatch.pop(host.name, lambda: None)()
        del self._fleet.hosts[host.name]
        await self._agents.remove(host.name)
        self._actions.note_host("removed", host.name, user="", **figures(done.report()))
        self._actions.wake()

    async def _wait_for_agent(self, host: HostUnit) -> None:
        """It may be back in a moment."""
        end = time.monotonic() + DRAIN_S
        while host.state in {HostState.STARTING, HostState.AGENT_AWAY}:
            await asyncio.sleep(_POLL_S)
            if time.monotonic() > end or self._fleet.is_stopping:
                break

    # ------------------------------------------------------------------ instances

    def _apply_instances(self, specs: Sequence[InstanceSpec]) -> None:
        """Those that run keep what they were started with."""
        for spec in specs:
            unit = self._fleet.instances.get(spec.name)
            if unit is not None:
                unit.spec, unit.is_leaving = spec, False
        self._fleet.instances = self._with(self._fleet.instances, specs)
        for unit in self._leaving(self._fleet.instances, specs):
            self._begin_to_retire(unit)

    def retire(self, unit: Unit) -> None:
        """Begin to empty an instance that is one too many, and to end it then."""
        assert not unit.is_leaving, f"{unit.name} leaves already"
        unit.is_leaving = True
        self._begin_to_retire(unit)

    def can_keep(self, unit: Unit) -> bool:
        """Whether an instance that is being emptied could be used again."""
        is_ending = unit.state is InstanceState.STOPPING or not unit.known or not unit.host
        return unit.is_leaving and not is_ending and not self._is_host_emptied(unit)

    def keep(self, unit: Unit) -> None:
        """Use it again: it `can_keep`."""
        assert self.can_keep(unit), f"{unit.name} is ending"
        unit.is_leaving = False
        self._actions.wake()

    def _desired_instances(self, settings: ClusterSettings) -> list[InstanceSpec]:
        fleet = self._fleet
        return desired_instances(settings, fleet.kept_first(), fleet.generations)

    def _desired_gateways(self, settings: ClusterSettings) -> list[GatewaySpec]:
        return desired_gateways(settings, self._fleet.line_address, self._fleet.generations)

    def _begin_to_retire(self, unit: Unit) -> None:
        self._actions.own(self._retire(unit), f"retire-{unit.name}")

    def _with(
        self, units: dict[str, Unit], specs: Sequence[InstanceSpec | GatewaySpec]
    ) -> dict[str, Unit]:
        """`units` and the missing ones, in the order of `specs`."""
        wanted = {spec.name: units.get(spec.name) or Unit(spec) for spec in specs}
        return {**wanted, **units}

    def _leaving(
        self, units: dict[str, Unit], specs: Sequence[InstanceSpec | GatewaySpec]
    ) -> list[Unit]:
        """Those that are to leave from now on."""
        names = {spec.name for spec in specs}
        found = [unit for unit in units.values() if unit.name not in names and not unit.is_leaving]
        for unit in found:
            unit.is_leaving = True
        return found

    async def _retire(self, unit: Unit) -> None:
        host = self._fleet.hosts.get(unit.host)
        if host is not None:
            await self._wait_for_agent(host)
        while True:
            patience_s = self._patience_s(unit)
            is_wanted = partial(self._is_to_be_emptied, unit, time.time() + patience_s)
            done = await self._emptying.empty([unit], patience_s, is_wanted=is_wanted)
            self._tell_emptied(unit, done)
            if not (unit.host and unit.is_leaving) or self._fleet.is_stopping:
                break
            # All of its host is being emptied, by its own deadline; or there is an earlier one.
            await asyncio.sleep(_POLL_S)
        # Else the cluster stops, and this with it; or it is wanted again.
        if not unit.host and unit.is_leaving:
            for units in (self._fleet.instances, self._fleet.gateways):
                if units.get(unit.name) is unit:
                    del units[unit.name]
        self._actions.wake()

    def _is_to_be_emptied(self, unit: Unit, end: float) -> bool:
        """Whether that is still so, and until then; in Unix seconds."""
        is_sooner = time.time() + self._patience_s(unit) < end - _POLL_S
        return unit.is_leaving and not is_sooner and not self._is_host_emptied(unit)

    def _is_host_emptied(self, unit: Unit) -> bool:
        host = self._fleet.hosts.get(unit.host)
        return host is not None and (host.is_draining or host.is_leaving)

    def _patience_s(self, unit: Unit) -> float:
        """How long its streams may go on. What cannot move may finish, if its model stays."""
        if isinstance(unit.spec, InstanceSpec):
            rollout = self._fleet.generation(unit.spec.pool).under_way
            if rollout is not None and unit.name in rollout.ends:
                return max(0.0, rollout.ends[unit.name] - time.time())
        models = {model.name for model in self._fleet.settings.models}
        stays = isinstance(unit.spec, InstanceSpec) and unit.spec.pool in models
        return _PATIENCE_S if stays else DRAIN_S

    # ------------------------------------------------------------------ gateways

    def _apply_gateways(self, specs: Sequence[GatewaySpec]) -> None:
        """Those that run are started again by `Rolling`, if they must be."""
        for spec in specs:
            unit = self._fleet.gateways.get(spec.name)
            if unit is not None:
                unit.spec = spec
        self._fleet.gateways = self._with(self._fleet.gateways, specs)
        for unit in self._leaving(self._fleet.gateways, specs):
            self._actions.own(self._retire(unit), f"retire-{unit.name}")


def _is_idle(unit: Unit) -> bool:
    """Whether it has ended, so that nothing is cut when it is started with other settings."""
    return unit.state is InstanceState.FAILED or unit.retry_at is not None
