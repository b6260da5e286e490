"""The client scripts in examples/ run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.servers import FakeGateway

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run():
    with FakeGateway().running() as gateway:

        def script(name, *words):
            keys = {"LLX_API_KEY": "sesame", "OPENAI_API_KEY": "sesame"}
            environment = {**os.environ, **keys, "LLX_URL": gateway.url}
            words = [word.replace("URL", gateway.url) for word in words]
            done = subprocess.run(
                [sys.executable, "-W", "error", str(EXAMPLES / name), *words],
                env=environment, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            assert all(each["authorization"] == "Bearer sesame" for each in gateway.headers)
            return done.stdout

        yield script


def test_stream(run):
    assert run("stream.py", "hello", "--url", "URL/v1").split() == ["word0", "word1", "word2"]


def test_many_streams(run):
    assert run("many_streams.py", "4") == "tiny-0: 2\ntiny-1: 2\n"


def test_every_script_has_a_test():
    scripts = {each.name for each in EXAMPLES.glob("*.py")}
    assert scripts == {"many_streams.py", "move_longest.py", "stream.py"}


@pytest.mark.slow
@pytest.mark.sim
def test_the_papers_experiments(tmp_path):
    def script(name, *words):
        path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / "paper" / name), *map(str, words)],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    out = tmp_path / "results.jsonl"
    few = ["--policies", "paper,llx", "--seeds", "0-1", "--requests", 20, "--out", out]
    for experiment, num_runs in (("latency", 28), ("priorities", 40), ("scaling", 96)):
        assert script("runs.py", experiment, *few).startswith(f"{num_runs} runs, {num_runs} to do")
    assert script("runs.py", "scaling", *few).startswith("96 runs, 0 to do")
    tables = script("tables.py", out)
    assert re.search(r"^\| s-s 32 \| 2 \| \S+ \(\S+-\S+\) \|", tables, re.MULTILINE)
    assert re.search(
        r"^\| 8 \| llx \| 740, 0.25 \| 2 \| high \| \S+ \(\S+-\S+\) \|", tables, re.MULTILINE
    )
    assert tables.count("| 10-60 | 2 | ") == 12
