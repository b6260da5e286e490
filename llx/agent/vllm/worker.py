"""What llx adds to each of vLLM's worker processes: one rank's part in a migration.

vLLM mixes `LlxWorker` into its worker class (``worker_extension_cls``), in every process that has a
rank. Nothing else has to be installed there: `llx_open_store` is called in each of them before the
first request, and wraps what has to be wrapped on that worker's own model runner.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from vllm.sampling_params import SamplingType
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from llx.agent.transport.worker import serve_rank
from llx.agent.vllm.arrival import ATTRIBUTE, Arrival
from llx.agent.vllm.cpu_sampling import keep_generators
from llx.agent.vllm.kv_store import SWITCH_INTERVAL_S, VllmKvStore
from llx.agent.vllm.seeded import seeded_generator
from llx.core.model import MigrationId
from llx.errors import EngineError
from llx.specs import MigrationSpec


class LlxWorker:
    """Mixed into a vLLM worker: its names begin with ``llx_`` so that none collides."""

    model_runner: Any
    vllm_config: Any

    def llx_open_store(self) -> tuple[str, int, str]:
        """Make this rank's KV cache accessible: its layout, bytes per block, or why it is not."""
        try:
            store = VllmKvStore(
                self.model_runner,
                block_size=self.vllm_config.cache_config.block_size,
                tensor_parallel=self.vllm_config.parallel_config.tensor_parallel_size,
            )
        except EngineError as error:
            return "", 0, error.message
        self._llx_store = store
        keep_generators(self.model_runner)
        _wrap_runner(self.model_runner, store)
        return store.layout, store.block_bytes, ""

    def llx_kv_store(self) -> VllmKvStore:
        """The store itself, for a rank that lives in the core's process."""
        return self._llx_store

    def llx_start_rank(
        self, spec: bytes, bind_host: str, port_range: tuple[int, int] | None
    ) -> object:
        """Serve this rank's store to other ranks; what the transport says of how it is reached.

        Args:
            spec: A `MigrationSpec`, as msgpack.
            bind_host: Address to listen on.
            port_range: First and last port to listen on; None: as the system chooses.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        decoded = msgspec.msgpack.decode(spec, type=MigrationSpec)
        return serve_rank(self._llx_store, decoded, bind_host, port_range)


def _wrap_runner(runner: Any, store: VllmKvStore) -> None:
    """Have a V1 runner look at who arrives before it looks at a step, and follow its sampling.

    To it requests that arrive are preempted ones that are resumed, and those it expects to
    remember. The V2 runner is told everything by vLLM itself, and has no generators.
    """
    update: Callable[[Any], Any] | None = getattr(runner, "_update_states", None)
    if update is None:
        return
    sample: Callable[..., Any] = runner._sample

    def update_states(scheduler_output: Any) -> Any:
        store.begin_step(scheduler_output.num_scheduled_tokens)
        _seed(runner, store, getattr(scheduler_output, ATTRIBUTE, ()))
        return update(scheduler_output)

    def sample_to_the_end(*args: Any, **kwargs: Any) -> Any:
        try:
            return sample(*args, **kwargs)
        finally:
            store.end_step()

    runner._update_states = update_states
    runner._sample = sample_to_the_end


def _seed(runner: Any, store: VllmKvStore, arrivals: Iterable[Arrival]) -> None:
    for arrival in arrivals:
        generator_state = store.take_generator_state(MigrationId(arrival.migration))
        if arrival.is_gone:
            continue
        params = arrival.sampling_params
        generator = None
        if params.sampling_type == SamplingType.RANDOM_SEED:
            num_drawn = len(arrival.outputs) if generator_state is None else 0
            generator = seeded_generator(runner, params.seed, num_drawn)
            if generator_state is not None:
                generator.set_state(generator_state)
        state = CachedRequestState(
            req_id=arrival.request,
            prompt_token_ids=arrival.prompt,
            mm_features=arrival.mm_features,
            sampling_params=params,
            generator=generator,
            block_ids=tuple([] for _ in runner.kv_cache_config.kv_cache_groups),
            num_computed_tokens=0,
            output_token_ids=list(arrival.outputs),
            lora_request=arrival.lora_request,
        )
        runner.requests[arrival.request] = state
        if runner.uses_mrope:
            runner._init_mrope_positions(state)
