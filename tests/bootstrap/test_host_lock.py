"""The lock on the head's host, with a shell that does what it is told: here."""

import os
import time
from pathlib import Path, PurePosixPath

import pytest

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_lock import STALE_AFTER_S, hold, release, show
from llx.errors import ConflictError
from tests.bootstrap.fake_shell import LocalShell


@pytest.fixture
def layout(tmp_path: Path) -> HostLayout:
    return HostLayout(PurePosixPath(tmp_path), os.getuid(), "c")


def held_by(layout: HostLayout, user: str):
    return hold(LocalShell("h1"), layout, "up", user, "laptop", 77)


def test_one_at_a_time_and_the_holder_is_named(layout):
    with held_by(layout, "ann") as held:
        held.require()
        with (
            pytest.raises(ConflictError, match=r"llx up of ann@laptop \(pid 77"),
            held_by(layout, "bob"),
        ):
            pass
        holder = show(LocalShell("h1"), layout)
        assert holder is not None
        assert holder.user == "ann"
        assert not holder.is_stale
    assert show(LocalShell("h1"), layout) is None
    assert not Path(layout.root).exists(), "nothing else was there"


def test_who_has_let_go_does_nothing_more(layout):
    with held_by(layout, "ann") as held:
        pass
    with pytest.raises(ConflictError, match="lost the cluster's lock"):
        held.require()


def test_who_may_have_been_taken_over_does_nothing_more(layout):
    """Asleep, or cut off, for almost as long as a lock lasts."""
    with held_by(layout, "ann") as held:
        held.fresh_at -= STALE_AFTER_S - 4
        with pytest.raises(ConflictError):
            held.require()


def test_a_lock_that_nobody_keeps_fresh_is_taken_over_and_stays_the_others(layout):
    with held_by(layout, "ann"):
        old = time.time() - STALE_AFTER_S - 1
        os.utime(layout.lock, (old, old))
        bobs = held_by(layout, "bob")
        bobs.__enter__()
    holder = show(LocalShell("h1"), layout)
    assert holder is not None
    assert holder.user == "bob", "ann's end did not take it away"
    bobs.__exit__(None, None, None)


def test_a_release_takes_it_from_whoever_has_it(layout):
    with held_by(layout, "ann"):
        holder = release(LocalShell("h1"), layout)
        assert holder is not None
        assert holder.user == "ann"
        assert show(LocalShell("h1"), layout) is None
