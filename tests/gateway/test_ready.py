"""When a gateway says that it is ready: a client that reads it may dial at once."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn

from llx.gateway.main import announce
from llx.http_server import BoundedServer
from llx.specs import Phase, ProcessStatus, StatusFile, load_spec

URL = "http://127.0.0.1:8000"


async def app(_scope, _receive, _send):
    """Is never asked."""


@pytest.fixture
def listener():
    """Bound, as the port of a gateway that is about to start: connections are refused."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found


@pytest.fixture
async def server(listener):
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
    config.load()
    server = BoundedServer(config)
    server.lifespan = config.lifespan_class(config)
    yield server
    await server.shutdown(sockets=[listener])


@pytest.fixture
def said(tmp_path):
    """What the gateway's status file says."""
    path = tmp_path / "status.json"
    StatusFile(path).write(Phase.LOADING)
    return lambda: load_spec(path, ProcessStatus)


async def announced(server, tmp_path):
    """As the gateway's task has it: with a turn of the loop to come to its first await."""
    task = asyncio.create_task(announce(server, StatusFile(tmp_path / "status.json"), URL))
    await asyncio.sleep(0)
    return task


async def test_it_is_ready_when_it_takes_connections_and_not_before(
    server, listener, said, tmp_path
):
    task = await announced(server, tmp_path)
    with contextlib.closing(socket.socket()) as client, pytest.raises(ConnectionRefusedError):
        client.connect(listener.getsockname())
    assert said().phase is Phase.LOADING
    await server.startup(sockets=[listener])
    await task
    assert (said().phase, said().addresses) == (Phase.READY, [URL])
    socket.create_connection(listener.getsockname()).close()


async def test_one_that_was_told_to_end_before_it_listened_is_not_ready(
    server, listener, said, tmp_path
):
    task = await announced(server, tmp_path)
    server.should_exit = True
    await server.startup(sockets=[listener])
    await task
    assert said().phase is Phase.LOADING
