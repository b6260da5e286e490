"""A GPU in the memory of the test: its streams run when somebody looks, in any order allowed."""

import ctypes
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llx.errors import EngineError
from tests.cuda.twin import twin

Kernel = Callable[[str, int, Sequence], object]


class World:
    """What processes of one host have in common: the handles of memory."""

    def __init__(self) -> None:
        self.handles: dict[bytes, tuple[int, int]] = {}


class FakeDriver:
    """`llx.cuda.driver.Driver` without a GPU.

    `lend` makes memory known as an allocation of the GPU; what is in none cannot be used. With
    `is_stuck` nothing on the streams is done any more; `fails` is raised by the calls it names.
    """

    gpu = "GPU-fake"

    def __init__(self, world: World | None = None, *, seed: int = 0, kernel: Kernel = twin) -> None:
        self.world = world or World()
        self.random = random.Random(seed)
        self.kernel = kernel
        self.depth = 0
        self.is_stuck = False
        self.is_exportable = True
        self.fails: set[str] = set()
        self.launched: list[tuple[str, int]] = []
        self.copied: list[int] = []
        self.device: dict[int, object] = {}
        self.host: dict[int, object] = {}
        self.ranges: dict[int, int] = {}
        self.streams: dict[int, deque[Callable[[], bool]]] = {}
        self.events: dict[int, list[int]] = {}  # how often recorded, how often passed
        self.mapped: dict[bytes, int] = {}
        self._next = 1

    def lend(self, address: int, size: int) -> None:
        self.ranges[address] = size

    @contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    # ---------------------------------------------------------------- streams

    def launch(self, kernel: str, ctas: int, arguments: Sequence, stream: int) -> None:
        self._called("launch")
        self.launched.append((kernel, ctas))
        taken = tuple(arguments)

        def run() -> bool:
            self.kernel(kernel, ctas, taken)
            return True

        self.streams[stream].append(run)

    def new_stream(self) -> int:
        self._called("new_stream")
        self._next += 1
        self.streams[self._next] = deque()
        return self._next

    def free_stream(self, stream: int) -> None:
        del self.streams[stream]

    def new_event(self) -> int:
        self._called("new_event")
        self._next += 1
        self.events[self._next] = [0, 0]
        return self._next

    def free_event(self, event: int) -> None:
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        self._called("record")
        counts = self.events[event]
        counts[0] += 1
        turn = counts[0]

        def run() -> bool:
            counts[1] = max(counts[1], turn)
            return True

        self.streams[stream].append(run)

    def hold(self, stream: int, event: int) -> None:
        self._called("hold")
        counts = self.events[event]
        turn = counts[0]
        self.streams[stream].append(lambda: counts[1] >= turn)

    def has_passed(self, event: int) -> bool:
        self._called("has_passed")
        for _ in range(self.random.randrange(4)):
            self._step()
        recorded, passed = self.events[event]
        return passed >= recorded

    def wait(self, event: int, timeout_s: float) -> None:
        assert timeout_s > 0
        for _ in range(100_000):
            if self.has_passed(event):
                return
            if self.is_stuck:
                break
        raise EngineError(f"{self.gpu} has not copied KV within {timeout_s:g} s")

    def _step(self) -> None:
        busy = [] if self.is_stuck else [each for each in self.streams.values() if each]
        if busy:
            stream = self.random.choice(busy)
            if stream[0]():
                stream.popleft()

    # ---------------------------------------------------------------- memory

    def allocate(self, size_bytes: int) -> int:
        self._called("allocate")
        memory = ctypes.create_string_buffer(size_bytes + 128)
        address = (ctypes.addressof(memory) + 127) // 128 * 128
        self.device[address] = memory
        return address

    def free(self, address: int) -> None:
        del self.device[address]

    def allocate_host(self, size_bytes: int) -> int:
        self._called("allocate_host")
        memory = ctypes.create_string_buffer(size_bytes)
        self.host[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free_host(self, address: int) -> None:
        assert self.depth, "no context"
        del self.host[address]

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._move(target, source, size_bytes, stream)

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._move(target, source, size_bytes, stream)

    def _move(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._called("move")
        self.copied.append(size_bytes)

        def run() -> bool:
            ctypes.memmove(target, source, size_bytes)
            return True

        self.streams[stream].append(run)

    def range_of(self, address: int) -> tuple[int, int]:
        for base, size in (self.ranges | dict(self.world.handles.values())).items():
            if base <= address < base + size:
                return base, size
        raise EngineError("CUDA: cuMemGetAddressRange: CUDA_ERROR_NOT_FOUND")

    # ---------------------------------------------------------------- other processes

    def export(self, base: int) -> bytes:
        if not self.is_exportable:
            raise EngineError("CUDA: cuIpcGetMemHandle: CUDA_ERROR_INVALID_VALUE")
        handle = base.to_bytes(64, "little")
        self.world.handles[handle] = (base, self.ranges[base])
        return handle

    def map(self, handle: bytes) -> int:
        self._called("map")
        if handle not in self.world.handles:
            raise EngineError("CUDA: cuIpcOpenMemHandle: CUDA_ERROR_INVALID_VALUE")
        self.mapped[handle] = self.mapped.get(handle, 0) + 1
        return self.world.handles[handle][0]

    def unmap(self, handle: bytes) -> None:
        self.mapped[handle] -= 1
        if not self.mapped[handle]:
            del self.mapped[handle]

    # ---------------------------------------------------------------- for tests

    def holds(self) -> dict[str, int]:
        """What is in use, of each kind."""
        return {
            "device": len(self.device),
            "host": len(self.host),
            "streams": len(self.streams),
            "events": len(self.events),
            "mapped": len(self.mapped),
        }

    def _called(self, name: str) -> None:
        assert self.depth, f"{name} without a context"
        if name in self.fails:
            raise EngineError(f"CUDA: {name}: CUDA_ERROR_LAUNCH_FAILED")


class FakeTensor:
    """What `GpuBlocks` asks of a tensor."""

    def __init__(self, tensor, device="cuda:0") -> None:
        self._tensor = tensor
        self.shape = tensor.shape
        self.dtype = f"torch.{tensor.dtype}"
        self.device = device

    def data_ptr(self) -> int:
        return self._tensor.address

    def stride(self) -> tuple[int, ...]:
        return self._tensor.strides

    def element_size(self) -> int:
        return self._tensor.itemsize
