"""What `up` on hosts ends with: a cluster that answers, or hosts that failed."""

from collections.abc import Mapping
from dataclasses import dataclass

from llx.api import ClusterStatus
from llx.bootstrap.fan_out import FanOutError, remedies_of
from llx.errors import LlxError


class HostsError(FanOutError):
    """Some hosts failed. The exit code says whether the others serve."""

    def __init__(self, errors: Mapping[str, LlxError], *, is_partial: bool, cluster: str) -> None:
        outcome = "the rest serves" if is_partial else "nothing serves"
        headline = f"cluster {cluster}: {', '.join(errors)} failed, {outcome}:"
        remedy = "; ".join(filter(None, [remedies_of(errors), "then `llx up` again"]))
        super().__init__(headline, errors, is_partial=is_partial, remedy=remedy)


@dataclass(frozen=True, slots=True)
class HostsResult:
    """A cluster that answers.

    Attributes:
        status: Its state.
        was_running: It was up before.
        changes: What was done, in words; empty: all was as it should be.
    """

    status: ClusterStatus
    was_running: bool
    changes: tuple[str, ...]
