"""What one host goes through in `llx up`: from a bare shell to a Ray node of the cluster.

    directories, llx → packages, node environment → models → secrets, settings → Ray

Playbooks say how; here is which of them, in which order, with which values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llx.bootstrap.cluster_secrets import ClusterSecrets, host_certificate
from llx.bootstrap.gateway_tls import made
from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_python import base_python
from llx.bootstrap.hosts_plan import TINY_ON_HOSTS, HostsPlan, host_spec, spec_text
from llx.bootstrap.hub_models import HubAccess, HubPins, ensure_hub_model, is_progress
from llx.bootstrap.local_ports import StepEvent, StepState
from llx.bootstrap.logged_shell import logged
from llx.bootstrap.models import ensure_model
from llx.bootstrap.node_probe import NodePlatform
from llx.bootstrap.play import PlayResult, play, standard_values
from llx.bootstrap.playbook import load_playbook
from llx.bootstrap.shell import Shell
from llx.secret import Secret
from llx.settings import ClusterSettings, HostSettings, Platform, dump_cluster
from llx.specs import GATEWAY_CERTIFICATE

Say = Callable[[str], None]

_SLOW_STEPS = frozenset({"packages", "node environment", "tiny model", "Ray"})
"""Announced before they begin; of the others only what they change is worth a line."""


@dataclass(frozen=True, slots=True)
class HostWork:
    """One host, and what is known of it and of the cluster.

    Attributes:
        plan: What is asked for.
        host: The host's settings.
        shell: A connection to it.
        layout: Where things lie there.
        facts: What is so there.
        platform: What engines compute on.
        python_version: The release of Python that all hosts use (`host_python.common_version`).
        addresses: By which hosts reach each other.
        cluster: The cluster's secrets.
        settings: As the head reads them.
        wheel: llx's own wheel here.
        is_running: The cluster was up before.
        log: Gets every command and its output.
        proceed: Raises when the work must stop.
        pins: The commits of models of the hub, the same for all hosts.
        keeps_settings: The cluster keeps its settings, which the plan's may be older than: nothing
            that those do not name is taken away.
    """

    plan: HostsPlan
    host: HostSettings
    shell: Shell
    layout: HostLayout
    facts: HostFacts
    platform: Platform
    python_version: str | None
    addresses: Mapping[str, str]
    cluster: ClusterSecrets
    settings: ClusterSettings
    wheel: Path
    is_running: bool
    log: Path
    proceed: Callable[[], None]
    pins: HubPins
    keeps_settings: bool = False

    @property
    def is_head(self) -> bool:
        """Whether the control plane runs there."""
        return self.host.name == self.plan.head.name


def prepare_host(work: HostWork, say: Say) -> tuple[PurePosixPath, list[str]]:
    """All that a host needs before it can be part of the cluster.

    Returns the interpreter of its node environment, and the steps that changed something.

    Raises:
        HostError: A step failed; says which, with the end of its output and where the log is.
        UnreachableError: The host does not answer any more.
    """
    steps = _Steps(work, say)
    steps.play("claim", cluster_id=work.cluster.cluster_id)
    steps.play("bootstrap")
    python = steps.node_environment()
    steps.models(python)
    return python, steps.changed


def configure_host(work: HostWork, python: PurePosixPath, say: Say) -> list[str]:
    """Give it the cluster's secrets and settings; returns and raises as `prepare_host`."""
    steps = _Steps(work, say)
    steps.configure(python)
    return steps.changed


def start_host(work: HostWork, python: PurePosixPath, say: Say) -> list[str]:
    """Configure it and start its Ray node; returns and raises as `prepare_host`."""
    steps = _Steps(work, say)
    steps.configure(python)
    steps.play("start", python=str(python))
    return steps.changed


class _Steps:
    """The steps of one host."""

    def __init__(self, work: HostWork, say: Say) -> None:
        self._work = work
        self._say = say
        self._wheel = f"{work.layout.wheels}/{work.wheel.name}"
        self.changed: list[str] = []

    def play(self, name: str, **values: str | Secret) -> None:
        """Play one of the shipped playbooks."""
        self.changed += self._play(name, values).changed

    def _would_change(self, name: str, **values: str | Secret) -> bool:
        return bool(self._play(name, values, dry_run=True).changed)

    def _play(
        self, name: str, values: Mapping[str, str | Secret], *, dry_run: bool = False
    ) -> PlayResult:
        work = self._work
        standard = standard_values(
            work.layout, work.plan.settings, work.host, platform=str(work.platform)
        )
        return play(
            load_playbook(name),
            work.shell,
            {**standard, "wheel_file": str(work.wheel), "wheel": self._wheel, **values},
            layout=work.layout,
            observe=self._on_step,
            dry_run=dry_run,
            log=work.log,
            proceed=work.proceed,
        )

    def node_environment(self) -> PurePosixPath:
        """Make it or see that it is right; returns its interpreter."""
        work, runtime = self._work, self._work.plan.settings.runtime
        given = work.host.python or runtime.python
        if given is not None:
            python = work.layout.there(given)
            self.play("node-existing", python=str(python))
            return python
        playbook = "node-network" if runtime.wheelhouse is None else "node-wheelhouse"
        own = work.layout.node_python(str(work.platform))
        # What is there and right is left alone, without a look for what it was made from.
        is_right_release = work.facts.installed_python(str(work.platform)) == work.python_version
        if is_right_release and not self._would_change(playbook, base_python=str(own)):
            return own
        with logged(work.shell, work.log, "Python") as shell:
            base = base_python(
                shell,
                work.layout,
                work.facts,
                runtime.wheelhouse,
                self._say,
                platform=NodePlatform(str(work.platform)),
                only=work.python_version,
                uv_cache=work.plan.environment.data_home / "uv",
            )
        if runtime.wheelhouse is not None and self._would_change(playbook, base_python=str(base)):
            self.play("wheelhouse", wheelhouse_dir=str(runtime.wheelhouse))
        self.play(playbook, base_python=str(base))
        return own

    def models(self, python: PurePosixPath) -> None:
        """Copy what the operator has, make what llx makes, fetch what the hub has."""
        work = self._work
        if work.plan.has_tiny_model:
            self.play("tiny-model", python=str(python), tiny_model=TINY_ON_HOSTS)
        for name, source in work.plan.copies.items():
            self._say(f"model {name}")
            work.proceed()
            with logged(work.shell, work.log, f"model {name}") as shell:
                is_new = ensure_model(shell, work.layout, name, source, self._on_progress(name))
            self.changed += [f"model {name}"] * is_new
        for name in work.plan.pulls:
            self._say(f"model {name}")
            work.proceed()
            self.changed += [f"model {name}"] * self._pull(name, python)

    def _pull(self, name: str, python: PurePosixPath) -> bool:
        work, token = self._work, self._work.plan.hub_token
        secrets = [] if token is None else [token]
        access = HubAccess(python, token, work.plan.hub_endpoint)
        with logged(
            work.shell, work.log, f"model {name}", secrets=secrets, is_noise=is_progress
        ) as shell:
            model = work.plan.pulls[name]
            return ensure_hub_model(
                shell, work.layout, model, work.pins, access, self._on_progress(name)
            )

    def configure(self, python: PurePosixPath) -> None:
        """Secrets and settings."""
        work, cluster = self._work, self._work.cluster
        spec = host_spec(
            work.plan,
            work.layout,
            work.host.name,
            python,
            work.platform,
            work.addresses,
            cluster,
        )
        self.play(
            "configure",
            spec_text=spec_text(spec),
            keys=cluster.keys,
            ray_token=cluster.ray_token,
        )
        if spec.is_tls:
            own = host_certificate(work.shell, work.layout, cluster.authority, spec.address)
            self.play(
                "configure-tls",
                ca_cert=cluster.authority.cert_pem,
                host_cert=own.cert_pem,
                host_key=own.key_pem,
            )
        self._gateway_certificate(spec.address)
        if work.plan.hub_token is not None:
            self.play("configure-hub", hub_token=work.plan.hub_token)
        if not work.is_head:
            self.play("configure-member")
        else:
            self.play(
                "configure-head",
                ca_cert=cluster.authority.cert_pem,
                ca_key=cluster.authority.key_pem,
                control_token=cluster.control_token,
            )
            self._gateway_authority()
            if not work.is_running:
                self.play("configure-settings", settings=dump_cluster(work.settings))

    def _gateway_certificate(self, address: str) -> None:
        """What its gateway shows clients; one that runs takes up another by itself."""
        work, gateway = self._work, self._work.plan.settings.gateway
        if gateway.tls is None:
            if work.is_running and not work.keeps_settings:
                self.play("clear-gateway")
        elif work.plan.certificate is not None:
            self.play("configure-gateway", certificate=work.plan.certificate.pem)
        elif gateway.tls.generated:
            there = work.shell.read(f"{work.layout.state}/{GATEWAY_CERTIFICATE}") or b""
            names = [work.host.address.strip("[]"), gateway.host]
            found = "" if work.plan.rotates else there.decode(errors="replace")
            own = made(work.cluster.gateway_authority, work.host.name, address, names, found)
            self.play("configure-gateway", certificate=own)

    def _gateway_authority(self) -> None:
        """It lasts as long as gateways show certificates of llx's making: then clients trust it."""
        tls, authority = self._work.plan.settings.gateway.tls, self._work.cluster.gateway_authority
        if tls is None or not tls.generated:
            if not self._work.keeps_settings:
                self.play("clear-gateway-head")
            return
        self.play(
            "configure-gateway-head",
            gateway_ca_cert=authority.cert_pem,
            gateway_ca_key=authority.key_pem,
        )

    def _on_step(self, event: StepEvent) -> None:
        if event.state is StepState.RUNNING and event.detail:
            self._say(f"{event.step}: {event.detail}")
        elif event.state is StepState.RUNNING and event.step in _SLOW_STEPS:
            self._say(event.step)

    def _on_progress(self, name: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            self._say(f"model {name}: {done >> 20} of {total >> 20} MiB")

        return tell
