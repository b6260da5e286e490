"""The pinned vLLM's wire layout between its front end and an engine core, without importing vLLM.

Mirrors, field by field and in order, of the structs in ``vllm/v1/engine/__init__.py``,
``vllm/sampling_params.py`` and ``vllm/v1/metrics/stats.py`` of `llx.pins.VLLM_VERSION`. Array-like
structs are positional: an inserted field upstream breaks them silently, so
``tests/e2e/check_codec.py`` compares both sides with the real one. Fields that the simulated engine
neither reads nor writes are ``Any``, and stay what they were on the wire.
"""

import struct
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypeVar

import msgspec

from llx.errors import WireError
from llx.ports import Frame

T = TypeVar("T")

_RAW_VIEW = 3
"""``CUSTOM_TYPE_RAW_VIEW`` of vLLM's ``serial_utils``: bytes of an array, inline."""


class FinishReason(IntEnum):
    """Why a request finished."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4


class EventType(IntEnum):
    """What happened to a request in the engine."""

    QUEUED = 1
    SCHEDULED = 2
    PREEMPTED = 3


class SamplingParams(msgspec.Struct, omit_defaults=True, gc=False):
    """The part of vLLM's sampling parameters that the simulated engine heeds or must refuse."""

    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: Any = None
    logprob_token_ids: list[int] | None = None
    output_kind: int = 0
    eos_token_id: int | None = msgspec.field(default=None, name="_eos_token_id")
    all_stop_token_ids: list[int] = msgspec.field(default_factory=list, name="_all_stop_token_ids")
    structured_outputs: Any = None


class EngineCoreRequest(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """An ADD's payload."""

    request_id: str
    prompt_token_ids: list[int] | None
    mm_features: Any
    sampling_params: SamplingParams | None
    pooling_params: Any
    arrival_time: float
    lora_request: Any
    cache_salt: str | None
    data_parallel_rank: int | None
    prompt_embeds: Any = None
    prompt_is_token_ids: Any = None
    client_index: int = 0
    current_wave: int = 0
    priority: int = 0
    trace_headers: Any = None
    resumable: bool = False
    external_req_id: str | None = None
    reasoning_ended: bool | None = None
    reasoning_parser_kwargs: Any = None
    abort_immediately: bool = False
    session_id: str | None = None
    kv_hints: Any = None


class EngineCoreEvent(msgspec.Struct):
    """Something that happened to a request, at a time of this machine's monotonic clock."""

    type: EventType
    timestamp: float


class PrefillStats(msgspec.Struct):
    """How a prompt was computed; goes with a request's first output."""

    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_local_cached_tokens: int = 0
    num_external_cached_tokens: int = 0
    num_cache_creation_tokens: int = 0


class SchedulerStats(msgspec.Struct, omit_defaults=True):
    """The engine's state as vLLM's metrics see it."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    step_counter: int = 0
    kv_cache_usage: float = 0.0


class EngineCoreOutput(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """One request's part of a step."""

    request_id: str
    new_token_ids: list[int]
    new_logprobs: Any = None
    new_prompt_logprobs_tensors: Any = None
    pooling_output: Any = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    events: list[EngineCoreEvent] | None = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    trace_headers: Any = None
    prefill_stats: PrefillStats | None = None
    routed_experts: Any = None
    num_nans_in_logits: int = 0
    mm_cache_miss_hashes: list[str] | None = None
    new_sampling_mask: Any = None
    spec_decode_metrics: Any = None
    prompt_token_id_logprobs: Any = None


class UtilityOutput(msgspec.Struct, array_like=True, gc=False):
    """A utility's result. `result` is (type information, value); the first is None here."""

    call_id: int
    failure_message: str | None = None
    result: tuple[None, Any] | None = None


class EngineCoreOutputs(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A step's outputs to one front end."""

    engine_index: int = 0
    outputs: list[EngineCoreOutput] = []
    scheduler_stats: SchedulerStats | None = None
    timestamp: float = 0.0
    utility_output: UtilityOutput | None = None
    finished_requests: list[str] | None = None
    wave_complete: int | None = None
    start_wave: int | None = None
    weight_version: str | None = None

    def __post_init__(self) -> None:
        if self.timestamp == 0.0:
            self.timestamp = time.monotonic()


class EngineCoreReadyResponse(msgspec.Struct):
    """What an engine tells a front end once it is up."""

    max_model_len: int
    num_gpu_blocks: int
    block_size: int
    dp_stats_address: str | None
    dtype: str
    vllm_version: str
    world_size: int
    data_parallel_size: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    decode_context_parallel_size: int
    data_parallel_rank: int
    max_num_seqs: int
    max_num_batched_tokens: int
    instance_id: str
    supports_lora: bool
    max_loras: int
    mamba_block_size: int | None = None
    kv_cache_size_tokens: int | None = None
    kv_cache_max_concurrency: float | None = None
    kv_events_config: Any = None
    weight_transfer_backend: str | None = None
    enable_sleep_mode: bool = False
    supports_draft_weight_updates: bool = False
    effective_attention_block_size: int | None = None


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(EngineCoreRequest)
_outputs_decoder = msgspec.msgpack.Decoder(EngineCoreOutputs)
_arguments_decoder = msgspec.msgpack.Decoder(list[Any])


def encode(value: object) -> bytes:
    """The first and only frame of a request, of outputs, of a result or of arguments."""
    return _encoder.encode(value)


def decode_request(payload: Sequence[Frame]) -> EngineCoreRequest:
    """The request of an ADD. Frames after the first hold tensors, which nothing here reads.

    Raises:
        WireError: It is not one of the pinned vLLM.
    """
    return _decode(_request_decoder, payload)


def decode_outputs(payload: Sequence[Frame]) -> EngineCoreOutputs:
    """The outputs of a step, from either engine.

    Raises:
        WireError: They are not of the pinned vLLM.
    """
    return _decode(_outputs_decoder, payload)


def decode_arguments(payload: Sequence[Frame]) -> list[Any]:
    """The arguments of a utility call.

    Raises:
        WireError: They are not an array.
    """
    return _decode(_arguments_decoder, payload)


def event(kind: EventType) -> EngineCoreEvent:
    """Something that happens to a request now."""
    return EngineCoreEvent(kind, time.monotonic())


def encode_logprobs(token_ids: Sequence[int], logprobs: Sequence[float], rank: int) -> Any:
    """Encode as vLLM's ``LogprobsLists`` one token: the sampled token first, then the top ones.

    Arrays of token ids [1, n], of logprobs [1, n], and of the sampled token's rank [1].
    """
    shape = (1, len(token_ids))
    return (
        ("<i4", shape, _raw("i", token_ids)),
        ("<f4", shape, _raw("f", logprobs)),
        ("<i4", (1,), _raw("i", [rank])),
        None,
    )


def decode_logprobs(
    value: Any, payload: Sequence[Frame]
) -> tuple[list[int], list[float], list[int]]:
    """An output's ``new_logprobs``: token ids, logprobs and ranks, each flattened.

    Args:
        value: The field.
        payload: The message's frames; vLLM sends large arrays in frames of their own.
    """
    token_ids, logprobs, ranks = (_numbers(array, payload) for array in value[:3])
    return token_ids, logprobs, ranks


def _raw(code: str, numbers: Sequence[float]) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_RAW_VIEW, struct.pack(f"<{len(numbers)}{code}", *numbers))


def _numbers(array: Any, payload: Sequence[Frame]) -> list[Any]:
    dtype, _shape, data = array
    code = {"<i4": "i", "<i8": "q", "<f4": "f", "<f8": "d"}[dtype]
    raw = bytes(payload[data] if isinstance(data, int) else data.data)
    return list(struct.unpack(f"<{len(raw) // int(dtype[2:])}{code}", raw))


def _decode(decoder: "msgspec.msgpack.Decoder[T]", payload: Sequence[Frame]) -> T:
    if not payload:
        raise WireError("a message without the engine's payload")
    try:
        return decoder.decode(payload[0])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a payload of the pinned vLLM: {error}") from None
