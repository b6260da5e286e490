"""From settings to what should run: pure functions."""

from llx.agent.devices import Need
from llx.agent.node import status_path
from llx.cluster.state_dir import StateDir
from llx.errors import ConfigError
from llx.settings import ClusterSettings, ModelSettings
from llx.specs import (
    ApiKeySpec,
    EngineKind,
    GatewaySpec,
    InstanceSpec,
    PoolSpec,
    PriorityClassSpec,
)

GATEWAY = "gateway-0"
LOOPBACK = "127.0.0.1"


def desired_instances(settings: ClusterSettings, state: StateDir) -> list[InstanceSpec]:
    """`instances.min` instances of every model, named ``<pool>-<index>``."""
    return [
        _instance(model, f"{model.name}-{index}", state)
        for model in settings.models
        for index in range(model.instances.min)
    ]


def desired_gateway(
    settings: ClusterSettings, state: StateDir, scheduler_address: str
) -> GatewaySpec:
    """The one gateway of a local cluster.

    Raises:
        ConfigError: An API key is not given by its hash; `llx up` resolves keys before this.
    """
    keys = []
    for key in settings.gateway.api_keys:
        if key.sha256 is None:
            raise ConfigError(f'api key of "{key.tenant}" was not resolved to its hash')
        keys.append(ApiKeySpec(key.tenant, key.sha256, key.priority_class))
    return GatewaySpec(
        name=GATEWAY,
        host=settings.gateway.host,
        port=settings.gateway.port,
        pools=[_pool(model) for model in settings.models],
        classes=[
            PriorityClassSpec(each.name, each.priority, each.default)
            for each in settings.priority_classes
        ],
        api_keys=keys,
        max_requests=settings.gateway.max_requests,
        scheduler_address=scheduler_address,
        keys_path=str(state.keys),
        status_path=str(status_path(state.procs, GATEWAY)),
    )


def need_of(spec: InstanceSpec) -> Need:
    """What devices an instance asks for; the simulated engine computes on none."""
    return Need(spec.name, 0 if spec.engine is EngineKind.SIM else spec.tensor_parallel)


def _instance(model: ModelSettings, name: str, state: StateDir) -> InstanceSpec:
    return InstanceSpec(
        name=name,
        pool=model.name,
        engine=model.engine,
        model=model.model,
        engine_args=dict(model.engine_args),
        tensor_parallel=model.tensor_parallel,
        bind_host=LOOPBACK,
        keys_path=str(state.keys),
        status_path=str(status_path(state.procs, name)),
        sim=model.sim_spec,
    )


def _pool(model: ModelSettings) -> PoolSpec:
    return PoolSpec(
        name=model.name,
        model=model.model,
        engine=model.engine,
        engine_args=dict(model.engine_args),
        serve_args=dict(model.serve_args),
        tensor_parallel=model.tensor_parallel,
        max_instances=model.instances.max,
    )
