"""Compares llx's mirror of vLLM's engine-core wire with the real one, both ways.

A plain script, run by the node environment's Python (`tests/e2e/test_codec.py` starts it). Exits
non-zero with the first difference.
"""

import sys

import msgspec
import numpy as np
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1 import engine as theirs
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult
from vllm.version import __version__ as vllm_version

from llx.agent import engine_codec as ours
from llx.pins import VLLM_VERSION


def check(name: str, is_right: bool, *evidence: object) -> None:
    if not is_right:
        print(f"{name}: differs", *evidence, sep="\n  ")
        sys.exit(1)
    print(f"{name}: ok")


def check_layouts() -> None:
    """Positional structs name the same fields in the same order with the same defaults."""
    for name in ("EngineCoreRequest", "EngineCoreOutput", "EngineCoreOutputs", "UtilityOutput"):
        mine, real = getattr(ours, name), getattr(theirs, name)
        check(
            f"{name} fields",
            mine.__struct_fields__ == real.__struct_fields__,
            mine.__struct_fields__,
            real.__struct_fields__,
        )
        defaults = [each for each in real.__struct_defaults__ if not callable(each)]
        expected = [each for each in mine.__struct_defaults__ if not callable(each)]
        check(f"{name} defaults", repr(defaults) == repr(expected), expected, defaults)
    real_fields = set(theirs.EngineCoreReadyResponse.__dataclass_fields__)
    check(
        "EngineCoreReadyResponse fields",
        set(ours.EngineCoreReadyResponse.__struct_fields__) == real_fields,
    )
    encoded = set(SamplingParams.__struct_encode_fields__)
    check("SamplingParams fields", set(ours.SamplingParams.__struct_encode_fields__) <= encoded)
    stats = set(SchedulerStats.__dataclass_fields__)
    check("SchedulerStats fields", set(ours.SchedulerStats.__struct_fields__) <= stats)
    check(
        "PrefillStats fields",
        ours.PrefillStats.__struct_fields__ == tuple(PrefillStats.__dataclass_fields__),
    )
    for mine, real in (
        (ours.FinishReason, theirs.FinishReason),
        (ours.EventType, theirs.EngineCoreEventType),
    ):
        check(
            f"{mine.__name__} values",
            {m.name: m.value for m in mine} == {m.name: m.value for m in real},
        )


def make_request(**changes: object) -> theirs.EngineCoreRequest:
    params = SamplingParams(
        max_tokens=33,
        min_tokens=2,
        seed=7,
        temperature=0.5,
        stop_token_ids=[9, 11],
        logprobs=3,
        output_kind=RequestOutputKind.DELTA,
        stop=["x"],
    )
    params.update_from_generation_config({"eos_token_id": [2, 5]}, 2)
    fields = {
        "request_id": "r-1",
        "prompt_token_ids": [1, 2, 3],
        "mm_features": None,
        "sampling_params": params,
        "pooling_params": None,
        "arrival_time": 12.5,
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
        "priority": 10,
        "external_req_id": "ext",
    }
    return theirs.EngineCoreRequest(**(fields | changes))


def check_requests() -> None:
    got = ours.decode_request(MsgpackEncoder().encode(make_request()))
    check(
        "request",
        (got.request_id, got.prompt_token_ids, got.arrival_time, got.priority, got.external_req_id)
        == ("r-1", [1, 2, 3], 12.5, 10, "ext"),
        got,
    )
    params = got.sampling_params
    check(
        "sampling params",
        params is not None
        and (
            params.max_tokens,
            params.min_tokens,
            params.seed,
            sorted(params.stop_token_ids or ()),
            params.logprobs,
            params.eos_token_id,
            sorted(params.all_stop_token_ids),
            params.structured_outputs,
            params.output_kind,
        )
        == (33, 2, 7, [5, 9, 11], 3, 2, [2, 5, 9, 11], None, 1),
        params,
    )
    structured = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    got = ours.decode_request(MsgpackEncoder().encode(make_request(sampling_params=structured)))
    check(
        "structured output is seen",
        got.sampling_params is not None and got.sampling_params.structured_outputs is not None,
        got,
    )

    mine = ours.EngineCoreRequest(
        "r-2",
        [4, 5],
        None,
        ours.SamplingParams(
            temperature=0.0,
            max_tokens=5,
            eos_token_id=2,
            all_stop_token_ids=[2],
            logprobs=1,
            output_kind=1,
        ),
        None,
        3.5,
        None,
        None,
        None,
        priority=20,
        external_req_id="e",
    )
    real = MsgpackDecoder(theirs.EngineCoreRequest).decode([ours.encode(mine)])
    check(
        "request to vLLM",
        (
            real.request_id,
            real.prompt_token_ids,
            real.priority,
            real.sampling_params.max_tokens,
            real.sampling_params.eos_token_id,
            real.sampling_params.all_stop_token_ids,
            real.sampling_params.output_kind,
        )
        == ("r-2", [4, 5], 20, 5, 2, {2}, RequestOutputKind.DELTA),
        real,
    )


def check_outputs() -> None:
    mine = ours.EngineCoreOutputs(
        outputs=[
            ours.EngineCoreOutput(
                "r-1",
                [42],
                new_logprobs=ours.encode_logprobs([42, 42, 7], [-0.5, -0.5, -1.5], 1),
                events=[
                    ours.EngineCoreEvent(ours.EventType.QUEUED, 1.0),
                    ours.EngineCoreEvent(ours.EventType.SCHEDULED, 2.0),
                ],
                prefill_stats=ours.PrefillStats(3, 3),
            ),
            ours.EngineCoreOutput("r-2", [], finish_reason=ours.FinishReason.ABORT),
            ours.EngineCoreOutput("r-3", [9], finish_reason=ours.FinishReason.STOP, stop_reason=9),
        ],
        scheduler_stats=ours.SchedulerStats(2, 1, 7, 0.25),
        timestamp=5.0,
    )
    real = MsgpackDecoder(theirs.EngineCoreOutputs).decode([ours.encode(mine)])
    first, second, third = real.outputs
    check(
        "outputs to vLLM",
        (
            first.request_id,
            first.new_token_ids,
            first.prefill_stats,
            [e.type.name for e in first.events],
            second.finish_reason,
            third.stop_reason,
            real.timestamp,
        )
        == (
            "r-1",
            [42],
            PrefillStats(3, 3),
            ["QUEUED", "SCHEDULED"],
            theirs.FinishReason.ABORT,
            9,
            5.0,
        ),
        real,
    )
    logprobs = first.new_logprobs
    check(
        "logprobs to vLLM",
        isinstance(logprobs, LogprobsLists)
        and logprobs.logprob_token_ids.tolist() == [[42, 42, 7]]
        and logprobs.logprobs.tolist() == [[-0.5, -0.5, -1.5]]
        and logprobs.sampled_token_ranks.tolist() == [1],
        logprobs,
    )
    stats = real.scheduler_stats
    check(
        "stats to vLLM",
        (stats.num_running_reqs, stats.num_waiting_reqs, stats.step_counter, stats.kv_cache_usage)
        == (2, 1, 7, 0.25)
        and stats.prefix_cache_stats.requests == 0,
        stats,
    )

    wide = LogprobsLists(
        np.arange(100, dtype=np.int32).reshape(1, 100),
        np.zeros((1, 100), np.float32),
        np.array([1], np.int32),
    )
    frames = MsgpackEncoder().encode(
        theirs.EngineCoreOutputs(
            outputs=[
                theirs.EngineCoreOutput(
                    "r", [0], new_logprobs=wide, finish_reason=theirs.FinishReason.LENGTH
                )
            ],
            scheduler_stats=SchedulerStats(num_running_reqs=3),
            timestamp=1.5,
        )
    )
    got = ours.decode_outputs(frames)
    ids, values, ranks = ours.decode_logprobs(got.outputs[0].new_logprobs, frames)
    check(
        "outputs from vLLM",
        len(frames) > 1
        and ids == list(range(100))
        and values == [0.0] * 100
        and ranks == [1]
        and got.outputs[0].finish_reason is ours.FinishReason.LENGTH
        and got.scheduler_stats is not None
        and got.scheduler_stats.num_running_reqs == 3,
        got,
    )


def check_the_rest() -> None:
    mine = ours.EngineCoreOutputs(utility_output=ours.UtilityOutput(7, None, (None, ["generate"])))
    real = MsgpackDecoder(theirs.EngineCoreOutputs).decode([ours.encode(mine)])
    check(
        "utility to vLLM",
        real.utility_output.call_id == 7 and real.utility_output.result.result == ["generate"],
        real,
    )
    frames = MsgpackEncoder().encode(
        theirs.EngineCoreOutputs(utility_output=theirs.UtilityOutput(8, None, UtilityResult(True)))
    )
    got = ours.decode_outputs(frames).utility_output
    check("utility from vLLM", got is not None and (got.call_id, got.result) == (8, (None, True)))
    ready = ours.EngineCoreReadyResponse(
        4096, 100, 16, None, "bfloat16", VLLM_VERSION, 1, 1, 1, 1, 1, 0, 8, 512, "i", False, 0
    )
    real_ready = msgspec.msgpack.decode(ours.encode(ready), type=theirs.EngineCoreReadyResponse)
    check("ready to vLLM", (real_ready.max_model_len, real_ready.num_gpu_blocks) == (4096, 100))
    again = msgspec.msgpack.decode(
        msgspec.msgpack.encode(real_ready), type=ours.EngineCoreReadyResponse
    )
    check("ready from vLLM", again == ready, again)


if __name__ == "__main__":
    check("version", vllm_version == VLLM_VERSION, vllm_version)
    check_layouts()
    check_requests()
    check_outputs()
    check_the_rest()
