"""The mirror of vLLM's wire; `tests/e2e/test_codec.py` compares it with the real one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.agent.engine_codec import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EventType,
    FinishReason,
    SamplingParams,
    decode_arguments,
    decode_logprobs,
    decode_outputs,
    decode_request,
    encode,
    encode_logprobs,
)
from llx.errors import WireError


def make_request() -> EngineCoreRequest:
    params = SamplingParams(max_tokens=5, eos_token_id=2, all_stop_token_ids=[2, 3])
    return EngineCoreRequest(
        "r", [1, 2], None, params, None, 1.5, None, None, None, priority=4, external_req_id="x"
    )


def test_requests_survive_the_wire() -> None:
    assert decode_request([encode(make_request())]) == make_request()


def test_private_names_are_those_of_vllm() -> None:
    plain = msgspec.msgpack.decode(encode(make_request()))
    assert plain[3] == {"max_tokens": 5, "_eos_token_id": 2, "_all_stop_token_ids": [2, 3]}


def test_every_position_is_on_the_wire() -> None:
    plain = msgspec.msgpack.decode(encode(EngineCoreOutput("r", [7])))
    assert plain[:3] == ["r", [7], None]
    assert len(plain) == len(EngineCoreOutput.__struct_fields__)


def test_a_shorter_or_longer_array_of_a_sibling_version_still_reads() -> None:
    short = msgspec.msgpack.encode(["r", [7]])
    assert decode_outputs([msgspec.msgpack.encode([0, [["r", [7]]]])]).outputs[0].request_id == "r"
    assert msgspec.msgpack.decode(short, type=EngineCoreOutput).finish_reason is None


def test_outputs_get_the_time_unless_they_have_one() -> None:
    assert EngineCoreOutputs().timestamp > 0
    assert decode_outputs([encode(EngineCoreOutputs(timestamp=3.5))]).timestamp == 3.5


def test_finish_and_events_are_integers_on_the_wire() -> None:
    output = EngineCoreOutput("r", [], finish_reason=FinishReason.ABORT)
    assert msgspec.msgpack.decode(encode(output))[5] == 2
    assert EventType.PREEMPTED == 3


@given(
    token_ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40),
    rank=st.integers(1, 99),
)
def test_logprobs_survive_the_wire(token_ids: list[int], rank: int) -> None:
    values = [-0.5 * k for k in range(len(token_ids))]
    output = EngineCoreOutput("r", [1], new_logprobs=encode_logprobs(token_ids, values, rank))
    frames = [encode(EngineCoreOutputs(outputs=[output]))]
    new_logprobs = decode_outputs(frames).outputs[0].new_logprobs
    assert decode_logprobs(new_logprobs, frames) == (token_ids, values, [rank])


def test_large_arrays_come_in_frames_of_their_own() -> None:
    frames = [b"", b"\x05\x00\x00\x00", b"\x00\x00\x80?", b"\x01\x00\x00\x00\x00\x00\x00\x00"]
    value = [["<i4", [1, 1], 1], ["<f4", [1, 1], 2], ["<i8", [1], 3], None]
    assert decode_logprobs(value, frames) == ([5], [1.0], [1])


@given(st.binary(max_size=200))
def test_noise_is_a_wire_error_or_a_value(noise: bytes) -> None:
    for decode in (decode_request, decode_outputs, decode_arguments):
        try:
            decode([noise])
        except WireError:
            continue


@pytest.mark.parametrize("payload", [[], [b""], [b"\xc1"], [encode(["r"])], [encode({"a": 1})]])
def test_what_is_no_request_is_refused(payload: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode_request(payload)
