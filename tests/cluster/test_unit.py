"""What is so about a process, from its record and its own words."""

import pytest

from llx.agent.node import Observed
from llx.agent.processes import ProcessState, ShimRecord
from llx.api import InstanceState
from llx.cluster.unit import assess
from llx.specs import EngineKind, InstanceSpec, Phase, ProcessStatus

SPEC = InstanceSpec("m-0", "m", EngineKind.SIM, "/m", {}, 1, "127.0.0.1", "k", "s")
RUNNING, EXITED, LOST = ProcessState.RUNNING, ProcessState.EXITED, ProcessState.LOST


def seen(
    state: ProcessState,
    phase: Phase | None,
    detail: str = "",
    exit_code: int | None = None,
    signal: int | None = None,
) -> Observed:
    record = ShimRecord(1, 1, 2, 2, state, 100.0, "mark", exit_code, signal)
    said = None if phase is None else ProcessStatus(phase, detail)
    return Observed("m-0", SPEC, record, said)


@pytest.mark.parametrize(
    ("observed", "now", "state", "detail"),
    [
        (seen(RUNNING, None), 101, "starting", ""),
        (seen(RUNNING, Phase.STARTING, "importing"), 101, "starting", "importing"),
        (seen(RUNNING, Phase.LOADING, "weights"), 101, "loading", "weights"),
        (seen(RUNNING, Phase.READY), 101, "ready", ""),
        (seen(RUNNING, Phase.READY), 9999, "ready", ""),
        (seen(RUNNING, Phase.STOPPING), 101, "stopping", ""),
        (seen(RUNNING, Phase.FAILED, "no model"), 101, "failed", "no model"),
        (seen(RUNNING, None), 161, "failed", "not ready after 60 s"),
        (seen(RUNNING, Phase.LOADING, "w"), 161, "failed", "not ready after 60 s (last: w)"),
        (seen(EXITED, Phase.READY, exit_code=0), 101, "failed", "exit code 0"),
        (seen(EXITED, None, exit_code=2), 101, "failed", "exit code 2"),
        (seen(EXITED, Phase.LOADING, signal=9), 101, "failed", "killed by SIGKILL"),
        (seen(EXITED, Phase.FAILED, "no model", exit_code=1), 101, "failed", "no model"),
        (seen(LOST, Phase.READY), 101, "failed", "killed together with its shim"),
    ],
)
def test_assess(observed: Observed, now: float, state: str, detail: str) -> None:
    found = assess(observed, now=now, start_timeout_s=60)
    assert (found.state, found.detail) == (InstanceState(state), detail)
