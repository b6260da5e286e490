"""What a user gets: the wheel of `make dist`, in an empty environment, doing what the README says.

The node environment is a copy of the one the tests have, in links, and without llx: that is put
there by the installed wheel itself, as on a user's machine. vLLM's engine is the simulated one.
"""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from llx import __version__
from tests.e2e.rig import processes_of, sweep

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.node


@dataclass
class Installed:
    """llx in an environment of its own, and a home with nothing in it."""

    python: Path
    home: Path
    node: Path

    def run(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command as typed into a shell, in an empty directory at first."""
        variables = {
            "PATH": f"{self.python.parent}:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "LLX_NODE_PREFIX": str(self.node),
        }
        return subprocess.run(
            ["bash", "-ec", command], cwd=self.home, env=variables, input=stdin,
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # The date of no commit: what is not committed yet must not be taken for another release.
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/dist.py"), str(folder)],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(map(str, folder.iterdir()))
    return folder


@pytest.fixture(scope="module")
def installed(dist, node_python, tmp_path_factory) -> Installed:
    place = tmp_path_factory.mktemp("user")
    venv.create(place / "venv", with_pip=False)
    python = place / "venv/bin/python"
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    done = subprocess.run([*pip, "install", "-q", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (home := place / "home").mkdir()
    return Installed(python, home, node_without_llx(Path(node_python).parents[1], place / "node"))


def node_without_llx(original: Path, copy: Path) -> Path:
    """A node environment as `llx node install` leaves it, but for llx itself."""
    subprocess.run(
        [str(original / "bin/python"), "-m", "venv", "--without-pip", str(copy)], check=True
    )
    (packages,) = original.glob("lib/python3*/site-packages")
    for entry in packages.iterdir():
        if not entry.name.lstrip("_").startswith(("llx.", "llx-")) and entry.name != "llx":
            (copy / packages.relative_to(original) / entry.name).symlink_to(entry)
    (copy / "install.lock").touch()
    shutil.copy(original / "llx-node.json", copy)
    return copy


def commands(section: str) -> list[str]:
    """What the README tells to type in that section, without the remarks."""
    text = (ROOT / "README.md").read_text()
    body = re.split(rf"^## {re.escape(section)}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", body, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    assert all(line.startswith("$ ") for line in lines)
    return [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for line in lines]


def test_the_readme_tells_a_whole_story():
    first = [shlex.split(each)[:2] for each in commands("Try it on this machine")]
    assert ["llx", "up"] in first
    assert first[-1] == ["llx", "down"]


def test_the_wheel_is_whole_and_knows_what_it_is(installed):
    done = installed.run("llx --version && llx init && llx doctor cluster.yaml")
    assert done.stdout.startswith(f"llx {__version__} (vLLM "), done.stderr
    pages = installed.python.parents[1] / "share/man/man1"
    assert {"llx.1", "llx-up.1"} <= {each.name for each in pages.iterdir()}
    if shutil.which("man"):
        assert str(pages / "llx-up.1") in installed.run("man -w llx-up").stdout
    typed = "import llx, pathlib; print(pathlib.Path(llx.__file__).with_name('py.typed').exists())"
    assert installed.run(f'python -c "{typed}"').stdout == "True\n"


def test_the_readmes_first_steps_work_as_written(installed):
    port = random.randrange(21000, 29000)
    up = f"llx up --engine sim --platform cpu --port {port} --control-port 0"
    outputs = {}
    try:
        for command in commands("Try it on this machine"):
            if not command.startswith(("llx", "curl")):
                continue  # a clone, and make
            typed = {"llx up": up}.get(command, command).replace("8000", str(port))
            done = installed.run(typed, stdin="Hello\n/quit\n" if command == "llx chat" else "")
            assert done.returncode == 0, (typed, done.stdout, done.stderr)
            outputs[command.split()[0] if command.startswith("curl") else command] = done.stdout
        left = processes_of(installed.home)
    finally:
        sweep(installed.home)
    assert left == {}
    assert re.findall(r"^tiny-\d", outputs["llx status"], re.MULTILINE) == ["tiny-0", "tiny-1"]
    assert all(outputs[each].strip() for each in outputs), outputs
    assert "data: [DONE]" in outputs["curl"]


def test_a_cluster_is_described_as_the_readme_says(installed):
    file = installed.home / "cluster.yaml"
    file.unlink(missing_ok=True)
    init, up = commands("Describe a cluster")
    done = installed.run(init)
    assert (done.returncode, file.is_file()) == (0, True), done.stderr
    free = re.sub(r"^(  port:) \d+", r"\1 0", file.read_text(), flags=re.MULTILINE)
    file.write_text(free)
    done = installed.run(f"{up} --dry-run")
    assert done.returncode == 0, done.stderr
