"""Models of the hub on hosts: who is asked, who is not, that all hosts get one commit."""

import json
import os
from pathlib import Path, PurePosixPath

import pytest

from llx import __version__
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hub_models import (
    HubAccess,
    HubPins,
    ensure_hub_model,
    is_progress,
    node_python,
    pull_model,
)
from llx.bootstrap.model_files import HubModel
from llx.bootstrap.models import list_models
from llx.errors import HostError, InstallError
from llx.secret import Secret
from tests.bootstrap.fake_shell import LocalShell, completed
from tests.bootstrap.hub_host import COMMIT, LATER, HubHost, put_model

ACCESS = HubAccess(PurePosixPath("/n/bin/python"))
MODEL = HubModel("o/n")


def layout_in(home: Path) -> HostLayout:
    home.mkdir()
    return HostLayout(PurePosixPath(home), os.getuid(), "c")


@pytest.fixture
def layout(tmp_path) -> HostLayout:
    return layout_in(tmp_path / "home")


# --- one pull --------------------------------------------------------------------------------


def test_a_pull_tells_how_far_it_is_and_what_came_of_it(layout):
    told: list[tuple[int, int]] = []
    host = HubHost()
    host.says = [
        "a warning of some library",
        '{"llx": "progress", "done": 1, "total": 9}',
        '{"llx": "progress", "done": 9, "total": 9}',
        '{"llx": "fetched", "source": "hub:o/n@1"}',
    ]
    model = HubModel("o/n", "v1")
    assert pull_model(host, layout, model, ACCESS, on_progress=lambda *now: told.append(now))
    assert told == [(1, 9), (9, 9)]
    assert host.asked == [("o/n", "--to", str(layout.models / "o--n--v1"), "--revision=v1")]
    host.says = ['{"llx": "unchanged"}']
    assert not pull_model(host, layout, model, ACCESS)
    assert [is_progress(line) for line in ('{"llx": "progress", "done"', "x", "")] == [True, 0, 0]


def test_a_token_goes_through_stdin_and_nowhere_else(layout):
    host = HubHost()
    access = HubAccess(ACCESS.python, Secret("hf_secret"), "http://hub")
    pull_model(host, layout, MODEL, access)
    assert host.stdin == b"hf_secret"
    assert host.environment["HF_ENDPOINT"] == "http://hub"
    assert "hf_secret" not in f"{host.argvs} {host.asked} {host.environment}"
    assert host.put_paths == []


@pytest.mark.parametrize(
    ("says", "stderr", "message", "remedy"),
    [
        (
            ['{"llx": "failed", "problem": "o/n does not exist", "remedy": "correct the name"}'],
            "Traceback …",
            "h1: pull o/n: o/n does not exist",
            "correct the name",
        ),
        (
            ['{"llx": "away", "problem": "the hub is out of reach: ConnectError"}'],
            "",
            "h1: pull o/n: the hub is out of reach: ConnectError",
            "or copy the model from here: llx model add o--n DIR",
        ),
        ([], "No module named llx", "h1: pull o/n: the download ended with exit code 1", "repeat"),
    ],
)
def test_a_pull_that_fails_says_why(layout, says, stderr, message, remedy):
    host = HubHost()
    host.says, host.done = says, completed(exit_code=1, stderr=stderr)
    with pytest.raises(HostError) as caught:
        pull_model(host, layout, MODEL, ACCESS)
    assert caught.value.message == message
    assert remedy in caught.value.remedy
    assert caught.value.detail == ("" if says else stderr)


def test_the_environment_that_pulls_is_the_one_given_or_the_one_that_is_there(layout):
    assert node_python(LocalShell(), layout, Path("/opt/py")) == PurePosixPath("/opt/py")
    with pytest.raises(InstallError, match="h1 has no node environment yet"):
        node_python(LocalShell(), layout, None)
    there = Path(layout.node_python("cuda"))
    there.parent.mkdir(parents=True)
    there.touch()
    assert f"{__version__}-cuda" in str(there)
    assert node_python(LocalShell(), layout, None) == PurePosixPath(there)


# --- what up does ----------------------------------------------------------------------------


def place(layout: HostLayout, model: HubModel = MODEL) -> Path:
    return Path(layout.models / model.name)


def commit_there(layout: HostLayout) -> str:
    return json.loads((place(layout) / "llx-model.json").read_text())["source"].rpartition("@")[2]


def test_a_model_that_is_there_is_not_asked_for(layout):
    first = HubHost()
    assert ensure_hub_model(first, layout, MODEL, HubPins(), ACCESS)
    assert [list(words) for words in first.asked] == [
        ["o/n", "--look-up"],
        ["o/n", "--to", str(place(layout)), f"--revision={COMMIT}"],
    ]
    again = HubHost(branch=LATER)  # the branch has moved on
    assert not ensure_hub_model(again, layout, MODEL, HubPins(), ACCESS)
    assert again.asked == []
    assert len(again.argvs) <= 1


def test_what_is_missing_of_it_is_fetched_at_the_same_commit(layout):
    ensure_hub_model(HubHost(), layout, MODEL, HubPins(), ACCESS)
    (place(layout) / "config.json").write_bytes(b"cut")
    pins = HubPins.of_hosts(
        {"h1": {found.name: found.source for found in list_models(HubHost(), layout)}}, first="h1"
    )
    again = HubHost(branch=LATER)
    assert ensure_hub_model(again, layout, MODEL, pins, ACCESS)
    assert commit_there(layout) == COMMIT


def test_what_was_not_finished_is_taken_up(layout):
    place(layout).mkdir(parents=True)
    (place(layout) / "config.json").write_bytes(b"cut")
    assert ensure_hub_model(HubHost(), layout, MODEL, HubPins(), ACCESS)
    assert commit_there(layout) == COMMIT


def test_hosts_that_ask_while_the_branch_moves_get_one_commit(tmp_path):
    one, other = layout_in(tmp_path / "one"), layout_in(tmp_path / "other")
    pins = HubPins()
    ensure_hub_model(HubHost("h1"), one, MODEL, pins, ACCESS)
    ensure_hub_model(HubHost("h2", branch=LATER), other, MODEL, pins, ACCESS)
    assert commit_there(one) == commit_there(other) == COMMIT


def test_a_host_that_is_added_gets_the_commit_that_the_others_have(layout):
    sources = {"h2": {"o--n": f"hub:o/n@{LATER}"}, "h1": {"o--n": f"hub:o/n@{COMMIT}", "m": ""}}
    host = HubHost(branch=LATER)
    pins = HubPins.of_hosts(sources, first="h1")
    assert ensure_hub_model(host, layout, MODEL, pins, ACCESS)
    assert [words[1] for words in host.asked] == ["--to"], "the commit is known: it is not asked"
    assert commit_there(layout) == COMMIT


def test_a_host_that_has_another_commit_gets_that_of_the_others(layout):
    put_model(place(layout), f"hub:o/n@{LATER}")
    assert ensure_hub_model(HubHost(), layout, MODEL, HubPins({"o--n": COMMIT}), ACCESS)
    assert commit_there(layout) == COMMIT


def test_a_copy_by_hand_will_do(layout):
    put_model(place(layout), "copy:/weights")
    host = HubHost()
    assert not ensure_hub_model(host, layout, MODEL, HubPins({"o--n": COMMIT}), ACCESS)
    assert host.asked == []


def test_a_revision_that_is_a_commit_is_not_looked_up(layout):
    host, model = HubHost(branch=LATER), HubModel("o/n", COMMIT)
    assert ensure_hub_model(host, layout, model, HubPins(), ACCESS)
    assert host.asked == [("o/n", "--to", str(place(layout, model)), f"--revision={COMMIT}")]
    put_model(place(layout, model), f"hub:o/n@{LATER}")
    assert ensure_hub_model(host, layout, model, HubPins(), ACCESS)


def test_a_branch_or_tag_is_looked_up_by_its_name(layout):
    host, model = HubHost(branch=LATER), HubModel("o/n", "v1")
    assert ensure_hub_model(host, layout, model, HubPins(), ACCESS)
    assert host.asked[0] == ("o/n", "--look-up", "--revision=v1")
