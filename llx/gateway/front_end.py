"""vLLM's front end for one pool: its configuration, `AsyncLLM` and OpenAI application.

Built in two steps. `prepare` does what needs no instance (imports, model configuration); `open`
runs once the first instance is there, because only an engine knows its final `max_model_len` and
block size, and vLLM's front end takes these in at construction.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import vllm.v1.engine.async_llm as async_llm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreReadyResponse
from vllm.v1.executor import Executor

from llx.agent.vllm.arguments import front_end_argv
from llx.core.model import PoolName
from llx.gateway import unreadable
from llx.gateway.engine_client import PoolClient
from llx.gateway.metrics import PoolMetrics
from llx.gateway.placement import Placement
from llx.gateway.roster import Roster
from llx.specs import PoolSpec

log = logging.getLogger(__name__)

_SPARE_SLOTS = 8
_construction = threading.Lock()


class FrontEnd:
    """One pool of a gateway."""

    def __init__(self, spec: PoolSpec, placement: Placement) -> None:
        self.spec = spec
        self._placement = placement
        num_slots = spec.max_instances + _SPARE_SLOTS
        self.roster = Roster(num_slots)
        self.metrics = PoolMetrics(spec.name, self.roster.slot_names)
        self.app: Any = None
        self.client: PoolClient | None = None
        self._num_slots = num_slots
        self._stack = AsyncExitStack()
        self._llm: Any = None
        self._building = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the application can serve."""
        return self.app is not None

    def prepare(self) -> None:
        """Parse arguments and build the model configuration; blocking.

        Raises:
            SystemExit: vLLM's parser refused an argument; it has said why on standard error.
            Exception: Whatever vLLM says of the model or its arguments.
        """
        parser = make_arg_parser(FlexibleArgumentParser(prog=f"model {self.spec.name}"))
        self._args = parser.parse_args(front_end_argv(self.spec))
        validate_parsed_serve_args(self._args)
        validate_api_server_args(self._args)
        engine_args = AsyncEngineArgs.from_cli_args(self._args)
        self._config = engine_args.create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER
        )

    async def open(self, engine_ready: bytes) -> None:
        """Build the front end from the first instance's ready message.

        Raises:
            Exception: Whatever vLLM says; nothing of the attempt is left, it may be made again.
        """
        assert not self.is_open, "a front end is opened once"
        async with self._building:
            try:
                await self._open(engine_ready)
            except BaseException:
                self.client = None
                await self._end()
                raise

    async def _open(self, engine_ready: bytes) -> None:
        self._take_in(msgspec.msgpack.decode(engine_ready, type=EngineCoreReadyResponse))
        self._llm = await asyncio.to_thread(self._build)
        self.client = self._llm.engine_core
        tasks = await self._llm.get_supported_tasks()
        app = build_app(self._args, tasks, self._llm.model_config)
        unreadable.answer_them(app)
        await init_app_state(self._llm, app.state, self._args, tasks)
        await self._stack.enter_async_context(app.router.lifespan_context(app))
        self.app = app
        log.info("front_end.open model=%s tasks=%s", self.spec.name, ",".join(tasks))

    async def close(self) -> None:
        """End vLLM's background work; what is being opened is let finish first."""
        async with self._building:
            await self._end()

    async def _end(self) -> None:
        await self._stack.aclose()
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()

    def _take_in(self, ready: EngineCoreReadyResponse) -> None:
        """What vLLM's own client takes from a ready message, for one engine."""
        model, cache = self._config.model_config, self._config.cache_config
        model.max_model_len = min(model.max_model_len, ready.max_model_len)
        cache.num_gpu_blocks = ready.num_gpu_blocks
        cache.block_size = ready.block_size
        cache.mamba_block_size = ready.mamba_block_size
        cache.effective_attention_block_size = ready.effective_attention_block_size
        cache.kv_cache_size_tokens = ready.kv_cache_size_tokens
        cache.kv_cache_max_concurrency = ready.kv_cache_max_concurrency

    def _build(self) -> Any:
        with _construction, _client_factory(self._make_client):
            try:
                return async_llm.AsyncLLM(
                    self._config,
                    Executor.get_class(self._config),
                    log_stats=not self._args.disable_log_stats,
                    usage_context=UsageContext.OPENAI_API_SERVER,
                    log_requests=self._args.enable_log_requests,
                )
            finally:  # also what a failed attempt has registered
                self.metrics.adopt()

    def _make_client(self, vllm_config: Any, log_stats: bool, renderer: Any) -> PoolClient:
        return PoolClient(
            vllm_config,
            log_stats,
            renderer,
            pool=PoolName(self.spec.key),
            roster=self.roster,
            placement=self._placement,
            num_slots=self._num_slots,
        )


@contextlib.contextmanager
def _client_factory(make: Callable[[Any, bool, Any], PoolClient]) -> Iterator[None]:
    """Have the `AsyncLLM` built inside use our client: it looks its factory up by module name."""

    class Factory:
        @staticmethod
        def make_async_mp_client(
            *, vllm_config: Any, log_stats: bool, renderer: Any = None, **_: Any
        ) -> PoolClient:
            return make(vllm_config, log_stats, renderer)

    original = async_llm.EngineCoreClient
    async_llm.EngineCoreClient = Factory
    try:
        yield
    finally:
        async_llm.EngineCoreClient = original
