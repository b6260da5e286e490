"""Faults inside a process: the edges of the real classes wrapped, to hold or lose a message there.

A *point* is an edge and a message: ``send commit`` is right before it leaves, ``receive commit``
right after it came. At an armed point the thread that is there is held until the test, which has
done its deed meanwhile, lets it go on, with the message or without. Nothing else is changed.
"""

import os
import queue
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec

from llx.agent.endpoint import InstanceEndpoint
from llx.agent.link import InstanceLink
from llx.agent.sim_kv import SimKv
from llx.agent.transport.rank import RankAgent
from llx.core import epochs
from llx.wire import Outputs, Reserved
from tests.chaos.control import Control, Message

_HELD_S = 30.0
"""A test that lets nobody go on in that time is broken."""
MOVED = "outputs-moved"
"""Outputs of who has got the request by a move."""


class Faults:
    """What is armed in this process."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._armed: dict[tuple[str, str], int] = {}
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """For who is held: whether the message goes on."""
        self.is_tcp = False
        """Whether KV comes here over TCP, and not by a unix socket and shared memory."""

    def obey(self, command: Message) -> None:
        """A command of the test."""
        match command["what"]:
            case "arm":
                with self._lock:
                    self._armed[command["edge"], command["message"]] = command["nth"]
                self._control.tell("armed")
            case "go":
                self._orders.put(not command["is_lost"])
            case "clear":
                with self._lock:
                    self._armed.clear()
                self.is_tcp = command.get("is_tcp", False)
                self._control.tell("clear")
            case "cut-kv":
                self._control.tell("kv-cut", num=_cut_kv())
            case "count":
                self._control.tell("count", **_count())

    def passes(self, edge: str, message: str) -> bool:
        """Whether a message goes on; holds it, and the thread that has it, while the test wants."""
        with self._lock:
            nth = self._armed.get((edge, message), 0)
            if nth == 0:
                return True
            if nth > 1:
                self._armed[edge, message] = nth - 1
                return True
            del self._armed[edge, message]
        self._control.tell("held", edge=edge, message=message)
        try:
            return self._orders.get(timeout=_HELD_S)
        except queue.Empty:
            os.abort()


def wrap_messages(faults: Faults) -> None:
    """Both directions of both kinds of sockets."""
    receive, send = InstanceEndpoint._receive, InstanceEndpoint._send
    link_send, link_handle = InstanceLink._send, InstanceLink._handle

    def endpoint_receives(self: Any, identity: Any, message: Any, payload: Any, now: Any) -> None:
        if faults.passes("receive", name_of(message)):
            receive(self, identity, message, payload, now)

    def endpoint_sends(self: Any, item: Any) -> None:
        message = item.message
        if faults.is_tcp and isinstance(message, Reserved):
            routes = [msgspec.structs.replace(each, host_id="elsewhere") for each in message.routes]
            item = type(item)(
                item.peer, msgspec.structs.replace(message, routes=routes), item.payload
            )
        if faults.passes("send", name_of(message)):
            send(self, item)

    def link_sends(self: Any, message: Any, payload: Any = ()) -> None:
        if faults.passes("send", name_of(message)):
            link_send(self, message, payload)

    def link_handles(self: Any, message: Any, payload: Any) -> None:
        if faults.passes("receive", name_of(message)):
            link_handle(self, message, payload)

    InstanceEndpoint._receive = endpoint_receives  # type: ignore[method-assign]
    InstanceEndpoint._send = endpoint_sends  # type: ignore[method-assign]
    InstanceLink._send = link_sends  # type: ignore[method-assign]
    InstanceLink._handle = link_handles  # type: ignore[method-assign]


def wrap_copies(faults: Faults) -> None:
    """A stage that is about to be copied, and each chunk of it at either end."""
    send, pack, unpack = RankAgent.send, SimKv.pack, SimKv.unpack

    def sends(self: Any, *arguments: Any, **named: Any) -> None:
        faults.passes("send", "kv-last" if named["state_of"] is not None else "kv")
        send(self, *arguments, **named)

    def packs(self: Any, blocks: Any, out: Any) -> None:
        faults.passes("pack", "kv")
        pack(self, blocks, out)

    def unpacks(self: Any, blocks: Any, data: Any) -> None:
        faults.passes("unpack", "kv")
        unpack(self, blocks, data)

    RankAgent.send = sends  # type: ignore[method-assign]
    SimKv.pack = packs  # type: ignore[method-assign]
    SimKv.unpack = unpacks  # type: ignore[method-assign]


def name_of(message: Any) -> str:
    """A message's name at a point: its tag; outputs after a move have one of their own."""
    if isinstance(message, Outputs) and any(epoch != epochs.FIRST for epoch, _ in message.owners):
        return MOVED
    return str(message.__struct_config__.tag)


def _cut_kv() -> int:
    """Shut down every connection of this process to a KV listener; returns how many."""
    num_cut = 0
    for name in _fds():
        if _kind(name) != "socket":
            continue
        with socket.socket(fileno=os.dup(int(name))) as duplicate:
            if _is_kv(duplicate):
                duplicate.shutdown(socket.SHUT_RDWR)
                num_cut += 1
    return num_cut


def _is_kv(connection: socket.socket) -> bool:
    """KV sockets are the only blocking ones with the kernel's own send timeout, and named unix."""
    try:
        peer = connection.getpeername()
        has_timeout = any(connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
    except OSError:
        return False
    return has_timeout or (isinstance(peer, bytes) and peer.startswith(b"\0llx-kv"))


def _count() -> Message:
    """What a process must not gather."""
    return {
        "threads": sorted(each.name for each in threading.enumerate()),
        "fds": sorted(_kind(name) for name in _fds()),
    }


def _fds() -> list[str]:
    return [each.name for each in Path("/proc/self/fd").iterdir()]


def _kind(fd: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()).partition(":")[0]
    except OSError:
        return "the listing itself"
