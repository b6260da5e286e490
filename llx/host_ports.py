"""Which ports a cluster uses on its hosts, all within one block that a firewall rule can name.

Pure numbers: ``first`` is ``network.first_port`` of cluster.yaml. The gateway's and the control
API's ports are settings of their own.
"""

from dataclasses import dataclass

BLOCK = 1000
"""How many ports belong to a cluster, from `first` on."""


@dataclass(frozen=True, slots=True)
class HostPorts:
    """The ports of one cluster, the same on each of its hosts."""

    first: int

    @property
    def gcs(self) -> int:
        """Ray's global control store; on the head only."""
        return self.first

    @property
    def node_manager(self) -> int:
        """The raylet."""
        return self.first + 1

    @property
    def object_manager(self) -> int:
        """The raylet's object transfers."""
        return self.first + 2

    @property
    def runtime_env_agent(self) -> int:
        """Ray's runtime environment agent."""
        return self.first + 3

    @property
    def dashboard_agent(self) -> int:
        """Ray's per-node agent, HTTP."""
        return self.first + 4

    @property
    def dashboard_agent_grpc(self) -> int:
        """Ray's per-node agent, gRPC."""
        return self.first + 5

    @property
    def metrics_export(self) -> int:
        """Ray's metrics."""
        return self.first + 6

    @property
    def scheduler(self) -> int:
        """Where gateways reach the scheduler (ZMQ, CURVE); on the head only."""
        return self.first + 9

    @property
    def ray_workers(self) -> tuple[int, int]:
        """First and last port of Ray's worker processes (our actors)."""
        return self.first + 10, self.first + 99

    @property
    def ray(self) -> tuple[int, int]:
        """First and last port of anything of Ray."""
        return self.first, self.first + 99

    @property
    def instances(self) -> tuple[int, int]:
        """First and last port of instances (ZMQ, CURVE); each takes two free ones."""
        return self.first + 100, self.first + BLOCK - 1

    @property
    def last(self) -> int:
        """The last port of the block."""
        return self.first + BLOCK - 1
