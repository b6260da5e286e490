"""What recordings tell of a request, to the head that comes after."""

from pathlib import Path

from llx.cluster.scheduling.past_decisions import past_decisions
from llx.cluster.scheduling.recordings import open_recordings
from llx.core.model import Nanos, RequestId, Term
from llx.core.scheduler.events import Ticked
from tests.cluster.scheduling.test_live import A, Rig

OLD, NOW = Term(6), Term(7)


def lived(folder: Path, term: Term, *requests: str, starts_part: bool = False) -> None:
    """A head that placed the first of these, and held the others."""
    recordings = open_recordings(folder, term)
    assert recordings is not None
    rig = Rig(A, recorder=recordings)
    rig.report(A, free=2)
    for each in requests:
        rig.place(each)
    if starts_part:
        rig.live._write_recordings()
        rig.report(A, free=10, covers=requests[:1])
    recordings.close()


def test_former_heads_decisions_are_found_in_order_by_either_id(tmp_path: Path) -> None:
    lived(tmp_path, Term(5), "cmpl-x-0-00000001")
    lived(tmp_path, OLD, "cmpl-a-0-00000001", "cmpl-mine-0-0a1b2c3d", starts_part=True)
    for given in ("mine", "cmpl-mine-0-0a1b2c3d"):
        [found] = past_decisions(tmp_path, [given], NOW, frozenset())
        assert (found.request, found.model) == ("cmpl-mine-0-0a1b2c3d", "m")
        assert found.priority_class == "normal"
        # Said in two files, told once.
        assert [(each.what, each.instance) for each in found.decisions] == [
            ("held", A), ("placed", A),
        ]  # fmt: skip
        assert found.decisions[0].why.startswith("1 of its class wait")
        assert found.decisions[0].at <= found.decisions[1].at
        assert found.decisions[0].at > 1e9
    assert [each.request for each in past_decisions(tmp_path, ["x"], NOW, frozenset())] == [
        "cmpl-x-0-00000001"
    ]
    assert past_decisions(tmp_path, ["min"], NOW, frozenset()) == []


def test_what_this_head_knows_is_not_told_twice(tmp_path: Path) -> None:
    lived(tmp_path, OLD, "cmpl-a-0-00000001")
    lived(tmp_path, NOW, "cmpl-a-0-00000001")
    known = frozenset({"cmpl-a-0-00000001"})
    [found] = past_decisions(tmp_path, ["a"], NOW, known)
    assert len(found.decisions) == 1
    [found] = past_decisions(tmp_path, ["a"], NOW, frozenset())
    assert len(found.decisions) == 2


def test_a_broken_recording_hides_no_other(tmp_path: Path) -> None:
    lived(tmp_path, OLD, "cmpl-a-0-00000001")
    (tmp_path / "term-7.jsonl").write_text("nonsense\n")
    (tmp_path / "recent-7.1.jsonl").write_text("")
    [found] = past_decisions(tmp_path, ["a"], NOW, frozenset())
    assert [each.what for each in found.decisions] == ["placed"]
    assert past_decisions(tmp_path / "none", ["a"], NOW, frozenset()) == []


def test_most_lines_are_not_read_in_full(tmp_path: Path) -> None:
    recordings = open_recordings(tmp_path, OLD)
    assert recordings is not None
    recordings.record(Ticked(), Nanos(1), ())
    recordings.close()
    path = tmp_path / "term-6.jsonl"
    path.write_text(path.read_text() + "no line of any other\n")
    assert past_decisions(tmp_path, [RequestId("a")], NOW, frozenset()) == []
