"""How long streams pause when their instance dies or freezes, on real vLLM: two instances here.

    .venv/bin/python -m tests.bench.recovery
    .venv/bin/python -m tests.bench.recovery --streams 8 --context 512 --rounds 4

A round: streams decode on both instances; one of these is killed (SIGKILL) or frozen (SIGSTOP). Of
each stream that it had: the pause, from its last token there to the first one elsewhere, as the
client sees it. Beside it, what computing such a request's KV alone takes on the instance that is
left, measured before with fresh prompts of that length: *beyond recompute* is the pause without it.
Of a frozen instance also: from the freeze to the end of its process.

Exit code 8 if a stream failed, or tokens were lost. One JSON line on standard output.
"""

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llx.api import ClusterState
from llx.client import Cluster
from llx.openai_client import OpenAIClient
from tests.bench.migration import Streamed, cluster

OUTPUTS = 4000
BEFORE = 20
"""Tokens that each stream has when it happens."""
AFTER = 20
INSTANCES = ("wide-0", "wide-1")


@dataclass(frozen=True, slots=True)
class Round:
    """What happened to the streams of one instance. Times in seconds."""

    deed: str
    pauses_s: list[float]
    recompute_s: float
    fenced_s: float | None
    failed: int


def begin(gateway: OpenAIClient, rng: random.Random, context: int) -> Streamed:
    prompt = [rng.randrange(10, 250) for _ in range(context)]
    return Streamed(gateway, prompt, OUTPUTS, f"recovery{rng.randrange(1 << 30)}x")


def recompute_s(gateway: OpenAIClient, rng: random.Random, context: int, count: int) -> float:
    """Until the first tokens of so many requests that come at once, the median."""
    streams = [begin(gateway, rng, context) for _ in range(count)]
    for each in streams:
        each.wait(1)
    found = statistics.median(each.ttft_s for each in streams)
    for each in streams:
        each.cancel()
    return found


def wait_until(check, what: str, timeout_s: float = 120.0) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(what)
        time.sleep(0.05)
    return time.monotonic() - began


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def longest_pause(stream: Streamed, at: float) -> float:
    """Between two tokens, from that moment on."""
    gaps = itertools.pairwise(stream.times)
    return max(later - max(sooner, at) for sooner, later in gaps if later > at)


def one_round(
    gateway: OpenAIClient, control: Cluster, rng: random.Random, args: argparse.Namespace,
    deed: str, victim: str,
) -> Round:  # fmt: skip
    (other,) = set(INSTANCES) - {victim}
    control.cordon_instance(victim, is_on=True)
    time.sleep(1.0)  # every gateway knows
    recompute = recompute_s(gateway, rng, args.context, args.streams // 2)
    control.cordon_instance(victim, is_on=False)
    time.sleep(1.0)
    streams = [begin(gateway, rng, args.context) for _ in range(args.streams)]
    for each in streams:
        each.wait(BEFORE)
    there = {each.id for each in control.requests().requests if each.instance == victim}
    hit = [each for each in streams if any(each.name in request for request in there)]
    pid = control.instance(victim).pid
    assert pid is not None, f"{victim} runs"
    had = [len(each.tokens) for each in hit]
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL if deed == "kill" else signal.SIGSTOP)
    wholes = [each.wait(tokens + AFTER) for each, tokens in zip(hit, had, strict=True)]
    pauses = [longest_pause(each, at) for each, whole in zip(hit, wholes, strict=True) if whole]
    fenced_s = None
    if deed == "freeze":
        wait_until(lambda: is_gone(pid), "the frozen process ends")
        fenced_s = time.monotonic() - at
    for each in streams:
        each.cancel()
    wait_until(lambda: control.instance(victim).pid not in {pid, None}, "it is started again")
    wait_until(lambda: control.status().state is ClusterState.READY, "it is ready again")
    print(f"{deed} {victim}: {len(hit)} streams, on {other}", file=sys.stderr)
    return Round(deed, pauses, recompute, fenced_s, len(hit) - sum(wholes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="of each deed")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, rounds = random.Random(args.seed), []
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(Path(folder), "auto", None) as (gateway, control),
    ):
        for number in range(args.rounds):
            for deed in ("kill", "freeze"):
                victim = INSTANCES[number % 2]
                rounds.append(one_round(gateway, control, rng, args, deed, victim))
                print(rounds[-1], file=sys.stderr)
    print(json.dumps({"rounds": [asdict(each) for each in rounds], **figures(rounds)}))
    return 8 if any(each.failed or not each.pauses_s for each in rounds) else 0


def figures(rounds: list[Round]) -> dict[str, object]:
    found: dict[str, object] = {}
    for deed in ("kill", "freeze"):
        those = [each for each in rounds if each.deed == deed]
        pauses = sorted(pause for each in those for pause in each.pauses_s)
        beyond = sorted(p - each.recompute_s for each in those for p in each.pauses_s)
        found[deed] = {
            "streams": len(pauses),
            "pause_p50_s": statistics.median(pauses) if pauses else None,
            "pause_max_s": pauses[-1] if pauses else None,
            "beyond_recompute_p50_s": statistics.median(beyond) if beyond else None,
        }
    found["fenced_s"] = [each.fenced_s for each in rounds if each.fenced_s is not None]
    return found


if __name__ == "__main__":
    sys.exit(main())
