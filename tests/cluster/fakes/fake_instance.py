"""An instance without an engine: real sockets and status file, and the ways in which one fails.

`engine_args` say how it behaves: ``fake``: ready (default), crash, fail, never, deaf (never, and it
does not heed a TERM); ``weights``: what is compatible (file: what the file ``weights`` in the home
directory says, else abc); ``end_s``: how long it takes to end, unless there is a file ``finish`` in
its directory; ``is_idle``: it has no requests, unless there is a file ``busy`` in its directory;
``cannot_migrate``: why it cannot.

With ``sim.num_blocks: 1`` it crashes.

A file ``requests.json`` in its directory is what it has (`fake_llumlet.py`). While there is a file
``mute``, it reports no load.
"""

import signal
import sys
import threading
import time
from pathlib import Path

from fake_llumlet import FakeEngine

from llx import __version__
from llx.agent.endpoint import InstanceEndpoint
from llx.core.model import InstanceId, Nanos, PoolName
from llx.curve import ClusterKeys
from llx.pins import VLLM_VERSION
from llx.specs import InstanceSpec, Phase, StatusFile, load_spec
from llx.wire import InstanceInfo, Load

signal.alarm(600)  # whatever becomes of the test


def main() -> int:
    ended = threading.Event()
    spec = load_spec(Path(sys.argv[1]), InstanceSpec)
    status = StatusFile(Path(spec.status_path))
    behaviour = spec.engine_args.get("fake", "ready")
    if spec.sim is not None and spec.sim.num_blocks == 1:
        behaviour = "crash"
    is_deaf = behaviour == "deaf"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_deaf else lambda *_: ended.set())
    print(f"fake {spec.name}: {behaviour}", flush=True)
    status.write(Phase.LOADING, "loading weights")
    match behaviour:
        case "crash":
            print("RuntimeError: out of fake memory", flush=True)
            return 3
        case "fail":
            status.write(Phase.FAILED, "the model is not a model")
            print("the log says why", flush=True)
            return 1
        case "never" | "deaf":
            ended.wait()
            return 0
    weights = spec.engine_args.get("weights", "")
    if weights == "file":
        path = Path.home() / "weights"
        weights = path.read_text() if path.exists() else "abc"
    info = InstanceInfo(
        instance=InstanceId(spec.name), pool=PoolName(spec.pool_key), engine=spec.engine,
        llx_version=__version__, vllm_version=VLLM_VERSION, model=spec.model, num_blocks=100,
        block_size=16, max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=512,
        tensor_parallel=1, pid=0, cannot_migrate=spec.engine_args.get("cannot_migrate", ""),
        compatibility=weights,
    )  # fmt: skip
    engine = FakeEngine(Path("requests.json"))
    endpoint = InstanceEndpoint(
        ClusterKeys.load(Path(spec.keys_path)), spec.bind_host, info=info, engine_ready=b"",
        sink=engine, llumlet=engine,
        allowed_calls=frozenset({"llx_requests", "llx_oldest_requests"}),
        port_range=spec.port_range,
    )  # fmt: skip
    engine.emit = endpoint.emit
    addresses = endpoint.start()
    busy = Load(0, 0, Nanos(1), 100, 60, 16, 2, 1, 8, 128, 0, {10: (2, 1, 8)})
    idle = Load(0, 0, Nanos(1), 100, 100, 16, 0, 0, 0, 0, 0, {})
    is_idle = bool(spec.engine_args.get("is_idle"))
    status.write(Phase.READY, addresses=list(addresses))
    while True:
        engine.work()
        load = engine.load() or (idle if is_idle and not Path("busy").exists() else busy)
        if not Path("mute").exists():
            endpoint.report(load, {})
        if ended.wait(0.05):
            break
    end = time.monotonic() + float(spec.engine_args.get("end_s", 0))
    while time.monotonic() < end and not Path("finish").exists():
        time.sleep(0.02)
    endpoint.close("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
