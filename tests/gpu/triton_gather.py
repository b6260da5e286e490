"""The gather of `llx/cuda/kernels.cu` in Triton, only to compare."""

import triton
import triton.language as tl

WORDS = 1024  # of 8 bytes: a part


@triton.jit
def gather(parts, num_parts, blocks, packed, block_bytes, WORDS: tl.constexpr):  # noqa: N803 - as Triton writes constants
    item = tl.program_id(0)
    part = item % num_parts
    index = (item // num_parts).to(tl.int64)
    block = tl.load(blocks + item // num_parts).to(tl.int64)
    address = tl.load(parts + part * 4) + block * tl.load(parts + part * 4 + 1)
    words = tl.multiple_of(tl.load(parts + part * 4 + 2) // 8, 2)
    out = packed + index * block_bytes + tl.load(parts + part * 4 + 3)
    source = tl.multiple_of(address.to(tl.pointer_type(tl.int64)), 16)
    target = tl.multiple_of(out.to(tl.pointer_type(tl.int64)), 16)
    lanes = tl.arange(0, WORDS)
    kept = lanes < words
    tl.store(target + lanes, tl.load(source + lanes, mask=kept), mask=kept)
