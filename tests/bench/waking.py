"""What it costs a loop to read messages that come apart, and those that it reads together.

    .venv/bin/python -m tests.bench.waking --turns 5

Many sockets of one process, none with a message often, as a head's to its instances. In turns:
`read_all`, which wakes up for each message, 0.2 ms after the one before; and a `SocketReader`, for
which as many come in one of its pauses as at 5,000 a second. The thread's own CPU time from the
sending of a message, or of as many, to when it is read; per message the median of each turn. The
time between is slept, so that others have the core and its caches, as they have beside a head.
One JSON line on standard output.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from typing import Final

import zmq
import zmq.asyncio

from llx.agent.socket_reader import SocketReader, read_all

SOCKETS: Final = 400
TOGETHER: Final = 25
MESSAGES: Final = 800
APART_S: Final = 0.0002


async def cost_us(*, is_together: bool) -> float:
    """Of a message, in the median."""
    context = zmq.asyncio.Context()
    plain: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context)
    reader, come, due = SocketReader(), asyncio.Event(), 0

    def take(_frames: list[bytes]) -> None:
        nonlocal due
        due -= 1
        if not due:
            come.set()

    far, tasks = [], []
    for number in range(SOCKETS):
        one, other = plain.socket(zmq.PAIR), context.socket(zmq.PAIR)
        one.bind(f"inproc://{number}")
        other.connect(f"inproc://{number}")
        far.append(one)
        read = reader.read_all if is_together else read_all
        tasks.append(asyncio.create_task(read(other, take)))
    await asyncio.sleep(0.05)
    size, draw, costs = TOGETHER if is_together else 1, random.Random(1), []
    for _ in range(MESSAGES // size):
        if not is_together:
            time.sleep(APART_S)  # noqa: ASYNC251 - the whole process is to lose the core
        due = size
        come.clear()
        for each in draw.sample(far, size):
            each.send(b"x" * 100)
        began = time.thread_time()
        await come.wait()
        await asyncio.sleep(0)
        costs.append((time.thread_time() - began) / size * 1e6)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    reader.close()
    for each in far:
        each.close(0)
    context.destroy(linger=0)
    return statistics.median(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(args.turns):
        for is_together, costs in found.items():
            costs.append(round(asyncio.run(cost_us(is_together=is_together)), 1))
    told = {"bench": "waking", "apart_us": found[False], "together_us": found[True]}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
