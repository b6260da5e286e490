"""Which connections the HTTP server gives up: real ones, looked at when the test says so."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn

from llx.http_server import BoundedServer

BODY = b"x" * (16 << 20)
REQUEST = b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n"
PATIENCE_S = 15.0


async def app(scope, receive, send):
    body = BODY if scope["path"] == "/much" else b"done"
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def server():
    """Started, without the clock that would have it look by itself."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_keep_alive=5)
    config.load()
    server = BoundedServer(config, head_s=PATIENCE_S - 5)
    server.lifespan = config.lifespan_class(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server.address = listener.getsockname()
    await server.startup(sockets=[listener])
    yield server
    server.force_exit = True
    await server.shutdown(sockets=[listener])


@contextlib.asynccontextmanager
async def connected(server):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, server.address)
    reader, writer = await asyncio.open_connection(sock=client, limit=1 << 16)
    async with asyncio.timeout(10):
        while not server.server_state.connections:
            await asyncio.sleep(0.001)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(reader, writer):
    writer.write(REQUEST % b"/")
    await reader.readuntil(b"done")


async def until_answered(server):
    (connection,) = server.server_state.connections
    async with asyncio.timeout(10):
        while connection.cycle is None or not connection.cycle.response_complete:
            await asyncio.sleep(0.001)
    return connection


async def test_a_connection_in_use_is_kept_though_each_look_finds_it_between_two_requests(server):
    async with connected(server) as (reader, writer):
        for now in range(60):
            await ask(reader, writer)
            server._close_idle(float(now))
        await ask(reader, writer)


@pytest.mark.parametrize("has_asked", [False, True])
async def test_a_silent_one_is_closed_when_its_time_is_over(server, has_asked):
    async with connected(server) as (reader, writer):
        if has_asked:
            await ask(reader, writer)
            await until_answered(server)
        server._close_idle(0.0)
        server._close_idle(PATIENCE_S)
        (connection,) = server.server_state.connections
        assert not connection.transport.is_closing()
        server._close_idle(PATIENCE_S + 1)
        assert await reader.read() == b""


async def test_who_takes_an_answer_slowly_gets_all_of_it(server):
    async with connected(server) as (reader, writer):
        writer.write(REQUEST % b"/much")
        connection = await until_answered(server)
        await reader.readuntil(b"\r\n\r\n")
        num_read, now = 0, 0.0
        while num_read < len(BODY):
            if connection.transport.get_write_buffer_size():
                server._close_idle(now)
                now += PATIENCE_S - 1
            num_read += len(await reader.readexactly(min(4 << 20, len(BODY) - num_read)))
        assert now > 2 * PATIENCE_S, "it was not looked at while the answer was under way"


async def test_who_takes_nothing_of_an_answer_is_given_up(server):
    async with connected(server) as (_, writer):
        writer.write(REQUEST % b"/much")
        connection = await until_answered(server)
        async with asyncio.timeout(10):
            last = None
            while last != (last := connection.transport.get_write_buffer_size()):
                await asyncio.sleep(0.1)
        for now in (0.0, PATIENCE_S + 1):
            server._close_idle(now)
        assert connection.transport.is_closing()
