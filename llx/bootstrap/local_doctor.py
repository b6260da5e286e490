"""What `llx doctor` looks at for a cluster on this machine. Changes nothing."""

import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from llx.api import ClusterStatus, KeysStatus
from llx.bootstrap import host_checks, local
from llx.bootstrap.doctor import AskGateway, control_checks
from llx.bootstrap.host_checks import Check, CheckState, DoctorReport
from llx.bootstrap.host_finding import HostFinding
from llx.bootstrap.local_ports import LocalPorts
from llx.bootstrap.plan import Plan
from llx.bootstrap.preflight import GIB, Finding, PreflightError
from llx.client import Cluster
from llx.errors import ConflictError, ExitCode
from llx.settings import ClusterSettings


def examine_local_plan(plan: Plan, ports: LocalPorts) -> DoctorReport:
    """Whether the cluster could be brought up here: the preflight."""
    host, cluster = socket.gethostname(), plan.settings.cluster
    try:
        local.check(plan, ports)
    except PreflightError as error:
        found = [_on(host, each) for each in error.findings]
        return host_checks.report(cluster, _room(host, plan.environment.cwd), found)
    except ConflictError as error:
        conflict = HostFinding(host, "cluster", error.message, error.remedy, error.exit_code)
        return host_checks.report(cluster, _room(host, plan.environment.cwd), [conflict])
    names = ", ".join(model.name for model in plan.settings.models)
    good = _good(host, [("preflight", f"nothing stands in the way of serving {names}")])
    return host_checks.report(cluster, [*good, *_room(host, plan.environment.cwd)], [])


def examine_local_cluster(
    settings: ClusterSettings,
    state_dir: Path,
    connect: Callable[[], Cluster],
    ask_gateway: AskGateway,
) -> DoctorReport:
    """How the cluster on this machine is, that is up."""
    host = socket.gethostname()

    def ask() -> tuple[ClusterStatus, KeysStatus]:
        with connect() as control:
            return control.status(), control.keys()

    good, wrong = control_checks(ask, ask_gateway)
    return host_checks.report(settings.cluster, [*_room(host, state_dir), *good], wrong, [host])


def _room(host: str, place: Path) -> list[Check]:
    free = shutil.disk_usage(place).free
    return _good(host, [("disk", f"{free / GIB:.1f} GiB free at {place}")])


def _good(host: str, lines: Sequence[tuple[str, str]]) -> list[Check]:
    return [
        Check(host=host, subject=subject, state=CheckState.OK, detail=detail)
        for subject, detail in lines
    ]


def _on(host: str, finding: Finding) -> HostFinding:
    code = ExitCode.CHECK_FAILED if finding.exit_code is ExitCode.FAILURE else finding.exit_code
    return HostFinding(host, finding.subject, finding.problem, finding.remedy, code)
