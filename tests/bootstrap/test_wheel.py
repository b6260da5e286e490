"""Packing an installed distribution again: what pip would accept, and the same every time."""

import csv
import hashlib
import io
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from base64 import urlsafe_b64encode
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from llx import __version__
from llx.bootstrap.wheel import Wheel, own_wheel, portable_wheel, repack
from llx.errors import InstallError

REPOSITORY = Path(__file__).parents[2]

METADATA = "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def install_toy(site: Path, *, wheel: str = WHEEL, extra: tuple[str, ...] = ()) -> PathDistribution:
    """Lay out `toy` as pip leaves it: package, script, bytecode, its own notes, and `extra`."""
    contents = {
        **dict.fromkeys(extra, "machine code"),
        "toy/__init__.py": "ANSWER = 42\n",
        "toy/data/numbers.txt": "1 2 3\n",
        "toy/__pycache__/__init__.cpython-311.pyc": "bytecode",
        "../../bin/toy": "#!/somewhere/python\n",
        "toy-1.0.dist-info/METADATA": METADATA,
        "toy-1.0.dist-info/WHEEL": wheel,
        "toy-1.0.dist-info/entry_points.txt": "[console_scripts]\ntoy = toy:main\n",
        "toy-1.0.dist-info/INSTALLER": "pip\n",
        "toy-1.0.dist-info/REQUESTED": "",
        "toy-1.0.dist-info/direct_url.json": "{}",
    }
    for name, text in contents.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    record = "".join(f"{name},,\n" for name in [*contents, "toy-1.0.dist-info/RECORD"])
    (site / "toy-1.0.dist-info/RECORD").write_text(record)
    return PathDistribution(site / "toy-1.0.dist-info")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "lib" / "site"
    folder.mkdir(parents=True)
    return folder


def test_it_holds_the_package_and_not_what_an_installer_adds(site):
    wheel = repack(install_toy(site))
    assert wheel.filename == "toy-1.0-py3-none-any.whl"
    names = zipfile.ZipFile(io.BytesIO(wheel.content)).namelist()
    assert names == [
        "toy-1.0.dist-info/METADATA",
        "toy-1.0.dist-info/WHEEL",
        "toy-1.0.dist-info/entry_points.txt",
        "toy/__init__.py",
        "toy/data/numbers.txt",
        "toy-1.0.dist-info/RECORD",
    ]


def test_its_record_is_right(site):
    archive = zipfile.ZipFile(io.BytesIO(repack(install_toy(site)).content))
    rows = list(csv.reader(io.StringIO(archive.read("toy-1.0.dist-info/RECORD").decode())))
    assert [name for name, _, _ in rows] == archive.namelist()
    for name, digest, size in rows[:-1]:
        data = archive.read(name)
        expected = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(data)))
    assert rows[-1][1:] == ["", ""]


def test_the_same_files_give_the_same_bytes(site, tmp_path):
    other = tmp_path / "elsewhere" / "site"
    other.mkdir(parents=True)
    first, second = repack(install_toy(site)), repack(install_toy(other))
    assert first == second
    (other / "toy/__init__.py").write_text("ANSWER = 43\n")
    assert repack(PathDistribution(other / "toy-1.0.dist-info")).sha256 != first.sha256


def test_a_file_that_is_gone_is_named(site):
    installed = install_toy(site)
    (site / "toy/data/numbers.txt").unlink()
    with pytest.raises(InstallError, match=r"damaged: toy/data/numbers\.txt"):
        repack(installed)


def test_without_a_record_there_is_nothing_to_pack(site):
    installed = install_toy(site)
    (site / "toy-1.0.dist-info/RECORD").unlink()
    with pytest.raises(InstallError, match="no RECORD"):
        repack(installed)


COMPILED = WHEEL.replace("py3-none-any", "cp311-cp311-linux_x86_64").replace("true", "false")
OF_MYPYC = ("toy/__init__.cpython-311-x86_64-linux-gnu.so", "toy__mypyc.cpython-311.so")


@pytest.mark.parametrize(
    "extra", [(), (*OF_MYPYC, "toy/fast.abi3.so"), (*OF_MYPYC, "toy.libs/toy/__init__.so")]
)
def test_compiled_code_is_refused(site, extra):
    with pytest.raises(InstallError, match="not pure Python"):
        repack(install_toy(site, wheel=COMPILED, extra=extra))


def test_what_was_compiled_beside_its_source_is_left_out(site, tmp_path):
    (other := tmp_path / "pure").mkdir()
    compiled = repack(install_toy(site, wheel=COMPILED, extra=OF_MYPYC))
    assert compiled == repack(install_toy(other))


@pytest.mark.slow
def test_pip_installs_our_own_wheel_and_python_imports_it(tmp_path):
    path = own_wheel().write_into(tmp_path)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(path)], check=True, capture_output=True)
    # `addsitedir` honours the .pth of an editable install.
    program = (
        f"import site; site.addsitedir({str(target)!r}); import llx.errors, importlib.metadata;"
        "print(importlib.metadata.version('llx'))"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert found.stdout.strip() == __version__


# --- for other machines ----------------------------------------------------------------------


def names(wheel: Wheel) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(wheel.content)).namelist()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of llx, with all that lies around in one."""
    root = tmp_path / "tree"
    for name in (
        "llx/__init__.py",
        "llx/locks/cpu.lock",
        "llx/__pycache__/__init__.cpython-311.pyc",
        "llx/locks/.cpu.lock.swp",
        "llx/.cache/x.py",
        "playbooks/start.yaml",
        "playbooks/notes.txt",
        "examples/cluster.yaml",
        "examples/client.py",
        "tests/test_llx.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def editable(site: Path) -> PathDistribution:
    """What pip leaves of an editable install."""
    info = site / "llx-1.0.dist-info"
    info.mkdir()
    (site / "_llx.pth").write_text("/somewhere/else\n")
    (info / "METADATA").write_text(METADATA.replace("toy", "llx"))
    (info / "WHEEL").write_text(WHEEL)
    (info / "RECORD").write_text(
        "".join(
            f"{f}\n"
            for f in (
                "_llx.pth",
                *map(str, sorted(path.relative_to(site) for path in info.iterdir())),
                "llx-1.0.dist-info/RECORD",
            )
        )
    )
    return PathDistribution(info)


def test_of_an_editable_install_the_tree_is_packed(tree, editable):
    assert names(repack(editable, tree=tree)) == [
        "llx-1.0.dist-info/METADATA",
        "llx-1.0.dist-info/WHEEL",
        "llx/__init__.py",
        "llx/_data/examples/cluster.yaml",
        "llx/_data/playbooks/start.yaml",
        "llx/locks/cpu.lock",
        "llx-1.0.dist-info/RECORD",
    ]


def test_on_this_machine_an_editable_install_stays_a_link(editable):
    assert "_llx.pth" in names(repack(editable))


def test_an_ordinary_install_needs_no_tree(site, tmp_path):
    installed = install_toy(site)
    assert repack(installed, tree=tmp_path / "nowhere") == repack(installed)


def test_the_bytes_follow_the_tree_and_nothing_else(tree, editable):
    first = repack(editable, tree=tree)
    os.utime(tree / "llx/__init__.py", (0, 0))
    (tree / "llx/locks/cpu.lock").chmod(0o600)
    assert repack(editable, tree=tree) == first
    (tree / "llx/__init__.py").write_text("changed")
    assert repack(editable, tree=tree).sha256 != first.sha256


@pytest.mark.parametrize("missing", ["playbooks/start.yaml", "examples/cluster.yaml"])
def test_half_a_tree_is_not_packed(tree, editable, missing):
    (tree / missing).unlink()
    with pytest.raises(InstallError, match=f"{missing.split('/')[0]} is missing"):
        repack(editable, tree=tree)


def test_it_holds_what_the_build_would_put_there():
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    sources = build["targets"]["wheel"]["sources"]
    wanted = set()
    for pattern in build["targets"]["wheel"]["include"]:
        for path in REPOSITORY.glob(pattern.strip("/")):
            found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            for file in found:
                top, _, rest = file.relative_to(REPOSITORY).as_posix().partition("/")
                if "__pycache__" not in rest:
                    wanted.add(f"{sources.get(top, top)}/{rest}")
    packed = {name for name in names(portable_wheel()) if ".dist-info/" not in name}
    assert packed == wanted
    assert {"llx/_data/examples/cluster.yaml", "llx/bootstrap/locks/cuda.lock"} <= packed


@pytest.fixture(scope="module")
def portable(tmp_path_factory) -> Path:
    return portable_wheel().write_into(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare_venv(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(place, with_pip=False)
    return place


def run_bare(python: Path, *args: str, pythonpath: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(pythonpath)}
    return subprocess.run(
        [str(python), *args], env=environment, cwd="/", capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_installer_runs_from_the_bare_wheel_with_nothing_installed(portable, bare_venv):
    python = bare_venv / "bin/python"
    module = ("-m", "llx.bootstrap.node_env")
    told = run_bare(python, *module, "--help", pythonpath=portable)
    assert told.returncode == 0, told.stderr
    place = ("--prefix", "/nonexistent/node", "--platform", "cuda", "--wheel", str(portable))
    checked = run_bare(python, *module, "check", *place, pythonpath=portable)
    assert (checked.returncode, checked.stderr) == (
        1,
        "error: no finished node environment at /nonexistent/node\n",
    )


@pytest.mark.slow
def test_what_we_run_from_is_not_taken_for_installed(portable, bare_venv):
    program = (
        "import sys; from pathlib import Path; from llx.bootstrap.node_env import inspect_python;"
        "print(inspect_python(Path(sys.executable)).llx_version)"
    )
    found = run_bare(bare_venv / "bin/python", "-c", program, pythonpath=portable)
    assert (found.stdout, found.stderr) == ("None\n", "")


@pytest.mark.slow
def test_installed_elsewhere_it_is_all_of_llx(portable, bare_venv):
    pip = [sys.executable, "-m", "pip", "--python", str(bare_venv / "bin/python"), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(portable)], check=True, capture_output=True)
    # The dependencies are those of the environment the tests run in.
    dependencies = Path(sysconfig.get_path("purelib"))
    llx = bare_venv / "bin/llx"
    version = run_bare(llx, "--version", pythonpath=dependencies)
    assert version.stdout.startswith(f"llx {__version__} "), version.stderr
    program = "import llx, llx.settings; print(llx.__file__); llx.settings.example_cluster()"
    found = run_bare(bare_venv / "bin/python", "-c", program, pythonpath=dependencies)
    assert found.stdout.startswith(str(bare_venv)), found.stderr
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("llx-1.0-py3-none-any.whl", None, "cannot read"),
        ("llx-1.0-py3-none-any.whl", b"half a whe", "is not a wheel"),
        ("llx-1.0.zip", b"", "is not a wheel"),
    ],
)
def test_what_is_no_wheel_is_not_read_as_one(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InstallError, match=message):
        Wheel.read(tmp_path / name)
