"""Giving the other hosts a copy of what the head must remember, lest it be lost with its host.

Level-triggered, a look per round: whoever has not the newest copy is given it. A host that is away
has what it had; `llx up --head` takes the newest that it finds.
"""

import asyncio
from pathlib import Path

from llx.cluster.driving.actions import Actions
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.host_unit import HostUnit
from llx.errors import LlxError
from llx.head_copy import STATE_FILES, HeadCopy
from llx.log import get_log

log = get_log(__name__)

_AGAIN_S = 3.0

_Stamp = tuple[tuple[int, int] | None, ...]


class Copies:
    """Copies files of the head's state directory.

    Args:
        fleet: Its hosts get them, but for the head's own.
        actions: Owns what is under way.
        directory: The head's.
    """

    def __init__(self, fleet: Fleet, actions: Actions, directory: Path) -> None:
        self._fleet = fleet
        self._actions = actions
        self._paths = [directory / name for name in STATE_FILES]
        self._stamp: _Stamp | None = None
        self._newest = HeadCopy(fleet.term, 0, {})
        self._given: dict[str, int] = {}
        self._giving: set[str] = set()

    async def look(self) -> None:
        """Give the newest copy to whoever answers and has it not."""
        head = self._fleet.settings.head_host
        if head is None:
            return
        stamp = tuple(_stamp(path) for path in self._paths)
        if stamp != self._stamp:
            files = await asyncio.to_thread(_read, self._paths)
            self._stamp = stamp
            if files != self._newest.files:
                self._newest = HeadCopy(self._fleet.term, self._newest.number + 1, files)
        for host in self._fleet.hosts.values():
            if not host.answers:
                self._given.pop(host.name, None)  # it may come back with another disk
            elif self._is_due(host, head.name):
                self._giving.add(host.name)
                self._actions.own(self._give(host, self._newest), f"copy-{host.name}")

    def _is_due(self, host: HostUnit, head: str) -> bool:
        is_others = host.name != head and not host.is_leaving and host.name not in self._giving
        return is_others and self._given.get(host.name) != self._newest.number

    async def _give(self, host: HostUnit, copy: HeadCopy) -> None:
        try:
            await host.agent.keep_copy(copy)
        except LlxError as error:
            log.warning("copy.not_given", host=host.name, error=error.message)
            await asyncio.sleep(_AGAIN_S)
        else:
            self._given[host.name] = copy.number
        finally:
            self._giving.discard(host.name)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read(paths: list[Path]) -> dict[str, str]:
    files = {}
    for path in paths:
        try:
            files[path.name] = path.read_text()
        except FileNotFoundError:
            continue
    return files
