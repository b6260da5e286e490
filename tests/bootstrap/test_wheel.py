"""Packing an installed distribution again: what pip would accept, and the same every time."""

import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from llx.bootstrap.wheel import own_wheel, repack
from llx.errors import InstallError

METADATA = "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def install_toy(site: Path, *, wheel: str = WHEEL) -> PathDistribution:
    """Lay out `toy` as pip leaves it: package, script, bytecode, its own notes."""
    contents = {
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


def test_compiled_code_is_refused(site):
    compiled = WHEEL.replace("py3-none-any", "cp311-cp311-linux_x86_64")
    with pytest.raises(InstallError, match="not pure Python"):
        repack(install_toy(site, wheel=compiled))


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
    from llx import __version__

    assert found.stdout.strip() == __version__
