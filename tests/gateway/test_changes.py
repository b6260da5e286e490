"""Changes that operators want: which are carried out where, and what is answered."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llx.core.model import ClassName, RequestId, Term
from llx.errors import UnreachableError
from llx.gateway import changes as module
from llx.gateway.changes import Changes
from llx.wire import CancelRequests, Changed, ReclassRequests

R, S = RequestId("r"), RequestId("s")
URGENT = ReclassRequests(Term(1), 4, [R, S], ClassName("urgent"), 0)


class Link:
    """An instance that takes a priority at its n-th asking; 0: never."""

    def __init__(self, name: str, takes_at: int = 1, *, is_down: bool = False) -> None:
        self.member = SimpleNamespace(instance=name)
        self.asked: list[list[Any]] = []
        self.takes_at = takes_at
        self.is_down = is_down

    async def call(self, method: str, payload: list[bytes], _timeout_s: float) -> list[bytes]:
        if self.is_down:
            raise UnreachableError("down")
        assert method == "llx_set_priority"
        self.asked.append(msgspec.msgpack.decode(payload[0]))
        return [msgspec.msgpack.encode(len(self.asked) == self.takes_at)]


class Client:
    """A pool's client with one request, all generations of one answer, and who has them."""

    def __init__(self, *links: Link, generations: Sequence[RequestId] = (R,)) -> None:
        self.generations = set(generations)
        self.links = list(links)
        self.log: list[Any] = []

    def has(self, request: RequestId) -> bool:
        return request in self.generations

    def cancel(self, request: RequestId) -> None:
        if request in self.generations:
            self.generations.clear()

    def reclass(self, request: RequestId, name: ClassName, priority: int) -> bool:
        if request in self.generations:
            self.log.append((name, priority))
        return request in self.generations

    def holders(self, _request: RequestId) -> list[Link]:
        return self.links


async def answer(change: Any, *clients: Client) -> Changed:
    said: asyncio.Queue[Changed] = asyncio.Queue()
    changes = Changes(lambda: list(clients), said.put_nowait)  # type: ignore[arg-type,return-value]
    changes.hear(change)
    return await asyncio.wait_for(said.get(), 60)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than what is usual."""
    monkeypatch.setattr(module, "TAKES_S", 60.0)


async def test_what_is_here_is_cancelled_in_whichever_pool_it_is() -> None:
    first, second = Client(), Client(generations=[S])
    found = await answer(CancelRequests(Term(1), 3, [S, RequestId("x")]), first, second)
    assert found == Changed(3, [S], [])
    assert (first.generations, second.generations) == ({R}, set())


async def test_generations_that_end_with_the_first_one_are_cancelled_too() -> None:
    client = Client(generations=[R, S])
    assert await answer(CancelRequests(Term(1), 3, [R, S]), client) == Changed(3, [R, S], [])
    assert client.generations == set()


async def test_a_request_that_waits_is_reclassed_at_its_gateway_alone() -> None:
    client = Client()
    assert await answer(URGENT, client) == Changed(4, [R], [])
    assert client.log == [("urgent", 0)]


async def test_the_instance_that_has_it_is_told() -> None:
    link = Link("m-0")
    assert await answer(URGENT, Client(link)) == Changed(4, [R], [])
    assert link.asked == [["r", 0]]


async def test_while_it_is_moving_both_ends_are_asked_until_one_takes_it() -> None:
    source, target = Link("m-0", takes_at=0), Link("m-1", takes_at=3)
    assert await answer(URGENT, Client(source, target)) == Changed(4, [R], [])
    assert (len(source.asked), len(target.asked)) == (3, 3)


async def test_where_none_takes_it_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKES_S", 0.1)
    found = await answer(URGENT, Client(Link("m-0", takes_at=0), Link("m-1", is_down=True)))
    assert found == Changed(4, [], [(R, "not taken within 0.1 s by m-0 or m-1")])
