"""Step times fitted to steps that were measured, and steps put together from tables of kernels."""

import gzip
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.core.engine_state import StepTime
from llx.errors import ConfigError
from llx.sim.calibration import StepSample, fit_step_time
from llx.sim.kernel_profiles import kernel_samples
from tests.example_counts import of_a_hundred


def steps(draw: random.Random, count: int) -> list[StepSample]:
    """Steps as an engine has them: decodes, prefills, both; `duration_ns` is not known yet."""
    found = []
    for _ in range(count):
        kind = draw.randrange(3)
        decodes = [draw.randint(1, 4000) for _ in range(draw.randint(1, 200) if kind else 0)]
        start = draw.choice([0, 0, 1024])
        end = start + draw.randint(1, 2048)
        is_prefill = kind != 1
        found.append(
            StepSample(
                num_prefill_tokens=end - start if is_prefill else 0,
                num_decodes=len(decodes),
                num_context_tokens=sum(decodes) + (end if is_prefill else 0),
                num_square_tokens=end**2 - start**2 if is_prefill else 0,
                num_decode_context_tokens=sum(decodes),
                duration_ns=1,
            )
        )
    return found


def duration(model: StepTime, step: StepSample) -> int:
    return model.of(
        step.num_prefill_tokens,
        step.num_decodes,
        step.num_context_tokens,
        step.num_square_tokens,
        step.num_decode_context_tokens,
    )


@settings(max_examples=of_a_hundred(8))
@given(
    st.builds(
        StepTime,
        base_ns=st.integers(500_000, 20_000_000),
        prefill_token_ns=st.integers(0, 50_000),
        decode_ns=st.integers(0, 300_000),
        context_ktoken_ns=st.integers(0, 500_000),
        prefill_square_ns=st.integers(0, 40),
        weights_ns=st.just(0),
        token_ns=st.integers(0, 60_000),
        mixed_decode_ns=st.integers(0, 60_000),
        mixed_context_ktoken_ns=st.integers(0, 90_000),
    ),
    st.integers(0, 9),
)
def test_what_was_measured_is_predicted(truth: StepTime, seed: int) -> None:
    measured = [
        replace(each, duration_ns=duration(truth, each)) for each in steps(random.Random(seed), 80)
    ]
    fit = fit_step_time(measured)
    assert fit.error_p95 < 0.03, (fit, truth)
    assert fit.num_samples == 80


def test_noise_moves_no_term_far() -> None:
    truth = StepTime(8_000_000, 20_000, 50_000, 60_000, mixed_context_ktoken_ns=40_000)
    draw = random.Random(3)
    measured = [
        replace(each, duration_ns=duration(truth, each) * draw.uniform(0.9, 1.1))
        for each in steps(draw, 300)
    ]
    found = fit_step_time(measured).step_time
    for each in steps(random.Random(4), 50):
        assert duration(found, each) == pytest.approx(duration(truth, each), rel=0.05)


def test_no_term_is_negative() -> None:
    """Steps that are the shorter the more they do, as noise may have it."""
    odd = [
        replace(each, duration_ns=1e9 / (1 + each.num_context_tokens))
        for each in steps(random.Random(5), 60)
    ]
    found = fit_step_time(odd).step_time
    assert min(found.base_ns, found.decode_ns, found.context_ktoken_ns, found.token_ns) >= 0


@pytest.mark.parametrize(
    ("samples", "said"),
    [([], "no step was measured"), ([StepSample(1, 0, 1, 1, 0, 0.0)], "took no time")],
)
def test_nothing_to_go_by(samples: list[StepSample], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit_step_time(samples)


# ------------------------------------------------------------------ tables


def tables(folder: Path) -> tuple[Path, Path, Path]:
    """Kernels whose times are sums that can be done in one's head."""
    dense, attention, per_sequence = (
        folder / name for name in ("dense.csv", "attention.csv.gz", "per_sequence.csv")
    )
    parts = [("qkv_proj", 10), ("layernorm", 1), ("embedding", 5)]
    rows = [f"{name},{n},{us * n}" for (name, us), n in itertools.product(parts, (1, 100))]
    dense.write_text("layer,tokens,time_us\n" + "\n".join(rows) + "\n")
    per_sequence.write_text("layer,sequences,time_us\nlm_head,1,700\nlm_head,3,720\n")
    attention.write_bytes(
        gzip.compress(
            b"prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
            b"0,0,2,50,30\n40,10,1,16,44\n300,0,0,0,9\n"
        )
    )
    return dense, attention, per_sequence


def test_a_step_is_the_sum_of_its_kernels(tmp_path: Path) -> None:
    found = kernel_samples(*tables(tmp_path), num_layers=2)
    decodes, mixed, prefill = (replace(each, duration_ns=round(each.duration_ns)) for each in found)
    # 2 tokens: (2·10 + 2·2·1 + 5)·2 … embedding once, two layernorms in each of two layers
    assert decodes == StepSample(0, 2, 100, 0, 100, 1000 * (2 * 29 + 710 + 2 * 30))
    assert mixed == StepSample(40, 1, 66, 50**2 - 10**2, 16, 1000 * (41 * 29 + 710 + 2 * 44))
    assert prefill == StepSample(300, 0, 300, 300**2, 0, 1000 * (300 * 29 + 700 + 2 * 9))


def test_a_table_that_is_none(tmp_path: Path) -> None:
    dense, attention, per_sequence = tables(tmp_path)
    for path, text, said in (
        (dense, "layer,time_us\n", "dense.csv has no column tokens"),
        (dense, "layer,tokens,time_us\n", "dense.csv has no rows"),
        (per_sequence, "layer,sequences,time_us\nlm_head,1,fast\n", "per_sequence.csv:2: not a"),
        (attention, "", "attention.csv.gz has no column"),
    ):
        before = path.read_bytes()
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            kernel_samples(dense, attention, per_sequence, 2)
        path.write_bytes(before)
    with pytest.raises(ConfigError, match="none"):
        kernel_samples(tmp_path / "none", attention, per_sequence, 2)
