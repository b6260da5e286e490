"""The gateways' socket: who hears the list and when, what is believed, who is kept out."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest
import zmq
import zmq.asyncio

from llx.agent.link import peer_of_process
from llx.cluster.fleet.gateway_line import GatewayLine
from llx.core.model import ClassName, Epoch, InstanceId, Nanos, PoolName, RequestId, Term
from llx.curve import ClusterKeys, make_dialer
from llx.errors import ConflictError
from llx.wire import (
    Decoder,
    FromScheduler,
    GatewayHello,
    GatewayReport,
    Member,
    Members,
    MoveSeen,
    Place,
    Placed,
    Withdraw,
    encode,
)

KEYS = ClusterKeys.create()
ONE = [Member(InstanceId("m-0"), PoolName("m"), "tcp://a", "tcp://b")]
TWO = [*ONE, Member(InstanceId("m-1"), PoolName("m"), "tcp://c", "tcp://d")]
TERM = Term(3)


class Peer:
    """A gateway's end."""

    def __init__(
        self, address: str, name: str = "g", keys: ClusterKeys = KEYS, host: str = "h1"
    ) -> None:
        self.name, self.host = name, host
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        make_dialer(self.socket, keys)
        self.socket.setsockopt(zmq.IDENTITY, peer_of_process(name).encode())
        self.socket.connect(address)

    async def hello(self, term: int = 0, version: int = 0, pid: int = 7) -> None:
        hello = GatewayHello(self.name, "http://g", pid, self.host, Term(term), version)
        await self.socket.send(encode(hello))

    async def members(self, timeout_s: float = 20.0) -> Members:
        decoder: Decoder[FromScheduler] = Decoder(FromScheduler)
        (frame,) = await asyncio.wait_for(self.socket.recv_multipart(), timeout_s)
        return decoder.decode(frame)

    async def hears_nothing(self) -> bool:
        return await self.socket.poll(150) == 0

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
async def line() -> AsyncIterator[GatewayLine]:
    made = GatewayLine(KEYS, TERM)
    task: asyncio.Task[None] | None = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made.close()


@pytest.fixture
async def address(line: GatewayLine) -> str:
    return await line.bind(None)


@pytest.fixture
async def peer(address: str) -> AsyncIterator[Peer]:
    made = Peer(address)
    yield made
    made.close()


async def test_nothing_is_said_before_the_first_list(line: GatewayLine, peer: Peer) -> None:
    await peer.hello()
    await asyncio.wait_for(line.changed.wait(), 20)
    assert await peer.hears_nothing()
    line.publish([])
    assert await peer.members() == Members(TERM, 1, [])


async def test_a_change_reaches_who_is_there(line: GatewayLine, peer: Peer) -> None:
    line.publish(ONE)
    await peer.hello()
    assert await peer.members() == Members(TERM, 1, ONE)
    line.publish(ONE)
    assert await peer.hears_nothing()
    line.publish(TWO)
    assert await peer.members() == Members(TERM, 2, TWO)
    line.publish(TWO, {PoolName("m")})
    assert await peer.members() == Members(TERM, 3, TWO, [PoolName("m")])


async def test_what_a_gateway_saw_of_moves_is_told(line: GatewayLine, peer: Peer) -> None:
    told: list[object] = []
    line.tell_moves(told.append)
    seen = MoveSeen(
        RequestId("r"), Epoch(2), InstanceId("m-0"), InstanceId("m-1"), 9, downtime_ms=7.0,
        itl_ms=5.0,
    )  # fmt: skip
    report = GatewayReport("g", 1, 1, 0, 0, 0, 0, [])
    await peer.socket.send(encode(msgspec.structs.replace(report, moves=[seen])))
    await peer.hello()
    await peer.socket.send(encode(report))
    await peer.socket.send(encode(msgspec.structs.replace(report, moves=[seen])))
    async with asyncio.timeout(20):
        while not told:
            await asyncio.sleep(0.01)
    assert told == [[seen]], "nothing of who has not presented itself"


@pytest.mark.parametrize(("term", "version"), [(0, 0), (2, 99), (3, 0)])
async def test_who_knows_an_older_list_gets_this_one(
    line: GatewayLine, peer: Peer, term: int, version: int
) -> None:
    line.publish(ONE)
    await peer.hello(term, version)
    assert await peer.members() == Members(TERM, 1, ONE)


async def test_who_knows_this_list_hears_nothing(line: GatewayLine, peer: Peer) -> None:
    line.publish(ONE)
    await peer.hello(3, 1)
    assert await peer.hears_nothing()


async def test_reports_are_kept_and_a_change_of_connections_wakes(
    line: GatewayLine, peer: Peer
) -> None:
    line.publish(ONE)
    await peer.hello()
    await peer.members()
    line.changed.clear()
    report = GatewayReport("g", 2, 3, 1, 0, 0, 9, [InstanceId("m-0")])
    await peer.socket.send(encode(report))
    await asyncio.wait_for(line.changed.wait(), 20)
    view = line.view("g")
    assert view is not None
    assert (view.report, view.is_silent) == (report, False)
    assert line.view("other") is None
    line.drop("g")
    assert line.view("g") is None


async def test_a_gateway_started_anew_takes_the_place_of_the_old(
    line: GatewayLine, peer: Peer, address: str
) -> None:
    line.publish(ONE)
    await peer.hello()
    await peer.members()
    again = Peer(address)
    try:
        await again.hello(pid=8)
        assert (await again.members()).members == ONE
        view = line.view("g")
        assert view is not None
        assert view.hello.pid == 8
    finally:
        again.close()


async def test_a_gateway_is_heard_on_its_host_alone(
    line: GatewayLine, peer: Peer, address: str
) -> None:
    """One that was given up with its host speaks again; another has long been put elsewhere."""
    hosts = {"g": "h1"}
    line.expect(lambda name: hosts.get(name, ""))
    line.publish(ONE)
    await peer.hello()
    await peer.members()
    hosts["g"] = "h2"
    assert line.view("g") is None
    assert line.is_known(99), "it is waited for no more"
    there, nobody = Peer(address, host="h2"), Peer(address, name="never-asked-for", host="")
    try:
        await there.hello(pid=8)
        assert (await there.members()).members == ONE
        for _ in range(3):
            await peer.hello()
            await nobody.hello()
        await peer.socket.send(encode(GatewayReport("g", 99, 99, 0, 0, 0, 0, [])))
        line.publish(TWO)
        assert (await there.members()).members == TWO
        assert await peer.hears_nothing()
        view = line.view("g")
        assert view is not None
        assert (view.hello.pid, view.report) == (8, None)
        assert line.view("never-asked-for") is None
    finally:
        there.close()
        nobody.close()


@pytest.mark.parametrize("frames", [[b""], [b"\x01garbage"], [b"\xff"], [b"x"] * 300])
async def test_garbage_harms_nothing(line: GatewayLine, peer: Peer, frames: list[bytes]) -> None:
    line.publish(ONE)
    await peer.socket.send_multipart(frames)
    await peer.hello()
    assert (await peer.members()).members == ONE


async def test_a_stranger_is_not_heard(line: GatewayLine, address: str) -> None:
    line.publish(ONE)
    ours = ClusterKeys.create()
    stranger = ClusterKeys(
        KEYS.listener_public, KEYS.listener_secret, ours.dialer_public, ours.dialer_secret
    )
    peer = Peer(address, keys=stranger)
    try:
        await peer.hello()
        assert await peer.hears_nothing()
        assert line.view("g") is None
    finally:
        peer.close()


async def test_the_former_address_is_taken_again() -> None:
    first = GatewayLine(KEYS, TERM)
    address = await first.bind(None)
    second = GatewayLine(KEYS, Term(4))
    binding = asyncio.create_task(second.bind(address))
    await asyncio.sleep(0)
    first.close()
    assert await asyncio.wait_for(binding, 5) == address
    second.close()


async def test_a_former_address_that_stays_taken_is_a_conflict() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        line = GatewayLine(KEYS, TERM, rebind_for_s=0.2)
        with pytest.raises(ConflictError, match="gateways look for the head"):
            await line.bind(f"tcp://127.0.0.1:{other.getsockname()[1]}")
        line.close()


class Asks:
    """Who places requests, and takes note."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes, str]] = []

    def place(self, gateway: bytes, ask: Place) -> None:
        self.log.append(("place", gateway, ask.request))

    def withdraw(self, gateway: bytes, request: RequestId) -> None:
        self.log.append(("withdraw", gateway, request))

    def forget(self, gateway: bytes) -> None:
        self.log.append(("forget", gateway, ""))

    async def soon(self, count: int) -> list[tuple[str, bytes, str]]:
        async with asyncio.timeout(20):
            while len(self.log) < count:
                await asyncio.sleep(0.01)
        return self.log


def place(request: str) -> Place:
    return Place(PoolName("m"), RequestId(request), 1, ClassName("normal"), 9, Nanos(0))


async def test_requests_of_known_gateways_are_placed_and_answered(
    line: GatewayLine, peer: Peer
) -> None:
    asks = Asks()
    line.tell_placement(asks)
    await peer.socket.send(encode(place("early")))
    await peer.hello()
    await peer.socket.send(encode(place("r")))
    await peer.socket.send(encode(Withdraw(RequestId("r"))))
    log = await asks.soon(2)
    assert [(what, request) for what, _, request in log] == [("place", "r"), ("withdraw", "r")]
    answer = Placed(TERM, RequestId("r"), 1, InstanceId("m-0"))
    line.tell(log[0][1], answer)
    line.tell(b"nobody", answer)
    decoder: Decoder[FromScheduler] = Decoder(FromScheduler)
    (frame,) = await asyncio.wait_for(peer.socket.recv_multipart(), 5)
    assert decoder.decode(frame) == answer


async def test_what_a_gateway_that_is_gone_wanted_is_forgotten(
    line: GatewayLine, address: str, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Asks()
    line.tell_placement(asks)
    await peer.hello()
    await peer.socket.send(encode(place("r")))
    [(_, first, _)] = await asks.soon(1)
    line.sweep()
    assert len(asks.log) == 1, "it is heard of"
    monkeypatch.setattr("llx.cluster.fleet.gateway_line._SILENT_AFTER_S", -1.0)
    line.sweep()
    line.sweep()
    assert asks.log[1:] == [("forget", first, "")], "once"
    other = Peer(address)
    try:
        await other.hello()
        log = await asks.soon(3)
        assert log[2] == ("forget", first, ""), "another process has its name"
        line.drop("g")
        assert log[3][0] == "forget"
        assert log[3][1] != first
    finally:
        other.close()


class Rings:
    """Keys that a test replaces, as a file would be."""

    def __init__(self) -> None:
        self.now: tuple[ClusterKeys, ...] = (KEYS,)

    def ring(self) -> tuple[ClusterKeys, ...]:
        return self.now


async def test_other_keys_end_the_connections_of_the_former_and_keep_the_address() -> None:
    keys, new = Rings(), ClusterKeys.create()
    line = GatewayLine(keys, TERM)
    task = asyncio.create_task(line.run())
    address = await line.bind(None)
    line.publish(ONE)
    former = Peer(address, "former")
    await former.hello()
    assert await former.members() == Members(TERM, 1, ONE)
    keys.now = (new, KEYS)
    async with asyncio.timeout(20):
        while line.listens_with != new:
            await asyncio.sleep(0.02)
    later, late = Peer(address, "later", new), Peer(address, "late")
    try:
        await later.hello()
        assert await later.members() == Members(TERM, 1, ONE)
        line.publish(TWO)
        assert await later.members() == Members(TERM, 2, TWO)
        await late.hello()
        for each in (former, late):
            with contextlib.suppress(zmq.Again):
                await each.socket.send(b"", zmq.DONTWAIT)
            assert await each.hears_nothing()
        assert line.view("late") is None
    finally:
        for each in (former, later, late):
            each.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        line.close()
