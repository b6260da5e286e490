"""`llx rollout`, at the head: begun, paused, gone on with, gone back on, shown."""

import time
from collections.abc import Callable
from typing import Literal

import msgspec
from fastapi import FastAPI

from llx.api import (
    API_VERSION,
    InstanceState,
    RolloutList,
    RolloutReport,
    RolloutRequest,
    RolloutStatus,
)
from llx.cluster.driving.converge import Converging
from llx.cluster.driving.rollout_change import (
    changed_keys,
    in_words,
    keys_apart,
    read_model,
    with_changes,
)
from llx.cluster.driving.rollouts import Rollouts, revision_of
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.moves.routes import User
from llx.cluster.rollout_file import Generation, Rollout, RolloutState
from llx.errors import ConfigError, ConflictError
from llx.settings import ClusterSettings, ModelSettings, to_dict

SteerRollout = Literal["pause", "resume", "abort"]
_MAX_S = 86400.0


class RolloutVerb:
    """What operators do to rollouts.

    Args:
        fleet: The fleet.
        rollouts: Carries them out.
        converging: Uses instances again that are being emptied.
        save: Keeps new settings.
    """

    def __init__(
        self,
        fleet: Fleet,
        rollouts: Rollouts,
        converging: Converging,
        save: Callable[[ClusterSettings], None],
    ) -> None:
        self._fleet = fleet
        self._rollouts = rollouts
        self._converging = converging
        self._save = save

    # ------------------------------------------------------------------ shown

    def statuses(self) -> RolloutList:
        """Of every model, as what it was rolled out last."""
        return RolloutList(rollouts=[self._status(each) for each in self._fleet.settings.models])

    def _status(self, model: ModelSettings) -> RolloutStatus:
        generation = self._fleet.generation(model.name)
        found, parts = generation.rollout, self._rollouts.parts(model.name)
        ready = [each for each in parts.new if each.state is InstanceState.READY]
        status = RolloutStatus(
            model=model.name,
            revision=generation.revision,
            generation=generation.generation,
            instances_new=len(ready),
            instances_former=len(parts.former),
            instances_leaving=len(parts.going),
        )
        if found is None:
            return status
        return status.model_copy(
            update={
                "state": found.state.value,
                "reason": found.reason,
                "is_back": found.is_back,
                "is_apart": found.former_generation != generation.generation,
                "is_switched": found.is_switched,
                "instances_wanted": found.count,
                "deadline_s": found.deadline_s,
                "user": found.user,
                "begun_at": found.begun_at,
                "moved": found.moved,
                "finished": found.finished,
                "cut": found.cut,
            }
        )

    # ------------------------------------------------------------------ begun

    def begin(self, name: str, request: RolloutRequest) -> RolloutReport:
        """See `RolloutRequest`; answers when that has begun.

        Raises:
            NotFoundError: There is no such model.
            ConfigError: What it is to be makes no sense.
            ConflictError: A rollout of it is under way, there is no room, or the cluster stops.
        """
        model = self._model(name)
        for key in ("deadline_s", "steady_s"):
            if not 0 <= getattr(request, key) <= _MAX_S:
                raise ConfigError(f"{key}: not in 0..{_MAX_S:g}")
        if self._fleet.generation(name).under_way is not None:
            raise ConflictError(
                f"a rollout of {name} is under way",
                remedy=f"llx rollout {name}: wait for its end, or --abort it",
            )
        given = read_model(model, request.values) if request.values else model
        new = with_changes(given, request.changes)
        keys = changed_keys(model, new)
        if not keys and not (request.is_again or request.is_apart):
            return RolloutReport(changes=[], rollout=self._status(model))
        apart = keys_apart(keys)
        is_apart = bool(apart) or request.is_apart
        words = in_words(model, new, keys)
        words += self._way(model, new, apart, is_apart=is_apart, deadline_s=request.deadline_s)
        if not request.is_dry_run:
            self._begin(model, new, request, is_apart=is_apart)
            self._rollouts.note("begun", name, request.user, changes="; ".join(words))
        return RolloutReport(changes=words, rollout=self._status(self._model(name)))

    def _model(self, name: str) -> ModelSettings:
        model = self._fleet.model_settings(name)
        if self._fleet.is_stopping:
            raise ConflictError(f"{self._fleet.settings.cluster} is being stopped")
        return model

    def _way(
        self,
        model: ModelSettings,
        new: ModelSettings,
        apart: list[str],
        *,
        is_apart: bool,
        deadline_s: float,
    ) -> list[str]:
        """How it will be done, in words.

        Raises:
            ConflictError: It cannot be done without an end of service.
        """
        count = len(self._fleet.staying(model.name))
        shortage = self._rollouts.why_no_room(new)
        if shortage and count < 2:
            raise ConflictError(
                f"{model.name}: no room for a new instance beside the one that serves: {shortage}",
                remedy="free a device or add a host; or llx down, then llx up with the change",
            )
        late = f"what has not finished {deadline_s:g} s after that is cut"
        if is_apart:
            why = f" ({', '.join(apart)})" if apart else ""
            words = [
                f"requests cannot move to the new instances{why}",
                "those are a generation of their own, which gets all new requests",
                f"then the {count} former ones are emptied: {late}",
            ]
        else:
            words = [f"{count} instances are replaced one by one, their requests move: {late}"]
        if shortage:
            words.append(f"meanwhile fewer serve: {shortage}")
        return words

    def _begin(
        self, model: ModelSettings, new: ModelSettings, request: RolloutRequest, *, is_apart: bool
    ) -> None:
        before = self._fleet.generation(model.name)
        revision = before.newest + 1
        end = time.time() + request.deadline_s
        generation = Generation(
            revision=revision,
            generation=revision if is_apart else before.generation,
            newest=revision,
            rollout=Rollout(
                wanted=to_dict(new),
                former=to_dict(model),
                former_revision=before.revision,
                former_generation=before.generation,
                count=len(self._fleet.staying(model.name)),
                deadline_s=request.deadline_s,
                steady_s=request.steady_s,
                user=request.user,
                begun_at=time.time(),
                # Those that are being emptied already have no longer than those to be replaced.
                ends={unit.name: end for unit in self._rollouts.parts(model.name).going},
            ),
        )
        self._install(new, generation)

    def _install(self, model: ModelSettings, generation: Generation) -> None:
        """The record first: the settings alone would not say what is former.

        A head that falls in between leaves the next one to take them from the record
        (`rollout_change.settled`).
        """
        settings = self._fleet.settings
        models = [model if each.name == model.name else each for each in settings.models]
        settings = settings.model_copy(update={"models": tuple(models)})
        before = self._fleet.generation(model.name)
        self._rollouts.put(model.name, generation)
        try:
            self._save(settings)
        except OSError:  # a full disk: nothing is changed
            self._rollouts.put(model.name, before)
            raise
        self._fleet.settings = settings
        self._rollouts.tell_gateways()

    # ------------------------------------------------------------------ steered

    def steer(self, name: str, verb: SteerRollout, user: str) -> RolloutReport:
        """Pause a rollout, go on with it, or go back to what was before it.

        Raises:
            NotFoundError: There is no such model.
            ConflictError: None is under way, or that is so already.
        """
        model = self._model(name)
        rollout = self._fleet.generation(name).under_way
        if rollout is None:
            raise ConflictError(f"no rollout of {name} is under way", remedy="llx rollout")
        match verb:
            case "pause":
                self._expect(name, rollout, RolloutState.RUNNING)
                self._rollouts.change(name, state=RolloutState.PAUSED)
            case "resume":
                self._expect(name, rollout, RolloutState.PAUSED, RolloutState.FAILED)
                self._resume(name, rollout)
            case "abort":
                self._abort(model, rollout, user)
        self._rollouts.note({"abort": "aborted"}.get(verb, f"{verb}d"), name, user)
        return RolloutReport(changes=[], rollout=self._status(self._model(name)))

    def _expect(self, name: str, rollout: Rollout, *states: RolloutState) -> None:
        if rollout.state not in states:
            raise ConflictError(f"the rollout of {name} is {rollout.state}")

    def _resume(self, name: str, rollout: Rollout) -> None:
        """What has failed is started anew, and gateways try again what they could not serve."""
        for unit in self._rollouts.parts(name).new:
            if unit.state is InstanceState.FAILED or unit.retry_at is not None:
                self._converging.retire(unit)
        attempt = rollout.attempt + 1
        self._rollouts.change(name, state=RolloutState.RUNNING, reason="", attempt=attempt)

    def _abort(self, model: ModelSettings, rollout: Rollout, user: str) -> None:
        """The way back is a rollout, too: of what was before, and what comes of it is former."""
        before = self._fleet.generation(model.name)
        is_apart = rollout.former_generation != before.generation
        back = Generation(
            revision=rollout.former_revision,
            generation=rollout.former_generation,
            newest=before.newest,
            rollout=msgspec.structs.replace(
                rollout,
                wanted=rollout.former,
                former=to_dict(model),
                former_revision=before.revision,
                former_generation=before.generation,
                user=user,
                begun_at=time.time(),
                state=RolloutState.RUNNING,
                reason="",
                is_back=not rollout.is_back,
                is_switched=is_apart and not rollout.is_switched,
                attempt=rollout.attempt + 1,
            ),
        )
        self._install(read_model(model, rollout.former), back)
        parts = self._rollouts.parts(model.name)
        kept = [
            unit
            for unit in parts.going
            if revision_of(unit) == back.revision and self._converging.can_keep(unit)
        ]
        for unit in kept[: max(0, rollout.count - len(parts.new))]:
            self._converging.keep(unit)


def add_rollout_routes(app: FastAPI, verb: RolloutVerb) -> None:
    """Add them to the control API."""

    @app.get(f"/{API_VERSION}/rollouts")
    async def rollouts() -> RolloutList:
        """As what each model was rolled out last, and how far that is."""
        return verb.statuses()

    @app.put(f"/{API_VERSION}/models/{{name}}/rollout")
    async def begin(name: str, request: RolloutRequest) -> RolloutReport:
        """Replace the instances of a model by other ones; answers when that has begun."""
        return verb.begin(name, request.model_copy(update={"user": request.user[:256]}))

    @app.post(f"/{API_VERSION}/models/{{name}}/rollout/{{how}}")
    async def steer(name: str, how: SteerRollout, user: User = "") -> RolloutReport:
        """Pause a rollout, go on with it, or go back to what was before it."""
        return verb.steer(name, how, user)
