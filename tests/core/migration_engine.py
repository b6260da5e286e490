"""A tiny engine whose requests can leave and arrive: `llx.ports.MigratingEngine`, on one list.

The KV of a position is a hash of its token and of all KV before it, *as it lies in the blocks*;
the next token is made from that. So a block that was not copied, was copied too early, or was
written by somebody else gives other tokens. Steps take time: a request is cut only when none of it
is in flight.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from llx.core.migration import Begun, Cut, Progress, Reservation
from llx.core.model import Epoch, blocks_for

VOCABULARY = 997
CHUNK = 4
"""Prompt tokens per step."""


class Is(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    CUT = "cut"


@dataclass(slots=True)
class Held:
    prompt: tuple[int, ...]
    max_tokens: int
    peer: int
    epoch: Epoch
    outputs: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    state: Is = Is.WAITING
    is_watched: bool = False
    when_cut: Callable[[Cut | None], None] | None = None

    @property
    def tokens(self):
        return [*self.prompt, *self.outputs]


@dataclass(slots=True)
class Shadow:
    request: str
    prompt: tuple[int, ...]
    max_tokens: int
    num_tokens: int
    blocks: list[int]
    num_reused: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    request: str
    peer: int
    epoch: Epoch
    offset: int
    token: int
    is_last: bool


def kv_of(before, token):
    return hash((tuple(before), token))


def reference(prompt, max_tokens):
    """What an engine makes of it that is left alone."""
    kv, tokens = [], list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        while len(kv) < len(tokens):
            kv.append(kv_of(kv, tokens[len(kv)]))
        tokens.append(kv[-1] % VOCABULARY)
    return tokens[len(prompt) :]


class Engine:
    """`step_begins` and `step_ends` alternate; everything else happens between two events."""

    def __init__(self, num_blocks, block_size, tell):
        self.block_size = block_size
        self.cached_tokens = 0
        """So much of every prompt is in the prefix cache, in whole blocks."""
        self.num_blocks = num_blocks
        self.memory = [[None] * block_size for _ in range(num_blocks)]
        self.free = list(range(num_blocks))
        self.held: dict[str, Held] = {}
        self.shadows: dict[str, Shadow] = {}
        self._in_flight: list[Held] = []
        self._tell = tell

    @property
    def has_work(self):
        return any(held.state is not Is.CUT for held in self.held.values())

    # ------------------------------------------------------------------ steps

    def step_begins(self):
        """Whether there is something to compute."""
        for name, held in self.held.items():
            if held.state is Is.WAITING and self._grow(held, len(held.tokens)):
                held.state = Is.RUNNING
            elif held.state is Is.RUNNING and not self._grow(held, len(held.tokens)):
                self.preempt(name)
        self._in_flight = [held for held in self.held.values() if held.state is Is.RUNNING]
        return bool(self._in_flight)

    def step_ends(self):
        outputs = []
        batch, self._in_flight = self._in_flight, []
        for name, held in list(self.held.items()):
            if not any(held is each for each in batch) or held.state is not Is.RUNNING:
                continue
            if output := self._compute(name, held):
                outputs.append(output)
                if output.is_last:
                    self._end(name, "it has finished")
                    continue
            self._cut_now(held)
        return outputs

    def _compute(self, name, held):
        tokens = held.tokens
        end = min(held.num_computed + CHUNK, len(tokens))
        kv = [self._read(held, at) for at in range(held.num_computed)]
        for at in range(held.num_computed, end):
            kv.append(kv_of(kv, tokens[at]))
            block, slot = divmod(at, self.block_size)
            self.memory[held.blocks[block]][slot] = kv[-1]
        held.num_computed = end
        if end < len(tokens):
            return None
        token = kv[-1] % VOCABULARY
        offset = len(held.outputs)
        held.outputs.append(token)
        is_last = len(held.outputs) == held.max_tokens
        return Output(name, held.peer, held.epoch, offset, token, is_last)

    def _read(self, held, at):
        block, slot = divmod(at, self.block_size)
        return self.memory[held.blocks[block]][slot]

    def _grow(self, held, num_tokens):
        lacking = blocks_for(num_tokens, self.block_size) - len(held.blocks)
        if lacking > len(self.free):
            return False
        held.blocks += self._take(max(0, lacking))
        return True

    def _take(self, count):
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            self.memory[block] = [None] * self.block_size
        return taken

    def _give_back(self, blocks):
        for block in blocks:
            assert block not in self.free, f"block {block} is free already"
        self.free += blocks

    # ------------------------------------------------------------------ requests

    def add(self, name, prompt, max_tokens, peer, epoch):
        assert name not in self.held
        self.held[name] = Held(prompt, max_tokens, peer, epoch)

    def abort(self, peer, name, epoch):
        held = self.held.get(name)
        if held is not None and held.peer == peer and held.epoch <= epoch:
            self._end(name, "it was aborted")

    def drop_peer(self, peer):
        for name in [name for name, held in self.held.items() if held.peer == peer]:
            self._end(name, "its gateway is gone")

    def preempt(self, name):
        held = self.held.get(name)
        if held is None or held.state is not Is.RUNNING:
            return
        self._lose_blocks(held)
        held.state = Is.WAITING
        self._in_flight = [each for each in self._in_flight if each is not held]
        self._unwatch(name, held, "it was preempted")

    def _end(self, name, reason):
        held = self.held.pop(name)
        self._lose_blocks(held)
        self._unwatch(name, held, reason)

    def _lose_blocks(self, held):
        self._give_back(held.blocks)
        held.blocks, held.num_computed = [], 0

    def _unwatch(self, name, held, reason):
        when_cut, held.when_cut = held.when_cut, None
        if held.is_watched:
            held.is_watched = False
            self._tell(name, reason)
        if when_cut is not None:
            when_cut(None)

    # ------------------------------------------------------------------ leaving

    def begin(self, name):
        held = self.held.get(name)
        if held is None:
            return "it is not here"
        if held.is_watched:
            return "it is leaving already"
        held.is_watched = True
        return Begun(self._progress(held), held.peer, held.epoch, name, ())

    def progress(self, name):
        held = self._watched(name)
        return self._progress(held) if held is not None else None

    def _progress(self, held):
        return Progress(
            len(held.tokens), len(held.prompt), held.num_computed, tuple(held.blocks),
            is_waiting=held.state is Is.WAITING,
        )  # fmt: skip

    def cut(self, name, done):
        held = self._watched(name)
        if held is None:
            done(None)
            return
        held.when_cut = done
        if not any(held is each for each in self._in_flight):
            self._cut_now(held)

    def _cut_now(self, held):
        if held.when_cut is not None:
            done, held.when_cut = held.when_cut, None
            held.state = Is.CUT
            done(Cut(tuple(held.outputs), held.num_computed, tuple(held.blocks)))

    def resume(self, name, epoch):
        held = self._watched(name)
        if held is None:
            return
        held.is_watched, held.when_cut = False, None
        held.epoch = held.epoch if epoch is None else epoch
        if held.state is Is.CUT:
            held.state = Is.RUNNING if held.blocks else Is.WAITING

    def release(self, name):
        held = self._watched(name)
        if held is not None:
            assert held.state is Is.CUT, f"{name} is released and was not cut"
            held.is_watched = False
            self._end(name, "")

    def unwatch(self, name):
        held = self._watched(name)
        if held is not None:
            held.is_watched = False

    def _watched(self, name):
        held = self.held.get(name)
        return held if held is not None and held.is_watched else None

    # ------------------------------------------------------------------ arriving

    def reserve(self, migration, name, prompt, max_tokens, num_tokens):
        if name in self.held or any(each.request == name for each in self.shadows.values()):
            return "the id is taken"
        blocks = blocks_for(num_tokens, self.block_size)
        if blocks > len(self.free):
            return "no room"
        shadow = Shadow(name, prompt, max_tokens, num_tokens, self._take(blocks))
        self.shadows[migration] = shadow
        self._reuse(shadow)
        return self._reservation(shadow)

    def _reuse(self, shadow):
        usable = min(self.cached_tokens, len(shadow.prompt), shadow.num_tokens)
        shadow.num_reused = usable // self.block_size * self.block_size
        kv = []
        for at in range(shadow.num_reused):
            kv.append(kv_of(kv, shadow.prompt[at]))
            block, slot = divmod(at, self.block_size)
            self.memory[shadow.blocks[block]][slot] = kv[-1]

    def extend(self, migration, num_tokens):
        shadow = self.shadows.get(migration)
        if shadow is None:
            return "it is given up"
        lacking = blocks_for(num_tokens, self.block_size) - len(shadow.blocks)
        if lacking > len(self.free):
            return "no room"
        shadow.blocks += self._take(max(0, lacking))
        shadow.num_tokens = max(shadow.num_tokens, num_tokens)
        return self._reservation(shadow)

    def _reservation(self, shadow):
        return Reservation(shadow.num_tokens, tuple(shadow.blocks), shadow.num_reused)

    def commit(self, migration, peer, epoch, outputs, num_computed):
        shadow = self.shadows.pop(migration, None)
        if shadow is None:
            return "it is given up"
        assert shadow.request not in self.held
        self.held[shadow.request] = Held(
            shadow.prompt, shadow.max_tokens, peer, epoch, list(outputs), num_computed,
            shadow.blocks, Is.RUNNING if num_computed else Is.WAITING,
        )  # fmt: skip
        return ""

    def abandon(self, migration):
        shadow = self.shadows.pop(migration, None)
        if shadow is not None:
            self._give_back(shadow.blocks)
