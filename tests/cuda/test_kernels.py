"""The kernels' own source: run on the CPU over random caches, and compiled for the GPUs we mean."""

import ctypes
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llx.cuda.driver import compiled
from llx.cuda.layout import Part, Piece, parts_of
from llx.cuda.tables import MAX_IDS, ids_of
from llx.errors import EngineError
from tests.cuda.caches import Arena
from tests.cuda.twin import SOURCE, Built, compiler, twin
from tests.example_counts import of_a_hundred

WIDTHS = [16, 8, 4, 2, 1]
ARCHITECTURES = [80, 90]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    if compiler() is None:
        pytest.skip("there is no C++ compiler: the kernels' source is not run here")
    return Built(tmp_path_factory.mktemp("kernels"))


def table(parts: list[Part]) -> ctypes.Array[ctypes.c_char]:
    raw = b"".join(
        struct.pack("<4Q", p.address, p.stride_bytes, p.size_bytes, p.offset) for p in parts
    )
    return ctypes.create_string_buffer(raw, len(raw))


class Case:
    """Two caches with pieces of equal size, a packed buffer, and lists of blocks."""

    def __init__(self, draw, width: int) -> None:
        count = 5
        # Up to some thousand accesses: all of a warp's loop, its tail, and several parts.
        units = draw(st.lists(st.sampled_from([1, 31, 32, 127, 128, 129, 700, 1100]), min_size=1,
                              max_size=3))  # fmt: skip
        sizes = [unit * width for unit in units]
        # Later launches see the arenas that earlier ones have left: the same at twin and kernel.
        self.arenas = [Arena(2 * count * sum(sizes), seed) for seed in (1, 2, 3)]
        self.tables = []
        for arena in self.arenas[:2]:
            begin = arena.address + draw(st.integers(0, 3)) * width
            gap = draw(st.integers(0, 3)) * width
            pieces = []
            for size in sizes:
                pieces.append(Piece(begin, size + gap, size))
                begin += count * (size + gap)
            assert begin <= arena.begin + arena.size
            self.tables.append(parts_of(pieces, 2048 * draw(st.integers(1, 2))))
        if len(self.tables[0]) != len(self.tables[1]):
            self.tables[1] = [
                Part(p.address - self.tables[0][0].address + self.tables[1][0].address,
                     p.stride_bytes, p.size_bytes, p.offset) for p in self.tables[0]
            ]  # fmt: skip
        self.packed = self.arenas[2].address + draw(st.integers(0, 3)) * width
        self.block_bytes = sum(sizes)
        self.blocks = draw(st.lists(st.integers(0, count - 1), max_size=count))
        self.unique = list(dict.fromkeys(self.blocks))
        self.others = random.Random(len(self.blocks)).sample(range(count), len(self.unique))
        self.kept = [table(each) for each in self.tables]

    def launches(self, width: int):
        num_parts = len(self.tables[0])
        source, target = (ctypes.addressof(each) for each in self.kept)
        blocks, unique, others = (ids_of(each) for each in (self.blocks, self.unique, self.others))
        rest = (self.packed, self.block_bytes)
        yield f"llx_gather_{width}", (source, num_parts, len(self.blocks), *rest, blocks)
        yield f"llx_scatter_{width}", (target, num_parts, len(self.unique), *rest, unique)
        count = len(self.unique)
        yield f"llx_transfer_{width}", (source, target, num_parts, count, unique, others)

    def content(self) -> list[bytearray]:
        return [arena.content() for arena in self.arenas]

    def restore(self, content: list[bytearray]) -> None:
        for arena, old in zip(self.arenas, content, strict=True):
            ctypes.memmove(arena.begin, bytes(old), arena.size)


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=of_a_hundred(25), deadline=None)
@given(st.data(), st.sampled_from([1, 2, 7, 64]))
def test_source_does_what_the_twin_does_and_nothing_else(built, width, data, ctas) -> None:
    """Every byte of all memory around is compared, before and after."""
    case = Case(data.draw, width)
    for kernel, arguments in case.launches(width):
        before = case.content()
        twin(kernel, ctas, arguments)
        wanted = case.content()
        case.restore(before)
        built(kernel, ctas, arguments)
        assert case.content() == wanted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.slow
def test_source_compiles_with_wide_accesses_and_no_local_memory(architecture, tmp_path) -> None:
    """By nvcc where there is one: its PTX tells the accesses, its assembler what they cost."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc: the kernels are not compiled by it here")
    ptx = tmp_path / "kernels.ptx"
    arch = f"-arch=sm_{architecture}"
    subprocess.run(["nvcc", arch, "-ptx", "-o", ptx, SOURCE], check=True, timeout=300)
    bodies = dict(re.findall(r"\.entry (llx_\w+)\((.*?)\n}", ptx.read_text(), re.DOTALL))
    assert len(bodies) == 15
    for name, accesses in {
        "16": "v4.u32",
        "8": "v2.u32",
        "4": "u32",
        "2": "u16",
        "1": "u8",
    }.items():
        for kernel in ("gather", "scatter", "transfer"):
            body = bodies[f"llx_{kernel}_{name}"]
            assert len(re.findall(rf"ld\.global\.cs\.{accesses}", body)) == 5, (kernel, name)
            assert len(re.findall(rf"st\.global\.cs\.{accesses}", body)) == 5, (kernel, name)
            assert ".local" not in body
    done = subprocess.run(
        ["nvcc", arch, "-cubin", "-Xptxas", "-v", "-o", tmp_path / "kernels.cubin", SOURCE],
        check=True, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    used = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(used) == 15
    assert max(used) <= 40
    assert done.stderr.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 15


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_as_llx_does_when_it_starts(architecture) -> None:
    try:
        image = compiled(architecture)
    except EngineError as error:
        if error.detail:  # NVRTC's log: it is there, and has not compiled
            raise
        pytest.skip(f"there is no NVRTC to compile the kernels with: {error.message}")
    assert image[:4] == b"\x7fELF"


def test_lists_of_ids_are_as_long_as_the_source_says() -> None:
    assert f"int blocks[{MAX_IDS}];" in SOURCE.read_text()


def test_wheel_carries_the_source() -> None:
    """Hatch takes all files of the package."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'include = ["/llx", ' in project
    assert SOURCE.is_file()
