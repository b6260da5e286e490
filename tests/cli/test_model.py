"""`llx model`, as far as it goes without a host; tests/hosts/test_install.py has the rest."""

import json

import pytest

from llx.bootstrap.model_hosts import ModelOnHost
from llx.cli.model import _show
from llx.cli.session import Session


def cluster(*models, **changes):
    host = {"name": "h1", "address": "127.0.0.1", "port": 1, "user": "nobody"}
    named = [{"name": f"m{number}", **each} for number, each in enumerate(models)]
    return json.dumps({"cluster": "prod", "hosts": [host], "models": named, **changes})


USED = cluster(
    {"model": "org/name"},
    {"model": "org/name", "engine_args": {"revision": "v1"}},
    {"model": "@models/mine"},
    {"model": "llx/tiny"},
)


@pytest.fixture
def running(llx):
    """A cluster that is up, as far as this machine knows."""
    state = llx.environment.cluster_dir("prod")
    state.mkdir(parents=True)
    (state / "cluster.yaml").write_text(USED)


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("org/name", "m0"),
        ("org--name", "m0"),
        ("org--name--v1", "m1"),
        ("mine", "m2"),
        ("tiny-1", "m3"),
    ],
)
def test_what_is_served_is_not_removed(llx, running, name, user):
    done = llx("model", "rm", name, "-y")
    assert done.exit_code == 5
    assert f"is what cluster prod serves as {user}\n" in done.stderr
    assert "say --force" in done.stderr


def test_what_is_served_is_not_removed_whatever_the_file_says_by_now(llx, running):
    (llx.root / "c.yaml").write_text(cluster({"model": "org/other"}))
    done = llx("model", "rm", "org/name", "-y", "--file", "c.yaml")
    assert done.exit_code == 5
    assert "serves as m0" in done.stderr


@pytest.mark.parametrize("words", [["org/other"], ["org/name", "--force"]])
def test_what_is_not_served_is_removed_and_so_is_any_by_force(llx, running, words):
    done = llx("model", "rm", "-y", *words)
    assert done.exit_code == 3, "it went there"
    assert "host h1 failed" in done.stderr


def test_a_list_says_where_how_large_and_what_is_not_finished(llx, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    rows = [
        ModelOnHost(
            host="h1", name="m", is_complete=True, size_bytes=2 * 10**9, source="hub:o/n@1"
        ),
        ModelOnHost(host="h2", name="m", is_complete=False, size_bytes=5 * 10**6, source=""),
    ]
    _show(Session(), rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["h1", "m", "complete", "2.0", "GB", "hub:o/n@1"],
        ["h2", "m", "partial", "5", "MB", "-"],
    ]
