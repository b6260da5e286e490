"""From settings to what should run: pure functions.

Specs are made here without what only a host knows; its agent fills that in (`llx.agent.place`).
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import count, islice
from typing import Any

import msgspec

from llx.agent.devices import Need
from llx.agent.place import HERE
from llx.cluster.rollout_file import FIRST, Generation, Generations
from llx.core.model import HostName, PoolName
from llx.core.placement import Wanted
from llx.errors import ConfigError
from llx.settings import ClusterSettings, ModelSettings, TenantSettings
from llx.specs import (
    ApiKeySpec,
    EngineKind,
    GatewaySpec,
    HangSpec,
    InstanceSpec,
    PoolSpec,
    PriorityClassSpec,
    TenantSpec,
    generation_key,
)
from llx.wire import PoolOffer

NEVER: Generations = {}
"""No model was ever rolled out."""

GATEWAY_PREFIX = "gateway-"


def desired_hosts(settings: ClusterSettings) -> list[str]:
    """The names of all hosts, the head's first; a cluster on this machine has one."""
    head = settings.head_host
    if head is None:
        return [HERE]
    return [head.name, *(each.name for each in settings.hosts if each.name != head.name)]


def desired_instances(
    settings: ClusterSettings, before: Sequence[str] = (), generations: Generations = NEVER
) -> list[InstanceSpec]:
    """The instances of every model: of `before` as many as its range allows, at least its minimum.

    `before`: names of instances that were desired so far; if a range is too small for those of its
    model, the first of them stay. A model that is being rolled out keeps all that it has.
    """
    return [
        instance_spec(settings, model, name, generations.get(model.name, FIRST))
        for model in settings.models
        for name in _names(model, before, generations.get(model.name, FIRST))
    ]


def instance_spec(
    settings: ClusterSettings, model: ModelSettings, name: str, generation: Generation = FIRST
) -> InstanceSpec:
    """An instance of a model of these settings."""
    return InstanceSpec(
        name=name,
        pool=model.name,
        engine=model.engine,
        model=model.model,
        engine_args=dict(model.engine_args),
        tensor_parallel=model.tensor_parallel,
        bind_host="",
        keys_path="",
        status_path="",
        sim=model.sim_spec,
        migration=settings.migration.spec,
        hang=settings.runtime.hang,
        revision=generation.revision,
        generation=generation.generation,
    )


def instance_index(model: ModelSettings, name: str) -> int | None:
    """The index in ``<pool>-<index>``; None if that is no instance of the model."""
    found = re.fullmatch(rf"{re.escape(model.name)}-(0|[1-9]\d{{0,8}})", name)
    return None if found is None else int(found[1])


def unused_name(model: ModelSettings, used: Collection[str]) -> str:
    """A name for one more instance: that with the lowest free index."""
    return next(name for i in count() if (name := f"{model.name}-{i}") not in used)


def _names(model: ModelSettings, before: Iterable[str], generation: Generation) -> list[str]:
    found = [index for name in before if (index := instance_index(model, name)) is not None]
    known = dict.fromkeys(found)
    if known and generation.under_way is not None:
        return [f"{model.name}-{index}" for index in sorted(known)]
    kept = list(known)[: model.instances.max]
    free = (index for index in count() if index not in known)
    missing = islice(free, max(0, model.instances.min - len(kept)))
    return [f"{model.name}-{index}" for index in sorted([*kept, *missing])]


def desired_gateways(
    settings: ClusterSettings, scheduler_address: str, generations: Generations = NEVER
) -> list[GatewaySpec]:
    """All gateways, named ``gateway-<index>``, alike but for their names.

    Raises:
        ConfigError: An API key is not given by its hash; `llx up` resolves keys before this.
    """
    pools = [each.spec for each in pool_offers(settings, generations)]
    first = _gateway(settings, scheduler_address, pools)
    return [
        msgspec.structs.replace(first, name=f"{GATEWAY_PREFIX}{index}")
        for index in range(settings.num_gateways)
    ]


def pool_offers(settings: ClusterSettings, generations: Generations = NEVER) -> list[PoolOffer]:
    """All pools, for gateways: of each model the one for new requests first."""
    found = []
    for model in settings.models:
        generation = generations.get(model.name, FIRST)
        rollout = generation.under_way
        for key in generation.pools(model.name):
            if key == generation_key(model.name, generation.generation):
                spec = _pool(model, generation.generation)
            else:
                assert rollout is not None, f"{key}: only a rollout has two"
                former = rollout.former_model()
                spec = _pool(
                    former.model_copy(update={"serve_args": model.serve_args}),
                    rollout.former_generation,
                )
            is_current = key == generation.pools(model.name)[0]
            found.append(PoolOffer(spec, is_current, 0 if rollout is None else rollout.attempt))
    return found


def need_of(spec: InstanceSpec) -> Need:
    """What devices an instance asks for; the simulated engine computes on none."""
    return Need(spec.name, 0 if spec.engine is EngineKind.SIM else spec.tensor_parallel)


def wanted_of(spec: InstanceSpec, avoids: frozenset[HostName] = frozenset()) -> Wanted:
    """The instance as placement sees it; it is not to be placed on the hosts of `avoids`."""
    return Wanted(spec.name, PoolName(spec.pool), need_of(spec).num_gpus, avoids)


def serves_alike(one: GatewaySpec, other: GatewaySpec) -> bool:
    """Whether a gateway of the one spec serves as well as one of the other.

    Of pools it has to be started with the models' names and what it makes of their requests: all
    else it is told while it runs (`llx.wire.PoolOffer`), and so it is where the scheduler is and
    who is let in. `hang` says when a gateway that does not serve is ended.
    """
    return _as_served(one) == _as_served(other)


def _as_served(spec: GatewaySpec) -> tuple[GatewaySpec, dict[str, dict[str, Any]]]:
    pools = {pool.name: pool.serve_args for pool in spec.pools}
    told: dict[str, Any] = {"pools": [], "scheduler_address": "", "api_keys": []}
    return msgspec.structs.replace(spec, hang=HangSpec(), **told), pools


def desired_api_keys(settings: ClusterSettings) -> list[ApiKeySpec]:
    """Who is let in; gateways that run hear of it with the list of instances.

    Raises:
        ConfigError: An API key is not given by its hash; `llx up` resolves keys before this.
    """
    keys = []
    for key in settings.gateway.api_keys:
        if key.sha256 is None:
            raise ConfigError(f'api key of "{key.tenant}" was not resolved to its hash')
        keys.append(ApiKeySpec(key.tenant, key.sha256, key.priority_class))
    return keys


def _gateway(
    settings: ClusterSettings, scheduler_address: str, pools: list[PoolSpec]
) -> GatewaySpec:
    return GatewaySpec(
        name=f"{GATEWAY_PREFIX}0",
        host=settings.gateway.host,
        port=settings.gateway.port,
        pools=pools,
        classes=[
            PriorityClassSpec(each.name, each.priority, each.default)
            for each in settings.priority_classes
        ],
        api_keys=desired_api_keys(settings),
        max_requests=settings.gateway.max_requests,
        scheduler_address=scheduler_address,
        keys_path="",
        status_path="",
        tenants=[_tenant(each, settings.num_gateways) for each in settings.gateway.tenants],
        hang=settings.runtime.hang,
        is_tls=settings.gateway.tls is not None,
    )


def _tenant(tenant: TenantSettings, num_gateways: int) -> TenantSpec:
    """Each gateway gives its share: none knows what the others have given."""
    most, requests, tokens = (
        tenant.max_requests,
        tenant.requests_per_minute,
        tenant.tokens_per_minute,
    )
    return TenantSpec(
        name=tenant.name,
        max_requests=None if most is None else math.ceil(most / num_gateways),
        requests_per_minute=None if requests is None else requests / num_gateways,
        tokens_per_minute=None if tokens is None else tokens / num_gateways,
    )


def _pool(model: ModelSettings, generation: int) -> PoolSpec:
    return PoolSpec(
        name=model.name,
        model=model.model,
        engine=model.engine,
        engine_args=dict(model.engine_args),
        serve_args=dict(model.serve_args),
        tensor_parallel=model.tensor_parallel,
        max_instances=model.instances.max,
        generation=generation,
    )
