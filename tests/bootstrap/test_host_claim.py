"""Whose a host is, and what is played there when it is left."""

import json
from pathlib import PurePosixPath

import pytest

from llx.bootstrap.host_claim import Owner, owner_of
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_stop import playbooks_for
from llx.errors import ConflictError
from tests.bootstrap.fake_shell import FakeShell, completed

LAYOUT = HostLayout(PurePosixPath("/home/ann"), 1000, "c")


def host(claim: str | None) -> FakeShell:
    shell = FakeShell("h1")
    if claim is not None:
        shell.put(claim.encode(), str(LAYOUT.claim))
    shell.answer("sudo", by=completed(exit_code=1))
    return shell


def claim(cluster: str, cluster_id: str) -> str:
    return json.dumps({"cluster": cluster, "id": cluster_id})


@pytest.mark.parametrize(
    ("content", "known", "owner"),
    [
        (None, "1", Owner.NOBODY),
        ("half a cla", "1", Owner.US),
        (claim("c", "1"), "1", Owner.US),
        (claim("c", "1"), "", Owner.US),
        (claim("c", ""), "1", Owner.US),
        (claim("c", "2"), "1", Owner.NAMESAKE),
        (claim("theirs", "1"), "1", Owner.OTHER),
        (claim("theirs", "2"), "", Owner.OTHER),
    ],
)
def test_whose_it_is(content, known, owner):
    assert owner_of(host(content), LAYOUT, known) is owner


@pytest.mark.parametrize(
    ("owner", "is_left", "played"),
    [
        (Owner.NOBODY, False, ["stop", "clear", "purge"]),
        (Owner.US, False, ["stop", "clear", "purge"]),
        (Owner.OTHER, False, ["forget"]),
        (Owner.NOBODY, True, ["stop", "clear", "purge"]),
        # It has its things where ours were: even our traces are not ours to take away.
        (Owner.US, True, []),
        (Owner.NAMESAKE, True, []),
        (Owner.OTHER, True, ["forget"]),
    ],
)
def test_what_a_purge_plays(owner, is_left, played):
    assert playbooks_for(host(None), LAYOUT, owner, is_purge=True, is_left=is_left) == played


def test_a_namesake_is_never_taken_down():
    with pytest.raises(ConflictError, match='called "c", too') as caught:
        playbooks_for(host(None), LAYOUT, Owner.NAMESAKE, is_purge=False, is_left=False)
    assert "llx up" in caught.value.remedy
