"""Starting gateways again that run with older settings, one after the other.

Those that were started by a head on another host are told where this one is; they run on.

Level-triggered, a look per round: it does not matter which head or which change of settings began
it, nor what fell on the way. Streams always have another gateway to go to; a gateway that does not
come back with the new settings holds up the next, so that bad settings cost one gateway, not all.
"""

from llx.api import InstanceState
from llx.cluster.driving.actions import Actions
from llx.cluster.driving.desired import serves_alike
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.specs import GatewaySpec


class Rolling:
    """Renews the gateways of a fleet."""

    def __init__(self, fleet: Fleet, actions: Actions) -> None:
        self._fleet = fleet
        self._actions = actions

    def look(self) -> None:
        """Begin what can be done now: whatever has failed at once, of the others one."""
        for unit in self._fleet.gateways.values():
            if _is_led_elsewhere(unit) and not unit.is_busy and self._fleet.is_near(unit):
                self._actions.act(unit, self._actions.redirect(unit))
        for unit in self._outdated():
            if self._is_due(unit):
                self._actions.act(unit, self._actions.renew(unit))

    def words(self) -> list[str]:
        """What is still to be done, a line for each gateway."""
        return [self._words_of(unit) for unit in self._outdated()]

    def _words_of(self, unit: Unit) -> str:
        if len(self._staying()) < 2:
            return (
                f"{unit.name} runs with older settings, and no other can take over:"
                f" llx inst restart {unit.name}"
            )
        awaited = self._awaited(unit)
        when = f" as soon as {', '.join(awaited)} can take over" if awaited else ""
        return f"{unit.name} starts again{when}: it runs with older settings"

    def _staying(self) -> list[Unit]:
        return [each for each in self._fleet.gateways.values() if not each.is_leaving]

    def _outdated(self) -> list[Unit]:
        return [unit for unit in self._staying() if unit.host and _is_outdated(unit)]

    def _is_due(self, unit: Unit) -> bool:
        if unit.is_busy or not self._fleet.is_near(unit):
            return False
        if unit.state is InstanceState.READY:
            return not self._awaited(unit)
        return unit.state is InstanceState.FAILED

    def _awaited(self, unit: Unit) -> list[str]:
        """Who must serve before this one may end: all that can, and at least one other."""
        others = [each for each in self._staying() if each is not unit]
        near = [each for each in others if self._fleet.is_near(each)]
        if not near:
            return ["another gateway"]
        return [each.name for each in near if not self._serves(each)]

    def _serves(self, unit: Unit) -> bool:
        return (
            unit.state is InstanceState.READY
            and not unit.is_busy
            and self._fleet.is_heard(unit)
            and not self._fleet.missing(unit)
        )


def _is_outdated(unit: Unit) -> bool:
    assert isinstance(unit.spec, GatewaySpec), f"{unit.name} is a gateway"
    return isinstance(unit.started, GatewaySpec) and not serves_alike(unit.started, unit.spec)


def _is_led_elsewhere(unit: Unit) -> bool:
    assert isinstance(unit.spec, GatewaySpec), f"{unit.name} is a gateway"
    started = unit.started if unit.is_ours and unit.pid is not None else None
    return (
        isinstance(started, GatewaySpec)
        and started.scheduler_address != unit.spec.scheduler_address
    )
