"""What stands in the way on hosts, or is worth a warning: what preflight and `llx doctor` say."""

from collections.abc import Sequence
from dataclasses import dataclass

from llx.errors import ExitCode, LlxError

CLUSTER = "cluster"
"""The `host` of a finding that concerns no single host."""


@dataclass(frozen=True, slots=True)
class HostFinding:
    """One thing that is not as it should be on a host, or between hosts.

    Attributes:
        host: Its name in cluster.yaml, or `CLUSTER`.
        subject: One or two words: ``disk``, ``clock``, ``ports``; see `host_preflight.SUBJECTS`.
        problem: What is wrong, with the figures.
        remedy: What to do about it.
        exit_code: Of a command that this alone stops.
        is_fatal: Whether it stands in the way; else a warning.
        detail: Longer evidence: what an SSH server or a command said.
    """

    host: str
    subject: str
    problem: str
    remedy: str
    exit_code: ExitCode = ExitCode.FAILURE
    is_fatal: bool = True
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.host}: {self.subject}: {self.problem}"


class HostPreflightError(LlxError):
    """Everything that stands in the way, by host.

    Its exit code is the findings' own, if they agree.

    Args:
        findings: Fatal ones.
    """

    def __init__(self, findings: Sequence[HostFinding]) -> None:
        assert findings, "no findings, no error"
        assert all(each.is_fatal for each in findings), "warnings stop nothing"
        if len(findings) == 1:
            only = findings[0]
            super().__init__(str(only), remedy=only.remedy, detail=only.detail)
        else:
            hosts = len({each.host for each in findings})
            where = f" on {hosts} hosts" if hosts > 1 else ""
            head = f"{len(findings)} things stand in the way{where}:"
            super().__init__("\n".join([head, *_by_host(findings)]))
        self.findings = tuple(findings)
        codes = {each.exit_code for each in findings}
        self.exit_code = codes.pop() if len(codes) == 1 else ExitCode.FAILURE


def _by_host(findings: Sequence[HostFinding]) -> list[str]:
    lines = []
    for host in dict.fromkeys(each.host for each in findings):
        lines.append(f"  {host}")
        for each in findings:
            if each.host == host:
                lines.append(f"    {each.subject}: {each.problem}")
                lines += [f"      | {line}" for line in each.detail.splitlines()]
                lines.append(f"      remedy: {each.remedy}")
    return lines
