"""Playing a playbook on hosts of a cluster at once: which values each one gets, who failed.

Values are looked for where they are true: in the specification of a host that belongs to a running
cluster, else in the settings, else on the host.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from llx.bootstrap.fan_out import FanOutError, fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_lock import Held, hold
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.bootstrap.play import PlayResult, layout_values, play, standard_values
from llx.bootstrap.playbook import Playbook, Value, Values, require_values
from llx.bootstrap.shell import Shell
from llx.bootstrap.wheel import portable_wheel
from llx.errors import ConfigError, LlxError, NotFoundError, UnreachableError
from llx.secret import Secret
from llx.settings import ClusterSettings, HostSettings, Platform
from llx.specs import HostSpec
from llx.yaml_reader import nearest

ALL = "*"

_ADDRESSES = ("cluster_addresses", "cluster_addresses_v6")
_PLATFORM = ("platform", "prefix", "python")
_WHEEL = ("wheel", "wheel_file")
_GPU_PROBE = 'command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q "^GPU "'
_NOWHERE = HostLayout(PurePosixPath("/"), 0, "")
_ADDRESS_PROBE = 'set -- $SSH_CONNECTION; printf "%s\\n" "$3"'


@dataclass(frozen=True, slots=True)
class Performance:
    """A playbook to be played.

    Attributes:
        playbook: What.
        settings: The cluster's.
        hosts: Names of the hosts, in the cluster's order.
        given: Values that the caller set.
        log_dir: Gets a log per host.
        dry_run: Look only.
    """

    playbook: Playbook
    settings: ClusterSettings
    hosts: tuple[str, ...]
    given: Values
    log_dir: Path
    dry_run: bool = False


class PlayError(FanOutError):
    """A playbook failed on some hosts; it was played on the others."""

    def __init__(self, playbook: str, errors: Mapping[str, LlxError], *, is_partial: bool) -> None:
        headline = f"playbook {playbook} failed on {', '.join(errors)}:"
        super().__init__(headline, errors, is_partial=is_partial)


def chosen_hosts(settings: ClusterSettings, names: str) -> tuple[str, ...]:
    """The hosts that ``h1,h2`` or ``*`` names.

    Raises:
        ConfigError: The cluster has no hosts, or none is named.
        NotFoundError: It has none of that name.
    """
    known = [each.name for each in settings.hosts]
    if not known:
        raise ConfigError(
            f"cluster {settings.cluster} has no hosts: playbooks are for those reached by SSH"
        )
    wanted = [each.strip() for each in names.split(",") if each.strip()]
    if not wanted:
        raise ConfigError("--hosts names no host", remedy=f"--hosts {','.join(known)}")
    for each in wanted:
        if each not in (ALL, *known):
            raise NotFoundError(
                f'no host "{each}" in cluster {settings.cluster}{nearest(each, known)}',
                remedy=f"there are: {', '.join(known)}",
            )
    return tuple(each for each in known if ALL in wanted or each in wanted)


def parse_values(playbook: Playbook, words: Sequence[str]) -> dict[str, Value]:
    """Values from ``name=value``; ``name=@FILE`` is a file's content, and a secret.

    Raises:
        ConfigError: Not of this form, not a parameter, not to be set, or no such file.
    """
    fixed = layout_values(_NOWHERE)
    found: dict[str, Value] = {}
    for each in words:
        name, is_there, value = each.partition("=")
        if not is_there:
            raise ConfigError(f"--set {each}: write --set NAME=VALUE (or NAME=@FILE)")
        if name not in playbook.parameters:
            raise ConfigError(
                f'playbook {playbook.name} has no parameter "{name}"'
                f"{nearest(name, playbook.parameters)}",
                remedy=f"it has: {', '.join(playbook.parameters) or 'none'}",
            )
        if name in fixed:
            raise ConfigError(f'parameter "{name}" follows from the host and cannot be set')
        if value.startswith("@"):
            try:
                found[name] = Secret(Path(value[1:]).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--set {name}: cannot read {value[1:]}: {error}") from None
        else:
            found[name] = value
    return found


def play_on_hosts(
    performance: Performance, world: HostsWorld, observe: Observer
) -> dict[str, PlayResult | LlxError]:
    """Play on all hosts at once; a host's failure is its result.

    Unless it is played dry, the cluster's lock is held if its head can be reached.

    Raises:
        ConfigError: A value is missing.
        ConflictError: Another llx is at work on the cluster.
        UnreachableError: The address of a host that the playbook must know cannot be told.
    """
    _require_values(performance)
    crew = _connect(performance, world, observe)
    try:
        with _wheel(performance) as wheel, _lock(performance, crew, world, observe) as held:
            addresses = _addresses(performance, crew)
            hosts = {each.name: each for each in performance.settings.hosts}

            def work(name: str) -> PlayResult:
                values = _values(performance, hosts[name], crew, wheel, addresses)
                return play(
                    performance.playbook,
                    crew.shells[name],
                    values,
                    layout=crew.layouts[name],
                    observe=_row(name, observe),
                    dry_run=performance.dry_run,
                    log=None if performance.dry_run else performance.log_dir / f"{name}.log",
                    proceed=held,
                )

            results = fan_out([name for name in performance.hosts if name in crew.shells], work)
    finally:
        crew.close()
    found = {**crew.errors, **results}
    for name in performance.hosts:
        _conclude(name, found[name], observe)
    return {name: found[name] for name in performance.hosts}


def require_all(playbook: Playbook, results: Mapping[str, PlayResult | LlxError]) -> None:
    """See that no host failed.

    Raises:
        PlayError: Some did.
    """
    errors = {name: each for name, each in results.items() if isinstance(each, LlxError)}
    if errors:
        raise PlayError(playbook.name, errors, is_partial=len(errors) < len(results))


def _connect(performance: Performance, world: HostsWorld, observe: Observer) -> Crew:
    """To the hosts, and to those that must be asked for something besides."""
    settings = performance.settings
    needed = set(performance.hosts)
    if _needs(performance, _ADDRESSES):
        needed |= {each.name for each in settings.hosts if each.cluster_address is None}
    head = settings.head_host
    if head is not None and not performance.dry_run:
        needed.add(head.name)
    observe(StepEvent("connect", StepState.RUNNING))
    crew = connect_all(
        [each for each in settings.hosts if each.name in needed], settings.cluster, world.connect
    )
    state = StepState.DONE if crew.shells else StepState.FAILED
    observe(StepEvent("connect", state, f"{len(crew.shells)} of {len(needed)} hosts"))
    return crew


def _require_values(performance: Performance) -> None:
    """See that nothing will be missing, before any host is looked at."""
    host = performance.settings.hosts[0]
    standard = standard_values(_NOWHERE, performance.settings, host, platform="cpu")
    require_values(performance.playbook, {*standard, *_WHEEL, *performance.given})


@contextlib.contextmanager
def _wheel(performance: Performance) -> Iterator[Path | None]:
    """llx's own wheel, if the playbook sends it."""
    if not _needs(performance, _WHEEL):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="llx-") as folder:
        yield portable_wheel().write_into(Path(folder))


@contextlib.contextmanager
def _lock(
    performance: Performance, crew: Crew, world: HostsWorld, observe: Observer
) -> Iterator[Callable[[], None]]:
    """Hold the cluster's lock; gives what to call before each step."""
    head = performance.settings.head_host
    if head is None or performance.dry_run:
        yield lambda: None
        return
    if head.name not in crew.shells:
        note = f"the head, {head.name}, cannot be reached: going on without"
        observe(StepEvent("lock", StepState.SKIPPED, note))
        yield lambda: None
        return
    asker = world.asker
    shell, layout = crew.shells[head.name], crew.layouts[head.name]
    verb = f"play {performance.playbook.name}"
    held: Held
    with hold(shell, layout, verb, asker.user, asker.machine, asker.pid) as held:
        yield held.require


def _values(
    performance: Performance,
    host: HostSettings,
    crew: Crew,
    wheel: Path | None,
    addresses: Sequence[str],
) -> Values:
    shell, layout = crew.shells[host.name], crew.layouts[host.name]
    platform, python = "", ""
    if _needs(performance, _PLATFORM):
        spec = _spec(shell, layout)
        platform = _platform(performance.settings, shell) if spec is None else spec.platform
        python = "" if spec is None else spec.python
    values: dict[str, Value] = dict(
        standard_values(
            layout, performance.settings, host, platform=platform, cluster_addresses=addresses
        )
    )
    if python:
        values["python"] = python
    if wheel is not None:
        values |= {"wheel_file": str(wheel), "wheel": f"{layout.wheels}/{wheel.name}"}
    return {**values, **performance.given}


def _needs(performance: Performance, names: Sequence[str]) -> bool:
    """Whether the playbook has one of these parameters and the caller has not set it."""
    wanted = performance.playbook.parameters.keys() - performance.given.keys()
    return any(name in wanted for name in names)


def _addresses(performance: Performance, crew: Crew) -> list[str]:
    """IP addresses of all hosts of the cluster, if the playbook must know them."""
    if not _needs(performance, _ADDRESSES):
        return []
    found = []
    for host in performance.settings.hosts:
        address = host.cluster_address
        if address is None and host.name in crew.shells:
            shell = crew.shells[host.name]
            spec = _spec(shell, crew.layouts[host.name])
            seen = "" if spec is not None else shell.run(["sh", "-c", _ADDRESS_PROBE]).stdout
            address = seen.strip() if spec is None else spec.address
        if not address:
            error = crew.errors.get(host.name)
            why = "it does not say" if error is None else error.message
            raise UnreachableError(
                f"{host.name}: its address among the hosts is not known: {why}",
                remedy=f"set cluster_address of {host.name}, or take it out of the cluster",
            )
        found.append(address)
    return found


def _spec(shell: Shell, layout: HostLayout) -> HostSpec | None:
    """What the host's processes were told, if it belongs to a running cluster."""
    content = shell.read(str(layout.spec))
    try:
        return None if content is None else msgspec.json.decode(content, type=HostSpec)
    except msgspec.DecodeError:
        return None  # of another release


def _platform(settings: ClusterSettings, shell: Shell) -> str:
    if settings.runtime.platform is not Platform.AUTO:
        return str(settings.runtime.platform)
    has_gpu = shell.run(["sh", "-c", _GPU_PROBE], timeout_s=30).is_success
    return str(Platform.CUDA if has_gpu else Platform.CPU)


def _row(name: str, observe: Observer) -> Observer:
    """Passes on what happens on one host as news of that host."""

    def tell(event: StepEvent) -> None:
        detail = f"{event.step}: {event.detail}" if event.detail else event.step
        observe(StepEvent(f"host {name}", StepState.RUNNING, detail))

    return tell


def _conclude(name: str, result: PlayResult | LlxError, observe: Observer) -> None:
    if isinstance(result, LlxError):
        observe(StepEvent(f"host {name}", StepState.FAILED, result.message))
        return
    count, total = len(result.changed), len(result.changed) + len(result.unchanged)
    notes = [*([f"{count} of {total} steps"] if count else []), *result.fetched]
    detail = ", ".join(notes) or "nothing to do"
    observe(StepEvent(f"host {name}", StepState.DONE, detail))
