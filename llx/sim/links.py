"""The network between instances, as far as moves feel it."""

from dataclasses import dataclass

from llx.core.model import InstanceId, Nanos
from llx.sim.kernel import Kernel

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How fast KV travels.

    Attributes:
        bytes_per_s: Of one instance, out or in.
        overhead: Of each copy beyond its bytes.
        hop: Of a message between any two processes.
        gateway: Of a request's way from its client to its instance, and of its first token's back,
            beyond that: HTTP, tokens and text.
    """

    bytes_per_s: int = 2_480_000_000
    overhead: Nanos = Nanos(10_000_000)
    hop: Nanos = Nanos(200_000)
    gateway: Nanos = Nanos(0)

    def __post_init__(self) -> None:
        assert self.bytes_per_s > 0, "a link carries something"
        assert min(self.overhead, self.hop, self.gateway) >= 0, "nothing arrives before it was sent"


class Links:
    """Every instance has a way out and a way in; copies take their turns on both."""

    def __init__(self, kernel: Kernel, config: LinkConfig) -> None:
        self._kernel = kernel
        self._config = config
        self._out: dict[InstanceId, int] = {}
        self._in: dict[InstanceId, int] = {}

    def copy(self, source: InstanceId, target: InstanceId, size_bytes: int) -> Nanos:
        """When so many bytes, sent now, have arrived; no bytes take a hop."""
        now, config = self._kernel.now, self._config
        if not size_bytes:
            return Nanos(now + config.hop)
        begins = max(now, self._out.get(source, 0), self._in.get(target, 0))
        ends = begins - (-size_bytes * _SECOND // config.bytes_per_s)
        self._out[source] = self._in[target] = ends
        return Nanos(ends + config.overhead)
