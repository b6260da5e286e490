"""What a head costs with a thousand instances: reports, placements and moves by rule, end to end.

    .venv/bin/python -m tests.bench.thousand
    .venv/bin/python -m tests.bench.thousand --instances 200 --rate 50 --profile

Instances are `engine: sim`, whole ones with sockets of their own, many to a process
(`tests.bench.crowd`); the head is a real one over agents that start nothing (`crowd_head`), and a
client places requests with the gateway's own code, sends them to instances, and rules on moves
(`crowd_client`). A KV block is one token, so that every step of every busy instance makes a report,
and the bounded rate is reached: each may report every n / 5000 seconds. Requests differ in length
and are placed at random (`--dispatch`), so that rules find something to move all the time.

Per window: the head's CPU time (all its threads) over the wall clock, reports that it got, moves,
and round trips of `Place`. Bounds: half a core, and 2 ms in the median; exit code 8 if one does not
hold, judged by the median window. Also printed: the head's CPU per report, and what it costs while
nothing happens. One JSON line on standard output.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from llx.api import ClusterState
from llx.client import ControlClient
from llx.cluster.state_dir import StateDir, write_private
from llx.errors import LlxError
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import SimSpec
from tests.bench.crowd import CrowdSpec
from tests.bench.intervals import percentile
from tests.node import ROOT

CPU_BOUND, TRIP_BOUND_MS = 0.5, 2.0
LEAST_REPORTS_PER_S = 4500.0
"""With fewer the bounds say nothing: that is not the bounded rate."""
PER_PROCESS = 250
PROMPT = 16
STEP_MS = 190.0
SIM: dict[str, Any] = {
    "step_base_ms": STEP_MS,
    "step_ms_per_prefill_token": 0.0,
    "step_ms_per_decode": 0.0,
    "step_ms_per_context_ktoken": 0.0,
    "block_size": 1,
    "num_blocks": 400,
    "kv_bytes_per_token": 16,
    "max_num_seqs": 16,
}
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of the run."""

    seconds: float
    head_cores: float
    reports_per_s: float
    placed: int
    trip_p50_ms: float
    trip_p99_ms: float
    bypassed: int
    moved: int
    finished: int
    streams: int


def settings_of(args: argparse.Namespace) -> ClusterSettings:
    """One pool; everything of it by rule."""
    scheduling = {
        "dispatch": args.dispatch,
        "rescheduling": {"low": args.low, "high": args.low + 20, "rest_s": 1},
    }
    model = {
        "name": "m", "model": "/m", "engine": "sim", "sim": SIM, "scheduling": scheduling,
        "instances": {"min": args.instances, "max": args.instances},
    }  # fmt: skip
    values = {"cluster": "thousand", "models": [model], "control": {"port": 0}}
    return ClusterSettings.model_validate(values)


@contextmanager
def started(folder: Path, name: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that ends with this one: its input ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def crowd(folder: Path, stack: ExitStack, number: int, names: Sequence[str]) -> dict[str, Any]:
    """A process with these instances; their addresses."""
    spec = CrowdSpec(
        list(names), "m", str(folder / "model"), str(folder / "state/keys.json"),
        msgspec.convert(SIM, SimSpec),
    )  # fmt: skip
    path = folder / f"crowd-{number}.json"
    path.write_bytes(msgspec.json.encode(spec))
    process = stack.enter_context(
        started(folder, f"crowd-{number}", "tests.bench.crowd", str(path))
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError((folder / f"crowd-{number}.log").read_text()[-2000:])
    return json.loads(line)


def cpu_s(pid: int) -> float:
    """Time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Files that all of them read."""
    state = StateDir(folder / "state")
    state.create()
    write_private(state.settings, dump_cluster(settings_of(args)))
    (folder / "model").mkdir()
    about = {"vocab_size": 1000, "max_position_embeddings": 4096}
    (folder / "model/config.json").write_text(json.dumps(about))
    (folder / "line").write_text(f"tcp://127.0.0.1:{line_port()}")
    if args.profile:
        (folder / "profile.txt").touch()


def line_port() -> int:
    """A free port that none of the thousands of connections gets by chance."""
    for port in range(21000, 32000, 17):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port below those of outgoing connections")


def wait_ready(folder: Path, head: "subprocess.Popen[str]") -> None:
    """Until every instance is connected, to the head and to the client."""
    began = time.monotonic()
    while time.monotonic() < began + 100:
        time.sleep(1.0)
        if head.poll() is not None:
            break
        try:
            token = StateDir(folder / "state").keep_or_new_token()
            control = ControlClient((folder / "url").read_text(), token)
            if control.status().state is ClusterState.READY:
                return
        except (LlxError, OSError):
            continue
    raise TimeoutError((folder / "head.log").read_text()[-3000:])


class Measured:
    """The head and the client, window after window."""

    def __init__(
        self, folder: Path, head: "subprocess.Popen[str]", client: "subprocess.Popen[str]"
    ) -> None:
        self._folder, self._head, self._client = folder, head, client

    def ask_client(self) -> dict[str, Any]:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write("\n")
        self._client.stdin.flush()
        return json.loads(self._client.stdout.readline())

    def _num_reports(self) -> int:
        """Load reports that the head has had of all instances."""
        return int((self._folder / "reports").read_text())

    def window(self, seconds: float) -> Window:
        self.ask_client()
        reports = self._num_reports()
        began, used = time.monotonic(), cpu_s(self._head.pid)
        time.sleep(seconds)
        wall, used = time.monotonic() - began, cpu_s(self._head.pid) - used
        told = self.ask_client()
        trips, counts = sorted(told["trips_ms"]), told["counts"]
        return Window(
            seconds=wall,
            head_cores=used / wall,
            reports_per_s=(self._num_reports() - reports) / wall,
            placed=counts.get("Placed", 0),
            trip_p50_ms=statistics.median(trips) if trips else float("nan"),
            trip_p99_ms=percentile(trips, 0.99) if trips else float("nan"),
            bypassed=counts.get("bypassed", 0),
            moved=counts.get("output moves", 0),
            finished=counts.get("finished", 0),
            streams=told["streams"],
        )


def run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    names = [f"m-{number}" for number in range(args.instances)]
    prepare(folder, args)
    load = {"rate": args.rate, "prompt": PROMPT, "outputs": args.outputs}
    with ExitStack() as stack:
        addresses: dict[str, Any] = {}
        for first in range(0, len(names), PER_PROCESS):
            addresses |= crowd(folder, stack, first, names[first : first + PER_PROCESS])
        (folder / "addresses.json").write_text(json.dumps(addresses))
        head = stack.enter_context(started(folder, "head", "tests.bench.crowd_head", str(folder)))
        client = stack.enter_context(
            started(folder, "client", "tests.bench.crowd_client", str(folder), json.dumps(load))
        )
        wait_ready(folder, head)
        print("all connected", file=sys.stderr)
        measured = Measured(folder, head, client)
        time.sleep(args.settle)
        windows = []
        for _ in range(args.windows):
            windows.append(measured.window(args.seconds))
            print(windows[-1], file=sys.stderr)
    if args.profile:
        print((folder / "profile.txt").read_text(), file=sys.stderr)
    return figures(windows)


def figures(windows: Sequence[Window]) -> dict[str, Any]:
    def middle(name: str) -> float:
        return round(statistics.median(getattr(each, name) for each in windows), 3)

    names = ("head_cores", "reports_per_s", "trip_p50_ms", "trip_p99_ms")
    found: dict[str, Any] = {name: middle(name) for name in names}
    found["head_us_per_report"] = round(1e6 * found["head_cores"] / found["reports_per_s"], 1)
    found["windows"] = [asdict(each) for each in windows]
    found["is_at_rate"] = found["reports_per_s"] >= LEAST_REPORTS_PER_S
    found["holds"] = (
        found["is_at_rate"]
        and found["head_cores"] <= CPU_BOUND
        and found["trip_p50_ms"] <= TRIP_BOUND_MS
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second")
    parser.add_argument("--outputs", type=int, nargs=2, default=(20, 160), help="tokens, evenly")
    parser.add_argument("--dispatch", default="round_robin")
    parser.add_argument("--low", type=float, default=120.0, help="rescheduling.low")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds before the first")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--profile", action="store_true", help="of the head's event loop")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-thousand-") as folder:
        result = run(Path(folder), args)
    print(json.dumps({"bench": "thousand", "instances": args.instances, **result}))
    return 0 if result["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
