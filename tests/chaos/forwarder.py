"""TCP connections that can be cut: a forwarder in front of a process's port."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

_CALL_S = 10.0
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
        """Cancel everything and end the thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Forwarder:
    """Listens on a port of its own, and connects every caller to ``tcp://host:port``."""

    def __init__(self, switchboard: Switchboard, address: str) -> None:
        self._switchboard = switchboard
        self._host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = switchboard.run(asyncio.start_server(self._join, "127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        """What to dial instead."""

    def cut(self) -> None:
        """Break all connections, at once and for both ends; who dials again gets a new one."""
        self._switchboard.run(self._cut())

    def close(self) -> None:
        """Break all connections and listen no more."""
        self._switchboard.run(self._close())

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._cut()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)  # the loop's own references are weak
        self._writers.add(writer)
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            ends.append(far_writer)
            self._writers.add(far_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, far_writer))
                pumps.create_task(_pump(far_reader, writer))
        except OSError:
            return  # nobody listens there
        except ExceptionGroup as broken:
            if broken.split(_Over)[1] is not None:
                raise
        finally:
            self._writers.difference_update(ends)
            self._tasks.discard(task)
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
