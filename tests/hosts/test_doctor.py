"""`llx doctor FILE` against real machines."""

import json
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from llx.cli.doctor import doctor
from llx.errors import ExitCode
from tests.hosts.operator_machine import Operator
from tests.hosts.rig import python_binds

pytestmark = pytest.mark.hosts

app = typer.Typer()
app.command("doctor")(doctor)


def examine(rig, tmp_path, hosts, *words):
    file = tmp_path / "cluster.yaml"
    model = {"name": "m", "model": "x", "engine": "sim"}
    file.write_text(yaml.safe_dump({"cluster": "prod", "hosts": hosts, "models": [model]}))
    environment = {**rig.operator_environment(), "SSH_AUTH_SOCK": "", "LLX_DEBUG": ""}
    done = CliRunner().invoke(app, [str(file), *words], env=environment, prog_name="llx")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_good_hosts_pass_and_nothing_is_left_on_them(hosts, tmp_path):
    rig = hosts(2, size="8g")
    rig.trust()
    home = ["find", "/home", "/tmp", "/var/tmp", "/dev/shm"]
    before = [host.x(*home).stdout for host in rig.hosts]
    done = examine(rig, tmp_path, rig.cluster_hosts())
    assert done.exit_code == 0, done.output
    assert "0 failed" in done.stdout
    for name, other in (("h1", "h2"), ("h2", "h1")):
        part = done.stdout.partition(f"{name}\n")[2]
        assert f"reaches {other}" in part
    assert [host.x(*home).stdout for host in rig.hosts] == before


def test_hosts_that_do_not_reach_each_other_are_told_before_anything_is_done(hosts):
    rig = hosts(2, binds=python_binds(Path(sys.executable)), size="8g")
    rig["h2"].drop(rig["h1"])
    done = Operator(rig)("up", "-y", Operator(rig).config())
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr
    assert "reachability" in done.stderr
    assert f"({rig['h1'].address})" in done.stderr
    assert "hosts[].cluster_address" in done.stderr
    assert not rig["h1"].x("ls", "-d", "/home/llx/.llx").stdout


def test_each_bad_host_is_named_and_the_good_one_is_looked_at(hosts, tmp_path):
    rig = hosts(4, size="8g")
    rig.trust()
    rig["h2"].off()
    rig["h3"].make_host_key()
    rig["h3"].restart()
    given = rig.cluster_hosts()
    given[3] = {**given[3], "user": "nobody-here"}
    done = examine(rig, tmp_path, given, "-o", "json")
    report = json.loads(done.stdout)
    failed = {each["host"]: each for each in report["checks"] if each["state"] == "fail"}
    assert set(failed) == {"h2", "h3", "h4"}
    assert {each["subject"] for each in failed.values()} == {"connection"}
    assert all(each["remedy"] for each in failed.values())
    assert "ssh-keygen" in failed["h3"]["remedy"]
    assert "nobody-here" in failed["h4"]["detail"]
    assert {"system", "disk", "clock"} <= {
        each["subject"] for each in report["checks"] if each["host"] == "h1"
    }
    assert done.exit_code == report["exit_code"] == ExitCode.UNREACHABLE
