"""The state of the whole, from the states of the parts; what a stop did."""

import pytest

from llx.api import ClusterState, InstanceState
from llx.cluster.driving.stopping import StopCount
from llx.cluster.fleet.status import States, cluster_state
from llx.wire import GatewayReport

S, L, R, P, F = (
    InstanceState.STARTING,
    InstanceState.LOADING,
    InstanceState.READY,
    InstanceState.STOPPING,
    InstanceState.FAILED,
)


def state(gateway: InstanceState, *pools: list[InstanceState], **more: bool) -> str:
    flags = {"is_connected": True, "is_stopping": False, "has_served": False, **more}
    instances = {str(index): pool for index, pool in enumerate(pools)}
    return cluster_state(States(instances=instances, gateways=[gateway], **flags)).value


@pytest.mark.parametrize(
    ("expected", "gateway", "pools", "flags"),
    [
        ("starting", S, [[S, S]], {}),
        ("starting", R, [[L, R]], {}),
        ("starting", S, [[R, R]], {}),
        ("starting", R, [[R, R]], {"is_connected": False}),
        ("ready", R, [[R, R]], {}),
        ("ready", R, [[R], [R, R]], {}),
        ("degraded", R, [[R, F]], {}),
        ("starting", R, [[R, F, L]], {}),
        ("starting", S, [[R, F]], {}),
        ("starting", R, [[L, F]], {}),
        ("failed", R, [[F, F]], {}),
        ("failed", R, [[R, R], [F]], {}),
        ("failed", F, [[R, R]], {}),
        ("failed", F, [[S, S]], {}),
        ("degraded", R, [[R, P]], {"has_served": True}),
        ("degraded", R, [[R, S]], {"has_served": True}),
        ("degraded", R, [[R, R]], {"has_served": True, "is_connected": False}),
        ("starting", R, [[S]], {"has_served": True}),
        ("stopping", R, [[R, R]], {"is_stopping": True}),
        ("stopping", F, [[F]], {"is_stopping": True}),
    ],
)
def test_cluster_state(
    expected: str,
    gateway: InstanceState,
    pools: list[list[InstanceState]],
    flags: dict[str, bool],
) -> None:
    assert state(gateway, *pools, **flags) == ClusterState(expected).value


def report(in_flight: int, requests: int, finished: int, failed: int) -> GatewayReport:
    return GatewayReport("g", in_flight, requests, finished, failed, 0, 0, [])


def test_what_nobody_could_reach_is_neither_finished_nor_cut() -> None:
    reports = [report(3, 8, 5, 0), report(2, 8, 6, 0)]
    found = StopCount(lambda: reports.pop(0)).report(was_killed=False, is_gone=False)
    assert (found.finished, found.cut) == (1, 0)


@pytest.mark.parametrize(
    ("first", "last", "was_killed", "expected"),
    [
        (None, None, False, (0, 0)),
        (report(0, 5, 5, 0), report(0, 5, 5, 0), False, (0, 0)),
        (report(3, 8, 5, 0), report(0, 8, 8, 0), False, (3, 0)),
        (report(3, 8, 5, 0), report(3, 8, 5, 0), False, (3, 0)),  # the last report came too early
        (report(3, 8, 5, 0), report(2, 8, 6, 0), True, (1, 2)),
        (report(3, 8, 5, 0), report(1, 10, 8, 1), True, (3, 2)),  # two more were accepted
        (report(3, 8, 5, 0), report(0, 8, 6, 2), False, (1, 2)),
    ],
)
def test_a_stop_is_counted(
    first: GatewayReport | None,
    last: GatewayReport | None,
    was_killed: bool,
    expected: tuple[int, int],
) -> None:
    reports = [first, last]
    count = StopCount(lambda: reports.pop(0))
    found = count.report(was_killed=was_killed)
    assert (found.finished, found.cut) == expected
