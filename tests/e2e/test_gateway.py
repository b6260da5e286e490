"""The running cluster from a client's side: the OpenAI API, spreading, cancelling, errors."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.rig import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.node]


@pytest.fixture
async def client(cluster):
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none") as it:
        yield it


@pytest.fixture
async def http(cluster):
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as it:
        yield it


def chat(**more):
    return {"model": "oracle", "messages": [{"role": "user", "content": "Hello"}]} | more


async def until(what, timeout_s=20.0):
    """Poll for a condition that another process brings about."""
    async with asyncio.timeout(timeout_s):
        while not (found := await what()):
            await asyncio.sleep(0.05)
    return found


async def test_chat_streams_and_answers_alike(client):
    options = chat(max_tokens=24, temperature=0)
    whole = await client.chat.completions.create(**options)
    pieces = [
        chunk.choices[0].delta.content or ""
        async for chunk in await client.chat.completions.create(**options, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 24


async def test_both_pools_are_served_by_one_gateway(client):
    models = [model.id async for model in client.models.list()]
    assert sorted(models) == ["oracle", "simulated"]
    answer = await client.completions.create(model="simulated", prompt="x", max_tokens=8)
    assert answer.usage.completion_tokens == 8


async def test_a_named_tool_call_is_forced(client):
    tool = {
        "type": "function",
        "function": {
            "name": "light",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"on": {"type": "boolean"}},
                "required": ["on"],
                "additionalProperties": False,
            },
        },
    }
    choice = {"type": "function", "function": {"name": "light"}}
    answer = await client.chat.completions.create(
        **chat(tools=[tool], tool_choice=choice, max_tokens=200, temperature=0)
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "light"
    if answer.choices[0].finish_reason != "length":
        assert set(json.loads(call.function.arguments)) == {"on"}


async def test_a_burst_spreads_over_both_instances(http):
    """None of them has ended before the last has come, on a machine of whatever speed.

    What an instance has yet to prefill counts before how many it runs: a report that comes in the
    middle of the burst may bring one of the two a request or two more.
    """

    async def one(number):
        body = {"model": "oracle", "prompt": f"p{number}", "max_tokens": 100, "ignore_eos": True}
        return (await http.post("/v1/completions", json=body)).headers["x-llx-instance"]

    served = await asyncio.gather(*(one(number) for number in range(16)))
    fewer, more = sorted((served.count("oracle-0"), served.count("oracle-1")))
    assert fewer + more == 16
    assert fewer >= 6, served


async def test_a_client_that_leaves_ends_its_request_on_the_engine(http, cluster):
    body = {
        "model": "oracle",
        "prompt": "x",
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": True,
    }
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        instance = answer.headers["x-llx-instance"]
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                break

    async def is_idle():
        status = await asyncio.to_thread(cluster.llx.json, "inst", "get", instance)
        return status["load"]["running"] == 0 and status["load"]["blocks_used"] == 0

    await until(is_idle)


async def test_ids_come_back_on_streams_and_errors(http):
    body = {"model": "oracle", "prompt": "x", "max_tokens": 2}
    answer = await http.post("/v1/completions", json=body, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert "abc-1" in answer.json()["id"]
    for wrong in ({"model": "nope"}, {"max_tokens": -1}, {"prompt": [1] * 5000}):
        answer = await http.post("/v1/completions", json=body | wrong)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["code"] == answer.status_code
        assert "x-llx-request-id" in answer.headers


async def test_metrics_name_instances_and_count_tokens(http):
    async def tokens():
        page = (await http.get("/metrics")).text
        return {
            line.split('engine="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
            for line in page.splitlines()
            if line.startswith("vllm:generation_tokens_total{")
        }

    before = await tokens()
    assert set(before) == {"oracle-0", "oracle-1", "simulated-0"}
    body = {"model": "simulated", "prompt": "x", "max_tokens": 25, "ignore_eos": True}
    await http.post("/v1/completions", json=body)

    async def counted():
        return (await tokens())["simulated-0"] - before["simulated-0"] == 25

    await until(counted)


async def test_requests_to_unlisted_paths_do_not_reach_vllm(http):
    for path in ("/collective_rpc", "/sleep", "/pause", "/v1/load_lora_adapter", "/invocations"):
        assert (await http.post(path, json={})).status_code == 404


def test_vllm_bench_serve_runs_unchanged(cluster, oracle, node_python, node_environment, tmp_path):
    """The `vllm` command needs a distribution of that name; the CPU build's is called otherwise."""
    program = (
        "from vllm.benchmarks.serve import add_cli_args, main;"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as P;"
        "p = P(); add_cli_args(p); main(p.parse_args())"
    )
    argv = [node_python, "-c", program, "--backend", "openai", "--base-url", cluster.url]
    argv += ["--model", "oracle", "--tokenizer", str(oracle), "--dataset-name", "random"]
    argv += ["--random-input-len", "16", "--random-output-len", "8", "--num-prompts", "12"]
    argv += ["--ignore-eos", "--save-result", "--result-dir", str(tmp_path)]
    argv += ["--result-filename", "result.json", "--disable-tqdm"]
    done = subprocess.run(argv, env=node_environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (12, 96)


def test_the_example_client_streams(cluster):
    script = str(ROOT / "examples/stream.py")
    done = subprocess.run(
        [sys.executable, script, "--url", f"{cluster.url}/v1", "--model", "oracle", "hello"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_threads_that_poll_for_nothing_stand_behind_the_rest(cluster):
    instances = cluster.llx.json("status")["instances"]
    pid = next(each["pid"] for each in instances if each["model"] == "oracle")
    tasks = Path(f"/proc/{pid}/task").iterdir()
    names = {int(task.name): (task / "comm").read_text().strip() for task in tasks}
    polling = [task for task, name in names.items() if name == "gloo_tcp_loop"]
    assert polling, f"PyTorch calls them otherwise now: {sorted(set(names.values()))}"
    assert {os.sched_getscheduler(task) for task in polling} == {os.SCHED_IDLE}
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER


def test_instances_keep_their_files_in_their_own_directories(cluster):
    instances = [i for i in cluster.llx.json("status")["instances"] if i["model"] == "oracle"]
    for each in instances:
        assert (cluster.directory / "procs" / each["name"] / "rendezvous").exists()
    began = min(each["started_at"] for each in instances)
    left = Path(tempfile.gettempdir()).glob("vllm_dist_*")
    assert [each for each in left if each.stat().st_mtime > began] == []
