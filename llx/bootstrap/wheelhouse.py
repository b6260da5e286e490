"""A wheelhouse: all files of a node environment in one folder, for hosts without internet.

Filled on the operator's machine with exactly the files of a lock, for the Python and the machine of
the hosts, which need not be the operator's own. What it holds is written last, so an interrupted
download is one that never happened; pip then takes up what is there::

    *.whl
    download.log          all that pip said
    llx-wheelhouse.json   for which targets it is complete, and the size of each file

Several targets may share a folder.
"""

import hashlib
import json
import platform as machine_facts
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llx.bootstrap.locks import LockEntry, lock_text, parse_lock
from llx.bootstrap.node_probe import NodePlatform
from llx.bootstrap.pip_run import PipRunner, Report, Run, run_command
from llx.errors import ConfigError, InstallError

INDEX_NAME = "llx-wheelhouse.json"
LOG_NAME = "download.log"
MACHINES = ("x86_64", "aarch64")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""What the locks know wheels for."""

_EVERYWHERE = range(28, 4, -1)
_NEWER_HOSTS_ONLY = range(29, 40)


@dataclass(frozen=True, slots=True)
class Target:
    """What kind of host the files are for.

    Attributes:
        platform: Which lock.
        python: The hosts' Python, as ``3.11``.
        machine: Their processor, as ``uname -m`` says it.
    """

    platform: NodePlatform
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    machine: str = field(default_factory=machine_facts.machine)

    def __post_init__(self) -> None:
        if self.python not in PYTHONS:
            raise ConfigError(
                f'no packages are known for Python "{self.python}"',
                remedy=f"choose one of {', '.join(PYTHONS)}",
            )
        if self.machine not in MACHINES:
            raise ConfigError(
                f'no packages are known for machine "{self.machine}"',
                remedy=f"choose one of {', '.join(MACHINES)}",
            )

    def __str__(self) -> str:
        return f"{self.platform} Python {self.python} {self.machine}"

    @property
    def pip_options(self) -> list[str]:
        """What makes pip choose for that Python and machine instead of for the one it runs on.

        Of several files of one release the first platform named wins: the build for the oldest
        hosts, and one for newer glibc only where there is no other.
        """
        versions = [f"manylinux_2_{minor}" for minor in _EVERYWHERE]
        names = [*versions, "manylinux2014", "manylinux2010", "manylinux1", "linux"]
        names += [f"manylinux_2_{minor}" for minor in _NEWER_HOSTS_ONLY]
        options = ["--implementation", "cp", "--python-version", self.python]
        return [*options, *(f"--platform={name}_{self.machine}" for name in names)]

    def entries(self) -> list[LockEntry]:
        """What the lock installs on such a host, without markers."""
        entries = parse_lock(lock_text(self.platform))
        return [replace(entry, marker="") for entry in entries if self._needs(entry.marker)]

    def _needs(self, marker: str) -> bool:
        return all(self._holds(clause) for clause in marker.split(" and ") if clause)

    def _holds(self, clause: str) -> bool:
        """One comparison; the locks know no others (see `llx.bootstrap.locks.refresh`)."""
        name, operator, value = clause.replace("'", "").split()
        if name in {"platform_machine", "sys_platform"}:
            assert operator == "==", f"unknown marker in a lock: {clause}"
            return value == (self.machine if name == "platform_machine" else "linux")
        assert name == "python_full_version", f"unknown marker in a lock: {clause}"
        ours, theirs = (tuple(map(int, text.split("."))) for text in (self.python, value))
        assert len(theirs) == 2, f"unknown marker in a lock: {clause}"
        assert operator in {"<", ">="}, f"unknown marker in a lock: {clause}"
        return ours < theirs if operator == "<" else ours >= theirs


def download(
    folder: Path,
    target: Target,
    *,
    report: Report,
    python: Path | None = None,
    run: Run = run_command,
) -> bool:
    """Fill `folder` with the files that `target` needs, or see that they are there.

    Args:
        folder: New, or a wheelhouse to add to.
        target: What kind of host they are for.
        report: Told what goes on, a line at a time.
        python: The interpreter whose pip downloads; default: the one that is running.
        run: Runs pip; tests give their own.

    Returns:
        Whether anything was downloaded.

    Raises:
        InstallError: With the end of pip's output as ``detail``.
    """
    folder = folder.absolute()
    if covers(folder, target):
        report(f"{folder} is complete for {target}")
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(f"cannot write to {folder}: {error.strerror}") from error
    pip = PipRunner(python or Path(sys.executable), folder, folder / LOG_NAME, None, report, run)
    entries = target.entries()
    report(f"filling {folder} for {target}")
    pip.download_locked(entries, target.pip_options)
    _check_files(folder, entries)
    _write_index(folder, target)
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    report(f"{folder} is complete for {target}: {size / 1e9:.1f} GB ({pip.elapsed()})")
    return True


def covers(folder: Path, target: Target) -> bool:
    """Whether a folder was filled for `target`, by this release, and still has its files.

    Sizes are compared; the hashes are pip's to check when it installs.
    """
    index = _read_index(folder)
    if index is None or index.targets.get(str(target)) != _lock_hash(target):
        return False
    return all(_size(folder / name) == size for name, size in index.files.items())


def targets(folder: Path) -> tuple[Target, ...] | None:
    """What a folder was filled for, by this release; None if not by `download` at all."""
    index = _read_index(folder)
    if index is None:
        return None
    every = (
        Target(platform, python, machine)
        for platform in NodePlatform
        for python in PYTHONS
        for machine in MACHINES
    )
    return tuple(each for each in every if index.targets.get(str(each)) == _lock_hash(each))


# --- what it holds ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Index:
    targets: dict[str, str]
    files: dict[str, int]


def _read_index(folder: Path) -> _Index | None:
    try:
        return _Index(**json.loads((folder / INDEX_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_index(folder: Path, target: Target) -> None:
    before = _read_index(folder)
    index = {
        "targets": {**(before.targets if before else {}), str(target): _lock_hash(target)},
        "files": {path.name: path.stat().st_size for path in sorted(folder.glob("*.whl"))},
    }
    unfinished = folder / f"{INDEX_NAME}.new"
    unfinished.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / INDEX_NAME)


def _check_files(folder: Path, entries: Sequence[LockEntry]) -> None:
    """Hold pip to its word: a file of each entry, by its hash."""
    found = {f"sha256:{_sha256(path)}" for path in folder.glob("*.whl")}
    for entry in entries:
        if not found & set(entry.hashes):
            raise InstallError(
                f"{folder} has no file of {entry.requirement} after the download",
                remedy=f"see {folder / LOG_NAME}",
            )


def _lock_hash(target: Target) -> str:
    return hashlib.sha256(lock_text(target.platform).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
