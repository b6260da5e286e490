"""Steps that are held: for how long, how those that took longer are counted, and who finds it."""

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from llx.core.engine_state import StepTime
from tests.bench import held_steps
from tests.bench.held_steps import (
    NICENESS,
    HeldStep,
    counted,
    expect_held,
    go_first,
    held,
    overrun,
    told_overrun,
)
from tests.node import ROOT

STEP = StepTime(base_ns=20_000_000, prefill_token_ns=0, decode_ns=10_000_000, context_ktoken_ns=0)


def work(num_decodes):
    cached = SimpleNamespace(
        req_ids=[f"r-{each}" for each in range(num_decodes)],
        num_computed_tokens=[100] * num_decodes,
    )
    return SimpleNamespace(
        scheduled_cached_reqs=cached,
        scheduled_new_reqs=[],
        num_scheduled_tokens=dict.fromkeys(cached.req_ids, 1),
        total_num_scheduled_tokens=num_decodes,
    )


def took_s(step, num_decodes, model_s=0.0):
    began = time.perf_counter()
    step.begin(work(num_decodes))
    time.sleep(model_s)
    step.end()
    return time.perf_counter() - began


def test_a_step_lasts_as_long_as_its_work_says(tmp_path):
    step = HeldStep(STEP, tmp_path)
    assert took_s(step, 1) >= 0.03
    assert took_s(step, 3, model_s=0.01) >= 0.05


def test_it_waits_without_a_core(tmp_path):
    step, used = HeldStep(StepTime(500_000_000, 0, 0, 0), tmp_path), time.thread_time()
    took_s(step, 1)
    assert time.thread_time() - used < 0.25, "of half a second"


def test_what_is_no_step_is_not_held(tmp_path):
    step = HeldStep(StepTime(10**10, 0, 0, 0), tmp_path)
    assert took_s(step, 0) < 5
    step.end()  # nothing was begun


def test_steps_that_took_longer_are_counted(tmp_path):
    step = HeldStep(StepTime(1_000_000, 0, 0, 0), tmp_path)
    for number in range(100):
        took_s(step, 1, model_s=0.004 if number < 25 else 0)
    (share,) = overrun(tmp_path)
    assert 0.25 <= share < 1
    assert f" {share:.1%} to {share:.1%}" in told_overrun(tmp_path)
    (counts,) = counted(tmp_path)
    assert counts["over_ms"] >= 0.25 * 3, "a quarter of them 3 ms"


@pytest.mark.parametrize(("idle_s", "pauses"), [(10.0, 1), (0.001, 0)])
def test_the_time_between_steps_is_counted_unless_there_was_nothing_to_do(
    tmp_path, monkeypatch, idle_s, pauses
):
    monkeypatch.setattr(held_steps, "IDLE_S", idle_s)
    step = HeldStep(StepTime(100_000, 0, 0, 0), tmp_path)
    for _ in range(100):
        took_s(step, 1)
        time.sleep(0.002)
    (counts,) = counted(tmp_path)
    assert (counts["between_ms"] >= 2) == bool(pauses)
    assert counts["idle"] == (1 if pauses else 100)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may")
def test_the_thread_of_the_steps_goes_before_others():
    def own():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def step():
        go_first(threading.get_native_id())
        found.append(own())

    before, found = own(), []
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    if found == [before]:
        pytest.skip("this root may not")
    assert found == [NICENESS]
    assert own() == before, "no other thread does"


def test_engines_that_did_not_find_it_are_no_held_ones(tmp_path):
    (tmp_path / "steps-7.json").write_text('{"steps": 200, "late": 3}')
    expect_held(tmp_path, 1)
    with pytest.raises(ValueError, match="1 of 4 engines hold their steps"):
        expect_held(tmp_path, 4)


def test_vllm_finds_it_in_the_environment(tmp_path):
    environment = os.environ | held(tmp_path / "held", STEP, str(ROOT))
    code = (
        "from importlib.metadata import entry_points;"
        "print(entry_points(group='vllm.general_plugins')['held_steps'].load().__doc__)"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert "calls in each of its processes" in done.stdout
    assert StepTime(**json.loads((tmp_path / "held/step.json").read_text())) == STEP
