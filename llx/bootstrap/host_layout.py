"""Where llx keeps things on a host: one directory in the user's home, and Ray's short one.

    ~/.llx/                          0700
      host.json                      which cluster uses this host
      wheels/llx-….whl               what is installed
      wheelhouse/                    packages for a host without internet
      node/<version>-<platform>/     the node environment
      models/<name>/                 weights that llx copied, pulled or made
      cache/                         what engines compiled
      clusters/<cluster>/            `llx.cluster.state_dir.StateDir`
    /tmp/llx-<uid>-<cluster>/        Ray's sockets: their paths must be short

Pure paths. `down` leaves all but what belongs to a start; `down --purge` leaves nothing.
"""

from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath

from llx import __version__

ROOT_NAME = ".llx"


@dataclass(frozen=True, slots=True)
class HostLayout:
    """Paths on one host.

    Attributes:
        home: The SSH user's home directory there.
        uid: That user's number.
        cluster: The cluster's name.
    """

    home: PurePosixPath
    uid: int
    cluster: str

    @property
    def root(self) -> PurePosixPath:
        """Everything of llx on this host, but for `ray_tmp`."""
        return self.home / ROOT_NAME

    @property
    def claim(self) -> PurePosixPath:
        """Says which cluster uses this host."""
        return self.root / "host.json"

    @property
    def wheels(self) -> PurePosixPath:
        """llx's own wheel."""
        return self.root / "wheels"

    @property
    def wheelhouse(self) -> PurePosixPath:
        """Packages sent by the operator."""
        return self.root / "wheelhouse"

    @property
    def models(self) -> PurePosixPath:
        """Weights."""
        return self.root / "models"

    def hub_home(self, model: str) -> PurePosixPath:
        """What the hub's library keeps while that model is fetched."""
        return self.models / f".hub-{model}"

    @property
    def caches(self) -> PurePosixPath:
        """What engines compiled for this host: `down` leaves it, like the node environment."""
        return self.root / "cache"

    @property
    def state(self) -> PurePosixPath:
        """The cluster's state directory."""
        return self.root / "clusters" / self.cluster

    @property
    def procs(self) -> PurePosixPath:
        """One directory per process under a shim."""
        return self.state / "procs"

    @property
    def spec(self) -> PurePosixPath:
        """`llx.specs.HostSpec`."""
        return self.state / "host.spec.json"

    @property
    def lock(self) -> PurePosixPath:
        """Held, on the head's host, by whoever changes the cluster."""
        return self.root / f"{self.cluster}.lock"

    @property
    def ray_tmp(self) -> PurePosixPath:
        """Ray's temporary directory."""
        return PurePosixPath(f"/tmp/llx-{self.uid}-{self.cluster}")  # noqa: S108 - 0700, checked

    def there(self, path: PurePath) -> PurePosixPath:
        """A path of cluster.yaml as it is there: ``~`` is the SSH user's home."""
        first, *rest = path.parts
        return self.home.joinpath(*rest) if first == "~" else PurePosixPath(path)

    def node(self, platform: str) -> PurePosixPath:
        """The node environment."""
        return self.root / "node" / f"{__version__}-{platform}"

    def node_python(self, platform: str) -> PurePosixPath:
        """Its interpreter."""
        return self.node(platform) / "bin" / "python"
