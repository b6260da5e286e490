"""Filling a folder with what hosts without internet need: which files, for whom, and once only."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.markers import Marker

from llx.bootstrap import wheelhouse
from llx.bootstrap.locks import LockEntry, lock_text, parse_lock
from llx.bootstrap.locks.refresh import _TARGETS as LOCKED_TARGETS
from llx.bootstrap.node_probe import NodePlatform
from llx.bootstrap.pip_run import PYTORCH_CPU_INDEX, OnLine
from llx.bootstrap.wheelhouse import MACHINES, PYTHONS, Target, covers, download, targets
from llx.errors import ConfigError, InstallError

CPU, CUDA = NodePlatform.CPU, NodePlatform.CUDA
TARGET = Target(CPU, "3.11", "x86_64")


class FakePip:
    """Downloads small files whose hashes are those of a lock of three packages."""

    def __init__(self, *, torch_at: str | None = None) -> None:
        self.torch_at = torch_at
        self.commands: list[list[str]] = []
        self.forgets = ""

    def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
        self.commands.append(list(argv))
        index = argv[-1] if "--index-url" in argv else None
        requirements = Path(argv[argv.index("--requirement") + 1])
        if requirements.name == "torch.txt" and index != self.torch_at:
            on_line("ERROR: No matching distribution found for torch")
            return 1
        folder = Path(argv[argv.index("--dest") + 1])
        for entry in parse_lock(requirements.read_text()):
            on_line(f"Collecting {entry.requirement}")
            if entry.name != self.forgets:
                (folder / f"{entry.name}-1-py3-none-any.whl").write_text(entry.name)
        return 0


def entry(name: str, marker: str = "") -> LockEntry:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return LockEntry(name, f"{name}==1+cpu", marker, (f"sha256:{digest}", "sha256:" + "0" * 64))


@pytest.fixture(autouse=True)
def small_lock(monkeypatch):
    """Three packages, one of them for newer Pythons."""
    entries = [entry("torch"), entry("ray"), entry("six", "python_full_version >= '3.12'")]
    monkeypatch.setattr(wheelhouse, "lock_text", lambda platform: f"{platform}\n")
    monkeypatch.setattr(wheelhouse, "parse_lock", lambda text: list(entries))


def quiet(_line: str) -> None:
    pass


# --- for whom --------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", list(NodePlatform))
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_target_needs_what_pip_would_install_there(monkeypatch, platform, python, machine):
    monkeypatch.setattr(wheelhouse, "lock_text", lock_text)
    monkeypatch.setattr(wheelhouse, "parse_lock", parse_lock)
    [facts] = [
        each
        for each in LOCKED_TARGETS
        if (each["python_version"], each["platform_machine"]) == (python, machine)
    ]
    wanted = [
        each.requirement
        for each in parse_lock(lock_text(platform))
        if not each.marker or Marker(each.marker).evaluate(facts)
    ]
    found = Target(platform, python, machine).entries()
    assert [each.requirement for each in found] == wanted
    assert not [each for each in found if each.marker]


@pytest.mark.parametrize(
    ("python", "machine"), [("3.10", "x86_64"), ("3", "x86_64"), ("3.11", "arm64"), ("", "x86_64")]
)
def test_what_no_lock_knows_is_refused(python, machine):
    with pytest.raises(ConfigError, match="no packages are known for"):
        Target(CPU, python, machine)


def test_pip_is_told_of_the_hosts_python_and_prefers_what_old_hosts_can_load():
    options = Target(CPU, "3.13", "aarch64").pip_options
    assert options[:4] == ["--implementation", "cp", "--python-version", "3.13"]
    platforms = [each.removeprefix("--platform=") for each in options[4:]]
    assert all(each.endswith("_aarch64") for each in platforms)
    order = [platforms.index(f"manylinux_2_{minor}_aarch64") for minor in (28, 17, 31)]
    assert order == sorted(order)


# --- filling ---------------------------------------------------------------------------------


def test_it_holds_exactly_what_the_lock_names(tmp_path):
    pip, said = FakePip(), []
    assert download(tmp_path / "w", TARGET, report=said.append, run=pip)
    assert sorted(path.name for path in (tmp_path / "w").glob("*.whl")) == [
        "ray-1-py3-none-any.whl",
        "torch-1-py3-none-any.whl",
    ]
    for argv in pip.commands:
        assert argv[1:4] == ["-I", "-m", "pip"]
        assert {"download", "--no-deps", "--require-hashes", "--only-binary"} <= set(argv)
        assert not {"--no-index", "--find-links", "--index-url"} & set(argv)
    assert said[0] == f"filling {tmp_path / 'w'} for cpu Python 3.11 x86_64"
    assert said[-1].startswith(f"{tmp_path / 'w'} is complete for cpu Python 3.11 x86_64")


def test_a_second_time_nothing_is_done(tmp_path):
    download(tmp_path, TARGET, report=quiet, run=FakePip())
    pip = FakePip()
    assert not download(tmp_path, TARGET, report=quiet, run=pip)
    assert pip.commands == []


def test_torch_is_looked_for_on_pytorchs_index_and_nothing_else_is(tmp_path):
    pip = FakePip(torch_at=PYTORCH_CPU_INDEX)
    download(tmp_path, TARGET, report=quiet, run=pip)
    assert [("--index-url" in argv, "torch.txt" in " ".join(argv)) for argv in pip.commands] == [
        (False, True),
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize("damage", ["gone", "shorter", "index", "lock"])
def test_what_is_not_complete_is_filled_again(tmp_path, damage, monkeypatch):
    download(tmp_path, TARGET, report=quiet, run=FakePip())
    assert covers(tmp_path, TARGET)
    match damage:
        case "gone":
            (tmp_path / "ray-1-py3-none-any.whl").unlink()
        case "shorter":
            (tmp_path / "ray-1-py3-none-any.whl").write_text("r")
        case "index":
            (tmp_path / wheelhouse.INDEX_NAME).write_text("{")
        case _:
            monkeypatch.setattr(wheelhouse, "lock_text", lambda platform: "of the next release")
    assert not covers(tmp_path, TARGET)
    assert download(tmp_path, TARGET, report=quiet, run=FakePip())
    assert covers(tmp_path, TARGET)


def test_a_folder_serves_several_targets(tmp_path):
    newer = Target(CPU, "3.12", "x86_64")
    download(tmp_path, TARGET, report=quiet, run=FakePip())
    assert targets(tmp_path) == (TARGET,)
    assert not covers(tmp_path, newer)
    download(tmp_path, newer, report=quiet, run=FakePip())
    assert covers(tmp_path, TARGET)
    assert covers(tmp_path, newer)
    assert (tmp_path / "six-1-py3-none-any.whl").exists()
    assert targets(tmp_path) == (TARGET, newer)


def test_a_folder_filled_by_hand_is_said_to_be_for_nobody_in_particular(tmp_path):
    (tmp_path / "ray-1-py3-none-any.whl").touch()
    assert targets(tmp_path) is None


def test_an_interrupted_download_never_happened(tmp_path):
    class Interrupted(FakePip):
        def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
            if "packages.txt" in " ".join(argv):
                raise KeyboardInterrupt
            return super().__call__(argv, on_line)

    with pytest.raises(KeyboardInterrupt):
        download(tmp_path, TARGET, report=quiet, run=Interrupted())
    assert not covers(tmp_path, TARGET)
    assert download(tmp_path, TARGET, report=quiet, run=FakePip())


def test_a_file_that_pip_did_not_bring_is_named(tmp_path):
    pip = FakePip()
    pip.forgets = "ray"
    with pytest.raises(InstallError, match=r"has no file of ray==1\+cpu after the download"):
        download(tmp_path, TARGET, report=quiet, run=pip)
    assert not covers(tmp_path, TARGET)


def test_a_failure_shows_what_pip_said(tmp_path):
    def broken(argv: Sequence[str], on_line: OnLine) -> int:
        on_line("OSError: [Errno 28] No space left on device")
        return 1

    with pytest.raises(InstallError) as caught:
        download(tmp_path, TARGET, report=quiet, run=broken)
    assert caught.value.message.startswith(f"downloading torch==1+cpu in {tmp_path} failed")
    assert caught.value.remedy == "free some space, then repeat"


def test_the_index_says_what_is_there(tmp_path):
    download(tmp_path, TARGET, report=quiet, run=FakePip())
    index = json.loads((tmp_path / wheelhouse.INDEX_NAME).read_text())
    assert list(index["targets"]) == ["cpu Python 3.11 x86_64"]
    assert index["files"] == {"ray-1-py3-none-any.whl": 3, "torch-1-py3-none-any.whl": 5}
