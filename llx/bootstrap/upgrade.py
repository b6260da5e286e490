"""`llx upgrade`: a running cluster on hosts gets the llx of the operator's install; streams go on.

    look: may it be?  →  `hosts_up.apply`: the node environment beside the former, Ray, agents and
    head begun anew under it, what serves adopted  →  each model's instances, by a rollout  →  the
    gateways, one after the other

For as long as it takes, processes of both releases work side by side: that asks for one wire
version and one vLLM. What is still to be done is told by what runs, so an upgrade that was
interrupted anywhere is gone on with by another.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llx import __version__
from llx.api import (
    ClusterStatus,
    GatewayStatus,
    HostState,
    InstanceState,
    InstanceStatus,
    RolloutRequest,
    RolloutStatus,
)
from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.local_ports import Observer
from llx.bootstrap.readiness import Say, step
from llx.client import Cluster
from llx.errors import ConflictError, DeadlineError, LlxError, NotFoundError
from llx.pins import VLLM_VERSION
from llx.wire import WIRE_VERSION

VERB = "upgrade"

_POLL_S = 0.5
_HEARD_S = 60.0
"""A new head hears within seconds of what release each process is."""


@dataclass(frozen=True, slots=True)
class Former:
    """What of a cluster is of another release than this llx.

    Attributes:
        release: The head's.
        instances: Names, by model; those that are on their way out are not among them.
        gateways: Names.
        unheard: Instances and gateways that have not said yet of what release they are.
    """

    release: str
    instances: dict[str, list[str]]
    gateways: list[str]
    unheard: list[str]

    @property
    def is_nothing(self) -> bool:
        """Whether all of it is of ours."""
        has_head = self.release == __version__
        return has_head and not (self.instances or self.gateways or self.unheard)


def former_parts(status: ClusterStatus) -> Former:
    """What a cluster has of other releases; what a head of such a one has, all is."""
    is_head_ours = status.llx_version == __version__

    def is_former(unit: InstanceStatus | GatewayStatus) -> bool:
        return not is_head_ours or unit.llx_version not in ("", __version__)

    instances: dict[str, list[str]] = {}
    staying = [each for each in status.instances if each.state is not InstanceState.DRAINING]
    for each in staying:
        if is_former(each):
            instances.setdefault(each.model, []).append(each.name)
    units: list[InstanceStatus | GatewayStatus] = [*staying, *status.gateways]
    running = [each for each in units if each.pid is not None]
    return Former(
        status.llx_version,
        instances,
        [each.name for each in status.gateways if is_former(each)],
        [each.name for each in running if is_head_ours and not each.llx_version],
    )


def refuse_other_release(status: ClusterStatus) -> None:
    """See that the cluster's head is of this release: it is changed by nobody else.

    Raises:
        ConflictError: It is not.
    """
    if status.llx_version != __version__:
        raise ConflictError(
            f"cluster {status.cluster} runs llx {status.llx_version}, and this is llx"
            f" {__version__}",
            remedy=f"llx upgrade brings it to {__version__}; or use llx {status.llx_version}",
        )


def refuse_other_release_of(hosts: Mapping[str, HostFacts], cluster: str) -> None:
    """Likewise of a cluster whose head does not answer, by the word of the hosts that run of it.

    One that is of this release is enough: an upgrade to it was interrupted, and that has seen that
    both can work side by side.

    Raises:
        ConflictError: All are of another.
    """
    releases = {each.release for each in hosts.values() if each.is_cluster_running} - {""}
    if not releases or __version__ in releases:
        return
    theirs = " and ".join(sorted(releases))
    raise ConflictError(
        f"cluster {cluster} runs llx {theirs}, its head does not answer, and this is llx"
        f" {__version__}",
        remedy=f"`llx up` with llx {theirs} starts its head again, then llx upgrade brings it to"
        f" {__version__}; or llx down, then llx up FILE",
    )


def plan_upgrade(control: Cluster, deadline_s: float) -> list[str]:
    """What an upgrade does, in words; changes nothing.

    Raises:
        ConflictError: Nothing is to be done, or it cannot be done while the cluster runs.
    """
    status = control.status()
    former = former_parts(status)
    if former.is_nothing:
        raise ConflictError(f"cluster {status.cluster} runs llx {__version__} already")
    _refuse_apart(status)
    is_begun = former.release == __version__
    _refuse_rollouts(control.rollouts(), is_begun=is_begun)
    words = []
    if not is_begun:
        words.append(f"llx {former.release} → {__version__}: head and agents start anew")
    for model, names in former.instances.items():
        if not is_begun:  # of one that has begun, a rollout may be under way
            control.rollout(model, _request(deadline_s, "", is_dry_run=True))
        words.append(f"{model}: {', '.join(names)}: replaced one by one, requests move off first")
    words += [
        f"{name}: starts again; its streams may finish, for {deadline_s:g} s"
        for name in former.gateways
    ]
    if len(status.gateways) == 1 and former.gateways:
        words.append(f"meanwhile nobody is let in: there is no gateway but {former.gateways[0]}")
    return words


def _refuse_apart(status: ClusterStatus) -> None:
    apart = []
    if status.vllm_version != VLLM_VERSION:
        apart.append(f"vLLM {status.vllm_version} and {VLLM_VERSION}")
    if status.wire_version != WIRE_VERSION:
        apart.append(f"wire version {status.wire_version} and {WIRE_VERSION}")
    if apart:
        raise ConflictError(
            f"llx {status.llx_version}, which cluster {status.cluster} runs, and llx {__version__}"
            f" do not work side by side: {', '.join(apart)}",
            remedy=f"llx down with llx {status.llx_version}, then llx up FILE",
        )
    lost = [
        each.name
        for each in status.hosts
        if each.state is not HostState.READY
        # An agent of ours is what a former head takes for failed.
        and not (each.state is HostState.FAILED and each.llx_version == __version__)
    ]
    if lost and status.llx_version != __version__:
        raise ConflictError(
            f"not ready: {', '.join(lost)}: a host that misses it is of no use afterwards",
            remedy="llx host ls; bring them back, or llx host rm NAME --forget",
        )


def _refuse_rollouts(rollouts: Sequence[RolloutStatus], *, is_begun: bool) -> None:
    """One that runs may be that of an upgrade that was interrupted: then it is waited for."""
    for each in rollouts:
        is_over = each.state in ("", "done")
        if not is_over and not (is_begun and each.state == "running"):
            raise ConflictError(
                f"a rollout of {each.model} is under way: it is {each.state}",
                remedy=f"llx rollout {each.model}: wait for its end, --resume or --abort it",
            )


class Replacing:
    """Replaces instances and gateways of former releases, once head and agents are of ours.

    Args:
        control: The head's API.
        observe: Told what goes on.
        user: For the audit trail.
        deadline_s: So long what is replaced may have requests or streams.
        start_timeout_s: So long a process may take to start.
        proceed: Raises when the work must stop.
        clock: Monotonic seconds.
        sleep: Wait so many seconds.
    """

    def __init__(
        self,
        control: Cluster,
        observe: Observer,
        user: str,
        *,
        deadline_s: float,
        start_timeout_s: float,
        proceed: Callable[[], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._control = control
        self._observe = observe
        self._user = user
        self._deadline_s = deadline_s
        self._start_timeout_s = start_timeout_s
        self._proceed = proceed
        self._clock = clock
        self._sleep = sleep

    def run(self) -> list[str]:
        """Until nothing is left of other releases; returns what was done, in words.

        Raises:
            ConflictError: Somebody has paused a rollout, or gone back on it.
            LlxError: What was started does not come up; what serves goes on.
            DeadlineError: A gateway does not come back.
        """
        former = self._heard()
        changes = [self._replace_instances(model) for model in former.instances]
        changes += [self._replace_gateway(name) for name in former.gateways]
        self._see_that_all_is_ours()
        if changes:
            self._control.note(VERB, f"all runs llx {__version__} now", user=self._user)
        return changes

    def _see_that_all_is_ours(self) -> None:
        """Whatever others began meanwhile.

        Raises:
            ConflictError: Something is not.
        """
        left = self._heard()
        names = [name for each in left.instances.values() for name in each]
        names += [*left.gateways, *left.unheard]
        if names:
            raise ConflictError(
                f"not known to be of llx {__version__}: {', '.join(sorted(set(names)))}",
                remedy="llx status; then llx upgrade",
            )

    def _heard(self) -> Former:
        """As soon as everything has said what it is, or after a minute."""
        end = self._clock() + _HEARD_S
        while (former := former_parts(self._control.status())).unheard and self._clock() < end:
            self._pause()
        return former

    def _pause(self) -> None:
        self._proceed()
        self._sleep(_POLL_S)

    # ------------------------------------------------------------------ instances

    def _replace_instances(self, model: str) -> str:
        with step(f"instances of {model}", self._observe) as say:
            found = self._rollout(model)
            if found.state != "running":
                request = _request(self._deadline_s, self._user)
                found = self._control.rollout(model, request).rollout
            done = self._await_rollout(found, say)
            words = f"{done.moved} requests moved, {done.finished} finished, {done.cut} cut"
            say.conclude(words)
        return f"{model}: {done.instances_new} instances replaced: {words}"

    def _rollout(self, model: str) -> RolloutStatus:
        found = next((each for each in self._control.rollouts() if each.model == model), None)
        if found is None:
            raise NotFoundError(f"model {model} is no longer there")
        return found

    def _await_rollout(self, found: RolloutStatus, say: Say) -> RolloutStatus:
        begun_at = found.begun_at
        while found.state == "running":
            say(f"{found.instances_new} of {found.instances_wanted} replaced")
            self._pause()
            found = self._rollout(found.model)
            if found.begun_at != begun_at:
                raise ConflictError(
                    f"the rollout of {found.model} was gone back on, or followed by another",
                    remedy=f"llx rollout {found.model} --wait, then llx upgrade",
                )
        if found.state != "done":
            raise LlxError(
                f"the rollout of {found.model} is {found.state}: {found.reason or 'as asked for'}",
                remedy=f"llx rollout {found.model} --resume --wait, then llx upgrade",
            )
        return found

    # ------------------------------------------------------------------ gateways

    def _replace_gateway(self, name: str) -> str:
        with step(name, self._observe) as say:
            self._await_others(name, say)
            with contextlib.suppress(ConflictError):  # it is being started anew already
                self._control.restart_instance(name, user=self._user, deadline_s=self._deadline_s)
            end = self._clock() + self._deadline_s + self._start_timeout_s
            while True:
                status = self._control.status()
                found = _gateway(status, name)
                if _is_ours(found) and _lets_in(found, status):
                    break
                doing = ": ".join(filter(None, [str(found.state), found.detail]))
                if found.state is InstanceState.FAILED or self._clock() > end:
                    raise DeadlineError(
                        f"{name} does not serve again: it is {doing}",
                        remedy=f"llx logs {name}; llx inst restart {name}; then llx upgrade",
                    )
                say(doing)
                self._pause()
            say.conclude("serves")
        return f"{name}: started again"

    def _await_others(self, name: str, say: Say) -> None:
        """Whoever can serve while it does not, does."""
        end = self._clock() + self._start_timeout_s
        while True:
            status = self._control.status()
            others = [each for each in status.gateways if each.name != name]
            missing = [each.name for each in others if not _lets_in(each, status)]
            if not missing:
                return
            if self._clock() > end:
                raise DeadlineError(
                    f"{name} is not replaced: {', '.join(missing)} cannot take over",
                    remedy=f"llx status; llx inst restart {missing[0]}; then llx upgrade",
                )
            say(f"waiting until {', '.join(missing)} can take over")
            self._pause()


def _gateway(status: ClusterStatus, name: str) -> GatewayStatus:
    found = next((each for each in status.gateways if each.name == name), None)
    if found is None:
        raise NotFoundError(f"{name} is no longer there")
    return found


def _lets_in(gateway: GatewayStatus, status: ClusterStatus) -> bool:
    """Whether requests come through it: one that has just begun has yet to find the instances."""
    ready = {each.name for each in status.instances if each.state is InstanceState.READY}
    return gateway.state is InstanceState.READY and ready <= set(gateway.connected)


def _is_ours(gateway: GatewayStatus) -> bool:
    return gateway.llx_version == __version__


def _request(deadline_s: float, user: str, *, is_dry_run: bool = False) -> RolloutRequest:
    return RolloutRequest(is_again=True, deadline_s=deadline_s, user=user, is_dry_run=is_dry_run)
