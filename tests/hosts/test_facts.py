"""Facts, preflight and reachability of real machines behind real SSH."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_facts import gather
from llx.bootstrap.host_preflight import find
from llx.bootstrap.reachability import find_blocked, probe_routes
from llx.bootstrap.ssh import connect, resolve
from llx.environment import Environment
from llx.errors import ExitCode
from llx.settings import ClusterSettings, Platform
from tests.hosts.rig import python_binds

pytestmark = pytest.mark.hosts

FAKE_DATE = """#!/bin/sh
[ "$1" = +%s.%N ] || exec /usr/bin/date "$@"
echo $(($(/usr/bin/date +%s) + 10800)).5
"""


def settings_of(rig, **changes):
    return ClusterSettings.model_validate(
        {
            "cluster": "prod",
            "hosts": rig.cluster_hosts(),
            "models": [{"name": "m", "model": "x", "engine": "sim"}],
            **changes,
        }
    )


@contextlib.contextmanager
def connected(rig, settings):
    rig.trust()
    environment = Environment(rig.operator_environment(), Path("/"))
    shells = {}
    try:
        for host in settings.hosts:
            shells[host.name] = connect(resolve(host, environment), ask=lambda *_: False)
        yield shells
    finally:
        for shell in shells.values():
            shell.close()


def facts_of(shells, settings):
    by_name = {each.name: each for each in settings.hosts}
    return fan_out(list(shells), lambda name: gather(shells[name], by_name[name], settings))


def test_three_hosts_are_seen_as_they_are_and_nothing_stands_in_the_way(hosts):
    rig = hosts(3, size="8g")
    settings = settings_of(rig)
    with connected(rig, settings) as shells:
        began = time.monotonic()
        facts = facts_of(shells, settings)
        took = time.monotonic() - began
        routes = probe_routes(settings, shells, {n: f.cluster_address for n, f in facts.items()})
    for host in rig.hosts:
        found = facts[host.name]
        assert (found.hostname, found.user, found.uid) == (host.name, "llx", 4242)
        assert found.server_address == found.cluster_address == host.address
        assert host.address in found.addresses
        assert abs(found.clock_offset_s) <= found.clock_error_s + 0.05
        assert found.is_home_writable
        assert found.noise == ""
        assert found.claim is None
        assert found.listeners == ()
    assert len({each.home_identity for each in facts.values()}) == 3
    findings = find(settings, facts, platform=Platform.CPU, copies={})
    assert [str(each) for each in findings if each.is_fatal] == []
    assert len(routes) == 6 * 3 + 2 * 2  # three ports of each; two more of the head
    assert all(each.is_open for each in routes)
    assert list(find_blocked(routes)) == []
    assert took < 30


def test_bad_hosts_are_named_with_what_is_wrong(hosts):
    rig = hosts(3, size="8g")
    h1, h2, h3 = rig.hosts
    h1.write("/usr/local/bin/date", FAKE_DATE, mode=0o755)
    claim = json.dumps({"cluster": "lab", "id": "1"})
    h2.write("/home/llx/.llx/host.json", claim)
    h2.x("chown", "-R", "llx", "/home/llx/.llx", check=True)
    h2.write("/home/llx/.bashrc", "echo 'Welcome!'\n")
    taken = "import socket, time; s = socket.create_server(('', 20001)); time.sleep(600)"
    listening = h3.spawn("python3", "-c", taken)
    settings = settings_of(rig)
    try:
        with connected(rig, settings) as shells:
            _wait_for_listener(h3, 20001)
            facts = facts_of(shells, settings)
    finally:
        listening.kill()
        listening.wait()
    fatal = {
        (each.host, each.subject): each
        for each in find(settings, facts, platform=Platform.CPU, copies={})
        if each.is_fatal
    }
    assert set(fatal) == {
        ("h1", "clock"),
        ("h2", "cluster"),
        ("h2", "shell"),
        ("h3", "ports"),
    }
    assert "3 h ahead of this machine's" in fatal["h1", "clock"].problem
    assert 'cluster "lab"' in fatal["h2", "cluster"].problem
    assert "port 20001" in fatal["h3", "ports"].problem
    assert "user root" in fatal["h3", "ports"].problem
    assert fatal["h3", "ports"].exit_code is ExitCode.CONFLICT
    assert "Welcome!" in facts["h2"].noise


def test_a_host_without_python_and_with_a_small_disk(hosts):
    rig = hosts(1, hide=("/usr/bin/python3*", "/usr/local/bin/python3*"), size="64m")
    settings = settings_of(rig)
    with connected(rig, settings) as shells:
        facts = facts_of(shells, settings)
    assert facts["h1"].pythons == ()
    findings = find(settings, facts, platform=Platform.CPU, copies={})
    fatal = [each for each in findings if each.is_fatal]
    assert {each.subject for each in fatal} == {"disk"}
    assert "0.1 GiB free at /home/llx/.llx; 6.0 GiB needed" in fatal[0].problem
    assert any("there is no Python" in each.problem for each in findings)


def test_the_remedy_for_a_deadly_logout_works(hosts):
    rig = hosts(1)
    settings = settings_of(rig)
    place = "/etc/systemd/logind.conf.d"
    rig["h1"].write(f"{place}/10-kill.conf", "[Login]\nKillUserProcesses=yes\n")
    with connected(rig, settings) as shells:
        facts = facts_of(shells, settings)
        findings = find(settings, facts, platform=Platform.CPU, copies={})
        (finding,) = [each for each in findings if each.subject == "user"]
        assert finding.is_fatal
        assert "KillExcludeUsers=root llx," in finding.remedy
        rig["h1"].write(f"{place}/20-spare.conf", "[Login]\nKillExcludeUsers=root llx\n")
        facts = facts_of(shells, settings)
    findings = find(settings, facts, platform=Platform.CPU, copies={})
    assert "user" not in {each.subject for each in findings}


def test_an_environment_that_is_there_is_looked_into(hosts):
    import sys

    python = Path(sys.executable)
    rig = hosts(1, binds=python_binds(python))
    rig_hosts = [{**each, "python": str(python)} for each in rig.cluster_hosts()]
    settings = settings_of(rig, hosts=rig_hosts)
    with connected(rig, settings) as shells:
        facts = facts_of(shells, settings)
    found = facts["h1"].override
    assert found.version == sys.version_info[:3]
    assert found.prefix == sys.prefix
    assert "llx" in found.versions


def test_a_partition_between_two_hosts_is_found(hosts):
    rig = hosts(3)
    settings = settings_of(rig)
    addresses = {each.name: each.address for each in rig.hosts}
    with connected(rig, settings) as shells:
        rig["h2"].drop(rig["h3"])
        began = time.monotonic()
        routes = probe_routes(settings, shells, addresses)
        took = time.monotonic() - began
        rig["h2"].heal()
        healed = probe_routes(settings, shells, addresses)
    findings = {each.host: each for each in find_blocked(routes)}
    assert set(findings) == {"h2", "h3"}
    assert f"does not reach h3 ({addresses['h3']}), ports 20001, 20010, 20100" in str(
        findings["h2"]
    )
    assert findings["h2"].exit_code is ExitCode.UNREACHABLE
    assert took < 15
    assert list(find_blocked(healed)) == []


def _wait_for_listener(host, port):
    deadline = time.monotonic() + 60
    while f":{port} " not in host.x("ss", "-ltn").stdout + " ":
        assert time.monotonic() < deadline, "it does not listen"
        time.sleep(0.05)
