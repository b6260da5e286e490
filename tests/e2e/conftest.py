"""One cluster for the whole tier: the oracle model on two vLLM instances, and a simulated pool.

Everything is done the way a user does it: `llx up FILE`, the OpenAI endpoint, `llx down`.
"""

import json
import random

import pytest

from tests.e2e.rig import Cluster, Llx, processes_of, sweep

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
    home = tmp_path_factory.mktemp("cluster")
    llx = Llx(home)
    config = home / "cluster.yaml"
    port = random.randrange(21000, 29000)
    config.write_text(
        json.dumps(
            {
                "cluster": "e2e",
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
                "gateway": {"port": port},
                "control": {"port": 0},
                "runtime": {"platform": "cpu", "cpu_threads": 1},
            }
        )
    )
    done = llx("up", "-y", str(config), timeout_s=600)
    assert done.returncode == 0, done.stderr
    try:
        yield Cluster(llx, f"http://127.0.0.1:{port}", config)
    finally:
        done = llx("down", "--deadline", "5s")
        left = processes_of(home)
        sweep(home)
    assert done.returncode == 0, done.stderr
    assert left == {}, "`llx down` left processes behind"
