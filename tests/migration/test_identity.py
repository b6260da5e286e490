"""Moved at random moments, to and fro, requests say what they say when nothing moves them."""

import asyncio
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.hosts.operator_machine import CONTROL_PORT, eventually
from tests.hosts.rig import USER
from tests.migration.cases import FEATURES, LONG, PLAIN, Answer, answers
from tests.migration.conftest import Movable

pytestmark = [pytest.mark.migration, pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]

WANTED_MOVES = {"oracle": 130, "other": 70}
"""Each model is asked in its own time: two ranks on shared cores take long steps."""
WANTED_CHECKED = 10
PATIENCE_S = 600
"""At most; as many rounds as it takes."""
EXPECTED_REASONS = (
    "no such request here",
    "the request has ended",
    "it is being moved already",
    "finished",
    "aborted",
    "is no longer there",
    # Six engines share the cores: a step of one may take longer than another one's patience.
    "nobody said what became of it",
    "it took too long",
    "no migration of that name",
)


class Mover:
    """`tests.migration.mover` on the head's host."""

    def __init__(
        self, movable: Movable, models: list[str], seed: int, checked: float = 0.3
    ) -> None:
        url = f"http://127.0.0.1:{CONTROL_PORT}"
        self._process = movable.head.spawn(
            movable.python, "-m", "tests.migration.mover",
            url, movable.token_file(), str(seed), "4", str(checked), *models,
            user=USER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.outcomes: Counter[str] = Counter()
        self.moves: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "all" in said:
                self.moves = said["all"]
            else:
                self.outcomes[said["outcome"]] += 1

    def finish(self) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(300)
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode()
        assert self._process.wait(60) == 0, said
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.stderr.close()
        return self.moves


def differences(expected: dict[str, Answer], got: dict[str, Answer]) -> list[str]:
    found = []
    for name, one in expected.items():
        other = got[name]
        if (one.prompt_tokens, one.completion_tokens) != (
            other.prompt_tokens,
            other.completion_tokens,
        ):
            found.append(f"{name}: usage {one} and {other}")
        for index, choice in one.choices.items():
            moved = other.choices[index]
            if choice.token_ids != moved.token_ids:
                found.append(f"{name}: {first_difference(choice.token_ids, moved.token_ids)}")
            elif (choice.text, choice.finish_reason) != (moved.text, moved.finish_reason):
                found.append(f"{name}: text {choice} and {moved}")
            elif choice.logprobs != pytest.approx(moved.logprobs, abs=2e-3):
                found.append(f"{name}: logprobs {choice.logprobs} and {moved.logprobs}")
    return found


def first_difference(expected: Sequence[int], got: Sequence[int]) -> str:
    """Where it is, and what follows: a token lost or doubled shows as a shift."""
    pairs = enumerate(zip(expected, got, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(got)))
    first, last = max(0, at - 3), at + 8
    return f"tokens from {first} on: {expected[first:last]} and {got[first:last]}"


def is_idle(movable: Movable) -> bool:
    """Nothing runs, and every block is free."""
    loads = [each["load"] for each in movable.operator.glance().get("instances", [])]
    return bool(loads) and all(
        load is not None and load["blocks_used"] == load["running"] == 0 for load in loads
    )


async def test_two_hundred_moves_change_nothing(movable):
    """Of two architectures in float32, on one rank and on two: tokens, text, usage, logprobs."""
    cases = {"oracle": PLAIN | FEATURES | LONG, "other": PLAIN | FEATURES}
    began = time.monotonic()
    found = await asyncio.gather(
        *(
            moved_about(movable, model, cases[model], wanted)
            for model, wanted in WANTED_MOVES.items()
        )
    )
    moves = [move for each in found for move in each]
    outcomes = Counter(each["outcome"] for each in moves)
    print(f"{dict(outcomes)} in {time.monotonic() - began:.0f} s")
    unexpected = [
        each["reason"]
        for each in moves
        if each["outcome"] == "kept"
        and not any(reason in each["reason"] for reason in EXPECTED_REASONS)
    ]
    assert unexpected == []
    assert outcomes["unknown"] == 0
    done = [each for each in moves if each["outcome"] == "moved"]
    assert any(each["blocks_reused"] for each in done), "no prefix was ever reused"
    assert any(each["num_stages"] > 1 for each in done)
    eventually(lambda: is_idle(movable), 30, "blocks were left behind")


async def moved_about(
    movable: Movable, model: str, cases: dict[str, Any], wanted: int
) -> list[dict[str, Any]]:
    """Ask at rest, then again and again until `wanted` moves are done; returns all moves."""
    expected = await answers(movable.url, model, cases)
    mover = Mover(movable, [model], seed=5)
    wrong: list[str] = []
    try:
        began = time.monotonic()
        while not wrong and time.monotonic() < began + PATIENCE_S:
            wrong += differences(expected, await answers(movable.url, model, cases))
            if mover.outcomes["moved"] >= wanted:
                break
    finally:
        moves = await asyncio.to_thread(mover.finish)
    assert wrong == [], model
    assert sum(each["outcome"] == "moved" for each in moves) >= wanted, model
    return moves


async def test_kv_of_a_bfloat16_model_is_the_same_at_both_ends(movable):
    """Every move compares digests of all copied blocks; a difference would keep the request."""
    mover = Mover(movable, ["half"], seed=6, checked=1.0)
    try:
        began = time.monotonic()
        while mover.outcomes["moved"] < WANTED_CHECKED and time.monotonic() < began + PATIENCE_S:
            await answers(movable.url, "half", PLAIN)
    finally:
        moves = mover.finish()
    done = [each for each in moves if each["outcome"] == "moved"]
    assert len(done) >= WANTED_CHECKED
    assert [each["reason"] for each in moves if "differ" in each["reason"]] == []
    eventually(lambda: is_idle(movable), 30, "blocks were left behind")
