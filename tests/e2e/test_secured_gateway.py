"""A gateway with TLS and an API key, on simulated engines: who gets in, and what it makes of noise.

One cluster for the file. Its certificate is the operator's, so that it can be renewed; that of
llx's own making is in tests/bootstrap/test_gateway_tls.py and tests/hosts.
"""

import json
import os
import ssl
import subprocess
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llx.bootstrap.gateway_tls import made_here
from tests.e2e.rig import Cluster, cluster_up

pytestmark = [pytest.mark.e2e, pytest.mark.node]

KEY = "sesame-" + "5" * 20
ANSWER_S = 20.0
MOST_TOKENS = 16


def lay_out(folder: Path) -> None:
    """Another certificate of the operator's."""
    text = made_here("127.0.0.1", "").reveal()
    chain, begin, key = text.partition("-----BEGIN PRIVATE KEY-----")
    (folder / "llm.pem").write_text(chain)
    (folder / "llm.key").touch(mode=0o600)
    (folder / "llm.key").write_text(begin + key)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, oracle) -> Cluster:
    home = tmp_path_factory.mktemp("secured")
    lay_out(home)
    (home / "key").write_text(KEY)
    model = {
        "name": "m", "model": str(oracle), "engine": "sim", "instances": 2,
        "engine_args": {"max_model_len": 2048}, "sim": {"step_base_ms": 5.0},
    }  # fmt: skip
    gateway = {
        "tls": {"certificate": "./llm.pem", "key": "./llm.key"},
        "api_keys": [{"tenant": "t", "key_file": "./key"}],
    }
    wanted = {"models": [model], "gateway": gateway, "runtime": {"platform": "cpu"}}
    os.environ["LLX_API_KEY"] = KEY
    try:
        with cluster_up(home, wanted) as cluster:
            yield cluster
    finally:
        del os.environ["LLX_API_KEY"]


def client_of(cluster: Cluster) -> httpx.Client:
    """Trusts what the operator's file says."""
    context = ssl.create_default_context(cafile=str(cluster.llx.home / "llm.pem"))
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.Client(
        base_url=cluster.url, verify=context, headers=headers, timeout=ANSWER_S, trust_env=False
    )


def curl(cluster: Cluster, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["curl", "-sS", "-m", "10", *words], capture_output=True, text=True, cwd=cluster.llx.home
    )


def test_it_speaks_tls_alone_and_llxs_own_clients_verify_it(cluster):
    models = f"{cluster.url}/v1/models"
    trusted = ("--cacert", "llm.pem", models)
    assert '"m"' in curl(cluster, *trusted, "-H", f"Authorization: Bearer {KEY}").stdout
    assert "unknown API key" in curl(cluster, *trusted).stdout
    assert "certificate" in curl(cluster, models).stderr
    assert curl(cluster, models.replace("https:", "http:")).returncode != 0
    assert curl(cluster, *trusted, "--tls-max", "1.1").returncode != 0
    llx = cluster.llx
    for words in (["generate", "Hello", "--max-tokens", "3"], ["doctor"]):
        done = llx(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    done = llx("generate", "Hello", "--url", cluster.url)
    assert done.returncode == 3, done.stderr
    assert "is not trusted" in done.stderr
    assert "SSL_CERT_FILE" in done.stderr
    assert "days left" in llx("status").stdout


def test_bench_and_chaos_verify_it_too(cluster, tmp_path):
    scenario = tmp_path / "bench.yaml"
    scenario.write_text(BENCH)
    done = cluster.llx("bench", "run", str(scenario), "--out", str(tmp_path / "out"), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    done = cluster.llx("chaos", "kill", "instance", "-y", "-o", "json")
    assert done.returncode == 0, (done.stdout, done.stderr)


BENCH = """
name: tls
warmup: 0
workload:
  requests: 4
  arrivals: {rate: 20}
  lengths: {prompt: 8, output: 4}
variants: [{name: only}]
"""


def taken_up(cluster: Cluster, former: str) -> dict:
    """The gateway's status, once it shows another certificate than the former."""
    deadline = time.monotonic() + ANSWER_S
    while (now := cluster.llx.json("status")["gateways"][0])["certificate"] == former:
        assert time.monotonic() < deadline, "it shows the former certificate still"
        time.sleep(0.2)
    return now


def test_up_renews_the_certificate_under_a_stream(cluster):
    former = cluster.llx.json("status")["gateways"][0]
    body = {"model": "m", "prompt": "on and on", "max_tokens": 1000, "stream": True,
            "ignore_eos": True}  # fmt: skip
    with client_of(cluster) as client, client.stream("POST", "/v1/completions", json=body) as open_:
        lines = (line for line in open_.iter_lines() if line)
        first = next(lines)
        lay_out(cluster.llx.home)
        done = cluster.llx("up", "-y", str(cluster.config))
        assert done.returncode == 0, done.stderr
        now = taken_up(cluster, former["certificate"])
        rest = list(lines)
    assert first.startswith("data: ")
    assert rest[-1] == "data: [DONE]"
    assert (now["pid"], now["restarts"]) == (former["pid"], former["restarts"])
    assert cluster.llx("generate", "Hello", "--max-tokens", "1").returncode == 0
    with client_of(cluster) as client:
        assert client.get("/v1/models").status_code == 200


def test_a_certificate_that_cannot_be_used_changes_nothing(cluster):
    key = cluster.llx.home / "llm.key"
    key.chmod(0o644)
    try:
        done = cluster.llx("up", "-y", str(cluster.config))
    finally:
        key.chmod(0o600)
    assert done.returncode != 0
    assert f"gateway.tls.key: {key} can be read or written by others" in done.stderr
    assert "chmod 600" in done.stderr


# ---------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message", "role": "assistant", "id": "", "status": "completed", "content": []},
        {"type": "message", "role": "assistant", "id": "", "status": "completed",
         "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "custom_tool_call_output"},
        {"type": "custom_tool_call", "input": "x"},
    ],
)  # fmt: skip
def test_what_vllm_stumbles_over_is_the_requests_fault(cluster, item):
    body = {"model": "m", "input": [{"role": "user", "content": "Hello"}, item]}
    with client_of(cluster) as client:
        answer = client.post("/v1/responses", json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == 400
        assert "x-llx-request-id" in answer.headers


def short(body: dict) -> dict:
    """With an answer that ends before anybody takes it for hanging: a beam search asks anew for
    each token of each beam."""
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    return body | {
        name: MOST_TOKENS if limit is None else min(limit, MOST_TOKENS)
        for name in limits
        if isinstance(limit := body.get(name), int | None)
    }


@pytest.mark.hypothesis
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_an_error_of_the_gateway(cluster, mode) -> None:
    """By the gateway's own schema: no 5xx, no hang, nothing left behind, and it serves still."""
    import schemathesis  # see `tests.fuzz.test_control_api`
    from schemathesis import GenerationMode

    wanted = GenerationMode(mode)
    trust = str(cluster.llx.home / "llm.pem")
    headers = {"authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(
        f"{cluster.url}/openapi.json", headers=headers, verify=trust
    )
    operations = [each.ok() for each in schema.get_all_operations()]
    assert {each.path for each in operations} >= {"/v1/chat/completions", "/v1/completions"}
    cases = st.one_of([each.as_strategy(generation_mode=wanted) for each in operations])
    answers: Counter[int] = Counter()

    few = settings().max_examples // 3  # each goes through vLLM's front end, and TLS

    @settings(max_examples=few, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(case=cases, is_named=st.booleans())
    def ask(case, is_named) -> None:
        if isinstance(case.body, dict):
            case.body = short(case.body) | ({"model": "m"} if is_named else {})
        answer = case.call(headers=headers, timeout=ANSWER_S, verify=trust)
        answers[answer.status_code] += 1
        assert answer.status_code < 500, f"{answer.status_code} {answer.text}"

    before = cluster.llx.json("status")["gateways"][0]
    ask()
    assert sum(answers.values()) >= 20, answers
    deadline = time.monotonic() + ANSWER_S
    while (after := cluster.llx.json("status")["gateways"][0])["in_flight"]:
        assert time.monotonic() < deadline, "it still has a request that was answered"
        time.sleep(0.2)
    assert after["pid"] == before["pid"]
