"""What `llx up` is going to do on hosts: settings made concrete, paths and values per host.

Reads the environment and key files; changes nothing. The counterpart of `llx.bootstrap.plan`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from llx import __version__
from llx.bootstrap.cluster_secrets import ClusterSecrets
from llx.bootstrap.gateway_tls import Given, given_certificate
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.model_files import HubModel, fit_name, is_repository
from llx.environment import Environment
from llx.errors import ConfigError
from llx.secret import Secret
from llx.settings import (
    TINY_MODEL,
    ClusterSettings,
    HostSettings,
    ModelSettings,
    Platform,
    resolve_api_keys,
)
from llx.specs import MODELS, EngineKind, HostSpec

TINY_ON_HOSTS = "tiny-1"


@dataclass(frozen=True, slots=True)
class HostsPlan:
    """A cluster on hosts to be brought up.

    Attributes:
        settings: As the file says, API keys as hashes; what the operator's state keeps.
        environment: Of the caller.
        state_dir: The cluster's directory here.
        probe_key: A key to ask the gateway with.
        hub_token: The Hugging Face token, if the caller has one.
        copies: Directories here that go to the hosts, by the name they get there.
        pulls: Models of the hub that the hosts fetch, likewise. All hosts: where instances run is
            the scheduler's to decide, and any gateway needs the tokenizer.
        certificate: The operator's, for gateways; None: llx makes one, what is on the hosts stays
            as it is, or there is no TLS.
        rotates: What can be replaced of the secrets of a cluster that runs is replaced.
        upgrade_deadline_s: A cluster that runs is brought to this llx: what is replaced may have
            requests for so long; None: it must be of this llx already.
    """

    settings: ClusterSettings
    environment: Environment
    state_dir: Path
    probe_key: Secret | None
    hub_token: Secret | None
    copies: Mapping[str, Path]
    pulls: Mapping[str, HubModel]
    certificate: Given | None = None
    rotates: bool = False
    upgrade_deadline_s: float | None = None

    @property
    def hub_endpoint(self) -> str | None:
        """Another hub, if the caller has one."""
        return self.environment.get("HF_ENDPOINT")

    @property
    def can_probe(self) -> bool:
        """Whether a request of ours would be let in."""
        return self.probe_key is not None or not self.settings.gateway.api_keys

    @property
    def head(self) -> HostSettings:
        """The head's host."""
        head = self.settings.head_host
        assert head is not None, "a cluster on hosts has a head"
        return head

    @property
    def has_tiny_model(self) -> bool:
        """Whether some model is llx's own tiny one."""
        return any(each.model == TINY_MODEL for each in self.settings.models)


def make_hosts_plan(
    settings: ClusterSettings, environment: Environment, *, keeps_certificate: bool = False
) -> HostsPlan:
    """Make `settings` concrete.

    A model that is a directory on this machine is copied to the hosts, one of the hub fetched by
    them; any other path is one on the hosts, where ``~`` is the home of each host's own user.

    `keeps_certificate`: the operator's certificate is not read; hosts keep what they have.

    Raises:
        ConfigError: An API key's variable or file is missing, a certificate cannot be used, or a
            setting does not go with hosts.
    """
    assert settings.hosts, "hosts, or it is a local cluster"
    if settings.runtime.prefix is not None:
        raise ConfigError(
            "runtime.prefix: hosts have their environment in ~/.llx",
            remedy="leave it out, or set hosts[].python to an environment that is there",
        )
    resolved, key = resolve_api_keys(settings, environment)
    token = environment.get("HF_TOKEN")
    copies = {
        copied_name(path): path
        for model in resolved.models
        if (path := model.model_path) is not None and (path / "config.json").is_file()
    }
    hub_models = [found for each in resolved.models if (found := hub_model_of(each))]
    return HostsPlan(
        settings=resolved,
        environment=environment,
        state_dir=environment.cluster_dir(resolved.cluster),
        probe_key=key,
        hub_token=None if token is None else Secret(token),
        copies=copies,
        pulls={each.name: each for each in hub_models},
        certificate=None if keeps_certificate else given_certificate(resolved.gateway.tls),
    )


def copied_name(path: Path) -> str:
    """What a directory of the operator's is called on the hosts."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"{fit_name(path.name)}-{digest}"


def hub_model_of(model: ModelSettings) -> HubModel | None:
    """What the hosts fetch from the hub for a model; None: nothing.

    The simulated engine has no weights: its gateways fetch the tokenizer themselves.
    """
    is_path = model.model_path is not None or model.model.startswith(MODELS)
    if is_path or model.model == TINY_MODEL or model.engine is not EngineKind.VLLM:
        return None
    revision = model.engine_args.get("revision")
    if not is_repository(model.model):
        return None  # preflight says so
    return HubModel(model.model, None if revision is None else str(revision))


def model_on_hosts(model: ModelSettings) -> str:
    """The `model` of specs, if it lies in the models directories of the hosts; else as it is."""
    hub_model, path = hub_model_of(model), model.model_path
    if model.model == TINY_MODEL:
        return f"{MODELS}{TINY_ON_HOSTS}"
    if hub_model is not None:
        return f"{MODELS}{hub_model.name}"
    return model.model if path is None else f"{MODELS}{copied_name(path)}"


def head_settings(
    plan: HostsPlan, platform: Platform, addresses: Mapping[str, str]
) -> ClusterSettings:
    """The settings as the head reads them: all decided, nothing of the operator's machine."""
    hosts = tuple(
        each.model_copy(
            update={
                "identity_file": None,
                "python": None,
                "cluster_address": addresses.get(each.name) or each.cluster_address,
            }
        )
        for each in plan.settings.hosts
    )
    runtime = plan.settings.runtime.model_copy(
        update={"platform": platform, "python": None, "wheelhouse": None}
    )
    return plan.settings.model_copy(
        update={
            "hosts": hosts,
            "head": plan.head.name,
            "runtime": runtime,
            "models": tuple(_on_hosts(each, plan) for each in plan.settings.models),
        }
    )


def host_spec(
    plan: HostsPlan,
    layout: HostLayout,
    host: str,
    python: PurePosixPath,
    platform: Platform,
    addresses: Mapping[str, str],
    cluster: ClusterSecrets,
) -> HostSpec:
    """What the processes of one host are told."""
    settings, head = plan.settings, plan.head.name
    return HostSpec(
        cluster=settings.cluster,
        cluster_id=cluster.cluster_id,
        host=host,
        address=addresses[host],
        head=head,
        head_address=addresses[head],
        state_dir=str(layout.state),
        models_dir=str(layout.models),
        home=str(layout.home),
        cache_dir=str(layout.caches),
        python=str(python),
        platform=str(platform),
        first_port=settings.network.first_port,
        is_tls=settings.network.tls,
        ray_tmp=str(layout.ray_tmp),
        kv_cache_gib=settings.runtime.kv_cache_gib,
        llx_version=__version__,
    )


def spec_text(spec: HostSpec) -> str:
    """The content of a host's spec file."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2).decode() + "\n"


def _on_hosts(model: ModelSettings, plan: HostsPlan) -> ModelSettings:
    path = model.model_path
    if path is not None and plan.copies.get(copied_name(path)) != path:
        return model
    return model.model_copy(update={"model": model_on_hosts(model)})
