"""Clusters by name: what the paper measured on, calibrated."""

from dataclasses import replace
from types import MappingProxyType
from typing import Final

from llx.core.engine_state import EngineConfig, StepTime
from llx.core.model import Blocks, Nanos, PoolName, Tokens
from llx.core.scheduler.config import PoolConfig, PriorityClass, Rescheduling
from llx.core.scheduler.config import StepTime as Prediction
from llx.core.scheduler.freeness import Freeness
from llx.errors import ConfigError
from llx.sim.config import ClusterConfig
from llx.sim.links import LinkConfig
from llx.sim.workload import HIGH, NORMAL

_MILLISECOND: Final = 1_000_000

A10_LLAMA_7B: Final = EngineConfig(
    num_blocks=Blocks(783),
    block_size=Tokens(16),
    max_num_seqs=256,
    max_num_batched_tokens=Tokens(12_800),
    max_model_len=Tokens(2 * 6144 + 1),
    step_time=StepTime(
        base_ns=34 * _MILLISECOND,
        # 0.26 ms a token, of which the context's term has 0.0016
        prefill_token_ns=258_400,
        decode_ns=270_000,
        context_ktoken_ns=1_600_000,
        prefill_base_ns=5_600_000,
        prefill_square_ns=40,
    ),
    is_prefill_first=True,
    watermark=Blocks(7),
)
"""LLaMA-7B on an A10 under the vLLM of the paper: step_ms = 34 + 0.27 batch + 0.0016 context;
prefill_ms = 5.6 + 0.26 Σn + 4e-5 Σn². Fitted to the paper's figures 10 and 11."""

_KV_BLOCK_BYTES: Final = 8 * 2**20
_PREDICTION: Final = Prediction(
    base=Nanos(34 * _MILLISECOND),
    per_prefill_token=Nanos(260_000),
    per_request=Nanos(270_000),
    per_block=Nanos(25_600),
)


def _classes(headroom: int) -> tuple[PriorityClass, ...]:
    """Bounds out of the way: the paper's queues have none."""
    far, endless = 10**9, Nanos(10**18)
    return (
        PriorityClass(HIGH, 0, Blocks(headroom), far, endless),
        PriorityClass(NORMAL, 1, Blocks(0), far, endless),
    )


_OURS: Final = PoolConfig(
    name=PoolName("llama-7b"),
    classes=_classes(0),
    step_tokens=A10_LLAMA_7B.max_num_batched_tokens,
    max_requests=A10_LLAMA_7B.max_num_seqs,
    step_time=_PREDICTION,
)


def _immediate(dispatch: str, *steps: str) -> PoolConfig:
    """Requests go to an instance's own queue at once, whatever room it has."""
    return replace(
        _OURS,
        dispatch=dispatch,
        is_immediate=True,
        overtaking=0,
        growth_tokens=Tokens(0),
        rescheduling=replace(Rescheduling(), steps=steps),
    )


def _papers(threshold: float) -> PoolConfig:
    """One threshold for both ends, no rest, one move at a time for an instance."""
    pool = _immediate("freest", "balance")
    low = Freeness(threshold)
    rules = replace(
        pool.rescheduling,
        low=low,
        high=low,
        hysteresis=Freeness(0.0),
        rest=Nanos(0),
        max_out=1,
        max_in=1,
    )
    return replace(pool, rescheduling=rules)


POLICIES: Final = MappingProxyType(
    {
        "round-robin": _immediate("round_robin"),
        "infaas": _immediate("least_loaded"),
        "llumnix": _papers(3.0),
        "llumnix-10": _papers(10.0),
        "llx": _OURS,
    }
)
"""The paper's baselines, its own policy (with the threshold of 3 blocks a request that it uses for
most workloads, and of 10 that it uses for M-M and S-L), and the defaults of llx."""


def paper_cluster(policy: str, num_instances: int = 16, headroom: int = 0) -> ClusterConfig:
    """Instances of LLaMA-7B, each on an A10.

    Args:
        policy: One of `POLICIES`.
        num_instances: How many.
        headroom: Blocks kept free where a request of the high class runs.

    Raises:
        ConfigError: No such policy.
    """
    pool = POLICIES.get(policy)
    if pool is None:
        raise ConfigError(f"no policy {policy!r}: it is one of {', '.join(POLICIES)}")
    return ClusterConfig(
        num_instances=num_instances,
        engine=A10_LLAMA_7B,
        pool=replace(pool, classes=_classes(headroom)),
        link=LinkConfig(),
        block_bytes=_KV_BLOCK_BYTES,
        report_every=Nanos(100 * _MILLISECOND),
        moves_waiting=policy == "llx",
    )
