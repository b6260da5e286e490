"""Running venv and pip for a node environment: logged, told in a few lines, explained on failure.

Installs, or downloads for others to install, exactly the files a lock names. Where pip looks for
them is pip's own configuration, with one exception: torch's CPU build, which the default index does
not carry.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llx.bootstrap.locks import LockEntry, render_lock
from llx.bootstrap.wheel import Wheel
from llx.errors import InstallError

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch publishes its CPU builds: the default index carries only those for CUDA."""

_PROGRESS_EVERY_S = 10.0
_TAIL_LINES = 15
_NOT_FOUND = ("No matching distribution found", "ResolutionImpossible")
"""pip's two ways to say that no file will do; the second where constraints are configured."""
_NOT_FOUND_REMEDY = (
    "pip found no wheel for this Python and machine: check its index, its constraints or the "
    "wheelhouse, or use another Python"
)
_REMEDIES = {
    "No space left on device": "free some space, then repeat",
    "ensurepip is not available": "install the system's venv package (Debian: python3-venv)",
    "DO NOT MATCH THE HASHES": "the index serves another file than the lock names: do not use it",
    "No module named pip": "give that Python its pip: python -m ensurepip",
    "Failed to establish a new connection": (
        "no package index in reach: configure pip, or name a folder of wheels (runtime.wheelhouse)"
    ),
    **dict.fromkeys(_NOT_FOUND, _NOT_FOUND_REMEDY),
}

Report = Callable[[str], None]
OnLine = Callable[[str], None]
Run = Callable[[Sequence[str], OnLine], int]
"""Runs a command to its end, hands each line of its output to a callback; returns its exit code."""


@dataclass(frozen=True, slots=True)
class PipRunner:
    """The commands of one install, or of one download.

    Python runs isolated (``-I``): whatever path we were started with is not the environment's.

    Attributes:
        python: The interpreter whose pip is run.
        place: What is filled: an environment's directory, or a folder of wheels.
        log: Gets every command and all its output.
        wheelhouse: The only place to take packages from, when given.
        scratch: Where pip puts what it has downloaded, until it is unpacked, keeping none of it;
            None: in the system's temporary directory, and in pip's cache.
        report: Told what goes on, a line at a time.
        run: Runs a command.
    """

    python: Path
    place: Path
    log: Path
    wheelhouse: Path | None
    report: Report
    run: Run
    scratch: Path | None = None
    started: float = field(default_factory=time.monotonic)

    def create_venv(self, base_python: Path) -> None:
        """Make the virtual environment itself."""
        argv = [str(base_python), "-I", "-m", "venv", str(self.place)]
        self._checked(argv, "making the virtual environment")

    def install_locked(self, entries: Sequence[LockEntry]) -> None:
        """Install exactly these."""
        self._locked(["install"], entries, "installing")

    def download_locked(self, entries: Sequence[LockEntry], target: Sequence[str]) -> None:
        """Put the files of exactly these into `place`; `target` is pip's word for what Python."""
        self._locked(["download", "--dest", str(self.place), *target], entries, "downloading")

    def install_wheel(self, wheel: Wheel) -> None:
        """Install a wheel made here, over whatever is there."""
        with tempfile.TemporaryDirectory(prefix="llx-node-") as folder:
            path = str(wheel.write_into(Path(folder)))
            argv = [*self._pip(["install"]), "--no-index", "--force-reinstall", path]
            self._checked(argv, f"installing {wheel.filename}")

    def elapsed(self) -> str:
        """Time since the install began, as shown to people."""
        return f"{time.monotonic() - self.started:.0f} s"

    def _locked(self, verb: list[str], entries: Sequence[LockEntry], doing: str) -> None:
        """Have pip do `verb` with the files of these.

        torch goes first, in a call of its own: it is the likeliest to be out of reach, and should
        it need PyTorch's index, nothing else gets to see that index.
        """
        torch = [entry for entry in entries if entry.name == "torch"]
        others = [entry for entry in entries if entry.name != "torch"]
        with tempfile.TemporaryDirectory(prefix="llx-node-") as folder:
            locked = Path(folder) / "torch.txt"
            locked.write_text(render_lock(torch), encoding="utf-8")
            self._locked_torch(self._pip_locked(verb, locked), torch[0].requirement, doing)
            locked = Path(folder) / "packages.txt"
            locked.write_text(render_lock(others), encoding="utf-8")
            what = f"{doing} {len(others)} packages"
            self.report(f"{what} (log: {self.log})")
            progress = _Progress(len(others), self.report, self.elapsed)
            self._checked(self._pip_locked(verb, locked), what, progress)

    def _locked_torch(self, argv: Sequence[str], requirement: str, doing: str) -> None:
        what = f"{doing} {requirement}"
        self.report(what)
        if "+" not in requirement or self.wheelhouse is not None:
            self._checked(argv, what)
            return
        exit_code, output = self._logged(argv, _ignore)
        if exit_code == 0:
            return
        if not any(sign in line for sign in _NOT_FOUND for line in output):
            raise self._failure(what, output)
        self.report(f"{requirement} is not on pip's own indexes: asking {PYTORCH_CPU_INDEX}")
        self._checked([*argv, "--index-url", PYTORCH_CPU_INDEX], what)

    def _pip(self, verb: list[str]) -> list[str]:
        argv = [str(self.python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        if self.scratch is not None:
            argv = ["env", f"TMPDIR={self.scratch}", *argv, "--no-cache-dir"]
        return [*argv, *verb, "--no-deps", "--progress-bar", "off"]

    def _pip_locked(self, verb: list[str], locked: Path) -> list[str]:
        argv = [*self._pip(verb), "--require-hashes", "--only-binary", ":all:"]
        if self.wheelhouse is not None:
            argv += ["--no-index", "--find-links", str(self.wheelhouse)]
        return [*argv, "--requirement", str(locked)]

    def _checked(self, argv: Sequence[str], what: str, on_line: OnLine | None = None) -> None:
        exit_code, output = self._logged(argv, on_line or _ignore)
        if exit_code != 0:
            raise self._failure(what, output)

    def _logged(self, argv: Sequence[str], on_line: OnLine) -> tuple[int, list[str]]:
        output: list[str] = []
        if self.scratch is not None:
            self.scratch.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(argv)}\n")

            def tee(line: str) -> None:
                log.write(f"{line}\n")
                output.append(line)
                on_line(line)

            return self.run(argv, tee), output

    def _failure(self, what: str, output: Sequence[str]) -> InstallError:
        known = (told for sign, told in _REMEDIES.items() if any(sign in line for line in output))
        return InstallError(
            f"{what} in {self.place} failed; all output is in {self.log}",
            remedy=next(known, "mend what the log shows, then repeat"),
            detail="\n".join(output[-_TAIL_LINES:]),
        )


def run_command(argv: Sequence[str], on_line: OnLine) -> int:
    """The real `Run`. Ends the command when interrupted: pip never goes on by itself.

    Should we be killed outright, it may. So it inherits what we let it inherit: the lock.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        close_fds=False,
    )
    with process:
        try:
            for line in process.stdout or ():
                on_line(line.rstrip("\n"))
        except BaseException:
            process.terminate()
            raise
    return process.returncode


class _Progress:
    """Turns pip's output into a line every now and then."""

    def __init__(self, total: int, report: Report, elapsed: Callable[[], str]) -> None:
        self._total = total
        self._report = report
        self._elapsed = elapsed
        self._collected = 0
        self._next_at = time.monotonic() + _PROGRESS_EVERY_S

    def __call__(self, line: str) -> None:
        if line.startswith("Ignoring "):  # by its marker: not for this Python
            self._total -= 1
        elif line.startswith(("Collecting ", "Processing ")):  # from an index; from a folder
            self._collected += 1
        elif line.startswith("Installing collected packages"):
            self._report(f"  unpacking {self._total} packages ({self._elapsed()})")
        if self._collected < self._total and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _PROGRESS_EVERY_S
            self._report(f"  collected {self._collected} of {self._total} ({self._elapsed()})")


def _ignore(_line: str) -> None:
    pass
