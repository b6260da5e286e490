"""`llx down` of a cluster on hosts, and leaving a host that is no longer part of one.

With the head's help if it answers, without it if not; safe to repeat. A host that cannot be reached
does not keep the others up; the cluster stays known here until it, too, was taken down, or is given
up.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llx.api import StopReport
from llx.bootstrap.cluster_dir import DOWN_FILE, clear, cluster_lock, id_of, purge, write_private
from llx.bootstrap.contexts import SETTINGS_FILE
from llx.bootstrap.fan_out import FanOutError, fan_out
from llx.bootstrap.head_move import head_of, survey
from llx.bootstrap.host_claim import Owner, owner_of
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_lock import hold
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all, settings_of
from llx.bootstrap.left_hosts import load_left, named_apart, save_left
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.bootstrap.play import Proceed, play
from llx.bootstrap.playbook import load_playbook
from llx.bootstrap.shell import Shell
from llx.client import Cluster
from llx.errors import ConfigError, ConflictError, LlxError, UnreachableError
from llx.secret import Secret
from llx.settings import ClusterSettings, HostSettings, dump_cluster

_POLL_S = 0.25
GRACE_S = 10.0
_MAX_GRACE_S = 3600.0  # `timeout_s` of playbooks/stop.yaml has room for it
_HEAD_AWAY_S = 20.0
"""A head that has died is there again after that, or has to be done without."""
_STREAMS = "streams"

Tell = Callable[[str, str], None]


class LeftBehindError(FanOutError):
    """Some hosts could not be taken down."""

    def __init__(self, cluster: str, errors: Mapping[str, LlxError], *, is_partial: bool) -> None:
        away = [name for name, each in errors.items() if isinstance(each, UnreachableError)]
        give_up = " ".join(f"--forget {name}" for name in away)
        remedy = "`llx down` again when they can be reached; whatever runs there goes on"
        super().__init__(
            f"cluster {cluster}: {', '.join(errors)} could not be taken down:",
            errors,
            is_partial=is_partial,
            remedy=remedy + (f"; gone for good: llx down {give_up}" if away else ""),
        )


@dataclass(frozen=True, slots=True)
class Farewell:
    """How hosts are left.

    Attributes:
        is_purge: Nothing of llx stays there; else node environments, models and logs do.
        forget: Names of hosts that are given up if they are out of reach.
    """

    is_purge: bool = False
    forget: frozenset[str] = frozenset()

    def given_up(self, crew: Crew) -> list[str]:
        """Those of `forget` that could not be connected to."""
        return [name for name in crew.errors if name in self.forget and name not in crew.shells]


@dataclass(frozen=True, slots=True)
class HostsDownResult:
    """What `down` did.

    Attributes:
        report: The head's; None when it could not be asked.
        hosts: Those that were taken down.
        forgotten: Those that were given up; what runs there goes on.
    """

    report: StopReport | None
    hosts: tuple[str, ...]
    forgotten: tuple[str, ...] = ()


def down(
    settings: ClusterSettings,
    state_dir: Path,
    world: HostsWorld,
    observe: Observer,
    *,
    deadline_s: float,
    farewell: Farewell,
) -> HostsDownResult:
    """Take the cluster down; streams may finish until the deadline.

    Raises:
        ConflictError: Another llx is at work on it.
        LeftBehindError: Hosts could not be reached or failed; the others are down.
    """
    with cluster_lock(state_dir, "down"):
        return _Down(settings, state_dir, world, observe, deadline_s, farewell).run()


def leave_hosts(
    crew: Crew,
    state_dir: Path,
    tell: Tell,
    *,
    head: str = "",
    is_purge: bool = False,
    grace_s: float = GRACE_S,
    proceed: Proceed = lambda: None,
    is_left: bool = False,
) -> dict[str, LlxError]:
    """End everything of the cluster on these hosts and take away what belongs to a start.

    `proceed` is called before each step and may raise; what still runs has `grace_s` to end by
    itself. With `is_left` they were left before, and may be anybody's by now. Returns what went
    wrong, by host; hosts that were not connected to among them.
    """
    cluster_id = id_of(state_dir)

    def work(name: str) -> None:
        shell, layout = crew.shells[name], crew.layouts[name]
        owner = owner_of(shell, layout, cluster_id)
        for each in playbooks_for(shell, layout, owner, is_purge=is_purge, is_left=is_left):
            tell(name, each)
            # With the last of a purge the lock goes, too, and is no reason to stop.
            may_go_on = (lambda: None) if each == "purge" and name == head else proceed
            _play(each, shell, layout, state_dir, grace_s, may_go_on)

    # The head's host last: with it a purge takes the lock away that guards the others.
    others = [name for name in crew.shells if name != head]
    results = fan_out(others, work)
    if head in crew.shells:
        results |= fan_out([head], work)
    failed = {name: each for name, each in results.items() if isinstance(each, LlxError)}
    return {**crew.errors, **failed}


def playbooks_for(
    shell: Shell, layout: HostLayout, owner: Owner, *, is_purge: bool, is_left: bool
) -> list[str]:
    """What is played on a host; one that another cluster has taken since is left to that one.

    Raises:
        ConflictError: Another cluster of this name uses it.
    """
    match owner:
        case Owner.OTHER:
            return ["forget"]
        case Owner.US | Owner.NAMESAKE if is_left:
            return []  # a cluster of our name came back to it, and has its things there
        case Owner.NAMESAKE:
            raise ConflictError(
                f'{shell.host}: another llx cluster called "{layout.cluster}", too, uses it',
                remedy="is it the one you mean? `llx up` with its file first: then this machine "
                "knows it",
            )
        case Owner.NOBODY | Owner.US:
            if not is_purge:
                return ["stop", "clear"]
            firewall = ["unfirewall"] if _has_firewall(shell, layout) else []
            return ["stop", "clear", *firewall, "purge"]


class _Down:
    """One run of `down`."""

    def __init__(
        self,
        settings: ClusterSettings,
        state_dir: Path,
        world: HostsWorld,
        observe: Observer,
        deadline_s: float,
        farewell: Farewell,
    ) -> None:
        head = settings.head_host
        assert head is not None, "a cluster on hosts has a head"
        self._settings = settings
        self._head = head.name
        self._state_dir = state_dir
        self._world = world
        self._observe = observe
        self._deadline_s = deadline_s
        self._farewell = farewell

    def run(self) -> HostsDownResult:
        self._observe(StepEvent("connect", StepState.RUNNING))
        with contextlib.closing(self._connected(self._settings.hosts)) as crew:
            found = f"{len(crew.shells)} of {len(self._settings.hosts)} hosts"
            state = StepState.DONE if crew.shells else StepState.FAILED
            self._observe(StepEvent("connect", state, found))
            with contextlib.ExitStack() as stack:
                report, errors = self._stop(crew, stack)
            forgotten = self._farewell.given_up(crew)
            errors = {name: e for name, e in errors.items() if name not in forgotten}
            if self._farewell.is_purge and not errors:
                errors = self._purge_left()
            self._tell_ends(crew, errors)
        if errors:
            is_partial = any(name not in errors for name in crew.shells)
            raise LeftBehindError(self._settings.cluster, errors, is_partial=is_partial)
        if self._farewell.is_purge:
            purge(self._state_dir)
        else:
            self._keep_for_purge(forgotten)
            clear(self._state_dir)
        return HostsDownResult(report, tuple(crew.shells), tuple(forgotten))

    def _connected(self, hosts: Sequence[HostSettings]) -> Crew:
        return connect_all(hosts, self._settings.cluster, self._world.connect)

    def _stop(
        self, crew: Crew, stack: contextlib.ExitStack
    ) -> tuple[StopReport | None, dict[str, LlxError]]:
        """Everything of the cluster ends; what the head said, what went wrong."""
        self._follow_head(crew)
        proceed: Proceed = lambda: None  # noqa: E731 - the head away: there is no lock to lose
        report = None
        shell = crew.shells.get(self._head)
        if shell is not None:
            layout, asker = crew.layouts[self._head], self._world.asker
            owner = owner_of(shell, layout, id_of(self._state_dir))
            playbooks_for(shell, layout, owner, is_purge=False, is_left=False)  # or it is refused
            held = stack.enter_context(
                hold(shell, layout, "down", asker.user, asker.machine, asker.pid)
            )
            proceed = held.require
            with self._control(shell, layout) as control:
                if control is not None:
                    self._meet_strangers(control, crew)
                    report = self._ask_head(control)
        errors = leave_hosts(
            crew,
            self._state_dir,
            self._teller(),
            head=self._head,
            is_purge=self._farewell.is_purge,
            # What the head has not ended gets the time that it would have given.
            grace_s=GRACE_S if report is not None else max(GRACE_S, self._deadline_s),
            proceed=proceed,
        )
        return report, errors

    def _follow_head(self, crew: Crew) -> None:
        """It may have moved since this machine heard of it last."""
        newest = head_of(survey(crew, list(crew.shells)))
        known = {each.name for each in self._settings.hosts}
        if newest is not None and newest.cluster_id == id_of(self._state_dir):
            self._head = newest.head if newest.head in known else self._head

    @contextlib.contextmanager
    def _control(self, shell: Shell, layout: HostLayout) -> Iterator[Cluster | None]:
        """The head, if it answers; one that is being started again is waited for."""
        deadline = self._world.clock() + _HEAD_AWAY_S
        while True:
            try:
                control = self._world.control(shell, layout)
            except UnreachableError as error:
                failure = error
            else:
                with control:
                    try:
                        control.status()
                    except UnreachableError as error:
                        failure = error
                    else:
                        yield control
                        return
            if self._world.clock() > deadline or not _is_kept(shell, layout):
                self._observe(StepEvent(_STREAMS, StepState.SKIPPED, failure.message))
                yield None
                return
            self._observe(StepEvent(_STREAMS, StepState.RUNNING, "waiting for the head"))
            self._world.sleep(_POLL_S)

    def _meet_strangers(self, control: Cluster, crew: Crew) -> None:
        """Hosts that another operator has added are taken down with the rest."""
        known = {each.name for each in self._settings.hosts}
        strangers: list[HostSettings] = []
        with contextlib.suppress(ConfigError):  # a head of another release: what we know will do
            strangers = [each for each in settings_of(control).hosts if each.name not in known]
        if strangers:
            met = self._connected(strangers)
            crew.shells |= met.shells
            crew.layouts |= met.layouts
            crew.errors |= met.errors

    def _ask_head(self, control: Cluster) -> StopReport | None:
        """Have it stop everything, telling how many streams are left; None if it cannot."""
        reports: list[StopReport] = []
        failures: list[LlxError] = []
        within = f"may finish within {self._deadline_s:.0f} s"
        self._observe(StepEvent(_STREAMS, StepState.RUNNING, within))

        def ask() -> None:
            user = str(self._world.asker)
            try:
                reports.append(control.stop(deadline_s=self._deadline_s, user=user))
            except LlxError as error:
                failures.append(error)

        asking = threading.Thread(target=ask, name="stop", daemon=True)
        asking.start()
        while asking.is_alive():
            self._world.sleep(_POLL_S)
            with contextlib.suppress(LlxError):
                count = sum(each.in_flight for each in control.status().gateways)
                if count:
                    self._observe(StepEvent(_STREAMS, StepState.RUNNING, f"{count} still going"))
        if reports:
            cut = f", {reports[0].cut} cut at the deadline" if reports[0].cut else ""
            said = f"{reports[0].finished} finished{cut}"
            self._observe(StepEvent(_STREAMS, StepState.DONE, said))
            return reports[0]
        note = failures[0].message if failures else "the head does not answer"
        self._observe(StepEvent(_STREAMS, StepState.SKIPPED, note))
        return None

    def _purge_left(self) -> dict[str, LlxError]:
        """Hosts that were left long ago; what went wrong there. The others are done with."""
        left = named_apart(load_left(self._state_dir), self._settings.hosts)
        with contextlib.closing(self._connected(left)) as crew:
            errors = leave_hosts(crew, self._state_dir, self._teller(), is_purge=True, is_left=True)
            for name in self._farewell.given_up(crew):
                del errors[name]
            self._tell_ends(crew, errors)
        save_left(self._state_dir, [each for each in left if each.name in errors])
        return errors

    def _keep_for_purge(self, forgotten: Sequence[str]) -> None:
        """A later `down --purge` must know which hosts to visit."""
        path = self._state_dir / SETTINGS_FILE
        if not path.exists():
            return
        kept = tuple(each for each in self._settings.hosts if each.name not in forgotten)
        if not kept:
            path.unlink()
            return
        head = self._settings.head if self._head not in forgotten else None
        settings = self._settings.model_copy(update={"hosts": kept, "head": head})
        write_private(self._state_dir / DOWN_FILE, dump_cluster(settings))
        path.unlink()

    def _tell_ends(self, crew: Crew, errors: Mapping[str, LlxError]) -> None:
        well = "nothing of llx is left" if self._farewell.is_purge else "stopped"
        for name in crew.shells:
            error = errors.get(name)
            state = StepState.DONE if error is None else StepState.FAILED
            what = well if error is None else error.message
            self._observe(StepEvent(f"host {name}", state, what))

    def _teller(self) -> Tell:
        return lambda name, text: self._observe(StepEvent(f"host {name}", StepState.RUNNING, text))


def _play(
    name: str,
    shell: Shell,
    layout: HostLayout,
    state_dir: Path,
    grace_s: float,
    proceed: Proceed,
) -> None:
    values: dict[str, str | Secret] = {
        "root": str(layout.root),
        "state": str(layout.state),
        "spec": str(layout.spec),
        "claim": str(layout.claim),
        "ray_tmp": str(layout.ray_tmp),
        "grace_s": str(min(grace_s, _MAX_GRACE_S)),
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


def _is_kept(shell: Shell, layout: HostLayout) -> bool:
    """Whether Ray's keeper lives on the head's host: then a head that is away comes back."""
    lock = f"{layout.procs}/ray/shim.lock"
    done = shell.run(["sh", "-c", '[ -e "$1" ] && ! flock -n "$1" true', "sh", lock], timeout_s=15)
    return done.is_success
