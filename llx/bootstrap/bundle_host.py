"""What one host has for `llx debug bundle`: a fixed list of files, and facts; never a key file.

The same scripts run on a host through SSH and, for a cluster on this machine, here.
"""

import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from llx.bootstrap.shell import Completed, Shell
from llx.errors import DeadlineError, HostError

Run = Callable[[Sequence[str], float], Completed]
"""Runs a command there to its end, within so many seconds; raises LlxError."""

WHOLE_BYTES: Final = 1 << 20
"""Of a file that makes no sense in part."""
_RAY_BYTES: Final = 256 << 10
_RUN_S: Final = 60.0

# $1 state directory, $2 Ray's. "size path", below each of them; the newest recording alone.
_LIST: Final = """say() { [ -f "$1" ] && [ -r "$1" ] && stat -c "%s $2%n" -- "$1"; }
if cd "$1" 2>/dev/null; then
  for each in cluster.yaml term ./*.spec.json events.jsonl.1 events.jsonl placement.json \\
      cordons.json policies.json rollouts.json stopping.json moved.json devices.json \\
      procs/*/status.json procs/*/shim.json procs/*/spec.json procs/*/wanted.json \\
      procs/*/devices.json procs/*/node.json procs/*/log.1 procs/*/log; do say "$each" "S "; done
  newest=$(ls -t recordings/term-*.jsonl 2>/dev/null | head -n 1)
  [ -n "$newest" ] && say "$newest" "S "
fi
if cd "$2" 2>/dev/null; then
  for each in r/s/logs/gcs_server.* r/s/logs/raylet.* r/s/logs/monitor.* \\
      logs.1/gcs_server.* logs.1/raylet.*; do say "$each" "R "; done
fi
true"""

# $1 state directory. Known secrets, for the mask: they are not in the bundle.
_SECRETS: Final = """cd "$1" 2>/dev/null || exit 0
for each in token ray.token hf.token "$HOME/.cache/huggingface/token"; do
  [ -r "$each" ] && { cat "$each"; echo; }
done
[ -r keys.json ] && { tr -d '\\n' < keys.json; echo; }
true"""

# $1 state directory, $2 Ray's.
_FACTS: Final = """export LC_ALL=C
part() { printf '\\n## %s\\n' "$*"; "$@" 2>&1; }
part date -u
part uname -a
part cat /etc/os-release
part uptime
part nproc
part head -n 5 /proc/meminfo
part timeout 10 df -h "$1" /tmp /dev/shm
printf '\\n## limits\\n'; ulimit -a
command -v nvidia-smi >/dev/null 2>&1 && part timeout -k 5 15 nvidia-smi
printf '\\n## processes of the cluster\\n'
ps -ww -u "$(id -u)" -o pid,ppid,stat,etime,rss,args 2>/dev/null \\
  | grep -F -e "$1" -e "$2" | grep -v -e ' sh -c ' -e ' grep -F '
part ls -lA "$1" "$1/procs"
printf '\\n## node environments\\n'; ls -d "$HOME"/.llx/node/* 2>/dev/null
true"""


@dataclass(frozen=True, slots=True)
class Found:
    """A file there. `name` in the bundle, below the host's directory; `limit`: bytes of its end."""

    name: str
    path: str
    size_bytes: int
    limit: int

    @property
    def is_tail(self) -> bool:
        """Whether only its end is taken."""
        return self.size_bytes > self.limit

    @property
    def taken_bytes(self) -> int:
        """Roughly so much of it, before masking."""
        return min(self.size_bytes, self.limit)


@dataclass(frozen=True, slots=True)
class HostSource:
    """One host, to be asked.

    Attributes:
        name: The host's.
        run: Runs commands there.
        state: The cluster's state directory there.
        ray_tmp: Ray's directory there.
    """

    name: str
    run: Run
    state: str
    ray_tmp: str

    def listing(self, log_bytes: int, recording_bytes: int) -> list[Found]:
        """The files that there are; at most so much of a log, and of a recording."""
        rows = self._script(_LIST).splitlines()
        found = [self._found(row, log_bytes, recording_bytes) for row in rows]
        return _without_needless(each for each in found if each is not None)

    def secrets(self) -> set[str]:
        """What must not be seen anywhere."""
        found: set[str] = set()
        for line in self._script(_SECRETS).splitlines():
            found |= _secrets_in(line.strip())
        return found

    def facts(self) -> str:
        """What the machine is and how it does, for people to read."""
        return self._script(_FACTS)

    def read(self, found: Found) -> str:
        """The end of a file, from a whole line on."""
        done = self.run(["tail", "-c", str(found.limit), "--", found.path], _RUN_S)
        if not done.is_success:
            raise self._failed(f"read {found.path}", done)
        is_cut = found.is_tail or len(done.stdout.encode(errors="replace")) >= found.limit
        return done.stdout.partition("\n")[2] if is_cut else done.stdout

    def _script(self, script: str) -> str:
        done = self.run(["sh", "-c", script, "sh", self.state, self.ray_tmp], _RUN_S)
        if not done.is_success:
            raise self._failed("look", done)
        return done.stdout

    def _found(self, row: str, log_bytes: int, recording_bytes: int) -> Found | None:
        size, _, rest = row.partition(" ")
        place, _, path = rest.partition(" ")
        if not size.isdigit() or place not in {"S", "R"} or not path:
            return None  # a shell that greets
        name = str(PurePosixPath(path))
        if place == "R":
            return Found(f"ray/{name}", f"{self.ray_tmp}/{path}", int(size), _RAY_BYTES)
        limit = WHOLE_BYTES
        if name.startswith("recordings/"):
            limit = recording_bytes
        elif name.endswith(("/log", "/log.1", ".jsonl", ".jsonl.1")):
            limit = log_bytes
        return Found(name, f"{self.state}/{path}", int(size), limit)

    def _failed(self, step: str, done: Completed) -> HostError:
        return HostError(
            f"exit code {done.exit_code}",
            host=self.name,
            step=step,
            process_exit_code=done.exit_code,
            stderr_tail=done.stderr_tail,
        )


def run_here(argv: Sequence[str], timeout_s: float) -> Completed:
    """`Run` on this machine.

    Raises:
        DeadlineError: It took longer.
    """
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{argv[0]} took longer than {timeout_s:g} s") from None
    texts = (each.decode(errors="replace") for each in (done.stdout, done.stderr))
    return Completed(done.returncode, *texts)


def run_there(shell: Shell) -> Run:
    """`Run` on a host."""

    def run(argv: Sequence[str], timeout_s: float) -> Completed:
        return shell.run(argv, timeout_s=timeout_s)

    return run


def _without_needless(found: Iterable[Found]) -> list[Found]:
    """A former log is wanted only where the present one is short."""
    by_name = {each.name: each for each in found}
    kept = []
    for name, each in by_name.items():
        present = by_name.get(name.removesuffix(".1")) if name.endswith(".1") else None
        if present is None or not present.is_tail:
            kept.append(each)
    return kept


def _secrets_in(line: str) -> set[str]:
    if not line.startswith("{"):
        return {line} if line else set()
    try:
        values = json.loads(line)
    except ValueError:
        return {line}
    rings = [values, *values.get("others", ())]  # of a key file, while they are being replaced
    return {each for ring in rings for each in ring.values() if isinstance(each, str)}
