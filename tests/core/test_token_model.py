"""The simulated model: tokens depend on every earlier token, through the KV bytes alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.core.engine_model import EngineModel
from llx.core.engine_state import EngineConfig, EngineRequest, StepTime
from llx.core.model import Blocks, Nanos, RequestId, Tokens
from llx.core.token_model import HashedTokens, Vocabulary

pytestmark = pytest.mark.core

NONE: frozenset[int] = frozenset()
VOCABULARY = Vocabulary(range(100, 400))


def make_tokens(num_blocks: int = 32, bytes_per_token: int = 96) -> HashedTokens:
    return HashedTokens(
        VOCABULARY, num_blocks=num_blocks, block_size=4, bytes_per_token=bytes_per_token
    )


def ask(prompt: list[int], *, seed: int = 0, eos_token: int | None = None) -> EngineRequest:
    return EngineRequest(
        RequestId("r"), tuple(prompt), 99, Nanos(0), seed=seed, eos_token=eos_token
    )


def generate(
    model: HashedTokens, prompt: list[int], count: int, blocks: list[int], seed: int = 0
) -> list[int]:
    tokens, computed = list(prompt), 0
    for _ in range(count):
        model.compute(tokens, computed, len(tokens), blocks)
        computed = len(tokens)
        tokens.append(model.sample(ask(prompt, seed=seed), computed, blocks, NONE))
    return tokens[len(prompt) :]


def test_tokens_come_from_the_vocabulary_and_vary() -> None:
    tokens = generate(make_tokens(), [1, 2, 3], 60, list(range(20)))
    assert set(tokens) <= set(range(100, 400))
    assert len(set(tokens)) > 40


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, 999), min_size=2, max_size=30),
    where=st.integers(0, 29),
    cut=st.integers(1, 29),
)
def test_each_prompt_token_matters_and_the_way_of_computing_does_not(
    prompt: list[int], where: int, cut: int
) -> None:
    reference = generate(make_tokens(), prompt, 8, list(range(12)))

    chunked = make_tokens()
    blocks = list(reversed(range(12)))
    middle = min(cut, len(prompt) - 1)
    chunked.compute(prompt, 0, middle, blocks)
    chunked.compute(prompt, middle, len(prompt), blocks)
    assert chunked.sample(ask(prompt), len(prompt), blocks, NONE) == reference[0]

    other = list(prompt)
    other[where % len(prompt)] += 1
    assert generate(make_tokens(), other, 8, list(range(12))) != reference


def test_the_seed_changes_the_tokens_but_not_the_kv() -> None:
    one, two = make_tokens(), make_tokens()
    one.compute([1, 2, 3], 0, 3, [5])
    two.compute([1, 2, 3], 0, 3, [5])
    assert one.block(5) == two.block(5)
    assert generate(make_tokens(), [1, 2], 8, [0, 1, 2], seed=1) != generate(
        make_tokens(), [1, 2], 8, [0, 1, 2], seed=2
    )


def test_copied_blocks_continue_exactly() -> None:
    prompt = list(range(21))
    reference = generate(make_tokens(), prompt, 20, list(range(12)))
    source, target = make_tokens(), make_tokens()
    source.compute(prompt, 0, 21, [0, 1, 2, 3, 4, 5])
    there = [9, 3, 11, 20, 7, 2, 30, 31, 1, 4, 0]
    for here, block in zip([0, 1, 2, 3, 4, 5], there, strict=False):
        target.block(block)[:] = source.block(here)

    tokens = list(prompt)
    for computed in range(21, 41):
        tokens.append(target.sample(ask(prompt), computed, there, NONE))
        target.compute(tokens, computed, computed + 1, there)

    assert tokens[21:] == reference


@pytest.mark.parametrize("block", [0, 2, 5])
def test_a_damaged_block_shows_as_wrong_tokens(block: int) -> None:
    prompt = list(range(21))
    blocks = list(range(20))
    reference = generate(make_tokens(), prompt, 40, blocks)
    model = make_tokens()
    model.compute(prompt, 0, 21, blocks)
    model.block(block)[:] = bytes(model.block_bytes)

    tokens = list(prompt)
    for computed in range(21, 61):
        tokens.append(model.sample(ask(prompt), computed, blocks, NONE))
        model.compute(tokens, computed, computed + 1, blocks)

    assert tokens[21:] != reference


def test_eos_comes_now_and_then_unless_banned() -> None:
    model = HashedTokens(
        VOCABULARY, num_blocks=8, block_size=64, bytes_per_token=64, mean_output_tokens=8
    )
    blocks = list(range(8))
    model.compute(range(500), 0, 500, blocks)
    request = ask([0], eos_token=2)
    sampled = [model.sample(request, n, blocks, NONE) for n in range(1, 500)]
    assert 30 < sampled.count(2) < 100
    assert 2 not in [model.sample(request, n, blocks, frozenset({2})) for n in range(1, 500)]


def test_pick_avoids_the_banned_and_neighbours_avoid_the_token() -> None:
    vocabulary = Vocabulary([5, 3, 9])
    assert vocabulary.pick(0, frozenset({3})) == 5
    assert vocabulary.pick(2, frozenset({9})) == 3
    assert vocabulary.pick(1, frozenset({3, 5, 9})) == 5  # nothing left: the ban is void
    assert vocabulary.neighbours(5, 2) == [9, 3]
    assert vocabulary.neighbours(77, 2) == [3, 5]


def test_preemption_and_batching_do_not_change_the_tokens() -> None:
    def run(num_blocks: int, budget: int, together: bool) -> dict[str, list[int]]:
        config = EngineConfig(
            Blocks(num_blocks), Tokens(4), 8, Tokens(budget), Tokens(40), StepTime(1, 1, 1, 1)
        )
        engine = EngineModel(config, make_tokens(num_blocks))
        texts: dict[str, list[int]] = {f"r{i}": [] for i in range(4)}
        preempted = 0
        for i in range(4):
            prompt = tuple(range(i, i + 9))
            engine.add(EngineRequest(RequestId(f"r{i}"), prompt, 25, Nanos(i)))
            while not together or i == 3:
                step = engine.schedule(Nanos(0))
                if step is None:
                    break
                preempted += len(step.preempted)
                for output in engine.complete(step):
                    texts[output.request].append(output.token)
        assert (preempted > 0) == (num_blocks == 12 and together)
        return texts

    alone = run(64, 64, together=False)
    assert run(12, 7, together=True) == alone
    assert run(64, 5, together=True) == alone
