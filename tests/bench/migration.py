"""What moving a running request costs, on real vLLM: two instances and a gateway on this machine.

    .venv/bin/python -m tests.bench.migration            everything
    .venv/bin/python -m tests.bench.migration --contexts 512,4096 --rounds 2
    .venv/bin/python -m tests.bench.migration --transport tcp --link-mib-s 1192

Per round, in shuffled order, one request per context length. Once it decodes it moves to and fro,
live and with a blocking copy in turns, nothing reused, with pauses so long that its pace is
known; what a move costs is what the gateway saw. Recomputing is measured as the first token's time
of a new request with the same tokens. Then streams that nobody moves are timed while another one is
moved without a pause, and while it is not, in turns. Medians come with their 95% interval. One JSON
line on standard output.
"""

import argparse
import contextlib
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from llx.api import MigrateRequest, MoveOutcome
from llx.client import Cluster
from llx.openai_client import CompletionRequest, OpenAIClient, Tokens
from tests.bench.intervals import interval_of_median, percentile
from tests.bench.overhead import NODE, llx_up
from tests.node import ROOT, node_environment

MODEL = "wide"
ENGINE_ARGS = {
    "max_model_len": 8192,
    "block_size": 32,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 2048,
    "enforce_eager": True,
    "dtype": "bfloat16",
}
MOVES = 10
"""Per request: half of them live."""
OUTPUTS = 700
PACE_TOKENS = 36
"""Between two moves: the gateway's median is over 32 gaps."""
WINDOW_S = 4.0
NEIGHBOURS = 4


@dataclass
class Samples:
    """By context length; milliseconds."""

    live_downtime: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    live_stall: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    live_over_itl: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    live_steps: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """A whole move, from the order to the ruling, in ITLs."""
    blocking: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    recompute: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    itl: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))


def made_model(shape: str, folder: Path) -> Path:
    """A model that the node environment makes there (`llama_model.py`)."""
    script = str(ROOT / "tests/bench/llama_model.py")
    argv = [str(NODE / "bin/python"), script, shape, str(folder)]
    subprocess.run(argv, env=node_environment(), check=True, stdout=sys.stderr)
    return folder


@contextlib.contextmanager
def cluster(
    folder: Path, transport: str, link_mib_s: float | None
) -> Iterator[tuple[OpenAIClient, Cluster]]:
    model = made_model("wide", folder / "model")
    entry = {
        "name": MODEL,
        "model": str(model),
        "instances": {"min": 2},
        "engine_args": ENGINE_ARGS,
    }
    with (
        llx_up(folder, entry, {"transport": transport, "bandwidth_mib_s": link_mib_s}) as port,
        OpenAIClient(f"http://127.0.0.1:{port}") as gateway,
        Cluster.for_cluster(folder / "state/llx/clusters/bench") as control,
    ):
        yield gateway, control


class Streamed:
    """One request, read on a thread of its own."""

    def __init__(self, gateway: OpenAIClient, prompt: list[int], outputs: int, name: str) -> None:
        self.name = name
        self.times: list[float] = []
        self.tokens: list[int] = []
        self._is_cancelled = False
        self._began = time.monotonic()
        request = CompletionRequest(MODEL, tuple(prompt), outputs, request_id=name, cache_salt=name)
        self._source = cast("Generator[Tokens, None, None]", gateway.stream_completion(request))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for piece in self._source:
            self.tokens.extend(piece.token_ids)
            self.times.extend([piece.at] * len(piece.token_ids))
            if self._is_cancelled:
                self._source.close()
                return

    def cancel(self) -> None:
        """Leave, as a client does that has seen enough."""
        self._is_cancelled = True
        self.join()

    @property
    def ttft_s(self) -> float:
        return self.times[0] - self._began

    def wait(self, num_tokens: int) -> bool:
        """Whether it has so many tokens before it ends."""
        while self._thread.is_alive() and len(self.tokens) < num_tokens:
            time.sleep(0.002)
        return len(self.tokens) >= num_tokens

    def join(self) -> None:
        self._thread.join()


def move(control: Cluster, name: str, *, is_blocking: bool) -> tuple[float, float, float] | None:
    """Move a request to the other instance; (downtime, ITL, all of it) in ms, if it moved."""
    found = [each for each in control.requests().requests if name in each.id]
    if not found:
        return None
    target = {"wide-0": "wide-1", "wide-1": "wide-0"}[found[0].instance]
    order = MigrateRequest(
        request=found[0].id, target=target, is_blocking=is_blocking, reuse_prefix=False
    )
    (begun,) = control.migrate(order).migrations
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = control.migration(begun.id)
        if status.outcome not in {None, MoveOutcome.MOVED}:
            print(f"not moved: {status.outcome} {status.reason}", file=sys.stderr)
            return None
        if status.outcome and status.downtime_ms is not None and status.itl_ms is not None:
            return status.downtime_ms, status.itl_ms, status.elapsed_ms
        time.sleep(0.05)
    return None


def measure_request(
    gateway: OpenAIClient, control: Cluster, context: int, rng: random.Random, into: Samples
) -> None:
    prompt = [rng.randrange(10, 250) for _ in range(context)]
    name = f"bench{rng.randrange(1 << 30)}x"
    stream = Streamed(gateway, prompt, OUTPUTS, name)
    kinds = [False, True] * (MOVES // 2)
    rng.shuffle(kinds)
    wanted = PACE_TOKENS
    for is_blocking in kinds:
        if not stream.wait(wanted):
            break
        seen = move(control, name, is_blocking=is_blocking)
        wanted = len(stream.tokens) + PACE_TOKENS
        if seen is None:
            continue
        downtime, itl, elapsed = seen
        if is_blocking:
            into.blocking[context].append(downtime)
        else:
            into.live_downtime[context].append(downtime)
            into.live_stall[context].append(downtime - itl)
            into.live_over_itl[context].append((downtime - itl) / itl)
            into.live_steps[context].append(elapsed / itl)
            into.itl[context].append(itl)
    tokens = len(stream.tokens)
    stream.join()
    again = Streamed(gateway, prompt + stream.tokens[:tokens], 1, f"{name}again")
    again.join()
    into.recompute[context].append(again.ttft_s * 1e3)


def measure_neighbours(
    gateway: OpenAIClient, control: Cluster, rng: random.Random, windows: int
) -> list[float]:
    """Ratios of the ITL of streams that stay: while another is moved, to while it is not.

    Where the other one is makes the batches of one instance larger. So it rests as long on either
    instance as it is moved, and each stream is compared with itself.
    """
    ratios = []
    for _ in range(windows):
        streams = [
            Streamed(
                gateway,
                [rng.randrange(10, 250) for _ in range(512)],
                7000,
                f"bench{rng.randrange(1 << 30)}x",
            )
            for _ in range(NEIGHBOURS + 1)
        ]
        for each in streams:
            each.wait(20)
        mover = Mover(control, streams[0].name)
        phases = ["rest", "move", "rest elsewhere"]
        rng.shuffle(phases)
        medians: dict[str, list[float]] = {}
        for phase in phases:
            if phase == "rest elsewhere":
                mover.move()
            begin = time.monotonic()
            while time.monotonic() < begin + WINDOW_S:
                if phase == "move":
                    mover.move()
                else:
                    time.sleep(0.05)
            end = time.monotonic()
            medians[phase] = [
                statistics.median(gaps_between(each.times, begin, end)) for each in streams[1:]
            ]
        ratios += [
            2 * moving / (here + there)
            for moving, here, there in zip(
                medians["move"], medians["rest"], medians["rest elsewhere"], strict=True
            )
        ]
        print(f"others: {ratios[-NEIGHBOURS:]}, {mover.moved} moves", file=sys.stderr)
        for each in streams:
            each.cancel()
    return ratios


class Mover:
    """Moves one request to and fro, each move as soon as the one before is over."""

    def __init__(self, control: Cluster, name: str) -> None:
        self._control = control
        (found,) = [each for each in control.requests().requests if name in each.id]
        self._request, self._instance = found.id, found.instance
        self.moved = 0

    def move(self) -> None:
        target = {"wide-0": "wide-1", "wide-1": "wide-0"}[self._instance]
        order = MigrateRequest(request=self._request, target=target, reuse_prefix=False)
        (begun,) = self._control.migrate(order).migrations
        while (outcome := self._control.migration(begun.id).outcome) is None:
            time.sleep(0.02)
        if outcome is MoveOutcome.MOVED:
            self._instance = target
            self.moved += 1


def gaps_between(times: list[float], begin: float, end: float) -> list[float]:
    inside = [each for each in times if begin <= each <= end]
    return [b - a for a, b in itertools.pairwise(inside)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--contexts", default="512,2048,4096,7168")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--beside", type=int, default=0, help="streams that stay, meanwhile")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", default="auto", help="migration.transport")
    parser.add_argument("--link-mib-s", type=float, help="migration.bandwidth_mib_s")
    args = parser.parse_args()
    contexts = [int(each) for each in args.contexts.split(",")]
    rng, samples = random.Random(args.seed), Samples()
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(Path(folder), args.transport, args.link_mib_s) as (gateway, control),
    ):
        beside = [
            Streamed(gateway, [rng.randrange(10, 250) for _ in range(256)], 7000, f"beside{number}")
            for number in range(args.beside)
        ]
        measure_request(gateway, control, 256, rng, Samples())  # the first moves make connections
        for _ in range(args.rounds):
            for context in rng.sample(contexts, len(contexts)):
                measure_request(gateway, control, context, rng, samples)
                print(f"{context}: {summary(samples, context)}", file=sys.stderr)
        for each in beside:
            each.cancel()
        ratios = measure_neighbours(gateway, control, rng, args.windows)
    report = {"contexts": {str(each): summary(samples, each) for each in contexts}}
    if ratios:
        low, high = interval_of_median(ratios)
        report["others_itl_ratio"] = [
            round(statistics.median(ratios), 3),
            round(low, 3),
            round(high, 3),
        ]
    print(json.dumps(report))
    return 0


def summary(samples: Samples, context: int) -> dict[str, object]:
    live, blocking = samples.live_downtime[context], samples.blocking[context]
    recompute, over = samples.recompute[context], samples.live_over_itl[context]
    if not live or not blocking or not recompute:
        return {}
    middle = statistics.median(live)
    return {
        "moves": len(live),
        "itl_ms": round(statistics.median(samples.itl[context]), 1),
        "downtime_ms": [round(each, 1) for each in (middle, min(live), max(live))],
        "stall_ms_p50": round(statistics.median(samples.live_stall[context]), 1),
        "stall_over_itl_p50": round(statistics.median(over), 2),
        "stall_over_itl_p50_interval": [round(each, 2) for each in interval_of_median(over)],
        "stall_over_itl_p95": round(percentile(over, 0.95), 2),
        "move_over_itl_p50": round(statistics.median(samples.live_steps[context]), 2),
        "move_over_itl_p50_interval": [
            round(each, 2) for each in interval_of_median(samples.live_steps[context])
        ],
        "blocking_ms": round(statistics.median(blocking), 1),
        "recompute_ms": round(statistics.median(recompute), 1),
        "blocking_over_live": round(statistics.median(blocking) / middle, 1),
        "recompute_over_live": round(statistics.median(recompute) / middle, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
