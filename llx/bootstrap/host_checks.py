"""`llx doctor`'s report: what was looked at, how it stands, what to do. Pure.

A check has one line per host, good or bad; findings that belong to no line get one of their own.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llx.api import ClusterState, ClusterStatus, HostState, HostStatus, InstanceState
from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.bootstrap.preflight import GIB
from llx.bootstrap.reachability import Route
from llx.errors import ExitCode, LlxError
from llx.host_ports import HostPorts
from llx.settings import ClusterSettings, Platform

_LOW_MEMORY_BYTES = GIB // 2
_LOW_DISK_BYTES = GIB


class CheckState(StrEnum):
    """How a check ended; `warn` stands in nobody's way."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(BaseModel):
    """One thing that was looked at. `host` is ``cluster`` for what concerns no single host."""

    model_config = ConfigDict(frozen=True)

    host: str
    subject: str
    state: CheckState
    detail: str
    remedy: str = ""
    evidence: str = ""


class DoctorReport(BaseModel):
    """What `llx doctor -o json` prints; `exit_code` is the command's own."""

    model_config = ConfigDict(frozen=True)

    api_version: Literal["v1"] = "v1"
    cluster: str
    is_healthy: bool
    exit_code: int
    checks: list[Check]


def report(
    cluster: str, good: Sequence[Check], findings: Sequence[HostFinding], order: Sequence[str] = ()
) -> DoctorReport:
    """Merge what is good with what was found: a good check gives way to findings on its subject.

    Args:
        cluster: The cluster's name.
        good: Checks without regard to the findings.
        findings: What is wrong.
        order: Hosts in the order of the file; the rest follows, the cluster last.
    """
    bad = [_from_finding(each) for each in findings]
    has_finding = {(each.host, each.subject) for each in bad}
    kept = [each for each in good if (each.host, each.subject) not in has_finding]
    rank = {host: index for index, host in enumerate(order)}
    subjects = list(dict.fromkeys(each.subject for each in (*good, *bad)))

    def place(check: Check) -> tuple[bool, int, int]:
        index = rank.get(check.host, len(rank))
        return check.host == CLUSTER, index, subjects.index(check.subject)

    codes = {each.exit_code for each in findings if each.is_fatal}
    failed = ExitCode.UNREACHABLE if codes == {ExitCode.UNREACHABLE} else ExitCode.CHECK_FAILED
    return DoctorReport(
        cluster=cluster,
        is_healthy=not codes,
        exit_code=int(failed if codes else ExitCode.OK),
        checks=sorted([*kept, *bad], key=place),
    )


def checks_of(
    settings: ClusterSettings, facts: HostFacts, platform: Platform, routes: Sequence[Route]
) -> Iterator[Check]:
    """What was looked at on a host, in words."""
    for subject, detail in _lines(settings, facts, platform, routes):
        yield Check(host=facts.host, subject=subject, state=CheckState.OK, detail=detail)


def live_findings(
    settings: ClusterSettings, facts: Mapping[str, HostFacts]
) -> Iterator[HostFinding]:
    """What should run on the hosts of a cluster that is up, and does not."""
    for name, each in facts.items():
        if not each.is_cluster_running:
            problem = "nothing of the cluster runs there"
            yield HostFinding(name, "processes", problem, "llx up", ExitCode.CHECK_FAILED)
            continue
        failed = [p for p in each.processes if p.phase == "failed"]
        for process in failed:
            problem = f"{process.name} failed: {process.detail}".rstrip(": ")
            remedy = f"llx logs {process.name}; llx up"
            yield HostFinding(name, "processes", problem, remedy, ExitCode.CHECK_FAILED)


def status_checks(status: ClusterStatus) -> Iterator[Check]:
    """What the control API says, as far as it is good."""
    hosts = Counter(str(each.state) for each in status.hosts)
    ready = sum(each.state is InstanceState.READY for each in status.instances)
    lines = {
        "control API": f"answers: {status.state}, term {status.term}, llx {status.llx_version}",
        "hosts": ", ".join(f"{count} {state}" for state, count in hosts.items()),
        "gateways": ", ".join(f"{each.name} {each.state}" for each in status.gateways),
        "instances": f"{ready} of {len(status.instances)} ready",
    }
    for subject, detail in lines.items():
        if detail:
            yield Check(host=CLUSTER, subject=subject, state=CheckState.OK, detail=detail)


def status_findings(status: ClusterStatus) -> Iterator[HostFinding]:
    """What is wrong by the control API's own account."""
    bad_hosts = {HostState.AGENT_AWAY, HostState.LOST, HostState.FAILED}
    for host in status.hosts:
        if host.state in bad_hosts:
            yield _unwell(
                "hosts", f"{host.name} {host.state}", host.detail, f"llx logs {host.name}"
            )
        elif host.is_cordoned:
            remedy = f"llx host uncordon {host.name}"
            yield _unwell("hosts", f"{host.name} is cordoned", "", remedy, is_fatal=False)
        if host.memory_total_bytes:  # its agent has been heard
            yield from _shortages(host)
    units = [("gateways", each.name, each.state, each.detail) for each in status.gateways]
    units += [("instances", each.name, each.state, each.detail) for each in status.instances]
    for subject, name, state, detail in units:
        if state in {InstanceState.FAILED, InstanceState.LOST}:
            yield _unwell(subject, f"{name} {state}", detail, f"llx logs {name}")
    if status.state in {ClusterState.FAILED, ClusterState.STOPPING}:
        yield _unwell("control API", f"the cluster is {status.state}", "", "llx status")


def control_finding(error: LlxError) -> HostFinding:
    """The control API does not answer."""
    remedy = error.remedy or "llx up"
    return HostFinding(
        CLUSTER, "control API", error.message, remedy, error.exit_code, detail=error.detail
    )


def _from_finding(finding: HostFinding) -> Check:
    return Check(
        host=finding.host,
        subject=finding.subject,
        state=CheckState.FAIL if finding.is_fatal else CheckState.WARN,
        detail=finding.problem,
        remedy=finding.remedy,
        evidence=finding.detail,
    )


def _shortages(host: HostStatus) -> Iterator[HostFinding]:
    for what, free, low in (
        ("memory", host.memory_free_bytes, _LOW_MEMORY_BYTES),
        ("disk", host.disk_free_bytes, _LOW_DISK_BYTES),
    ):
        if free < low:
            problem = f"{host.name} has {free / GIB:.1f} GiB of {what} left"
            remedy = "free some, or use fewer instances"
            yield _unwell("hosts", problem, "", remedy, is_fatal=False)


def _unwell(
    subject: str, what: str, detail: str, remedy: str, *, is_fatal: bool = True
) -> HostFinding:
    problem = f"{what}: {detail.strip().splitlines()[-1]}" if detail.strip() else what
    return HostFinding(
        CLUSTER, subject, problem, remedy, ExitCode.CHECK_FAILED, is_fatal=is_fatal, detail=""
    )


def _lines(
    settings: ClusterSettings, facts: HostFacts, platform: Platform, routes: Sequence[Route]
) -> Iterator[tuple[str, str]]:
    libc = "" if facts.glibc is None else ", glibc {}.{}".format(*facts.glibc)
    address = facts.cluster_address
    yield "connection", f"{facts.user}@{facts.hostname}, {address or 'address unknown'}"
    yield "system", f"{facts.system} {facts.kernel} {facts.machine}{libc}, {facts.cpu_count} cores"
    yield "cluster", _membership(settings, facts)
    if facts.clock_offset_s is not None:
        yield "clock", f"{facts.clock_offset_s:+.2f} s ± {facts.clock_error_s:.2f} s"
    yield "python", _python(settings, facts, platform)
    if facts.home_disk is not None:
        place = facts.layout(settings.cluster).root
        yield "disk", f"{facts.home_disk.free_bytes / GIB:.1f} GiB free at {place}"
    if facts.memory_available_bytes is not None:
        whole = f" of {facts.memory_bytes / GIB:.1f}" if facts.memory_bytes else ""
        yield "memory", f"{facts.memory_available_bytes / GIB:.1f}{whole} GiB available"
    if facts.gpus or platform is Platform.CUDA:
        names = Counter(each.label.partition(": ")[2] for each in facts.gpus)
        kinds = ", ".join(f"{count} × {name}" for name, count in names.items()) or "none"
        driver = f", driver {facts.driver_version}" if facts.driver_version else ""
        yield "gpu", f"{kinds}{driver}"
    ports = HostPorts(settings.network.first_port)
    held = "held by this cluster" if facts.is_cluster_running else "free"
    yield "ports", f"{ports.first}-{ports.last} {held}"
    reached = {each.target for each in routes if each.source == facts.host and each.is_open}
    if reached:
        yield "reachability", f"reaches {', '.join(sorted(reached))}"
    if facts.is_cluster_running:
        running = (f"{each.name} {each.phase}".strip() for each in facts.processes)
        yield "processes", ", ".join(running)


def _membership(settings: ClusterSettings, facts: HostFacts) -> str:
    if facts.claim is None:
        return "belongs to none"
    return f"belongs to {facts.claim.cluster}" + (
        "" if facts.is_cluster_running or facts.claim.cluster != settings.cluster else ", down"
    )


def _python(settings: ClusterSettings, facts: HostFacts, platform: Platform) -> str:
    if facts.override is not None:
        return f"{facts.override.version_text} at {facts.wanted_python}, with vLLM, Ray and llx"
    if facts.has_node_environment(platform):
        name = facts.layout(settings.cluster).node(platform).name
        return (
            f"node environment {name} installed, Python {facts.installed_python(platform) or '?'}"
        )
    usable = (each for each in facts.pythons if each.has_venv)
    best = max(usable, key=lambda each: each.version, default=None)
    return "-" if best is None else f"{best.version_text} at {best.path}"
