"""Requests that only pretend, in a file, and their moves: gone from here, and nowhere else.

The file is a list of maps: fields of `llx.wire.RequestView`, as far as they matter, and ``ends``:
how a move of it ends (moved, kept, gone, silent; a list: one after the other, the last from then
on), ``takes_s``: after how long.
"""

import json
import queue
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from llx.core.model import Epoch, Nanos
from llx.wire import (
    Call,
    CancelMigration,
    Load,
    MigrateOrder,
    MigrationNews,
    Reply,
    RequestView,
    oldest_of,
)

FIELDS = {field.name for field in msgspec.structs.fields(RequestView)}
DEFAULTS = {
    "name": "", "peer": 1, "priority": 10, "state": "running", "num_prompt": 20, "num_tokens": 32,
    "num_blocks": 2, "size_bytes": 8192, "arrival": 1.0,
}  # fmt: skip


PINNED = [{"id": f"busy-{number}", "pinned": "by hand"} for number in range(3)]
"""What one has that a file ``busy`` makes so: as many as its load report says."""


class FakeEngine:
    """Engine sink and llumlet in one. Messages are worked off by `work`, on the main thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.emit: Callable = lambda *_: None
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.moves: list = []

    def add(self, *_: object) -> None: ...
    def abort(self, *_: object) -> None: ...
    def drop_peer(self, *_: object) -> None: ...

    def call(self, peer: int, message: Call, payload: list) -> None:
        views = [
            {**DEFAULTS, **{key: value for key, value in each.items() if key in FIELDS}}
            for each in self.requests()
        ]
        result: object = views
        if message.method == "llx_oldest_requests":
            (count,) = msgspec.msgpack.decode(payload[0])
            result = oldest_of(msgspec.convert(views, list[RequestView]), count)
        self.emit(peer, Reply(message.call), lambda: [msgspec.msgpack.encode(result)])

    def receive(self, peer: int, message: object, _payload: object) -> None:
        self.inbox.put((peer, message))

    # ------------------------------------------------------------------ main thread

    def requests(self) -> list[dict]:
        try:
            return json.loads(self.path.read_text())
        except json.JSONDecodeError:  # perhaps just being written
            return []
        except FileNotFoundError:
            return PINNED if Path("busy").exists() else []

    def load(self) -> Load | None:
        if not self.path.exists():
            return None
        found = self.requests()
        blocks = sum(each.get("num_blocks", 2) for each in found)
        return Load(
            0, 0, Nanos(1), 100, 100 - blocks, 16, len(found), 0, 0, 0, 0, {10: (len(found), 0, 0)}
        )

    def work(self) -> None:
        while not self.inbox.empty():
            peer, message = self.inbox.get()
            if isinstance(message, MigrateOrder):
                self.begin(peer, message)
            elif isinstance(message, CancelMigration):
                self.end(message.migration, "kept", "cancelled")
        for at, _, order, ends in list(self.moves):
            if time.monotonic() >= at and ends != "silent":
                self.end(order.migration, ends, "the target is full" if ends == "kept" else "")

    def begin(self, peer: int, order: MigrateOrder) -> None:
        print(f"order {order.migration} {order.request} to {order.target.instance}", flush=True)
        found = next((each for each in self.requests() if each["id"] == order.request), None)
        if found is None:
            self.tell(peer, order, "over", is_over=True, outcome="gone", reason="it has ended")
            return
        ends = found.get("ends", "moved")
        if isinstance(ends, list):
            ends, rest = ends[0], ends[1:] or ends
            self.rewrite(lambda each: {**each, "ends": rest} if each["id"] == found["id"] else each)
        self.moves.append((time.monotonic() + found.get("takes_s", 0.05), peer, order, ends))
        self.tell(peer, order, "copying", stage=1)

    def end(self, migration: str, outcome: str, reason: str) -> None:
        move = next((each for each in self.moves if each[2].migration == migration), None)
        if move is None:
            return
        self.moves.remove(move)
        _, peer, order, _ = move
        if outcome != "kept":
            self.rewrite(lambda each: None if each["id"] == order.request else each)
        self.tell(peer, order, "over", stage=2, is_over=True, outcome=outcome, reason=reason)

    def tell(self, peer: int, order: MigrateOrder, state: str, **more: object) -> None:
        self.emit(peer, MigrationNews(
            order.migration, order.request, "", order.target.instance, state, Epoch(0),
            blocks_copied=2, size_bytes=8192, rate=1e6, elapsed_ms=50.0,
            transport="shm", transport_why="nccl: no GPU", **more,
        ))  # fmt: skip

    def rewrite(self, change: Callable) -> None:
        changed = [change(each) for each in self.requests()]
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps([each for each in changed if each is not None]))
        new.replace(self.path)
