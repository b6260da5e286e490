"""`llx play`, as far as it goes without a host; tests/hosts/test_play.py has the rest."""

import pytest
import typer
from typer.testing import CliRunner

from llx.cli.play import play

CLUSTER = """
cluster: prod
hosts: [{name: h1, address: 127.0.0.1, port: 1, user: nobody}]
models: [{name: m, model: /m}]
"""


@pytest.fixture
def run(llx, tmp_path):
    app = typer.Typer()
    app.command()(play)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "local.yaml").write_text("models: [{name: m, model: /m}]\n")

    def invoke(*words):
        return CliRunner().invoke(app, list(words), env=llx.variables)

    return invoke


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["bootstrp", "--file", "cluster.yaml"], 4, 'did you mean "bootstrap"?'),
        (["./none.yaml", "--file", "cluster.yaml"], 2, "cannot be read"),
        (["firewall"], 4, "no cluster was started here"),
        (["firewall", "--file", "local.yaml"], 2, "has no hosts"),
        (["firewall", "--file", "cluster.yaml", "--hosts", "h2"], 4, 'no host "h2"'),
        (["firewall", "--file", "cluster.yaml", "--set", "x"], 2, "write --set NAME=VALUE"),
        (["collect-logs", "--file", "cluster.yaml"], 2, "--set to=VALUE"),
        (["unfirewall", "--file", "cluster.yaml", "--dry-run"], 3, "failed on h1:"),
    ],
)
def test_what_cannot_be_is_said_with_its_exit_code(run, words, code, message):
    done = run(*words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert "error: " in done.stderr


def test_the_description_is_shown_before_hosts_are_touched(run):
    done = run("unfirewall", "--file", "cluster.yaml", "-y")
    assert done.stderr.startswith("unfirewall: Takes the firewall playbook's table away.\n")
    assert "host h1 failed" in done.stderr
