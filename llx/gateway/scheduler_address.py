"""Where the scheduler is, by the gateway's own spec: the node agent rewrites it."""

from pathlib import Path

from llx.errors import ConfigError
from llx.specs import GatewaySpec, load_spec


class SchedulerAddress:
    """The address in a spec file, as it is at the moment.

    Args:
        path: The spec.
        address: What it said when the gateway started.
    """

    def __init__(self, path: Path, address: str) -> None:
        self._path = path
        self._address = address
        self._seen = 0

    def now(self) -> str:
        """Looks, and reads the file if it is another one. One that cannot be read says nothing."""
        try:
            found = self._path.stat().st_mtime_ns
            if found != self._seen:
                self._address = load_spec(self._path, GatewaySpec).scheduler_address
                self._seen = found
        except (OSError, ConfigError):
            pass
        return self._address
