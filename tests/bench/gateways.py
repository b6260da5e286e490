"""Two gateways against one of them, each with the same share of a core: do they scale with cores?

    .venv/bin/python -m tests.bench.gateways NODE_PYTHON --rounds 9 --share 0.2

As root, on two namespace hosts of this machine, a gateway on each, with simulated engines. A quota
of the kernel's (a control group of each gateway's own) leaves a gateway that share of a core, so
that it is what limits the tokens, and the generator and the engines have the rest: what one and two
gateways give with one and two such shares is what they give with one and two cores.

Closed loop: each gateway has `--streams` streams at a time. In turns: one gateway alone, the other
alone, both at once, to the end of the slower one. Prints the output tokens/s, their ratio (both /
the mean of each alone) with its 95% interval over rounds, and what each gateway used of a core.
Exit code 8 if the interval's lower end is below 1.8. One JSON line on standard output.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.hosts_up import sim_cluster
from tests.bench.intervals import interval_of_median
from tests.bench.overhead import prompts_of
from tests.bench.read_verbs import cpu_s
from tests.bench.sse_load import closed_loop
from tests.hosts.operator_machine import SIM
from tests.hosts.rig import Host

TOKENS = 128
PERIOD_US = 20_000
"""Short, so that a gateway that has used its share waits for milliseconds only."""
BOUND = 1.8
ENGINE = {"step_base_ms": 3.0, "step_ms_per_decode": 0.01}
"""Faster than what the gateways can pass on."""


@contextlib.contextmanager
def share_of_a_core(name: str, pid: int, share: float) -> Iterator[None]:
    """That process has no more, for the length of the block."""
    root = Path("/sys/fs/cgroup")
    is_v2 = (root / "cgroup.controllers").exists()
    group = (root if is_v2 else root / "cpu") / name
    group.mkdir()
    try:
        quota_us = round(share * PERIOD_US)
        if is_v2:
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(OSError):  # it may have ended
            (group.parent / "cgroup.procs").write_text(str(pid))
        group.rmdir()


class Gateways:
    """What is loaded: where each listens, and which process it is."""

    def __init__(self, urls: list[str], pids: list[int], streams: int, requests: int) -> None:
        self._urls, self._pids = urls, pids
        self._streams, self._requests = streams, requests
        self._seed = 0
        self.used: dict[str, list[float]] = {}

    async def tokens_per_s(self, what: str, chosen: list[int]) -> float:
        """With these of them loaded at once; what each used of a core is kept under `what`."""
        before, began = [cpu_s(self._pids[each]) for each in chosen], time.monotonic()
        done = await asyncio.gather(*(self._load(each) for each in chosen))
        took_s = time.monotonic() - began
        for each, earlier in zip(chosen, before, strict=True):
            used = (cpu_s(self._pids[each]) - earlier) / took_s
            self.used.setdefault(what, []).append(used)
        return sum(done) / took_s

    async def _load(self, index: int) -> int:
        """Its share of a turn; how many tokens came."""
        self._seed += 1
        where = urlsplit(self._urls[index])
        assert where.hostname is not None
        assert where.port is not None
        _, samples = await closed_loop(
            where.hostname, where.port, SIM["name"], prompts_of(self._seed, self._requests),
            TOKENS, self._streams,
        )  # fmt: skip
        return sum(each.output_tokens for each in samples)


async def measure(gateways: Gateways, rounds: int) -> dict[str, Any]:
    """All rounds; the first turn of each gateway warms it up."""
    alone, both = [], []
    for each in (0, 1):
        await gateways.tokens_per_s("warm-up", [each])
    for number in range(rounds):
        rates = {}
        for what in [(0,), (1,), (0, 1)] if number % 2 == 0 else [(0, 1), (1,), (0,)]:
            name = "one" if len(what) == 1 else "two"
            rates[what] = await gateways.tokens_per_s(name, list(what))
        alone.append((rates[0,] + rates[1,]) / 2)
        both.append(rates[0, 1])
        sys.stderr.write(f"round {number}: one {alone[-1]:.0f}, two {both[-1]:.0f} tokens/s\n")
    ratios = [two / one for one, two in zip(alone, both, strict=True)]
    rates_found = {"one": alone, "two": both}
    return {
        "tokens_per_s": {
            what: round(statistics.median(each)) for what, each in rates_found.items()
        },
        "ratio": round(statistics.median(ratios), 3),
        "ratio_interval": [round(each, 3) for each in interval_of_median(ratios)],
        "used_of_a_core": {
            what: round(statistics.median(each), 3) for what, each in gateways.used.items()
        },
    }


def _gateway_of(host: Host) -> int:
    """Its process, by its number here."""
    found = host.processes("llx.gateway.main")
    [pid] = [each for each, line in found.items() if "shim.py" not in line]
    return pid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", type=Path, help="of a node environment")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--share", type=float, default=0.2, help="of a core, for each gateway")
    parser.add_argument("--streams", type=int, default=32, help="at a time, of each gateway")
    parser.add_argument("--requests", type=int, default=96, help="of each gateway and turn")
    words = parser.parse_args()
    with contextlib.ExitStack() as stack:
        two = sim_cluster(words.python.absolute(), 2, {"count": 2}, sim=ENGINE)
        operator = stack.enter_context(two)
        rows = operator.json("status")["gateways"]
        pids = [_gateway_of(operator.rig[each["host"]]) for each in rows]
        loaded = Gateways([e["url"] for e in rows], pids, words.streams, words.requests)
        for number, pid in enumerate(pids):
            stack.enter_context(share_of_a_core(f"llx-gateway-{number}", pid, words.share))
        result = asyncio.run(measure(loaded, words.rounds))
    result["holds"] = result["ratio_interval"][0] >= BOUND
    print(json.dumps({"bench": "gateways", "share": words.share, **result}))
    return 0 if result["holds"] else 8


if __name__ == "__main__":
    sys.exit(main())
