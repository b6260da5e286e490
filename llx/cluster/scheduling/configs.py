"""How a pool is to be scheduled: the settings, and what its instances say they can."""

from collections.abc import Iterable

from llx.cluster.rollout_file import FIRST, Generation
from llx.core.model import PoolName
from llx.core.scheduler.config import PoolConfig
from llx.scheduling_settings import SchedulingSettings, pool_config
from llx.settings import ClusterSettings, ModelSettings
from llx.specs import SimSpec, generation_key
from llx.wire import InstanceInfo

_STEP_TOKENS = 8192
_MAX_REQUESTS = 256


def desired_config(
    settings: ClusterSettings,
    model: ModelSettings,
    scheduling: SchedulingSettings,
    infos: Iterable[InstanceInfo],
    generation: Generation = FIRST,
    pool: PoolName | None = None,
) -> PoolConfig:
    """Of one model, scheduled so, with these instances; `pool`: of a former generation.

    What an engine computes in a step and how many requests it runs is, of unlike instances, the
    least that any of them says; before any has said so, what the engine's arguments say. Nothing is
    moved by rule where an instance cannot move requests, and nothing scaled in a rollout.
    """
    rollout = generation.under_way
    limits = model.instances.min, model.instances.max
    infos = list(infos)
    step_tokens = min((each.max_num_batched_tokens for each in infos), default=None)
    max_requests = min((each.max_num_seqs for each in infos), default=None)
    sim = model.sim_spec
    return pool_config(
        pool or generation_key(model.name, generation.generation),
        scheduling,
        settings.priority_classes,
        step_tokens=step_tokens or _asked(model, sim, "max_num_batched_tokens", _STEP_TOKENS),
        max_requests=max_requests or _asked(model, sim, "max_num_seqs", _MAX_REQUESTS),
        can_move=not any(each.cannot_migrate for each in infos),
        num_instances=limits if rollout is None else (rollout.count, rollout.count),
    )


def _asked(model: ModelSettings, sim: SimSpec | None, name: str, default: int) -> int:
    value = getattr(sim, name) if sim is not None else model.engine_args.get(name)
    return value if isinstance(value, int) and value > 0 else default
