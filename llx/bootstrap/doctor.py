"""What `llx doctor` looks at, on hosts: everything `up` would, and more. Changes nothing."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from llx.api import ClusterStatus, KeysStatus
from llx.bootstrap import host_checks, host_preflight, ray_renewal
from llx.bootstrap.cluster_dir import running_settings
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_capacity import copy_sizes
from llx.bootstrap.host_checks import Check, CheckState, DoctorReport
from llx.bootstrap.host_facts import HostFacts, gather
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.bootstrap.hosts_look import refuse_arguments, refuse_other_head
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all
from llx.bootstrap.key_checks import key_checks, key_findings, ray_checks, ray_findings
from llx.bootstrap.local_ports import Observer
from llx.bootstrap.reachability import (
    Route,
    exposed_ports,
    find_blocked,
    find_exposed,
    find_forbidden,
    probe_routes,
)
from llx.bootstrap.readiness import step
from llx.environment import Environment
from llx.errors import LlxError, UnreachableError
from llx.settings import ClusterSettings

AskGateway = Callable[[ClusterStatus], str]
"""Has a gateway answer; what it said, in words. Raises LlxError."""


@dataclass(slots=True)
class _Examination:
    """What was learnt of the hosts."""

    facts: dict[str, HostFacts | LlxError] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    forbidden: list[HostFinding] = field(default_factory=list)

    @property
    def known(self) -> dict[str, HostFacts]:
        return {name: e for name, e in self.facts.items() if isinstance(e, HostFacts)}


def examine_plan(
    settings: ClusterSettings, environment: Environment, world: HostsWorld, observe: Observer
) -> DoctorReport:
    """Whether a cluster could be brought up with these settings: the preflight, host by host."""
    with closing(_connected(settings, world, observe)) as crew:
        seen = _look(settings, crew, observe)
    good, findings = _judged(settings, seen, copy_sizes(settings))
    findings += _of_settings(settings, environment)
    return host_checks.report(settings.cluster, good, findings, _order(settings))


def examine_cluster(
    settings: ClusterSettings, world: HostsWorld, observe: Observer, ask_gateway: AskGateway
) -> DoctorReport:
    """How a cluster on hosts is, that is up: its hosts, processes, control API, gateways, ports.

    Args:
        settings: That it was started with.
        world: To reach it by.
        observe: Told what goes on.
        ask_gateway: Has a gateway answer.
    """
    with closing(_connected(settings, world, observe)) as crew:
        seen = _look(settings, crew, observe)
        good, findings = _judged(settings, seen, None)
        findings += host_checks.live_findings(settings, seen.known)
        with step("control API", observe):
            more, wrong = _control(settings, world, crew, ask_gateway)
        ray = ray_renewal.sight(crew, _head(settings), has_tls=settings.network.tls)
        now = time.time()
        more += ray_checks(ray, now)
        wrong += ray_findings(ray, now)
        with step("exposure", observe):
            exposed = exposed_ports(seen.known, settings)
            wrong += find_exposed(exposed, settings)
    return host_checks.report(
        settings.cluster, [*good, *more], [*findings, *wrong], _order(settings)
    )


def control_checks(
    ask: Callable[[], tuple[ClusterStatus, KeysStatus]], ask_gateway: AskGateway
) -> tuple[list[Check], list[HostFinding]]:
    """The control API's account of a cluster and its keys, and whether a gateway answers."""
    try:
        status, keys = ask()
    except LlxError as error:
        return [], [host_checks.control_finding(error)]
    now = time.time()
    good = [*host_checks.status_checks(status), *key_checks(status, keys, now)]
    wrong = [*host_checks.status_findings(status), *key_findings(status, keys, now)]
    try:
        said = ask_gateway(status)
        good.append(Check(host=CLUSTER, subject="OpenAI API", state=CheckState.OK, detail=said))
    except LlxError as error:
        wrong.append(
            HostFinding(CLUSTER, "OpenAI API", error.message, error.remedy, error.exit_code)
        )
    return good, wrong


def _of_settings(settings: ClusterSettings, environment: Environment) -> list[HostFinding]:
    """What `up` would refuse without a look at any host."""

    def plan() -> None:
        made = make_hosts_plan(settings, environment)
        refuse_other_head(running_settings(made.state_dir), made)

    found = []
    for refuse in (plan, lambda: refuse_arguments(settings)):
        try:
            refuse()
        except LlxError as error:
            found.append(
                HostFinding(CLUSTER, "settings", error.message, error.remedy, error.exit_code)
            )
    return found


def _order(settings: ClusterSettings) -> list[str]:
    return [each.name for each in settings.hosts]


def _connected(settings: ClusterSettings, world: HostsWorld, observe: Observer) -> Crew:
    with step("connect", observe) as say:
        crew = connect_all(settings.hosts, settings.cluster, world.connect)
        say.conclude(f"{len(crew.shells)} of {len(settings.hosts)} hosts")
    return crew


def _look(settings: ClusterSettings, crew: Crew, observe: Observer) -> _Examination:
    by_name = {each.name: each for each in settings.hosts}
    with step("facts", observe):
        facts = fan_out(
            list(crew.shells), lambda name: gather(crew.shells[name], by_name[name], settings)
        )
    seen = _Examination({**crew.errors, **facts}, forbidden=find_forbidden(settings, crew.shells))
    addresses = {name: each.cluster_address for name, each in seen.known.items()}
    if len(addresses) > 1:
        with step("reachability", observe) as say:
            shells = {name: crew.shells[name] for name in addresses}
            seen.routes = probe_routes(settings, shells, addresses)
            tried = [each for each in seen.routes if each.is_open is not None]
            is_open = sum(bool(each.is_open) for each in tried)
            say.conclude(f"{is_open} of {len(tried)} routes")
    return seen


def _judged(
    settings: ClusterSettings, seen: _Examination, copies: Mapping[str, int] | None
) -> tuple[list[Check], list[HostFinding]]:
    platform = host_preflight.decide_platform(settings, seen.facts)
    findings = host_preflight.find(settings, seen.facts, platform=platform, copies=copies)
    findings += [*find_blocked(seen.routes), *seen.forbidden]
    good = [
        check
        for each in seen.known.values()
        for check in host_checks.checks_of(settings, each, platform, seen.routes)
    ]
    return good, findings


def _control(
    settings: ClusterSettings, world: HostsWorld, crew: Crew, ask_gateway: AskGateway
) -> tuple[list[Check], list[HostFinding]]:
    head = _head(settings)

    def ask() -> tuple[ClusterStatus, KeysStatus]:
        if head not in crew.shells:
            raise UnreachableError(f"the head's host {head} is out of reach")
        with world.control(crew.shells[head], crew.layouts[head]) as control:
            return control.status(), control.keys()

    return control_checks(ask, ask_gateway)


def _head(settings: ClusterSettings) -> str:
    head = settings.head_host
    assert head is not None, "a cluster on hosts has a head"
    return head.name
