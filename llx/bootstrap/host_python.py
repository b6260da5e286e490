"""Which Python a host's node environment is based on: one it has, or one that llx brings along.

A host with Python 3.11 or newer and its ``venv`` uses that. Others get a standalone Python of their
own, below ``~/.llx/python``, which no system package notices:

- with a wheelhouse: from an archive that lies in it, as python-build-standalone publishes them
  (``cpython-3.12.8+…-x86_64-unknown-linux-gnu-install_only.tar.gz``);
- without: fetched by uv on the host, with uv's binary sent from here.

`plan_python` decides, from facts and the wheelhouse; `ensure_python` does it.
"""

import re
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llx.bootstrap.host_facts import HostFacts
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.node_probe import NodePlatform
from llx.bootstrap.pip_run import Run, run_command
from llx.bootstrap.shell import OnProgress, Shell
from llx.bootstrap.wheelhouse import PYTHONS, Target, targets
from llx.errors import HostError, InstallError

STEP = "Python"
UV_REQUIREMENT = "uv>=0.9,<1"
"""What fetches a standalone Python; used for nothing else."""

_FETCHED = "3.12"
_ARCHIVE = re.compile(
    r"cpython-(3\.\d+)\.(\d+)\+\w+-(\w+)-unknown-linux-gnu-install_only(?:_stripped)?\.tar\.gz"
)
_INSTALL_TIMEOUT_S = 900.0
_USABLE = "import ensurepip, ssl, sys, venv; sys.exit(sys.version_info < (3, 11))"


@dataclass(frozen=True, slots=True)
class FoundPython:
    """The host has it."""

    path: PurePosixPath

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class ArchivedPython:
    """To be unpacked from an archive of the operator's."""

    archive: Path

    def __str__(self) -> str:
        return f"unpacked from {self.archive.name}"


@dataclass(frozen=True, slots=True)
class FetchedPython:
    """To be fetched from the internet by the host."""

    version: str
    machine: str

    def __str__(self) -> str:
        return f"standalone Python {self.version}, fetched by uv"


PythonPlan = FoundPython | ArchivedPython | FetchedPython


def common_version(
    hosts: Sequence[HostFacts], platform: NodePlatform, wheelhouse: Path | None = None
) -> str | None:
    """The release of Python, such as ``3.12``, that all hosts use: Ray joins no others.

    That of the hosts which run; else of an environment that some host must use; else of the node
    environments that are there; else the newest that every host has; else one that most can be
    brought. None: no host can have any.
    """
    running = [each for each in hosts if each.is_cluster_running]
    given = [each for each in hosts if each.override is not None]
    for some in (running, given, hosts):
        fixed = [release for each in some if (release := _fixed_version(each, platform))]
        if fixed:
            return _most(fixed)
    had = [
        {_short(python.version) for python in each.pythons if python.has_venv}
        & _fitting_versions(each.machine, platform, wheelhouse)
        for each in hosts
    ]
    everywhere = set.intersection(*had) if had else set()
    if everywhere:
        return max(everywhere, key=_number)
    brought = [_brought_versions(each.machine, platform, wheelhouse) for each in hosts]
    possible = [each for pair in zip(had, brought, strict=True) for each in set.union(*pair)]
    return _most(possible) if possible else None


def plan_python(
    facts: HostFacts,
    platform: NodePlatform,
    wheelhouse: Path | None = None,
    *,
    only: str | None = None,
) -> PythonPlan:
    """Decide where the host's Python comes from.

    Args:
        facts: Of the host.
        platform: Of its node environment.
        wheelhouse: The folder here that its packages come from, instead of an index.
        only: The release it must be of (`common_version`); None: any that fits.

    Raises:
        HostError: The packages of the wheelhouse fit none of its Pythons, and no archive is there.
    """
    packages = _fitting_versions(facts.machine, platform, wheelhouse)
    fitting = packages if only is None else packages & {only}
    for each in facts.pythons:
        if each.has_venv and _short(each.version) in fitting:
            return FoundPython(PurePosixPath(each.path))
    if wheelhouse is None:
        return FetchedPython(only or _FETCHED, facts.machine)
    archives = _archives(wheelhouse, facts.machine, fitting)
    if archives:
        return ArchivedPython(max(archives)[1])
    raise _nothing_fits(facts, platform, wheelhouse, packages, only)


def base_python(
    shell: Shell,
    layout: HostLayout,
    facts: HostFacts,
    wheelhouse: Path | None,
    report: Callable[[str], None],
    *,
    platform: NodePlatform,
    only: str | None,
    uv_cache: Path,
) -> PurePosixPath:
    """`plan_python` and `ensure_python` in one."""
    plan = plan_python(facts, platform, wheelhouse, only=only)
    return ensure_python(shell, layout, plan, uv_cache=uv_cache, report=report)


def ensure_python(
    shell: Shell,
    layout: HostLayout,
    plan: PythonPlan,
    *,
    uv_cache: Path,
    report: Callable[[str], None],
    on_progress: OnProgress | None = None,
) -> PurePosixPath:
    """Do what `plan` says, unless it is done; return the interpreter's path on the host.

    Args:
        shell: The host.
        layout: Of the host.
        plan: From `plan_python`.
        uv_cache: A folder here where uv's binary is kept.
        report: Told what goes on, a line at a time.
        on_progress: Told how much of a file has been sent.

    Raises:
        HostError: It could not be done there; says why.
        InstallError: uv could not be fetched here.
    """
    match plan:
        case FoundPython(path):
            return path
        case ArchivedPython(archive):
            return _unpack(shell, layout, archive, report, on_progress)
        case FetchedPython(version, machine):
            uv = fetch_uv(uv_cache, machine, report=report)
            return _fetch(shell, layout, version, uv, report, on_progress)


def fetch_uv(
    cache: Path, machine: str, *, report: Callable[[str], None], run: Run = run_command
) -> Path:
    """uv's binary for `machine`, from the cache or by this machine's pip.

    Raises:
        InstallError: pip could not get it.
    """
    binary = cache / f"uv-{machine}"
    if binary.is_file():
        return binary
    report("fetching uv")
    options = Target(NodePlatform.CPU, _FETCHED, machine).pip_options
    output: list[str] = []
    with tempfile.TemporaryDirectory(prefix="llx-uv-") as folder:
        pip = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        argv = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
        if run([*argv, *options, "--dest", folder, UV_REQUIREMENT], output.append) != 0:
            raise InstallError(
                f"uv for {machine} could not be fetched, and it is to fetch a Python for a host",
                detail="\n".join(output[-15:]),
                remedy="install Python 3.11 or newer with venv on the host, or configure pip here",
            )
        wheel = next(Path(folder).glob("uv-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(each for each in archive.namelist() if each.endswith("/scripts/uv"))
            content = archive.read(name)
    cache.mkdir(parents=True, exist_ok=True)
    # Several hosts may ask at once: each writes a file of its own.
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as unfinished:
        unfinished.write(content)
    Path(unfinished.name).replace(binary)
    return binary


# --- deciding --------------------------------------------------------------------------------


def _fixed_version(host: HostFacts, platform: NodePlatform) -> str | None:
    """The release that a host has, whatever the others have."""
    if host.override is not None:
        is_too_old = host.override.version < (3, 11)  # that is its own problem alone
        return None if is_too_old else _short(host.override.version)
    return host.installed_python(platform) if host.wanted_python is None else None


def _fitting_versions(
    machine: str, platform: NodePlatform, wheelhouse: Path | None
) -> frozenset[str]:
    """The Pythons there are packages for; of a wheelhouse filled by hand, all of the lock's."""
    known = None if wheelhouse is None else targets(wheelhouse)
    if known is None:
        return frozenset(PYTHONS)
    return frozenset(
        each.python for each in known if (each.platform, each.machine) == (platform, machine)
    )


def _brought_versions(machine: str, platform: NodePlatform, wheelhouse: Path | None) -> set[str]:
    """What llx can bring along for such a host."""
    if wheelhouse is None:
        return {_FETCHED}
    fitting = _fitting_versions(machine, platform, wheelhouse)
    return {f"3.{minor}" for (minor, _), _ in _archives(wheelhouse, machine, fitting)}


def _archives(
    wheelhouse: Path, machine: str, fitting: Collection[str]
) -> list[tuple[tuple[int, int], Path]]:
    """Standalone Pythons that lie there, with the last two parts of their versions."""
    found: list[tuple[tuple[int, int], Path]] = []
    for path in wheelhouse.glob("cpython-*.tar.gz"):
        named = _ARCHIVE.fullmatch(path.name)
        if named and named[1] in fitting and named[3] == machine:
            found.append(((_number(named[1]), int(named[2])), path))
    return found


def _nothing_fits(
    facts: HostFacts,
    platform: NodePlatform,
    wheelhouse: Path,
    packages: frozenset[str],
    only: str | None,
) -> HostError:
    has = [
        f"{each.version_text}{'' if each.has_venv else ' without venv'}" for each in facts.pythons
    ]
    usable = [_short(each.version) for each in facts.pythons if each.has_venv]
    usable = [each for each in usable if each in PYTHONS and only in {None, each}]
    for_these = ", ".join(sorted(packages)) or "none of its machine and platform"
    sought = f"Python {only}" if only else "Python 3.11 or newer"
    why = f"; all hosts are to use {only}, as Ray joins no two releases" if only else ""
    fill = f"llx node download {wheelhouse} --platform {platform} --machine {facts.machine}"
    fill += f" --python-version {only or usable[0]}" if only or usable else ""
    archive = f"cpython-{only or '3'}.…-{facts.machine}-unknown-linux-gnu-install_only.tar.gz"
    install = f"install {sought} with venv there, or put {archive} into {wheelhouse}"
    has_packages = only in packages if only else bool(packages)
    return HostError(
        f"it has {'Python ' + ', '.join(has) if has else 'no ' + sought}, and {wheelhouse} has "
        f"packages for Python {for_these}{why}",
        host=facts.host,
        step=STEP,
        remedy=fill if usable else install if has_packages else f"{install}; and run {fill}",
    )


def _most(versions: Sequence[str]) -> str:
    """The most frequent; of several the newest."""
    votes = Counter(versions)
    return max(votes, key=lambda version: (votes[version], _number(version)))


def _number(version: str) -> int:
    return int(version.partition(".")[2])


def _short(version: tuple[int, int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# --- doing -----------------------------------------------------------------------------------


def _unpack(
    shell: Shell,
    layout: HostLayout,
    archive: Path,
    report: Callable[[str], None],
    on_progress: OnProgress | None,
) -> PurePosixPath:
    place = layout.root / "python" / archive.name.partition("-install_only")[0]
    python = place / "bin" / "python3"
    if _is_usable(shell, python):
        return python
    report(f"sending {archive.name}")
    _checked(shell, ["mkdir", "-p", "-m", "700", str(layout.root)])
    _checked(shell, ["mkdir", "-p", str(layout.wheelhouse), str(place.parent)])
    there = str(layout.wheelhouse / archive.name)
    sized = shell.run(["stat", "-c", "%s", there])
    if sized.stdout.strip() != str(archive.stat().st_size):
        shell.put_file(archive, there, on_progress=on_progress)
    report(f"unpacking {archive.name}")
    new = f"{place}.new"
    _checked(shell, ["rm", "-rf", new, str(place)])
    _checked(shell, ["mkdir", new])
    unpack = ["tar", "-xzf", there, "-C", new, "--strip-components=1", "--no-same-owner"]
    _checked(shell, unpack)
    _checked(shell, ["mv", "-T", new, str(place)])
    _require_usable(shell, python)
    return python


def _fetch(
    shell: Shell,
    layout: HostLayout,
    version: str,
    uv: Path,
    report: Callable[[str], None],
    on_progress: OnProgress | None,
) -> PurePosixPath:
    place = layout.root / "python"
    for python in _fetched(shell, place, version):
        if _is_usable(shell, python):
            return python
    report("sending uv")
    _checked(shell, ["mkdir", "-p", "-m", "700", str(layout.root)])
    _checked(shell, ["mkdir", "-p", str(place)])
    there = str(place / "uv")
    shell.put_file(uv, there, mode=0o755, on_progress=on_progress)
    report(f"fetching Python {version}")
    # Nothing of it outside `place`: no cache, no link in ~/.local/bin.
    options = ["--no-bin", "--no-cache", "--no-config", "--no-progress", "--managed-python"]
    argv = [there, "python", "install", version, "--install-dir", str(place), *options]
    _checked(
        shell,
        argv,
        timeout_s=_INSTALL_TIMEOUT_S,
        remedy="install Python 3.11 or newer with venv there; or, without internet, set "
        "runtime.wheelhouse and put a standalone Python into it",
    )
    _checked(shell, ["rm", "-f", there])
    found = _fetched(shell, place, version)
    if not found:
        raise HostError(f"uv left no Python in {place}", host=shell.host, step=STEP)
    _require_usable(shell, found[0])
    return found[0]


def _fetched(shell: Shell, place: PurePosixPath, version: str) -> list[PurePosixPath]:
    """Pythons that uv put there before."""
    listing = shell.run(
        ["sh", "-c", 'ls -d "$1"/cpython-"$2"*/bin/python3', "-", str(place), version]
    )
    return [PurePosixPath(line) for line in listing.stdout.splitlines()]


def _is_usable(shell: Shell, python: PurePosixPath) -> bool:
    return shell.run([str(python), "-I", "-c", _USABLE]).is_success


def _require_usable(shell: Shell, python: PurePosixPath) -> None:
    _checked(
        shell,
        [str(python), "-I", "-c", _USABLE],
        remedy="that Python does not run there: install Python 3.11 or newer with venv instead",
    )


def _checked(
    shell: Shell, argv: list[str], *, timeout_s: float = _INSTALL_TIMEOUT_S, remedy: str = ""
) -> None:
    done = shell.run(argv, timeout_s=timeout_s)
    if not done.is_success:
        raise HostError(
            f"{argv[0]} failed with exit code {done.exit_code}",
            host=shell.host,
            step=STEP,
            process_exit_code=done.exit_code,
            stderr_tail=done.stderr_tail,
            remedy=remedy,
        )
