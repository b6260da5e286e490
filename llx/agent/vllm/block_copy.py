"""Gathers KV blocks of all layers into one buffer, and back: plain torch, any device.

Both are done when they return. A block that is packed must have been written by steps whose output
is known, and one that is unpacked must not be in use: then no step has to be waited for.

The bytes are those of the layers one after the other, in each the blocks in the order asked for,
in each block the dimensions in their logical order: independent of how a layer lies in memory.
"""

from collections.abc import Sequence

import torch


def pack(tensors: Sequence[torch.Tensor], block_ids: Sequence[int], out: memoryview) -> None:
    """Gather: `tensors` have the blocks as their first dimension; `out` is exactly filled."""
    if not block_ids:
        return
    flat, at = torch.frombuffer(out, dtype=torch.uint8), 0
    index = torch.tensor(block_ids, dtype=torch.long, device=tensors[0].device)
    for tensor in tensors:
        part = _bytes_view(tensor).index_select(0, index).flatten()
        flat[at : at + part.numel()].copy_(part)
        at += part.numel()
    assert at == flat.numel(), f"{at} bytes packed into {flat.numel()}"


def unpack(tensors: Sequence[torch.Tensor], block_ids: Sequence[int], data: memoryview) -> None:
    """Scatter what `pack` has gathered."""
    if not block_ids:
        return
    flat, at = torch.frombuffer(data, dtype=torch.uint8), 0
    index = torch.tensor(block_ids, dtype=torch.long, device=tensors[0].device)
    for tensor in tensors:
        view = _bytes_view(tensor)
        size = view[0].numel() * len(block_ids)
        part = flat[at : at + size].to(view.device).view(len(block_ids), *view.shape[1:])
        view.index_copy_(0, index, part)
        at += size
    assert at == flat.numel(), f"{at} bytes unpacked of {flat.numel()}"
    if index.is_cuda:  # vLLM's steps run on a stream of their own
        torch.cuda.current_stream(index.device).synchronize()


def _bytes_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as bytes; the last dimension is contiguous in every layout of vLLM."""
    return tensor.view(torch.uint8)
