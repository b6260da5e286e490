"""Two hosts, three models, two instances of each on different hosts: requests to be moved.

    oracle   the oracle model in float32, prefix caching on
    other    another architecture in float32, on two ranks, scheduled asynchronously
    half     the oracle model in bfloat16

Everything is done as a user does it: `llx up` over SSH, the OpenAI API, the control API.
"""

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import node
from tests.hosts.conftest import host_rig  # noqa: F401  # a fixture
from tests.hosts.operator_machine import Operator
from tests.hosts.rig import USER, Host, HostOptions, Rig, python_binds
from tests.migration.cases import STREAMS, Answer, answers

MAX_MODEL_LEN = 4096
COMMON = {
    "max_model_len": MAX_MODEL_LEN,
    "block_size": 32,
    "max_num_seqs": 32,
    "num_gpu_blocks_override": 1000,  # eight engines share the machine's memory
    "enforce_eager": True,
}


@dataclass(frozen=True)
class Movable:
    """The cluster."""

    operator: Operator
    url: str
    head: Host
    python: str

    def token_file(self) -> str:
        return f"/home/{USER}/.llx/clusters/c/token"


@pytest.fixture(scope="session")
def other_model(tmp_path_factory, node_python, node_environment) -> Path:
    folder = tmp_path_factory.mktemp("other") / "model"
    script = str(node.ROOT / "tests/e2e/oracle_model.py")
    subprocess.run(
        [node_python, script, "other", str(folder)],
        env=node_environment, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="package")
def movable(host_rig: Rig, oracle, other_model, node_python, tmp_path_factory) -> Movable:  # noqa: F811
    host_rig.up(2, HostOptions(binds=(*python_binds(Path(node_python)), node.ROOT), size="6g"))
    operator = Operator(host_rig, python=node_python)
    operator.config(models=models(oracle, other_model))
    done = operator("up", "-y", "cluster.yaml", timeout_s=900)
    assert done.returncode == 0, done.stderr
    yield Movable(operator, operator.json("status")["url"], host_rig["h1"], node_python)
    keep_logs(host_rig, tmp_path_factory.mktemp("logs"))
    operator("down", "--deadline", "1s")
    host_rig.down()


@pytest.fixture(scope="package")
def undisturbed(movable: Movable) -> dict[str, Answer]:
    """What `STREAMS` say when nothing happens to them."""
    return asyncio.run(answers(movable.url, "oracle", STREAMS, len(STREAMS)))


def keep_logs(rig: Rig, folder: Path) -> None:
    """What every process said, for whoever looks for the cause of a failure."""
    script = 'cd ~/.llx/clusters/c/procs && for p in *; do echo "== $p"; cat $p/log; done'
    for host in rig.hosts:
        (folder / host.name).write_text(host.x("sh", "-c", script, user=USER).stdout)


def models(oracle: Path, other: Path) -> list[dict]:
    return [
        {
            "name": "oracle",
            "model": str(oracle),
            "instances": {"min": 2},
            "engine_args": {**COMMON, "dtype": "float32"},
        },
        {
            "name": "other",
            "model": str(other),
            "instances": {"min": 2},
            "tensor_parallel": 2,
            "engine_args": {**COMMON, "dtype": "float32", "async_scheduling": True},
        },
        {
            "name": "half",
            "model": str(oracle),
            "instances": {"min": 2},
            "engine_args": {**COMMON, "dtype": "bfloat16"},
        },
    ]
