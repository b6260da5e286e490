"""TCP connections that can be cut: a forwarder in front of a process's port."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_CALL_S = 60.0
_CHUNK_BYTES = 1 << 16


class Switchboard:
    """An event loop on a thread, for all forwarders of a test run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="switchboard")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait for what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_S)

    def close(self) -> None:
        """End the thread, once all forwarders are closed."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()


class Forwarder:
    """Listens on a port of its own, and connects every caller to ``tcp://host:port``."""

    def __init__(self, switchboard: Switchboard, address: str) -> None:
        self._switchboard = switchboard
        self._host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._port = int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        """What to dial instead."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._is_closed = False
        switchboard.run(self._serve())

    def cut(self) -> None:
        """Break all connections, at once and for both ends; who dials again gets a new one."""
        self._switchboard.run(self._cut())

    def close(self) -> None:
        """Break all connections and listen no more."""
        self._switchboard.run(self._close())

    async def _serve(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return  # whoever it was is gone again
        call = asyncio.get_running_loop().create_task(self._connect(near))
        self._calls.add(call)  # the loop's own references are weak
        call.add_done_callback(self._calls.discard)

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        """Nothing is cancelled, lest a connection be lost that has just been made."""
        self._is_closed = True
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await self._cut()
        await asyncio.gather(*self._calls)

    async def _connect(self, near: socket.socket) -> None:
        ends: list[asyncio.StreamWriter] = []
        try:
            near_reader, near_writer = await asyncio.open_connection(sock=near)
            ends.append(near_writer)
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            ends.append(far_writer)
            self._writers.update(ends)
            if self._is_closed:
                return
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(near_reader, far_writer))
                pumps.create_task(_pump(far_reader, near_writer))
        except OSError:
            return  # nobody listens there
        except ExceptionGroup as broken:
            if broken.split(_Over)[1] is not None:
                raise
        finally:
            self._writers.difference_update(ends)
            for each in ends:
                each.transport.abort()


class _Over(Exception):
    """One direction of a connection has ended: it is over in both."""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    raise _Over
