"""The gateway's line to the scheduler and its links, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
import zmq.asyncio

from llx.agent.endpoint import InstanceEndpoint
from llx.agent.link import InstanceLink
from llx.cluster.fleet.gateway_line import GatewayLine
from llx.cluster.requests.stream_changes import StreamChanges
from llx.core.model import ClassName, InstanceId, PoolName, RequestId, Term, Tokens
from llx.curve import Authenticator, ClusterKeys, make_listener
from llx.gateway.generations import Generations
from llx.gateway.members import Membership
from llx.gateway.placement import Placement, Wanted
from llx.gateway.roster import Roster
from llx.pins import VLLM_VERSION
from llx.specs import ApiKeySpec, PoolSpec
from llx.wire import (
    Decoder,
    GatewayHello,
    GatewayReport,
    InstanceInfo,
    Load,
    Member,
    Members,
    Placed,
    ToScheduler,
    Unusable,
)
from tests.ports import silent_port

KEYS = ClusterKeys.create()


class SoreRoster(Roster):
    """Fails once."""

    has_failed = False

    def links(self) -> list[InstanceLink]:
        if not self.has_failed:
            self.has_failed = True
            raise RuntimeError("sore")
        return super().links()


class Gateway:
    """A gateway's membership, with one pool and no front end."""

    def __init__(self, address: str, roster: Roster | None = None, heartbeat_s: float = 0.02):
        self.roster = roster or Roster(8)
        self.num_reports = 0
        pool: Any = SimpleNamespace(
            roster=self.roster, spec=SimpleNamespace(name="m", key="m"), is_open=True, client=None
        )
        self.placement = Placement()
        self.membership = Membership(
            "gateway-1", KEYS, Generations([pool], self.make), self.placement, heartbeat_s
        )
        hello = GatewayHello("gateway-1", "http://g", 7, "h1", Term(0), 0)
        report: Any = self.report
        self.scheduler = address
        run = self.membership.run(lambda: self.scheduler, hello, report)
        self.line = asyncio.create_task(run)

    def make(self, spec: PoolSpec) -> Any:
        raise AssertionError(f"nobody has offered {spec.key}")

    def report(self) -> GatewayReport:
        self.num_reports += 1
        return GatewayReport("gateway-1", self.num_reports, 0, 0, 0, 0, 0, [])

    def link(self) -> InstanceLink | None:
        return self.roster.get(InstanceId("m-0"))

    async def close(self) -> None:
        self.line.cancel()
        await asyncio.gather(self.line, return_exceptions=True)
        await self.membership.close()


Start = Callable[..., Gateway]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started = []

    def make(*args: Any) -> Gateway:
        started.append(Gateway(*args))
        return started[-1]

    yield make
    for each in started:
        await each.close()


@pytest.fixture
async def line() -> AsyncIterator[GatewayLine]:
    made = GatewayLine(KEYS, Term(1))
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made.close()


class NoEngine:
    def __init__(self) -> None:
        self.num_dropped = 0

    def add(self, *_: object) -> None: ...
    def abort(self, *_: object) -> None: ...
    def call(self, *_: object) -> None: ...

    def drop_peer(self, _: int) -> None:
        self.num_dropped += 1


async def until(check: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    end = asyncio.get_running_loop().time() + timeout_s
    while not check():
        assert asyncio.get_running_loop().time() < end, f"not in time: {what}"
        await asyncio.sleep(0.01)


async def test_a_change_reaches_the_gateway_that_has_the_request(
    start: Start, line: GatewayLine
) -> None:
    address = await line.bind(None)
    gateway = start(address)
    changes = StreamChanges(line, Term(1), lambda: ["gateway-1"])
    await until(lambda: list(line.present().values()) == ["gateway-1"], "its hello")
    asked: list[Any] = []

    pool: Any = gateway.membership._pools["m"]
    pool.client = SimpleNamespace(has=lambda request: request == "r", cancel=asked.append)
    outcome = await changes.cancel([RequestId("r"), RequestId("s")])
    assert (outcome.done, outcome.not_done, outcome.silent) == ({"r"}, {}, [])
    assert asked == ["r"]


async def test_a_head_that_comes_back_hears_what_is_not_what_was(start: Start) -> None:
    context = zmq.asyncio.Context()
    authenticator = Authenticator(context, KEYS)
    listener = context.socket(zmq.ROUTER)
    make_listener(listener, KEYS)
    try:
        with silent_port() as port:
            gateway = start(f"tcp://127.0.0.1:{port}", None, 0.002)
            await asyncio.sleep(0.5)  # hundreds of reports
            listener.bind(f"tcp://127.0.0.1:{port}")
        told = gateway.num_reports
        decoder: Decoder[ToScheduler] = Decoder(ToScheduler)
        while True:
            _, frame = await asyncio.wait_for(listener.recv_multipart(), 10)
            message = decoder.decode(frame)
            if isinstance(message, GatewayReport):
                break
        assert message.in_flight >= told - 20
    finally:
        authenticator.stop()
        context.destroy(linger=0)


async def test_a_line_that_fails_is_opened_anew(start: Start, line: GatewayLine) -> None:
    gateway = start(await line.bind(None), SoreRoster(8))
    line.publish([Member(InstanceId("m-0"), PoolName("m"), "tcp://a:1", "tcp://b:1")])
    await until(gateway.link, "the list is applied in the end")
    assert not gateway.line.done()
    view = line.view("gateway-1")
    assert view is not None
    await until(lambda: view.hello.version == 1, "the head is told so")


async def test_two_gateways_of_one_name_leave_each_other_their_sessions(
    start: Start, line: GatewayLine
) -> None:
    info = InstanceInfo(
        instance=InstanceId("m-0"), pool=PoolName("m"), engine="sim", llx_version="",
        vllm_version=VLLM_VERSION, model="m", num_blocks=10, block_size=16, max_model_len=100,
        max_num_seqs=4, max_num_batched_tokens=64, tensor_parallel=1, pid=1,
    )  # fmt: skip
    engine = NoEngine()
    endpoint = InstanceEndpoint(
        KEYS, "127.0.0.1", info=info, engine_ready=b"", sink=engine, allowed_calls=frozenset()
    )
    endpoint.report(Load(0, 0, 0, 10, 10, 16, 0, 0, 0, 0, 0, {}), {})  # type: ignore[arg-type]
    try:
        member = Member(InstanceId("m-0"), PoolName("m"), *endpoint.start())
        address = await line.bind(None)
        gateways = [start(address), start(address)]
        line.publish([member])
        for gateway in gateways:
            await until(lambda one=gateway: one.roster.ready(), "its session stands")
        await asyncio.sleep(0.5)  # they would dial again every 0.2 s
        assert all(gateway.roster.ready() for gateway in gateways)
        assert engine.num_dropped == 0
    finally:
        for gateway in gateways:
            await gateway.close()
        endpoint.close("test over")


async def test_the_line_carries_what_is_asked_and_answered(start: Start, line: GatewayLine) -> None:
    asked: list[Any] = []
    told: list[Any] = []
    events = SimpleNamespace(
        place=lambda gateway, ask: (
            asked.append(ask),
            line.tell(gateway, Placed(Term(1), ask.request, ask.ask, InstanceId("m-0"))),
        ),
        withdraw=lambda _, request: asked.append(request),
        forget=lambda _: None,
    )
    line.tell_placement(events)  # type: ignore[arg-type]
    gateway = start(await line.bind(None))
    pool: Any = SimpleNamespace(
        placed=lambda request, instance: told.append((request, instance)) or True,
        bypassed=lambda request: told.append((request, None)),
    )
    wanted = Wanted(PoolName("m"), RequestId("r"), ClassName("normal"), Tokens(9), time.monotonic())
    gateway.placement.ask(wanted, pool)
    assert told == [("r", None)], "there is no line yet"
    await until(lambda: line.view("gateway-1"), "it is heard")
    gateway.placement.ask(wanted, pool)
    await until(lambda: len(told) == 2, "it is answered")
    assert told[1] == ("r", "m-0")
    assert (asked[0].request, asked[0].pool, asked[0].num_tokens) == ("r", "m", 9)


async def test_a_gateway_follows_its_scheduler_to_another_address(
    start: Start, line: GatewayLine
) -> None:
    gateway = start(await line.bind(None))
    await until(lambda: list(line.present().values()) == ["gateway-1"], "its hello")
    other = GatewayLine(KEYS, Term(2))
    hearing = asyncio.create_task(other.run())
    try:
        gateway.scheduler = await other.bind(None)
        await until(lambda: list(other.present().values()) == ["gateway-1"], "its hello there")
        view = line.view("gateway-1")
        assert view is not None
        heard_at = view.heard_at
        await asyncio.sleep(0.2)
        assert view.heard_at == heard_at, "the former scheduler hears of it no more"
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        other.close()


async def test_who_is_let_in_is_heard_when_it_changes(line: GatewayLine) -> None:
    heard: list[list[ApiKeySpec]] = []
    never: Any = None
    membership = Membership(
        "g", KEYS, Generations([], never), Placement(), on_api_keys=heard.append
    )
    ada, bob = ApiKeySpec("ada", "aa"), ApiKeySpec("bob", "bb", "urgent")
    try:
        for version, keys in enumerate([None, [ada], [ada], None, [ada, bob], []], 1):
            membership.apply(Members(Term(1), version, [], api_keys=keys))
        membership.apply(Members(Term(1), 2, [], api_keys=[bob]))  # of an older version
        assert heard == [[ada], [ada, bob], []]
    finally:
        await membership.close()


async def test_a_front_end_that_does_not_open_is_given_up_and_the_head_hears_why() -> None:
    opened: list[bytes] = []

    async def refuse(ready: bytes) -> None:
        opened.append(ready)
        raise RuntimeError("no chat template")

    def pool(key: str) -> Any:
        link = SimpleNamespace(is_ready=True, engine_ready=key.encode(), member=None)
        roster = SimpleNamespace(links=lambda: [link], update=lambda: None)
        spec = SimpleNamespace(name="m", key=key)
        return SimpleNamespace(roster=roster, spec=spec, is_open=False, client=None, open=refuse)

    never: Any = None
    generations = Generations([pool("m"), pool("m~1")], never)
    membership = Membership("gateway-1", KEYS, generations, Placement())
    try:
        for each in generations.pools:
            link: Any = SimpleNamespace(member=SimpleNamespace(pool=each))
            membership.on_ready(link)
            membership.on_ready(link)
        await until(lambda: generations.unusable, "it is given up")
        assert generations.unusable == {"m~1": Unusable(0, "RuntimeError: no chat template")}
        await until(lambda: opened.count(b"m") > 3, "the current one is tried for ever")
        membership.on_ready(link)
        assert opened.count(b"m~1") == 3
    finally:
        for task in list(membership._tasks):
            task.cancel()
        for front_end in generations.pools.values():
            front_end.roster.links = list
        await membership.close()
