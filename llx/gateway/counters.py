"""What a gateway counts of a pool's requests."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What the pool has done since the gateway started."""

    num_requests: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_redispatched: int = 0
    num_bypassed: int = 0
    num_recovered: int = 0
    num_dropped_outputs: int = 0
    output_tokens: int = 0
