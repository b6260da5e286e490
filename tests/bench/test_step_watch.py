"""Steps gathered from instances: each once, also past a restart, and though one is away a while."""

from types import SimpleNamespace
from typing import Any

import pytest

from llx.api import InstanceState, InstanceSteps, MoveOutcome
from llx.bench import step_watch
from llx.bench.step_watch import StepWatch
from llx.errors import ConflictError, NotFoundError, UnreachableError


class Head:
    """Of two instances, and one that failed; they remember the steps in `kept`."""

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {"m-0": [], "m-1": []}
        self.away: set[str] = set()
        self.moves: list[Any] = []
        self.misses = 0
        """So often nobody answers who asks for `moves`."""

    def status(self) -> Any:
        states = {
            "m-0": InstanceState.READY,
            "m-1": InstanceState.READY,
            "m-2": InstanceState.FAILED,
        }
        instances = [
            SimpleNamespace(name=name, model="m", state=state, cannot_migrate="")
            for name, state in states.items()
        ]
        models = [SimpleNamespace(name="m"), SimpleNamespace(name="empty")]
        return SimpleNamespace(models=models, instances=instances)

    def steps(self, name: str, first: int = 0) -> InstanceSteps:
        """Two at a time."""
        if name in self.away:
            raise UnreachableError(f"instance {name} is not connected")
        kept = self.kept[name]
        first = min(first, len(kept))
        rows = [(0, 1, 9, 0, 9, ns) for ns in kept[first : first + 2]]
        return InstanceSteps(
            instance=name, model="m", num_blocks=9, block_size=16, max_model_len=64, max_num_seqs=4,
            max_num_batched_tokens=32, first=first, end=len(kept), steps=rows,
        )  # fmt: skip

    def migrations(self) -> list[Any]:
        if self.misses:
            self.misses -= 1
            raise UnreachableError("the head is away")
        return self.moves


def seen(watch: StepWatch) -> list[float]:
    return [each.duration_ns for each in watch.samples()]


def test_each_step_counts_once_and_those_before_if_they_are_recalled() -> None:
    head: Any = Head()
    head.kept["m-0"] = [1, 2, 3]
    watch = StepWatch(head, "m")
    head.kept["m-0"] += [4, 5, 6, 7, 8]
    head.kept["m-1"] += [11]
    watch.look()
    watch.look()
    assert seen(watch) == [4, 5, 6, 7, 8, 11]
    watch.skip()
    head.kept["m-1"] += [12]
    watch.look()
    assert seen(watch) == [4, 5, 6, 7, 8, 11, 12]
    fresh = StepWatch(head, "m")
    fresh.recall()
    fresh.look()
    assert seen(fresh) == [1, 2, 3, 4, 5, 6, 7, 8, 11, 12]


def test_an_instance_may_be_away_and_may_begin_anew() -> None:
    head: Any = Head()
    watch = StepWatch(head, "m")
    head.kept["m-0"] = [1, 2, 3]
    head.away = {"m-0"}
    watch.look()
    assert seen(watch) == []
    head.away = set()
    watch.look()
    head.kept["m-0"] = [7]
    watch.look()
    assert seen(watch) == [1, 2, 3, 7]


def test_moves_of_the_model_alone_and_the_bytes_of_a_block() -> None:
    head: Any = Head()
    move = SimpleNamespace(
        source="m-2", target="m-0", outcome=MoveOutcome.MOVED, rate=1e6, size_bytes=4000,
        transport="shm", num_stages=3, blocks_copied=4,
    )  # fmt: skip
    other = SimpleNamespace(**{**vars(move), "source": "other-0"})
    kept = SimpleNamespace(**{**vars(move), "outcome": MoveOutcome.KEPT})
    head.moves = [other, move, kept]
    (found,), block_bytes = StepWatch(head, "m").moves()
    assert (found.transport, found.num_copies, found.copying_s) == ("shm", 3, 0.004)
    assert block_bytes == 1000


def test_there_is_nobody_to_be_watched() -> None:
    head: Any = Head()
    with pytest.raises(NotFoundError, match="there are: m, empty"):
        StepWatch(head, "n")
    with pytest.raises(ConflictError, match="no instance of empty is ready"):
        StepWatch(head, "empty")


def test_a_head_that_is_away_for_a_while_is_asked_again_for_its_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_watch, "_TRY_EVERY_S", 0.0)
    head: Any = Head()
    watch = StepWatch(head, "m")
    head.misses = 3
    assert watch.moves() == ([], None)
    head.misses = 1000
    with pytest.raises(UnreachableError):
        watch.moves()
