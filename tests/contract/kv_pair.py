"""A source and a target of the rig, and the fixtures that make them."""

from functools import partial

import pytest

from llx.core.model import MigrationId
from tests.contract.kv_gpus import FakeDevice, Gpus
from tests.contract.kv_rig import BLOCK_BYTES, Answer, End, end_here, wait_until

TOKEN = b"0123456789abcdef"
M = MigrationId("m-1")
GPU_MEDIA = ("cuda-ipc", "nccl")
SOON_S = 20.0
"""Less than whatever else would end it: a join (`Gpus`), or silence (`sockets.SILENCE_S`)."""
"""By when a death is noticed on a busy machine; it takes milliseconds."""


class Pair:
    """A source and a target, which can swap roles."""

    def __init__(self, kind: str, source: End, target: End) -> None:
        self.kind, self.source, self.target = kind, source, target
        for number, end in enumerate((source, target)):
            for rank, store in enumerate(end.stores):
                store.fill(10 * number + rank)
        self.before = [bytes(store.data) for store in target.stores]

    def begin(self, blocks, migration=M, *, is_checked=False, token=TOKEN) -> None:
        self.target.transport.expect(migration, TOKEN, blocks)
        routes = self.target.routes(self.kind)
        self.source.transport.open(migration, routes, token, is_checked=is_checked)

    def send(self, stage, source=(), target=(), migration=M, state_of=None) -> Answer:
        answer = Answer()
        self.source.transport.send(
            migration, stage, list(source), list(target), state_of=state_of, done=answer
        )
        return answer

    def size(self, num_blocks: int) -> int:
        return num_blocks * BLOCK_BYTES * len(self.source.stores)

    def assert_copied(self, pairs) -> None:
        """Block by block, and nothing else at the target has changed."""
        pairs = list(pairs)
        for source, target, before in zip(
            self.source.stores, self.target.stores, self.before, strict=True
        ):
            wanted = bytearray(before)
            for a, b in pairs:
                wanted[b * BLOCK_BYTES : (b + 1) * BLOCK_BYTES] = source.of(a)
            assert bytes(target.data) == wanted


def near_pair(kind: str, here, gpus: Gpus, **options) -> Pair:
    """A pair in this process; with GPUs if its medium wants some."""
    if kind in GPU_MEDIA:
        options["device_of"] = partial(FakeDevice, gpus)
    return Pair(kind, here(**options), here(**options))


@pytest.fixture
def gpus():
    """What fakes of GPUs share; afterwards none is left open, and none was misused."""
    gpus = Gpus()
    yield gpus
    assert gpus.violations == []


@pytest.fixture
def here(gpus: Gpus):
    """Makes ends in this process; afterwards none is left."""
    ends: list[End] = []

    def make(**options) -> End:
        ends.append(end_here(**options))
        return ends[-1]

    yield make
    for end in ends:
        end.transport.stop()
    wait_until(lambda: gpus.open_ends == gpus.open_peers == 0)
