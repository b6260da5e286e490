"""`llx down` of a cluster on hosts, and leaving a host that is no longer part of one.

With the head's help if it answers, without it if not; safe to repeat. A host that cannot be reached
does not keep the others up; the cluster stays known here until it, too, was taken down.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llx.api import StopReport
from llx.bootstrap.cluster_dir import DOWN_FILE, SETTINGS_FILE, clear, cluster_lock, purge
from llx.bootstrap.fan_out import FanOutError, fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_lock import hold
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.bootstrap.play import Proceed, play
from llx.bootstrap.playbook import load_playbook
from llx.bootstrap.shell import Shell
from llx.client import ControlClient
from llx.errors import LlxError, UnreachableError
from llx.secret import Secret
from llx.settings import ClusterSettings

_POLL_S = 0.25
_GRACE_S = 10

Tell = Callable[[str, str], None]


class LeftBehindError(FanOutError):
    """Some hosts could not be taken down."""

    def __init__(self, cluster: str, errors: Mapping[str, LlxError], *, is_partial: bool) -> None:
        super().__init__(
            f"cluster {cluster}: {', '.join(errors)} could not be taken down:",
            errors,
            is_partial=is_partial,
            remedy="`llx down` again when they can be reached; whatever runs there goes on",
        )


@dataclass(frozen=True, slots=True)
class HostsDownResult:
    """What `down` did. `report` is the head's; None when it could not be asked."""

    report: StopReport | None
    hosts: tuple[str, ...]


def down(
    settings: ClusterSettings,
    state_dir: Path,
    world: HostsWorld,
    observe: Observer,
    *,
    deadline_s: float,
    is_purge: bool = False,
) -> HostsDownResult:
    """Take the cluster down; streams may finish until the deadline.

    Without `is_purge` the node environments, models and logs stay on the hosts.

    Raises:
        ConflictError: Another llx is at work on it.
        LeftBehindError: Hosts could not be reached or failed; the others are down.
    """
    with cluster_lock(state_dir, "down"):
        observe(StepEvent("connect", StepState.RUNNING))
        crew = connect_all(settings.hosts, settings.cluster, world.connect)
        found = f"{len(crew.shells)} of {len(settings.hosts)} hosts"
        state = StepState.DONE if crew.shells else StepState.FAILED
        observe(StepEvent("connect", state, found))
        try:
            return _down(settings, state_dir, crew, world, observe, deadline_s, is_purge=is_purge)
        finally:
            crew.close()


def leave_hosts(
    crew: Crew,
    state_dir: Path,
    tell: Tell,
    *,
    head: str = "",
    is_purge: bool = False,
    proceed: Proceed = lambda: None,
) -> dict[str, LlxError]:
    """End everything of the cluster on these hosts and take away what belongs to a start.

    `proceed` is called before each step and may raise. Returns what went wrong, by host; hosts that
    were not connected to among them.
    """

    def work(name: str) -> None:
        shell, layout = crew.shells[name], crew.layouts[name]
        for each in _playbooks(shell, layout, is_purge=is_purge):
            tell(name, each)
            _play(each, shell, layout, state_dir, proceed)

    # The head's host last: with it a purge takes the lock away that guards the others.
    others = [name for name in crew.shells if name != head]
    results = fan_out(others, work)
    if head in crew.shells:
        results |= fan_out([head], work)
    failed = {name: each for name, each in results.items() if isinstance(each, LlxError)}
    return {**crew.errors, **failed}


def _down(
    settings: ClusterSettings,
    state_dir: Path,
    crew: Crew,
    world: HostsWorld,
    observe: Observer,
    deadline_s: float,
    *,
    is_purge: bool,
) -> HostsDownResult:
    head = settings.head_host
    assert head is not None, "a cluster on hosts has a head"
    report = None
    proceed: Proceed = lambda: None  # noqa: E731 - the head away: there is no lock to lose
    with contextlib.ExitStack() as stack:
        shell = crew.shells.get(head.name)
        if shell is not None:
            layout, asker = crew.layouts[head.name], world.asker
            held = stack.enter_context(
                hold(shell, layout, "down", asker.user, asker.machine, asker.pid)
            )
            proceed = held.require
            report = _ask_head(shell, layout, world, observe, deadline_s)
        tell = _teller(observe)
        errors = leave_hosts(
            crew, state_dir, tell, head=head.name, is_purge=is_purge, proceed=proceed
        )
        for name in crew.shells:
            error = errors.get(name)
            done = StepState.DONE if error is None else StepState.FAILED
            what = ("nothing of llx is left" if is_purge else "stopped") if error is None else ""
            observe(StepEvent(f"host {name}", done, what or str(error)))
    if errors:
        raise LeftBehindError(
            settings.cluster, errors, is_partial=len(errors) < len(settings.hosts)
        )
    if is_purge:
        purge(state_dir)
    else:
        _keep_for_purge(state_dir)
        clear(state_dir)
    return HostsDownResult(report, tuple(crew.shells))


def _keep_for_purge(state_dir: Path) -> None:
    """A later `down --purge` must know which hosts to visit."""
    settings = state_dir / SETTINGS_FILE
    if settings.exists():
        settings.replace(state_dir / DOWN_FILE)


def _playbooks(shell: Shell, layout: HostLayout, *, is_purge: bool) -> list[str]:
    """What is played on a host; one that another cluster has taken since is left to that one."""
    if not _is_ours(shell, layout):
        return ["forget"]
    if not is_purge:
        return ["stop", "clear"]
    firewall = ["unfirewall"] if _has_firewall(shell, layout) else []
    return ["stop", "clear", *firewall, "purge"]


def _is_ours(shell: Shell, layout: HostLayout) -> bool:
    claim = shell.read(str(layout.claim))
    if claim is None:
        return True
    with contextlib.suppress(msgspec.DecodeError):
        owner = msgspec.json.decode(claim, type=dict[str, object]).get("cluster")
        return owner in {None, layout.cluster}
    return True


def _play(name: str, shell: Shell, layout: HostLayout, state_dir: Path, proceed: Proceed) -> None:
    values: dict[str, str | Secret] = {
        "root": str(layout.root),
        "state": str(layout.state),
        "spec": str(layout.spec),
        "claim": str(layout.claim),
        "ray_tmp": str(layout.ray_tmp),
        "grace_s": str(_GRACE_S),
    }
    playbook = load_playbook(name)
    values = {key: value for key, value in values.items() if key in playbook.parameters}
    log = state_dir / "hosts" / f"{shell.host}.log"
    play(playbook, shell, values, layout=layout, log=log, proceed=proceed)


def _has_firewall(shell: Shell, layout: HostLayout) -> bool:
    """Whether the firewall playbook's table is there; who may not ask cannot have put it there."""
    sudo = [] if layout.uid == 0 else ["sudo", "-n"]
    return shell.run(
        [*sudo, "nft", "list", "table", "inet", f"llx_{layout.cluster}"], timeout_s=20
    ).is_success


def _ask_head(
    shell: Shell, layout: HostLayout, world: HostsWorld, observe: Observer, deadline_s: float
) -> StopReport | None:
    """Have the head stop everything, telling how many streams are left; None if it cannot."""
    reports: list[StopReport] = []
    failures: list[LlxError] = []
    row = "streams"
    observe(StepEvent(row, StepState.RUNNING, f"may finish within {deadline_s:.0f} s"))
    try:
        control = world.control(shell, layout)
    except UnreachableError as error:
        observe(StepEvent(row, StepState.SKIPPED, error.message))
        return None

    def ask(control: ControlClient) -> None:
        try:
            reports.append(control.stop(deadline_s=deadline_s, user=str(world.asker)))
        except LlxError as error:
            failures.append(error)

    with control:
        asking = threading.Thread(target=ask, args=(control,), name="stop", daemon=True)
        asking.start()
        while asking.is_alive():
            world.sleep(_POLL_S)
            with contextlib.suppress(LlxError):
                count = sum(each.in_flight for each in control.status().gateways)
                if count:
                    observe(StepEvent(row, StepState.RUNNING, f"{count} still going"))
    if reports:
        cut = f", {reports[0].cut} cut at the deadline" if reports[0].cut else ""
        observe(StepEvent(row, StepState.DONE, f"{reports[0].finished} finished{cut}"))
        return reports[0]
    note = failures[0].message if failures else "the head does not answer"
    observe(StepEvent(row, StepState.SKIPPED, note))
    return None


def _teller(observe: Observer) -> Tell:
    return lambda name, text: observe(StepEvent(f"host {name}", StepState.RUNNING, text))
