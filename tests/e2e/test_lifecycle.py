"""Up, down and what goes wrong in between, on simulated engines: nothing may be left running."""

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
import urllib.request

import pytest

from tests.e2e.rig import Llx, processes_of, sweep

pytestmark = [pytest.mark.e2e, pytest.mark.node]


def write_config(folder, model, **changes):
    config = {
        "cluster": "life",
        "models": [
            {
                "name": "m",
                "model": str(model),
                "engine": "sim",
                "instances": {"min": 2, "max": 2},
                "engine_args": {"max_model_len": 2048},
                "sim": {"step_base_ms": 20.0},
            }
        ],
        "gateway": {"port": random.randrange(21000, 29000)},
        "control": {"port": 0},
        "runtime": {"platform": "cpu"},
    }
    config.update(changes)
    path = folder / "cluster.yaml"
    path.write_text(json.dumps(config))
    return path


def url_of(config):
    return f"http://127.0.0.1:{json.loads(config.read_text())['gateway']['port']}"


@pytest.fixture(scope="module")
def life(tmp_path_factory, oracle):
    """One cluster of simulated engines for the tests that leave it as they found it."""
    home = tmp_path_factory.mktemp("life")
    llx = Llx(home)
    config = write_config(home, oracle)
    done = llx("up", "-y", str(config))
    assert done.returncode == 0, done.stderr
    yield llx, config
    done = llx("down", "--deadline", "2s", "--purge")
    left = processes_of(home)
    sweep(home)
    assert done.returncode == 0, done.stderr
    assert left == {}


class Stream(threading.Thread):
    """A long completion read in the background."""

    def __init__(self, url, max_tokens=400):
        super().__init__(daemon=True)
        self._url, self._max_tokens = url, max_tokens
        self.first = threading.Event()
        self.events, self.instance, self.error = [], "", None

    def run(self):
        body = {
            "model": "m", "prompt": "x", "max_tokens": self._max_tokens,
            "ignore_eos": True, "stream": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self._url}/v1/completions", json.dumps(body).encode(),
            {"content-type": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.instance = answer.headers["x-llx-instance"]
                for line in answer:
                    if line.startswith(b"data: "):
                        self.events.append(line)
                        self.first.set()
        except OSError as error:
            self.error = error

    def is_whole(self):
        return (
            self.error is None
            and self.events[-1].strip() == b"data: [DONE]"
            and not any(b'"error"' in event for event in self.events)
        )


def eventually(what, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about in time")


def content(path):
    """Of a file; nothing of what is none, or has been replaced meanwhile."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""


def instance(llx, name):
    return llx.json("inst", "get", name)


def test_up_again_changes_nothing_and_says_so(life):
    llx, config = life
    before = {i["name"]: i["pid"] for i in llx.json("status")["instances"]}
    done = llx("up", "-y", str(config))
    assert done.returncode == 0, done.stderr
    assert {i["name"]: i["pid"] for i in llx.json("status")["instances"]} == before


def test_up_with_other_settings_is_refused_and_names_the_difference(life, oracle, tmp_path):
    llx, config = life
    other = write_config(tmp_path, oracle, gateway=json.loads(config.read_text())["gateway"])
    changed = json.loads(other.read_text())
    changed["gateway"]["max_requests"] = 7
    other.write_text(json.dumps(changed))
    done = llx("up", "-y", str(other))
    assert done.returncode == 5
    assert "max_requests" in done.stderr
    assert "llx down" in done.stderr


def test_a_killed_instance_loses_no_stream_and_is_started_again(life):
    llx, config = life
    streams = [Stream(url_of(config)) for _ in range(2)]
    for stream in streams:
        stream.start()
    for stream in streams:
        assert stream.first.wait(120)
    victim = instance(llx, "m-0")
    os.kill(victim["pid"], signal.SIGKILL)
    eventually(lambda: instance(llx, "m-0")["last_failure"] == "killed by SIGKILL")
    for stream in streams:
        stream.join(300)
    assert all(each.is_whole() for each in streams), "a stream ended with its instance"
    assert victim["name"] in {each.instance for each in streams}, "nothing was lost"
    eventually(lambda: llx.json("status")["state"] == "ready")
    assert instance(llx, "m-0")["restarts"] == 1
    done = llx("inst", "restart", "m-0", "-y")
    assert done.returncode == 0, done.stderr
    eventually(lambda: instance(llx, "m-0")["restarts"] == 2)
    eventually(lambda: llx.json("status")["state"] == "ready")
    again = instance(llx, "m-0")
    assert again["pid"] != victim["pid"]
    streams = [Stream(url_of(config), max_tokens=50) for _ in range(6)]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join(300)
    assert {each.instance for each in streams} == {"m-0", "m-1"}


def test_a_frozen_instance_loses_no_stream_and_is_fenced(life):
    llx, config = life
    eventually(lambda: llx.json("status")["state"] == "ready")
    streams = [Stream(url_of(config), max_tokens=800) for _ in range(4)]
    for stream in streams:
        stream.start()
    for stream in streams:
        assert stream.first.wait(120)
    victim = instance(llx, "m-1")
    assert victim["name"] in {each.instance for each in streams}
    os.kill(victim["pid"], signal.SIGSTOP)
    began = time.time()
    eventually(lambda: instance(llx, "m-1")["last_failure"].startswith("hung (it fell silent)"))
    lines = (llx.home / "state/llx/clusters/life/events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    failed = [each for each in events if each["kind"] == "instance.failed"][-1]
    assert failed["name"] == "m-1"
    assert failed["at"] - began < 20, "8 s of silence, and this machine's own"
    for stream in streams:
        stream.join(300)
    assert all(each.is_whole() for each in streams), "a stream ended with its instance"
    eventually(lambda: llx.json("status")["state"] == "ready")
    assert instance(llx, "m-1")["pid"] != victim["pid"]


def test_the_head_may_die_without_a_stream_noticing(life):
    llx, config = life
    stream = Stream(url_of(config), max_tokens=250)
    stream.start()
    assert stream.first.wait(120)
    before = llx.json("status")
    head = json.loads((llx.home / "state/llx/clusters/life/procs/head/shim.json").read_text())
    os.kill(head["child_pid"], signal.SIGKILL)
    assert llx("status").returncode == 3
    done = llx("up", "-y", str(config))
    assert done.returncode == 0, done.stderr
    after = llx.json("status")
    assert after["term"] > before["term"]
    assert [i["pid"] for i in after["instances"]] == [i["pid"] for i in before["instances"]]
    stream.join(300)
    assert stream.is_whole()


def test_no_secret_shows_and_private_files_are_private(life):
    llx, _ = life
    directory = llx.home / "state/llx/clusters/life"
    assert directory.stat().st_mode & 0o777 == 0o700
    keys = json.loads((directory / "keys.json").read_text())
    secrets = [keys["listener_secret"], keys["dialer_secret"], (directory / "token").read_text()]
    for name in ("keys.json", "token"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    for line in processes_of(llx.home).values():
        assert not any(secret.strip() in line for secret in secrets)
    for path in directory.rglob("*"):
        if path.name not in ("keys.json", "token"):
            text = content(path).decode(errors="replace")
            assert not any(secret.strip() in text for secret in secrets), path


def test_generate_and_logs_work_on_the_running_cluster(life):
    llx, _ = life
    done = llx("generate", "hello", "--max-tokens", "5")
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
    done = llx("logs", "m-0", "--tail", "5")
    assert done.returncode == 0
    assert llx("logs", "m-9").returncode == 4
    assert llx("inst", "get", "nobody").returncode == 4


# ---------------------------------------------------------------------- each on its own


@pytest.mark.parametrize("after_s", [0.4, 2.5, 6.0])
def test_ctrl_c_during_up_leaves_nothing(llx, oracle, after_s):
    config = write_config(llx.home, oracle)
    process = llx.start("up", "-y", str(config))
    with contextlib.suppress(TimeoutError):
        time.sleep(after_s)  # the moment is the point: anywhere in `up`
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    # Before its own first line the interpreter itself may be what is interrupted.
    assert process.returncode in (130, -signal.SIGINT), stderr
    eventually(lambda: processes_of(llx.home) == {}, 60)
    assert llx("down").returncode == 0


def test_an_up_that_is_killed_is_cleared_by_down(llx, oracle):
    config = write_config(llx.home, oracle)
    process = llx.start("up", "-y", str(config))
    procs = llx.home / "state/llx/clusters/life/procs/m-0"
    eventually(procs.exists, 60)
    process.kill()
    process.communicate()
    assert llx("down", "--deadline", "1s").returncode == 0
    eventually(lambda: processes_of(llx.home) == {}, 60)
    assert llx("down").returncode == 0


def test_a_taken_port_is_named_before_anything_starts(llx, oracle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config(llx.home, oracle, gateway={"port": port})
        done = llx("up", "-y", str(config))
    assert done.returncode == 5
    assert str(port) in done.stderr
    assert processes_of(llx.home) == {}


def test_two_ups_at_once_do_not_mix(llx, oracle):
    config = write_config(llx.home, oracle)
    first = llx.start("up", "-y", str(config))
    eventually((llx.home / "state/llx/clusters/life").exists, 60)
    second = llx("up", "-y", str(config))
    assert second.returncode == 5, second.stderr
    _, stderr = first.communicate(timeout=600)
    assert first.returncode == 0, stderr
    assert llx("down", "--deadline", "1s").returncode == 0


def test_an_api_key_guards_the_endpoint(llx, oracle):
    key_file = llx.home / "alice.key"
    key_file.write_text("sk-alice-secret\n")
    key_file.chmod(0o600)
    gateway = {
        "port": random.randrange(21000, 29000),
        "api_keys": [{"tenant": "alice", "key_file": str(key_file)}],
    }
    config = write_config(llx.home, oracle, gateway=gateway)
    done = llx("up", "-y", str(config))
    assert done.returncode == 0, done.stderr
    request = urllib.request.Request(f"{url_of(config)}/v1/models")
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=60)
    refused.value.close()
    request.add_header("authorization", "Bearer sk-alice-secret")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    for path in (llx.home / "state").rglob("*"):
        assert b"sk-alice-secret" not in content(path), path
    assert llx("down", "--deadline", "1s").returncode == 0


def test_down_lets_a_stream_finish(llx, oracle):
    config = write_config(llx.home, oracle)
    assert llx("up", "-y", str(config)).returncode == 0
    stream = Stream(url_of(config), max_tokens=150)
    stream.start()
    assert stream.first.wait(120)
    assert llx("down", "--deadline", "30s").returncode == 0
    stream.join(10)
    assert stream.is_whole()
    assert processes_of(llx.home) == {}


def test_the_demo_shows_itself_and_leaves_nothing(llx):
    done = llx("demo", "--engine", "sim", timeout_s=180)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["demo"], result["instances"]) == ("ok", 2)
    assert result["completed"] == result["requests"] >= 6
    assert processes_of(llx.home) == {}
