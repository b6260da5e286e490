"""What is so about a process, from its record and its own words."""

import pytest

from llx.agent.host_view import Observed
from llx.agent.processes import ProcessState, ShimRecord
from llx.api import InstanceState
from llx.cluster.fleet.unit import MAX_FAILURES, Unit, assess, pause_s
from llx.specs import EngineKind, InstanceSpec, Phase, ProcessStatus

SPEC = InstanceSpec("m-0", "m", EngineKind.SIM, "/m", {}, 1, "", "", "")
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


def test_pauses_grow_and_end_and_steadiness_forgives() -> None:
    unit = Unit(SPEC)
    assert not unit.note_failure("never ready", 0.0)
    assert unit.retry_at is None

    unit = Unit(SPEC)
    pauses, now = [], 0.0
    for _ in range(MAX_FAILURES - 1):
        unit.note_ready(now)
        assert unit.note_failure("killed", now)
        assert unit.retry_at is not None
        pauses.append(unit.retry_at - now)
        now = unit.retry_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pause_s(7) == pause_s(99) == 60

    unit.note_ready(now)
    unit.note_ready(now + 299)
    assert not unit.note_failure("killed", now + 299)
    assert unit.failures == MAX_FAILURES

    unit.note_ready(1000.0)
    unit.note_ready(1301.0)
    assert unit.note_failure("killed", 1302.0)
    assert (unit.failures, unit.last_failure, unit.known) == (1, "killed", [])


def test_who_was_never_ready_is_started_again_if_its_host_may_be_to_blame() -> None:
    unit = Unit(SPEC)
    for count in range(1, MAX_FAILURES):
        assert unit.note_failure("killed", 0.0, is_excused=True)
        assert unit.retry_at == pause_s(count)
    assert not unit.note_failure("killed", 0.0, is_excused=True), "and not for ever"


def test_a_unit_that_leaves_its_host_forgets_its_run_but_not_its_past() -> None:
    unit = Unit(SPEC, host="h1", state=InstanceState.READY, is_ours=True, known=["a", "b"])
    unit.devices, unit.restarts, unit.last_failure = ["cpu:0"], 2, "killed"
    unit.put_on("h2")
    assert (unit.host, unit.known, unit.devices, unit.is_ours) == ("h2", [], [], False)
    assert unit.state is InstanceState.STARTING
    assert (unit.restarts, unit.last_failure) == (2, "killed")
