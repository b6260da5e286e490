"""What is simulated, as values."""

from dataclasses import dataclass

from llx.core.engine_state import EngineConfig
from llx.core.model import Nanos
from llx.core.scheduler.config import SECOND, PoolConfig
from llx.sim.links import LinkConfig


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What is simulated.

    Attributes:
        num_instances: At first.
        engine: Of every instance.
        pool: How it is scheduled.
        link: Between any two.
        block_bytes: Of one KV block.
        report_every: An instance whose load has changed says so at multiples of this.
        round_every: Between two rounds of the scheduler.
        start_takes: From the wish for an instance to its being there.
        moves_waiting: Whether a source may also pick requests that have no KV yet; the paper's
            does not.
        leaps: Whether like steps are taken at once: the same outcome, sooner.
    """

    num_instances: int
    engine: EngineConfig
    pool: PoolConfig
    link: LinkConfig
    block_bytes: int
    report_every: Nanos = Nanos(20_000_000)
    round_every: Nanos = Nanos(200_000_000)
    start_takes: Nanos = Nanos(10 * SECOND)
    moves_waiting: bool = True
    leaps: bool = True
