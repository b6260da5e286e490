"""Playbooks on namespace hosts: real SSH, real users, the real packet filter."""

import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner

from llx.cli.play import play

pytestmark = pytest.mark.hosts

LISTEN = """
import socket, sys
listener = socket.create_server(("", 20005), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""
# From the port and to the host of the arguments; says how it went.
CALL = """
import socket, sys
source, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with socket.socket() as caller:
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    caller.settimeout(2)
    caller.bind(("", source))
    try:
        caller.connect((address, port))
        print("through")
    except TimeoutError:
        print("dropped")
"""


@contextmanager
def listening(host):
    with host.spawn("python3", "-c", LISTEN, stdout=-1) as listener:
        assert listener.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            listener.kill()


class Operator:
    """Plays playbooks on a rig's hosts, as `llx play` does."""

    def __init__(self, rig, directory, *, user="llx", names=()):
        self.rig = rig
        self.file = directory / "cluster.yaml"
        hosts = [each for each in rig.cluster_hosts(user=user) if each["name"] in names]
        models = [{"name": "m", "model": "/m"}]
        self.file.write_text(yaml.safe_dump({"cluster": "prod", "hosts": hosts, "models": models}))
        self.app = Typer()
        self.app.command()(play)
        rig.trust()

    def __call__(self, playbook, *words):
        argv = [playbook, "--file", str(self.file), "-y", *words]
        environment = dict.fromkeys(("LLX_CONTEXT", "LLX_DEBUG", "SSH_AUTH_SOCK"), "")
        environment |= self.rig.operator_environment()
        return CliRunner().invoke(self.app, argv, env=environment)


def home(host, user="llx"):
    """Everything in a user's home, with modes and owners."""
    path = "/root" if user == "root" else f"/home/{user}"
    return host.x("find", path, "-printf", "%P %M %U\n", check=True).stdout


def test_bootstrap_twice_and_purge(hosts, tmp_path):
    rig = hosts(3)
    before = {each.name: home(each) for each in rig.hosts}
    operator = Operator(rig, tmp_path, names=[each.name for each in rig.hosts])
    first = operator("bootstrap")
    assert first.exit_code == 0, first.output
    for host in rig.hosts:
        assert f"{host.name}: changed: " in first.stdout
        found = home(host)
        assert ".llx drwx------ 4242" in found
        assert ".llx/clusters/prod/procs drwx------ 4242" in found
        assert "-py3-none-any.whl -rw-r--r-- 4242" in found
    dry = operator("bootstrap", "--dry-run")
    assert dry.stdout.splitlines() == [f"{each.name}: nothing to do" for each in rig.hosts]
    again = operator("bootstrap")
    assert again.stdout.splitlines() == [f"{each.name}: nothing changed" for each in rig.hosts]
    done = operator("purge")
    assert done.exit_code == 0, done.output
    assert {each.name: home(each) for each in rig.hosts} == before


def test_logs_come_over_ssh(hosts, tmp_path):
    rig = hosts(1)
    host = rig.hosts[0]
    operator = Operator(rig, tmp_path, names=[host.name])
    procs = "/home/llx/.llx/clusters/prod/procs"
    script = f"mkdir -p {procs}/m-0 && seq 400000 > {procs}/m-0/log && echo s > {procs}/keys.json"
    host.x("sh", "-c", script, user="llx", check=True)
    done = operator("collect-logs", "--set", f"to={tmp_path}/got")
    assert done.exit_code == 0, done.output
    assert f"{host.name}: fetched: logs of processes (1 file, 2.7 MB)" in done.stdout
    got = tmp_path / "got" / host.name
    assert {path.relative_to(got) for path in got.rglob("*") if path.is_file()} == {
        Path("procs/m-0/log")
    }
    text = "".join(f"{number}\n" for number in range(1, 400001))
    assert (got / "procs" / "m-0" / "log").read_text() == text


def test_the_firewall_lets_the_cluster_in_and_nobody_else(hosts, tmp_path):
    rig = hosts(3)
    one, two, stranger = rig.hosts
    operator = Operator(rig, tmp_path, user="root", names=[one.name, two.name])

    def call(who, source, host, port=20005):
        return who.x("python3", "-c", CALL, str(source), host.address, str(port)).stdout.strip()

    with ExitStack() as stack:
        for host in (one, stranger):
            stack.enter_context(listening(host))
        _firewall_walk(operator, call, one, two, stranger)


def _firewall_walk(operator, call, one, two, stranger):
    assert call(stranger, 0, one) == "through"
    first = operator("firewall")
    assert first.exit_code == 0, first.output
    assert operator("firewall").stdout.splitlines() == [
        f"{one.name}: nothing changed",
        f"{two.name}: nothing changed",
    ]
    assert call(two, 0, one) == "through"
    assert call(one, 0, one) == "through"
    assert call(stranger, 0, one) == "dropped"
    assert call(stranger, 0, one, 22) == "through"
    # Answers to what the host itself asks from such a port are let in.
    assert call(one, 20007, stranger) == "through"
    one.x("nft", "flush", "chain", "inet", "llx_prod", "rules", check=True)
    mended = operator("firewall").stdout.splitlines()
    assert mended == [f"{one.name}: changed: packet filter", f"{two.name}: nothing changed"]
    assert call(stranger, 0, one) == "dropped"
    assert operator("unfirewall").exit_code == 0
    assert call(stranger, 0, one) == "through"
    assert one.x("nft", "list", "tables").stdout == ""
    assert "nothing changed" in operator("unfirewall").stdout


def test_a_user_without_rights_is_told_so_and_the_others_go_on(hosts, tmp_path):
    rig = hosts(2)
    one, two = rig.hosts
    operator = Operator(rig, tmp_path, names=[one.name, two.name])
    done = operator("firewall")
    assert done.exit_code == 1
    assert f"{one.name}: firewall: packet filter: " in done.stderr
    assert "sudo" in done.stderr
    two.off()
    done = operator("bootstrap")
    assert done.exit_code == 6
    assert f"{one.name}: changed: " in done.stdout
    assert f"playbook bootstrap failed on {two.name}:" in done.stderr


def test_a_host_that_dies_in_the_middle_is_soon_known_to(hosts, tmp_path):
    rig = hosts(2)
    one, two = rig.hosts
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndescription: d\nparameters: {root: r}\nsteps:\n"
        "  - name: a\n    run:\n      check: [test, -e, '{root}/done']\n"
        '      apply: [sh, -c, \'mkdir -p "$1/begun"; [ "$(hostname)" = h1 ] || sleep 600; '
        "touch \"$1/done\"', sh, '{root}']\n"
    )
    operator = Operator(rig, tmp_path, names=[one.name, two.name])

    def cut_power():
        while two.x("test", "-e", "/home/llx/.llx/begun").returncode:
            time.sleep(0.1)
        two.off()

    killer = threading.Thread(target=cut_power)
    killer.start()
    done = operator(str(path))
    killer.join(timeout=20)
    assert done.exit_code == 6
    assert f"{one.name}: changed: a" in done.stdout
    assert two.name in done.stderr
