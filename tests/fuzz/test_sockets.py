"""Connections that are oversized, slow, half-open or nonsense, to every socket of a head."""

import asyncio
import contextlib
import socket
import time

import httpx
import msgspec
import pytest
import uvicorn
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from llx import wire
from llx.cluster.fleet.gateway_line import GatewayLine
from llx.core.model import InstanceId, PoolName, Term
from llx.curve import ClusterKeys, make_dialer
from llx.http_server import BoundedServer
from llx.wire import GatewayHello, Member

NOISE = {
    "nothing": b"",
    "a byte": b"G",
    "half a head": b"GET /v1/status HTTP/1.1\r\nhost: x\r\n",
    "binary": bytes(range(256)) * 64,
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "an endless head": b"GET / HTTP/1.1\r\nx: " + b"a" * (1 << 20),
    "a huge length": b"POST /v1/stop HTTP/1.1\r\ncontent-length: 99999999999999\r\n\r\n{",
    "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    "a bad chunk": b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "zeromq": b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE" + bytes(43),
    "zeromq, then a huge frame": b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + b"\x02" + b"\xff" * 60,
}


def connect(stack: contextlib.ExitStack, address: tuple[str, int], data: bytes) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(address, 5))
    with contextlib.suppress(OSError):  # it may be refused before all of it is sent
        connection.settimeout(2)
        connection.sendall(data)
    return connection


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("://")[2].partition(":")
    return host, int(port)


@pytest.mark.parametrize("what", NOISE)
def test_a_control_api_goes_on_beside(control, what: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):  # held open, half of them with the sending end shut
            connect(stack, address_of(control.url), NOISE[what])
            half = connect(stack, address_of(control.url), NOISE[what])
            with contextlib.suppress(OSError):
                half.shutdown(socket.SHUT_WR)
        assert control.status().cluster == "c"


@pytest.mark.slow
async def test_who_does_not_come_to_the_point_loses_his_place() -> None:
    """As many silent and dribbling connections as there are places, and one who wants to be served.

    One that is being answered for as long is not touched.
    """
    server, listener, url = server_of(slow_app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        await until(lambda: server.started)
        long_answer = asyncio.create_task(client.get("/slow"))
        await until(lambda: server.server_state.tasks)
        with contextlib.ExitStack() as stack:
            held = [connect(stack, address_of(url), b"GE") for _ in range(PLACES)]
            assert (await client.get("/", headers={"connection": "close"})).status_code == 503
            until_s = time.monotonic() + 60
            while (await client.get("/", headers={"connection": "close"})).status_code == 503:
                assert time.monotonic() < until_s, "the places are taken for ever"
                with contextlib.suppress(OSError):
                    for each in held:
                        each.send(b"T")
                await asyncio.sleep(0.1)
        assert (await long_answer).text == "done"
    server.should_exit = True
    await serving


PLACES = 6


async def slow_app(scope, receive, send) -> None:
    await asyncio.sleep(8 if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def server_of(app) -> tuple[BoundedServer, socket.socket, str]:
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, limit_concurrency=PLACES,
        timeout_keep_alive=1,
    )  # fmt: skip
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    return BoundedServer(config, head_s=3.0), listener, url


async def until(check) -> None:
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------------- the gateways' line

KEYS = ClusterKeys.create()
ids = st.text(max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1)
anything = st.recursive(
    st.none() | st.booleans() | numbers | ids | st.binary(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(ids, inner, max_size=3),
    max_leaves=20,
)
frames = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.builds(
            wire.encode, st.builds(wire.GatewayHello, ids, ids, numbers, ids, numbers, numbers)
        ),
        st.builds(wire.encode, st.builds(wire.GatewayReport, ids, *[numbers] * 6, st.lists(ids))),
        st.builds(
            lambda tag, rest: bytes([wire.WIRE_VERSION]) + wire_array(tag, rest),
            st.sampled_from(["gateway-hello", "gateway-report", "place", "withdraw", "changed"]),
            st.lists(anything, max_size=10),
        ),
    ),
    max_size=4,
)  # fmt: skip


def wire_array(tag: str, rest: list) -> bytes:
    return msgspec.msgpack.encode([tag, *rest])


@given(messages=st.lists(frames, min_size=1, max_size=8))
def test_a_line_survives_whatever_a_gateway_with_keys_says(messages) -> None:
    asyncio.run(bother_line(messages))


async def bother_line(messages) -> None:
    line = GatewayLine(KEYS, Term(1))
    address = await line.bind(None)
    running = asyncio.create_task(line.run())
    context = zmq.asyncio.Context()
    try:
        line.publish([Member(InstanceId("m-0"), PoolName("m"), "tcp://a", "tcp://b")])
        mad, sane = (context.socket(zmq.DEALER) for _ in range(2))
        for each in (mad, sane):
            make_dialer(each, KEYS)
            each.connect(address)
        for message in messages:
            await mad.send_multipart(message or [b""])
        await mad.send(wire.encode(GatewayHello("mad", "u", 1, "h", Term(0), 0)))
        await sane.send(wire.encode(GatewayHello("sane", "u", 1, "h", Term(0), 0)))
        async with asyncio.timeout(10):
            await sane.recv()
            await mad.recv()
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        line.close()
        context.destroy(linger=0)


@pytest.mark.parametrize("what", NOISE)
async def test_a_line_serves_beside_strangers(what: str) -> None:
    line = GatewayLine(KEYS, Term(1))
    address = await line.bind(None)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            connect(stack, address_of(address), NOISE[what])
        running = asyncio.create_task(line.run())
        line.publish([])
        context = zmq.asyncio.Context()
        sane = context.socket(zmq.DEALER)
        make_dialer(sane, KEYS)
        sane.connect(address)
        await sane.send(wire.encode(GatewayHello("sane", "u", 1, "h", Term(0), 0)))
        async with asyncio.timeout(10):
            await sane.recv()
        running.cancel()
        context.destroy(linger=0)
    line.close()
