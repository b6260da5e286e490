"""`llx calibrate` against a head whose instances remember steps of known cost."""

import json
import random

import pytest

from llx.api import MoveOutcome
from llx.core.engine_state import StepTime
from llx.sim.profile import load_profile
from tests.cli.servers import migration_status
from tests.sim.test_live_fit import noisy, served

pytestmark = pytest.mark.sim

TRUTH = StepTime(8_000_000, 50_000, 500_000, 640_000)


@pytest.fixture
def busy_head(head):
    draw = random.Random(1)
    head.steps = [
        (
            each.num_prefill_tokens,
            each.num_decodes,
            each.num_context_tokens,
            each.num_square_tokens,
            each.num_decode_context_tokens,
            round(each.duration_ns),
        )
        for each in noisy(TRUTH, draw, served(draw, 30))
    ]
    head.moves = [
        migration_status(
            number, outcome=MoveOutcome.MOVED, num_stages=2, transport="shm",
            size_bytes=number << 20, blocks_copied=number * 4,
            rate=(number << 20) / (0.004 + (number << 20) / 2e9),
        )
        for number in range(1, 11)
    ]  # fmt: skip
    return head


def test_what_is_printed(llx, busy_head, golden):
    done = llx("calibrate")
    assert done.exit_code == 0, done.stderr
    golden("calibrated-100.txt", done.stdout)
    assert done.stderr.startswith("profile: ")
    assert busy_head.updates == []


def test_the_profile_is_what_the_simulator_and_replays_take(llx, busy_head, tmp_path):
    path = tmp_path / "p.yaml"
    done = llx("calibrate", "tiny", "--out", str(path), "-o", "json")
    assert done.exit_code == 0, done.stderr
    profile = load_profile(path)
    assert json.loads(done.stdout)["fit"] == profile.model_dump(mode="json")["fit"]
    assert profile.engine.step.base_ms == pytest.approx(8, rel=0.1)
    assert profile.engine.block_bytes == 1 << 18
    assert profile.link.gb_per_s == pytest.approx(2, rel=0.05)
    assert profile.link.overhead_ms == pytest.approx(2, rel=0.05)
    run = ["sim", "run", "--requests", "30", "--instances", "2", "--rate", "2", "--workload", "s-s"]
    record = str(tmp_path / "r.jsonl")
    plain = json.loads(llx(*run, "-o", "json").stdout)
    done = llx(*run, "--profile", str(path), "--record", record, "-o", "json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["trace_hashes"] != plain[0]["trace_hashes"]
    assert row["figures"]["decode_mean_s"]["mean"] < 0.02, "34 ms are the paper's"
    assert llx("sim", "replay", record, "--profile", str(path)).exit_code == 0
    assert llx("sim", "replay", record, "--profile", str(path), "--plot", "x.svg").exit_code == 2
    words = ["--slo", "ttft_p99=9s", "--requests", "30", "--rate", "1", "--workload", "s-s"]
    assert llx("sim", "plan", "--profile", str(path), *words).exit_code == 0


def test_applied_it_is_a_change_of_policy(llx, busy_head):
    done = llx("calibrate", "--apply")
    assert done.exit_code == 0, done.stderr
    (update,) = busy_head.updates
    assert (update.model, update.is_revert) == ("tiny", False)
    assert set(update.changes) == {
        "step_time.base_ms",
        "step_time.per_prefill_token_us",
        "step_time.per_request_us",
        "step_time.per_block_us",
    }
    assert float(update.changes["step_time.base_ms"]) == pytest.approx(8, rel=0.1)
    assert "llx policy revert" in done.stderr


def test_what_was_not_seen_is_named_and_nothing_written(llx, busy_head, tmp_path):
    busy_head.steps = busy_head.steps[:10]
    done = llx("calibrate", "--apply", "--out", str(tmp_path / "p.yaml"))
    assert done.exit_code == 8
    assert "steps computed prompts, it takes 20" in done.stderr
    assert "remedy: llx calibrate --load" in done.stderr
    assert not (tmp_path / "p.yaml").exists()
    assert busy_head.updates == []


@pytest.mark.parametrize("load", [[], ["--load", "--duration", "1s", "-y"]])
def test_where_no_profile_can_be_written_nothing_is_measured(
    llx, busy_head, gateway, tmp_path, load
):
    path = tmp_path / "missing" / "p.yaml"
    done = llx("calibrate", *load, "--out", str(path))
    assert done.exit_code == 2
    assert f"{path}: cannot be written: No such file or directory" in done.stderr.replace("\n", "")
    assert gateway.bodies == []
    assert llx("calibrate", *load, "--out", str(tmp_path)).exit_code == 2


def test_a_profile_is_left_as_it_is_by_a_measurement_that_fails(llx, busy_head, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("before")
    busy_head.steps = busy_head.steps[:10]
    assert llx("calibrate", "--out", str(path)).exit_code == 8
    assert path.read_text() == "before"


def test_of_no_model(llx, busy_head):
    done = llx("calibrate", "huge")
    assert done.exit_code == 4
    assert "there are: tiny" in done.stderr
