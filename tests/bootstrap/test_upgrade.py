"""What an upgrade finds, refuses and does, by the word of a pretended head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llx import __version__
from llx.api import (
    ClusterState,
    ClusterStatus,
    GatewayStatus,
    HostState,
    HostStatus,
    InstanceState,
    InstanceStatus,
    RolloutReport,
    RolloutStatus,
)
from llx.bootstrap.host_facts import ShimFact
from llx.bootstrap.hosts_look import Outlook, ask_head
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hosts_world import Crew, HostsWorld
from llx.bootstrap.upgrade import (
    Replacing,
    former_parts,
    plan_upgrade,
    refuse_other_release,
    refuse_other_release_of,
)
from llx.environment import Environment
from llx.errors import ConflictError, DeadlineError, LlxError, UnreachableError
from llx.pins import VLLM_VERSION
from llx.settings import Platform
from llx.wire import WIRE_VERSION
from tests.bootstrap.host_said import hosts
from tests.bootstrap.preflight_of_hosts import settings

OLD = "0.0.9"


def instance(name: str, version: str, state: InstanceState = InstanceState.READY) -> InstanceStatus:
    return InstanceStatus(
        name=name, model="m", host="h1", engine="sim", state=state, pid=7, llx_version=version
    )


def gateway(name: str, version: str) -> GatewayStatus:
    return GatewayStatus(
        name=name, host="h1", url="u", state=InstanceState.READY, pid=8, llx_version=version
    )


class Head:
    """A control API: an instance of each version given, and two gateways; restarts take a look."""

    def __init__(self, head: str, instances: list[str], gateways: list[str]) -> None:
        self.head = head
        self.vllm, self.wire, self.host = VLLM_VERSION, WIRE_VERSION, HostState.READY
        self.instances = [instance(f"m-{n}", version) for n, version in enumerate(instances)]
        self.gateways = [gateway(f"gateway-{n}", version) for n, version in enumerate(gateways)]
        self.rolling = RolloutStatus(model="m", revision=0, generation=0)
        self.outcomes = ["done"]
        """Of rollouts, by look: the last one stays."""
        self.is_gateway_broken = False
        self.did: list[str] = []
        self.now = 0.0

    def status(self) -> ClusterStatus:
        shown = self.gateways
        self.gateways = [
            each.model_copy(update={"state": InstanceState.READY, "llx_version": __version__})
            if each.state is InstanceState.STOPPING
            else each
            for each in shown
        ]
        names = [each.name for each in self.instances]
        shown = [each.model_copy(update={"connected": names}) for each in shown]
        return ClusterStatus(
            cluster="c", state=ClusterState.READY, url="u", term=1, started_at=0.0,
            llx_version=self.head, vllm_version=self.vllm, wire_version=self.wire,
            platform="cpu", models=[], instances=self.instances, gateways=shown,
            hosts=[HostStatus(name="h1", state=self.host)],
        )  # fmt: skip

    def rollouts(self) -> list[RolloutStatus]:
        if self.rolling.state == "running":
            state = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
            self.rolling = self.rolling.model_copy(update={"state": state, "reason": "a reason"})
            if state == "done":
                self.instances = [
                    each.model_copy(update={"llx_version": __version__}) for each in self.instances
                ]
        return [self.rolling]

    def rollout(self, model, request) -> RolloutReport:
        assert request.is_again
        if not request.is_dry_run:
            self.did.append(f"rollout {model}")
            self.rolling = self.rolling.model_copy(update={"state": "running", "begun_at": 5.0})
        return RolloutReport(changes=["one by one"], rollout=self.rolling)

    def restart_instance(self, name, *, user="", deadline_s=60.0) -> GatewayStatus:
        self.did.append(f"restart {name} {deadline_s:g}")
        state = InstanceState.FAILED if self.is_gateway_broken else InstanceState.STOPPING
        self.gateways = [
            each.model_copy(update={"state": state}) if each.name == name else each
            for each in self.gateways
        ]
        return self.gateways[0]

    def note(self, verb, text, *, user="") -> None:
        self.did.append(f"note {verb}")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def replace(self) -> list[str]:
        """What `Replacing` says that it did."""
        return Replacing(
            self, lambda event: None, "ann", deadline_s=600, start_timeout_s=60,
            proceed=lambda: None, clock=lambda: self.now, sleep=self.sleep,
        ).run()  # fmt: skip


def test_what_is_of_another_release_is_found() -> None:
    former = former_parts(Head(__version__, [OLD, __version__, ""], [OLD, __version__]).status())
    assert (former.instances, former.gateways) == ({"m": ["m-0"]}, ["gateway-0"])
    assert former.unheard == ["m-2"]
    assert not former.is_nothing


def test_all_that_a_head_of_another_release_has_is_of_such_a_one() -> None:
    former = former_parts(Head(OLD, ["", OLD], [""]).status())
    assert (former.instances, former.gateways) == ({"m": ["m-0", "m-1"]}, ["gateway-0"])


def test_what_is_on_its_way_out_is_not_replaced() -> None:
    head = Head(__version__, [__version__], [__version__])
    head.instances.append(instance("m-1", OLD, InstanceState.DRAINING))
    assert former_parts(head.status()).is_nothing


def test_the_plan_names_each_step_and_begins_none() -> None:
    head = Head(OLD, [OLD, OLD], [OLD, OLD])
    words = plan_upgrade(head, 600)
    assert words[0] == f"llx {OLD} → {__version__}: head and agents start anew"
    assert words[1].startswith("m: m-0, m-1: replaced one by one")
    assert [each.partition(":")[0] for each in words[2:]] == ["gateway-0", "gateway-1"]
    assert head.did == []


def test_a_lone_gateway_is_told_to_let_nobody_in_meanwhile() -> None:
    assert "nobody is let in" in plan_upgrade(Head(OLD, [OLD], [OLD]), 600)[-1]


def test_what_runs_this_release_already_is_refused() -> None:
    with pytest.raises(ConflictError, match="already"):
        plan_upgrade(Head(__version__, [__version__], [__version__]), 600)


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("vllm", "0.0.1", "vLLM 0.0.1"),
        ("wire", WIRE_VERSION + 1, f"wire version {WIRE_VERSION + 1}"),
        ("host", HostState.LOST, "not ready: h1"),
    ],
)
def test_what_cannot_work_side_by_side_is_refused(attribute, value, words) -> None:
    head = Head(OLD, [OLD], [OLD])
    setattr(head, attribute, value)
    with pytest.raises(ConflictError, match=words):
        plan_upgrade(head, 600)


@pytest.mark.parametrize("state", ["running", "paused", "failed"])
def test_a_rollout_under_way_is_refused(state: str) -> None:
    head = Head(OLD, [OLD], [OLD])
    head.rolling = head.rolling.model_copy(update={"state": state})
    head.outcomes = [state]
    with pytest.raises(ConflictError, match=f"under way: it is {state}"):
        plan_upgrade(head, 600)


def test_an_upgrade_that_was_interrupted_goes_on_with_its_rollout() -> None:
    head = Head(__version__, [OLD, __version__], [OLD, OLD])
    head.rolling = head.rolling.model_copy(update={"state": "running"})
    head.outcomes = ["running", "running", "running", "done"]
    assert plan_upgrade(head, 600)
    head.replace()
    assert head.did == ["restart gateway-0 600", "restart gateway-1 600", "note upgrade"]


def test_instances_come_before_gateways_and_these_one_by_one() -> None:
    head = Head(__version__, [OLD, OLD], [OLD, OLD])
    head.outcomes = ["running", "running", "done"]
    assert len(head.replace()) == 3
    assert head.did == [
        "rollout m", "restart gateway-0 600", "restart gateway-1 600", "note upgrade",
    ]  # fmt: skip


def test_a_rollout_that_stops_leaves_the_gateways_alone() -> None:
    head = Head(__version__, [OLD], [OLD])
    head.outcomes = ["running", "failed"]
    with pytest.raises(LlxError, match="failed: a reason"):
        head.replace()
    assert head.did == ["rollout m"]


def test_a_gateway_that_does_not_come_back_holds_up_the_next() -> None:
    head = Head(__version__, [__version__], [OLD, OLD])
    head.is_gateway_broken = True
    with pytest.raises(DeadlineError, match="gateway-0 does not serve again"):
        head.replace()
    assert head.did == ["restart gateway-0 600"]


def test_nothing_else_changes_a_cluster_of_another_release() -> None:
    refuse_other_release(Head(__version__, [], []).status())
    with pytest.raises(ConflictError, match=f"runs llx {OLD}") as caught:
        refuse_other_release(Head(OLD, [], []).status())
    assert "llx upgrade" in caught.value.remedy


def run_of(*releases: str) -> dict:
    """Facts of hosts of a running cluster, that were brought to it by these releases."""
    found = hosts(len(releases), processes=(ShimFact("ray", 1, "mark", "ready", ""),))
    return {n: replace(e, release=r) for (n, e), r in zip(found.items(), releases, strict=True)}


def headless(facts: dict) -> tuple[Outlook, HostsWorld]:
    """`up` of a cluster of which no head answers."""
    plan = make_hosts_plan(settings(*facts), Environment({}, Path("/")))
    outlook = Outlook(
        plan, Crew(), Crew(), (), facts, Platform.CPU, "3.12", {}, "up", None, is_running=True
    )

    def silent(*_: object) -> Any:
        raise UnreachableError("no head")

    return outlook, HostsWorld(silent, silent, silent)


def test_a_cluster_without_a_head_is_left_to_the_release_that_brought_it_up() -> None:
    with pytest.raises(ConflictError, match=f"llx {OLD}, its head does not answer") as caught:
        ask_head(*headless(run_of(OLD, OLD)))
    assert f"`llx up` with llx {OLD}" in caught.value.remedy
    assert ask_head(*headless(run_of(__version__, __version__))) is None


def test_a_head_that_fell_in_an_upgrade_is_started_by_either_release() -> None:
    refuse_other_release_of(run_of(__version__, OLD, OLD), "c")


def test_what_ran_before_a_host_was_started_anew_says_nothing() -> None:
    refuse_other_release_of(hosts(2, release=OLD), "c")


@pytest.mark.parametrize("gateways", [[OLD], [OLD, OLD]])
def test_a_gateway_that_has_not_found_the_instances_yet_is_waited_for(gateways: list[str]) -> None:
    """Two that restart one after the other would else refuse requests at once."""

    class Slow(Head):
        num_looks = 0

        def status(self) -> ClusterStatus:
            found = super().status()
            self.num_looks += 1
            if "restart gateway-0 600" not in self.did or self.num_looks > 30:
                return found
            first, *others = found.gateways
            shown = [first.model_copy(update={"connected": []}), *others]
            return found.model_copy(update={"gateways": shown})

    head = Slow(__version__, [__version__], gateways)
    head.replace()
    restarts = [f"restart gateway-{number} 600" for number in range(len(gateways))]
    assert head.did == [*restarts, "note upgrade"]
    assert head.num_looks > 30


def test_what_somebody_began_under_the_former_release_meanwhile_is_told() -> None:
    class Late(Head):
        def restart_instance(self, name, *, user="", deadline_s=60.0) -> GatewayStatus:
            self.instances.append(instance("m-9", OLD))
            return super().restart_instance(name, user=user, deadline_s=deadline_s)

    head = Late(__version__, [__version__], [OLD])
    with pytest.raises(ConflictError, match="m-9"):
        head.replace()
    assert "note upgrade" not in head.did
