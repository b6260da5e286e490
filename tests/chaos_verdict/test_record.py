"""What a run keeps outlives it: plans, what was done, marks; and the example is such a plan."""

from pathlib import Path

import pytest

from llx.chaos.plan import Bounds, ChaosPlan, Fault, FaultKind, Traffic, load_plan
from llx.chaos.record import RunDirectory
from llx.chaos.verdict import FaultRecord
from llx.errors import ConflictError

EXAMPLE = Path(__file__).parents[2] / "examples/chaos.yaml"
PLAN = ChaosPlan(faults=[Fault(kind=FaultKind.KILL, target="instance")])
FAULT = FaultRecord(number=0, kind=FaultKind.KILL, role="instance", began_at=1.0, ended_at=2.0)


def test_the_examples_defaults_are_the_defaults():
    plan = load_plan(EXAMPLE)
    assert (plan.traffic, plan.bounds) == (Traffic(prompts=4), Bounds())
    assert {each.kind for each in plan.faults} == set(FaultKind) - {FaultKind.PARTITION}


def test_another_process_goes_on_with_what_was_kept(tmp_path):
    first = RunDirectory(tmp_path / "run")
    first.begin(PLAN)
    first.add_fault(FAULT)
    first.add_marks(["a", ""])
    with (first.path / "faults.jsonl").open("a") as file:
        file.write('{"number": 1, "ki')  # it was killed in the middle of a line
    second = RunDirectory(first.path)
    second.begin(PLAN)
    second.add_marks(["b"])
    assert second.faults() == [FAULT]
    second.add_fault(FAULT)
    assert second.faults() == [FAULT, FAULT]
    assert second.marks() == {"a", "b"}


def test_a_directory_of_another_plan_or_of_others_is_left_alone(tmp_path):
    RunDirectory(tmp_path / "run").begin(PLAN)
    with pytest.raises(ConflictError, match="another plan"):
        RunDirectory(tmp_path / "run").begin(PLAN.model_copy(update={"seed": 2}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(ConflictError, match="not empty"):
        RunDirectory(tmp_path / "other").begin(PLAN)
