"""Whether hosts have what the cluster needs: disk, memory, models.

Of this machine it looks at models. Where instances will run is decided later,
by the scheduler (`llx.core.placement`); here they are taken to be spread evenly. GPUs are
`llx.bootstrap.host_gpus`'s, the Python environment `llx.bootstrap.host_environment`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llx.bootstrap import host_environment, host_gpus
from llx.bootstrap.facts import ModelFact, hub_lookalikes
from llx.bootstrap.host_facts import DiskFact, HostFacts
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.bootstrap.hosts_plan import TINY_ON_HOSTS, copied_name
from llx.bootstrap.model_files import scan
from llx.bootstrap.preflight import GIB, find_hub_id
from llx.errors import LlxError
from llx.settings import TINY_MODEL, ClusterSettings, ModelSettings, Platform
from llx.specs import MODELS, EngineKind

_INSTALL_BYTES = {Platform.CPU: 6 * GIB, Platform.CUDA: 16 * GIB}
_MARGIN_BYTES = GIB // 2
"""For logs and state."""
_TMP_BYTES = GIB // 4
_SHM_BYTES = 128 << 20
"""Ray's object store takes 80 MB of /dev/shm; vLLM's ranks exchange messages there."""
_PROCESS_BYTES = int(0.75 * GIB)
"""Resident memory of a gateway, or of an instance without weights and KV cache (measured)."""
_HEAD_BYTES, _RAY_BYTES = int(0.35 * GIB), int(0.2 * GIB)
"""Ray's processes and our actors on the head's host, on another one (measured)."""
_WEIGHTS_OVERHEAD = 1.2
_TINY_BYTES = 6 << 20


def decide_platform(
    settings: ClusterSettings, facts: Mapping[str, HostFacts | LlxError]
) -> Platform:
    """CPU or CUDA: as set; by itself CUDA if some host shows a GPU and some model runs on vLLM."""
    if settings.runtime.platform is not Platform.AUTO:
        return settings.runtime.platform
    has_gpu = any(isinstance(each, HostFacts) and each.gpus for each in facts.values())
    has_vllm = any(model.engine is EngineKind.VLLM for model in settings.models)
    return Platform.CUDA if has_gpu and has_vllm else Platform.CPU


def copy_sizes(settings: ClusterSettings) -> dict[str, int]:
    """Sizes in bytes of the models that are directories on this machine, by their path.

    Raises:
        ConfigError: One of them holds what cannot be copied.
    """
    return {
        str(path): sum(file.size for file in scan(path).values())
        for model in settings.models
        if (path := model.model_path) is not None and (path / "config.json").is_file()
    }


def find_of_host(
    settings: ClusterSettings,
    facts: HostFacts,
    *,
    platform: Platform,
    has_tiny_model: bool = False,
    copies: Mapping[str, int] | None = None,
    python_version: str | None = None,
) -> Iterator[HostFinding]:
    """Findings of one host by itself; the arguments are those of `host_preflight.find`.

    `python_version`: the release that all hosts use, of `host_python.common_version`.
    """
    yield from host_environment.find_of_host(settings, facts, platform, python_version)
    yield from _models(settings, facts, copies)
    yield from _disk(settings, facts, platform, has_tiny_model=has_tiny_model, copies=copies)
    yield from _temporary_disks(facts)
    if platform is Platform.CUDA:
        yield from host_gpus.find_of_host(settings, facts)


def find_of_cluster(
    settings: ClusterSettings,
    facts: Mapping[str, HostFacts],
    *,
    platform: Platform,
    copies: Mapping[str, int] | None = None,
) -> Iterator[HostFinding]:
    """Findings of all hosts together. Those that run already have given what they need."""
    yield from host_environment.find_of_cluster(settings)
    yield from _hub_ids(settings, is_plan=copies is not None)
    if platform is Platform.CUDA:
        yield from host_gpus.find_of_cluster(settings, facts)
    yield from _memory(settings, facts, platform, copies or {})


# --- models and disk -------------------------------------------------------------------------


def _models(
    settings: ClusterSettings, facts: HostFacts, copies: Mapping[str, int] | None
) -> Iterator[HostFinding]:
    for model in settings.models:
        subject, source = f"model {model.name}", model.model
        if source.startswith(MODELS):
            name = source.removeprefix(MODELS)
            if name not in facts.models:
                yield HostFinding(
                    facts.host, subject, f'it has no complete model "{name}"',
                    f"llx model add {name} DIR",
                )  # fmt: skip
            continue
        fact = facts.model_paths.get(source)
        if fact is None or copies is None or str(model.model_path) in copies:
            continue
        if not fact.is_directory:
            problem = f"{source}: no such directory, neither there nor here"
        elif not fact.has_config:
            problem = f"{source}: no config.json there"
        else:
            continue
        yield HostFinding(
            facts.host, subject, problem, "correct `model`, or put it there: llx model add"
        )


def _hub_ids(settings: ClusterSettings, *, is_plan: bool) -> Iterator[HostFinding]:
    """Of a cluster that is up, what this machine has by the same name is of no concern."""
    lookalikes = hub_lookalikes(settings) if is_plan else frozenset()
    for model in settings.models:
        is_own = model.model == TINY_MODEL or model.model.startswith(MODELS)
        if model.model_path is None and not is_own:
            for each in find_hub_id(model, lookalikes):
                yield HostFinding(CLUSTER, each.subject, each.problem, each.remedy, each.exit_code)


def _disk(
    settings: ClusterSettings,
    facts: HostFacts,
    platform: Platform,
    *,
    has_tiny_model: bool,
    copies: Mapping[str, int] | None,
) -> Iterator[HostFinding]:
    """What is there already of a copy or an install that was broken off needs no room."""
    layout = facts.layout(settings.cluster)
    node, models = [], []
    if facts.wanted_python is None and not facts.has_node_environment(platform):
        there = facts.unfinished.get(f"node/{layout.node(str(platform)).name}", 0)
        if settings.runtime.wheelhouse is not None:
            there += facts.unfinished.get("wheelhouse", 0)
        node.append(_Want("the node environment", max(0, _INSTALL_BYTES[platform] - there)))
    names = {copied_name(Path(path)): size for path, size in (copies or {}).items()}
    missing = [
        max(0, size - facts.unfinished.get(f"models/{name}", 0))
        for name, size in names.items()
        if name not in facts.models
    ]
    if missing:
        models.append(_Want("models", sum(missing)))
    if has_tiny_model and TINY_ON_HOSTS not in facts.models:
        models.append(_Want("the tiny model", _TINY_BYTES))
    if facts.models_disk is not None:
        yield from _on_disk(facts, layout.root, facts.home_disk, node)
        yield from _on_disk(facts, layout.models, facts.models_disk, models)
    else:
        yield from _on_disk(facts, layout.root, facts.home_disk, [*node, *models])


@dataclass(frozen=True, slots=True)
class _Want:
    """Something that is going to lie on a disk."""

    what: str
    size_bytes: int


def _on_disk(
    facts: HostFacts, place: PurePosixPath, disk: DiskFact | None, wants: Sequence[_Want]
) -> Iterator[HostFinding]:
    needed = max(sum(each.size_bytes for each in wants), _MARGIN_BYTES)
    if disk is None or disk.free_bytes >= needed or (facts.is_cluster_running and not wants):
        return
    what = (f"{each.what} ({_gib(each.size_bytes)})" for each in wants if each.size_bytes)
    why = " and ".join(what) or "logs and state"
    yield HostFinding(
        facts.host,
        "disk",
        f"{_gib(disk.free_bytes)} free at {place}; {_gib(needed)} needed, for {why}",
        f"free some space there, or make {place} a link to a larger disk",
    )


def _temporary_disks(facts: HostFacts) -> Iterator[HostFinding]:
    """Of a running cluster they hold what it put there."""
    if facts.is_cluster_running:
        return
    if facts.tmp_disk is not None and facts.tmp_disk.free_bytes < _TMP_BYTES:
        free = f"{facts.tmp_disk.free_bytes >> 20} MiB free in /tmp"
        needs = f"{_TMP_BYTES >> 20} MiB needed, for Ray"
        yield HostFinding(facts.host, "disk", f"{free}; {needs}", "free some space there")
    if facts.shm_disk is not None and facts.shm_disk.free_bytes < _SHM_BYTES:
        yield HostFinding(
            facts.host,
            "shm",
            f"{facts.shm_disk.free_bytes >> 20} MiB free in /dev/shm; Ray and vLLM use "
            f"{_SHM_BYTES >> 20} MiB",
            "enlarge it: mount -o remount,size=1G /dev/shm (a container: --shm-size=1g)",
            is_fatal=False,
        )


# --- memory ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Room:
    """What a host is going to hold."""

    facts: HostFacts
    needed_bytes: int
    num_instances: int = 0


def _memory(
    settings: ClusterSettings,
    facts: Mapping[str, HostFacts],
    platform: Platform,
    copies: Mapping[str, int],
) -> Iterator[HostFinding]:
    head = settings.head_host.name if settings.head_host is not None else ""
    rooms = {
        name: _Room(each, _HEAD_BYTES if name == head else _RAY_BYTES)
        for name, each in facts.items()
    }
    if not rooms:
        return
    for name in sorted(rooms, key=lambda each: each != head)[: settings.num_gateways]:
        rooms[name].needed_bytes += _PROCESS_BYTES * len(settings.models)
    for model in settings.models:
        for _ in range(model.instances.min):
            room = min(
                rooms.values(),
                key=lambda each: (each.num_instances / each.facts.cpu_count, each.needed_bytes),
            )
            room.num_instances += 1
            room.needed_bytes += _instance_bytes(settings, model, room.facts, platform, copies)
    for name, room in rooms.items():
        available = room.facts.memory_available_bytes
        if available is None or room.facts.is_cluster_running or room.needed_bytes <= available:
            continue
        yield HostFinding(
            name,
            "memory",
            f"about {_gib(room.needed_bytes)} needed, for {room.num_instances} "
            f"instance{'' if room.num_instances == 1 else 's'} and what else runs there; "
            f"{_gib(available)} available",
            "ask for fewer instances or a smaller runtime.kv_cache_gib, end other processes "
            "there, or add hosts",
        )


def _instance_bytes(
    settings: ClusterSettings,
    model: ModelSettings,
    facts: HostFacts,
    platform: Platform,
    copies: Mapping[str, int],
) -> int:
    """Memory of the host; on GPUs, weights and KV cache are in theirs."""
    if model.engine is not EngineKind.VLLM or platform is Platform.CUDA:
        return _PROCESS_BYTES
    weights = _weights_bytes(model, facts, copies)
    each = settings.runtime.kv_cache_gib * GIB + _PROCESS_BYTES + int(weights * _WEIGHTS_OVERHEAD)
    return each * model.tensor_parallel


def _weights_bytes(model: ModelSettings, facts: HostFacts, copies: Mapping[str, int]) -> int:
    if model.model == TINY_MODEL:
        return _TINY_BYTES
    nothing = ModelFact(is_directory=False, has_config=False)
    return (
        copies.get(str(model.model_path))
        or facts.model_paths.get(model.model, nothing).weights_bytes
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
