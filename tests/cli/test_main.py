"""The command itself: help, what it imports, how it fails."""

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from llx import __version__
from llx.cli import completing
from llx.cli.main import app
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
    "verify", "verify migration",
    "inst", "inst ls", "inst get", "inst restart", "inst logs", "inst cordon", "inst uncordon",
    "inst drain", "queue", "explain", "events", "scale", "rollout", "upgrade",
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
    "chaos restart", "chaos run", "metrics", "debug", "debug bundle",
]  # fmt: skip


def modules_after(*verbs):
    """What is imported once all these have run, one after the other in one process."""
    code = (
        "import sys\n"
        "from llx.cli.main import run\n"
        f"for verb in {verbs!r}:\n"
        "    sys.argv = ['llx', *verb.split()]\n"
        "    try:\n        run()\n    except SystemExit:\n        pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return set(done.stderr.split())


def test_an_interrupt_while_llx_is_loaded_is_told_in_a_line():
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "llx", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        # Nobody reads on until the signal is there, so it goes no further than a pipe holds.
        assert any("llx.cli.bench" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        output, words = process.communicate()
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in words
    assert words.splitlines()[-1] == "llx: interrupted"


def test_help_imports_nothing_heavy():
    assert modules_after("--help") & HEAVY == set()


def test_no_verb_imports_what_the_plain_install_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    verbs = ("status", "up --dry-run", "down", "context ls", "top --once", "sim run --requests 5")
    found = modules_after(*verbs)
    assert "llx.sim.run" in found, "even the last has run"
    assert found & NEVER == set()


def leaves(command, before=()):
    """Each verb of the command, and what parses its words."""
    for name, found in command.commands.items():
        if hasattr(found, "commands"):
            yield from leaves(found, (*before, name))
        else:
            yield " ".join((*before, name)), found


LEAVES = dict(leaves(typer.main.get_command(app)))


def test_the_verbs_are_those_whose_help_is_tested():
    assert {each for each in VERBS if each in LEAVES} == set(LEAVES)


@pytest.mark.parametrize("verb", LEAVES)
def test_each_verb_has_an_example_that_it_understands(llx, verb):
    found = LEAVES[verb]
    told = f"{found.help}\n\n{found.epilog or ''}"
    examples = [each for each in told.split("\n\n") if each.startswith("Example: llx ")]
    assert len(examples) == 1
    lines = examples[0].removeprefix("Example: ").split(" && ")
    assert any(each.startswith(f"llx {verb}") for each in lines)
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])[1:]
        for each in words:
            if each.endswith((".csv", ".yaml", ".jsonl")) and "/" not in each:
                Path(each).touch()
        name = next(each for each in LEAVES if words[: len(each.split())] == each.split())
        LEAVES[name].make_context(name, words[len(name.split()) :]).close()


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


def test_completion_of_what_a_running_cluster_has(llx, head):
    assert completions(llx, "llx req get llx-") == ["llx-a"]


@pytest.mark.parametrize(
    ("complete", "begun", "offered"),
    [
        (completing.complete_request, "", ["llx-a"]),
        (completing.complete_request, "cmpl-a", ["cmpl-a-0-0123abcd"]),
        (completing.complete_instance, "tiny", ["tiny-0", "tiny-1"]),
        (completing.complete_unit, "", ["gateway-0", "tiny-0", "tiny-1"]),
        (completing.complete_model, "t", ["tiny"]),
        (completing.complete_host, "x", []),
    ],
)
def test_what_is_completed_is_asked_of_the_cluster(
    llx, head, monkeypatch, complete, begun, offered
):
    for name, value in llx.variables.items():
        monkeypatch.setenv(name, value)
    context = SimpleNamespace(params={"context": None})
    assert complete(context, begun) == offered
    assert complete(SimpleNamespace(params={"context": "none"}), begun) == []


def test_completion_without_a_cluster_says_nothing(llx):
    assert completions(llx, "llx req get ") == []


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
