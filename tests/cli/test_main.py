"""The command itself: help, what it imports, how it fails."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from llx import __version__
from llx.cli.parameters import Engine, parse_duration
from llx.settings import load_cluster
from llx.specs import EngineKind

HEAVY = {
    "ray", "torch", "vllm", "fastapi", "uvicorn", "pydantic", "httpx", "yaml", "msgspec", "zmq",
    "rich.table", "rich.live", "paramiko", "asyncio", "textual",
}  # fmt: skip
NEVER = {
    "ray", "torch", "vllm", "fastapi", "uvicorn", "transformers", "numpy", "textual", "matplotlib",
}  # fmt: skip

VERBS = [
    "", "init", "up", "down", "status", "logs", "generate", "chat", "demo", "completion",
    "inst", "inst ls", "inst get", "inst restart", "inst logs", "inst cordon", "inst uncordon",
    "inst drain", "queue", "explain", "events", "scale", "rollout",
    "policy", "policy show", "policy set", "policy revert",
    "policy pause", "policy resume", "policy step", "req", "req ls", "req get",
    "req cancel", "req set-priority", "req pin", "req unpin",
    "migrate", "mig", "mig ls", "mig get", "mig cancel",
    "node", "node install", "node download", "context", "context ls", "context use",
    "host", "host ls", "host add",
    "host rm", "host cordon", "host uncordon", "host drain", "model", "model ls", "model add",
    "model pull", "model rm", "lock", "lock show", "lock release", "doctor", "play",
    "sim", "sim run", "sim replay", "sim calibrate", "sim plan", "calibrate", "top",
    "bench", "bench run", "bench compare", "bench report",
    "chaos", "chaos kill", "chaos freeze", "chaos slow", "chaos partition",
    "chaos restart", "chaos run",
]  # fmt: skip


def modules_after(*words):
    """What is imported once `llx WORDS` has run."""
    code = (
        "import sys\n"
        "from llx.cli.main import run\n"
        f"sys.argv = ['llx', *{words!r}]\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return set(done.stderr.split())


def test_help_imports_nothing_heavy():
    assert modules_after("--help") & HEAVY == set()


@pytest.mark.parametrize(
    "verb",
    ["status", "up --dry-run", "down", "context ls", "top --once", "sim run --requests 5"],
)
def test_no_verb_imports_what_the_plain_install_lacks(verb, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert modules_after(*verb.split()) & NEVER == set()


@pytest.mark.golden
@pytest.mark.parametrize("verb", VERBS)
def test_help(llx, golden, verb):
    done = llx(*verb.split(), "--help")
    assert done.exit_code == 0
    golden(f"help/{verb.replace(' ', '-') or 'llx'}.txt", done.stdout)


def test_version(llx):
    assert llx("--version").stdout.startswith(f"llx {__version__} (vLLM ")


@pytest.mark.parametrize(
    "words", [["nope"], ["up", "--nope"], ["status", "-o", "xml"], ["down", "--deadline", "soon"]]
)
def test_usage_errors(llx, words):
    done = llx(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_expected_errors_have_no_traceback(llx):
    done = llx("up", "none.yaml")
    assert done.exit_code == 4
    assert done.stdout == ""
    assert done.stderr == "error: none.yaml: no such file\nremedy: llx init none.yaml\n"


def test_debug_shows_the_traceback(llx):
    done = llx("up", "none.yaml", LLX_DEBUG="1")
    assert done.exit_code == 4
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("error: none.yaml: no such file\nremedy: llx init none.yaml\n")


class TestInit:
    def test_writes_what_up_reads(self, llx):
        done = llx("init")
        assert (done.exit_code, done.stdout) == (0, "cluster.yaml\n")
        assert load_cluster(llx.root / "cluster.yaml").cluster == "local"

    def test_replaces_nothing_unasked(self, llx):
        Path("c.yaml").write_text("mine")
        done = llx("init", "c.yaml")
        assert done.exit_code == 5
        assert Path("c.yaml").read_text() == "mine"
        assert llx("init", "c.yaml", "--force").exit_code == 0
        assert Path("c.yaml").read_text() != "mine"

    @pytest.mark.parametrize("hosts", ["ubuntu@gpu-1:2222, gpu_2", "2001:db8::1,1234,null"])
    def test_with_hosts_writes_what_up_reads(self, llx, hosts):
        done = llx("init", "--hosts", hosts)
        assert (done.exit_code, done.stdout) == (0, "cluster.yaml\n")
        assert "llx doctor cluster.yaml" in done.stderr
        found = load_cluster(llx.root / "cluster.yaml").hosts
        assert len(found) == len(hosts.split(","))

    @pytest.mark.parametrize("hosts", ["a,a", "a b", ",", ""])
    def test_of_what_is_no_host_writes_nothing(self, llx, hosts):
        done = llx("init", "--hosts", hosts)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "error: " in done.stderr
        assert "remedy: " in done.stderr
        assert not (llx.root / "cluster.yaml").exists()

    def test_nowhere_to_write(self, llx):
        done = llx("init", "no/such/c.yaml")
        assert (done.exit_code, "cannot write" in done.stderr) == (1, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(llx, shell):
    done = llx("completion", shell)
    assert done.exit_code == 0
    assert f"_LLX_COMPLETE=complete_{shell}" in done.stdout


def completions(llx, line):
    """What the shell would be offered at the end of `line`."""
    variables = {
        **os.environ, **llx.variables, "PYTHONPATH": os.pathsep.join(sys.path),
        "_LLX_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from llx.cli.main import run; run()"],
        env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_of_verbs(llx):
    assert completions(llx, "llx inst re") == ["restart"]


def test_completion_of_processes(llx, head):
    procs = llx.environment.cluster_dir("local") / "procs"
    for name in ("tiny-0", "tiny-1"):
        (procs / name).mkdir()
        (procs / name / "shim.json").touch()
    assert completions(llx, "llx logs t") == ["tiny-0", "tiny-1"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60),
        ("2m", 120),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("7", 7),
        (60.0, 60),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "-1", "1s2", "inf", "nan", "m"])
def test_no_durations(text):
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text):
    with contextlib.suppress(typer.BadParameter):
        assert 0 <= parse_duration(text) < float("inf")


def test_engine_words_are_those_of_the_specs():
    assert [str(each) for each in Engine] == [str(each) for each in EngineKind]
