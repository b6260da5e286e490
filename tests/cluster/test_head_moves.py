"""The head moves to another host: what it leaves, who hears of the next one, who is fenced."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.api import ClusterState, HostState, InstanceState
from llx.cluster.state_dir import StateDir
from llx.core.model import TERMS_PER_SEAT, Term, is_of_later_seat, next_seat
from llx.head_copy import COPY_FILE, HeadCopy, HeadMoved
from llx.specs import load_spec, save_spec
from tests.cluster.hosts_rig import HostsRig, events, host_state, make_rig

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def copy_on(rig: HostsRig, host: str) -> HeadCopy:
    return load_spec(rig.hosts[host].state.path / COPY_FILE, HeadCopy)


def has_copy(rig: HostsRig, host: str, name: str, words: str) -> bool:
    path = rig.hosts[host].state.path / COPY_FILE
    return path.exists() and words in copy_on(rig, host).files.get(name, "")


def seat(rig: HostsRig, host: str, away: list[str]) -> None:
    """As `llx up --head` does: the next head begins with a copy that a host has kept."""
    copy = copy_on(rig, host)
    rig.state = StateDir(rig.root / "next-head")
    rig.state.create()
    rig.state.keys.write_bytes(rig.keys)
    for name, content in copy.files.items():
        (rig.state.path / name).write_text(content)
    rig.state.term.write_text(f"{next_seat(copy.term)}\n")
    save_spec(rig.state.moved, HeadMoved("h1", "ann", away))


def test_terms_of_the_next_seat_are_beyond_all_of_this_one() -> None:
    first = Term(next_seat(Term(7)) + 1)
    assert first == TERMS_PER_SEAT + 1
    assert is_of_later_seat(first, Term(TERMS_PER_SEAT - 1))
    assert not is_of_later_seat(Term(8), Term(7))
    assert next_seat(first) > first


def test_other_hosts_keep_what_the_head_must_remember(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        rig.hosts["h3"].line = "cut"
        client.cordon_host("h2", is_on=True, user="ann")
        rig.eventually(lambda: has_copy(rig, "h2", "cordons.json", "h2"), "h2 has the cordon")
        rig.eventually(lambda: has_copy(rig, "h2", "placement.json", "m-1"), "h2 has the rest")
        assert not has_copy(rig, "h3", "cordons.json", "h2")
        rig.hosts["h3"].line = "up"
        rig.eventually(lambda: has_copy(rig, "h3", "cordons.json", "h2"), "h3, too, now it is back")
        assert copy_on(rig, "h3") == copy_on(rig, "h2")
        assert not (rig.hosts["h1"].state.path / COPY_FILE).exists(), "it is the head's own"


def test_the_next_head_takes_over_what_runs_and_places_the_rest(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings(models=[rig.model("m", 3)])) as client:
        rig.reaches(client, ClusterState.READY)
        before = rig.where(client)
        client.cordon_host("h2", is_on=True, user="ann")
        rig.eventually(lambda: has_copy(rig, "h3", "cordons.json", "h2"), "h3 has a copy")
    lost = {name for name, host in before.items() if host == "h1"}
    assert lost
    pids = {n: rig.hosts[host].pid(n) for n, host in before.items() if host != "h1"}
    rig.end_head()
    rig.hosts["h1"].off()
    seat(rig, "h3", away=["h1"])
    with rig.up() as client:
        rig.eventually(lambda: host_state(client, "h1") is HostState.LOST, "h1 is lost", 30)
        rig.eventually(
            lambda: all(e.state is InstanceState.READY for e in client.status().instances), "ready"
        )
        now = rig.where(client)
        assert {name: rig.hosts[now[name]].pid(name) for name in pids} == pids
        assert {now[name] for name in lost} == {"h3"}, "h2 is cordoned still"
        assert client.status().term > TERMS_PER_SEAT
    (moved,) = events(rig, "head.moved")
    assert (moved["former"], moved["user"]) == ("h1", "ann")
    assert not rig.state.moved.exists()


def test_what_was_away_is_not_forgotten_before_the_next_placements_are_kept(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        rig.eventually(lambda: has_copy(rig, "h2", "placement.json", "m-1"), "h2 has a copy")
    rig.end_head()
    rig.hosts["h1"].off()
    seat(rig, "h2", away=["h1"])
    rig.state.placements.unlink()
    rig.state.placements.mkdir()  # as a full disk: nothing can be kept there
    with rig.up() as client:
        rig.eventually(lambda: host_state(client, "h2") is HostState.READY, "a round has begun")
        assert rig.state.moved.exists()
        assert events(rig, "head.moved") == []
        rig.state.placements.rmdir()
        rig.eventually(lambda: not rig.state.moved.exists(), "the placements are kept")
        assert rig.state.placements.is_file()
        assert len(events(rig, "head.moved")) == 1


def test_gateways_follow_the_head_without_a_restart(rig) -> None:
    rig.add("h1", "h2", "h3")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        before = rig.where(client)
        pids = {name: rig.hosts[host].pid(name) for name, host in before.items()}
        rig.eventually(lambda: has_copy(rig, "h2", "placement.json", "m-1"), "h2 has a copy")
    rig.end_head()
    seat(rig, "h2", away=[])
    rig.line_port = 21010
    with rig.up() as client:
        rig.reaches(client, ClusterState.READY)
        assert {name: rig.hosts[host].pid(name) for name, host in rig.where(client).items()} == pids
    assert len(events(rig, "gateway.redirected")) == 2
    assert events(rig, "process.removed") == []


def test_a_head_that_was_superseded_ends(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(rig.settings()) as client:
        rig.reaches(client, ClusterState.READY)
        rig.eventually(lambda: has_copy(rig, "h2", "placement.json", "m-1"), "h2 has a copy")
    former_state, former = rig.state, rig.release_head()
    seat(rig, "h2", away=[])
    rig.line_port = 21010
    with rig.up() as client:
        rig.reaches(client, ClusterState.READY)
        rig.eventually(lambda: former.has_ended, "it ends by itself")
        assert former.end(), "as after a stop: it is not to be started again"
        assert len(rig.alive()) == 4, "and has taken nothing along"
    kinds = [json.loads(line)["kind"] for line in former_state.events.read_text().splitlines()]
    assert kinds[-1] == "head.superseded"
