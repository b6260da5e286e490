"""The process's environment: its variables, and the directories that follow from them.

`Environment` is the only reader of ``os.environ``.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llx.secret import Secret

_TINY_DIRECTORY = "tiny-1"  # the number is the version of its recipe


@dataclass(frozen=True, slots=True)
class Environment:
    """The process's environment variables and what follows from them. Values are never printed."""

    variables: Mapping[str, str]
    cwd: Path

    @classmethod
    def current(cls) -> "Environment":
        """The environment of this process."""
        return cls(dict(os.environ), Path.cwd())

    def get(self, name: str) -> str | None:
        """A variable; None when unset or empty."""
        return self.variables.get(name) or None

    @property
    def state_home(self) -> Path:
        """``$XDG_STATE_HOME/llx``."""
        return self._xdg("XDG_STATE_HOME", ".local/state")

    @property
    def xdg_data_home(self) -> Path:
        """``$XDG_DATA_HOME`` itself."""
        return self.data_home.parent

    @property
    def data_home(self) -> Path:
        """``$XDG_DATA_HOME/llx``."""
        return self._xdg("XDG_DATA_HOME", ".local/share")

    @property
    def config_home(self) -> Path:
        """``$XDG_CONFIG_HOME/llx``."""
        return self._xdg("XDG_CONFIG_HOME", ".config")

    @property
    def clusters_dir(self) -> Path:
        """One directory per cluster."""
        return self.state_home / "clusters"

    @property
    def tiny_model(self) -> Path:
        """Where the tiny model that llx makes lies."""
        return self.data_home / "models" / _TINY_DIRECTORY

    def cluster_dir(self, cluster: str) -> Path:
        """The state directory of a cluster, which may not exist."""
        return self.clusters_dir / cluster

    @property
    def node_prefix(self) -> Path | None:
        """``LLX_NODE_PREFIX``: the node environment to use instead of llx's own place."""
        given = self.get("LLX_NODE_PREFIX")
        return self.cwd / Path(given).expanduser() if given else None

    @property
    def api_key(self) -> Secret | None:
        """``LLX_API_KEY``: what `llx generate` and `llx chat` present to the gateway."""
        value = self.get("LLX_API_KEY")
        return None if value is None else Secret(value)

    @property
    def is_debug(self) -> bool:
        """``LLX_DEBUG``: tracebacks are shown."""
        return (self.get("LLX_DEBUG") or "0") != "0"

    @property
    def is_colour_off(self) -> bool:
        """``NO_COLOR`` is set, or the terminal can show none."""
        return self.get("NO_COLOR") is not None or self.get("TERM") == "dumb"

    def _xdg(self, name: str, default: str) -> Path:
        given = Path(self.variables.get(name, ""))
        home = Path(self.variables.get("HOME") or Path.home())
        return (given if given.is_absolute() else home / default) / "llx"
