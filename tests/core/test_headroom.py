"""Where urgent requests go in a burst, and what that leaves to others."""

import pytest

from llx.core.model import Blocks, ClassName
from llx.core.scheduler.config import PoolConfig, PriorityClass
from tests.core.scheduler_world import POOL, World


def world_of(share: float, num_instances: int = 8, num_keepers: int = 2) -> World:
    """Instances of 40 blocks: the first have an urgent request, the others four normal."""
    urgent = PriorityClass(ClassName("high"), 0, Blocks(36), headroom_share=share)
    world = World(PoolConfig(POOL, (urgent, PriorityClass(ClassName("normal"), 10))))
    for number in range(num_instances):
        world.join()
        name = f"m-{world.num}"
        world.give(name, [(0, 2)] if number < num_keepers else [(1, 4)] * 4)
        world.report(name)
    return world


@pytest.mark.parametrize(("share", "most"), [(0.25, 2), (0.49, 3), (1.0, 8)])
def test_a_burst_has_the_headroom_kept_by_no_more_than_its_share(share: float, most: int) -> None:
    world = world_of(share)
    for _ in range(8):
        world.arrive(0, 31)  # two blocks
    pool = world.scheduler.pools[POOL]
    assert sum(bool(each.present[0]) for each in pool.instances.values()) == most


def test_urgent_requests_are_not_packed_closer_than_others() -> None:
    world = world_of(0.25)
    for _ in range(24):
        world.arrive(0, 31)
    pool = world.scheduler.pools[POOL]
    batches = [each.batch for each in pool.instances.values()]
    assert max(batches) - min(batches) <= 1
    assert not world.waiting


def test_a_share_of_what_is_there_is_exact() -> None:
    """0.29 * 100 is 28.999999999999996."""
    world = world_of(0.29, 100, 28)
    for _ in range(8):
        world.arrive(0, 31)
    pool = world.scheduler.pools[POOL]
    assert sum(bool(each.present[0]) for each in pool.instances.values()) == 29
