from dataclasses import replace

import pytest

from llx.bootstrap.host_facts import (
    Claim,
    DiskFact,
    Listener,
    LlxProcess,
    ShimFact,
)
from llx.bootstrap.host_preflight import HostPreflightError, check
from llx.errors import ExitCode, HostError, UnreachableError
from tests.bootstrap.host_said import hosts
from tests.bootstrap.preflight_of_hosts import (
    GIB,
    INSTALLED,
    found,
    one_host,
    only,
    own_python,
)

WILD = "0.0.0.0"


class TestGoodHosts:
    def test_nothing_stands_in_the_way(self):
        assert found(hosts(3)) == []
        assert check([]) == []

    def test_a_host_that_is_all_set_up_and_runs_needs_nothing_more(self):
        known = hosts(
            3,
            node_environments=INSTALLED,
            processes=(ShimFact("ray", 7, "cafe", "ready"),),
            memory_available_bytes=GIB,
            home_disk=DiskFact(100 * GIB, GIB // 4),
            pythons=(),
            claim=Claim("prod", "id1"),
            listeners=tuple(
                Listener(port, WILD, "ann", 9, "raylet", "cafe")
                for port in (20000, 20001, 8000, 8900)
            ),
        )
        assert found(known) == []

    def test_the_same_processes_without_our_mark_are_somebody_elses(self):
        known = hosts(1, listeners=(Listener(20000, WILD, "ann", 9, "raylet", "beef"),))
        assert only(found(known)).exit_code is ExitCode.CONFLICT


class TestOutOfReach:
    def test_a_host_that_cannot_be_reached(self):
        error = UnreachableError("h2: connect: no answer", remedy="is it on?", detail="evidence")
        finding = only(found({**hosts(1), "h2": error}))
        assert (finding.host, finding.subject, finding.problem) == ("h2", "connection", "no answer")
        assert (finding.remedy, finding.detail) == ("is it on?", "evidence")
        assert finding.exit_code is ExitCode.UNREACHABLE
        assert finding.is_fatal

    def test_it_may_be_away_when_the_cluster_runs(self):
        error = UnreachableError("h2: connect: no answer", remedy="is it on?")
        finding = only(found({**hosts(1), "h2": error}, running=["h1", "h2"]))
        assert not finding.is_fatal
        assert "left alone" in finding.remedy

    def test_the_head_may_not(self):
        error = UnreachableError("h1: connect: no answer")
        finding = only(found({"h1": error}, running=["h1"]))
        assert finding.is_fatal
        assert "ssh h1.lan" in finding.remedy

    def test_a_host_that_runs_no_commands(self):
        error = HostError("commands do not run there", host="h1", step="look at the host")
        finding = only(found({"h1": error}))
        assert finding.problem == "look at the host: commands do not run there"
        assert finding.exit_code is ExitCode.FAILURE


class TestSystem:
    def test_not_linux(self):
        assert "it runs Darwin" in only(one_host(system="Darwin")).problem

    def test_a_machine_that_nothing_is_built_for(self):
        finding = only(one_host(machine="riscv64"), "system")
        assert finding.problem == "vLLM is not built for riscv64"
        assert "hosts[].python" in finding.remedy

    @pytest.mark.parametrize(
        ("glibc", "words"), [((2, 27), "glibc 2.27"), (None, "no GNU C library")]
    )
    def test_an_old_or_another_c_library(self, glibc, words):
        assert words in only(one_host(glibc=glibc)).problem

    def test_the_oldest_that_will_do(self):
        assert one_host(glibc=(2, 31)) == []

    def test_a_python_of_its_own_is_trusted_with_that(self):
        found = one_host(glibc=(2, 27), machine="riscv64", **own_python())
        assert found == []

    def test_missing_tools_are_named_with_their_packages(self):
        finding = only(one_host(missing_tools=frozenset({"flock", "timeout", "nft", "bash"})))
        assert finding.problem == "no timeout, flock on PATH"
        assert "coreutils util-linux" in finding.remedy

    def test_tools_that_nothing_needs(self):
        assert one_host(missing_tools=frozenset({"nft", "bash"})) == []

    def test_few_open_files_are_a_warning(self):
        finding = only(one_host(open_files=1024))
        assert not finding.is_fatal
        assert "1024 files" in finding.problem
        assert one_host(open_files=None) == []


class TestUser:
    def test_no_root_and_no_sudo_is_fine_but_for_the_firewall(self):
        finding = only(one_host(has_sudo=False))
        assert not finding.is_fatal
        assert "firewall" in finding.remedy

    def test_a_home_that_cannot_be_written(self):
        finding = only(one_host(is_home_writable=False))
        assert finding.problem == "ann cannot write /home/ann"
        assert finding.is_fatal

    def test_a_system_that_ends_everything_at_logout(self):
        finding = only(one_host(is_logout_deadly=True))
        assert "KillUserProcesses=yes" in finding.problem
        assert "logind.conf" in finding.remedy
        assert one_host(is_logout_deadly=True, uid=0, has_sudo=True) == []

    def test_a_talkative_shell_is_refused(self):
        """It would be part of everything that is read there."""
        finding = only(one_host(noise="Welcome!\nHave fun"))
        assert "'Welcome!'" in finding.problem
        assert finding.is_fatal


class TestClock:
    @pytest.mark.parametrize(
        ("offset", "words", "is_fatal"),
        [
            (2.3, "2.2 s ahead of", False),
            (-59.9, "59.8 s behind", False),
            (61.0, "61 s ahead of", True),
            (-10800.0, "3 h behind", True),
            (-315360000.0, "3650 days behind", True),
        ],
    )
    def test_skew(self, offset, words, is_fatal):
        finding = only(one_host(clock_offset_s=offset, clock_error_s=0.1))
        assert f"its clock is {words} this machine's" in finding.problem
        assert finding.is_fatal is is_fatal
        assert "timedatectl" in finding.remedy

    @pytest.mark.parametrize(("offset", "error"), [(2.0, 0.0), (-2.4, 0.5), (None, 0.0)])
    def test_what_may_be_the_slowness_of_the_line_is_not_held_against_it(self, offset, error):
        assert one_host(clock_offset_s=offset, clock_error_s=error) == []


def listener(port, address=WILD):
    return Listener(port, address, "bob", 12, "nginx")


class TestPorts:
    @pytest.mark.parametrize(
        ("port", "words", "key"),
        [
            (20000, "Ray", "network.first_port"),
            (20001, "Ray", "network.first_port"),
            (20009, "Ray", "network.first_port"),
            (8000, "the gateway", "gateway.port"),
            (8900, "the control API", "control.port"),
        ],
    )
    def test_a_port_of_the_heads_is_taken(self, port, words, key):
        finding = only(one_host(listeners=(listener(port), listener(port))))
        assert finding.problem.startswith(f"port {port}, for {words}")
        assert "nginx (pid 12, user bob)" in finding.problem
        assert key in finding.remedy
        assert finding.exit_code is ExitCode.CONFLICT

    def test_other_hosts_do_not_need_the_heads(self):
        known = hosts(2)
        busy = (listener(20000), listener(20009), listener(8900))
        known["h2"] = replace(known["h2"], listeners=busy)
        assert found(known) == []

    def test_a_host_that_needs_no_gateway_may_have_its_port_taken(self):
        known = hosts(3)
        known["h3"] = replace(known["h3"], listeners=(listener(8000),))
        assert not only(found(known)).is_fatal
        assert only(found(known, gateway={"count": 3})).is_fatal
        assert only(found(known, head="h3")).is_fatal

    @pytest.mark.parametrize(
        ("host", "address", "is_taken"),
        [
            ("127.0.0.1", "127.0.0.1", True),
            ("localhost", "127.0.0.1", True),
            ("127.0.0.1", WILD, True),
            ("127.0.0.1", "10.0.0.9", False),
            (WILD, "10.0.0.9", True),
        ],
    )
    def test_the_same_port_on_another_address_is_free(self, host, address, is_taken):
        known = hosts(1, listeners=(listener(8000, address),))
        assert bool(found(known, gateway={"host": host})) is is_taken

    def test_single_ports_of_the_rest_are_passed_over(self):
        finding = only(one_host(listeners=(listener(20010), listener(20500))))
        assert "2 of ports 20010-20999" in finding.problem
        assert not finding.is_fatal

    def test_ports_that_outgoing_connections_take(self):
        finding = only(found(hosts(1), network={"first_port": 40000}))
        assert "32768-60999" in finding.problem
        assert not finding.is_fatal


class TestAddress:
    def test_loopback_does_for_one_host(self):
        known = hosts(1, cluster_address="127.0.0.1")
        assert found(known) == []

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.1.1"])
    def test_but_not_for_two(self, address):
        known = hosts(2)
        known["h2"] = replace(known["h2"], cluster_address=address)
        finding = only(found(known))
        assert finding.host == "h2"
        assert "no other host can reach that" in finding.problem
        assert "hosts[].cluster_address" in finding.remedy
        assert "10.0.0.2" in finding.remedy

    def test_an_address_of_another_machine(self):
        finding = only(one_host(cluster_address="192.0.2.9"))
        assert finding.problem == "192.0.2.9 is not one of its addresses (10.0.0.1)"

    def test_spelled_otherwise_it_is_the_same(self):
        known = hosts(1, cluster_address="fd00::1", addresses=("fd00:0:0::1",))
        assert found(known) == []

    def test_unknown(self):
        finding = only(one_host(cluster_address=""))
        assert "not known" in finding.problem

    def test_a_host_whose_addresses_are_not_known_is_believed(self):
        assert one_host(addresses=()) == []


class TestOtherClusters:
    def test_a_host_of_another_cluster(self):
        finding = only(one_host(claim=Claim("lab", "x")))
        assert 'belongs to llx cluster "lab"' in finding.problem
        assert "/home/ann/.llx/host.json" in finding.remedy
        assert finding.exit_code is ExitCode.CONFLICT

    def test_a_host_of_ours(self):
        assert found(hosts(2, claim=Claim("prod", "id1"))) == []

    def test_a_host_of_a_namesake(self):
        known = hosts(2, claim=Claim("prod", "id2"))
        known["h1"] = replace(known["h1"], claim=Claim("prod", "id1"))
        finding = only(found(known))
        assert finding.problem.startswith("h1 and h2 belong to different clusters")

    def test_what_another_user_runs(self):
        command = "python -m llx.cluster.ray.node run /home/bob/.llx/clusters/lab/host.spec.json"
        known = hosts(1, llx_processes=(LlxProcess(9, "bob", "lab", command),))
        finding = only(found(known))
        assert finding.problem == 'llx cluster "lab" of user bob runs there (pid 9)'
        assert finding.exit_code is ExitCode.CONFLICT
        assert finding.is_fatal

    def test_of_the_same_name_too(self):
        command = "python -m llx.cluster.ray.node run /home/bob/.llx/clusters/prod/host.spec.json"
        known = hosts(1, llx_processes=(LlxProcess(9, "bob", "prod", command),))
        assert only(found(known)).is_fatal

    def test_a_cluster_of_that_machine_alone_is_a_warning(self):
        command = "python -m llx.cluster.head /home/ann/.local/state/llx/clusters/local/x.json"
        known = hosts(1, llx_processes=(LlxProcess(9, "ann", "local", command),))
        assert not only(found(known)).is_fatal

    def test_what_is_known_from_its_claim_is_said_once(self):
        command = "python -m llx.cluster.ray.node run /home/ann/.llx/clusters/lab/host.spec.json"
        processes = (LlxProcess(9, "ann", "lab", command),)
        only(found(hosts(1, claim=Claim("lab"), llx_processes=processes)))

    def test_our_own_processes(self):
        command = "python -m llx.cluster.ray.node run /home/ann/.llx/clusters/prod/host.spec.json"
        known = hosts(1, llx_processes=(LlxProcess(9, "ann", "prod", command),))
        assert found(known) == []


class TestTogether:
    def test_one_machine_named_twice(self):
        known = hosts(2, boot_id="one", addresses=("127.0.0.1", "10.0.0.1", "10.0.0.2"))
        finding = only(found(known))
        assert (finding.host, finding.subject) == ("h2", "machine")
        assert "same machine as h1" in finding.problem

    def test_two_machines_alike(self):
        assert found(hosts(2, boot_id="one")) == []  # namespaces of one machine
        known = hosts(2, addresses=("172.17.0.1", "10.0.0.1", "10.0.0.2"))  # docker's own bridge
        assert found(known) == []

    def test_a_shared_home(self):
        remote = {"home_identity": "filer:/home /home/ann", "is_home_remote": True}
        finding = only(found(hosts(2, **remote)))
        assert (finding.host, finding.subject) == ("h2", "home")
        assert "network file system" in finding.problem
        assert found(hosts(2, home_identity="")) == []

    def test_one_address_twice(self):
        known = hosts(2, cluster_address="10.0.0.9", addresses=("10.0.0.9",))
        finding = only(found(known))
        assert finding.problem == "10.0.0.9 is the address of h1, too"

    def test_architectures(self):
        known = hosts(3)
        known["h2"] = replace(known["h2"], machine="aarch64")
        finding = only(found(known))
        assert "x86_64: h1, h3; aarch64: h2" in finding.problem

    def test_no_tls_is_a_warning_that_says_why(self):
        finding = only(found(hosts(2), network={"tls": False}))
        assert "reads Ray's token" in finding.problem
        assert not finding.is_fatal


class TestError:
    def test_one_finding_is_one_line(self):
        with pytest.raises(HostPreflightError) as caught:
            check(one_host(is_home_writable=False))
        assert caught.value.message == "h1: home: ann cannot write /home/ann"
        assert "hosts[].user" in caught.value.remedy

    def test_many_are_told_by_host(self):
        known = {
            **hosts(2, is_home_writable=False, clock_offset_s=900.0),
            "h3": UnreachableError("h3: connect: no answer", remedy="switch it on", detail="said"),
        }
        with pytest.raises(HostPreflightError) as caught:
            check(found(known))
        lines = caught.value.message.splitlines()
        assert lines[0] == "5 things stand in the way on 3 hosts:"
        assert [line for line in lines if line.startswith("  h")] == ["  h1", "  h2", "  h3"]
        assert "    connection: no answer" in lines
        assert "      | said" in lines
        assert "      remedy: switch it on" in lines
        assert caught.value.exit_code is ExitCode.FAILURE

    def test_findings_that_agree_give_their_exit_code(self):
        known = {name: UnreachableError(f"{name}: connect: no answer") for name in ("h1", "h2")}
        with pytest.raises(HostPreflightError) as caught:
            check(found(known))
        assert caught.value.exit_code is ExitCode.UNREACHABLE

    def test_warnings_pass(self):
        warnings = one_host(has_sudo=False, open_files=100)
        assert check(warnings) == warnings
        assert len(warnings) == 2
