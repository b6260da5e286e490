import json

import pytest
from typer.testing import CliRunner

from llx.cli.main import app

pytestmark = pytest.mark.sim

SHORT = ["sim", "run", "--requests", "40", "--instances", "2", "--rate", "2"]


def test_json_has_every_seed():
    words = [*SHORT, "--policy", "infaas", "--policy", "llx", "--seeds", "3-4", "-o", "json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [each["policy"] for each in rows] == ["infaas", "llx"]
    assert all(len(set(each["trace_hashes"])) == 2 for each in rows)
    assert done.stdout == CliRunner().invoke(app, words).stdout


def test_table():
    done = CliRunner().invoke(app, SHORT)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("POLICY")


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--policy", "fate"], 2), (["--workload", "x-x"], 2), (["--seeds", "4-3"], 2)],
)
def test_nonsense_is_refused(words, code):
    done = CliRunner().invoke(app, [*SHORT, *words])
    assert done.exit_code == code
    assert "one of" in done.stderr or "seeds" in done.stderr
