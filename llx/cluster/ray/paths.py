"""Where Ray's things lie on a host, and the environment that its processes run in. Pure.

The names that the keeper, the node agent's actor and the scheduler's actor agree on, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llx.agent.names import AGENT, HEAD, HOST_SPEC, RAY
from llx.agent.shim import KEEPS_MARK
from llx.specs import HostSpec

SESSION = "s"
"""Ray's session: a short name, since paths of sockets must be short."""
NAMESPACE = "llx"
SCHEDULER = "scheduler"
HOST_LABEL = "llx.host"
_LOG_BYTES = 8 << 20

_SETTINGS = {
    # Patch releases of Python may differ from host to host: what travels is bytes and names.
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    # A dead host is noticed in about four seconds, a dead raylet in two.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # A host that is busy otherwise gets there in the end. Ray's own 30 and 60 s would have all that
    # was done so far be done again, by processes that are as slow.
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_worker_register_timeout_seconds": "120",
    # What a node agent starts must outlive it, and must be no worse off than its shim's parent:
    # by default Ray's workers are nice, and the first to go when memory is short.
    "RAY_kill_child_processes_on_worker_exit": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_oom_score_adjustment": "0",
    # Engines fill the memory on purpose; Ray would kill the agents for it.
    "RAY_memory_monitor_refresh_ms": "0",
    # Two actors, no tasks.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": "1",
    **KEEPS_MARK,
}


@dataclass(frozen=True, slots=True)
class RayPaths:
    """Files of one host of a cluster.

    Attributes:
        spec: The host.
    """

    spec: HostSpec

    @property
    def procs(self) -> Path:
        """One directory per process."""
        return Path(self.spec.state_dir) / "procs"

    @property
    def keeper(self) -> Path:
        """The keeper's own directory."""
        return self.procs / RAY

    @property
    def fingerprint(self) -> Path:
        """What the running keeper was started with."""
        return self.keeper / "started-with"

    @property
    def node(self) -> Path:
        """`RayNode`, written by the launcher."""
        return self.keeper / "node.json"

    @property
    def failure(self) -> Path:
        """Why the last raylet could not go on, if it has said so; written by the launcher."""
        return self.keeper / "failure"

    @property
    def storage(self) -> Path:
        """On the head: what the global control store knows, so that it outlives its process."""
        return Path(self.spec.state_dir) / "gcs"

    @property
    def tmp(self) -> Path:
        """Ray's sockets and logs."""
        return Path(self.spec.ray_tmp)

    @property
    def temp_dir(self) -> Path:
        """Within `tmp`, which is ours alone: Ray lets everybody into the directory it is given."""
        return self.tmp / "r"

    @property
    def session(self) -> Path:
        """Those of one life of Ray."""
        return self.temp_dir / SESSION

    @property
    def session_logs(self) -> Path:
        """Ray's own logs."""
        return self.session / "logs"

    @property
    def former_logs(self) -> Path:
        """Those of the life before."""
        return self.tmp / "logs.1"

    @property
    def agent(self) -> Path:
        """The node agent's directory: its log, and `heard`."""
        return self.procs / AGENT

    @property
    def heard(self) -> Path:
        """Touched whenever the scheduler calls the node agent."""
        return self.agent / "heard"

    @property
    def head(self) -> Path:
        """The scheduler's directory."""
        return self.procs / HEAD

    @property
    def alive(self) -> Path:
        """Touched every second by the scheduler."""
        return self.head / "alive"

    @property
    def stopped(self) -> Path:
        """There once the scheduler has stopped the cluster: it is not to be started again."""
        return self.head / "stopped"

    @property
    def stopping(self) -> Path:
        """`StateDir.stopping`: there from when a stop was asked for until the next `start`."""
        return Path(self.spec.state_dir) / "stopping.json"


def ray_environment(
    spec: HostSpec, spec_path: Path, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment of every process of Ray on a host. Secrets are in it by path alone."""
    environment = {key: value for key, value in inherited.items() if not key.startswith("RAY_")}
    environment |= _SETTINGS
    environment |= {
        HOST_SPEC: str(spec_path),
        "RAY_TMPDIR": str(RayPaths(spec).temp_dir),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": spec.ray_token_path,
    }
    if spec.is_tls:
        environment |= {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": f"{spec.tls_dir}/host.pem",
            "RAY_TLS_SERVER_KEY": f"{spec.tls_dir}/host.key",
            "RAY_TLS_CA_CERT": f"{spec.tls_dir}/ca.pem",
        }
    if spec.is_head:
        environment |= {
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(RayPaths(spec).storage),
        }
    return environment


def actor_name(host: str) -> str:
    """Name of a host's node agent among Ray's actors."""
    return f"agent:{host}"
