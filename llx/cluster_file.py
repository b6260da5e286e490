"""The shape of cluster.yaml: frozen pydantic models, unknown keys refused.

What may be said, and what contradicts itself; reading files is `llx.settings`.
"""

import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llx.choices import Platform
from llx.errors import ConfigError
from llx.migration_settings import MigrationSettings
from llx.scheduling_settings import (
    PriorityClassSettings,
    SchedulingSettings,
    installed_policies,
    pool_config,
)
from llx.specs import ANONYMOUS, EngineKind, HangSpec, SimSpec
from llx.yaml_reader import nearest

_CLUSTER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MODEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_SSH_WORD = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9._:%@\[\]+-]*")
_RESERVED_NAMES = frozenset({"head", "gateway"})
_PATH_ARGUMENTS = ("chat_template", "chat-template")


def _resolved(path: Path, info: ValidationInfo) -> Path:
    """Paths in a file are relative to that file."""
    base = info.context if isinstance(info.context, Path) else Path.cwd()
    try:
        return Path(os.path.normpath(base / path.expanduser()))
    except RuntimeError:
        raise PydanticCustomError("path", f'"{path}": no such home directory') from None


def _resolved_there(path: Path, info: ValidationInfo) -> Path:
    """Likewise, but for ``~/…``: whose home that is shows where the path is used."""
    return path if path.parts[:1] == ("~",) else _resolved(path, info)


ConfigPath = Annotated[Path, AfterValidator(_resolved)]
"""A path on the machine that reads the file."""
HostPath = Annotated[Path, AfterValidator(_resolved_there)]
"""A path on a host, if there are hosts: ``~/…`` stays and means the home of the user there."""
Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose."""


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class HostSettings(Settings):
    """One machine reached by SSH.

    `address` is what ``ssh`` would be given: a name or an alias of ``~/.ssh/config`` too; `name`
    follows it. What is None is as ``~/.ssh/config`` says. `cluster_address` is the IP address under
    which the other hosts reach it; None: the one that SSH arrives at. `python` overrides
    ``runtime.python``.
    """

    name: str = ""
    address: str
    user: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    identity_file: ConfigPath | None = None
    cluster_address: str | None = None
    python: HostPath | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_follows_address(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"address": value}
        if (
            isinstance(value, dict)
            and "name" not in value
            and isinstance(value.get("address"), str)
        ):
            return {**value, "name": host_name_of(value["address"])}
        return value

    @field_validator("name")
    @classmethod
    def _usable_host_name(cls, name: str) -> str:
        if not _HOST_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            raise PydanticCustomError(
                "name",
                f'"{name}" cannot name a host: letters, digits, "-", "." (64 at most), '
                'not "head" or "gateway"',
            )
        return name

    @field_validator("address", "user")
    @classmethod
    def _no_option(cls, value: str | None) -> str | None:
        # What stands here may reach a shell: as %h or %r of a ProxyCommand.
        if value is not None and not _SSH_WORD.fullmatch(value):
            raise PydanticCustomError("address", f"{value!r} is no address or user name")
        return value

    @field_validator("cluster_address")
    @classmethod
    def _ip_address(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise PydanticCustomError("address", f'"{value}" is no IP address') from None
        return value


class InstanceRange(Settings):
    """How many instances a model has: always `min`, up to `max` as its load asks for.

    `max` defaults to `min`; a plain number is short for both.
    """

    min: int = Field(default=1, ge=1, le=1024)
    max: int = Field(default=1, ge=1, le=1024)

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if isinstance(value, dict) and isinstance(value.get("min"), int) and "max" not in value:
            return {**value, "max": max(value["min"], 1)}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise PydanticCustomError("range", f"max ({self.max}) is below min ({self.min})")
        return self


class ModelSettings(Settings):
    """One model: a pool of like instances, served under `name`.

    `model` is a directory when it starts with ``/``, ``./``, ``../`` or ``~`` (then it is absolute
    here, or begins with ``~``), else a Hugging Face id. `engine_args` and `serve_args` are vLLM's
    own, passed untouched.
    """

    name: str
    model: str
    engine: EngineKind = EngineKind.VLLM
    instances: InstanceRange = InstanceRange()
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    engine_args: dict[str, JsonValue] = {}
    serve_args: dict[str, JsonValue] = {}
    sim: dict[str, int | float] = {}
    scheduling: SchedulingSettings = SchedulingSettings()

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        if not _MODEL_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            raise PydanticCustomError(
                "name", f'"{name}" cannot name a model: letters, digits, "-", "_", "." '
                "(64 at most), not \"head\" or \"gateway\""
            )  # fmt: skip
        return name

    @field_validator("model")
    @classmethod
    def _absolute_if_path(cls, model: str, info: ValidationInfo) -> str:
        if not model.strip():
            raise PydanticCustomError("model", "names no model")
        return str(_resolved_there(Path(model), info)) if is_model_path(model) else model

    @field_validator("serve_args")
    @classmethod
    def _absolute_template(
        cls, args: dict[str, JsonValue], info: ValidationInfo
    ) -> dict[str, JsonValue]:
        return {
            key: str(_resolved_there(Path(value), info))
            if key in _PATH_ARGUMENTS and isinstance(value, str) and is_model_path(value)
            else value
            for key, value in args.items()
        }

    @field_validator("sim")
    @classmethod
    def _sim_fields(cls, sim: dict[str, int | float]) -> dict[str, int | float]:
        known = [field.name for field in msgspec.structs.fields(SimSpec)]
        for key in sim.keys() - set(known):
            raise PydanticCustomError("sim", f'unknown key "{key}"{nearest(key, known)}')
        try:
            msgspec.convert(sim, SimSpec)
        except msgspec.ValidationError as error:
            raise PydanticCustomError("sim", str(error)) from None
        return sim

    @model_validator(mode="after")
    def _sim_only_with_sim(self) -> Self:
        if self.sim and self.engine is not EngineKind.SIM:
            raise PydanticCustomError("sim", '"sim" goes with "engine: sim" only')
        return self

    @property
    def model_path(self) -> Path | None:
        """The model's directory, or None for a Hugging Face id; ``~`` is the home of this user."""
        return Path(self.model).expanduser() if is_model_path(self.model) else None

    def at_home(self) -> Self:
        """Its paths as those of this machine, if it is this machine that serves it."""
        args = {
            key: str(Path(value).expanduser())
            if key in _PATH_ARGUMENTS and isinstance(value, str) and is_model_path(value)
            else value
            for key, value in self.serve_args.items()
        }
        model = self.model if self.model_path is None else str(self.model_path)
        return self.model_copy(update={"model": model, "serve_args": args})

    @property
    def sim_spec(self) -> SimSpec | None:
        """The simulated engine's numbers; None unless this is `engine: sim`."""
        is_sim = self.engine is EngineKind.SIM
        return msgspec.convert(self.sim, SimSpec) if is_sim else None


class ApiKeySettings(Settings):
    """An API key, by exactly one of: an environment variable, a file, its SHA-256 in hex."""

    tenant: str
    key_env: str | None = None
    key_file: ConfigPath | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    priority_class: str | None = Field(default=None, alias="class")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [each for each in (self.key_env, self.key_file, self.sha256) if each is not None]
        if len(given) != 1:
            raise PydanticCustomError("key", 'needs one of "key_env", "key_file", "sha256"')
        return self


class TenantSettings(Settings):
    """What a tenant may take of all gateways together."""

    name: str
    max_requests: int | None = Field(default=None, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)


class TlsSettings(Settings):
    """The certificate that gateways show: two files of the operator's, or one that llx makes.

    The word ``generated`` is short for `generated`. The files are read by `llx up` alone: a head
    keeps their paths as something that can change, and looks at neither.
    """

    certificate: ConfigPath | None = None
    key: ConfigPath | None = None
    generated: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"generated": True} if value == "generated" else value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [each is not None for each in (self.certificate, self.key)]
        if given != [not self.generated] * 2:
            raise PydanticCustomError("tls", 'must be "generated", or "certificate" and "key"')
        return self


class GatewaySettings(Settings):
    """The OpenAI API's address and limits."""

    host: str = "127.0.0.1"
    port: Port = 8000
    tls: TlsSettings | None = None
    count: int | None = Field(default=None, ge=1, le=16)
    max_requests: int = Field(default=1024, ge=1)
    api_keys: tuple[ApiKeySettings, ...] = ()
    tenants: tuple[TenantSettings, ...] = ()

    @model_validator(mode="after")
    def _known_tenants(self) -> Self:
        known = {key.tenant for key in self.api_keys} or {ANONYMOUS}
        names = [each.name for each in self.tenants]
        for name in names:
            if name not in known:
                raise PydanticCustomError("tenants", 'no api key is of "{name}"', {"name": name})
            if names.count(name) > 1:
                raise PydanticCustomError("tenants", '"{name}" is there twice', {"name": name})
        return self


class NetworkSettings(Settings):
    """Ports that hosts use among themselves, and whether Ray's traffic is encrypted.

    The cluster listens within [first_port, first_port + 1000) on every host (`llx.host_ports`).
    """

    first_port: int = Field(default=20000, ge=1024, le=64000)
    tls: bool = True


class ControlSettings(Settings):
    """The control API, on the head's loopback."""

    port: Port = 8900


def _zero_or_seconds(limit_s: float) -> float:
    if limit_s != 0 and not 2 <= limit_s <= 86400:  # signs of life come twice a second
        raise PydanticCustomError("hang", "must be 0, or from 2 to 86400")
    return limit_s


HangLimit = Annotated[float, AfterValidator(_zero_or_seconds)]


class RuntimeSettings(Settings):
    """Where engines run and how long they may take to start."""

    platform: Platform = Platform.AUTO
    python: HostPath | None = None
    prefix: ConfigPath | None = None
    wheelhouse: ConfigPath | None = None
    start_timeout_s: float = Field(default=600, gt=0)
    kv_cache_gib: int = Field(default=1, ge=1)
    cpu_threads: int | None = Field(default=None, ge=1)
    silent_limit_s: HangLimit = 8
    step_limit_s: HangLimit | None = None

    @property
    def hang(self) -> HangSpec:
        """What instances and gateways are given."""
        return HangSpec(self.silent_limit_s, self.step_limit_s)

    @model_validator(mode="after")
    def _python_or_prefix(self) -> Self:
        if self.python and (self.prefix or self.wheelhouse):
            raise PydanticCustomError(
                "runtime", '"python" uses what is there: leave out "prefix" and "wheelhouse"'
            )
        return self


def _default_classes() -> tuple[PriorityClassSettings, ...]:
    return (
        PriorityClassSettings(name="interactive", priority=0),
        PriorityClassSettings(name="normal", priority=10, default=True),
        PriorityClassSettings(name="batch", priority=20),
    )


class ClusterSettings(Settings):
    """A whole cluster.yaml."""

    cluster: str = "local"
    hosts: tuple[HostSettings, ...] = ()
    head: str | None = None
    network: NetworkSettings = NetworkSettings()
    models: tuple[ModelSettings, ...]
    priority_classes: tuple[PriorityClassSettings, ...] = Field(default_factory=_default_classes)
    gateway: GatewaySettings = GatewaySettings()
    migration: MigrationSettings = MigrationSettings()
    control: ControlSettings = ControlSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @field_validator("cluster")
    @classmethod
    def _usable_cluster_name(cls, name: str) -> str:
        if not _CLUSTER_NAME.fullmatch(name):
            raise PydanticCustomError(
                "name", f'"{name}" cannot name a cluster: a-z, 0-9 and "-" (63 at most)'
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.models:
            raise PydanticCustomError("models", '"models" is empty: name at least one')
        _unique("hosts", (host.name for host in self.hosts))
        if self.head is not None and self.head not in {host.name for host in self.hosts}:
            hint = nearest(self.head, [host.name for host in self.hosts])
            raise PydanticCustomError("head", f'head: no host "{self.head}"{hint}')
        if self.gateway.count is not None and self.gateway.count > max(1, len(self.hosts)):
            raise PydanticCustomError(
                "gateway", f"gateway.count: {self.gateway.count}, but at most one runs on a host"
            )
        _unique("models", (model.name for model in self.models))
        _unique("priority_classes", (each.name for each in self.priority_classes))
        _unique("priority_classes", (str(each.priority) for each in self.priority_classes))
        if sum(each.default for each in self.priority_classes) != 1:
            raise PydanticCustomError("classes", 'one priority class needs "default: true"')
        names = [each.name for each in self.priority_classes]
        for key in self.gateway.api_keys:
            if key.priority_class is not None and key.priority_class not in names:
                hint = nearest(key.priority_class, names)
                raise PydanticCustomError(
                    "classes",
                    f'api key of "{key.tenant}": no priority class "{key.priority_class}"{hint}',
                )
        _check_scheduling(self.models, self.priority_classes)
        ports = (self.gateway.port, self.control.port)
        if ports[0] == ports[1] != 0:
            raise PydanticCustomError("ports", f"gateway and control share port {ports[0]}")
        return self

    @property
    def head_host(self) -> HostSettings | None:
        """The host of the control plane; None in a cluster on this machine."""
        if not self.hosts:
            return None
        return next((host for host in self.hosts if host.name == self.head), self.hosts[0])

    @property
    def num_gateways(self) -> int:
        """How many gateways there are: two on two hosts or more, unless said otherwise."""
        return self.gateway.count or min(2, max(1, len(self.hosts)))


def host_name_of(address: str) -> str:
    """What llx calls a host of that address by itself: the address, as far as names go."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", address)[:64].strip("-.")
    return f"host-{name}".strip("-") if not name or name in _RESERVED_NAMES else name


def is_model_path(model: str) -> bool:
    """Whether `model` names a directory rather than a Hugging Face id."""
    return model in {".", "..", "~"} or model.startswith(("/", "./", "../", "~/"))


def _check_scheduling(
    models: Iterable[ModelSettings], classes: tuple[PriorityClassSettings, ...]
) -> None:
    policies = installed_policies()
    for model in models:
        try:
            config = pool_config(
                model.name,
                model.scheduling,
                classes,
                step_tokens=1,
                max_requests=1,
                num_instances=(model.instances.min, model.instances.max),
            )
            policies.check(config)
        except ConfigError as error:
            text = f"models.{model.name}.scheduling: {error.message}"
            raise PydanticCustomError(
                "scheduling", f"{text} ({error.remedy})" if error.remedy else text
            ) from None


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PydanticCustomError("unique", f'{what}: "{name}" is used twice')
        seen.add(name)
