"""`llx up` of a cluster on hosts, and everything else that makes one match its settings.

    look (`hosts_look`) → lock → per host: directories, llx, node environment, models, secrets, Ray
    → head answers → settings reach it → hosts, instances, gateways ready → first token
    → hosts that are no longer asked for are emptied and left

Each step looks first and acts only on what is not as it should be, so all of it may be repeated,
interrupted anywhere and taken up again. A host that fails does not stop the others.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from llx.api import ClusterStatus, HostState, HostStatus, InstanceState
from llx.bootstrap.cluster_dir import cluster_lock, id_of, write_private
from llx.bootstrap.cluster_secrets import ClusterSecrets, new_secrets, read_secrets, rotated
from llx.bootstrap.contexts import ID_FILE, SETTINGS_FILE
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.gateway_tls import keep_authority
from llx.bootstrap.head_move import HeadMove, confirm_move, seat_head
from llx.bootstrap.host_lock import Held, hold
from llx.bootstrap.host_steps import HostWork, configure_host, prepare_host, start_host
from llx.bootstrap.hosts_keys import rotate_keys
from llx.bootstrap.hosts_look import Outlook, ask_head
from llx.bootstrap.hosts_plan import head_settings
from llx.bootstrap.hosts_result import HostsError, HostsResult
from llx.bootstrap.hosts_stop import Farewell, leave_hosts
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all, settings_of
from llx.bootstrap.hub_models import HubPins
from llx.bootstrap.left_hosts import load_left, save_left, take_over_down_file
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.bootstrap.ray_renewal import begin_renewal, end_renewal
from llx.bootstrap.readiness import Outside, Readiness, lists_all, rows_of, step
from llx.bootstrap.upgrade import Replacing
from llx.bootstrap.wheel import portable_wheel
from llx.client import Cluster
from llx.errors import (
    ConflictError,
    DeadlineError,
    ExitCode,
    LlxError,
    UnreachableError,
)
from llx.settings import ClusterSettings, HostSettings, dump_cluster

_HEAD_START_S = 120.0
_AGENTS_S = 120.0
_EMPTY_S = 120.0
_POLL_S = 0.2


def apply(
    outlook: Outlook, world: HostsWorld, observe: Observer, farewell: Farewell
) -> HostsResult:
    """Make the cluster match the plan.

    Args:
        outlook: Of `hosts_look.look`.
        world: To act in.
        observe: Told what goes on.
        farewell: How hosts are left that are no longer asked for.

    Raises:
        ConflictError: Another llx is at work on it.
        HostsError: Hosts failed; the others were brought up as far as that goes.
        StartError: Something did not start.
        DeadlineError: Not ready in time.
    """
    plan = outlook.plan
    with cluster_lock(plan.state_dir, outlook.verb), contextlib.ExitStack() as stack:
        held = {name: stack.enter_context(_hold(outlook, world, name)) for name in to_lock(outlook)}
        return _Apply(outlook, world, observe, held, farewell).run()


def to_lock(outlook: Outlook) -> list[str]:
    """The head's host; for a move of the head all hosts within reach, in one order everywhere.

    Whoever moves it to some other host, and whoever is at work on the former, meets us there.
    """
    head, move = outlook.plan.head.name, outlook.move
    if move is None:
        return [head]
    near = [move.former] if move.is_former_near else []
    return sorted({head, *near, *outlook.crew.good})


def _hold(
    outlook: Outlook, world: HostsWorld, name: str
) -> contextlib.AbstractContextManager[Held]:
    shell, layout, asker = outlook.crew.shells[name], outlook.crew.layouts[name], world.asker
    return hold(shell, layout, outlook.verb, asker.user, asker.machine, asker.pid)


def tell_settings(outlook: Outlook, control: Cluster, user: str) -> list[str]:
    """Have a running cluster become what is planned, unless it is to stay as it is."""
    if outlook.keeps_settings:
        return []
    wanted = head_settings(outlook.plan, outlook.platform, outlook.addresses)
    return control.put_settings(dump_cluster(wanted), user=user)


class _Apply:
    """One run of `apply`."""

    def __init__(
        self,
        outlook: Outlook,
        world: HostsWorld,
        observe: Observer,
        held: Mapping[str, Held],
        farewell: Farewell,
    ) -> None:
        self._outlook = outlook
        self._plan = outlook.plan
        self._crew = outlook.crew
        self._world = world
        self._observe = observe
        self._locks = held
        self._held = held[outlook.plan.head.name]
        self._farewell = farewell
        self._changes: list[str] = []
        self._num_changed: dict[str, int] = {}
        self._head = self._plan.head.name
        sources = {name: each.model_sources for name, each in outlook.facts.items()}
        self._pins = HubPins.of_hosts(sources, first=self._head)
        self._is_running = outlook.is_running or self._answers()
        self._wanted = outlook.plan.settings

    def run(self) -> HostsResult:
        shell, layout = self._crew.shells[self._head], self._crew.layouts[self._head]
        if self._outlook.move is not None:
            self._move_head(self._outlook.move)
        cluster = read_secrets(shell, layout)
        if cluster is None:
            self._refuse_running()
            cluster = new_secrets(self._former_id())
        elif self._plan.rotates:
            cluster = rotated(cluster)
        settings = head_settings(self._plan, self._outlook.platform, self._outlook.addresses)
        if self._is_running and self._outlook.move is None:
            ask_head(self._outlook, self._world)  # again: somebody may have changed it meanwhile
        write_private(self._plan.state_dir / ID_FILE, cluster.cluster_id)
        take_over_down_file(self._plan.state_dir, self._plan.settings)
        self._remember(self._outlook.leaving_hosts)
        is_made = (tls := settings.gateway.tls) is not None and tls.generated
        if is_made or not self._outlook.keeps_settings:
            authority = cluster.gateway_authority.cert_pem if is_made else ""
            keep_authority(self._plan.state_dir, authority)
        cluster = self._prepare_hosts(cluster, settings)
        if self._head in self._crew.errors:
            raise HostsError(self._crew.errors, is_partial=False, cluster=settings.cluster)
        with self._control() as control:
            if self._is_running:
                self._changes += tell_settings(self._outlook, control, str(self._world.asker))
                if self._outlook.keeps_settings:
                    self._wanted = settings_of(control)
            self._wait_agents(control)
            self._restart_failed(control)
            self._leave(control)
            self._rotate(control, cluster)
            self._wait_serving(control)
            if not self._crew.errors:
                self._upgrade(control)
            status = control.status()
        if self._crew.errors:
            raise HostsError(self._crew.errors, is_partial=True, cluster=settings.cluster)
        return HostsResult(status, self._is_running, tuple(self._changes))

    def _upgrade(self, control: Cluster) -> None:
        """Head and agents are of this llx by now; what they serve with follows."""
        deadline_s = self._plan.upgrade_deadline_s
        if deadline_s is not None:
            self._changes += Replacing(
                control,
                self._observe,
                str(self._world.asker),
                deadline_s=deadline_s,
                start_timeout_s=self._wanted.runtime.start_timeout_s,
                proceed=self._held.require,
                clock=self._world.clock,
                sleep=self._world.sleep,
            ).run()

    def _move_head(self, move: HeadMove) -> None:
        """The head's host becomes that; the rest of `up` brings the others to it."""
        outlook = self._outlook
        with step("head", self._observe) as say:
            say(f"from {move.former} to {move.host}")
            move = confirm_move(move, self._crew, self._back(move))
            # Again: somebody may have changed settings, or begun a rollout, meanwhile.
            ask_head(replace(outlook, move=move), self._world)
            seat_head(
                move,
                self._crew,
                head_settings(self._plan, outlook.platform, outlook.addresses),
                user=str(self._world.asker),
                log_dir=self._plan.state_dir / "hosts",
                proceed=self._require_all,
            )
            say.conclude(f"from {move.former} to {move.host}")
        self._changes.append(f"head: {move.former} → {move.host}")
        error = self._crew.errors.pop(move.former, None)
        if error is not None:  # that is why it is moved
            self._observe(StepEvent(_row(move.former), StepState.SKIPPED, error.message))
            self._changes.append(f"{move.former}: out of reach; `llx up` takes it back")

    def _back(self, move: HeadMove) -> Crew:
        """The former head's host, if it was out of reach and is no more."""
        settings = self._plan.settings
        lost = [e for e in settings.hosts if e.name == move.former and not move.is_former_near]
        back = connect_all(lost, settings.cluster, self._world.connect)
        back.close()
        return back

    def _require_all(self) -> None:
        for held in self._locks.values():
            held.require()

    def _refuse_running(self) -> None:
        """The head has none of the cluster's secrets: nothing of it may be running anywhere."""
        cluster = self._plan.settings.cluster
        running = [
            name
            for name, facts in self._outlook.facts.items()
            if facts.is_cluster_running and facts.claim is not None
        ]
        if running:
            raise ConflictError(
                f"cluster {cluster} runs on {', '.join(running)}, but {self._head} is not its head,"
                " or was brought up by another release of llx",
                remedy="set `head:` to its head; or `llx down` with the llx that started it",
            )

    def _former_id(self) -> str:
        """By which an `up` that did not get far has claimed hosts; empty if there was none."""
        claim = self._outlook.facts[self._head].claim
        if claim is not None and claim.cluster == self._plan.settings.cluster:
            return claim.cluster_id
        return id_of(self._plan.state_dir)

    def _answers(self) -> bool:
        """Somebody else's `up` may have ended while ours asked for a yes."""
        shell, layout = self._crew.shells[self._head], self._crew.layouts[self._head]
        try:
            with self._world.control(shell, layout) as control:
                control.status()
        except LlxError:
            return False
        return True

    def _remember(self, leaving: Sequence[HostSettings]) -> None:
        """From now on the verbs of this machine know the cluster, whatever becomes of it.

        Hosts that leave are remembered until they have been left: `up` and `down` go there, too.
        """
        addresses = self._outlook.addresses
        hosts = [
            each.model_copy(update={"cluster_address": addresses.get(each.name)})
            for each in self._plan.settings.hosts
        ]
        settings = self._plan.settings.model_copy(update={"hosts": (*hosts, *leaving)})
        path = self._plan.state_dir / SETTINGS_FILE
        text = dump_cluster(settings)
        if not path.exists() or path.read_text() != text:
            write_private(path, text)

    # ------------------------------------------------------------------ hosts

    def _prepare_hosts(self, cluster: ClusterSecrets, settings: ClusterSettings) -> ClusterSecrets:
        """All hosts at once; who fails is noted and left. Returns the secrets that they have.

        The head is given the secrets before anybody else: whatever comes in between, a later `up`
        finds there what the others were given. Ray starts when all hosts are through with what may
        take long: a node that waits for its head would be taken for one that failed.
        """
        for name, error in self._crew.errors.items():
            self._observe(StepEvent(_row(name), StepState.FAILED, error.message))
        wheel = self._wheel()
        works = {name: self._work(name, cluster, settings, wheel) for name in self._crew.good}
        pythons: dict[str, PurePosixPath] = {}

        def prepare(name: str) -> list[str]:
            pythons[name], changed = prepare_host(works[name], self._teller(name))
            return changed

        def configure(name: str) -> list[str]:
            return configure_host(works[name], pythons[name], self._teller(name))

        def start(name: str) -> list[str]:
            return start_host(works[name], pythons[name], self._teller(name))

        self._on_hosts(self._crew.good, prepare)
        if self._head in self._crew.good:
            cluster = begin_renewal(self._plan, self._crew, self._held, cluster, self._observe)
            works = {name: replace(each, cluster=cluster) for name, each in works.items()}
        if self._head in self._crew.good:
            self._on_hosts([self._head], configure)
        if self._head in self._crew.good:
            for names in self._turns():
                self._on_hosts(names, start, is_last=True)
        return cluster

    def _turns(self) -> Iterator[list[str]]:
        """Who starts Ray with whom. Begun anew, members that join what ends do so in vain."""
        if self._plan.upgrade_deadline_s is None:
            yield self._crew.good
            return
        yield [self._head]
        if self._head in self._crew.good:
            yield [name for name in self._crew.good if name != self._head]

    def _work(
        self, name: str, cluster: ClusterSecrets, settings: ClusterSettings, wheel: Path
    ) -> HostWork:
        outlook = self._outlook
        return HostWork(
            plan=self._plan,
            host=next(each for each in self._plan.settings.hosts if each.name == name),
            shell=self._crew.shells[name],
            layout=self._crew.layouts[name],
            facts=outlook.facts[name],
            platform=outlook.platform,
            python_version=outlook.python_version,
            addresses=outlook.addresses,
            cluster=cluster,
            settings=settings,
            wheel=wheel,
            is_running=self._is_running,
            log=self._plan.state_dir / "hosts" / f"{name}.log",
            proceed=self._held.require,
            pins=self._pins,
            keeps_settings=outlook.keeps_settings,
        )

    def _on_hosts(
        self, names: Sequence[str], work: Callable[[str], list[str]], *, is_last: bool = False
    ) -> None:
        """One stage, on many hosts at once."""

        def told(name: str) -> list[str]:
            try:
                changed = work(name)
            except LlxError as error:
                self._observe(StepEvent(_row(name), StepState.FAILED, error.message))
                raise
            self._num_changed[name] = self._num_changed.get(name, 0) + len(changed)
            if is_last:
                count = self._num_changed[name]
                done = f"{count} steps done" if count else "as it should be"
                self._observe(StepEvent(_row(name), StepState.DONE, done))
            return changed

        for name, result in fan_out(names, told).items():
            if isinstance(result, LlxError):
                self._crew.errors[name] = result
            else:
                self._changes += [f"{name}: {each}" for each in result]

    def _wheel(self) -> Path:
        """llx's own wheel, as a file to send."""
        folder = self._plan.state_dir / "wheels"
        folder.mkdir(mode=0o700, exist_ok=True)
        return portable_wheel().write_into(folder)

    def _teller(self, name: str) -> Callable[[str], None]:
        return lambda detail: self._observe(StepEvent(_row(name), StepState.RUNNING, detail))

    # ------------------------------------------------------------------ the head and its agents

    @contextlib.contextmanager
    def _control(self) -> Iterator[Cluster]:
        """The control API, as soon as it answers."""
        with step("head", self._observe) as say:
            deadline = self._world.clock() + _HEAD_START_S
            while True:
                client = self._try_control(say)
                if client is not None:
                    break
                if self._world.clock() > deadline:
                    raise DeadlineError(
                        f"{self._head}: the head does not answer after {_HEAD_START_S:.0f} s",
                        detail=self._end_of_ray_log(self._head),
                        remedy=f"llx logs {self._head}; llx down",
                    )
                self._world.sleep(_POLL_S)
            say.conclude("control API answers")
        with client:
            yield client

    def _try_control(self, say: Callable[[str], None]) -> Cluster | None:
        try:
            client = self._world.control(
                self._crew.shells[self._head], self._crew.layouts[self._head]
            )
        except UnreachableError as error:
            say(error.detail or "starting")
            return None
        try:
            client.status()
        except UnreachableError:
            client.close()
            return None
        return client

    def _wait_agents(self, control: Cluster) -> None:
        """Until the agent of every host that did not fail has been heard of."""
        wanted = set(self._crew.good)
        with step("agents", self._observe) as say:
            deadline = self._world.clock() + _AGENTS_S
            while True:
                self._held.require()
                status = control.status()
                hosts = {each.name: each for each in status.hosts}
                ready = {n for n, each in hosts.items() if each.state is HostState.READY}
                missing = wanted - ready
                if not missing:
                    break
                say(f"waiting for {', '.join(sorted(missing))}")
                if self._world.clock() > deadline:
                    self._note_missing(missing, hosts)
                    break
                self._world.sleep(_POLL_S)
            say.conclude(f"{len(ready)} of {len(self._plan.settings.hosts)} hosts")

    def _rotate(self, control: Cluster, cluster: ClusterSecrets) -> None:
        plan, user, keys = self._plan, str(self._world.asker), cluster.keys
        if end_renewal(plan, self._crew, self._held, cluster):
            text = "replaced: Ray's token, the authority and the hosts' certificates for Ray"
            control.note("up --rotate", text, user=user)
        if cluster.is_ray_being_laid:  # the head has just begun: it must know whom to wait for
            self._wait_serving(control)
        if plan.rotates:
            control.note("up --rotate", "replaced: the control API's token", user=user)
        if rotate_keys(plan, self._crew, self._held, keys, control, self._world, self._observe):
            control.note("up --rotate", "replaced: the keys of the cluster's sockets", user=user)

    def _restart_failed(self, control: Cluster) -> None:
        for each in rows_of(control.status()):
            if each.state is InstanceState.FAILED:
                with contextlib.suppress(ConflictError):  # it is being started already
                    control.restart_instance(each.name, user=str(self._world.asker))
                    self._changes.append(f"{each.name}: started again")

    def _note_missing(self, missing: set[str], hosts: Mapping[str, HostStatus]) -> None:
        for name in sorted(missing):
            known = hosts.get(name)
            said = (known.detail if known is not None else "") or "it did not join"
            self._crew.errors[name] = DeadlineError(
                f"{name}: no word of its agent after {_AGENTS_S:.0f} s: {said}",
                detail=self._end_of_ray_log(name),
                remedy=f"llx logs {name}",
            )
            self._observe(StepEvent(_row(name), StepState.FAILED, said))

    def _end_of_ray_log(self, name: str) -> str:
        log = f"{self._crew.layouts[name].procs}/ray/log"
        try:
            return self._crew.shells[name].run(["tail", "-n", "20", log]).stdout
        except LlxError as error:
            return str(error)

    def _wait_serving(self, control: Cluster) -> None:
        """Until all serves. A host that failed explains what does not, and is told first."""
        try:
            self._serve(control)
        except LlxError as error:
            if not self._crew.errors:
                raise
            errors = {**self._crew.errors, "the cluster": error}
            name, is_partial = self._plan.settings.cluster, error.exit_code is ExitCode.PARTIAL
            raise HostsError(errors, is_partial=is_partial, cluster=name) from None

    def _serve(self, control: Cluster) -> None:
        settings, planned = self._wanted, self._plan.settings
        outside = Outside(
            status=control.status,
            log_end=lambda name: _log_end(control, name),
            log_place=lambda name: f"llx logs {name}",
            clock=self._world.clock,
            sleep=self._world.sleep,
        )
        readiness = Readiness(outside, self._observe)
        status = readiness.wait(settings.runtime.start_timeout_s, self._is_complete)
        readiness.require_all(status)
        is_open = settings.gateway.api_keys == planned.gateway.api_keys
        if self._plan.can_probe and is_open:
            readiness.first_token(status, self._probe)
        else:
            readiness.skip_first_token("only hashes of API keys are known")

    def _probe(self, status: ClusterStatus, model: str) -> None:
        self._world.first_token(self._crew.shells, status, model, self._plan.probe_key)

    def _is_complete(self, status: ClusterStatus) -> bool:
        self._held.require()
        return lists_all(status, self._wanted)

    # ------------------------------------------------------------------ hosts that leave

    def _leave(self, control: Cluster) -> None:
        leaving = {each.name for each in self._outlook.leaving_hosts}
        if not leaving:
            return
        with step("leaving hosts", self._observe) as say:
            deadline = self._world.clock() + _EMPTY_S
            while left := leaving & {each.name for each in control.status().hosts}:
                say(f"waiting until {', '.join(sorted(left))} is empty")
                if self._world.clock() > deadline:
                    break
                self._world.sleep(_POLL_S)
            self._crew.errors |= self._take_leave(say)
            say.conclude(", ".join(sorted(leaving)))

    def _take_leave(self, say: Callable[[str], None]) -> dict[str, LlxError]:
        """End what runs there; what went wrong, by host. Those stay known here."""
        hosts, crew = self._outlook.leaving_hosts, self._outlook.leaving
        state_dir, is_purge = self._plan.state_dir, self._farewell.is_purge
        behind = leave_hosts(
            crew,
            state_dir,
            lambda name, text: say(text),
            is_purge=is_purge,
            proceed=self._held.require,
        )
        for name in self._farewell.given_up(crew):
            del behind[name]
            self._changes.append(f"{name}: out of reach, forgotten; what runs there goes on")
        self._changes += [f"{name}: left" for name in crew.shells if name not in behind]
        if not is_purge:
            left = [each for each in hosts if each.name in crew.shells]
            save_left(state_dir, [*load_left(state_dir), *left])
        self._remember([each for each in hosts if each.name in behind])
        return behind


def _log_end(control: Cluster, name: str) -> str:
    try:
        return control.logs(name, tail=400).text
    except LlxError:
        return ""


def _row(name: str) -> str:
    return f"host {name}"
