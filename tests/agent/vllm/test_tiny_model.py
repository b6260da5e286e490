"""The tiny model llx makes: whole or not at all, the same each time, and never in a loop."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.node]

ROOT = Path(__file__).parents[3]

GENERATE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
answers = []
for question in ("Hello, how are you?", "Tell me a story about a river.", "x"):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    tokens = model.generate(ids, max_new_tokens=200, do_sample=False)[0, ids.shape[1]:].tolist()
    answers.append({"prompt": prompt, "back": tokenizer.decode(ids[0]), "tokens": tokens,
                    "text": tokenizer.decode(tokens)})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def python():
    prefix = os.environ.get("LLX_NODE_PREFIX")
    assert prefix, "tests of the node tier need LLX_NODE_PREFIX: run them with `make test`"
    return f"{prefix}/bin/python"


def run(python, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [python, *words], env=environment, check=True, capture_output=True, text=True
    ).stdout


def make(python, out, *words):
    return run(python, "-m", "llx.agent.vllm.tiny_model", "--out", str(out), *words)


@pytest.fixture(scope="module")
def model(python, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "deep" / "model"
    assert make(python, out).endswith(": made\n")
    return out


@pytest.fixture(scope="module")
def answers(python, model):
    return json.loads(run(python, "-c", GENERATE, str(model)))


def test_is_made_once(python, model):
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert make(python, model).endswith(": already there\n")
    assert (model / "model.safetensors").stat().st_mtime_ns == before
    assert [each.name for each in model.parent.iterdir()] == [model.name]


def test_replaces_what_was_left_unfinished(python, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_text("half")
    make(python, tmp_path / "m", "--dtype", "float32")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_is_the_same_each_time(python, model, tmp_path):
    make(python, tmp_path / "m")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (model / name).read_bytes(), name


def test_chat_template_and_tokenizer_go_there_and_back(answers):
    assert answers[2]["prompt"] == (
        "<|start|>system\ns<|end|>\n<|start|>user\nx<|end|>\n<|start|>assistant\n"
    )
    assert all(each["back"] == each["prompt"] for each in answers)


def test_greedy_answers_are_words_and_no_loop(answers):
    for each in answers:
        tokens = each["tokens"]
        assert len(tokens) == 200, "it never ends by itself"
        assert len(set(tokens)) >= 40
        tail = tokens[-64:]
        assert not any(tail[:-period] == tail[period:] for period in range(1, 33))
        assert all(
            word.isalpha() for word in each["text"].replace(",", "").replace(".", "").split()
        )
