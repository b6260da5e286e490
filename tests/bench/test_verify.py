"""`llx.bench.verify`: the verdict on what was seen. The whole of it is tested on clusters."""

from types import SimpleNamespace

import pytest

from llx.api import MoveOutcome
from llx.bench import verify
from tests.cli.servers import migration_status


def moved(number, itl_ms, stall_ms):
    return migration_status(
        number, outcome=MoveOutcome.MOVED, downtime_ms=itl_ms + stall_ms, itl_ms=itl_ms,
        stall_ms=stall_ms,
    )  # fmt: skip


def test_a_stream_whose_tokens_came_in_bunches_makes_no_stall_of_thousands_of_steps():
    run = SimpleNamespace(tokens=[[1, 2]], errors=[])
    moves = [moved(1, 5.0, 10.0), moved(2, 5.0, 10.0), moved(3, 0.01, 20.0)]
    verdict = verify._judge(run, [run], moves)
    assert (verdict.migrated, verdict.mismatched_tokens) == (3, 0)
    assert verdict.itl_ms_p50 == 5.0
    assert verdict.stall_over_itl_p50 == pytest.approx(2.0)
    assert verdict.stall_over_itl_p95 == pytest.approx(4.0)


def test_without_moves_nothing_is_said_of_them():
    run = SimpleNamespace(tokens=[[1, 2]], errors=[])
    verdict = verify._judge(run, [run], [])
    assert (verdict.itl_ms_p50, verdict.stall_over_itl_p50) == (None, None)
