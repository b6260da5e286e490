"""The front ends of a gateway while a model is rolled out, without vLLM."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from llx.core.model import PoolName
from llx.gateway.counters import Counters
from llx.gateway.generations import Generations, prepare_all
from llx.specs import EngineKind, PoolSpec
from llx.wire import PoolOffer, Unusable


class FrontEnd:
    def __init__(self, spec: PoolSpec, *, is_open: bool = False, failure: BaseException | None):
        self.spec = spec
        self.is_open = is_open
        self.is_closed = False
        self.reasons: list[str] = []
        self.roster = SimpleNamespace(links=list)
        self.client: Any = SimpleNamespace(
            num_in_flight=0, counters=Counters(num_requests=5), give_up=self.reasons.append
        )
        self.failure = failure
        self.num_prepared = 0

    def prepare(self) -> None:
        self.num_prepared += 1
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        self.is_closed = True


def spec(generation: int, model: str = "m") -> PoolSpec:
    return PoolSpec(model, "/m", EngineKind.SIM, {}, {}, 1, 2, generation)


OLD, NEW = spec(0), spec(1)


class Rig:
    def __init__(self, failure: BaseException | None = None) -> None:
        self.old: Any = FrontEnd(OLD, is_open=True, failure=None)
        self.made: list[Any] = []
        self.closed: list[Any] = []
        self.num_changes = 0
        self.failure = failure
        self.generations = Generations([self.old], self.make, self.closed.append)

    def make(self, spec: PoolSpec) -> Any:
        self.made.append(FrontEnd(spec, failure=self.failure))
        return self.made[-1]

    def changed(self) -> None:
        self.num_changes += 1

    def apply(self, *offers: PoolOffer) -> None:
        self.generations.apply(offers, self.changed)


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


async def test_new_requests_go_to_the_new_one_when_it_is_open_and_current() -> None:
    rig = Rig()
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    await until(lambda: rig.num_changes)
    assert len(rig.made) == 1
    assert set(rig.generations.pools) == {"m", "m~1"}
    rig.apply(PoolOffer(NEW), PoolOffer(OLD, is_current=False))
    assert rig.generations.current == {"m": rig.old}, "it is not open yet"
    rig.made[0].is_open = True
    rig.generations.settle()
    assert rig.generations.current == {"m": rig.made[0]}
    assert rig.generations.open() == ["m", "m~1"]
    assert [(m, c.num_requests) for m, _, c in rig.generations.counters()] == [("m", 10)]


async def test_the_former_one_is_closed_when_its_last_stream_has_ended() -> None:
    rig = Rig()
    rig.apply(PoolOffer(NEW), PoolOffer(OLD, is_current=False))
    await until(lambda: rig.num_changes)
    rig.made[0].is_open = True
    rig.old.client.num_in_flight = 1
    rig.apply(PoolOffer(NEW))
    assert len(rig.old.reasons) == 1, "what is left there is told why it ends"
    await asyncio.sleep(0.7)
    assert not rig.old.is_closed
    rig.old.client.num_in_flight = 0
    await until(lambda: rig.old.is_closed)
    assert rig.closed == [rig.old]
    assert [(m, c.num_requests) for m, _, c in rig.generations.counters()] == [("m", 10)]
    await rig.generations.close()
    assert rig.made[0].is_closed


async def test_arguments_that_vllm_refuses_end_nothing_and_are_told() -> None:
    rig = Rig(SystemExit(2))
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    await until(lambda: rig.generations.unusable)
    failed = Unusable(0, "ValueError: vLLM refused its arguments (2)")
    assert rig.generations.unusable == {"m~1": failed}
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    assert len(rig.made) == 1, "once is enough"
    assert rig.closed == rig.made, "its metrics are no more"
    rig.apply(PoolOffer(OLD))
    assert rig.generations.unusable == {}


async def test_models_that_come_or_go_change_nothing() -> None:
    rig = Rig()
    rig.apply(PoolOffer(spec(0, "other")))
    rig.apply()
    await asyncio.sleep(0.7)
    assert (rig.made, rig.old.reasons, rig.old.is_closed) == ([], [], False)
    assert rig.generations.current == {"m": rig.old}


async def test_another_attempt_is_made_when_the_head_asks_for_it() -> None:
    rig = Rig(RuntimeError("no tokenizer"))
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    await until(lambda: rig.generations.unusable)
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, False, 1))
    await until(lambda: rig.generations.unusable["m~1"].attempt == 1)
    rig.failure = None
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, False, 2))
    await until(lambda: rig.num_changes)
    assert rig.generations.unusable == {}
    assert set(rig.generations.pools) == {"m", "m~1"}


async def test_one_that_does_not_open_is_prepared_anew_for_another_attempt() -> None:
    rig = Rig()
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    await until(lambda: rig.num_changes)
    assert not rig.generations.fail(PoolName("m"), OSError("gone")), "nothing else could serve"
    assert rig.generations.fail(PoolName("m~1"), OSError("gone"))
    assert rig.generations.unusable == {"m~1": Unusable(0, "OSError: gone")}
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    await asyncio.sleep(0.05)
    assert (rig.made[0].num_prepared, rig.num_changes) == (1, 1)
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, False, 1))
    await until(lambda: rig.num_changes == 2)
    assert (rig.made[0].num_prepared, len(rig.made)) == (2, 1)
    assert rig.generations.unusable == {}


async def test_one_that_is_not_wanted_any_more_when_it_is_made_leaves_nothing() -> None:
    rig = Rig()
    rig.apply(PoolOffer(OLD), PoolOffer(NEW, is_current=False))
    rig.apply(PoolOffer(OLD))
    await until(lambda: rig.closed)
    assert (rig.closed, set(rig.generations.pools), rig.num_changes) == (rig.made, {"m"}, 0)


def test_a_gateway_starts_without_what_only_a_rollout_wants() -> None:
    def make(spec: PoolSpec) -> Any:
        return FrontEnd(spec, failure=SystemExit(2) if spec.key == "m~1" else None)

    found, unusable = prepare_all([OLD, NEW, spec(0, "other")], make)
    assert [each.spec.key for each in found] == ["m", "other"]
    assert list(unusable) == ["m~1"]
    with pytest.raises(ValueError, match="refused its arguments"):
        prepare_all([NEW, OLD], make)
    started = Generations(found, make, unusable=unusable)
    assert started.unusable == unusable
