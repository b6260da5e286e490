"""The generator against a server of set pace in another process."""

import asyncio
from dataclasses import replace

import pytest

from llx.bench.generator import Generator, Target
from llx.bench.prompts import Prompts, Segment
from llx.bench.record import Outcome
from llx.bench.schedule import Planned
from llx.errors import ConfigError
from tests.ports import silent_port


def planned(count, every_s=0.002, tokens=3):
    return [
        Planned(number, number * every_s, (Segment(str(number), 16),), tokens)
        for number in range(count)
    ]


def generator(url, schedule, **more):
    records = []
    target = Target(url, "mock", **more)
    return Generator(target, schedule, Prompts("salt", 64), "test", records.append), records


async def test_everything_comes_and_is_counted(sse_server):
    made, records = generator(sse_server, planned(200))
    await made.run()
    assert [each.outcome for each in records] == [Outcome.OK] * 200
    assert {each.number for each in records} == set(range(200))
    assert {(each.num_outputs, each.usage_outputs) for each in records} == {(3, 3)}
    assert all(len(each.gaps_us) == 2 for each in records)
    assert all(each.sent_at >= each.planned_at for each in records)
    assert all(each.first_at - each.sent_at >= 0.019 for each in records)
    assert made.num_in_flight == 0
    assert 1 < made.most_in_flight <= 200


async def test_the_schedule_does_not_wait_for_answers():
    """Nobody gets any before all have asked."""
    heads, all_asked = [], asyncio.Event()

    async def answer(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if len(heads) == 50:
            all_asked.set()
        await all_asked.wait()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    made, records = generator(url, planned(50, every_s=0.0), silence_s=20)
    await made.run()
    server.close()
    await server.wait_closed()
    assert all_asked.is_set()
    assert made.most_in_flight == 50
    assert len(records) == 50


def has_begun(made):
    """The streams of which something has come."""
    records = [each.record for each in made._busy]
    return [each for each in records if each is not None and each.num_outputs]


async def test_cancelled_it_cuts_what_is_under_way(sse_server):
    made, records = generator(sse_server, planned(5, tokens=100_000))
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(20):
        while len(has_begun(made)) < 5:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each.outcome for each in records] == [Outcome.CUT] * 5
    assert all(each.num_outputs > 0 for each in records)


async def test_nobody_there():
    with silent_port() as port:
        made, records = generator(f"http://127.0.0.1:{port}", planned(3))
        await made.run()
    assert {each.outcome for each in records} == {Outcome.FAILED}
    assert "no connection" in records[0].error


async def test_a_silent_stream_fails():
    async def swallow(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made, records = generator(f"http://127.0.0.1:{port}", planned(2), silence_s=0.1)
    await made.run()
    assert {each.error for each in records} == {"silent for 0.1 s"}
    server.close()
    await server.wait_closed()


async def test_a_class_is_served_as_another():
    heads = []

    async def answer(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    schedule = [replace(each, priority_class="urgent") for each in planned(1)]
    schedule += [replace(each, number=1) for each in planned(1, every_s=0)]
    made, records = generator(url, schedule, served_as={"urgent": "reserved"})
    await made.run()
    server.close()
    await server.wait_closed()
    assert sorted("x-llx-priority" in each for each in heads) == [False, True]
    assert any("x-llx-priority: reserved\r\n" in each for each in heads)
    assert {each.priority_class for each in records} == {"urgent", ""}


def test_what_is_no_url():
    with pytest.raises(ConfigError, match="write http"):
        generator("localhost:8000", planned(1))


class TestPrompts:
    def test_as_long_as_asked(self):
        prompts = Prompts("a", 300)
        for length in (1, 7, 8, 9, 300):
            ids = [int(each) for each in prompts.ids((Segment("x", length),)).split(b",")]
            assert len(ids) == length
            assert all(100 <= each < 250 for each in ids)

    def test_equal_keys_of_one_run_are_equal(self):
        prompts = Prompts("a", 40)
        shared, own = Segment("shared", 40), (Segment("1", 40), Segment("2", 40))
        one, two = (prompts.ids((shared, each)) for each in own)
        assert one[:160] == two[:160]
        assert one[160:176] != two[160:176]
        assert Prompts("b", 40).ids((shared,)) != one[:159]
