"""Where a host's Python comes from: the decision from facts, and bringing one along for real."""

import io
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from llx import __version__
from llx.bootstrap import wheelhouse as wheelhouses
from llx.bootstrap.host_facts import HostFacts, PythonFact, ShimFact
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_python import (
    ArchivedPython,
    FetchedPython,
    FoundPython,
    PythonPlan,
    common_version,
    ensure_python,
    fetch_uv,
    plan_python,
)
from llx.bootstrap.locks import lock_text
from llx.bootstrap.node_probe import NodePlatform
from llx.bootstrap.pip_run import OnLine
from llx.bootstrap.wheelhouse import Target
from llx.errors import HostError, InstallError
from tests.bootstrap.fake_shell import LocalShell

CPU, CUDA = NodePlatform.CPU, NodePlatform.CUDA
FILL = "llx node download FOLDER --platform cpu --machine x86_64 --python-version"
ARCHIVE = "cpython-3.12.8+20250106-x86_64-unknown-linux-gnu-install_only.tar.gz"


def python(version: str, *, has_venv: bool = True) -> PythonFact:
    major, minor, patch = map(int, version.split("."))
    path = f"/usr/bin/python{major}.{minor}"
    return PythonFact(path, (major, minor, patch), "/usr", has_venv, {})


def facts(*pythons: PythonFact, machine: str = "x86_64") -> HostFacts:
    home = PurePosixPath("/home/llx")
    return HostFacts("h1", "h1", "llx", 1000, home, machine=machine, pythons=pythons)


def fill(folder: Path, *held: Target, archives: Sequence[str] = ()) -> Path:
    """A wheelhouse as `download` leaves it for these."""
    folder.mkdir(exist_ok=True)
    hashes = {str(each): wheelhouses._lock_hash(each) for each in held}
    index = {"targets": hashes, "files": {}}
    (folder / wheelhouses.INDEX_NAME).write_text(json.dumps(index))
    for name in archives:
        (folder / name).touch()
    return folder


# --- deciding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pythons", "path"),
    [
        ([python("3.11.2")], "/usr/bin/python3.11"),
        ([python("3.12.1"), python("3.11.2")], "/usr/bin/python3.12"),
        ([python("3.12.1", has_venv=False), python("3.11.2")], "/usr/bin/python3.11"),
        ([python("3.15.0"), python("3.14.0")], "/usr/bin/python3.14"),
        ([python("3.9.2"), python("3.11.2")], "/usr/bin/python3.11"),
    ],
)
def test_the_first_python_that_will_do_is_taken(pythons, path):
    assert plan_python(facts(*pythons), CPU) == FoundPython(PurePosixPath(path))


@pytest.mark.parametrize(
    "pythons", [[], [python("3.9.2")], [python("3.11.2", has_venv=False)], [python("3.15.0")]]
)
def test_without_one_a_standalone_python_is_fetched(pythons):
    assert plan_python(facts(*pythons), CPU) == FetchedPython("3.12", "x86_64")


def test_all_hosts_get_one_release(tmp_path):
    one = facts(python("3.13.1"), python("3.12.4"))
    other = facts(python("3.12.9"), python("3.11.2"))
    assert common_version([one, other], CPU) == "3.12"
    assert plan_python(one, CPU, only="3.12") == FoundPython(PurePosixPath("/usr/bin/python3.12"))


def test_hosts_without_a_common_release_get_a_standalone_one():
    one, other = facts(python("3.13.1")), facts(python("3.11.2"))
    assert common_version([one, other], CPU) == "3.12"
    assert plan_python(one, CPU, only="3.12") == FetchedPython("3.12", "x86_64")


def test_an_environment_that_must_be_used_decides():
    given = replace(facts(python("3.13.1")), override=python("3.11.7"))
    assert common_version([facts(python("3.13.1"), python("3.11.2")), given], CPU) == "3.11"


def installed(host: HostFacts, version: str, platform: NodePlatform = CPU) -> HostFacts:
    return replace(host, node_environments={f"{__version__}-{platform}": version})


def running(host: HostFacts) -> HostFacts:
    return replace(host, processes=(ShimFact("ray", 7, "cafe"),))


def test_what_is_installed_decides_over_what_is_found():
    both = facts(python("3.13.1"), python("3.11.2"))
    assert common_version([both, installed(both, "3.11.2")], CPU) == "3.11"
    assert common_version([both, installed(both, "3.11.2", CUDA)], CPU) == "3.13"
    assert common_version([both, installed(both, "")], CPU) == "3.13"
    former = replace(both, node_environments={"0.0.1-cpu": "3.11.2"})
    assert common_version([both, former], CPU) == "3.13"


def test_of_installed_releases_that_differ_the_most_frequent_decides():
    some = [installed(facts(), each) for each in ("3.12.1", "3.11.2", "3.11.9")]
    assert common_version(some, CPU) == "3.11"
    assert common_version(some[:2], CPU) == "3.12"
    assert common_version([running(some[1]), some[0]], CPU) == "3.11"


def test_what_runs_decides_over_an_environment_that_must_be_used():
    given = replace(facts(), wanted_python="/x", override=python("3.11.7"))
    there = installed(facts(), "3.12.1")
    assert common_version([given, there], CPU) == "3.11"
    assert common_version([given, running(there)], CPU) == "3.12"


def test_without_a_common_one_the_release_that_most_can_have(tmp_path):
    folder = fill(
        tmp_path,
        *(Target(CPU, version, "x86_64") for version in ("3.11", "3.12")),
        archives=[ARCHIVE],
    )
    assert common_version([facts(python("3.11.2")), facts()], CPU, folder) == "3.12"
    assert common_version([facts(python("3.13.2"))], CPU, folder) == "3.12"
    (folder / ARCHIVE).unlink()
    assert common_version([facts(python("3.11.2")), facts()], CPU, folder) == "3.11"
    assert common_version([facts(python("3.13.2"))], CPU, folder) is None


def test_the_python_must_be_one_that_the_wheelhouse_is_for(tmp_path):
    folder = fill(tmp_path, Target(CPU, "3.11", "x86_64"), Target(CUDA, "3.13", "x86_64"))
    host = facts(python("3.13.1"), python("3.11.2"))
    assert plan_python(host, CPU, folder) == FoundPython(PurePosixPath("/usr/bin/python3.11"))
    assert plan_python(host, CUDA, folder) == FoundPython(PurePosixPath("/usr/bin/python3.13"))


def test_a_wheelhouse_filled_by_hand_is_trusted(tmp_path):
    host = facts(python("3.13.1"))
    assert plan_python(host, CPU, tmp_path) == FoundPython(PurePosixPath("/usr/bin/python3.13"))


def test_an_archive_in_the_wheelhouse_is_unpacked_where_there_is_no_python(tmp_path):
    older = ARCHIVE.replace("3.12.8", "3.12.7")
    unfit = [
        ARCHIVE.replace("3.12.8", "3.13.1"),
        ARCHIVE.replace("x86_64", "aarch64"),
        ARCHIVE.replace("x86_64-", "x86_64_v3-"),
        ARCHIVE.replace("gnu", "musl"),
        ARCHIVE.replace("install_only", "debug"),
        "cpython-latest.tar.gz",
    ]
    folder = fill(tmp_path, Target(CPU, "3.12", "x86_64"), archives=[older, ARCHIVE, *unfit])
    assert plan_python(facts(), CPU, folder) == ArchivedPython(folder / ARCHIVE)
    assert plan_python(facts(python("3.11.2")), CPU, folder) == ArchivedPython(folder / ARCHIVE)


@pytest.mark.parametrize(
    ("pythons", "held", "message", "remedy"),
    [
        (
            [python("3.13.1")],
            [Target(CPU, "3.11", "x86_64"), Target(CPU, "3.12", "x86_64")],
            "h1: Python: it has Python 3.13.1, and FOLDER has packages for Python 3.11, 3.12",
            f"{FILL} 3.13",
        ),
        (
            [python("3.11.1", has_venv=False)],
            [Target(CPU, "3.11", "x86_64")],
            "it has Python 3.11.1 without venv, and",
            "install Python 3.11 or newer with venv there, or put cpython-",
        ),
        (
            [],
            [Target(CUDA, "3.11", "x86_64"), Target(CPU, "3.11", "aarch64")],
            "has packages for Python none of its machine and platform",
            "and run llx node download FOLDER --platform cpu --machine x86_64",
        ),
    ],
)
def test_what_fits_nothing_is_named_with_a_remedy(tmp_path, pythons, held, message, remedy):
    folder = fill(tmp_path, *held)
    with pytest.raises(HostError) as caught:
        plan_python(facts(*pythons), CPU, folder)
    assert message.replace("FOLDER", str(folder)) in caught.value.message
    assert remedy.replace("FOLDER", str(folder)) in caught.value.remedy


@pytest.mark.parametrize(
    ("pythons", "packages", "message", "remedy"),
    [
        (
            ["3.13.1"],
            ["3.11"],
            "packages for Python 3.11; all hosts are to use 3.11",
            "or put cpython-3.11.…-x86_64-unknown-linux-gnu-install_only.tar.gz into FOLDER",
        ),
        (
            ["3.13.1"],
            ["3.13"],
            "packages for Python 3.13; all hosts are to use 3.11",
            f"into FOLDER; and run {FILL} 3.11",
        ),
        (
            ["3.13.1", "3.11.2"],
            ["3.13"],
            "it has Python 3.13.1, 3.11.2, and FOLDER has packages for Python 3.13; all hosts",
            f"{FILL} 3.11",
        ),
    ],
)
def test_what_does_not_fit_the_other_hosts(tmp_path, pythons, packages, message, remedy):
    folder = fill(tmp_path, *(Target(CPU, each, "x86_64") for each in packages))
    with pytest.raises(HostError) as caught:
        plan_python(facts(*map(python, pythons)), CPU, folder, only="3.11")
    assert message.replace("FOLDER", str(folder)) in caught.value.message
    assert caught.value.remedy.endswith(remedy.replace("FOLDER", str(folder)))


# --- bringing one along ----------------------------------------------------------------------

WORKING = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
BROKEN = "#!/bin/sh\necho cannot execute binary file >&2; exit 126\n"


@pytest.fixture
def layout(tmp_path) -> HostLayout:
    home = tmp_path / "home"
    home.mkdir()
    return HostLayout(PurePosixPath(home), os.getuid(), "c")


def pack(folder: Path, script: str) -> Path:
    """An archive in the shape of python-build-standalone's."""
    path = folder / ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("python/bin/python3")
        entry.mode, entry.size = 0o755, len(script)
        archive.addfile(entry, io.BytesIO(script.encode()))
    return path


def ensure(shell: LocalShell, layout: HostLayout, plan: PythonPlan, cache: Path) -> tuple:
    said: list[str] = []
    return ensure_python(shell, layout, plan, uv_cache=cache, report=said.append), said


def test_a_python_that_is_there_is_left_alone(layout, tmp_path):
    shell = LocalShell()
    path = PurePosixPath("/usr/bin/python3")
    assert ensure(shell, layout, FoundPython(path), tmp_path) == (path, [])
    assert shell.argvs == []


def test_an_archive_is_sent_and_unpacked_once(layout, tmp_path):
    plan = ArchivedPython(pack(tmp_path, WORKING))
    shell = LocalShell()
    place = layout.root / "python/cpython-3.12.8+20250106-x86_64-unknown-linux-gnu"
    found, said = ensure(shell, layout, plan, tmp_path)
    assert found == place / "bin/python3"
    assert said == [f"sending {ARCHIVE}", f"unpacking {ARCHIVE}"]
    assert Path(layout.root).stat().st_mode & 0o777 == 0o700
    assert not Path(f"{place}.new").exists()
    again = LocalShell()
    assert ensure(again, layout, plan, tmp_path) == (found, [])
    assert again.put_paths == []


def test_an_interrupted_unpacking_is_redone_without_sending_again(layout, tmp_path):
    plan = ArchivedPython(pack(tmp_path, WORKING))
    found, _ = ensure(LocalShell(), layout, plan, tmp_path)
    place = Path(found).parents[1]
    (place / "bin/python3").unlink()
    Path(f"{place}.new").mkdir()
    shell = LocalShell()
    assert ensure(shell, layout, plan, tmp_path)[0] == found
    assert shell.put_paths == []


@pytest.mark.parametrize("script", [BROKEN, None])
def test_an_archive_that_gives_no_python_is_said_so(layout, tmp_path, script):
    archive = pack(tmp_path, script or WORKING)
    if script is None:
        archive.write_bytes(b"half of it")
    with pytest.raises(HostError) as caught:
        ensure(LocalShell("h7"), layout, ArchivedPython(archive), tmp_path)
    assert caught.value.message.startswith("h7: Python: ")
    assert caught.value.detail


# What uv does, as far as we rely on it: it puts a Python below --install-dir.
UV = f"""#!/bin/sh
[ "$1 $2 $3 $4" = "python install 3.12 --install-dir" ] || exit 9
mkdir -p "$5/cpython-3.12.8-linux-x86_64-gnu/bin"
printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' >"$5/cpython-3.12.8-linux-x86_64-gnu/bin/python3"
chmod 755 "$5/cpython-3.12.8-linux-x86_64-gnu/bin/python3"
"""
FETCHED = FetchedPython("3.12", "x86_64")


def cached_uv(tmp_path: Path, script: str) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "uv-x86_64").write_text(script)
    return cache


def test_uv_fetches_a_python_and_leaves_nothing_else(layout, tmp_path):
    cache = cached_uv(tmp_path, UV)
    found, said = ensure(LocalShell(), layout, FETCHED, cache)
    assert found == layout.root / "python/cpython-3.12.8-linux-x86_64-gnu/bin/python3"
    assert said == ["sending uv", "fetching Python 3.12"]
    assert [path.name for path in Path(layout.home).iterdir()] == [".llx"]
    assert [path.name for path in Path(layout.root / "python").iterdir()] == [found.parts[-3]]
    again = LocalShell()
    assert ensure(again, layout, FETCHED, cache) == (found, [])
    assert again.put_paths == []


def test_a_host_that_cannot_fetch_is_told_its_ways_out(layout, tmp_path):
    cache = cached_uv(tmp_path, "#!/bin/sh\necho 'error: failed to fetch' >&2; exit 2\n")
    with pytest.raises(HostError) as caught:
        ensure(LocalShell(), layout, FETCHED, cache)
    assert caught.value.process_exit_code == 2
    assert caught.value.detail == "error: failed to fetch"
    assert "runtime.wheelhouse" in caught.value.remedy


def test_uv_comes_from_pip_once(tmp_path):
    def pip(argv: Sequence[str], on_line: OnLine) -> int:
        commands.append(list(argv))
        folder = Path(argv[argv.index("--dest") + 1])
        with zipfile.ZipFile(folder / "uv-0.9.1-py3-none-any.whl", "w") as archive:
            archive.writestr("uv/__init__.py", "")
            archive.writestr("uv-0.9.1.data/scripts/uvx", "no")
            archive.writestr("uv-0.9.1.data/scripts/uv", "the binary")
        return 0

    commands: list[list[str]] = []
    binary = fetch_uv(tmp_path / "cache", "aarch64", report=lambda _: None, run=pip)
    assert binary.read_text() == "the binary"
    assert "--platform=manylinux_2_28_aarch64" in commands[0]
    assert fetch_uv(tmp_path / "cache", "aarch64", report=lambda _: None, run=pip) == binary
    assert len(commands) == 1


def test_uv_that_pip_does_not_find_is_said_so(tmp_path):
    def pip(argv: Sequence[str], on_line: OnLine) -> int:
        on_line("ERROR: No matching distribution found for uv")
        return 1

    with pytest.raises(InstallError, match="uv for x86_64 could not be fetched") as caught:
        fetch_uv(tmp_path, "x86_64", report=lambda _: None, run=pip)
    assert "No matching distribution" in caught.value.detail


def test_the_lock_is_what_a_wheelhouse_is_held_against(tmp_path):
    folder = fill(tmp_path, Target(CPU, "3.11", "x86_64"))
    assert lock_text("cpu") != lock_text("cuda")
    with pytest.raises(HostError):
        plan_python(facts(python("3.11.2")), CUDA, folder)
