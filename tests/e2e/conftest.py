"""One cluster for the whole tier: the oracle model on two vLLM instances, and a simulated pool.

Everything is done the way a user does it: `llx up FILE`, the OpenAI endpoint, `llx down`.
"""

import pytest

from tests.e2e.rig import Cluster, Llx, cluster_up, sweep

ENGINE_ARGS = {
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 32,
    "num_gpu_blocks_override": 1000,
    "enforce_eager": True,
    "dtype": "float32",
    "enable_prefix_caching": False,
}
SIM = {
    "step_base_ms": 20.0,
    "step_ms_per_prefill_token": 0.4,
    "step_ms_per_decode": 2.0,
    "step_ms_per_context_ktoken": 4.0,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
}
"""Long enough steps for what Python adds to them not to matter; `llx calibrate` finds them."""


@pytest.fixture
def llx(tmp_path) -> Llx:
    """`llx` in directories of one test's own; nothing may be left running."""
    yield Llx(tmp_path)
    sweep(tmp_path)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory, oracle) -> Cluster:
    """The shared cluster, up for the directory's tests and taken down by `llx down`."""
    settings = {
        "models": [
            {
                "name": "oracle",
                "model": str(oracle),
                "instances": {"min": 2, "max": 2},
                "engine_args": ENGINE_ARGS,
                "serve_args": {
                    "enable_auto_tool_choice": True,
                    "tool_call_parser": "hermes",
                },
            },
            {
                "name": "simulated",
                "model": str(oracle),
                "engine": "sim",
                "instances": {"min": 1, "max": 1},
                "engine_args": {"max_model_len": 2048},
                "sim": SIM,
            },
        ],
        "runtime": {"platform": "cpu", "cpu_threads": 1},
    }
    with cluster_up(tmp_path_factory.mktemp("cluster"), settings) as cluster:
        yield cluster
