"""Real engines under faults while requests move; the whole matrix is in `tests/chaos`."""

import asyncio
import itertools
import os
import signal
import time
from typing import Any

import openai
import pytest

from tests.hosts.operator_machine import eventually
from tests.hosts.rig import USER, Host
from tests.migration.cases import GREEDY, STREAMS, Answer, answers, ask, client_of, prompt
from tests.migration.conftest import Movable
from tests.migration.test_drain import do, running
from tests.migration.test_identity import Mover, differences, is_idle

pytestmark = [pytest.mark.migration, pytest.mark.hosts, pytest.mark.node, pytest.mark.e2e]

CASES = dict(itertools.islice(STREAMS.items(), 10))
SILENT_S = 1.0
"""Shorter than any lease."""


async def outcomes(url: str) -> dict[str, Answer | openai.OpenAIError]:
    """Every stream's answer, or how it failed."""
    async with client_of(url) as client:

        async def one(case: dict[str, Any]) -> Answer | openai.OpenAIError:
            try:
                return await ask(client, "oracle", case)
            except openai.OpenAIError as error:
                return error

        found = await asyncio.gather(*map(one, CASES.values()))
    return dict(zip(CASES, found, strict=True))


def failed(got: dict[str, Answer | openai.OpenAIError]) -> dict[str, str]:
    return {name: str(each) for name, each in got.items() if isinstance(each, openai.OpenAIError)}


@pytest.fixture
def expected(undisturbed: dict[str, Answer]) -> dict[str, Answer]:
    return {name: undisturbed[name] for name in CASES}


async def test_a_network_that_is_silent_for_a_moment_costs_no_token(movable, expected):
    here, there = movable.operator.rig["h1"], movable.operator.rig["h2"]
    mover = Mover(movable, ["oracle"], seed=8)
    try:
        streams = asyncio.create_task(outcomes(movable.url))
        for _ in range(3):
            await asyncio.sleep(2.0)
            here.drop(there)
            await asyncio.sleep(SILENT_S)
            here.heal()
        got = await streams
    finally:
        here.heal()
        moves = mover.finish()
    assert failed(got) == {}
    assert differences(expected, got) == []
    assert any(each["outcome"] == "moved" for each in moves), moves
    eventually(lambda: is_idle(movable), 60, "blocks were left behind")


async def test_what_a_killed_target_owned_goes_on_elsewhere(movable, expected):
    """In the middle of a drain to it: some have come, some are under way."""
    there = movable.operator.rig["h2"]
    before = {each["id"] for each in movable.operator.json("mig", "ls")}
    victim = instance_on(movable, "h2")
    source = instance_on(movable, "h1")
    do(movable, "cordon", victim)
    streams = asyncio.create_task(outcomes(movable.url))
    await asyncio.to_thread(
        eventually, lambda: running(movable, source) >= len(CASES), 60, "no load"
    )
    await asyncio.to_thread(do, movable, "uncordon", victim)
    drain = asyncio.create_task(
        asyncio.to_thread(movable.operator, "inst", "drain", source, "--deadline", "300s")
    )
    try:
        await asyncio.to_thread(
            eventually, lambda: len(since(movable, before)) > 1, 30, "nothing begins to move"
        )
        kill_instance(there, victim)
        got = await streams
    finally:
        await drain
        do(movable, "uncordon", source)
    assert any(each["outcome"] == "moved" for each in since(movable, before)), "none had come"
    assert failed(got) == {}
    assert differences(expected, got) == []
    eventually(lambda: is_up(movable, victim), 240, f"{victim} does not come back")
    eventually(lambda: is_idle(movable), 60, "blocks were left behind")


async def test_a_gateway_that_is_killed_leaves_no_request_behind(movable, expected):
    mover = Mover(movable, ["oracle"], seed=9)
    try:
        streams = asyncio.create_task(outcomes(movable.url))
        await asyncio.to_thread(
            eventually, lambda: mover.outcomes["moved"] >= 3, 60, "nothing moves"
        )
        assert movable.head.kill("llx.gateway.main") >= 1
        got = await streams
    finally:
        mover.finish()
    assert len(failed(got)) == len(CASES), "streams outlived their gateway"
    eventually(lambda: is_idle(movable), 60, "blocks were left behind")
    await serves_again(movable.url)
    some = dict(itertools.islice(CASES.items(), 3))
    again = await answers(movable.url, "oracle", some)
    assert differences({name: expected[name] for name in some}, again) == []


def kill_instance(host: Host, name: str) -> None:
    """Its process, and not the shim beside it that tells how it ended."""
    pattern = f"llx.agent.instance /home/{USER}/.llx/clusters/c/procs/{name}/"
    (pid,) = (pid for pid, line in host.processes(pattern).items() if "shim" not in line)
    os.kill(pid, signal.SIGKILL)


def instance_on(movable: Movable, host: str) -> str:
    found: list[str] = []

    def is_told() -> bool:
        found[:] = [
            each["name"] for each in movable.operator.glance().get("instances", [])
            if each["host"] == host and each["model"] == "oracle"
        ]  # fmt: skip
        return bool(found)

    eventually(is_told)
    return found[0]


def since(movable: Movable, before: set[str]) -> list[dict[str, Any]]:
    return [each for each in movable.operator.json("mig", "ls") if each["id"] not in before]


def is_up(movable: Movable, name: str) -> bool:
    rows = movable.operator.glance().get("instances", [])
    found = [each for each in rows if each["name"] == name]
    return bool(found) and found[0]["state"] == "ready"


async def serves_again(url: str) -> None:
    async with client_of(url) as client:
        end = time.monotonic() + 180
        said = ""
        while time.monotonic() < end:
            try:
                await ask(client, "oracle", {"prompt": prompt(20), **GREEDY, "max_tokens": 2})
                return
            except openai.OpenAIError as error:
                said = str(error)
                await asyncio.sleep(0.5)
        pytest.fail(f"the gateway does not serve again: {said}")
