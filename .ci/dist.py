#!/usr/bin/env python3
"""Builds llx's sdist and wheel, and checks what is in them.

    .ci/dist.py [FOLDER]

Into dist/, or FOLDER. The tools are those of build.lock, fetched for this one build; dates are the
last commit's: the same commit gives the same bytes. The wheel is built from the sdist, and once
more from the tree, which must make no difference. Prints the two paths; exit code 1: something is
missing in one of them, or does not belong there.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_name("build.lock")

PLACES = {"llx/": "llx/", "playbooks/": "llx/_data/playbooks/", "man/": "share/man/man1/"}
"""What of the tree a wheel has, and where."""
SINGLE = {"examples/cluster.yaml": "llx/_data/examples/cluster.yaml"}
SDIST = ("llx/", "playbooks/", "man/", "examples/", "README.md", "LICENSE", "CHANGELOG.md")
"""What of the tree an sdist has, but for what it is built by."""
SDIST_EXTRA = {"PKG-INFO", "pyproject.toml", ".gitignore", "hatch_build.py"}
METADATA = {
    "License-Expression": "Apache-2.0",
    "License-File": "LICENSE",
    "Requires-Python": ">=3.11",
    "Description-Content-Type": "text/markdown",
}
DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


class Wrong(Exception):
    """What is built is not as it must be."""


def main(argv: list[str]) -> int:
    target = Path(argv[0]).absolute() if argv else ROOT / "dist"
    with tempfile.TemporaryDirectory(prefix="llx-dist-") as name:
        folder = Path(name)
        try:
            built = build(folder)
            files = tree()
            check_sdist(built[0], files)
            check_wheel(built[1], files)
        except Wrong as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        target.mkdir(parents=True, exist_ok=True)
        for each in built:
            print(shutil.copy(each, target))
    return 0


# --- building --------------------------------------------------------------------------------


def build(folder: Path) -> tuple[Path, Path]:
    """Sdist and wheel, in `folder`."""
    tools = folder / "tools"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    run([*pip, "--require-hashes", "--no-deps", "--target", str(tools), "-r", str(LOCK)], ROOT)
    sdist = hatch("sdist", ROOT, folder / "sdist", tools)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = hatch("wheel", unpacked, folder / "wheel", tools)
    direct = hatch("wheel", ROOT, folder / "direct", tools)
    if wheel.read_bytes() != direct.read_bytes():
        raise Wrong(
            f"the sdist makes another {wheel.name} than the tree: {difference(wheel, direct)}"
        )
    return sdist, wheel


def hatch(kind: str, tree: Path, out: Path, tools: Path) -> Path:
    words = ["-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    variables = {"PYTHONPATH": str(tools), "SOURCE_DATE_EPOCH": epoch()}
    run([sys.executable, "-P", *words], tree, variables)
    (made,) = out.iterdir()
    return made


def run(argv: list[str], folder: Path, variables: dict[str, str] | None = None) -> None:
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Wrong(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def epoch() -> str:
    """``SOURCE_DATE_EPOCH`` as given, or the date of the last commit."""
    return os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct").strip()


def difference(one: Path, other: Path) -> str:
    a, b = contents(one), contents(other)
    names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return ", ".join(names) or "in form only"


# --- checking --------------------------------------------------------------------------------


def tree() -> dict[str, bytes]:
    """What git tracks, as it lies here."""
    names = git("ls-files", "-z").split("\0")
    return {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}


def git(*words: str) -> str:
    # Whoever builds may be another user than the one whose checkout it is.
    argv = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Wrong(f"a release is built of a git checkout: {done.stderr.strip()}")
    return done.stdout


def check_sdist(path: Path, files: dict[str, bytes]) -> None:
    """It has what is tracked of the places that belong there, and nothing else."""
    stem = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as archive:
        there = {
            each.name.removeprefix(f"{stem}/"): archive.extractfile(each).read()
            for each in archive
            if each.isfile()
        }
    wanted = {name: data for name, data in files.items() if name.startswith(SDIST)}
    compare(path.name, {k: v for k, v in there.items() if k not in SDIST_EXTRA}, wanted)
    if missing := SDIST_EXTRA - there.keys():
        raise Wrong(f"{path.name} lacks {', '.join(sorted(missing))}")


def check_wheel(path: Path, files: dict[str, bytes]) -> None:
    """It has the package, its data, the manual and the licence, and says so; nothing else."""
    stem = "-".join(path.name.split("-")[:2])
    info, data = f"{stem}.dist-info/", f"{stem}.data/data/"
    there = contents(path)
    named = {name.removeprefix(info) for name in there if name.startswith(info)}
    if named != DIST_INFO:
        raise Wrong(f"{path.name}: {info} has {', '.join(sorted(named ^ DIST_INFO))} amiss")
    found = {k.removeprefix(data): v for k, v in there.items() if not k.startswith(info)}
    compare(path.name, found, in_wheel(files))
    check_metadata(path.name, there[f"{info}METADATA"].decode())


def in_wheel(files: dict[str, bytes]) -> dict[str, bytes]:
    wanted = {SINGLE[name]: data for name, data in files.items() if name in SINGLE}
    for name, data in files.items():
        for top, place in PLACES.items():
            if name.startswith(top):
                wanted[place + name.removeprefix(top)] = data
    return wanted


def check_metadata(name: str, text: str) -> None:
    said = HeaderParser().parsestr(text)
    for key, value in METADATA.items():
        if said[key] != value:
            raise Wrong(f"{name}: {key} is {said[key]}, not {value}")
    if "# llx" not in said.get_payload():
        raise Wrong(f"{name}: the README is not its description")


def compare(name: str, there: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    faults = {
        "lacks": sorted(wanted.keys() - there.keys()),
        "has what does not belong there:": sorted(there.keys() - wanted.keys()),
        "has other bytes than the tree in": sorted(
            key for key in wanted.keys() & there.keys() if wanted[key] != there[key]
        ),
    }
    for what, names in faults.items():
        if names:
            raise Wrong(f"{name} {what} {', '.join(names)}")


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
