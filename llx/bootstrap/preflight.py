"""Everything that can be refused is refused here, before anything is changed.

Pure: settings and facts in, findings out. Each finding names who is concerned, what is wrong and
what to do about it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llx.bootstrap.facts import Facts, VllmArguments
from llx.bootstrap.model_files import is_repository
from llx.errors import ExitCode, LlxError
from llx.settings import ClusterSettings, ModelSettings, Platform
from llx.specs import EngineKind
from llx.yaml_reader import nearest

GIB = 1 << 30

_INSTALL_BYTES = {Platform.CPU: 6 * GIB, Platform.CUDA: 16 * GIB}
_PROCESS_BYTES = int(0.75 * GIB)
"""Resident memory of a gateway, or of an instance without weights and KV cache (measured)."""
_OVERHEAD = 1.2

_OWN_ARGUMENTS = {
    "model": "model",
    "served_model_name": "name",
    "tensor_parallel_size": "tensor_parallel",
    "api_key": "gateway.api_keys",
    "host": "gateway.host",
    "port": "gateway.port",
    "uds": "gateway.host",
    "scheduling_policy": "priority_classes",
}
_REFUSED_ARGUMENTS = frozenset(
    {
        "api_server_count",
        "config",
        "distributed_executor_backend",
        "headless",
        "master_addr",
        "master_port",
        "nnodes",
        "node_rank",
        "pipeline_parallel_size",
        "scheduler_cls",
        "worker_cls",
        "worker_extension_cls",
    }
)
_REFUSED_PREFIXES = ("data_parallel_", "grpc", "ssl_")


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason not to start."""

    subject: str
    problem: str
    remedy: str
    exit_code: ExitCode = ExitCode.USAGE


class PreflightError(LlxError):
    """Findings of a preflight; its exit code is the findings' own, if they agree."""

    def __init__(self, findings: list[Finding]) -> None:
        assert findings, "no findings, no error"
        if len(findings) == 1:
            only = findings[0]
            super().__init__(f"{only.subject}: {only.problem}", remedy=only.remedy)
        else:
            lines = [
                f"  {each.subject}: {each.problem}\n      remedy: {each.remedy}"
                for each in findings
            ]
            super().__init__("\n".join([f"{len(findings)} things stand in the way:", *lines]))
        self.findings = tuple(findings)
        codes = {each.exit_code for each in findings}
        self.exit_code = codes.pop() if len(codes) == 1 else ExitCode.FAILURE


def check(settings: ClusterSettings, facts: Facts, arguments: VllmArguments) -> None:
    """Refuse what cannot work.

    Args:
        settings: Resolved: the platform is decided.
        facts: Of this machine.
        arguments: vLLM's own.

    Raises:
        PreflightError: With every finding.
    """
    findings = list(find(settings, facts, arguments))
    if findings:
        raise PreflightError(findings)


def find(settings: ClusterSettings, facts: Facts, arguments: VllmArguments) -> Iterator[Finding]:
    """All findings, in the order of a cluster.yaml."""
    for model in settings.models:
        yield from _model(model, facts)
        yield from find_arguments(model, arguments)
    yield from _ports(settings, facts)
    yield from _node(settings, facts)
    match settings.runtime.platform:
        case Platform.CUDA:
            yield from _gpus(settings, facts)
        case _:
            yield from _memory(settings, facts)


def find_arguments(model: ModelSettings, arguments: VllmArguments) -> Iterator[Finding]:
    """What is wrong with the names of a model's `engine_args` and `serve_args`."""
    yield from _names(model, "engine_args", arguments.engine, arguments.serve)
    yield from _names(model, "serve_args", arguments.serve, arguments.engine)


def find_hub_id(model: ModelSettings, lookalikes: frozenset[str]) -> Iterator[Finding]:
    """What is wrong with a `model` that is no path; `lookalikes`: of `facts.hub_lookalikes`."""
    subject = f"model {model.name}"
    if model.model in lookalikes:
        yield Finding(
            subject,
            f'"{model.model}" reads as a Hugging Face id, but is a directory here',
            f"write ./{model.model} (relative to cluster.yaml) for the directory",
        )
    elif not is_repository(model.model):
        yield Finding(
            subject,
            f'"{model.model}" is neither a path nor a Hugging Face id',
            "write /…, ./… or ~/… for a directory, org/name for Hugging Face",
        )


def _model(model: ModelSettings, facts: Facts) -> Iterator[Finding]:
    subject = f"model {model.name}"
    fact = facts.models.get(model.model)
    if fact is None:
        yield from find_hub_id(model, facts.hub_lookalikes)
    elif not fact.is_directory:
        yield Finding(subject, f"{model.model}: no such directory", "correct `model`")
    elif not fact.has_config:
        yield Finding(
            subject,
            f"{model.model}: no config.json there",
            "name the directory that holds the model's config.json and weights",
        )


def _names(
    model: ModelSettings, where: str, known: frozenset[str], others: frozenset[str]
) -> Iterator[Finding]:
    """Names of vLLM arguments; `others` are those that belong in the other mapping."""
    is_engine = where == "engine_args"
    for key in model.engine_args if is_engine else model.serve_args:
        name = key.replace("-", "_")
        if name in _OWN_ARGUMENTS:
            problem, remedy = f'llx sets "{key}" itself', f"use `{_OWN_ARGUMENTS[name]}`"
        elif name in _REFUSED_ARGUMENTS or name.startswith(_REFUSED_PREFIXES):
            problem, remedy = f'"{key}" does not go with llx', "leave it out"
        elif name == "hf_token":
            problem, remedy = "a secret does not belong in a file", "export HF_TOKEN instead"
        elif name in known:
            continue
        elif name in others:
            problem = f'"{key}" belongs elsewhere'
            remedy = f"move it to `{'serve_args' if is_engine else 'engine_args'}`"
        else:
            problem = f'vLLM has no argument "{key}"{nearest(key, known)}'
            remedy = "correct it; `vllm serve --help` lists them"
        yield Finding(f"model {model.name}", f"{where}: {problem}", remedy)


def _ports(settings: ClusterSettings, facts: Facts) -> Iterator[Finding]:
    places = (
        ("gateway", settings.gateway.host, settings.gateway.port, "gateway.port or --port"),
        ("control API", "127.0.0.1", settings.control.port, "control.port"),
    )
    for who, host, port, key in places:
        fact = facts.ports.get((host, port))
        if fact is not None and fact.problem:
            by = f" by {fact.holder}" if fact.holder else ""
            yield Finding(
                who,
                f"{fact.problem}{by}",
                f"stop that process, or choose another ({key})",
                ExitCode.CONFLICT,
            )


def _node(settings: ClusterSettings, facts: Facts) -> Iterator[Finding]:
    node = facts.node
    wheelhouse = settings.runtime.wheelhouse
    if node.problem is not None:
        problem = node.problem
        yield Finding("runtime", problem.message, problem.remedy, problem.exit_code)
    elif not node.is_installed:
        if wheelhouse is not None and not wheelhouse.is_dir():
            yield Finding("runtime", f"wheelhouse {wheelhouse}: no such directory", "correct it")
        needed = _INSTALL_BYTES.get(settings.runtime.platform, _INSTALL_BYTES[Platform.CPU])
        if facts.disk_free_bytes < needed:
            yield Finding(
                "disk",
                f"{_gib(facts.disk_free_bytes)} free at {node.place}; "
                f"the node environment needs {_gib(needed)}",
                "free some space, or set runtime.prefix to a larger disk",
                ExitCode.FAILURE,
            )


def _gpus(settings: ClusterSettings, facts: Facts) -> Iterator[Finding]:
    needed = sum(
        model.instances.min * model.tensor_parallel
        for model in settings.models
        if model.engine is EngineKind.VLLM
    )
    if needed == 0:
        return
    if not facts.gpus:
        yield Finding(
            "platform",
            "cuda is asked for, but the NVIDIA driver shows no GPU here",
            "set runtime.platform to cpu, or mend the driver (nvidia-smi)",
            ExitCode.FAILURE,
        )
        return
    busy = [device.label for device in facts.gpus if device.is_busy]
    if needed > len(facts.gpus) - len(busy):
        note = f", in use by others: {', '.join(busy)}" if busy else ""
        yield Finding(
            "platform",
            f"{needed} GPUs are asked for (instances × tensor_parallel), "
            f"{len(facts.gpus)} found{note}",
            "ask for fewer instances, or set runtime.platform to cpu",
            ExitCode.FAILURE,
        )


def _memory(settings: ClusterSettings, facts: Facts) -> Iterator[Finding]:
    kv_bytes = settings.runtime.kv_cache_gib * GIB
    needed = _PROCESS_BYTES * len(settings.models)  # a front end per model
    for model in settings.models:
        fact = facts.models.get(model.model)
        weights = fact.weights_bytes if fact is not None else 0
        each = kv_bytes + _PROCESS_BYTES + int(weights * _OVERHEAD)
        needed += model.instances.min * (
            each * model.tensor_parallel if model.engine is EngineKind.VLLM else _PROCESS_BYTES
        )
    if needed > facts.memory_available_bytes:
        yield Finding(
            "memory",
            f"about {_gib(needed)} needed, {_gib(facts.memory_available_bytes)} available",
            "ask for fewer instances or a smaller runtime.kv_cache_gib, or end other processes",
            ExitCode.FAILURE,
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
