"""What a head costs with a thousand instances: reports, placements and moves by rule, end to end.

    .venv/bin/python -m tests.bench.thousand
    .venv/bin/python -m tests.bench.thousand --instances 200 --rate 50 --profile

Two pools: `whole` instances of `engine: sim` with sockets of their own, many to a process
(`tests.bench.crowd`), and stand-ins for more of them, which say and hear the same without an engine
(`tests.bench.stand_ins`): two cores have not the time for a thousand engines beside what is
measured. The head is a real one over agents that start nothing (`crowd_head`), and a client places
requests with the gateway's own code, sends them to instances, and rules on moves
(`crowd_client`). A KV block is one token, so that every step of every busy instance makes a report,
and the bounded rate is reached: each may report every n / 5000 seconds. Requests differ in length
and are placed in turn (`--dispatch`), so that rules find something to move all the time: whole
instances move requests, stand-ins answer that they have none.

Instances are other machines in truth: once all are connected their processes have the least
priority (nice 19), so that head, client and verbs get what CPU they ask for. Whether that leaves
instances enough for the rate is told: `reports_per_s`, of the windows and while verbs ran.

Per window: the head's CPU time (all its threads) over the wall clock, reports that it got, moves,
and round trips of `Place`. Bounds: half a core, and 2 ms in the median; exit code 8 if one does not
hold, judged by the median window. Also printed: the head's CPU per report. With `--verbs`, what
verbs that read take then (`tests.bench.read_verbs`), with `--listed` so many requests behind the
API; bound: a second. One JSON line on standard output.
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
from llx.client import HEAD_STATUS_FILE, Cluster
from llx.cluster.state_dir import StateDir, write_private
from llx.errors import LlxError
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import Phase, ProcessStatus, SimSpec
from tests.bench.crowd import CrowdSpec
from tests.bench.intervals import percentile
from tests.bench.read_verbs import cpu_s, measured, slow
from tests.bench.stand_ins import StandInsSpec
from tests.node import ROOT

CPU_BOUND, TRIP_BOUND_MS, VERBS_BOUND_S = 0.5, 2.0, 1.0
LEAST_REPORTS_PER_S = 4500.0
"""With fewer the bounds say nothing: that is not the bounded rate."""
LEAST = 19
"""The priority of instances' processes."""
PER_PROCESS = 50
STAND_INS_PER_PROCESS = 500
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
READY_S = 300.0
"""On two cores that others use, a thousand links take a minute or two."""


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
    """Everything by rule."""
    scheduling = {
        "dispatch": args.dispatch,
        "rescheduling": {"low": args.low, "high": args.low + 20, "rest_s": 1},
    }
    models = [
        {
            "name": name, "model": "/m", "engine": "sim", "sim": SIM, "scheduling": scheduling,
            "instances": {"min": count, "max": count},
        }
        for name, count in pools(args).items()
    ]  # fmt: skip
    values = {"cluster": "thousand", "models": models, "control": {"port": 0}}
    return ClusterSettings.model_validate(values)


def pools(args: argparse.Namespace) -> dict[str, int]:
    """Instances of each model: whole ones, then stand-ins."""
    counts = {"whole": args.whole, "stand-in": args.instances - args.whole}
    return {name: count for name, count in counts.items() if count > 0}


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


def make_least(pid: int) -> None:
    """All threads of a process run when nobody else wants to."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), LEAST)


def crowd(folder: Path, stack: ExitStack, module: str, spec: Any) -> tuple[int, dict[str, Any]]:
    """A process with the instances of a spec: its number, and their addresses."""
    name = f"crowd-{spec.names[0]}"
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(spec))
    process = stack.enter_context(started(folder, name, module, str(path)))
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
    return process.pid, json.loads(line)


def crowds(
    folder: Path, stack: ExitStack, args: argparse.Namespace
) -> tuple[list[int], dict[str, Any]]:
    """All processes with instances; the addresses of all instances."""
    sim, keys = msgspec.convert(SIM, SimSpec), str(folder / "state/keys.json")
    pids, addresses = [], {}
    for pool, count in pools(args).items():
        names = [f"{pool}-{number}" for number in range(count)]
        size = PER_PROCESS if pool == "whole" else STAND_INS_PER_PROCESS
        for first in range(0, count, size):
            part = names[first : first + size]
            if pool == "whole":
                spec: Any = CrowdSpec(part, pool, str(folder / "model"), keys, sim)
                module = "tests.bench.crowd"
            else:
                spec = StandInsSpec(part, pool, keys, sim, args.listed // count)
                module = "tests.bench.stand_ins"
            pid, found = crowd(folder, stack, module, spec)
            pids.append(pid)
            addresses |= found
    return pids, addresses


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
    while time.monotonic() < began + READY_S:
        time.sleep(3.0)  # to be asked costs the head what connecting needs
        if head.poll() is not None:
            break
        try:
            token = StateDir(folder / "state").keep_or_new_token()
            control = Cluster((folder / "url").read_text(), token)
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

    def num_reports(self) -> int:
        """Load reports that the head has had of all instances."""
        return int((self._folder / "reports").read_text())

    def window(self, seconds: float) -> Window:
        self.ask_client()
        reports = self.num_reports()
        began, used = time.monotonic(), cpu_s(self._head.pid)
        time.sleep(seconds)
        wall, used = time.monotonic() - began, cpu_s(self._head.pid) - used
        told = self.ask_client()
        trips, counts = sorted(told["trips_ms"]), told["counts"]
        return Window(
            seconds=wall,
            head_cores=used / wall,
            reports_per_s=(self.num_reports() - reports) / wall,
            placed=counts.get("Placed", 0),
            trip_p50_ms=statistics.median(trips) if trips else float("nan"),
            trip_p99_ms=percentile(trips, 0.99) if trips else float("nan"),
            bypassed=counts.get("bypassed", 0),
            moved=counts.get("output moves", 0),
            finished=counts.get("finished", 0),
            streams=told["streams"],
        )


def run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    prepare(folder, args)
    load = {
        "rate": args.rate or args.instances * 0.12, "prompt": PROMPT, "outputs": args.outputs,
        "pools": pools(args),
    }  # fmt: skip
    with ExitStack() as stack:
        pids, addresses = crowds(folder, stack, args)
        (folder / "addresses.json").write_text(json.dumps(addresses))
        head = stack.enter_context(started(folder, "head", "tests.bench.crowd_head", str(folder)))
        client = stack.enter_context(
            started(folder, "client", "tests.bench.crowd_client", str(folder), json.dumps(load))
        )
        began = time.monotonic()
        wait_ready(folder, head)
        print(f"all connected after {time.monotonic() - began:.0f} s", file=sys.stderr)
        for pid in pids:
            make_least(pid)
        rig = Measured(folder, head, client)
        time.sleep(args.settle)
        windows = []
        for _ in range(args.windows):
            windows.append(rig.window(args.seconds))
            print(windows[-1], file=sys.stderr)
        told = figures(windows)
        if args.verbs:
            reports, began = rig.num_reports(), time.monotonic()
            told["verbs"] = read(folder, args.verbs, head.pid)
            seconds = time.monotonic() - began
            told["verbs_reports_per_s"] = round((rig.num_reports() - reports) / seconds)
    if args.profile:
        print((folder / "profile.txt").read_text(), file=sys.stderr)
    return told


def read(folder: Path, rounds: int, head: int) -> dict[str, Any]:
    """What reading verbs take now, as operators run them."""
    status = ProcessStatus(Phase.READY, addresses=[(folder / "url").read_text()])
    path = folder / "state" / HEAD_STATUS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(status))
    home = folder / "home"
    (home / "llx/clusters").mkdir(parents=True)
    (home / "llx/clusters/thousand").symlink_to(folder / "state")
    return measured(rounds, os.environ | {"XDG_STATE_HOME": str(home)}, head)


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
    parser.add_argument("--whole", type=int, default=40, help="of these with an engine")
    parser.add_argument("--listed", type=int, default=0, help="more requests that stand-ins list")
    parser.add_argument("--rate", type=float, help="requests a second; default: 0.12 an instance")
    parser.add_argument("--outputs", type=int, nargs=2, default=(20, 160), help="tokens, evenly")
    parser.add_argument("--dispatch", default="round_robin")
    parser.add_argument("--low", type=float, default=120.0, help="rescheduling.low")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds before the first")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--verbs", type=int, default=0, help="rounds of verbs that read, after it")
    parser.add_argument("--profile", action="store_true", help="of the head's event loop")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-thousand-") as folder:
        result = run(Path(folder), args)
    result["holds"] = result["holds"] and not slow(result.get("verbs", {}), VERBS_BOUND_S)
    print(json.dumps({"bench": "thousand", "instances": args.instances, **result}))
    return 0 if result["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
