"""What ``HATCH_BUILD_HOOKS_ENABLE=1`` builds: faster, and otherwise no other llx.

The C compiler does not optimize here: that takes half of the time, and is not what is tested.
"""

import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from llx.bootstrap.wheel import repack
from llx.core.scheduler.policies import Policies
from llx.recording import Recording
from llx.sim.replay import replay

ROOT = Path(__file__).parents[2]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
SOURCES = BUILD["targets"]["wheel"]["hooks"]["custom"]["modules"]
COMPILED = [each.removesuffix(".py").replace("/", ".") for each in SOURCES]
RUNS = """
import sys
from dataclasses import replace
from pathlib import Path

from llx.core.model import Nanos
from llx.core.scheduler.config import Scaling
from llx.core.scheduler.dispatch import DISPATCH
from llx.core.scheduler.freeness import Freeness
from llx.recording import Recorder
from llx.sim.cluster import Cluster
from llx.sim.presets import POLICIES, paper_cluster
from llx.sim.workload import generated


def record(path, config):
    with Recorder(path, origin="simulator") as recorder:
        requests = generated("m-m", 3.0, 150, 0, high_share=0.2)
        run = Cluster(config, iter(requests), observe=recorder.record).run(0)
    print(path.name, run.trace_hash)


folder = Path(sys.argv[1])
for name in POLICIES:
    record(folder / name, paper_cluster(name, 3))
config = paper_cluster("llx", 3)
for name in DISPATCH:
    record(folder / f"by-{name}", replace(config, pool=replace(config.pool, dispatch=name)))
for rule in ("band", "demand"):
    scaling = Scaling(rule, 1, 6, Freeness(10.0), Freeness(60.0), Nanos(10**9), Nanos(2 * 10**9))
    record(folder / rule, replace(config, pool=replace(config.pool, scaling=scaling)))
"""

HAS_COMPILER = bool(shutil.which("cc")) and Path(sysconfig.get_path("include"), "Python.h").exists()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler, or no headers of Python"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """Where the wheel is installed, without what it depends on."""
    tree, out, place = (tmp_path_factory.mktemp(name) for name in ("tree", "out", "place"))
    for name in ("llx", "playbooks", "examples", "man"):
        skipped = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tree / name, ignore=skipped)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tree)
    compiling = {**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1", "MYPYC_OPT_LEVEL": "0"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "-w", str(out), str(tree)]
    done = subprocess.run(build, env=compiling, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    assert not wheel.name.endswith("-none-any.whl"), "it is of one kind of machine"
    venv.create(place, with_pip=False)
    install = [*pip, "--python", str(place / "bin/python"), "install", "-q", "--no-deps", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = place.glob("lib/python*/site-packages")
    return site


def python(compiled: Path, *words: str, cwd: Path) -> str:
    """What a Python says that imports the compiled llx."""
    env = {**os.environ, "PYTHONPATH": str(compiled)}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_what_is_meant_to_be_is_compiled(compiled, tmp_path):
    say = (
        "import importlib, sys; [print(importlib.import_module(n).__file__) for n in sys.argv[1:]]"
    )
    files = python(compiled, "-c", say, *COMPILED, cwd=tmp_path).split()
    assert [each for each in files if not each.endswith(".so")] == []
    assert [each for each in files if not each.startswith(str(compiled))] == []


def test_runs_are_the_same_to_the_last_bit(compiled, tmp_path):
    """Whole traces, and what the one has recorded of its decisions replayed by the other."""
    (theirs := tmp_path / "theirs").mkdir()
    (ours := tmp_path / "ours").mkdir()
    said = python(compiled, "-c", RUNS, str(theirs), cwd=tmp_path)
    assert said == subprocess.check_output([sys.executable, "-c", RUNS, ours], cwd=ROOT, text=True)
    assert said.count("\n") == len([*theirs.iterdir()]) > 8
    for path in theirs.iterdir():
        assert replay(Recording(path), Policies(), lambda _: None).difference is None, path.name


def test_the_tests_of_the_core_and_of_the_simulator_pass(compiled, tmp_path):
    for name in ("tests", "examples", "playbooks", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    where = ("core", "scenarios", "sim", "test_recording.py")
    told = python(
        compiled, "-m", "pytest", "-q", "--hypothesis-profile=quick", "-p", "no:cacheprovider",
        "-m", "not slow and not node", *(f"tests/{each}" for each in where), cwd=tmp_path,
    )  # fmt: skip
    assert " passed" in told


def test_hosts_are_given_the_sources_alone(compiled):
    assert [*compiled.rglob("*.so")]
    (info,) = compiled.glob("llx-*.dist-info")
    wheel = repack(PathDistribution(info))
    assert wheel.filename.endswith("-py3-none-any.whl")
    archive = zipfile.ZipFile(io.BytesIO(wheel.content))
    names = archive.namelist()
    assert not [each for each in names if each.endswith(".so")]
    assert set(SOURCES) <= set(names)
    assert archive.read(f"{info.name}/WHEEL").decode().splitlines()[-2:] == [
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
