"""Engines under contract: each a process of its own, as in a cluster."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llx.curve import ClusterKeys
from llx.specs import (
    EngineKind,
    InstanceSpec,
    Phase,
    ProcessStatus,
    SimSpec,
    load_spec,
    save_spec,
)
from tests.contract.kv_pair import gpus, here  # noqa: F401  fixtures
from tests.contract.peer import WAIT_S, Peer
from tests.node import node_environment

REPOSITORY = Path(__file__).parents[2]
SIM = SimSpec(
    step_base_ms=3.0, num_blocks=2048, block_size=16, max_num_seqs=8, max_num_batched_tokens=256
)


@dataclass(frozen=True)
class Instance:
    """A running instance: how to reach it, and how long it waits for a silent peer."""

    keys: ClusterKeys
    address_in: str
    address_out: str
    lease_s: float
    process: "subprocess.Popen[bytes]"
    status_path: Path

    def peer(self, **options: object) -> Peer:
        """A peer that has not said hello yet."""
        return Peer(self.keys, self.address_in, self.address_out, **options)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def joined(self, **options: object) -> Iterator[Peer]:
        """A peer in session; it says goodbye at the end."""
        with self.peer(**options) as peer:
            peer.join()
            yield peer
            peer.bye()

    def status(self) -> ProcessStatus:
        return load_spec(self.status_path, ProcessStatus)


Launcher = Callable[[Path], contextlib.AbstractContextManager[Instance]]
LEASE_S = 10.0
"""Longer than this process stalls on a busy machine: a peer renews its own while it reads."""


@contextlib.contextmanager
def launch_sim(folder: Path, lease_s: float = LEASE_S) -> Iterator[Instance]:
    model = folder / "model"
    model.mkdir()
    config = {"vocab_size": 768, "max_position_embeddings": 4096, "dtype": "float32"}
    (model / "config.json").write_text(json.dumps(config))
    spec = make_spec(folder, EngineKind.SIM, model, {"max_model_len": 4096}, SIM)
    command = [sys.executable, str(Path(__file__).with_name("launch.py")), str(spec), str(lease_s)]
    with running(folder, command, {}, lease_s=lease_s, timeout_s=WAIT_S) as instance:
        yield instance


@contextlib.contextmanager
def launch_vllm(folder: Path) -> Iterator[Instance]:
    """Real vLLM on the CPU, by the entry point that the node agent uses."""
    prefix = os.environ.get("LLX_NODE_PREFIX")
    assert prefix, "the contract of vLLM needs LLX_NODE_PREFIX: run it with `make test`"
    python = f"{prefix}/bin/python"
    model = folder / "model"
    make = [python, "-m", "llx.agent.vllm.tiny_model", "--out", str(model)]
    subprocess.run(make, env=node_environment(), check=True, capture_output=True)
    spec = make_spec(folder, EngineKind.VLLM, model, VLLM_ARGS, None)
    command = [python, "-m", "llx.agent.instance", str(spec)]
    with running(folder, command, node_environment(), lease_s=LEASE_S, timeout_s=180) as instance:
        yield instance


VLLM_ARGS: dict[str, object] = {
    "max_model_len": 1024,
    "block_size": 32,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "dtype": "float32",
}


def make_spec(
    folder: Path,
    engine: EngineKind,
    model: Path,
    engine_args: dict[str, object],
    sim: SimSpec | None,
) -> Path:
    ClusterKeys.create().save(folder / "keys.json")
    spec = InstanceSpec(
        name="tiny-0",
        pool="tiny",
        engine=engine,
        model=str(model),
        engine_args=engine_args,
        tensor_parallel=1,
        bind_host="127.0.0.1",
        keys_path=str(folder / "keys.json"),
        status_path=str(folder / "status.json"),
        sim=sim,
    )
    save_spec(folder / "spec.json", spec)
    return folder / "spec.json"


@contextlib.contextmanager
def running(
    folder: Path,
    command: list[str],
    environment: dict[str, str],
    *,
    lease_s: float,
    timeout_s: float,
) -> Iterator[Instance]:
    """Start an instance, wait until it is ready, and see that it is gone at the end."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            start_new_session=True,
        )
    try:
        status = wait_ready(folder / "status.json", process, log, timeout_s)
        keys = ClusterKeys.load(folder / "keys.json")
        address_in, address_out = status.addresses
        yield Instance(keys, address_in, address_out, lease_s, process, folder / "status.json")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_ready(
    path: Path, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float
) -> ProcessStatus:
    deadline = time.monotonic() + timeout_s
    while True:
        if path.exists():
            status = load_spec(path, ProcessStatus)
            if status.phase is Phase.READY:
                return status
        assert process.poll() is None, f"it ended at once: {log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"not ready in time: {log.read_text()[-4000:]}"
        time.sleep(0.01)  # a file has no event to wait for


ENGINES: dict[str, Launcher] = {"sim": launch_sim, "vllm": launch_vllm}


@pytest.fixture(scope="module", params=["sim", pytest.param("vllm", marks=pytest.mark.node)])
def engine_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(engine_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance for all tests that leave it as they found it."""
    with ENGINES[engine_kind](tmp_path_factory.mktemp("instance")) as instance:
        yield instance


@pytest.fixture
def impatient_engine(engine_kind: str, engine: Instance, tmp_path: Path) -> Iterator[Instance]:
    """One whose lease can be outwaited; of vLLM's, which takes long to start, the shared one."""
    if engine_kind == "sim":
        with launch_sim(tmp_path, 3.0) as instance:
            yield instance
    else:
        yield engine


@pytest.fixture
def mortal_engine(engine_kind: str, tmp_path: Path) -> Iterator[Instance]:
    """An instance of one's own, to be ended."""
    with ENGINES[engine_kind](tmp_path) as instance:
        yield instance
