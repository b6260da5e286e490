"""The random numbers of a seeded request whose instance was lost: drawn anew, and thrown away.

A V1 runner gives such a request a generator of its own and draws from it once for each token. The
tokens are known, the generator's state went with the instance; drawing as often as it had drawn
gives the state back. A V2 runner draws by seed and position, and has no generators.
"""

from typing import Any

import torch


def seeded_generator(runner: Any, seed: int, num_drawn: int) -> torch.Generator:
    """The generator that `runner` would have for a request with `num_drawn` tokens of output."""
    generator = torch.Generator(device=runner.device)
    generator.manual_seed(seed)
    sampler = runner.sampler.topk_topp_sampler
    is_fused = sampler.forward == getattr(sampler, "forward_cpu", None)
    if is_fused and not sampler.use_fp64_gumbel:
        for _ in range(num_drawn):  # one by one: what one call of many draws is not the same
            torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)
        return generator
    noise = torch.empty(
        runner.input_batch.vocab_size,
        device=runner.device,
        dtype=torch.float64 if sampler.use_fp64_gumbel else torch.float32,
    )
    for _ in range(num_drawn):
        noise.exponential_(generator=generator)
    return generator
