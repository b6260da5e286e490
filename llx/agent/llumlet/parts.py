"""What both ends of a migration work with, and how work comes back to the llumlet's loop."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llx.agent.endpoint import InstanceEndpoint
from llx.core.model import InstanceId
from llx.ports import EngineSink, KvTransport, MigratingEngine
from llx.specs import MigrationSpec

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine is, as far as migrations care.

    Attributes:
        instance: Its name.
        compatibility: Equal at both ends of a migration, or it is refused.
        block_size: Tokens per block.
        max_model_len: No request is longer.
    """

    instance: InstanceId
    compatibility: str
    block_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything around the machines. Used on the loop's thread alone, but for `post`."""

    loop: asyncio.AbstractEventLoop
    facts: EngineFacts
    spec: MigrationSpec
    engine: MigratingEngine
    sink: EngineSink
    transport: KvTransport
    endpoint: InstanceEndpoint

    def post(self, action: Callable[..., None], *arguments: Any) -> None:
        """From any thread: run `action` on the loop."""
        try:
            self.loop.call_soon_threadsafe(action, *arguments)
        except RuntimeError:
            log.debug("llumlet.closed")  # the instance is ending

    def ask(self, question: Callable[[], T], answer: Callable[[T], None]) -> None:
        """Run `question` on the engine's core thread and `answer` with its result on the loop."""

        def on_core() -> None:
            self.post(answer, question())

        self.engine.on_core(on_core)


class Deadline:
    """One timer, set and set again.

    What it is to do it is told each time and knows no longer than that: were it to keep an action
    of its owner's, each migration that is over would wait for a full garbage collection, which
    comes after thousands of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def set(self, after_s: float | None, action: Callable[[], None]) -> None:
        """Run the action after so long, and not what was said before; None: nothing at all."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None if after_s is None else self._loop.call_later(after_s, action)
