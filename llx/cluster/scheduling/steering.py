"""What operators see of the scheduler and do to it: queues, rules, pauses, reasons."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import yaml
from pydantic import JsonValue

from llx.api import (
    Explanation,
    PolicyList,
    PolicyStatus,
    PolicyUpdate,
    QueueList,
)
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.scheduling.configs import desired_config
from llx.cluster.scheduling.live import LiveScheduler
from llx.cluster.scheduling.past_decisions import past_decisions
from llx.cluster.scheduling.policy_book import ModelPolicy, PolicyBook
from llx.core.model import PoolName
from llx.core.scheduler.policies import Policies
from llx.errors import ConfigError, NotFoundError
from llx.log import get_log
from llx.scheduling_settings import with_changes
from llx.settings import ModelSettings
from llx.yaml_reader import no_such

log = get_log(__name__)

SteerVerb = Literal["pause", "resume", "step"]


class Steering:
    """The operators' side of the scheduler.

    Args:
        fleet: Whose settings.
        live: The scheduler.
        book: What was changed.
        policies: What rules there are.
        audit: Where what is done is written down.
        apply: Makes the scheduler go by the book.
        recordings: Where recordings of this and former schedulers lie.
    """

    def __init__(
        self,
        fleet: Fleet,
        live: LiveScheduler,
        book: PolicyBook,
        policies: Policies,
        audit: AuditTrail,
        apply: Callable[[], None],
        recordings: Path,
    ) -> None:
        self._fleet = fleet
        self._live = live
        self._book = book
        self._policies = policies
        self._audit = audit
        self._apply = apply
        self._recordings = recordings

    def queues(self) -> QueueList:
        """All central queues."""
        names = [pool for each in self._fleet.settings.models for pool in self._pools(each)]
        return QueueList(queues=[queue for name in names for queue in self._live.queues(name)])

    def policies(self) -> PolicyList:
        """How each model is scheduled."""
        return PolicyList(policies=[self._status(each) for each in self._fleet.settings.models])

    def update(self, update: PolicyUpdate) -> PolicyList:
        """Schedule models by other rules; see `PolicyUpdate`.

        Raises:
            NotFoundError: There is no such model.
            ConfigError: A key or value is wrong; then nothing has changed.
        """
        changes = {key: _value(key, text) for key, text in update.changes.items()}
        models = self._models(update.model)
        new = {each.name: self._changed(each, changes, update) for each in models}
        for each in models:
            self._check(each, new[each.name])
        if update.is_dry_run:
            return PolicyList(
                policies=[
                    _status(each, new.get(each.name, self._book.of(each.name)))
                    for each in self._fleet.settings.models
                ]
            )
        self._book.put(new)
        self._apply()
        told = ", ".join(f"{key}={text}" for key, text in update.changes.items())
        kind = "policy.reverted" if update.is_revert else "policy.changed"
        self._note(kind, update.user, models, changes=told)
        return self.policies()

    def steer(self, verb: SteerVerb, model: str, user: str) -> PolicyList:
        """Pause or resume moves by rule, or make one round of them.

        Raises:
            NotFoundError: There is no such model.
        """
        models = self._models(model)
        if verb == "step":
            for each in models:
                for pool in self._pools(each):
                    self._live.step(pool)
        else:
            is_paused = verb == "pause"
            self._book.put(
                {
                    each.name: msgspec.structs.replace(
                        self._book.of(each.name), is_paused=is_paused
                    )
                    for each in models
                }
            )
            self._apply()
        self._note(f"policy.{verb}", user, models)
        return self.policies()

    def recording(self, last_s: float | None) -> Iterator[bytes]:
        """A recording of what the scheduler was told and answered lately, in pieces.

        None: since it began, as far as that is kept.

        Raises:
            NotFoundError: Nothing is recorded.
        """
        try:
            return self._live.recording(last_s)
        except OSError as error:
            raise NotFoundError(f"the recording cannot be read: {error}") from None

    async def explain(self, request: str) -> Explanation:
        """What was decided about a request, by any of its ids; by former heads, too.

        What those did is known by the engine's and the client's own id only.

        Raises:
            NotFoundError: Nothing is known of it, or no longer.
        """
        known = {each.request: each for each in self._live.decisions.find(request)}
        past = await asyncio.to_thread(
            past_decisions,
            self._recordings,
            list(dict.fromkeys([request, *known])),
            self._fleet.term,
            frozenset(known),
        )
        for each in past:
            now = known.get(each.request, each.model_copy(update={"decisions": []}))
            told = {"decisions": each.decisions + now.decisions}
            known[each.request] = now.model_copy(update=told)
        if not known:
            raise NotFoundError(
                f'nothing was decided about a request "{request}", or it is forgotten',
                remedy="llx req ls",
            )
        return Explanation(requests=list(known.values()))

    # ------------------------------------------------------------------ leaves

    def _models(self, name: str) -> list[ModelSettings]:
        models = self._fleet.settings.models
        found = [each for each in models if name in ("", each.name)]
        if not found:
            raise no_such("model", name, [each.name for each in models])
        return found

    def _changed(
        self, model: ModelSettings, changes: Mapping[str, JsonValue], update: PolicyUpdate
    ) -> ModelPolicy:
        before = self._book.of(model.name)
        kept = {} if update.is_revert else before.changed
        return msgspec.structs.replace(before, changed={**kept, **changes})

    def _check(self, model: ModelSettings, policy: ModelPolicy) -> None:
        scheduling = with_changes(model.scheduling, policy.changed)
        self._policies.check(desired_config(self._fleet.settings, model, scheduling, ()))

    def _pools(self, model: ModelSettings) -> list[PoolName]:
        return self._fleet.pools(model.name)

    def _status(self, model: ModelSettings) -> PolicyStatus:
        return _status(model, self._book.of(model.name))

    def _note(self, kind: str, user: str, models: list[ModelSettings], **fields: str) -> None:
        names = ",".join(each.name for each in models)
        log.info(kind, user=user, models=names, **fields)
        self._audit.record(kind, user=user, models=names, **fields)


def _status(model: ModelSettings, policy: ModelPolicy) -> PolicyStatus:
    try:
        scheduling = with_changes(model.scheduling, policy.changed)
    except ConfigError:  # the file has changed since: `PolicyBook.scheduling`
        scheduling = model.scheduling
    return PolicyStatus(
        model=model.name,
        is_paused=policy.is_paused,
        scheduling=scheduling.model_dump(mode="json"),
        changed=policy.changed,
    )


def _value(key: str, text: str) -> JsonValue:
    try:
        value: JsonValue = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}: not valid YAML: {error}") from None
    return value
