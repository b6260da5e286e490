"""Protocols with two implementations each: the seams of the house."""

from collections.abc import Sequence
from typing import Protocol

from llx.core.model import Epoch, RequestId
from llx.wire import Add, Call

Frame = bytes | memoryview


class EngineSink(Protocol):
    """The engine behind an instance's endpoint: vLLM's engine core, or the simulated one.

    Called on the endpoint's input thread; an implementation hands over to its own core thread.
    `peer` is an index that stands for one session of one peer and is never reused.
    """

    def add(self, peer: int, header: Add, payload: Sequence[Frame]) -> None:
        """A new request, in the engine's own encoding."""

    def abort(self, peer: int, requests: list[tuple[RequestId, Epoch]]) -> None:
        """End requests, each only if held at that epoch or an earlier one."""

    def call(self, peer: int, header: Call, payload: Sequence[Frame]) -> None:
        """A utility call whose name is on the allow-list; answered by a `Reply`."""

    def drop_peer(self, peer: int) -> None:
        """The session is over: abort everything it left behind."""
