"""Output through the gateway equals vLLM offline, token for token."""

import asyncio
import json
import random
import subprocess

import openai
import pytest

from tests.e2e.rig import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}
rng = random.Random(3)


def prompt(length):
    return [rng.randrange(3, 540) for _ in range(length)]


GREEDY = {"temperature": 0, "max_tokens": 64, "ignore_eos": True}
CASES = {
    "short": {"prompt": prompt(5), "params": GREEDY},
    "medium": {"prompt": prompt(70), "params": GREEDY},
    "long": {"prompt": prompt(700), "params": GREEDY},
    "stop string": {"prompt": prompt(20), "params": {**GREEDY, "stop": ["e"]}},
    "stop token": {"prompt": prompt(21), "params": {**GREEDY, "stop_token_ids": [260, 270, 280]}},
    "eos": {"prompt": prompt(9), "params": {"temperature": 0, "max_tokens": 200}},
    "logprobs": {"prompt": prompt(30), "params": {**GREEDY, "max_tokens": 16, "logprobs": 3}},
    "n=2": {
        "prompt": prompt(12),
        "params": {"temperature": 0.9, "seed": 7, "n": 2, "max_tokens": 32, "ignore_eos": True},
    },
    "penalties": {
        "prompt": prompt(40),
        "params": {**GREEDY, "presence_penalty": 0.8, "frequency_penalty": 0.5, "min_tokens": 10},
    },
    "json schema": {
        "prompt": prompt(15),
        "params": {**GREEDY, "ignore_eos": False},
        "schema": SCHEMA,
    },
}


@pytest.fixture(scope="module")
def reference(oracle, cluster, node_python, node_environment):
    """vLLM offline, run once over all cases."""
    script = str(ROOT / "tests/e2e/offline.py")
    done = subprocess.run(
        [node_python, script, str(oracle)],
        input=json.dumps(list(CASES.values())), env=node_environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def body_of(case):
    params = dict(case["params"])
    known = {"temperature", "max_tokens", "stop", "seed", "n", "logprobs", "presence_penalty",
             "frequency_penalty"}  # fmt: skip
    extra = {key: params.pop(key) for key in list(params) if key not in known}
    extra["return_token_ids"] = True
    if "schema" in case:
        extra["structured_outputs"] = {"json": case["schema"]}
    return {"model": "oracle", "prompt": case["prompt"], **params, "extra_body": extra}


def choices_of(answer):
    return [
        {
            "token_ids": choice.token_ids,
            "text": choice.text,
            "finish_reason": choice.finish_reason,
            "logprobs": choice.logprobs and choice.logprobs.token_logprobs,
        }
        for choice in answer.choices
    ]


@pytest.mark.parametrize("name", CASES)
async def test_the_gateway_says_what_vllm_says(name, cluster, reference):
    """Each case six times at once, so that both instances answer it, in a batch."""
    case = CASES[name]
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none") as client:
        raw = await asyncio.gather(
            *(client.completions.with_raw_response.create(**body_of(case)) for _ in range(6))
        )
    served = {each.headers["x-llx-instance"] for each in raw}
    assert set(",".join(served).split(",")) == {"oracle-0", "oracle-1"}
    expected = reference[name]
    for each in raw:
        got = choices_of(each.parse())
        for mine, theirs in zip(got, expected, strict=True):
            assert mine["token_ids"] == theirs["token_ids"]
            assert (mine["text"], mine["finish_reason"]) == (
                theirs["text"],
                theirs["finish_reason"],
            )
            if theirs["logprobs"]:
                assert mine["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-3)
    if "schema" in case and expected[0]["finish_reason"] == "stop":
        json.loads(expected[0]["text"])


async def test_a_stream_is_the_whole_answer_in_pieces(cluster, reference):
    case = CASES["medium"]
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none") as client:
        stream = await client.completions.create(
            **body_of(case), stream=True, stream_options={"include_usage": True}
        )
        text, ids, usage = "", [], None
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.text
                ids += choice.token_ids or []
            usage = chunk.usage or usage
    expected = reference["medium"][0]
    assert (text, ids) == (expected["text"], expected["token_ids"])
    assert (usage.prompt_tokens, usage.completion_tokens) == (70, 64)
