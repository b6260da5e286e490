"""Three instances of vLLM under load: an engine argument is rolled out, then another model.

Seven engines start: run by `make rollout`, not by `make test` (a smaller one is there, in
`test_vllm_rollout.py`).
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import ENGINE_ARGS
from tests.e2e.rig import ROOT, Cluster, cluster_up
from tests.e2e.rollout_load import Load, roll_out

pytestmark = [pytest.mark.e2e, pytest.mark.node]

COUNT = 3
SMALL = {"max_model_len": 512, "max_num_seqs": 16, "num_gpu_blocks_override": 100}


@pytest.fixture
def three(tmp_path: Path, oracle: Path) -> Iterator[Cluster]:
    """Three instances of the oracle model, with little room each."""
    model = {
        "name": "oracle",
        "model": str(oracle),
        "instances": {"min": COUNT, "max": COUNT},
        "engine_args": ENGINE_ARGS | SMALL,
    }
    settings = {"models": [model], "runtime": {"platform": "cpu", "cpu_threads": 1}}
    with cluster_up(tmp_path, settings) as cluster:
        yield cluster


@pytest.fixture
def other(tmp_path: Path, node_python: str, node_environment: dict[str, str]) -> Path:
    """A model of another architecture, with other weights."""
    folder = tmp_path / "other"
    script = str(ROOT / "tests/e2e/oracle_model.py")
    subprocess.run(
        [node_python, script, "other", str(folder)],
        env=node_environment, check=True, capture_output=True,
    )  # fmt: skip
    return folder


async def test_no_stream_fails_and_no_token_differs(three: Cluster, other: Path) -> None:
    async with httpx.AsyncClient(base_url=three.url, timeout=240) as http:
        load = Load(http, [f"part {number}" for number in range(6)])
        await load.learn()
        async with load.running():
            found = await roll_out(three, "--set", "max_num_seqs=12")
        report("engine argument", load, found)
        assert (load.failed, load.wrong) == ([], [])
        assert (found["state"], found["is_apart"], found["cut"]) == ("done", False, 0)
        assert found["instances_new"] == COUNT
        assert found["moved"] > 0
        assert three.llx("scale", "oracle", "1", "-y").returncode == 0
        load.streams = 0
        async with load.running():
            found = await roll_out(three, "--model", str(other))
        report("model", load, found)
        assert load.failed == []
        assert load.streams > len(load.prompts)
        assert (found["state"], found["is_apart"], found["cut"]) == ("done", True, 0)
        assert found["finished"] > 0
        former = {prompt: list(said) for prompt, said in load.expected.items()}
        await load.learn()
        for prompt, said in load.expected.items():
            assert said[-1] not in former[prompt], "the new model says something else"
        # What the former one did not say, the new one did: no stream is a mixture of both.
        strange = [
            each
            for each in load.wrong
            if json.loads(each.partition(": ")[2]) not in load.expected[each.partition(": ")[0]]
        ]
        assert strange == []


def report(what: str, load: Load, found: dict) -> None:
    """The figures of docs/rollout.md; pytest shows them with ``-s``."""
    figures = {"streams": load.streams, "failed": len(load.failed), "moved": found["moved"]}
    print(what, figures | {"finished": found["finished"], "cut": found["cut"]})
