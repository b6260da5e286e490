"""The kernels on the CPU: the same parts, copied one by one; and the real source, built by g++."""

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from llx.cuda.layout import Part

THREADS = 256
SOURCE = Path(__file__).parents[2] / "llx/cuda/kernels.cu"


def read_parts(address: int, count: int) -> list[Part]:
    raw = ctypes.string_at(address, 32 * count)
    return [Part(*each) for each in struct.iter_unpack("<4Q", raw)]


def twin(kernel: str, ctas: int, arguments: Sequence) -> list[tuple[int, int, int]]:
    """Do what a kernel does; says what it has copied: (to, from, size)."""
    _, name, width = kernel.split("_")
    copies = []
    if name == "transfer":
        theirs, own, num_parts, count, sources, targets = arguments
        parts = list(zip(read_parts(theirs, num_parts), read_parts(own, num_parts), strict=True))
        pairs = zip(sources.blocks[:count], targets.blocks[:count], strict=True)
        for source, target in pairs:
            for a, b in parts:
                assert a.size_bytes == b.size_bytes
                copies.append((_at(b, target), _at(a, source), b.size_bytes))
    else:
        table, num_parts, count, packed, block_bytes, ids = arguments
        for index, block in enumerate(ids.blocks[:count]):
            for part in read_parts(table, num_parts):
                one = _at(part, block)
                other = packed + index * block_bytes + part.offset
                to, source = (other, one) if name == "gather" else (one, other)
                copies.append((to, source, part.size_bytes))
    for copy in copies:
        assert all(number % int(width) == 0 for number in copy), f"{copy} by {width}"
        ctypes.memmove(*copy)
    return copies


def _at(part: Part, block: int) -> int:
    return part.address + block * part.stride_bytes


_SHIM = r"""
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __grid_constant__
struct Dim { unsigned x; };
static Dim threadIdx, blockIdx, blockDim, gridDim;
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
template <typename T> static T __ldcs(const T* p) { return *p; }
template <typename T> static void __stcs(T* p, T v) { *p = v; }
#include "kernels.cu"
typedef void (*Copy)(const Part*, unsigned, unsigned, u64, u64, Ids);
typedef void (*Transfer)(const Part*, const Part*, unsigned, unsigned, Ids, Ids);
extern "C" void run(void* kernel, int is_transfer, unsigned ctas, unsigned threads, const u64* a,
                    const Ids* one, const Ids* other) {
    gridDim.x = ctas;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < ctas; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            if (is_transfer)
                ((Transfer)kernel)((const Part*)a[0], (const Part*)a[1], (unsigned)a[2],
                                   (unsigned)a[3], *one, *other);
            else
                ((Copy)kernel)((const Part*)a[0], (unsigned)a[1], (unsigned)a[2], a[3], a[4], *one);
}
"""


class Built:
    """`kernels.cu` as C++, each thread of each CTA run after the other."""

    def __init__(self, folder: Path) -> None:
        shim = folder / "shim.cpp"
        shim.write_text(_SHIM)
        library = folder / "kernels.so"
        flags = "-std=c++17 -O1 -fno-strict-aliasing -Wall -shared -fPIC".split()
        subprocess.run(
            [compiler(), *flags, f"-I{SOURCE.parent}", "-o", str(library), str(shim)],
            check=True,
            timeout=120,
        )
        self._library = ctypes.CDLL(str(library))

    def __call__(self, kernel: str, ctas: int, arguments: Sequence) -> None:
        function = ctypes.cast(getattr(self._library, kernel), ctypes.c_void_p)
        numbers = [each for each in arguments if isinstance(each, int)]
        lists = [ctypes.byref(each) for each in arguments if not isinstance(each, int)]
        raw = (ctypes.c_uint64 * len(numbers))(*numbers)
        shape = (int("transfer" in kernel), ctypes.c_uint(ctas), ctypes.c_uint(THREADS))
        self._library.run(function, *shape, raw, lists[0], lists[-1])


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
