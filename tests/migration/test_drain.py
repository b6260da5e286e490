"""An instance is emptied under load: its requests move, and no stream fails."""

import asyncio

import openai
import pytest

from tests.hosts.operator_machine import eventually
from tests.migration.cases import STREAMS, answers
from tests.migration.test_identity import differences

pytestmark = [pytest.mark.migration, pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]


def running(movable, instance: str) -> int:
    """-1: the head does not say."""
    rows = movable.operator.glance().get("instances", [])
    loads = [each["load"] for each in rows if each["name"] == instance]
    return loads[0]["running"] if loads and loads[0] is not None else -1


def do(movable, *words: str) -> None:
    done = movable.operator("inst", *words)
    assert done.returncode == 0, done.stderr


async def test_sixteen_streams_leave_an_instance_and_none_fails(movable, undisturbed):
    before = {each["id"] for each in movable.operator.json("mig", "ls")}
    do(movable, "cordon", "oracle-1")
    streams = asyncio.create_task(answers(movable.url, "oracle", STREAMS, at_once=len(STREAMS)))
    await asyncio.to_thread(
        eventually, lambda: running(movable, "oracle-0") >= len(STREAMS), 60, "no load"
    )
    await asyncio.to_thread(do, movable, "uncordon", "oracle-1")
    done = await asyncio.to_thread(
        movable.operator, "inst", "drain", "oracle-0", "--deadline", "120s"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert " 0 cut" in done.stdout
    assert running(movable, "oracle-0") == 0
    try:
        got = await streams
    except openai.OpenAIError as error:
        pytest.fail(f"a stream failed: {error}")
    do(movable, "uncordon", "oracle-0")
    assert differences(undisturbed, got) == []
    moves = [each for each in movable.operator.json("mig", "ls") if each["id"] not in before]
    moved = [each for each in moves if each["outcome"] == "moved"]
    assert len(moved) == len(STREAMS), moves
    took_s = max(each["ended_at"] for each in moved) - min(each["begun_at"] for each in moved)
    rate = max(each["rate"] for each in moved)
    size = sum(each["size_bytes"] for each in moved)
    mib, bound_s = 2**20, 2 * size / rate + 1
    print(
        f"{len(moved)} requests, {size / mib:.0f} MiB at {rate / mib:.0f} MiB/s:"
        f" {took_s:.2f} s (bound {bound_s:.2f} s; tests.bench.drain judges it)"
    )
