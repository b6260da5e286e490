"""Giving every unit a host: by what is seen running, else by `llx.core.placement`."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from llx.api import HostState, InstanceState
from llx.cluster.driving.actions import Actions
from llx.cluster.driving.desired import wanted_of
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.host_unit import HostUnit
from llx.cluster.fleet.unit import Unit
from llx.cluster.placement_file import PlacedUnit, Placements
from llx.core.model import HostName
from llx.core.placement import HostRoom, Placement, place_gateways, place_instances
from llx.specs import InstanceSpec

_UNSURE = frozenset({HostState.LOST, HostState.FAILED})
_SILENT = frozenset({HostState.LOST, HostState.AGENT_AWAY})
_BACK_S = 15.0
"""A host that has been silent for a shorter time may be busy and no more: what is placed without it
stays away from it for good."""


class Placing:
    """Decides where units of a fleet are."""

    def __init__(self, fleet: Fleet, actions: Actions) -> None:
        self._fleet = fleet
        self._actions = actions

    def place(self) -> None:
        """A host for whoever has none; waits for hosts that are just starting, or silent."""
        for host in self._fleet.hosts.values():
            self._take_what_runs(host)
        for unit in self._fleet.units():
            self._leave_if_never_started(unit)
        if self.is_looking() or self._is_one_silent():
            return
        if any(not unit.host and not unit.is_leaving for unit in self._fleet.units()):
            self._place()

    def remembered(self) -> Placements:
        """What the next head must know."""
        return Placements(
            instances=_placed(self._fleet.instances),
            gateways=_placed(self._fleet.gateways),
            leaving=[host.name for host in self._fleet.hosts.values() if host.is_leaving],
            wanted=[] if self._fleet.is_stopping else self._fleet.kept_first(),
        )

    def why_no_room(self, specs: Sequence[InstanceSpec]) -> str:
        """Why these instances could not be placed beside all that there are; empty: they could."""
        found = self._find(self._fleet.staying(), specs)
        return next((found.reasons[each.name] for each in specs if each.name in found.reasons), "")

    def is_looking(self) -> bool:
        """Whether a host is just starting, so that nobody knows yet what there is room for."""
        hosts = [each for each in self._fleet.hosts.values() if not each.is_leaving]
        return any(host.state is HostState.STARTING for host in hosts)

    def _is_one_silent(self) -> bool:
        """Whether a host does not answer that did a moment ago, and may be about to again."""
        now = time.monotonic()
        return any(
            host.state in _SILENT and now - host.answered_at < _BACK_S
            for host in self._fleet.hosts.values()
            if host.answered_at is not None and not host.is_leaving and not host.is_cordoned
        )

    def _take_what_runs(self, host: HostUnit) -> None:
        """A unit without a host that runs somewhere is there."""
        if host.view is None or not host.answers or host.is_leaving:
            return
        for name, seen in host.view.processes.items():
            unit = self._fleet.unit(name)
            if unit is None or unit.host or unit.is_busy or unit.is_leaving:
                continue
            if seen.is_running and host.viewed_at >= unit.acted_at:
                unit.put_on(host.name)

    def _leave_if_never_started(self, unit: Unit) -> None:
        """What was to be started on a host that cannot be used starts elsewhere."""
        host = self._fleet.hosts.get(unit.host)
        if not unit.host or unit.is_busy or unit.is_leaving or self._fleet.is_heard(unit):
            return
        if host is not None and host.state is HostState.FAILED and host.view is not None:
            seen = host.view.processes.get(unit.name)
            if seen is not None and seen.is_running:
                return  # its agent, of another release, cannot take it over; it serves on
        if host is None or (host.state in _UNSURE and not unit.is_ours and not unit.known):
            unit.leave_host()

    def _place(self) -> None:
        fleet = self._fleet
        instances = [each for each in fleet.instances.values() if not each.is_leaving]
        self._apply(instances, self._find(instances))
        gateways = [each for each in fleet.gateways.values() if not each.is_leaving]
        names = [each.name for each in gateways]
        self._apply(gateways, place_gateways(names, _kept(gateways), self._rooms(instances)))

    def _find(self, instances: list[Unit], more: Sequence[InstanceSpec] = ()) -> Placement:
        """A host for these and for `more` that are no units yet."""
        wanted = [
            wanted_of(unit.spec, self._avoided(unit))
            for unit in self._least_first(instances)
            if isinstance(unit.spec, InstanceSpec)
        ]
        wanted += [wanted_of(spec) for spec in more]
        return place_instances(wanted, _kept(instances), self._rooms(instances))

    def _least_first(self, instances: list[Unit]) -> list[Unit]:
        """What is of the models' declared minimums before what scaling has added."""
        least = {each.name: each.instances.min for each in self._fleet.settings.models}
        counts: Counter[str] = Counter()
        first: list[Unit] = []
        rest: list[Unit] = []
        for unit in instances:
            assert isinstance(unit.spec, InstanceSpec), f"{unit.name} is an instance"
            counts[unit.spec.pool] += 1
            is_added = counts[unit.spec.pool] > least.get(unit.spec.pool, 0)
            (rest if is_added else first).append(unit)
        return [*first, *rest]

    def _rooms(self, instances: list[Unit]) -> list[HostRoom]:
        hosts = [each for each in self._fleet.hosts.values() if not each.is_leaving]
        return [host.room(_belonging(instances, host.name)) for host in hosts]

    def _avoided(self, unit: Unit) -> frozenset[HostName]:
        """Hosts that refused it lately, or of which nothing was seen since."""
        now = time.monotonic()
        return frozenset(
            HostName(name)
            for name, refusal in unit.refusals.items()
            if name in self._fleet.hosts
            and (now < refusal.until or self._fleet.hosts[name].viewed_at < refusal.at)
        )

    def _apply(self, units: list[Unit], found: Placement) -> None:
        for unit in units:
            if unit.host or unit.is_busy:
                continue
            if unit.name in found.hosts:
                unit.put_on(found.hosts[unit.name])
                self._actions.note("placed", unit, host=unit.host)
                continue
            refused = [f"{host} refused it: {each.reason}" for host, each in unit.refusals.items()]
            reason = "; ".join([found.reasons[unit.name], *refused])
            if (unit.state, unit.detail) != (InstanceState.FAILED, reason):
                unit.state, unit.detail = InstanceState.FAILED, reason
                self._actions.note("not_placed", unit, reason=reason)


def _belonging(instances: list[Unit], host: str) -> frozenset[str]:
    return frozenset(unit.name for unit in instances if unit.host in {host, ""})


def _kept(units: list[Unit]) -> dict[str, HostName]:
    return {unit.name: HostName(unit.host) for unit in units if unit.host}


def _placed(units: Mapping[str, Unit]) -> dict[str, PlacedUnit]:
    return {
        name: PlacedUnit(
            host=unit.host,
            addresses=list(unit.known) if isinstance(unit.spec, InstanceSpec) else [],
            spec=unit.spec,
            failures=unit.failures,
            last_failure=unit.last_failure,
            was_ready=unit.was_ready,
            is_cordoned=unit.is_cordoned,
        )
        for name, unit in units.items()
        if unit.host
    }
