"""A request of the simulated engine: how it is read, and what its front end is owed meanwhile."""

import math
from dataclasses import dataclass, field

from llx.agent.engine_codec import (
    EngineCoreEvent,
    EngineCoreRequest,
    PrefillStats,
    SamplingParams,
)
from llx.core.engine_state import EngineRequest
from llx.core.model import Nanos, RequestId
from llx.core.token_model import Vocabulary


@dataclass(frozen=True, slots=True)
class SimRequest:
    """A request that the simulated engine can serve.

    `num_logprobs`: runners-up to report with each token; None without logprobs.
    """

    asked: EngineRequest
    num_logprobs: int | None


@dataclass(slots=True)
class Live:
    """A request under way: whose it is, how it was asked for, what is still to be told of it."""

    peer: int
    name: str = ""
    payload: tuple[bytes, ...] = ()
    """The frames of its ADD, for the instance that it may move to."""
    num_logprobs: int | None = None
    prefill_stats: PrefillStats | None = field(default_factory=PrefillStats)
    """None once the first output has left, here or elsewhere."""
    events: list[EngineCoreEvent] = field(default_factory=list)


def read_request(
    message: EngineCoreRequest, *, max_model_len: int, vocabulary: Vocabulary
) -> SimRequest | str:
    """The request as the engine model takes it; a string says why it is refused."""
    params = message.sampling_params
    prompt = message.prompt_token_ids
    if params is None or not prompt:
        return "the simulated engine generates text from token ids, and nothing else"
    if refusal := _unsupported(message, params) or _out_of_range(params, vocabulary):
        return refusal
    if not math.isfinite(message.arrival_time):
        return "the arrival time is no time"
    if len(prompt) >= max_model_len:
        return f"a prompt of {len(prompt)} tokens leaves no room in {max_model_len}"
    room = max_model_len - len(prompt)
    asked = EngineRequest(
        request=RequestId(message.request_id),
        prompt=tuple(prompt),
        max_tokens=room if params.max_tokens is None else params.max_tokens,
        arrival=Nanos(int(message.arrival_time * 1e9)),
        priority=message.priority,
        min_tokens=params.min_tokens,
        eos_token=params.eos_token_id,
        stop_tokens=frozenset(params.stop_token_ids or ()),
        banned_early=frozenset(params.all_stop_token_ids),
        seed=params.seed or 0,
    )
    return SimRequest(asked, params.logprobs)


def _unsupported(message: EngineCoreRequest, params: SamplingParams) -> str:
    wanted = {
        "images or other media": message.mm_features,
        "pooling": message.pooling_params is not None,
        "LoRA": message.lora_request is not None,
        "prompt embeddings": message.prompt_embeds is not None,
        "resumable input": message.resumable,
        "structured output": params.structured_outputs is not None,
        "prompt logprobs": params.prompt_logprobs is not None,
        "logprobs of chosen tokens": params.logprob_token_ids is not None,
        "scores of prompt rows": params.prompt_logprob_token_ids is not None,
    }
    names = [name for name, is_wanted in wanted.items() if is_wanted]
    return f"the simulated engine has no {', '.join(names)}" if names else ""


def _out_of_range(params: SamplingParams, vocabulary: Vocabulary) -> str:
    if params.max_tokens is not None and params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}"
    if params.logprobs is not None and not 0 <= params.logprobs < len(vocabulary):
        return f"logprobs of {params.logprobs} tokens (0 to {len(vocabulary) - 1} here)"
    return ""
