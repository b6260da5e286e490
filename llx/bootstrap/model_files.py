"""What a model is made of: its name on hosts, its files, and the manifest that says it is complete.

The manifest (``llx-model.json``) lies among the files and is written last: a model without one is
one that is still on its way. Nothing here reaches a host.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from llx.errors import ConfigError, NotFoundError

MANIFEST_NAME = "llx-model.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file. `mtime_ns`: of the operator's own, which tells whether to hash it again."""

    size: int
    sha256: str = ""
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in a complete model's directory.

    Attributes:
        source: Where it came from, such as ``hub:org/name@revision``.
        files: By path within the directory.
    """

    source: str = ""
    files: Mapping[str, ModelFile] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(each.size for each in self.files.values())

    @property
    def commit(self) -> str | None:
        """The commit it has of a repository of the hub; None if it did not come from there."""
        return commit_of(self.source)

    def dump(self) -> bytes:
        """As it is written; `source` comes first."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def load(cls, content: bytes) -> "Manifest":
        """A manifest read back; of unknown content it says only that the model is complete."""
        try:
            data = json.loads(content)
            files = {str(k): ModelFile(**v) for k, v in data.get("files", {}).items()}
        except (ValueError, TypeError, AttributeError):
            return cls()
        inside = {name: file for name, file in files.items() if _is_inside(name)}
        return cls(str(data.get("source", "")), inside)


@dataclass(frozen=True, slots=True)
class CopyDue:
    """What is to be done so that a host has a model as it is here.

    Attributes:
        files: To be sent, by name, with their sizes.
        stale: To be removed.
        is_complete: The host has a complete model of that name.
    """

    files: Mapping[str, int]
    stale: tuple[str, ...]
    is_complete: bool

    @property
    def is_nothing(self) -> bool:
        """Whether the host has it as it is here."""
        return self.is_complete and not self.files and not self.stale

    def __str__(self) -> str:
        if self.is_nothing:
            return "there already"
        size = size_text(sum(self.files.values()))
        stale = f", {len(self.stale)} to be removed" if self.stale else ""
        files = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}"
        return f"{files} to be copied ({size}){stale}"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the Hugging Face hub.

    Attributes:
        repository: ``org/name``.
        revision: Branch, tag or commit; None: the repository's own branch, whatever it is now.
    """

    repository: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """What it is called on hosts: each revision has a directory of its own."""
        return hub_name(self.repository, self.revision)

    @property
    def commit(self) -> str | None:
        """The commit, if `revision` is one."""
        is_commit = self.revision is not None and _COMMIT.fullmatch(self.revision)
        return self.revision if is_commit else None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def commit_of(source: str) -> str | None:
    """The commit in a manifest's `source`; None if it came from elsewhere than the hub."""
    commit = source.rpartition("@")[2]
    return commit if source.startswith("hub:") and _COMMIT.fullmatch(commit) else None


def check_name(name: str) -> str:
    """`name`, if a model may be called so on a host: one plain directory name.

    Raises:
        ConfigError: It may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f'"{name}" cannot name a model on a host: letters, digits, "-", "_", "." (128 at most)'
        )
    return name


def is_repository(name: str) -> bool:
    """Whether a repository of the hub may be called so: ``org/name``, or a lone old ``name``."""
    return _REPOSITORY.fullmatch(name) is not None


def hub_name(repository: str, revision: str | None = None) -> str:
    """What a repository of the hub is called on hosts: ``org/name`` becomes ``org--name``.

    With a revision, ``org--name--revision``; of a commit, its first twelve digits.

    Raises:
        ConfigError: It is no name of a repository.
    """
    if not is_repository(repository):
        raise ConfigError(f'"{repository}" is no model of the hub', remedy="say it as ORG/NAME")
    name = repository.replace("/", "--")
    if revision is not None:
        is_commit = _COMMIT.fullmatch(revision)
        name += f"--{revision[:12] if is_commit else fit_name(revision)}"
        if not is_commit and fit_name(revision) != revision:  # another one may look like it
            name += f"-{hashlib.sha256(revision.encode()).hexdigest()[:8]}"
    return check_name(name)


def fit_name(text: str) -> str:
    """`text` with what names on hosts must not have replaced."""
    return _UNFIT.sub("-", text)


def scan(source: Path) -> dict[str, ModelFile]:
    """The files of a directory here, links followed, hidden ones left out; not hashed yet.

    Raises:
        NotFoundError: There is no such directory.
        ConfigError: It holds no model, or a file whose name cannot be used.
    """
    if not source.is_dir():
        raise NotFoundError(f"{source}: no such directory")
    found: dict[str, ModelFile] = {}
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if inside.parts[0] == MANIFEST_NAME or any(each.startswith(".") for each in inside.parts):
            continue
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{path}: leads nowhere", remedy="complete the directory")
        if not path.is_file():
            continue
        if _UNPRINTABLE.search(inside.as_posix()):
            raise ConfigError(f"{path}: a file of such a name is not copied", remedy="rename it")
        status = path.stat()
        found[inside.as_posix()] = ModelFile(status.st_size, "", status.st_mtime_ns)
    if "config.json" not in found:
        raise ConfigError(f"{source}: no config.json: not a model's directory")
    return found


def digest(path: Path, file: ModelFile) -> str:
    """SHA-256 of a file here, in hex. Hashed once for all hosts.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with _ONE_AT_A_TIME:
            return _digest(path, file.size, file.mtime_ns)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def is_unchanged(path: Path, file: ModelFile) -> bool:
    """Whether a file here is still the one that was scanned."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def size_text(num_bytes: float) -> str:
    """``1.5 GB``, ``20 MB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or _UNPRINTABLE.search(name))


_ONE_AT_A_TIME = threading.Lock()
"""Of several threads that want one digest, the first makes it; a disk reads no faster for more."""


@lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
