"""What operators who look on cost: throughput with `llx top`, `-w` and `-f` running, against none.

    .venv/bin/python -m tests.bench.watching
    .venv/bin/python -m tests.bench.watching --pairs 100 --waves 4

Two instances of `engine: sim` behind a gateway, by `llx up`; a closed loop of streams. In pairs of
short turns whose order is shuffled, beside it run all of `WATCHERS`, each on a terminal of its own
that somebody reads, or none: then they are stopped (SIGSTOP), so that no turn pays for a start and
the two of a pair are as close as can be. What is judged is the ratio of output tokens per second of
a pair, with over without: the lower end of its 95% interval is to be at least `BOUND`; exit code 8
otherwise. Beside it: the cores that head, gateways and instances use with and without, and those of
the watchers. They run on the machine of the cluster here, which they need not. One JSON line on
standard output.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import pty
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.bench.intervals import interval_of_median, percentile
from tests.bench.overhead import llx_up, prompts_of, tiny_model
from tests.bench.read_verbs import cpu_s
from tests.bench.soak import processes
from tests.bench.sse_load import closed_loop
from tests.node import ROOT

WATCHERS: Final = ("top", "status -w", "events -f", "logs gateway-0 -f")
BOUND: Final = 0.97
STREAMS, TOKENS = 16, 64
SIM: Final[dict[str, Any]] = {
    "step_base_ms": 8.0,
    "step_ms_per_prefill_token": 0.0,
    "step_ms_per_decode": 0.0,
    "step_ms_per_context_ktoken": 0.0,
}
SHOWN_S = 60.0
SETTLE_S = 0.3


class Watcher:
    """One `llx` on a terminal of its own, of 160 × 50 characters."""

    def __init__(self, verb: str, state_home: Path) -> None:
        self.verb = verb
        self.size = 0
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        environment = os.environ | {
            "XDG_STATE_HOME": str(state_home), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llx", *verb.split()],
            env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, terminal: int) -> None:
        with contextlib.suppress(OSError):  # how a terminal ends
            while data := os.read(terminal, 1 << 16):
                self.size += len(data)
        os.close(terminal)

    @property
    def cpu_s(self) -> float:
        """Time that it has used; raises if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"llx {self.verb} ended with {self._process.returncode}")
        return cpu_s(self._process.pid)

    def stop(self) -> None:
        """Have it do nothing until `go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.go_on()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)


@contextlib.contextmanager
def watched(state_home: Path) -> Iterator[list[Watcher]]:
    """All of them, each past its first words."""
    with contextlib.ExitStack() as stack:
        them = []
        for verb in WATCHERS:
            them.append(Watcher(verb, state_home))
            stack.callback(them[-1].close)
        deadline = time.monotonic() + SHOWN_S
        while not all(each.size for each in them if not each.verb.startswith("events")):
            if time.monotonic() > deadline:
                raise TimeoutError([each.verb for each in them if not each.size])
            time.sleep(0.1)
        yield them


def turn(port: int, pids: dict[str, int], watchers: list[Watcher], waves: int) -> dict[str, float]:
    """One stretch of load: tokens per second, and cores in use."""
    time.sleep(SETTLE_S)
    prompts = prompts_of(1, STREAMS * waves)
    used = {name: cpu_s(pid) for name, pid in pids.items()}
    theirs = {each.verb: each.cpu_s for each in watchers}
    elapsed, samples = asyncio.run(closed_loop("127.0.0.1", port, "m", prompts, TOKENS, STREAMS))
    found = {name: (cpu_s(pid) - used[name]) / elapsed for name, pid in pids.items()}
    for each in watchers:
        found[f"llx {each.verb}"] = (each.cpu_s - theirs[each.verb]) / elapsed
    found["tokens_per_s"] = sum(each.output_tokens for each in samples) / elapsed
    return found


def measure(folder: Path, pairs: int, waves: int) -> dict[str, list[dict[str, float]]]:
    """All turns, "off" and "on"."""
    model = {
        "name": "m", "model": str(tiny_model(folder)), "engine": "sim", "sim": SIM,
        "instances": {"min": 2, "max": 2},
    }  # fmt: skip
    rng = random.Random(11)
    turns: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    with llx_up(folder, model) as port:
        cluster = folder / "state/llx/clusters/bench"
        pids = {name: pid for name, pid in processes(cluster) if "shim" not in name}
        turn(port, pids, [], 2)  # first requests cost more
        with watched(folder / "state") as watchers:
            for number in range(pairs):
                for name in rng.sample(["off", "on"], 2):
                    for each in watchers:
                        each.stop() if name == "off" else each.go_on()
                    turns[name].append(turn(port, pids, watchers, waves))
                    told = {key: round(value, 3) for key, value in turns[name][-1].items()}
                    print(f"pair {number} {name}: {told}", file=sys.stderr)
    return turns


def figures(turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Ratios and medians."""
    both = zip(turns["on"], turns["off"], strict=True)
    ratios = [on["tokens_per_s"] / off["tokens_per_s"] for on, off in both]
    low, high = interval_of_median(ratios)
    medians = {
        name: {
            key: round(statistics.median(each[key] for each in them), 3) for key in them[0]
        }
        for name, them in turns.items()
    }  # fmt: skip
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_interval": [round(low, 4), round(high, 4)],
        "ratio_spread": [round(percentile(ratios, share), 4) for share in (0.1, 0.9)],
        "medians": medians,
        "holds": low >= BOUND,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--waves", type=int, default=3, help="requests of each stream in a turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llx-watching-") as folder:
        found = figures(measure(Path(folder), args.pairs, args.waves))
    print(json.dumps({"bench": "watching", "pairs": args.pairs, **found}))
    return 0 if found["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
