"""`llx up` and `llx down` as commands: the table of bad inputs, plans, and nothing left behind."""

import json
import socket
import sys

import pytest

from llx.bootstrap.cluster_dir import cluster_lock

GOOD = {
    "cluster": "t",
    "models": [{"name": "m", "model": "./model", "instances": {"min": 1}}],
    "gateway": {"port": 0},
    "control": {"port": 0},
    "runtime": {"platform": "cpu", "prefix": "./node"},
}


@pytest.fixture
def config(llx):
    """Writes a cluster.yaml, GOOD but for the changes, and returns its path."""
    (llx.root / "model").mkdir()
    (llx.root / "model" / "config.json").write_text("{}")

    def write(**changes):
        path = llx.root / "c.yaml"
        path.write_text(json.dumps({**GOOD, **changes}))
        return str(path)

    return write


def model(**changes):
    return {"models": [{**GOOD["models"][0], **changes}]}


BAD = [
    (model(modle="x"), 2, 'unknown key "modle" in models[0]; did you mean "model"?'),
    (model(model="./none"), 2, "none: no such directory"),
    (model(model="."), 2, "no config.json there"),
    (
        model(engine_args={"max_modl_len": 1}),
        2,
        'vLLM has no argument "max_modl_len"; did you mean "max_model_len"?',
    ),
    (model(engine_args={"tensor_parallel_size": 2}), 2, "use `tensor_parallel`"),
    (
        {"hosts": [{"name": "a", "address": "127.0.0.1", "port": 1}], "runtime": {}},
        3,
        "a: connection: 127.0.0.1 port 1: connection refused",
    ),
    (
        {"gateway": {"port": 0, "api_keys": [{"tenant": "ada", "key_env": "NO_SUCH_KEY"}]}},
        2,
        'api key of "ada": environment variable NO_SUCH_KEY is not set',
    ),
    ({"runtime": {"python": sys.executable, "platform": "cpu"}}, 1, "works with exactly 0.32.0"),
    (
        {**model(tensor_parallel=64), "runtime": {"platform": "cuda", "prefix": "./node"}},
        1,
        "GPU",
    ),
    ({"runtime": {"platform": "cpu", "prefix": "."}}, 1, "was not made by llx"),
    ({"runtime": {"platform": "cpu", "kv_cache_gib": 100000}}, 1, "memory: about"),
]


@pytest.mark.parametrize("verb", [["up", "-y"], ["up", "--dry-run"]], ids=["up", "dry-run"])
@pytest.mark.parametrize(("changes", "code", "words"), BAD)
def test_bad_input_changes_nothing(llx, config, verb, changes, code, words):
    done = llx(*verb, config(**changes))
    assert done.exit_code == code, done.stderr
    assert words in done.stderr
    assert "remedy: " in done.stderr or "unknown key" in done.stderr
    assert "Traceback" not in done.stderr
    assert not llx.environment.state_home.joinpath("clusters", "t").exists()
    assert not (llx.root / "node").exists()


def test_bad_yaml(llx):
    (llx.root / "c.yaml").write_text("models: [\n")
    done = llx("up", "c.yaml")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: c.yaml:2:1: not valid YAML: ")


def test_a_taken_port_names_the_process(llx, config):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = llx("up", config(gateway={"port": port}))
    assert done.exit_code == 5
    assert f"error: gateway: port {port} is taken by " in done.stderr
    assert "(pid " in done.stderr


def test_a_second_up(llx, config):
    with cluster_lock(llx.environment.cluster_dir("t"), "up"):
        done = llx("up", config())
    assert done.exit_code == 5
    assert "another llx up is at work (pid " in done.stderr


def test_flags_of_the_local_cluster_go_without_a_file(llx, config):
    done = llx("up", config(), "--instances", "3")
    assert (done.exit_code, "FILE says it all itself" in done.stderr) == (2, True)


class TestDryRun:
    def test_of_a_file(self, llx, config):
        done = llx("up", config(), "--dry-run")
        assert done.exit_code == 0, done.stderr
        assert f"model m           1 × vllm of {llx.root}/model" in done.stdout
        assert "nothing was changed" in done.stderr
        assert not llx.environment.state_home.exists()

    def test_of_the_local_cluster(self, llx):
        words = ["--engine", "sim", "--platform", "cpu", "--port", "0", "--control-port", "0"]
        done = llx("up", "--dry-run", "--instances", "3", *words)
        assert done.exit_code == 0, done.stderr
        assert "cluster           local, state in " in done.stdout
        assert "3 × sim of " in done.stdout
        assert "tiny model        will be made at " in done.stdout


class TestDown:
    def test_of_nothing(self, llx):
        done = llx("down")
        assert done.exit_code == 0
        assert done.stdout == "cluster local was not running: nothing to stop\n"

    def test_of_a_cluster_that_is_none(self, llx):
        assert llx("down", "--context", "nope").exit_code == 4

    def test_purge_removes_what_llx_made_only(self, llx):
        logs = llx.environment.cluster_dir("local") / "procs" / "head"
        logs.mkdir(parents=True)
        (logs / "log").touch()
        llx.environment.tiny_model.mkdir(parents=True)
        (llx.environment.data_home / "mine").touch()
        done = llx("down", "--purge")
        assert done.exit_code == 0
        assert f"will be removed: {llx.environment.tiny_model}" in done.stderr
        assert not llx.environment.cluster_dir("local").exists()
        assert not llx.environment.tiny_model.exists()
        assert (llx.environment.data_home / "mine").exists()
