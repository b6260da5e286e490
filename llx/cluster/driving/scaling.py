"""How many instances a model has: what the scheduler's rules want, done to the fleet.

    the core                   Scaling                       the rest of the driver
    AddInstances ────────────► grow, look: a unit is added ──► placed and started like any other
    StartFailed  ◄──────────── look: what was asked for and is not coming
    Terminate    ────────────► shrink ──► emptied by moving, then ended (`Converging.retire`)

While a model is rolled out nothing of it is scaled.

`look` is level-triggered, once a round: it compares what the rules count on with what is coming.
What is wanted is on disk with the placements in the same round, before anything is started; a new
head goes on with that.
"""

import time
from dataclasses import dataclass

from llx.api import InstanceState
from llx.cluster.driving.actions import Actions
from llx.cluster.driving.converge import Converging
from llx.cluster.driving.desired import instance_index, instance_spec, unused_name
from llx.cluster.driving.placing import Placing
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.unit import Unit
from llx.cluster.scheduling.live import LiveScheduler
from llx.cluster.scheduling.policy_book import PolicyBook
from llx.core.model import InstanceId, PoolName
from llx.core.scheduler.commands import AddInstances, Terminate
from llx.core.scheduler.events import StartFailed
from llx.core.sharing import Claim, in_turn
from llx.errors import ConflictError
from llx.log import get_log
from llx.settings import ModelSettings
from llx.specs import InstanceSpec, generation_key

log = get_log(__name__)

_NOT_COMING = frozenset({InstanceState.FAILED, InstanceState.STOPPED, InstanceState.LOST})
_LONGEST_PAUSE_S = 600.0
_CALM_S = 5.0
"""A pool that has not been short for so long after a try is short of nothing."""


@dataclass(slots=True)
class _Trouble:
    """Why a model does not get an instance. Times are on the monotonic clock.

    Attributes:
        reason: In words.
        at: When that was tried last.
        failures: Starts that failed, in a row.
        until: Nothing is started before.
    """

    reason: str = ""
    at: float = 0.0
    failures: int = 0
    until: float = 0.0


class Scaling:
    """Adds instances to a fleet and takes them from it.

    Args:
        fleet: The fleet.
        scheduler: Whose rules.
        placing: Knows where there is room.
        converging: Ends instances.
        actions: Writes down what happens.
        book: The models' rules, as changed by operators.
    """

    def __init__(
        self,
        fleet: Fleet,
        scheduler: LiveScheduler,
        placing: Placing,
        converging: Converging,
        actions: Actions,
        book: PolicyBook,
    ) -> None:
        self._fleet = fleet
        self._scheduler = scheduler
        self._placing = placing
        self._converging = converging
        self._actions = actions
        self._book = book
        self._asked: dict[PoolName, str] = {}
        """Pools that want more, and why."""
        self._surplus: dict[InstanceId, str] = {}
        """Instances that are to go, and why."""
        self._troubles: dict[str, _Trouble] = {}

    # ------------------------------------------------------------------ what the rules want

    def grow(self, order: AddInstances) -> None:
        """`ScalingOrders`: to be done by the next `look`, when all that want more are known."""
        self._asked[order.pool] = str(order.decision)
        self._actions.wake()

    def shrink(self, order: Terminate) -> None:
        """`ScalingOrders`: to be begun by the next `look`, so that it is on disk at once."""
        self._surplus[order.instance] = str(order.decision)
        self._actions.wake()

    def keep(self, unit: Unit) -> None:
        """An operator wants an instance to be used that is being emptied.

        Raises:
            ConflictError: Its model has no room for it in its range, or it is ending already.
        """
        if not unit.is_leaving:
            return
        model = self._model_of(unit)
        count = 0 if model is None else len(self._fleet.staying(model.name))
        if model is None or count >= model.instances.max or not self._converging.can_keep(unit):
            raise ConflictError(
                f"{unit.name} is being removed",
                remedy=f"llx scale MODEL N: {count} of that model stay",
            )
        self._converging.keep(unit)

    # ------------------------------------------------------------------ every round

    def look(self) -> None:
        """Do what is wanted, as far as there is room, and tell the rules what will not come."""
        self._take_in_what_runs()
        self._end_surplus()
        if self._placing.is_looking():
            return
        models = self._fleet.settings.models
        for model in models:
            if not self._is_rolling(model):
                self._drop_failed(model)
        self._start_more()
        for model in models:
            missing = self._missing(model)
            if missing:
                self._scheduler.tell(StartFailed(self._pool(model), missing))
            self._say_trouble(model)

    def _take_in_what_runs(self) -> None:
        """What runs and nobody remembers, as after a head that is lost with its disk, goes on."""
        models = {each.name: each for each in self._fleet.settings.models}
        for host in self._fleet.hosts.values():
            if host.view is None or not host.answers or host.is_leaving:
                continue
            for name, seen in host.view.processes.items():
                model = models.get(seen.spec.pool) if isinstance(seen.spec, InstanceSpec) else None
                is_news = host.viewed_at >= self._actions.ended_at.get((host.name, name), 0.0)
                if model is None or self._fleet.unit(name) is not None:
                    continue
                revision = self._fleet.generation(model.name).revision
                if not isinstance(seen.spec, InstanceSpec) or seen.spec.revision != revision:
                    continue  # what a rollout has replaced
                if seen.is_running and is_news and self._make_place(model, name):
                    unit = self._add(model, name)
                    unit.put_on(host.name)
                    self._actions.note("found", unit, host=host.name)

    def _end_surplus(self) -> None:
        surplus, self._surplus = self._surplus, {}
        for name, why in surplus.items():
            unit = self._fleet.instances.get(name)
            model = None if unit is None else self._model_of(unit)
            if model is not None and self._is_rolling(model):
                continue
            if unit is not None and not unit.is_leaving:
                self._actions.note("surplus", unit, why=why)
                self._converging.retire(unit)

    def _make_place(self, model: ModelSettings, name: str) -> bool:
        """Whether the range has a place for one that runs; whoever runs nowhere gives up its own.

        Not before every host has said what runs there; until then the driver ends no stray either.
        """
        if instance_index(model, name) is None:
            return False
        staying = self._fleet.staying(model.name)
        if len(staying) < model.instances.max:
            return True
        idle = [each for each in staying if not each.host and not self._is_seen_running(each)]
        if self._placing.is_looking() or not idle:
            return False
        self._actions.note("surplus", idle[-1], why=f"{name} runs already")
        self._converging.retire(idle[-1])
        return True

    def _is_rolling(self, model: ModelSettings) -> bool:
        """Whether a rollout decides alone how many instances there are."""
        return self._fleet.generation(model.name).under_way is not None

    def _is_seen_running(self, unit: Unit) -> bool:
        views = [host.view for host in self._fleet.hosts.values() if host.view is not None]
        seen = [view.processes.get(unit.name) for view in views]
        return unit.is_busy or any(each is not None and each.is_running for each in seen)

    def _drop_failed(self, model: ModelSettings) -> None:
        """What has failed for good and is not of the minimum makes way for another try."""
        units = self._fleet.staying(model.name)
        failed = [each for each in units if each.state is InstanceState.FAILED and not each.is_busy]
        num_added = max(0, len(units) - model.instances.min)
        for unit in failed[::-1][:num_added]:
            first_line = unit.detail.partition("\n")[0]
            self._note_failure(model, f"{unit.name}: {first_line}")
            self._actions.note("given_up", unit, reason=first_line)
            self._converging.retire(unit)

    def _start_more(self) -> None:
        """Who is being emptied is kept; then one unit after the other, in turn."""
        models = {self._pool(each): each for each in self._fleet.settings.models}
        asked, self._asked = self._asked, {}
        claims = []
        for pool, why in asked.items():
            if pool in models and not self._is_rolling(models[pool]):
                self._keep_some(models[pool], self._missing(models[pool]), why)
                claims.append(self._claim(models[pool]))
        for pool in in_turn(claims):
            self._start_one(models[pool], asked[pool])

    def _keep_some(self, model: ModelSettings, count: int, why: str) -> None:
        leaving = [
            unit
            for unit in self._fleet.instances.values()
            if self._model_of(unit) is model and self._converging.can_keep(unit)
        ]
        for unit in leaving[:count]:
            self._actions.note("wanted_again", unit, why=why)
            self._converging.keep(unit)

    def _claim(self, model: ModelSettings) -> Claim:
        is_paused = time.monotonic() < self._trouble(model).until
        return Claim(
            self._pool(model),
            num_present=len(self._fleet.staying(model.name)),
            num_wanted=0 if is_paused else min(self._missing(model), self._room(model)),
            least=model.instances.min,
            weight=self._book.scheduling(model).scaling.weight,
        )

    def _start_one(self, model: ModelSettings, why: str) -> None:
        name = unused_name(model, self._fleet.instances)
        reason = self._placing.why_no_room([self._spec(model, name)])
        if reason:
            trouble = self._trouble(model)
            trouble.reason, trouble.at = reason, time.monotonic()
            log.info("scaling.no_room", model=model.name, reason=reason)
            return
        unit = self._add(model, name)
        self._actions.note("added", unit, why=why)

    def _add(self, model: ModelSettings, name: str) -> Unit:
        unit = Unit(self._spec(model, name))
        self._fleet.instances[name] = unit
        return unit

    # ------------------------------------------------------------------ what is missing

    def _missing(self, model: ModelSettings) -> int:
        """So many more the rules count on than are coming."""
        pool = self._pool(model)
        there = self._scheduler.in_use(pool)
        coming = [
            unit
            for unit in self._fleet.staying(model.name)
            if InstanceId(unit.name) not in there
            and unit.state not in _NOT_COMING
            and not (unit.state is InstanceState.READY and self._fleet.is_cordoned(unit))
        ]
        return max(0, self._scheduler.starting(pool) - len(coming))

    def _room(self, model: ModelSettings) -> int:
        """So many more its maximum allows beside those that run, come or are being emptied."""
        units = [each for each in self._fleet.instances.values() if self._model_of(each) is model]
        here = [each for each in units if each.known or not each.is_leaving]
        return max(0, model.instances.max - sum(each.state not in _NOT_COMING for each in here))

    def _trouble(self, model: ModelSettings) -> _Trouble:
        return self._troubles.setdefault(model.name, _Trouble())

    def _note_failure(self, model: ModelSettings, reason: str) -> None:
        """A start has failed: the next is tried after a pause that doubles each time."""
        trouble, now = self._trouble(model), time.monotonic()
        first_s = max(1.0, self._book.scheduling(model).scaling.cooldown_s)
        trouble.failures += 1
        trouble.reason, trouble.at = reason, now
        trouble.until = now + min(_LONGEST_PAUSE_S, first_s * 2.0 ** min(trouble.failures - 1, 16))

    def _say_trouble(self, model: ModelSettings) -> None:
        """For the status; trouble ends when an instance comes, or none is wanted."""
        trouble, now = self._trouble(model), time.monotonic()
        ready = [unit.ready_since or 0.0 for unit in self._fleet.staying(model.name)]
        is_past = now > max(trouble.at, trouble.until) + _CALM_S
        is_over = is_past and not self._scheduler.is_short(self._pool(model))
        if is_over or max(ready, default=0.0) > trouble.at:
            trouble = self._troubles[model.name] = _Trouble()
        left_s = trouble.until - now
        again = f"; tried again in {left_s:.0f} s" if trouble.reason and left_s > 0.5 else ""
        self._fleet.shortages[model.name] = trouble.reason + again

    def _pool(self, model: ModelSettings) -> PoolName:
        """That for new instances."""
        return PoolName(generation_key(model.name, self._fleet.generation(model.name).generation))

    def _spec(self, model: ModelSettings, name: str) -> InstanceSpec:
        fleet = self._fleet
        return instance_spec(fleet.settings, model, name, fleet.generation(model.name))

    def _model_of(self, unit: Unit) -> ModelSettings | None:
        assert isinstance(unit.spec, InstanceSpec), f"{unit.name} is an instance"
        pool = unit.spec.pool
        return next((each for each in self._fleet.settings.models if each.name == pool), None)
