"""cluster.yaml as frozen values.

A cluster's configuration enters here, once: what a file, a flag or the environment says is checked
and becomes an object that nobody mutates. The shape of cluster.yaml is `llx.cluster_file`'s, naming
the line of each mistake `llx.yaml_reader`'s; nothing here touches a socket or a process.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from llx.choices import Platform
from llx.cluster_file import (
    ApiKeySettings,
    ClusterSettings,
    ControlSettings,
    GatewaySettings,
    HostSettings,
    InstanceRange,
    ModelSettings,
    NetworkSettings,
    RuntimeSettings,
    Settings,
    TenantSettings,
    TlsSettings,
    is_model_path,
)
from llx.environment import Environment
from llx.errors import ConfigError, NotFoundError
from llx.host_address import parse_host
from llx.scheduling_settings import PriorityClassSettings, SchedulingSettings
from llx.secret import Secret
from llx.specs import EngineKind
from llx.yaml_reader import read_yaml

__all__ = [
    "TINY_MODEL",
    "ApiKeySettings",
    "ClusterSettings",
    "ControlSettings",
    "GatewaySettings",
    "HostSettings",
    "InstanceRange",
    "ModelSettings",
    "NetworkSettings",
    "Platform",
    "PriorityClassSettings",
    "RuntimeSettings",
    "SchedulingSettings",
    "TenantSettings",
    "TlsSettings",
    "differing_keys",
    "dump_cluster",
    "example_cluster",
    "example_with_hosts",
    "is_model_path",
    "load_cluster",
    "local_cluster",
    "resolve_api_keys",
    "resolve_model",
    "to_dict",
    "with_hosts",
]

TINY_MODEL = "llx/tiny"
"""Names the tiny model that llx makes itself, as `model` in a cluster.yaml."""


def load_cluster(path: Path) -> ClusterSettings:
    """Read and check a cluster.yaml; relative paths in it are taken from its directory.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: YAML or content is wrong; each mistake is named with its line.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file", remedy=f"llx init {path}")
    return read_yaml(path, ClusterSettings, base=path.absolute().parent)


def example_cluster() -> str:
    """The commented cluster.yaml: every key, its default, what it means.

    Raises:
        ConfigError: The installation of llx is damaged.
    """
    package = Path(__file__).parent
    for root in (package / "_data", package.parent):  # in a wheel; in the repository
        path = root / "examples" / "cluster.yaml"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ConfigError("llx's own example of a cluster.yaml is missing", remedy="install llx again")


def example_with_hosts(hosts: Sequence[str]) -> str:
    """`example_cluster` for these hosts, each ``[user@]host[:port]``; `load_cluster` reads it.

    Raises:
        ConfigError: One is no host, two would have one name, or there is none.
    """
    if not hosts:
        raise ConfigError("--hosts names no host", remedy="llx init --hosts gpu-1,gpu-2")
    found = {each: parse_host(each) for each in hosts}
    _refuse_same_names(hosts, found)
    lines = "".join(f"  - {_one_line(each)}\n" for each in found.values())
    text = example_cluster().replace("cluster: local\n", "cluster: main\n", 1)
    return text.replace("hosts: []\n", f"hosts:\n{lines}", 1)


def dump_cluster(settings: ClusterSettings) -> str:
    """`settings` as YAML that `load_cluster` reads back to an equal object."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False)


def with_hosts(
    settings: ClusterSettings, hosts: list[dict[str, Any]], *, base: Path
) -> ClusterSettings:
    """`settings` with other hosts, checked like a file.

    Raises:
        ConfigError: A host is wrong, or used twice.
    """
    values = {**to_dict(settings), "hosts": hosts}
    return read_yaml("hosts", ClusterSettings, base=base, values=values)


def to_dict(settings: BaseModel) -> dict[str, Any]:
    """`settings` as plain data under the names that files use."""
    return settings.model_dump(mode="json", by_alias=True)


def differing_keys(one: Settings, other: Settings) -> list[str]:
    """Dotted keys in which two settings of one kind differ, sorted."""
    a, b = _flat("", to_dict(one)), _flat("", to_dict(other))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def local_cluster(
    environment: Environment,
    *,
    cluster: str = "local",
    model: str | None = None,
    engine: EngineKind = EngineKind.VLLM,
    instances: int = 2,
    port: int | None = None,
    control_port: int | None = None,
    platform: Platform = Platform.AUTO,
) -> ClusterSettings:
    """The cluster of `llx up` without a file: `instances` here, of `model` or of the tiny model.

    Raises:
        ConfigError: A value is out of range.
    """
    source = TINY_MODEL if model is None else _as_model(model, environment.cwd)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(source).name)
    is_tiny_vllm = source == TINY_MODEL and engine is EngineKind.VLLM
    values = {
        "cluster": cluster,
        "models": [
            {
                "name": name,
                "model": source,
                "engine": engine,
                "instances": {"min": instances},
                "engine_args": _tiny_args(platform) if is_tiny_vllm else {},
            }
        ],
        "gateway": {} if port is None else {"port": port},
        "control": {} if control_port is None else {"port": control_port},
        "runtime": {"platform": platform},
    }
    return read_yaml("llx up", ClusterSettings, base=environment.cwd, values=values)


def resolve_model(model: ModelSettings, environment: Environment) -> ModelSettings:
    """`model` as this machine serves it: its paths absolute, llx's own tiny model where it lies."""
    if model.model != TINY_MODEL:
        return model.at_home()
    return model.at_home().model_copy(update={"model": str(environment.tiny_model)})


def resolve_api_keys(
    settings: ClusterSettings, environment: Environment
) -> tuple[ClusterSettings, Secret | None]:
    """`settings` with every key replaced by its hash, and the first key whose text is known.

    Raises:
        ConfigError: A key's variable or file is missing or empty.
    """
    resolved: list[ApiKeySettings] = []
    first: Secret | None = None
    for entry in settings.gateway.api_keys:
        secret = _read_key(entry, environment)
        digest = entry.sha256
        if secret is not None:
            first = first or secret
            digest = hashlib.sha256(secret.reveal().encode()).hexdigest()
        plain = {"tenant": entry.tenant, "sha256": digest, "class": entry.priority_class}
        resolved.append(ApiKeySettings.model_validate(plain))
    gateway = settings.gateway.model_copy(update={"api_keys": tuple(resolved)})
    return settings.model_copy(update={"gateway": gateway}), first


def _refuse_same_names(given: Sequence[str], found: Mapping[str, HostSettings]) -> None:
    seen: dict[str, str] = {}
    for text in given:
        name = found[text].name
        if name in seen:
            what = "is given twice" if seen[name] == text else f'and "{seen[name]}" are both {name}'
            raise ConfigError(
                f'"{text}" {what}',
                remedy="give it once; two hosts of one address, as with forwarded ports, need "
                "names of their own: write them into cluster.yaml",
            )
        seen[name] = text


def _one_line(host: HostSettings) -> str:
    """The host as YAML in braces; quoted is what would be read as something else than text."""
    values = host.model_dump(exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=1000).strip()


def _as_model(given: str, cwd: Path) -> str:
    """What a user means on the command line: a directory that is there needs no ``./``."""
    return f"./{given}" if not is_model_path(given) and (cwd / given).is_dir() else given


def _tiny_args(platform: Platform) -> dict[str, Any]:
    """Engine arguments that start the tiny model quickly and leave room for a few streams."""
    args: dict[str, Any] = {"max_model_len": 2048, "max_num_seqs": 32}
    if platform is Platform.CUDA:
        return args | {"gpu_memory_utilization": 0.3}
    # 32 is the smallest block of vLLM's attention on CPUs.
    return args | {"block_size": 32, "enforce_eager": True, "dtype": "float32"}


def _read_key(entry: ApiKeySettings, environment: Environment) -> Secret | None:
    if entry.key_env is not None:
        value = environment.get(entry.key_env)
        if value is None:
            raise ConfigError(
                f'api key of "{entry.tenant}": environment variable {entry.key_env} is not set',
                remedy=f"export {entry.key_env}=… before `llx up`",
            )
        return Secret(value)
    if entry.key_file is None:
        return None
    try:
        text = entry.key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'api key of "{entry.tenant}": cannot read {entry.key_file}: {error}'
        ) from None
    if not text:
        raise ConfigError(f'api key of "{entry.tenant}": {entry.key_file} is empty')
    return Secret(text)


def _flat(prefix: str, value: object) -> dict[str, object]:
    items: Iterable[tuple[object, object]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: value}
    found: dict[str, object] = {}
    for key, each in items:
        found |= _flat(f"{prefix}.{key}" if prefix else str(key), each)
    return found
