"""Decode steps that are alike, in a row.

While the same requests decode and nothing comes in, a step differs from the one before it only in
that each request has one token more. How many such steps follow is known in advance: until one
reaches its last token, or until the free blocks are used up. What such a step does to the load and
how long it takes is worked out for the batch as a whole, and not request by request.

    open ─► [ 0 ][ 1 ][ 2 ] …                [ last ]      `complete` ends that: somebody may end
               `advance`: at no cost that           └── so do all that come before it, in `settle`
               grows with the batch
"""

from llx.core.engine_state import EngineState, StepTime
from llx.core.model import Blocks, Nanos


class LikeSteps:
    """A row of like steps that has begun, and which of them is under way.

    Attributes:
        ends_at: When the step under way ends.
        num_left: How many are not over: the one under way, and those that follow.
        num_free: Free blocks, those of the step under way taken.
        free_until: Before that none are taken: who looks at `num_free` alone need not `advance`.

    Args:
        started_at: When the first one, which is open, has started.
        step_time: How long steps take.
        num_decodes: Requests in the batch.
        num_context: Tokens that the first step reads.
        num_left: Steps in the row.
        num_free: Free blocks, the first step's taken.
        takes: How many requests need a first new block by which step.
        block_size: In tokens: so many steps later they need another.
    """

    __slots__ = (
        "_block_size",
        "_context",
        "_each",
        "_growth",
        "_next_take",
        "_num_over",
        "_num_settled",
        "_takes",
        "ends_at",
        "free_until",
        "num_free",
        "num_left",
    )

    def __init__(
        self,
        started_at: Nanos,
        step_time: StepTime,
        num_decodes: int,
        num_context: int,
        num_left: int,
        num_free: Blocks,
        takes: dict[int, int],
        block_size: int,
    ) -> None:
        # Thousandths, as in `StepTime.of`.
        self._each = step_time.of(0, num_decodes, 0)
        self._context = step_time.context_ktoken_ns * num_context
        self._growth = step_time.context_ktoken_ns * num_decodes
        self._takes = takes
        self._block_size = block_size
        self._num_over = self._num_settled = 0
        self.ends_at: int = started_at + self._each + self._context // 1000
        self.num_left = num_left
        self.num_free = num_free
        self._await_take(0, self.ends_at)

    def advance(self, now: Nanos) -> None:
        """Go on to the step that is under way at `now`, but never beyond the last one."""
        ends_at, num_left, num_over = self.ends_at, self.num_left, self._num_over
        each, context, growth = self._each, self._context, self._growth
        while ends_at <= now and num_left > 1:
            context += growth
            ends_at += each + context // 1000
            num_left -= 1
            num_over += 1
            if num_over == self._next_take:
                self._take(ends_at)
        self.ends_at, self.num_left, self._num_over = ends_at, num_left, num_over
        self._context = context

    def _take(self, ends_at: int) -> None:
        """The step that ends then takes blocks."""
        takes, now = self._takes, self._next_take
        taken = takes.pop(now)
        self.num_free = Blocks(self.num_free - taken)
        again = now + self._block_size
        takes[again] = takes.get(again, 0) + taken
        self._await_take(now, ends_at)

    def _await_take(self, num_over: int, ends_at: int) -> None:
        self._next_take = min(self._takes)
        num_before = self._next_take - num_over - 1
        self.free_until = ends_at + num_before * self._each  # and a little longer

    def last_ends_at(self) -> Nanos:
        """When the row ends."""
        num_more = self.num_left - 1
        first = self._context + self._growth
        rest = sum_of_quotients(num_more, 1000, self._growth, first)
        return Nanos(self.ends_at + self._each * num_more + rest)

    def settle(self) -> int:
        """How many steps are over since the last time that this was asked."""
        count = self._num_over - self._num_settled
        self._num_settled = self._num_over
        return count


def like_steps(state: EngineState, started_at: Nanos, num_chunks: int) -> LikeSteps | None:
    """The row of like steps that begins with the open one; None if that is alone.

    Nothing ends or comes in before the last of them completes. Blocks only become fewer and places
    stay taken: whoever waits and could not be admitted to the open step cannot be admitted to one
    that follows.

    Args:
        state: With the open step's blocks taken. The step has admitted and preempted nobody.
        started_at: When the open step has started.
        num_chunks: Requests that it computes for.
    """
    running, config = state.running, state.config
    if state.arrived or num_chunks != len(running):
        return None
    block_size: int = config.block_size
    max_len: int = config.max_model_len
    most, context = max_len, 0
    takes: dict[int, int] = {}
    for held in running:
        num_tokens, num_computed, asked = len(held.tokens), held.num_computed, held.asked
        num_outputs = num_tokens - len(asked.prompt)
        if num_tokens - num_computed != 1 or not num_outputs:
            return None  # a prompt, or what is recomputed
        most = min(most, asked.max_tokens - num_outputs, max_len - num_tokens)
        context += num_tokens
        first = len(held.blocks) * block_size - num_computed
        takes[first] = takes.get(first, 0) + 1
    num_free = Blocks(len(state.free))
    num_steps = most
    if len(running) * (most // block_size + 1) > num_free:
        num_steps = _that_fit(takes, block_size, num_free, most)
    if num_steps < 2:
        return None
    return LikeSteps(
        started_at,
        config.step_time,
        len(running),
        context,
        num_steps,
        num_free,
        takes,
        block_size,
    )


def carry_out(state: EngineState, count: int) -> None:
    """Give every running request `count` tokens more, and blocks for the step that follows."""
    block_size = state.config.block_size
    tokens = bytes(count)
    for held in state.running:
        held.tokens.extend(tokens)
        held.num_computed += count
        missing = held.num_computed + 1 - len(held.blocks) * block_size
        if missing > 0:
            held.blocks += state.take(-(-missing // block_size))


def _that_fit(takes: dict[int, int], block_size: int, num_free: int, most: int) -> int:
    """How many steps, of `most`, have the blocks that they need; 1 at least, which has them."""

    def lacks(num_steps: int) -> bool:
        new = (
            -(-(num_steps - first) // block_size) * count
            for first, count in takes.items()
            if first < num_steps
        )
        return sum(new) > num_free

    if not lacks(most):
        return most
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if lacks(middle) else (middle, high)
    return low


def sum_of_quotients(count: int, divisor: int, step: int, first: int) -> int:
    """The sum of (step * i + first) // divisor over i = 0 … count - 1, in O(log) steps.

    As in Euclid's algorithm: whole multiples of the divisor are taken out of both, and what is
    left counts the lattice points under a line, which is the same count with the axes swapped.
    """
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (step // divisor) + count * (first // divisor)
        step, first = step % divisor, first % divisor
        top = step * count + first
        if top < divisor:
            break
        count, first = divmod(top, divisor)
        step, divisor = divisor, step
    return total
