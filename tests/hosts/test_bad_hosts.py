"""The table of bad hosts: each is named, with reason and remedy, before anything is changed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.operator_machine import Operator, eventually
from tests.hosts.rig import Rig, python_binds

pytestmark = [pytest.mark.hosts, pytest.mark.e2e]


@pytest.fixture
def operator(hosts):
    """Two hosts that are as they should be: with the operator's own Python as environment."""
    rig = hosts(2, binds=python_binds(Path(sys.executable)), size="16g")
    return Operator(rig)


def untouched(rig: Rig) -> bool:
    """Nothing of llx lies on any host that is on."""
    look = ["sh", "-c", "ls -A /home/llx | grep -vx .ssh; ls -d /tmp/llx*"]
    return not any(host.x(*look).stdout for host in rig.hosts if host.is_on)


def refused(operator: Operator, path: str, code: int, *words: str) -> str:
    """`llx up` refuses, and nothing has been changed."""
    done = operator("up", "-y", path)
    said = done.stderr + done.stdout
    assert done.returncode == code, said
    for each in words:
        assert each in said, said
    assert untouched(operator.rig)
    return said


def changed(operator: Operator, **of_h2: object) -> str:
    """The path of a cluster.yaml in which h2 is said to be otherwise."""
    first, second = operator.rig.cluster_hosts()
    return operator.config([first, {**second, **of_h2}])


def test_wrong_key(operator):
    other = operator.rig.home / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    path = changed(operator, identity_file=str(other))
    said = refused(operator, path, 3, "h2", "llx@10.77.", "does not let us in", "remedy:")
    assert "h1" not in said.partition("error:")[2]


def test_wrong_user(operator):
    refused(operator, changed(operator, user="nobody-there"), 3, "h2", "nobody-there")


def test_changed_host_key(operator):
    known = operator.rig.home / ".ssh" / "known_hosts"
    first, second = operator.rig.hosts
    known.write_text(f"{first.address} {first.host_key}\n{second.address} {first.host_key}\n")
    refused(operator, operator.config(), 3, "h2", "host key", "ssh-keygen")


def test_unknown_host_key_and_nobody_to_ask(operator):
    known = operator.rig.home / ".ssh" / "known_hosts"
    first = operator.rig["h1"]
    known.write_text(f"{first.address} {first.host_key}\n")
    refused(operator, operator.config(), 3, "h2", "SHA256:")


def test_unreachable(operator):
    operator.rig["h2"].off()
    refused(operator, operator.config(), 3, "h2", "remedy:")


def test_a_port_is_taken(operator):
    host = operator.rig["h2"]
    script = "import socket,time;s=socket.create_server(('0.0.0.0',20002));time.sleep(99)"
    holder = host.spawn("/usr/bin/python3", "-c", script, user="llx")
    try:
        eventually(lambda: ":4E22" in host.x("cat", "/proc/net/tcp").stdout)
        refused(operator, operator.config(), 5, "h2", "20002", "python3")
    finally:
        holder.kill()
        holder.wait()


def test_a_clock_is_off(operator):
    """date(1) of that host is a script that is five minutes ahead."""
    ahead = "import time; print(time.time() + 300)"
    script = f"#!/bin/sh\nexec /usr/bin/python3 -c '{ahead}'\n"
    operator.rig["h2"].cover("/usr/bin/date", script)
    operator.rig["h2"].x("chmod", "755", "/usr/bin/date", check=True)
    refused(operator, operator.config(), 1, "h2", "clock", "ahead", "remedy:")


def test_no_disk(hosts):
    operator = Operator(hosts(2, size="200m"))
    refused(operator, operator.config(), 1, "h1", "h2", "disk", "free", "remedy:")


def test_no_python_and_none_to_bring(hosts, tmp_path):
    (tmp_path / "wheels").mkdir()
    operator = Operator(hosts(1, hide=("/usr/bin/python3*", "/usr/local/bin/python3*")))
    runtime = {"platform": "cpu", "wheelhouse": str(tmp_path / "wheels")}
    refused(operator, operator.config(runtime=runtime), 1, "h1", "Python", "remedy:")


def test_an_environment_that_does_not_fit(operator):
    """Plain Python: without vLLM and Ray."""
    refused(operator, changed(operator, python="/usr/bin/python3"), 1, "h2", "remedy:")


def test_another_cluster_is_there(operator):
    rig = operator.rig
    rig["h2"].x("mkdir", "-p", "-m", "700", "/home/llx/.llx", user="llx")
    rig["h2"].write("/home/llx/.llx/host.json", '{"cluster": "theirs", "id": "abc"}')
    done = operator("up", "-y", operator.config())
    assert done.returncode == 5, done.stderr
    assert "theirs" in done.stderr
    assert not rig["h1"].x("ls", "-d", "/home/llx/.llx").stdout


def test_all_that_is_wrong_is_said_at_once(operator):
    operator.rig["h2"].off()
    first, second = operator.rig.cluster_hosts()
    path = operator.config([{**first, "python": "/usr/bin/python3"}, second])
    said = refused(operator, path, 1, "h1", "h2")
    assert said.count("remedy:") >= 2
