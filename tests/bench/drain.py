"""How long it takes to empty an instance of its running requests, on real vLLM: two instances here.

    .venv/bin/python -m tests.bench.drain
    .venv/bin/python -m tests.bench.drain --streams 16 --context 2000 --rounds 5 --transport tcp

First the rate of the link: one request alone is moved to and fro by a blocking copy. Then, a round
at a time, streams decode on one instance, which is drained; the next round drains the other one.
The time is that of the drain as the operator sees it, from the order to its end. The bound:

    seconds <= 2 x (bytes of KV moved / rate of the link) + 1

Exit code 8 if a stream failed or was cut, a request was left where it was, or a round missed its
bound. One JSON line on standard output.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llx.api import MigrateRequest, MigrationStatus, MoveOutcome
from llx.client import Cluster
from llx.openai_client import OpenAIClient
from tests.bench.migration import Streamed, cluster

OUTPUTS = 3000
"""So many that no stream ends by itself while its instance is being drained."""
LINK_MOVES = 6
LINK_CONTEXT = 5000
OTHER = {"wide-0": "wide-1", "wide-1": "wide-0"}


@dataclass(frozen=True, slots=True)
class Drained:
    """One round. `rate` of the link, in bytes per second."""

    took_s: float
    size_bytes: int
    rate: float
    moved: int
    failed: int

    @property
    def bound_s(self) -> float:
        return 2 * self.size_bytes / self.rate + 1


def prompt_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(10, 250) for _ in range(length)]


def begin(gateway: OpenAIClient, rng: random.Random, context: int) -> Streamed:
    name = f"drain{rng.randrange(1 << 30)}x"
    return Streamed(gateway, prompt_of(rng, context), OUTPUTS, name)


def over(control: Cluster, migration: str) -> MigrationStatus:
    while (status := control.migration(migration)).outcome is None:
        time.sleep(0.02)
    return status


def link_rate(gateway: OpenAIClient, control: Cluster, rng: random.Random) -> float:
    """Bytes per second of a copy that nothing disturbs: the median of several."""
    stream = begin(gateway, rng, LINK_CONTEXT)
    stream.wait(5)
    rates = []
    for number in range(LINK_MOVES + 1):
        (found,) = [each for each in control.requests().requests if stream.name in each.id]
        order = MigrateRequest(
            request=found.id,
            target=OTHER[found.instance],
            is_blocking=True,
            reuse_prefix=False,
        )
        (begun,) = control.migrate(order).migrations
        status = over(control, begun.id)
        if number and status.outcome is MoveOutcome.MOVED:  # the first one makes the connection
            rates.append(status.rate)
    stream.cancel()
    return statistics.median(rates)


def drain(
    gateway: OpenAIClient,
    control: Cluster,
    rng: random.Random,
    source: str,
    num_streams: int,
    context: int,
    rate: float,
) -> Drained:
    control.cordon_instance(OTHER[source], is_on=True)
    time.sleep(1.0)  # every gateway knows
    streams = [begin(gateway, rng, context) for _ in range(num_streams)]
    for each in streams:
        each.wait(5)
    control.cordon_instance(OTHER[source], is_on=False)
    before = {each.id for each in control.migrations()}
    began = time.monotonic()
    report = control.drain_instance(source, deadline_s=120)
    took_s = time.monotonic() - began
    moves = [each for each in control.migrations() if each.id not in before]
    moved = [each for each in moves if each.outcome is MoveOutcome.MOVED]
    print(f"{report.model_dump_json()}, {len(moves)} moves", file=sys.stderr)
    seen = [len(each.tokens) for each in streams]
    failed = sum(not each.wait(tokens + 5) for each, tokens in zip(streams, seen, strict=True))
    for each in streams:
        each.cancel()
    control.cordon_instance(source, is_on=False)
    size = sum(each.size_bytes for each in moved)
    return Drained(took_s, size, rate, len(moved), failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--context", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", default="auto", help="migration.transport")
    parser.add_argument("--link-mib-s", type=float, help="migration.bandwidth_mib_s")
    args = parser.parse_args()
    rng, rounds = random.Random(args.seed), []
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(Path(folder), args.transport, args.link_mib_s) as (gateway, control),
    ):
        for number in range(args.rounds):
            source = f"wide-{number % 2}"
            rate = link_rate(gateway, control, rng)
            found = drain(gateway, control, rng, source, args.streams, args.context, rate)
            print(f"{found}, bound {found.bound_s:.2f} s", file=sys.stderr)
            rounds.append(found)
    holds = [
        each.moved == args.streams and each.failed == 0 and each.took_s <= each.bound_s
        for each in rounds
    ]
    figures = [asdict(each) | {"bound_s": each.bound_s} for each in rounds]
    print(json.dumps({"rounds": figures, "holds": all(holds)}))
    return 0 if all(holds) else 8


if __name__ == "__main__":
    sys.exit(main())
