"""What lies in the directory of recordings, and what is in its recent parts."""

from dataclasses import replace
from pathlib import Path

import pytest

from llx.cluster.scheduling.opening import opening_events
from llx.cluster.scheduling.recordings import Recordings, open_recordings, parts_in
from llx.core.model import InstanceId, Nanos, PoolName, RequestId, Term
from llx.core.scheduler.commands import Dispatch
from llx.core.scheduler.config import SECOND
from llx.core.scheduler.events import InstanceState, Ticked
from llx.core.scheduler.policies import Policies
from llx.core.scheduler.scheduler import Scheduler
from llx.recording import Recorder, Recording
from tests.cluster.scheduling.test_live import CONFIG, A, B, M, Rig


def opened(folder: Path, term: int = 3) -> Recordings:
    found = open_recordings(folder, Term(term))
    assert found is not None
    return found


def at(seconds: float) -> Nanos:
    return Nanos(round(seconds * SECOND))


def times(path: Path) -> list[float]:
    return [each.at / SECOND for each in Recording(path).entries()]


def fetched(recordings: Recordings, last_s: float, now: Nanos, into: Path) -> list[float]:
    into.write_bytes(b"".join(recordings.recent(last_s, now)))
    return times(into)


def test_a_part_follows_a_part_and_two_are_kept(tmp_path: Path) -> None:
    recordings = opened(tmp_path / "r")
    for number in range(4):
        begins = at(300.0 * number)
        assert recordings.is_part_over(begins)
        recordings.begin_part([Ticked()], begins)
        assert not recordings.is_part_over(at(300.0 * number + 299))
        recordings.record(Ticked(), at(300.0 * number + 10), ())
    assert [(term, number) for term, number, _ in parts_in(tmp_path / "r")] == [(3, 3), (3, 4)]
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "r").iterdir()} == {0o600}
    now = at(911)
    # The second part's opening tells what the first has said.
    assert fetched(recordings, 300, now, tmp_path / "two") == [600, 610, 910]
    assert fetched(recordings, 5, now, tmp_path / "one") == [900, 910]
    assert Recording(tmp_path / "two").opening == 1
    (tmp_path / "all").write_bytes(b"".join(recordings.of_term()))
    assert times(tmp_path / "all") == [10, 310, 610, 910], "what is pending, too"
    recordings.close()
    assert times(tmp_path / "r" / "term-3.jsonl") == [10, 310, 610, 910]


def test_a_part_is_of_a_bounded_size(tmp_path: Path) -> None:
    whole = Recorder(tmp_path / "term-3.jsonl", origin="cluster")
    recordings = Recordings(tmp_path, Term(3), whole, part_bytes=2000)
    recordings.begin_part([], at(0))
    for number in range(60):
        recordings.record(Ticked(), at(number), ())
    assert recordings.is_part_over(at(61))
    recordings.close()


def test_parts_of_this_head_and_the_one_before_are_kept(tmp_path: Path) -> None:
    for term in (3, 9, 10):
        recordings = opened(tmp_path, term)
        recordings.begin_part([], at(0))
        recordings.close()
    assert [term for term, _, _ in parts_in(tmp_path)] == [9, 10]


def test_a_disk_that_refuses_is_not_asked_at_every_round(tmp_path: Path) -> None:
    recordings = opened(tmp_path / "r")
    (tmp_path / "r" / "recent-3.1.jsonl").mkdir()
    recordings.begin_part([], at(0))
    assert not recordings.is_part_over(at(299))
    assert list(recordings.recent(300, at(1))) == []
    assert recordings.is_part_over(at(300))
    recordings.close()


def test_a_new_scheduler_learns_from_the_opening_what_there_is() -> None:
    rig = Rig(A, B, InstanceId("m-2"))
    rig.report(A, free=0, running=4)
    rig.report(B, free=0, running=4)
    rig.follow(A, B, InstanceId("m-2"), m_1=InstanceState.CORDONED)
    rig.live.on_down(InstanceId("m-2"))
    rig.place("r1")
    rig.place("r2", cls="urgent", waited=5 * SECOND)
    rig.live.pause([M])
    was = rig.live._scheduler.pools[M]
    now = Nanos(rig.live._scheduler._now)
    core = Scheduler(Policies())
    commands = [
        command
        for event in opening_events(rig.live._scheduler.pools.values(), now)
        for command in core.handle(event, now)
    ]
    pool = core.pools[M]
    assert pool.is_paused
    assert {
        name: (each.wanted, each.state, each.load) for name, each in pool.instances.items()
    } == {name: (each.wanted, each.state, each.load) for name, each in was.instances.items()}
    assert [(each.request, each.rank) for each in pool.queues.waiting()] == [("r1", 1), ("r2", 0)]
    arrivals = [each.arrival for each in pool.queues.waiting()]
    assert arrivals == pytest.approx([each.arrival for each in was.queues.waiting()], abs=SECOND)
    assert not any(isinstance(each, Dispatch) for each in commands)
    assert pool.config == replace(CONFIG, name=PoolName("m"))
    assert RequestId("r1") in {each.request for each in pool.queues.waiting()}
