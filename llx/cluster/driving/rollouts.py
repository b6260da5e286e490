"""Rollouts: a model's instances replaced by such that are started with something else.

Level-triggered, a look per round: what is to be done next follows from the instances that there are
(`llx.cluster.driving.rollout_step`) and from the record on disk, so that a new head goes on where
the former one was. A new instance that does not come up, or that requests cannot move to, stops the
rollout; what serves goes on serving.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from llx.api import InstanceState
from llx.cluster.driving.actions import Actions
from llx.cluster.driving.converge import Converging
from llx.cluster.driving.desired import desired_gateways, instance_spec, unused_name
from llx.cluster.driving.emptying import Emptied
from llx.cluster.driving.placing import Placing
from llx.cluster.driving.rollout_step import Sight, Step, next_step
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.rollout_file import Generation, Rollout, RolloutState
from llx.cluster.scheduling.live import LiveScheduler
from llx.core.model import PoolName
from llx.log import get_log
from llx.settings import ModelSettings
from llx.specs import InstanceSpec, generation_key

log = get_log(__name__)


_ROOM_S = 20.0
"""So long a new instance may be without a host."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The instances of a model that is being rolled out."""

    former: list[Unit]
    new: list[Unit]
    going: list[Unit]


class Rollouts:
    """Carries out the rollouts of a fleet.

    Args:
        fleet: The fleet.
        placing: Knows where there is room.
        converging: Retires instances.
        actions: Writes down what happens to instances.
        scheduler: Knows who waits.
        audit: Where what happens is written down.
        save: Keeps the fleet's generations.
    """

    def __init__(
        self,
        fleet: Fleet,
        placing: Placing,
        converging: Converging,
        actions: Actions,
        scheduler: LiveScheduler,
        audit: AuditTrail,
        save: Callable[[], None],
    ) -> None:
        self._fleet = fleet
        self._placing = placing
        self._converging = converging
        self._actions = actions
        self._scheduler = scheduler
        self._audit = audit
        self._save = save
        self._homeless: dict[str, float] = {}
        """Since when an instance has no host, on the monotonic clock."""
        converging.tell_emptied(self._count)

    # ------------------------------------------------------------------ the record

    def put(self, model: str, generation: Generation) -> None:
        """What the instances of a model are to be, from now on and for the next head."""
        self._fleet.generations[model] = generation
        self._save()
        self.tell_gateways()

    def tell_gateways(self) -> None:
        """Gateways that are started from now on know the pools that there are; others are told."""
        fleet = self._fleet
        for spec in desired_gateways(fleet.settings, fleet.line_address, fleet.generations):
            if spec.name in fleet.gateways:
                fleet.gateways[spec.name].spec = spec
        self._actions.wake()

    def change(self, model: str, **changes: object) -> None:
        """Change the record of a rollout."""
        generation = self._fleet.generations[model]
        assert generation.rollout is not None, f"{model}: there is none"
        rollout = msgspec.structs.replace(generation.rollout, **changes)
        self.put(model, msgspec.structs.replace(generation, rollout=rollout))

    def note(self, what: str, model: str, user: str = "", **fields: str | float | None) -> None:
        """An event of a rollout, to log and audit trail."""
        log.info(f"rollout.{what}", model=model, **fields)
        self._audit.record(f"rollout.{what}", user=user, model=model, **fields)

    def parts(self, model: str) -> Parts:
        """The instances of a model; `former`: all of another revision than is wanted."""
        revision = self._fleet.generation(model).revision
        units = [
            unit
            for unit in self._fleet.instances.values()
            if isinstance(unit.spec, InstanceSpec) and unit.spec.pool == model
        ]
        staying = [each for each in units if not each.is_leaving]
        return Parts(
            former=[each for each in staying if revision_of(each) != revision],
            new=[each for each in staying if revision_of(each) == revision],
            going=[each for each in units if each.is_leaving],
        )

    # ------------------------------------------------------------------ every round

    def look(self) -> None:
        """Do what is next in every rollout that goes on."""
        if self._placing.is_looking():
            return
        for model in self._fleet.settings.models:
            rollout = self._fleet.generation(model.name).under_way
            if rollout is not None and rollout.state is RolloutState.RUNNING:
                self._look_at(model, rollout)

    def _look_at(self, model: ModelSettings, rollout: Rollout) -> None:
        parts = self.parts(model.name)
        reason = self._why_not(model, rollout, parts)
        if reason:
            self._stop(model.name, reason)
            return
        match next_step(self._sight(model, rollout, parts)):
            case Step.ADD:
                self._add(model, rollout)
            case Step.RETIRE:
                self._retire(model.name, sorted(parts.former, key=_worst_first)[:1])
            case Step.SWITCH:
                self._switch(model.name)
            case Step.RETIRE_ALL:
                if not self._waits(model.name):
                    self._retire(model.name, parts.former)
            case Step.STUCK:
                self._stop(model.name, "no room for another instance, and but one serves")
            case Step.DONE:
                self._finish(model.name)
            case Step.WAIT:
                pass

    def _sight(self, model: ModelSettings, rollout: Rollout, parts: Parts) -> Sight:
        return Sight(
            former=len(parts.former),
            failed=sum(each.state is InstanceState.FAILED for each in parts.former),
            new=len(parts.new),
            going=len(parts.going),
            count=rollout.count,
            has_room=not self.why_no_room(model),
            is_steady=all(self._is_steady(each, rollout.steady_s) for each in parts.new),
            is_one_pool=rollout.former_generation == self._fleet.generation(model.name).generation,
            is_switched=rollout.is_switched,
        )

    def why_no_room(self, model: ModelSettings) -> str:
        """Why one more instance of it could not be placed; empty: it could."""
        name = unused_name(model, self._fleet.instances)
        generation = self._fleet.generation(model.name)
        return self._placing.why_no_room(
            [instance_spec(self._fleet.settings, model, name, generation)]
        )

    def _is_steady(self, unit: Unit, steady_s: float) -> bool:
        fleet = self._fleet
        is_ready = unit.state is InstanceState.READY and not unit.is_busy and fleet.is_heard(unit)
        if not is_ready or unit.ready_since is None:
            return False
        near = [each for each in fleet.gateways.values() if each.state is InstanceState.READY]
        is_known = not any(unit.name in fleet.missing(each) for each in near)
        return is_known and time.monotonic() - unit.ready_since >= steady_s

    # ------------------------------------------------------------------ what stops it

    def _why_not(self, model: ModelSettings, rollout: Rollout, parts: Parts) -> str:
        """Why it cannot go on, in words; empty: it can."""
        for unit in parts.new:
            if reason := self._why_not_up(unit, rollout):
                return f"{unit.name}: {reason.partition(chr(10))[0]}"
        generation = self._fleet.generation(model.name).generation
        if generation == rollout.former_generation:
            # What cannot move on the way back may finish where it is: that is all there is to do.
            return "" if rollout.is_back else self._why_none_move(parts)
        key = PoolName(generation_key(model.name, generation))
        for unit in self._fleet.gateways.values():
            view = self._fleet.gateway_view(unit)
            report = None if view is None else view.report
            found = None if report is None else report.unusable.get(key)
            if found is not None and found.attempt >= rollout.attempt:
                return f"{unit.name} cannot serve it: {found.reason}"
        return ""

    def _why_not_up(self, unit: Unit, rollout: Rollout) -> str:
        """Why a new instance does not come up; empty: it may yet.

        Room that was just made may not have been seen. On the way back those that have served
        before may fail and be started again.
        """
        if unit.host or unit.state is not InstanceState.FAILED:
            self._homeless.pop(unit.name, None)
        elif time.monotonic() < self._homeless.setdefault(unit.name, time.monotonic()) + _ROOM_S:
            return ""
        if unit.state is InstanceState.FAILED and not unit.is_busy:
            return unit.detail
        is_falling = unit.retry_at is not None and not rollout.is_back
        return unit.last_failure if is_falling else ""

    def _why_none_move(self, parts: Parts) -> str:
        """By what former and new instances say of themselves."""
        for new in parts.new:
            for former in [*parts.former, *parts.going]:
                one, other = self._class_of(former), self._class_of(new)
                if one and other and one != other:
                    return (
                        f"requests cannot move from {former.name} ({one}) to {new.name} ({other}):"
                        " go back, and roll out with --apart"
                    )
        return ""

    def _class_of(self, unit: Unit) -> str:
        info = self._fleet.loads.info(unit.name)
        return "" if info is None else info.compatibility

    def _stop(self, model: str, reason: str) -> None:
        self.note("failed", model, reason=reason)
        self.change(model, state=RolloutState.FAILED, reason=reason)

    # ------------------------------------------------------------------ the steps

    def _add(self, model: ModelSettings, rollout: Rollout) -> None:
        """A name that a replaced instance had is free again when requests could have moved."""
        generation = self._fleet.generation(model.name)
        is_one_pool = generation.generation == rollout.former_generation
        used = [*self._fleet.instances, *(() if is_one_pool else rollout.ends)]
        name = unused_name(model, used)
        unit = Unit(instance_spec(self._fleet.settings, model, name, generation))
        unit.acted_at = time.monotonic()  # what was seen of one of that name before is another
        self._fleet.instances[name] = unit
        self._actions.note("added", unit, why=f"rollout of {model.name}")
        self._actions.wake()

    def _retire(self, model: str, units: list[Unit]) -> None:
        rollout = self._fleet.generation(model).under_way
        assert rollout is not None, f"{model} is being rolled out"
        end = time.time() + rollout.deadline_s
        self.change(model, ends={**rollout.ends, **dict.fromkeys([u.name for u in units], end)})
        for unit in units:
            self._actions.note("replaced", unit, why=f"rollout of {model}")
            self._converging.retire(unit)

    def _switch(self, model: str) -> None:
        """Once every gateway can serve the new generation."""
        key = PoolName(generation_key(model, self._fleet.generation(model).generation))
        for unit in self._fleet.gateways.values():
            view = self._fleet.gateway_view(unit)
            is_open = view is not None and view.report is not None and key in view.report.open
            if unit.state is InstanceState.READY and not is_open:
                return
        self.note("switched", model)
        self.change(model, is_switched=True)

    def _waits(self, model: str) -> bool:
        """Whether a gateway may still send a request to the former generation."""
        former = self._fleet.pools(model)[1:]
        version = self._fleet.line.version
        return not self._fleet.line.is_known(version) or any(
            each.model in former for each in self._scheduler.waiting()
        )

    def _finish(self, model: str) -> None:
        self.change(model, state=RolloutState.DONE)
        found = self._fleet.generations[model].rollout
        assert found is not None, "it has just been changed"
        self.note("done", model, moved=found.moved, finished=found.finished, cut=found.cut)

    def _count(self, unit: Unit, done: Emptied) -> None:
        if not isinstance(unit.spec, InstanceSpec):  # a gateway has left
            return
        rollout = self._fleet.generation(unit.spec.pool).under_way
        if rollout is None or unit.name not in rollout.ends:
            return
        moved, finished = rollout.moved + done.moved, rollout.finished + done.finished
        cut = rollout.cut + done.cut
        self.change(unit.spec.pool, moved=moved, finished=finished, cut=cut)
        if done.cut:
            self._actions.note("cut", unit, requests=done.cut)


def revision_of(unit: Unit) -> int:
    """Of an instance."""
    assert isinstance(unit.spec, InstanceSpec), f"{unit.name} is an instance"
    return unit.spec.revision


def _worst_first(unit: Unit) -> tuple[bool, int]:
    return unit.state is not InstanceState.FAILED, int(unit.name.rpartition("-")[2])
