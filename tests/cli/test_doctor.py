import json

import pytest
import typer
from typer.testing import CliRunner

from llx.api import ClusterState, InstanceState
from llx.cli.doctor import doctor
from llx.errors import ExitCode

app = typer.Typer()
app.command("doctor")(doctor)


@pytest.fixture
def good_head(head):
    """A head whose cluster has nothing to complain of."""
    ready = {"state": InstanceState.READY, "detail": ""}
    instances = [each.model_copy(update=ready) for each in head.found.instances]
    update = {"state": ClusterState.READY, "instances": instances}
    head.found = head.found.model_copy(update=update)
    return head


@pytest.fixture
def examine(llx):
    def run(*words):
        return CliRunner().invoke(app, list(words), env=llx.variables, prog_name="llx")

    return run


class TestLocalCluster:
    def test_one_that_is_well(self, examine, good_head):
        done = examine()
        assert done.exit_code == 0, done.output
        lines = done.stdout.splitlines()
        assert any(line.startswith("  ok    control API  answers: ready") for line in lines)
        assert any("OpenAI API" in line and "serves tiny" in line for line in lines)
        assert lines[-1].endswith("ok, 0 warnings, 0 failed")

    def test_one_whose_gateway_is_gone(self, examine, good_head):
        nobody = good_head.found.model_copy(update={"url": "http://127.0.0.1:9"})
        good_head.found = nobody
        done = examine()
        assert done.exit_code == ExitCode.UNREACHABLE
        assert "  fail  OpenAI API" in done.stdout
        assert "remedy: " in done.stdout

    def test_as_json(self, examine, good_head):
        data = json.loads(examine("-o", "json").stdout)
        assert (data["api_version"], data["is_healthy"], data["exit_code"]) == ("v1", True, 0)
        assert {"host", "subject", "state", "detail", "remedy", "evidence"} == set(
            data["checks"][0]
        )

    def test_none_at_all(self, examine):
        done = examine()
        assert done.exit_code == ExitCode.NOT_FOUND
        assert "llx up" in done.stderr


class TestFile:
    def test_hosts_out_of_reach(self, examine, tmp_path):
        file = tmp_path / "cluster.yaml"
        file.write_text(
            "hosts: [{name: h1, address: 127.0.0.1, port: 9}]\n"
            "models: [{name: m, model: x, engine: sim}]\n"
        )
        done = examine(str(file))
        assert done.exit_code == ExitCode.UNREACHABLE
        assert "h1\n  fail  connection" in done.stdout
        assert "remedy: " in done.stdout
        named = examine(str(file), "-o", "name")
        assert named.stdout == "h1\n"

    def test_one_for_this_machine(self, examine, tmp_path):
        file = tmp_path / "cluster.yaml"
        file.write_text("models: [{name: m, model: ./none}]\n")
        done = examine(str(file))
        assert done.exit_code == ExitCode.CHECK_FAILED
        assert "  fail  model m" in done.stdout
        assert "no such directory" in done.stdout

    def test_no_such_file(self, examine):
        assert examine("none.yaml").exit_code == ExitCode.NOT_FOUND
