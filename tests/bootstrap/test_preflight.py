"""Preflight: settings and facts in, findings out."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llx.agent.devices import Device
from llx.bootstrap.facts import (
    Facts,
    ModelFact,
    NodeFact,
    PortFact,
    VllmArguments,
    load_vllm_arguments,
)
from llx.bootstrap.preflight import GIB, PreflightError, check, find
from llx.cluster_file import ClusterSettings
from llx.errors import ExitCode, InstallError

ARGUMENTS = VllmArguments(
    frozenset({"max_model_len", "max_num_seqs", "block_size"}),
    frozenset({"chat_template", "tool_call_parser"}),
)
GOOD = Facts(
    hostname="here",
    gpus=(),
    cpu_count=4,
    memory_available_bytes=32 * GIB,
    disk_free_bytes=100 * GIB,
    node=NodeFact(is_installed=True, place=Path("/n")),
    models={"/m": ModelFact(is_directory=True, has_config=True, weights_bytes=GIB)},
)


def settings(model=None, **changes):
    values = {"name": "m", "model": "/m", "instances": {"min": 2}, **(model or {})}
    changes.setdefault("runtime", {"platform": "cpu"})
    return ClusterSettings.model_validate({"models": [values], **changes})


def findings(facts=GOOD, model=None, **changes):
    return list(find(settings(model, **changes), facts, ARGUMENTS))


def test_nothing_to_say():
    assert findings() == []
    check(settings(), GOOD, ARGUMENTS)


@pytest.mark.parametrize(
    ("model", "problem", "remedy"),
    [
        (
            {"engine_args": {"max_modle_len": 1}},
            'engine_args: vLLM has no argument "max_modle_len"; did you mean "max_model_len"?',
            "correct it",
        ),
        (
            {"serve_args": {"tool-call-parsr": "x"}},
            'serve_args: vLLM has no argument "tool-call-parsr"; did you mean "tool_call_parser"?',
            "correct it",
        ),
        (
            {"engine_args": {"chat_template": "x"}},
            'engine_args: "chat_template" belongs elsewhere',
            "move it to `serve_args`",
        ),
        (
            {"serve_args": {"block_size": 16}},
            'serve_args: "block_size" belongs elsewhere',
            "move it to `engine_args`",
        ),
        (
            {"engine_args": {"tensor-parallel-size": 2}},
            'engine_args: llx sets "tensor-parallel-size" itself',
            "use `tensor_parallel`",
        ),
        (
            {"engine_args": {"data_parallel_size": 2}},
            'engine_args: "data_parallel_size" does not go with llx',
            "leave it out",
        ),
        (
            {"engine_args": {"hf_token": "secret"}},
            "engine_args: a secret does not belong in a file",
            "export HF_TOKEN instead",
        ),
        ({"model": "/none"}, "/none: no such directory", "correct `model`"),
        ({"model": "/bare"}, "/bare: no config.json there", "name the directory"),
        ({"model": "a b"}, '"a b" is neither a path nor a Hugging Face id', "write /…"),
        ({"model": "twin/x"}, '"twin/x" reads as a Hugging Face id', "write ./twin/x"),
    ],
)
def test_a_model(model, problem, remedy):
    facts = replace(
        GOOD,
        models={
            **GOOD.models,
            "/none": ModelFact(is_directory=False, has_config=False),
            "/bare": ModelFact(is_directory=True, has_config=False),
        },
        hub_lookalikes=frozenset({"twin/x"}),
    )
    (found,) = findings(facts, model)
    assert found.subject == "model m"
    assert found.problem.startswith(problem)
    assert found.remedy.startswith(remedy)
    assert found.exit_code is ExitCode.USAGE


def test_names_with_dashes_are_names():
    assert findings(model={"engine_args": {"max-model-len": 1}}) == []


@pytest.mark.parametrize(
    ("port", "who"), [(("127.0.0.1", 8000), "gateway"), (("127.0.0.1", 8900), "control API")]
)
def test_a_taken_port_names_its_holder(port, who):
    taken = PortFact(f"port {port[1]} is taken", "nginx (pid 7)")
    (found,) = findings(replace(GOOD, ports={port: taken}))
    assert (found.subject, found.exit_code) == (who, ExitCode.CONFLICT)
    assert found.problem == f"port {port[1]} is taken by nginx (pid 7)"


def test_the_wrong_vllm():
    problem = InstallError("vllm 0.31.0 found at /p; llx works with exactly 0.32.0", remedy="r")
    (found,) = findings(replace(GOOD, node=NodeFact(False, Path("/p"), problem)))
    assert (found.problem, found.remedy) == (problem.message, "r")
    assert found.exit_code is ExitCode.FAILURE


def test_disk_counts_only_when_something_is_installed():
    small = replace(GOOD, disk_free_bytes=GIB)
    assert findings(small) == []
    (found,) = findings(replace(small, node=NodeFact(is_installed=False, place=Path("/n"))))
    assert found.subject == "disk"
    assert "1.0 GiB free at /n" in found.problem


def test_a_missing_wheelhouse():
    facts = replace(GOOD, node=NodeFact(is_installed=False, place=Path("/n")))
    (found,) = findings(facts, runtime={"platform": "cpu", "wheelhouse": "/no/wheels"})
    assert found.problem == "wheelhouse /no/wheels: no such directory"


def test_memory_on_the_cpu():
    """Two instances of 1 GiB of weights and 1 GiB of KV cache, and a gateway."""
    assert findings(replace(GOOD, memory_available_bytes=7 * GIB)) == []
    (found,) = findings(replace(GOOD, memory_available_bytes=6 * GIB))
    assert found.subject == "memory"
    assert re.match(r"about 6\.\d GiB needed, 6\.0 GiB available", found.problem)


def test_sim_needs_little():
    little = replace(GOOD, memory_available_bytes=3 * GIB)
    assert findings(little, model={"engine": "sim"}) == []


@pytest.mark.parametrize(
    ("count", "model", "words"),
    [
        (0, {}, "no GPU here"),
        (1, {}, "2 GPUs are asked for"),
        (2, {}, None),
        (3, {"tensor_parallel": 2}, "4 GPUs are asked for"),
        (0, {"engine": "sim"}, None),
    ],
)
def test_gpus(count, model, words):
    gpus = tuple(Device(f"GPU-{index}", f"{index}: x", 80000) for index in range(count))
    found = findings(replace(GOOD, gpus=gpus), model, runtime={"platform": "cuda"})
    assert [words in each.problem for each in found] == ([] if words is None else [True])


def test_a_gpu_in_use_is_not_counted():
    gpus = (Device("a", "0: x", 80000), Device("b", "1: x", 80000, 40000))
    (found,) = findings(replace(GOOD, gpus=gpus), runtime={"platform": "cuda"})
    assert found.problem.endswith("2 found, in use by others: 1: x")


class TestPreflightError:
    def test_of_one_finding(self):
        facts = replace(GOOD, ports={("127.0.0.1", 8000): PortFact("port 8000 is taken")})
        with pytest.raises(PreflightError) as caught:
            check(settings(), facts, ARGUMENTS)
        assert str(caught.value).startswith("gateway: port 8000 is taken\n  remedy: stop")
        assert caught.value.exit_code is ExitCode.CONFLICT

    def test_of_several(self):
        facts = replace(GOOD, ports={("127.0.0.1", 8000): PortFact("port 8000 is taken")})
        with pytest.raises(PreflightError) as caught:
            check(settings({"engine_args": {"x": 1}}), facts, ARGUMENTS)
        assert caught.value.message.startswith("2 things stand in the way:\n  model m: ")
        assert caught.value.message.count("remedy:") == 2
        assert caught.value.exit_code is ExitCode.FAILURE


def test_the_shipped_names_are_vllms():
    shipped = load_vllm_arguments()
    assert {"max_model_len", "dtype", "enforce_eager", "block_size"} <= shipped.engine
    assert {"chat_template", "enable_auto_tool_choice", "tool_call_parser"} <= shipped.serve
    assert not shipped.engine & shipped.serve
