"""The table of bad hosts: each is named, with reason and remedy, before anything is changed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts.operator_machine import Operator, eventually
from tests.hosts.rig import Host, Rig, python_binds

pytestmark = [pytest.mark.hosts, pytest.mark.e2e]


@pytest.fixture
def operator(hosts):
    """Two hosts that are as they should be: with the operator's own Python as environment."""
    rig = hosts(2, binds=python_binds(Path(sys.executable)), size="16g")
    return Operator(rig)


def untouched(rig: Rig) -> bool:
    """Nothing of llx lies on any host that is on."""
    paths = [
        path for host in rig.hosts if host.is_on for path in host.own_paths("/home/llx", "/tmp")
    ]
    return not any(
        path.startswith(("/home/llx/", "/tmp/llx")) and not path.startswith("/home/llx/.ssh")
        for path in paths
    )


def refused(operator: Operator, path: str, code: int, *words: str, remedy: str) -> str:
    """`llx up` refuses, with these words, and nothing has been changed."""
    return failed(operator, operator("up", "-y", path), code, *words, remedy=remedy)


def failed(
    operator: Operator,
    done: "subprocess.CompletedProcess[str]",
    code: int,
    *words: str,
    remedy: str,
) -> str:
    """An `llx` ended so, with these words, and nothing has been changed."""
    said = done.stderr + done.stdout
    assert done.returncode == code, said
    problem, _, told = said.partition("error:")[2].partition("remedy:")
    for each in words:
        assert each in problem, said
    assert remedy in told, said
    assert untouched(operator.rig)
    return said


def changed(operator: Operator, **of_h2: object) -> str:
    """The path of a cluster.yaml in which h2 is said to be otherwise."""
    first, second = operator.rig.cluster_hosts()
    return operator.config([first, {**second, **of_h2}])


@contextmanager
def running(host: Host, *argv: str, user: str | None = None) -> Iterator[None]:
    """Somebody's process, in its place once its command line shows."""
    process = host.spawn(*argv, user=user)
    try:
        eventually(lambda: bool(host.processes(argv[-1])))
        yield
    finally:
        process.kill()
        process.wait()


def test_wrong_key(operator):
    other = operator.rig.home / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    path = changed(operator, identity_file=str(other))
    said = refused(
        operator, path, 3, "h2", "llx@10.77.", "does not let us in", remedy="ssh-copy-id llx@"
    )
    assert "h1" not in said.partition("error:")[2]


def test_wrong_user(operator):
    path = changed(operator, user="nobody-there")
    remedy = "or correct `user` and `identity_file` of h2"
    refused(operator, path, 3, "h2", "nobody-there@10.77.", "does not let us in", remedy=remedy)


def test_changed_host_key(operator):
    known = operator.rig.home / ".ssh" / "known_hosts"
    first, second = operator.rig.hosts
    known.write_text(f"{first.address} {first.host_key}\n{second.address} {first.host_key}\n")
    words = ("h2", "host key changed", f"{known}:2", "Somebody may be listening in")
    remedy = f"if the new key is right: ssh-keygen -R {second.address} -f {known}"
    refused(operator, operator.config(), 3, *words, remedy=remedy)


def test_unknown_host_key_and_nobody_to_ask(operator):
    known = operator.rig.home / ".ssh" / "known_hosts"
    first, second = operator.rig.hosts
    known.write_text(f"{first.address} {first.host_key}\n")
    words = ("h2", "SHA256:", "is unknown and was not accepted")
    remedy = f"then accept it, by `ssh llx@{second.address}`"
    refused(operator, operator.config(), 3, *words, remedy=remedy)


def test_unreachable(operator):
    operator.rig["h2"].off()
    refused(
        operator, operator.config(), 3, "h2", "no answer for 8 s", remedy="is the machine on, and"
    )


def test_a_port_is_taken(operator):
    host = operator.rig["h2"]
    script = "import socket,time;s=socket.create_server(('0.0.0.0',20002));time.sleep(99)"
    with running(host, "/usr/bin/python3", "-c", script, user="llx"):
        eventually(lambda: ":4E22" in host.x("cat", "/proc/net/tcp").stdout)
        words = ("h2", "port 20002, for Ray and llx", "python3 (pid ", "user llx")
        remedy = "stop that process, or choose another port (network.first_port)"
        refused(operator, operator.config(), 5, *words, remedy=remedy)


def test_a_clock_is_off(operator):
    """date(1) of that host is a script that is five minutes ahead."""
    ahead = "import time; print(time.time() + 300)"
    script = f"#!/bin/sh\nexec /usr/bin/python3 -c '{ahead}'\n"
    operator.rig["h2"].cover("/usr/bin/date", script)
    operator.rig["h2"].x("chmod", "755", "/usr/bin/date", check=True)
    refused(operator, operator.config(), 1, "h2", "clock", "ahead", remedy="timedatectl set-ntp")


def test_no_disk(hosts):
    operator = Operator(hosts(2, size="200m"))
    words = ("h1", "0.2 GiB free at /home/llx/.llx; 6.0 GiB needed")
    said = refused(operator, operator.config(), 1, *words, remedy="a link to a larger disk")
    assert said.count("6.0 GiB needed") == 2


def test_too_little_memory(operator):
    host = operator.rig["h2"]
    text = host.x("cat", "/proc/meminfo", check=True).stdout
    host.cover("/proc/meminfo", re.sub(r"(MemAvailable): *\d+", r"\1: 512000", text))
    words = ("h2", "about 0.9 GiB needed, for 1 instance", "0.5 GiB available")
    refused(operator, operator.config(), 1, *words, remedy="ask for fewer instances")


OLD_PYTHON = r"""#!/bin/sh
printf '3.9.2\n%s\n/opt/old\nvenv\n-\n' "$0"
"""
"""Answers as an older Python does."""


def test_no_python_and_none_to_bring(hosts, tmp_path):
    (tmp_path / "wheels").mkdir()
    rig = hosts(1, hide=("/usr/bin/python3*", "/usr/local/bin/python3*"), size="16g")
    operator = Operator(rig)
    path = operator.config(runtime={"platform": "cpu", "wheelhouse": str(tmp_path / "wheels")})
    remedy = "install Python 3.11 or newer with venv there, or put cpython-3"
    refused(operator, path, 1, "h1", "it has no Python 3.11 or newer, and", remedy=remedy)
    rig["h1"].write("/usr/local/bin/python3", OLD_PYTHON, mode=0o755)
    refused(operator, path, 1, "h1", "it has Python 3.9.2, and", remedy=remedy)


def test_an_older_python_is_named_for_the_environment(operator):
    operator.rig["h2"].write("/opt/old/bin/python3", OLD_PYTHON, mode=0o755)
    path = changed(operator, python="/opt/old/bin/python3")
    words = ("h2", "Python 3.9.2 at /opt/old/bin/python3 is too old; llx needs 3.11 or newer")
    said = refused(operator, path, 1, *words, remedy="set hosts[].python (or runtime.python)")
    assert "h1" not in said.partition("error:")[2]


def test_an_environment_that_does_not_fit(operator):
    """Plain Python: without vLLM and Ray."""
    path = changed(operator, python="/usr/bin/python3")
    refused(operator, path, 1, "h2", "no vllm at /usr/bin/python3", remedy="unset runtime.python")


def test_a_firewall_without_sudo(operator):
    words = ("h1", "h2", "packet filter", "the user is not root and has no sudo without a password")
    remedy = "log in as root (hosts[].user), or let the user run nft"
    done = operator("play", "firewall", "-y", "--file", operator.config())
    failed(operator, done, 1, *words, remedy=remedy)
    for host in operator.rig.hosts:
        assert host.x("nft", "list", "tables", check=True).stdout == ""


def test_another_cluster_is_there(operator):
    rig = operator.rig
    rig["h2"].x("mkdir", "-p", "-m", "700", "/home/llx/.llx", user="llx", check=True)
    rig["h2"].write("/home/llx/.llx/host.json", '{"cluster": "theirs", "id": "abc"}')
    before = rig["h2"].x("find", "/home/llx/.llx", "-printf", "%p %m %T@ ").stdout
    done = operator("up", "-y", operator.config())
    assert done.returncode == 5, done.stderr
    assert 'h2: cluster: it belongs to llx cluster "theirs"' in done.stderr
    assert "remedy: take it out of that one (llx host rm, llx down --purge)" in done.stderr
    assert "if that one is gone: rm /home/llx/.llx/host.json there" in done.stderr
    assert not rig["h1"].x("ls", "-d", "/home/llx/.llx").stdout
    assert rig["h2"].x("find", "/home/llx/.llx", "-printf", "%p %m %T@ ").stdout == before


def test_another_cluster_runs_there(operator):
    """Somebody else's, whose claim lies in a home that we do not look into."""
    host = operator.rig["h2"]
    keeper = ("-m", "llx.cluster.ray.node", "run", "/root/.llx/clusters/lab/host.spec.json")
    with running(host, "/usr/bin/python3", "-c", "import time; time.sleep(99)", *keeper):
        words = ("h2", 'llx cluster "lab" of user root runs there (pid ')
        remedy = "llx down it (root's), or leave this host out; a host serves one cluster"
        refused(operator, operator.config(), 5, *words, remedy=remedy)
        assert host.processes(keeper[-1]), "it was left alone"


def test_all_that_is_wrong_is_said_at_once(operator):
    operator.rig["h2"].off()
    first, second = operator.rig.cluster_hosts()
    path = operator.config([{**first, "python": "/usr/bin/python3"}, second])
    said = refused(operator, path, 1, "2 things stand in the way on 2 hosts", "h1", remedy="h2")
    assert said.count("remedy:") >= 2
