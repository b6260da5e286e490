"""A seeded request whose prompt takes several steps, on a CPU: vLLM's V1 runner ends the engine.

While a prompt is computed in parts, each step samples a token that is thrown away. So that this
uses up nothing of the request's random numbers the runner turns its generator back by an offset,
which generators on a CPU do not have: the step fails, and the engine with it. Here the generators
of such requests are set back to what they were, and the runner does not see them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def keep_generators(runner: Any) -> None:
    """Mend a model runner; nothing to do for one on a GPU, or of another kind."""
    if getattr(getattr(runner, "device", None), "type", "") != "cpu":
        return
    if not hasattr(runner, "_bookkeeping_sync"):
        return
    sample: Callable[..., Any] = runner._sample
    bookkeep: Callable[..., Any] = runner._bookkeeping_sync

    def sample_and_turn_back(*args: Any, **kwargs: Any) -> Any:
        states = {index: each.get_state() for index, each in _thrown_away(runner).items()}
        output = sample(*args, **kwargs)
        for index, state in states.items():
            runner.input_batch.generators[index].set_state(state)
        return output

    def bookkeep_without_them(*args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        hidden = _thrown_away(runner)
        if not hidden:
            return bookkeep(*args, **kwargs)
        generators = batch.generators
        batch.generators = {i: each for i, each in generators.items() if i not in hidden}
        try:
            return bookkeep(*args, **kwargs)
        finally:
            batch.generators = generators

    runner._sample = sample_and_turn_back
    runner._bookkeeping_sync = bookkeep_without_them


def _thrown_away(runner: Any) -> dict[int, torch.Generator]:
    """Generators of the requests whose token of this step is not kept, by place in the batch."""
    generators = runner.input_batch.generators
    if not generators:
        return {}
    rows = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
    return {int(row): generators[int(row)] for row in rows if int(row) in generators}
