"""How many instances a model has, on an operator's word: a number, or a range to scale within."""

from collections.abc import Callable

from fastapi import FastAPI
from pydantic import ValidationError

from llx.api import API_VERSION, ScaleReport, ScaleRequest
from llx.cluster.driving.converge import Converging
from llx.cluster.driving.desired import desired_instances
from llx.cluster.driving.placing import Placing
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.fleet import Fleet
from llx.errors import ConfigError, ConflictError
from llx.log import get_log
from llx.settings import ClusterSettings, InstanceRange, ModelSettings

log = get_log(__name__)


class ScaleVerb:
    """Changes the ranges of a fleet's models. They are settings: a new head finds them.

    Args:
        fleet: The fleet.
        converging: Makes it match.
        placing: Knows where there is room.
        audit: Where what is done is written down.
        save: Keeps new settings.
    """

    def __init__(
        self,
        fleet: Fleet,
        converging: Converging,
        placing: Placing,
        audit: AuditTrail,
        save: Callable[[ClusterSettings], None],
    ) -> None:
        self._fleet = fleet
        self._converging = converging
        self._placing = placing
        self._audit = audit
        self._save = save

    def scale(self, name: str, request: ScaleRequest) -> ScaleReport:
        """See `ScaleRequest`; answers when that has begun.

        Raises:
            NotFoundError: There is no such model.
            ConfigError: The numbers contradict each other.
            ConflictError: There is no room for so many, or the cluster stops.
        """
        model = self._fleet.model_settings(name)
        if self._fleet.is_stopping:
            raise ConflictError(f"{self._fleet.settings.cluster} is being stopped")
        settings = self._with(model, _range(model, request))
        changes = [*self._converging.plan(settings), *self._words(settings)]
        self._refuse_without_room(settings, name)
        if not request.is_dry_run and settings != self._fleet.settings:
            self._converging.apply(settings, self._save)
            told = {"model": name, "changes": "; ".join(changes)}
            log.info("model.scaled", user=request.user, **told)
            self._audit.record("model.scaled", user=request.user, **told)
        return ScaleReport(changes=changes, model=self._fleet.model(name))

    def _with(self, model: ModelSettings, instances: InstanceRange) -> ClusterSettings:
        new = model.model_copy(update={"instances": instances})
        models = tuple(new if each is model else each for each in self._fleet.settings.models)
        return self._fleet.settings.model_copy(update={"models": models})

    def _words(self, settings: ClusterSettings) -> list[str]:
        """Who comes and who goes."""
        before = self._fleet.kept_first()
        after = [spec.name for spec in desired_instances(settings, before, self._fleet.generations)]
        more = [f"{name} is started" for name in after if name not in before]
        return more + [f"{name} is emptied and ended" for name in before if name not in after]

    def _refuse_without_room(self, settings: ClusterSettings, name: str) -> None:
        """What runs, or is being emptied, has its room."""
        if self._placing.is_looking():
            return
        before = self._fleet.kept_first()
        new = [
            spec
            for spec in desired_instances(settings, before, self._fleet.generations)
            if spec.pool == name and spec.name not in self._fleet.instances
        ]
        reason = self._placing.why_no_room(new)
        if reason:
            raise ConflictError(
                f"{name}: no room for {len(new)} more: {reason}",
                remedy="llx host ls; llx scale",
            )


def add_scale_route(app: FastAPI, verb: ScaleVerb) -> None:
    """Add it to the control API."""

    @app.put(f"/{API_VERSION}/models/{{name}}/instances")
    async def scale(name: str, request: ScaleRequest) -> ScaleReport:
        """Change how many instances a model has; answers when that has begun."""
        return verb.scale(name, request.model_copy(update={"user": request.user[:256]}))


def _range(model: ModelSettings, request: ScaleRequest) -> InstanceRange:
    before = model.instances
    values = {
        "min": before.min if request.min is None else request.min,
        "max": before.max if request.max is None else request.max,
    }
    try:
        return InstanceRange.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise ConfigError(f"{': '.join(filter(None, [where, first['msg']]))}") from None
