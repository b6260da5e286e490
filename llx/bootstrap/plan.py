"""What `llx up` is going to do: settings made concrete, and the steps that follow from them.

Reads the environment and key files; changes nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from llx import __version__
from llx.agent.devices import Device
from llx.bootstrap.gateway_tls import Given, describe_certificate, given_certificate
from llx.bootstrap.node_env import NodePlatform, default_prefix, detect_platform
from llx.environment import Environment
from llx.pins import VLLM_VERSION
from llx.secret import Secret
from llx.settings import ClusterSettings, Platform, local_cluster, resolve_api_keys, resolve_model
from llx.specs import EngineKind


@dataclass(frozen=True, slots=True)
class NodeChoice:
    """Which Python runs the cluster: `python` as it is, or llx's own environment at `prefix`."""

    platform: NodePlatform
    prefix: Path
    python: Path | None
    wheelhouse: Path | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A cluster to be brought up.

    Attributes:
        settings: Concrete: platform decided, model directories absolute, API keys as hashes.
        environment: Of the caller.
        state_dir: The cluster's directory.
        node: Where it runs.
        tiny_model: Where llx's own tiny model goes, if some model is it.
        probe_key: A key to ask the gateway with.
        secret_variables: Environment variables that hold API keys; no process inherits them.
        certificate: The operator's, for gateways; None: llx makes one, or there is no TLS.
        rotates: What can be replaced of the secrets of a cluster that runs is replaced.
    """

    settings: ClusterSettings
    environment: Environment
    state_dir: Path
    node: NodeChoice
    tiny_model: Path | None
    probe_key: Secret | None
    secret_variables: frozenset[str]
    certificate: Given | None = None
    rotates: bool = False

    @property
    def can_probe(self) -> bool:
        """Whether a request of ours would be let in."""
        return self.probe_key is not None or not self.settings.gateway.api_keys


def make_plan(settings: ClusterSettings, environment: Environment) -> Plan:
    """Make `settings` concrete on this machine.

    Raises:
        ConfigError: An API key's variable or file is missing, or a certificate cannot be used.
    """
    variables = {each.key_env for each in settings.gateway.api_keys if each.key_env is not None}
    resolved, key = resolve_api_keys(settings, environment)
    models = tuple(resolve_model(each, environment) for each in resolved.models)
    tiny = str(environment.tiny_model)
    node = _node_choice(resolved, environment)
    runtime = resolved.runtime.model_copy(
        update={"platform": Platform(node.platform), "python": node.python}
    )
    return Plan(
        settings=resolved.model_copy(update={"models": models, "runtime": runtime}),
        environment=environment,
        state_dir=environment.cluster_dir(resolved.cluster),
        node=node,
        tiny_model=environment.tiny_model if any(m.model == tiny for m in models) else None,
        probe_key=key,
        secret_variables=frozenset(variables),
        certificate=given_certificate(resolved.gateway.tls),
    )


def plan_local(
    environment: Environment,
    gpus: tuple[Device, ...],
    *,
    cluster: str = "local",
    model: str | None = None,
    engine: EngineKind = EngineKind.VLLM,
    instances: int | None = None,
    port: int | None = None,
    control_port: int | None = None,
    platform: Platform = Platform.AUTO,
) -> Plan:
    """The plan of `llx up` without a file: two instances here, or as many as there are GPUs.

    Raises:
        ConfigError: A value is out of range.
    """
    if platform is Platform.AUTO:
        is_cuda = bool(gpus) and engine is EngineKind.VLLM
        platform = Platform.CUDA if is_cuda else Platform.CPU
    if instances is None:
        instances = 1 if platform is Platform.CUDA and len(gpus) == 1 else 2
    settings = local_cluster(
        environment,
        cluster=cluster,
        model=model,
        engine=engine,
        instances=instances,
        port=port,
        control_port=control_port,
        platform=platform,
    )
    return make_plan(settings, environment)


def describe(plan: Plan, *, is_installed: bool) -> list[tuple[str, str]]:
    """The plan in words: (what, how), in the order of doing."""
    settings, node = plan.settings, plan.node
    where = node.python or node.prefix
    verb = "uses" if node.python or is_installed else "will be installed at"
    rows = [
        ("cluster", f"{settings.cluster}, state in {plan.state_dir}"),
        ("node environment", f"{node.platform}, vLLM {VLLM_VERSION}, {verb} {where}"),
    ]
    if plan.tiny_model is not None:
        is_there = (plan.tiny_model / "config.json").exists()
        rows.append(("tiny model", f"{'at' if is_there else 'will be made at'} {plan.tiny_model}"))
    rows += [
        (
            f"model {model.name}",
            f"{model.instances.min} × {model.engine} of {model.model}"
            + (f", tensor parallel {model.tensor_parallel}" if model.tensor_parallel > 1 else ""),
        )
        for model in settings.models
    ]
    keys = len(settings.gateway.api_keys)
    access = f"{keys} API keys" if keys else "no API keys: open to whoever reaches it"
    scheme = "http" if settings.gateway.tls is None else "https"
    address = f"{settings.gateway.host}:{settings.gateway.port}"
    rows.append(("gateway", f"{scheme}://{address}/v1, {access}"))
    if settings.gateway.tls is not None:
        rows.append(("certificate", describe_certificate(plan.certificate)))
    rows.append(("control API", f"http://127.0.0.1:{settings.control.port}"))
    rows.append(("llx", __version__))
    return rows


def _node_choice(settings: ClusterSettings, environment: Environment) -> NodeChoice:
    runtime = settings.runtime
    match runtime.platform:
        case Platform.AUTO:
            platform = detect_platform()
        case concrete:
            platform = NodePlatform(concrete)
    prefix = (
        runtime.prefix
        or environment.node_prefix
        or default_prefix(platform, environment.xdg_data_home)
    )
    python = None if runtime.python is None else runtime.python.expanduser()
    return NodeChoice(platform, prefix, python, runtime.wheelhouse)
