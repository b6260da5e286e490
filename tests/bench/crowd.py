"""Many simulated instances in one process, each whole: engine, endpoint, llumlet and transport.

    python -m tests.bench.crowd SPEC     says READY with all addresses, serves until its input ends

What an instance's own process adds to these (a shim, a pulse) is not here. The zmq context of an
endpoint is its own, as in a process, so that sockets, keys and threads are the same.
"""

import json
import logging
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from llx.agent.endpoint import InstanceEndpoint
from llx.agent.engine_codec import encode
from llx.agent.llumlet import EngineFacts, MigrationService
from llx.agent.sim_core import UTILITIES
from llx.agent.sim_engine import CoreThread, instance_info, make_engine, ready_response
from llx.agent.sim_kv import sim_compatibility
from llx.agent.sim_model import ModelFacts, read_model
from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.rank import RankAgent
from llx.core.model import InstanceId, PoolName
from llx.curve import ClusterKeys
from llx.specs import EngineKind, InstanceSpec, MigrationSpec, SimSpec

_THREAD_STACK = 256 << 10


class CrowdSpec(msgspec.Struct, frozen=True):
    """Which instances a process has."""

    names: list[str]
    pool: str
    model: str
    keys_path: str
    sim: SimSpec


class Crowded:
    """One instance of a crowd."""

    def __init__(self, name: str, crowd: CrowdSpec, keys: ClusterKeys, facts: ModelFacts) -> None:
        spec = InstanceSpec(
            name=name, pool=crowd.pool, engine=EngineKind.SIM, model=crowd.model, engine_args={},
            tensor_parallel=1, bind_host="127.0.0.1", keys_path=crowd.keys_path, status_path="",
            sim=crowd.sim, migration=MigrationSpec(chunk_bytes=64 << 10),
        )  # fmt: skip
        self._engine, config = make_engine(crowd.sim, facts)
        about = EngineFacts(
            InstanceId(name),
            sim_compatibility(spec.model, facts, crowd.sim),
            config.block_size,
            config.max_model_len,
        )
        self._llumlet = MigrationService(
            keys, PoolName(crowd.pool), about, spec.migration, self._engine.moves, self._engine
        )
        self._transport = InstanceTransport(
            [RankAgent(self._engine.kv, spec.migration, spec.bind_host, None)], self._llumlet
        )
        self._endpoint = InstanceEndpoint(
            keys,
            spec.bind_host,
            info=instance_info(spec, config, facts),
            engine_ready=encode(ready_response(config, dtype=facts.dtype, name=name)),
            sink=self._engine,
            llumlet=self._llumlet,
            allowed_calls=UTILITIES,
        )

    def start(self) -> tuple[str, str]:
        """Its two addresses."""
        self._llumlet.start(self._endpoint, self._transport)
        addresses = self._endpoint.start()
        CoreThread(self._engine, self._endpoint).start()
        return addresses


def main() -> int:
    # Standard error gets what goes wrong; joins and moves of so many would fill it.
    logging.basicConfig(level=logging.WARNING)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    threading.stack_size(_THREAD_STACK)
    crowd = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=CrowdSpec)
    keys, facts = ClusterKeys.load(Path(crowd.keys_path)), read_model(crowd.model, {})
    found: dict[str, Any] = {}
    for name in crowd.names:
        found[name] = Crowded(name, crowd, keys, facts).start()
    # Each engine's thread asks to get the interpreter within 0.1 ms; so many would only take turns.
    sys.setswitchinterval(0.005)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    sys.stdin.read()  # ends with whoever started this, however that ends
    return 0


if __name__ == "__main__":
    main()
    logging.shutdown()
    os._exit(0)  # thousands of threads need not be woken
