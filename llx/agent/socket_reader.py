"""Reading ZMQ sockets on an event loop, for who gets thousands of messages a second.

`zmq.asyncio` makes a future, and gives its task a turn, for each message; here a message costs its
reading. The price: nobody else may await what comes on that socket.

`read_all` reads one socket as soon as there is something; a `Conversation` is for one that is also
written to. A `SocketReader` is for who has a
thousand of them, each with a few messages a second: for these it is the waking up that costs.
"""

import asyncio
import select
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Never

import zmq
import zmq.asyncio

_AT_A_TIME: Final = 64
"""Messages of a socket, then everybody else has a turn."""
_AT_A_LOOK: Final = 512
"""Messages of all sockets of a `SocketReader`, about: likewise."""
_PAUSE_EACH_S: Final = 20e-6
_LONGEST_PAUSE_S: Final = 0.005
"""Who wakes up finds its caches cold: that costs as much as reading ten messages."""

Take = Callable[[list[bytes]], None]
ReadSocket = Callable[[zmq.asyncio.Socket, Take], Awaitable[Never]]
"""`read_all`, that of this module or of a `SocketReader`."""


async def read_all(socket: zmq.asyncio.Socket, take: Take) -> Never:
    """Give each message to `take`, until cancelled. Nobody writes to that socket.

    Raises:
        Exception: What `take` has raised, or the socket. Nothing is read any more then.
    """
    await Conversation(socket).read_all(take)


class Conversation:
    """One socket that is read and written by an event loop.

    Its descriptor tells of news once, and whatever is done with the socket may take that notice
    away: so after each of it there is a look.
    """

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Socket.shadow(socket)
        self._read: Callable[[], None] | None = None
        self._is_due = False
        """Whether there is going to be a look."""

    def send(self, *frames: bytes) -> bool:
        """Whether it took the message; it never waits."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return False
        finally:
            self.look_soon()
        return True

    def look_soon(self) -> None:
        """Something was done with the socket past this: read what there is, on the next turn."""
        if self._read is not None and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._read)

    async def read_all(self, take: Take) -> Never:
        """Give each message to `take`, until cancelled.

        Raises:
            Exception: What `take` has raised, or the socket. Nothing is read any more then.
        """
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[Never] = loop.create_future()
        fd: int = self._socket.fileno()

        def read() -> None:
            if failed.done():
                return
            self._is_due = True  # for what `take` sends: it is read on until nothing is left
            try:
                is_empty = _read_some(self._socket, take)
            except Exception as error:  # noqa: BLE001 - raised in the task, which awaits it
                failed.set_exception(error)
                return
            self._is_due = not is_empty
            if not is_empty:
                loop.call_soon(read)  # the descriptor tells of news once, and there may be more

        loop.add_reader(fd, read)
        self._read, self._is_due = read, False
        try:
            read()  # what has come before
            await failed
            raise AssertionError("it only fails")
        finally:
            self._read = None
            failed.cancel()
            loop.remove_reader(fd)


def _read_some(socket: "zmq.Socket[bytes]", take: Take) -> bool:
    """Whether nothing is left."""
    try:
        for _ in range(_AT_A_TIME):
            take(socket.recv_multipart(zmq.DONTWAIT))
    except zmq.Again:
        return True
    return False


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    socket: "zmq.Socket[bytes]"
    take: Take
    failed: "asyncio.Future[Never]"


class SocketReader:
    """Reads many sockets of one event loop together.

        message ─► look ─┬─ pause ─► look ─┬─ pause ─► look: nothing ─► wait for a message
                  at once│          all that│
                         └─ take            └─ take, of whichever sockets

    What comes when all was quiet is read at once. For a pause after that nobody is looked at, and
    what has come meanwhile is read together. So a thousand reports in a fifth of a second wake the
    loop forty times and not a thousand; none of them waits longer than the pause, which is the
    longer the more sockets there are, up to 5 ms. Of more than some hundreds of messages, and more
    than one of each socket, the rest waits for the next look, a pause later.

    All descriptors are in one `epoll`, which is the only one that the loop knows.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readings: dict[int, _Reading] = {}
        self._unread: set[int] = set()
        """Not read to their end; their descriptors need not tell of what is there."""
        self._is_waiting = False
        self._next_look: asyncio.TimerHandle | None = None

    async def read_all(self, socket: zmq.asyncio.Socket, take: Take) -> Never:
        """Give each message to `take`, until cancelled.

        Raises:
            Exception: What `take` has raised, or the socket. Nothing is read any more then.
        """
        loop = asyncio.get_running_loop()
        plain: zmq.Socket[bytes] = zmq.Socket.shadow(socket)
        failed: asyncio.Future[Never] = loop.create_future()
        fd: int = plain.fileno()
        loop.remove_reader(fd)  # the asynchronous socket's own
        self._readings[fd] = _Reading(plain, take, failed)
        self._epoll.register(fd, select.EPOLLIN)
        self._unread.add(fd)  # what has come before
        if self._next_look is None:
            self._look()
        try:
            await failed
            raise AssertionError("it only fails")
        finally:
            failed.cancel()
            self._forget(fd)

    def close(self) -> None:
        """Nobody reads any more, nor will."""
        assert not self._readings, "somebody reads"
        self._rest()
        self._epoll.close()

    def _forget(self, fd: int) -> None:
        self._unread.discard(fd)
        if self._readings.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        if not self._readings:
            self._rest()

    def _rest(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if self._is_waiting:
            self._is_waiting = False
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())

    def _pause_s(self) -> float:
        return min(_LONGEST_PAUSE_S, _PAUSE_EACH_S * len(self._readings))

    def _look(self) -> None:
        """Read what there is; look again after a pause, or when something comes."""
        loop = asyncio.get_running_loop()
        self._rest()
        is_quiet = False
        try:
            told = self._epoll.poll(0, max(1, len(self._readings)))
            self._unread.update(fd for fd, _ in told)
            is_quiet = not self._unread
            self._read()
        finally:  # whatever was raised: nobody else would look again
            if is_quiet:
                self._is_waiting = True
                loop.add_reader(self._epoll.fileno(), self._look)
            else:
                self._next_look = loop.call_later(self._pause_s(), self._look)

    def _read(self) -> None:
        """Read of each that is unread a message, and another one, until enough is read."""
        left = {fd: self._readings[fd] for fd in self._unread}
        num_read = 0
        for _ in range(_AT_A_TIME):
            if not left or num_read >= _AT_A_LOOK:
                break
            num_read += len(left)
            left = _read_one_each(left)
            self._unread = set(left)


def _read_one_each(readings: dict[int, _Reading]) -> dict[int, _Reading]:
    """Those of them where there may be more.

    Asked together that takes a fifth of the time of an attempt at each, which raises.
    """
    whole = {fd: each for fd, each in readings.items() if _is_read(each)}
    try:
        more = zmq.zmq_poll([(each.socket, zmq.POLLIN) for each in whole.values()], 0)
    except zmq.ZMQError as error:
        for each in whole.values():
            _fail(each, error)
        return {}
    sockets = {id(socket) for socket, _ in more}
    return {fd: each for fd, each in whole.items() if id(each.socket) in sockets}


def _is_read(reading: _Reading) -> bool:
    """Read a message, if there is one; whether there may be another."""
    if reading.failed.done():
        return False
    try:
        frames = reading.socket.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return False  # its descriptor told of something else
    except zmq.ZMQError as error:
        _fail(reading, error)
        return False
    try:
        reading.take(frames)
    except Exception as error:  # noqa: BLE001 - raised in the task, which awaits it
        _fail(reading, error)
    return not reading.failed.done()


def _fail(reading: _Reading, error: Exception) -> None:
    if not reading.failed.done():
        reading.failed.set_exception(error)
