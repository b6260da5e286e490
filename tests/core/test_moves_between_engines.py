"""Two engine models and any interleaving of steps and moves between them, KV bytes and all.

Whatever happens: no block is lost or held twice, loads add up, and every request ends with exactly
the tokens that it has when it never moves. The interleaving comes from a seed and weights: in a
rule-based machine's, hardly any move gets as far as a commit.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.core.engine_model import EngineModel, Step
from llx.core.engine_state import EngineRequest
from llx.core.migration import Cut, Progress, Reservation
from llx.core.model import MigrationId, Nanos, RequestId, blocks_for
from llx.core.token_model import HashedTokens, Vocabulary
from tests.core.test_engine_model import make_config

pytestmark = pytest.mark.core

CONFIG = make_config(num_blocks=12, block_size=3, max_num_seqs=3, budget=7, max_model_len=30)
VOCABULARY = Vocabulary(range(100, 400))


def make_side() -> "Side":
    tokens = HashedTokens(
        VOCABULARY, num_blocks=CONFIG.num_blocks, block_size=CONFIG.block_size, bytes_per_token=16
    )
    return Side(EngineModel(CONFIG, tokens), tokens)


@dataclass(eq=False)
class Side:
    """An engine, its KV, and the step that is open."""

    model: EngineModel
    tokens: HashedTokens
    open: Step | None = None


@dataclass(eq=False)
class Move:
    """A migration, as a source that drives it sees it."""

    migration: MigrationId
    asked: EngineRequest
    source: Side
    target: Side
    reservation: Reservation
    num_copied: int = 0
    cut: Cut | None = None
    is_cutting: bool = False
    is_lost: bool = False
    is_committed: bool = False


@dataclass(eq=False)
class Asked:
    """A request that has not ended, and what has come of it."""

    request: EngineRequest
    owner: Side
    outputs: list[int] = field(default_factory=list)


@lru_cache(maxsize=4096)
def unmoved(request: EngineRequest) -> list[int]:
    """Its tokens, alone on an engine."""
    side, outputs = make_side(), []
    side.model.add(request)
    while (step := side.model.schedule(Nanos(0))) is not None:
        outputs += [output.token for output in side.model.complete(step)]
    return outputs


class TwoEngines:
    """Two engines, what has been asked of them, and the moves under way."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sides = [make_side(), make_side()]
        self.asked: dict[RequestId, Asked] = {}
        self.moves: list[Move] = []
        self.num_requests = 0
        self.num_moves = 0
        self.num_with_kv = 0
        self.num_ended = 0
        for side in self.sides:
            side.model.moves.watch(lambda request, _why, side=side: self.lose(side, request))

    def lose(self, side: Side, request: RequestId) -> None:
        lost = [m for m in self.moves if m.source is side and m.asked.request == request]
        assert len(lost) == 1
        assert not lost[0].is_lost
        lost[0].is_lost = True

    # ---------------------------------------------------------------- the engines

    def add(self) -> None:
        if len(self.asked) >= 6:
            return
        draw = self.random.randint
        self.num_requests += 1
        name = RequestId(f"r{self.num_requests}")
        request = EngineRequest(
            name,
            prompt=tuple(range(draw(1, 16))),
            max_tokens=draw(1, 24),
            arrival=Nanos(self.num_requests),
            priority=draw(0, 2),
            seed=draw(0, 3),
        )
        side = self.random.choice(self.sides)
        side.model.add(request)
        self.asked[name] = Asked(request, side)

    def abort(self) -> None:
        if self.asked:
            name = self.random.choice(sorted(self.asked))
            assert self.asked.pop(name).owner.model.abort(name)
            self.tell()

    def schedule(self) -> None:
        self.schedule_on(self.random.choice(self.sides))

    def schedule_on(self, side: Side) -> None:
        if side.open is None:
            side.open = side.model.schedule(Nanos(0))

    def complete(self) -> None:
        for side in self.sides:
            self.complete_on(side)

    def complete_on(self, side: Side) -> None:
        if side.open is None:
            return
        for output in side.model.complete(side.open):
            asked = self.asked[output.request]
            assert asked.owner is side
            asked.outputs.append(output.token)
            if output.finish is not None:
                assert asked.outputs == unmoved(asked.request)
                self.num_ended += 1
                del self.asked[output.request]
        side.open = None
        self.tell()

    def step(self) -> None:
        side = self.random.choice(self.sides)
        self.schedule_on(side)
        self.complete_on(side)

    def tell(self) -> None:
        for side in self.sides:
            side.model.moves.tell()

    # ---------------------------------------------------------------- a move

    def begin(self) -> None:
        if not self.asked:
            return
        asked = self.asked[self.random.choice(sorted(self.asked))]
        source, target = asked.owner, self.sides[asked.owner is self.sides[0]]
        name = asked.request.request
        if any(m.source is source and m.asked is asked.request for m in self.moves):
            return  # one move of a request at a time, its end included
        progress = source.model.moves.begin(name)
        assert isinstance(progress, Progress)
        assert progress.num_outputs == len(asked.outputs)
        self.num_moves += 1
        migration = MigrationId(f"m{self.num_moves}")
        num_tokens = 0 if progress.is_waiting else progress.num_tokens
        reservation = target.model.moves.reserve(migration, asked.request, num_tokens)
        if isinstance(reservation, str):
            assert target.model.moves.extend(migration, 1) == "nothing is reserved for it"
            source.model.moves.unwatch(name)
            return
        self.moves.append(Move(migration, asked.request, source, target, reservation))

    def go_on(self) -> None:
        """What comes next of a move, if all is well."""
        if not self.moves:
            return
        move = self.random.choice(self.moves)
        if move.is_committed:
            self.release(move)
        elif move.cut is not None:
            self.commit(move)
        elif move.num_copied * CONFIG.block_size < move.reservation.num_tokens - CONFIG.block_size:
            self.copy_stage(move)
        else:
            self.cut(move)

    def copy_early(self) -> None:
        if self.moves:
            self.copy_stage(self.random.choice(self.moves))

    def cut_early(self) -> None:
        if self.moves:
            self.cut(self.random.choice(self.moves))

    def copy_stage(self, move: Move) -> None:
        progress = move.source.model.moves.progress(move.asked.request)
        if progress is None:
            self.tell()  # of a preemption in the step that is open, say
            assert move.is_lost
            self.give_up(move)
        elif not move.is_committed:
            self.copy(move, progress, progress.num_settled // CONFIG.block_size)

    def copy(self, move: Move, progress: Progress | Cut, num_blocks: int) -> bool:
        """Copy what is not copied yet, up to block `num_blocks`; False if there is no room."""
        outcome = move.target.model.moves.extend(move.migration, num_blocks * CONFIG.block_size)
        if isinstance(outcome, str):
            return False
        move.reservation = outcome
        for index in range(move.num_copied, num_blocks):
            here, there = progress.blocks[index], outcome.blocks[index]
            move.target.tokens.block(there)[:] = move.source.tokens.block(here)
        move.num_copied = max(move.num_copied, num_blocks)
        return True

    def cut(self, move: Move) -> None:
        self.tell()
        if move.is_cutting or move.is_lost:
            return
        move.is_cutting = True

        def done(cut: Cut | None) -> None:
            assert move.is_cutting
            move.cut = cut

        move.source.model.moves.cut(move.asked.request, done)
        self.tell()

    def commit(self, move: Move) -> None:
        cut = move.cut
        assert cut is not None
        num_blocks = blocks_for(cut.num_computed, CONFIG.block_size)
        if move.is_lost or not self.copy(move, cut, num_blocks):
            self.give_up(move)
            return
        asked = self.asked[move.asked.request]
        assert list(cut.outputs) == asked.outputs  # every token had left before
        moves = move.target.model.moves
        assert moves.commit(move.migration, cut.outputs, cut.num_computed) == ""
        move.is_committed = True
        self.num_with_kv += cut.num_computed > 0
        asked.owner = move.target

    def release(self, move: Move) -> None:
        # It may have ended at its new place by now; here it is still held.
        assert move.source.model.moves.release(move.asked.request)
        self.moves.remove(move)

    def break_off(self) -> None:
        if not self.moves:
            return
        move = self.random.choice(self.moves)
        if move.is_committed:
            self.release(move)
        else:
            self.give_up(move)

    def give_up(self, move: Move) -> None:
        self.tell()
        request = move.asked.request
        if move.is_cutting:
            assert move.source.model.moves.resume(request) == (not move.is_lost)
        elif not move.is_lost:
            move.source.model.moves.unwatch(request)
        move.target.model.moves.abandon(move.migration)
        move.is_cutting = False
        self.moves.remove(move)

    # ---------------------------------------------------------------- what always holds

    def blocks_are_conserved(self) -> None:
        for side in self.sides:
            held = [
                block
                for each in side.model.requests()
                for block in side.model.block_table(each.asked.request)
            ]
            reserved = [
                block
                for move in self.moves
                if move.target is side and not move.is_committed
                for block in move.reservation.blocks
            ]
            blocks = held + reserved
            assert len(set(blocks)) == len(blocks) == side.model.load().used
            assert all(0 <= block < CONFIG.num_blocks for block in blocks)

    def the_load_adds_up(self) -> None:
        for side in self.sides:
            load, requests = side.model.load(), side.model.requests()
            waiting = [r for r in requests if r.state in ("waiting", "preempted")]
            assert load.num_running + load.num_waiting == side.model.num_requests
            assert load.num_waiting >= len(waiting)
            assert sum(c.num_running for c in load.classes.values()) == load.num_running
            assert sum(c.num_waiting for c in load.classes.values()) == load.num_waiting
            assert sum(c.waiting_demand for c in load.classes.values()) == load.waiting_demand
            assert load.waiting_tokens >= load.num_waiting
            assert min(load.waiting_demand, load.num_preempted) >= 0

    def every_request_is_held_where_it_should_be(self) -> None:
        for side in self.sides:
            owned = [r for r, asked in self.asked.items() if asked.owner is side]
            given = [m.asked.request for m in self.moves if m.is_committed and m.source is side]
            assert sorted(r.asked.request for r in side.model.requests()) == sorted(owned + given)

    def check(self) -> None:
        self.blocks_are_conserved()
        self.the_load_adds_up()
        self.every_request_is_held_where_it_should_be()

    def end(self) -> None:
        """With all moves over, everything ends as it should."""
        self.tell()
        for move in list(self.moves):
            if move.is_committed:
                self.release(move)
            else:
                self.give_up(move)
        for _ in range(1000):
            self.check()
            for side in self.sides:
                self.schedule_on(side)
                self.complete_on(side)
            if not self.asked:
                break
        assert not self.asked
        assert [side.model.load().free for side in self.sides] == [CONFIG.num_blocks] * 2


WEIGHTS = {
    TwoEngines.add: 10,
    TwoEngines.abort: 1,
    TwoEngines.schedule: 8,
    TwoEngines.complete: 8,
    TwoEngines.step: 30,
    TwoEngines.begin: 12,
    TwoEngines.go_on: 30,
    TwoEngines.copy_early: 4,
    TwoEngines.cut_early: 4,
    TwoEngines.break_off: 1,
}


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_moves_change_nothing_that_a_client_sees(seed: int) -> None:
    engines = TwoEngines(seed)
    for action in engines.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=250):
        action(engines)
        engines.check()
    engines.end()


def test_the_test_gets_around() -> None:
    """Its interleavings reach what they are there for."""
    engines = [TwoEngines(seed) for seed in range(20)]
    for each in engines:
        for action in each.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=300):
            action(each)
    assert sum(each.num_with_kv for each in engines) > 50
    assert sum(each.num_ended for each in engines) > 100
