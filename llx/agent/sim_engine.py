"""The process of a simulated instance: builds the engine, serves it, ends in good order."""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from llx import __version__
from llx.agent.endpoint import InstanceEndpoint
from llx.agent.engine_codec import EngineCoreReadyResponse, encode
from llx.agent.llumlet import EngineFacts, MigrationService
from llx.agent.pulse import Pulse, Slot
from llx.agent.sim_core import UTILITIES, Outlet, SimEngine
from llx.agent.sim_kv import sim_compatibility
from llx.agent.sim_model import ModelFacts, read_model
from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.rank import RankAgent
from llx.core.engine_state import EngineConfig, StepTime
from llx.core.model import Blocks, InstanceId, PoolName, Tokens
from llx.core.token_model import HashedTokens
from llx.curve import KeyFile
from llx.pins import VLLM_VERSION
from llx.specs import InstanceSpec, Phase, SimSpec, StatusFile
from llx.wire import InstanceInfo

log = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0001
"""A thread with an output to send waits at most this long for one that computes."""


def run_sim(spec: InstanceSpec, status: StatusFile, *, lease_s: float = 10.0) -> int:
    """Run an instance until SIGTERM or SIGINT; returns its exit code.

    What is running then is not finished: its peers get an ABORT output for each request.

    Raises:
        ConfigError: The model's directory or the cluster's keys cannot be used.
    """
    status.write(Phase.LOADING, "reading the model's tokenizer")
    facts = read_model(spec.model, spec.engine_args)
    engine, config = make_engine(spec.sim or SimSpec(), facts)
    keys = KeyFile(Path(spec.keys_path))
    llumlet = _llumlet(spec, keys, engine, config, facts)
    transport = InstanceTransport(
        [RankAgent(engine.kv, spec.migration, spec.bind_host, spec.port_range)], llumlet
    )
    pulse = Pulse.beside(spec.status_path)
    endpoint = InstanceEndpoint(
        keys,
        spec.bind_host,
        info=instance_info(spec, config, facts),
        engine_ready=encode(ready_response(config, dtype=facts.dtype, name=spec.name)),
        sink=engine,
        llumlet=llumlet,
        allowed_calls=UTILITIES,
        lease_s=lease_s,
        port_range=spec.port_range,
        beat=lambda: pulse.promise(Slot.ALIVE, spec.hang.silent_s),
    )
    llumlet.start(endpoint, transport)
    core = CoreThread(engine, endpoint)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: engine.stop())
    status.write(Phase.READY, addresses=list(endpoint.start()))
    core.start()
    core.join()
    pulse.end()
    llumlet.close()
    transport.stop()
    if core.failure is not None:
        status.write(Phase.FAILED, f"{type(core.failure).__name__}: {core.failure}"[:2000])
        endpoint.close("the engine failed; its log has the traceback")
        return 1
    status.write(Phase.STOPPING)
    endpoint.close("stopped")
    return 0


class CoreThread(threading.Thread):
    """Runs the engine. `failure` is what ended it, unless `SimEngine.stop` did.

    Not the main thread: signal handlers run there, and one that interrupts the holder of a lock
    must not wait for that lock.
    """

    def __init__(self, engine: SimEngine, outlet: Outlet) -> None:
        super().__init__(name="engine-core", daemon=True)
        self.failure: Exception | None = None
        self._engine = engine
        self._outlet = outlet

    def run(self) -> None:
        """The thread's body."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            self._engine.run(self._outlet)
        except Exception as error:
            log.exception("engine.failed")
            self.failure = error


def _llumlet(
    spec: InstanceSpec,
    keys: KeyFile,
    engine: SimEngine,
    config: EngineConfig,
    facts: ModelFacts,
) -> MigrationService:
    return MigrationService(
        keys,
        PoolName(spec.pool_key),
        EngineFacts(
            InstanceId(spec.name),
            _compatibility(spec, facts),
            config.block_size,
            config.max_model_len,
        ),
        spec.migration,
        engine.moves,
        engine,
    )


def _compatibility(spec: InstanceSpec, facts: ModelFacts) -> str:
    return sim_compatibility(spec.model, facts, spec.sim or SimSpec())


def make_engine(sim: SimSpec, facts: ModelFacts) -> tuple[SimEngine, EngineConfig]:
    """An engine of that size, for that model."""
    config = engine_config(sim, facts.max_model_len)
    tokens = HashedTokens(
        facts.vocabulary,
        num_blocks=sim.num_blocks,
        block_size=sim.block_size,
        bytes_per_token=sim.kv_bytes_per_token,
    )
    return SimEngine(config, tokens), config


def engine_config(sim: SimSpec, max_model_len: int) -> EngineConfig:
    """The engine's size; `max_model_len` is lowered to what its blocks can hold, as vLLM does."""
    return EngineConfig(
        num_blocks=Blocks(sim.num_blocks),
        block_size=Tokens(sim.block_size),
        max_num_seqs=sim.max_num_seqs,
        max_num_batched_tokens=Tokens(sim.max_num_batched_tokens),
        max_model_len=Tokens(min(max_model_len, sim.num_blocks * sim.block_size)),
        step_time=StepTime(
            base_ns=round(sim.step_base_ms * 1e6),
            prefill_token_ns=round(sim.step_ms_per_prefill_token * 1e6),
            decode_ns=round(sim.step_ms_per_decode * 1e6),
            context_ktoken_ns=round(sim.step_ms_per_context_ktoken * 1e6),
        ),
    )


def ready_response(config: EngineConfig, *, dtype: str, name: str) -> EngineCoreReadyResponse:
    """What vLLM's front end wants to know of an engine."""
    return EngineCoreReadyResponse(
        max_model_len=config.max_model_len,
        num_gpu_blocks=config.num_blocks,
        block_size=config.block_size,
        dp_stats_address=None,
        dtype=dtype,
        vllm_version=VLLM_VERSION,
        world_size=1,
        data_parallel_size=1,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        decode_context_parallel_size=1,
        data_parallel_rank=0,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        instance_id=name,
        supports_lora=False,
        max_loras=0,
        kv_cache_size_tokens=config.num_blocks * config.block_size,
        kv_cache_max_concurrency=config.num_blocks * config.block_size / config.max_model_len,
        effective_attention_block_size=config.block_size,
    )


def instance_info(spec: InstanceSpec, config: EngineConfig, facts: ModelFacts) -> InstanceInfo:
    """What an instance of that spec says it is."""
    return InstanceInfo(
        instance=InstanceId(spec.name),
        pool=PoolName(spec.pool_key),
        engine=spec.engine,
        llx_version=__version__,
        vllm_version=VLLM_VERSION,
        model=spec.model,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        tensor_parallel=spec.tensor_parallel,
        pid=os.getpid(),
        compatibility=_compatibility(spec, facts),
    )
