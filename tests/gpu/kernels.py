"""The KV kernels on a GPU: bit by bit over all layouts, and how fast."""

import random
import time

import torch

from llx.cuda import driver
from llx.cuda.gpu_blocks import GpuBlocks
from llx.cuda.layout import parts_of
from llx.cuda.peers import PART_BYTES
from tests.gpu.caches import TorchCache, layered, torch_cache
from tests.gpu.report import Report
from tests.gpu.timing import attempt, device_ms, gigabytes_per_s, wall_ms

ORDERS = ["LBNHC", "LBHNC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]
DTYPES = [torch.bfloat16, torch.float16, torch.float8_e4m3fn]
UNCAPPED = 1 << 20
NUM_BLOCKS = 37
LAYERS, BLOCKS, PAGE = 32, 1024, 64 << 10  # a Llama-3-8B-shaped cache of 16k tokens


def run(report: Report) -> None:
    """All of it; whatever fails does not hide the rest."""
    attempt(report, "compile", lambda: _compile(report))
    attempt(report, "exact", lambda: _exact(report))
    attempt(report, "refused", lambda: _refused(report))
    attempt(report, "bandwidth", lambda: _bandwidth(report))
    attempt(report, "few blocks", lambda: _few_blocks(report))
    attempt(report, "capped", lambda: _capped(report))
    attempt(report, "host", lambda: _host(report))
    attempt(report, "triton", lambda: _triton(report))
    torch.cuda.empty_cache()


def _compile(report: Report) -> None:
    major, minor = torch.cuda.get_device_capability()
    begun = time.perf_counter()
    driver.compiled.__wrapped__(10 * major + minor)
    report.measure("NVRTC compiles all kernels", time.perf_counter() - begun, "s", at_most=5)


# -------------------------------------------------------------------- bit by bit


def _exact(report: Report) -> None:
    sizes = {"L": 5, "B": NUM_BLOCKS, "K": 1, "H": 4, "N": 16, "C": 256}
    for order in ORDERS:
        wrong = [str(dtype) for dtype in DTYPES if not _is_exact("K" + order, sizes, dtype)]
        report.check(f"bit-exact, {order}, bf16 fp16 fp8", not wrong, " ".join(wrong))
    odd = {"L": 3, "B": NUM_BLOCKS, "K": 1, "H": 3, "N": 3, "C": 35}
    cases = {
        "MLA, pages of 18,432": ("KLBHNC", sizes | {"H": 1, "C": 576}, torch.bfloat16, {}, 0),
        "MLA, fp8, 656 a token": ("KLBHNC", sizes | {"H": 1, "C": 656}, torch.uint8, {}, 0),
        "keys apart from values": ("LKBNHC", sizes | {"K": 2, "C": 64}, torch.bfloat16, {}, 0),
        "padded blocks": ("KLBNHC", sizes, torch.bfloat16, {"B": 3, "N": 8}, 0),
        "pages of 315 bytes": ("KLBNHC", odd, torch.uint8, {}, 0),
        "pages of 630, padded": ("KLBNHC", odd, torch.bfloat16, {"N": 1}, 2),
        "pages of 1260, shifted": ("KLHBNC", odd, torch.float32, {}, 4),
        "8-byte accesses": ("KBLNHC", sizes | {"C": 4}, torch.bfloat16, {"B": 4}, 8),
        "large pages": ("KLBNHC", sizes | {"N": 64, "C": 1000}, torch.bfloat16, {}, 0),
    }
    for name, (order, shape, dtype, padding, shift) in cases.items():
        good = _is_exact(order, shape, dtype, padding, shift)
        report.check(f"bit-exact, {name}", good)


def _is_exact(
    order: str,
    sizes: dict[str, int],
    dtype: torch.dtype,
    padding: dict[str, int] | None = None,
    shift: int = 0,
) -> bool:
    """Gather, scatter, pack and unpack against plain indexing; nothing else is written."""
    made = {"padding": padding, "shift": shift}
    cache = torch_cache(order, sizes, dtype, seed=1, **made)
    other = torch_cache(order, sizes | {"B": NUM_BLOCKS + 4}, dtype, seed=2, **made)
    chosen = random.Random(order + str(dtype))
    source = [chosen.randrange(NUM_BLOCKS) for _ in range(23)]
    target = chosen.sample(range(NUM_BLOCKS + 4), 23)
    blocks, others = GpuBlocks(cache.tensors, 0), GpuBlocks(other.tensors, 0)
    try:
        before = cache.raw.clone()
        host = blocks.buffer(len(source) * blocks.block_bytes)
        blocks.pack(source, host)
        packed = torch.frombuffer(host, dtype=torch.uint8).cuda()
        is_good = _is_gathered(blocks, source, packed)
        if "order=" not in blocks.layout:
            is_good &= torch.equal(packed, cache.packed(source))
        is_good &= torch.equal(cache.raw, before)
        is_good &= _is_scattered(cache, other, source, target, lambda: others.unpack(target, host))
        is_good &= _is_scattered(
            cache, other, source, target[::-1], lambda: _scatter(others, target[::-1], packed)
        )
        return bool(is_good)
    finally:
        blocks.close()
        others.close()


def _is_gathered(blocks: GpuBlocks, source: list[int], packed: torch.Tensor) -> bool:
    """At an address that is aligned, and at one that is not; guards around it."""
    is_good = True
    for shift in (256, 256 + 8, 256 + 1):
        out = torch.full((len(packed) + 1024,), 7, dtype=torch.uint8, device="cuda")
        wanted = out.clone()
        wanted[shift : shift + len(packed)] = packed
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        blocks.gather(source, out.data_ptr() + shift, stream.cuda_stream, max_ctas=3)
        stream.synchronize()
        is_good &= torch.equal(out, wanted)
    return is_good


def _scatter(blocks: GpuBlocks, target: list[int], packed: torch.Tensor) -> None:
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    blocks.scatter(target, packed.data_ptr(), stream.cuda_stream)
    stream.synchronize()


def _is_scattered(cache: TorchCache, other: TorchCache, source, target, scatter) -> bool:
    """The whole allocation is as if torch had copied the blocks."""
    wanted = other.raw.clone()
    kept = other.raw.clone()
    for theirs, own in zip(cache.bits(), other.bits(), strict=True):
        own[target] = theirs[source]
    wanted.copy_(other.raw)
    other.raw.copy_(kept)
    torch.cuda.synchronize()
    scatter()
    return torch.equal(other.raw, wanted)


def _refused(report: Report) -> None:
    cache = torch_cache("KLBNHC", dict.fromkeys("LKHNC", 2) | {"B": 4}, torch.bfloat16, seed=1)
    blocks = GpuBlocks(cache.tensors, 0)
    before, told = cache.raw.clone(), 0
    for ids in ([4], [-1], [1 << 40]):
        try:
            blocks.unpack(ids, memoryview(bytes(blocks.block_bytes)))
        except driver.EngineError:
            told += 1
    report.check("ids that are none are refused", told == 3 and torch.equal(before, cache.raw))
    blocks.close()


# -------------------------------------------------------------------- how fast


def _copy_ceiling(size_bytes: int) -> float:
    """Gigabytes a second that are read and written by torch's own copy, counted once."""
    a, b = (torch.empty(size_bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    stream = torch.cuda.Stream()
    samples = device_ms(lambda: _on(stream, lambda: b.copy_(a)), stream, repeats=3)
    return sorted(gigabytes_per_s(size_bytes, samples))[len(samples) // 2]


def _on(stream: torch.cuda.Stream, work) -> None:
    with torch.cuda.stream(stream):
        work()


def _bandwidth(report: Report) -> None:
    """Uncapped, at least 256 MiB, blocks at random."""
    size = 512 << 20
    ceiling = _copy_ceiling(size)
    report.measure("copy of 512 MiB, device to device, read + written", 2 * ceiling, "GB/s")
    for name, layers, page in (("32 KiB", 48, 32 << 10), ("64 KiB", LAYERS, PAGE),
                               ("256 KiB", 32, 256 << 10)):  # fmt: skip
        count = size // (layers * page)
        blocks = GpuBlocks(layered(layers, 3 * count, page, seed=1), 0)
        _both_ways(report, f"pages of {name}", blocks, count, ceiling)
    order = torch_cache("KBLNHC", {"L": 32, "B": 768, "K": 1, "H": 8, "N": 16, "C": 256},
                        torch.bfloat16, seed=1)  # fmt: skip
    _both_ways(report, "whole blocks", GpuBlocks(order.tensors, 0), 256, ceiling)


def _both_ways(report: Report, name: str, blocks: GpuBlocks, count: int, ceiling: float) -> None:
    ids = random.Random(3).sample(range(blocks.num_blocks), count)
    size = count * blocks.block_bytes
    packed = torch.empty(size, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for word, copy in (("gather", blocks.gather), ("scatter", blocks.scatter)):

        def work(copy=copy) -> None:
            copy(ids, packed.data_ptr(), stream.cuda_stream, max_ctas=UNCAPPED)

        rates = gigabytes_per_s(size, device_ms(work, stream, repeats=3))
        report.measure(f"{word}, {name}: share of the copy", [r / ceiling for r in rates], "",
                       at_least=0.8)  # fmt: skip
    blocks.close()


def _few_blocks(report: Report) -> None:
    """16 blocks, as a stage of a migration has them: against a launch per layer."""
    tensors = layered(LAYERS, BLOCKS, PAGE, seed=1)
    blocks = GpuBlocks(tensors, 0)
    ids = random.Random(4).sample(range(BLOCKS), 16)
    on_gpu = torch.tensor(ids, device="cuda")
    packed = torch.empty(16 * blocks.block_bytes, dtype=torch.uint8, device="cuda")
    outs = [torch.empty_like(t[:16]) for t in tensors]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()

    def fused() -> None:
        blocks.gather(ids, packed.data_ptr(), stream.cuda_stream, max_ctas=UNCAPPED)

    def layers() -> None:
        with torch.cuda.stream(stream):
            for tensor, out in zip(tensors, outs, strict=True):
                torch.index_select(tensor, 0, on_gpu, out=out)

    def waited(work) -> None:
        work()
        stream.synchronize()

    for name, samples in (
        ("on the GPU", [device_ms(work, stream, rounds=15) for work in (fused, layers)]),
        ("launched and waited for",
         [wall_ms(lambda work=work: waited(work)) for work in (fused, layers)]),
    ):  # fmt: skip
        one = report.measure(f"16 blocks, one launch, {name}", samples[0], "ms")
        many = report.measure(f"16 blocks, index_select per layer, {name}", samples[1], "ms")
        report.measure(f"16 blocks: times faster, {name}", many / one, "x", at_least=5)
    begun = time.perf_counter()
    for _ in range(10):
        fused()
    report.measure("launch, what the host takes", 1e5 * (time.perf_counter() - begun), "us")
    stream.synchronize()
    blocks.close()


def _capped(report: Report) -> None:
    blocks = GpuBlocks(layered(LAYERS, BLOCKS, PAGE, seed=1), 0)
    ids = random.Random(5).sample(range(BLOCKS), 64)
    size = len(ids) * blocks.block_bytes
    packed = torch.empty(size, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for ctas in (2, 4, 8, 16, 32):

        def work(ctas=ctas) -> None:
            blocks.gather(ids, packed.data_ptr(), stream.cuda_stream, max_ctas=ctas)

        rates = gigabytes_per_s(size, device_ms(work, stream, rounds=5))
        # Twice a link of 400 Gbit/s, so that the kernel is never what holds it up.
        bound = 100 if ctas == 8 else None
        report.measure(f"gather with {ctas} CTAs", rates, "GB/s", at_least=bound)
    blocks.close()


def _host(report: Report) -> None:
    """To and from pinned memory of the host, against the plain copy of as many bytes."""
    blocks = GpuBlocks(layered(LAYERS, BLOCKS, PAGE, seed=1), 0)
    ids = random.Random(6).sample(range(BLOCKS), 128)
    size = len(ids) * blocks.block_bytes
    host = blocks.buffer(size)
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    plain = torch.empty(size, dtype=torch.uint8, device="cuda")
    for word, ours, copy in (
        ("pack", lambda: blocks.pack(ids, host), lambda: pinned.copy_(plain)),
        ("unpack", lambda: blocks.unpack(ids, host), lambda: plain.copy_(pinned)),
    ):

        def copied(copy=copy) -> None:
            copy()
            torch.cuda.synchronize()

        plainly = gigabytes_per_s(size, wall_ms(copied, rounds=7))
        ceiling = report.measure(f"{word}: plain copy, pinned", plainly, "GB/s")
        rates = gigabytes_per_s(size, wall_ms(ours, rounds=7))
        report.measure(f"{word} of 256 MiB, pinned", rates, "GB/s")
        report.measure(f"{word}: share of the plain copy", [r / ceiling for r in rates], "",
                       at_least=0.8)  # fmt: skip
    few = ids[:2]
    part = host[: 2 * blocks.block_bytes]
    report.measure("pack of 2 blocks", wall_ms(lambda: blocks.pack(few, part)), "ms")
    report.measure("unpack of 2 blocks", wall_ms(lambda: blocks.unpack(few, part)), "ms")
    blocks.close()


def _triton(report: Report) -> None:
    """The same gather in Triton: whether CUDA C++ is worth it."""
    from tests.gpu import triton_gather

    tensors = layered(LAYERS, BLOCKS, PAGE, seed=1)
    blocks = GpuBlocks(tensors, 0)
    parts = parts_of(blocks._plan.pieces, PART_BYTES)
    table = torch.tensor(
        [[p.address, p.stride_bytes, p.size_bytes, p.offset] for p in parts], device="cuda"
    )
    stream = torch.cuda.Stream()
    for count in (16, 256):
        ids = random.Random(7).sample(range(BLOCKS), count)
        on_gpu = torch.tensor(ids, dtype=torch.int32, device="cuda")
        size = count * blocks.block_bytes
        mine, theirs = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        torch.cuda.synchronize()

        def cuda(ids=ids, mine=mine) -> None:
            blocks.gather(ids, mine.data_ptr(), stream.cuda_stream, max_ctas=UNCAPPED)

        def triton(on_gpu=on_gpu, theirs=theirs, count=count) -> None:
            with torch.cuda.stream(stream):
                triton_gather.gather[(count * len(parts),)](
                    table, len(parts), on_gpu, theirs.data_ptr(), blocks.block_bytes,
                    WORDS=triton_gather.WORDS, num_warps=1,
                )  # fmt: skip

        begun = time.perf_counter()
        triton()
        stream.synchronize()
        report.measure(f"Triton, first call, {count} blocks", time.perf_counter() - begun, "s")
        for word, work in (("CUDA C++", cuda), ("Triton", triton)):
            rates = gigabytes_per_s(2 * size, device_ms(work, stream))
            report.measure(f"{count} blocks, {word}, read + written", rates, "GB/s")
            launches = wall_ms(work)
            report.measure(f"{count} blocks, {word}, launch alone", launches, "ms")
            stream.synchronize()
        report.check(f"{count} blocks: both the same", torch.equal(mine, theirs))
    blocks.close()
