"""One GPU through CUDA's driver API: the few calls that copying KV needs. Knows no KV.

Everything goes through `cuda.bindings`, which torch brings along with NVRTC: a host needs neither a
CUDA toolkit nor a compiler. It is imported inside alone: the operator's environment has none.
Memory made here is not torch's: its allocator never sees it.

Threads: the context of a GPU is current per thread, so every call here is made within
`Driver.current`, which leaves the thread as it was. Streams, events and addresses are plain ints.
"""

import ctypes
import functools
import importlib
import importlib.resources
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from llx.errors import EngineError, StillWritingError

THREADS: Final = 256
"""Of a CTA, as the kernels are compiled."""
_SOURCE: Final = "kernels.cu"
_HANDLE_BYTES: Final = 64  # CU_IPC_HANDLE_SIZE
_SPINS: Final = 64
_PAUSE_S: Final = 20e-6

_compiling = threading.Lock()


class Driver:
    """One GPU of this process. Any thread; use `driver_of`, which keeps one for each.

    Args:
        ordinal: The GPU as torch counts them, which is how CUDA counts them in this process.

    Raises:
        EngineError: Here and in every method, naming the call and CUDA's error.
    """

    def __init__(self, ordinal: int) -> None:
        self._cuda = _bindings("driver")
        self.ordinal = ordinal
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", ordinal)
        # Torch uses the primary context, so memory, streams and events are the same there.
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        self.gpu = f"GPU-{uuid.UUID(bytes=_bytes_of(self._call('cuDeviceGetUuid', device), 16))}"
        """The GPU's UUID, as `nvidia-smi` writes it."""
        self._functions: dict[str, Any] = {}
        self._mappings: dict[bytes, tuple[int, int]] = {}
        self._mapping = threading.Lock()
        attribute = self._cuda.CUdevice_attribute
        capability = [
            self._call("cuDeviceGetAttribute", each, device)
            for each in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        ]
        image = compiled(10 * int(capability[0]) + int(capability[1]))
        with self.current():
            self._module = self._call("cuModuleLoadData", image)
            self._low = int(self._call("cuCtxGetStreamPriorityRange")[0])

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context that of this thread, for what is called inside.

        The thread captures nothing here, and what another one captures is none of ours: without
        the relaxed mode, an allocation or a query here would break a CUDA graph that the engine
        captures at that moment.
        """
        self._call("cuCtxPushCurrent", self._context)
        try:
            relaxed = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            before = self._call("cuThreadExchangeStreamCaptureMode", relaxed)
            try:
                yield
            finally:
                self._call("cuThreadExchangeStreamCaptureMode", before)
        finally:
            self._call("cuCtxPopCurrent")

    # ---------------------------------------------------------------- kernels and streams

    def launch(
        self, kernel: str, ctas: int, arguments: Sequence[int | ctypes.Structure], stream: int
    ) -> None:
        """Start a kernel of `kernels.cu`; all integers are passed as 64 bits.

        A parameter of 32 bits takes the lower half, which lies first.
        """
        function = self._functions.get(kernel)
        if function is None:
            function = self._call("cuModuleGetFunction", self._module, kernel.encode())
            self._functions[kernel] = function
        types = tuple(ctypes.c_void_p if isinstance(each, int) else None for each in arguments)
        values = (tuple(arguments), types)
        self._call("cuLaunchKernel", function, ctas, 1, 1, THREADS, 1, 1, 0, stream, values, 0)

    def new_stream(self) -> int:
        """A stream that waits for no other, of the lowest priority: that of streams by default."""
        flags = int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(self._call("cuStreamCreateWithPriority", flags, self._low))

    def free_stream(self, stream: int) -> None:
        """Give it back; what is under way on it goes on."""
        self._call("cuStreamDestroy", stream)

    def new_event(self) -> int:
        """An event; it has passed until it is recorded."""
        return int(
            self._call("cuEventCreate", int(self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        )

    def free_event(self, event: int) -> None:
        """Give it back."""
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """The event passes when all that is on the stream by now is done."""
        self._call("cuEventRecord", event, stream)

    def hold(self, stream: int, event: int) -> None:
        """What comes onto the stream from now on waits for the event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def has_passed(self, event: int) -> bool:
        """Whether it has. Also raises what went wrong on the GPU before."""
        result = self._cuda.cuEventQuery(event)[0]
        if result == self._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._check("cuEventQuery", result)
        return True

    def wait(self, event: int, timeout_s: float) -> None:
        """Wait until the event has passed, giving other threads their turn.

        Raises:
            StillWritingError: It has not in time: the work before it may still be done later.
        """
        deadline = time.monotonic() + timeout_s
        polls = 0
        while not self.has_passed(event):
            if time.monotonic() > deadline:
                raise StillWritingError(f"{self.gpu} has not copied KV within {timeout_s:g} s")
            polls += 1
            time.sleep(0 if polls < _SPINS else _PAUSE_S)

    # ---------------------------------------------------------------- memory

    def allocate(self, size_bytes: int) -> int:
        """Memory of the GPU."""
        return int(self._call("cuMemAlloc", size_bytes))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave; waits for the GPU."""
        self._call("cuMemFree", address)

    def allocate_host(self, size_bytes: int) -> int:
        """Memory of the host that a GPU reads and writes at the full speed of its link."""
        return int(self._call("cuMemHostAlloc", size_bytes, self._cuda.CU_MEMHOSTALLOC_PORTABLE))

    def free_host(self, address: int) -> None:
        """Give back what `allocate_host` gave."""
        self._call("cuMemFreeHost", address)

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Copy from the GPU to the host, in the stream's order."""
        self._call("cuMemcpyDtoHAsync", target, source, size_bytes, stream)

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Copy from the host to the GPU, in the stream's order."""
        self._call("cuMemcpyHtoDAsync", target, source, size_bytes, stream)

    def range_of(self, address: int) -> tuple[int, int]:
        """Address and size of the allocation in which an address lies."""
        base, size = self._call("cuMemGetAddressRange", address)
        return int(base), int(size)

    # ---------------------------------------------------------------- memory of other processes

    def export(self, base: int) -> bytes:
        """A handle by which another process of this host maps an allocation."""
        return _bytes_of(self._call("cuIpcGetMemHandle", base), _HANDLE_BYTES)

    def map(self, handle: bytes) -> int:
        """Map what `export` has named, once however often it is asked for; to be unmapped."""
        with self._mapping:
            address, users = self._mappings.get(handle, (0, 0))
            if not users:
                opened = self._cuda.CUipcMemHandle()
                ctypes.memmove(opened.getPtr(), handle, _HANDLE_BYTES)
                lazily = int(self._cuda.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
                address = int(self._call("cuIpcOpenMemHandle", opened, lazily))
            self._mappings[handle] = (address, users + 1)
            return address

    def unmap(self, handle: bytes) -> None:
        """Undo one `map`; the last one takes the mapping down."""
        with self._mapping:
            address, users = self._mappings.pop(handle)
            if users > 1:
                self._mappings[handle] = (address, users - 1)
            else:
                self._call("cuIpcCloseMemHandle", address)

    # ---------------------------------------------------------------- errors

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a call gives besides its result: nothing, one thing, or a tuple."""
        try:
            result, *values = getattr(self._cuda, name)(*arguments)
        except RuntimeError as error:  # the driver is missing, or lacks the call
            raise EngineError(f"CUDA: {name}: {error}") from error
        self._check(name, result)
        if len(values) > 1:
            return tuple(values)
        return values[0] if values else None

    def _check(self, name: str, result: Any) -> None:
        if result == self._cuda.CUresult.CUDA_SUCCESS:
            return
        raise EngineError(f"CUDA: {name}: {getattr(result, 'name', result)}")


@functools.cache
def _driver_of(ordinal: int) -> Driver:
    return Driver(ordinal)


def driver_of(ordinal: int) -> Driver:
    """The one `Driver` of a GPU in this process; the first call compiles the kernels."""
    with _compiling:
        return _driver_of(ordinal)


@functools.cache
def compiled(capability: int) -> bytes:
    """`kernels.cu` for a GPU of that compute capability (90 is 9.0), by NVRTC.

    An NVRTC that is older than the GPU compiles for the newest one that it knows, and the GPU's
    driver does the rest.

    Raises:
        EngineError: NVRTC is missing, or does not compile; the detail is its log.
    """
    nvrtc = _bindings("nvrtc")
    source = importlib.resources.files("llx.cuda").joinpath(_SOURCE).read_bytes()
    try:
        known = _made(nvrtc, nvrtc.nvrtcGetSupportedArchs())
        usable = [each for each in known if each <= capability]
        if not usable:
            raise EngineError(f"NVRTC compiles for no GPU as old as {capability / 10}")
        is_known = capability in usable
        target = f"sm_{capability}" if is_known else f"compute_{max(usable)}"
        options = [f"--gpu-architecture={target}".encode()]
        program = _made(nvrtc, nvrtc.nvrtcCreateProgram(source, _SOURCE.encode(), 0, None, None))
        try:
            (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                log = _read(nvrtc, "ProgramLog", program).decode(errors="replace")
                raise EngineError(f"NVRTC does not compile the kernels for {target}", detail=log)
            return _read(nvrtc, "CUBIN" if is_known else "PTX", program)
        finally:
            nvrtc.nvrtcDestroyProgram(program)
    except RuntimeError as error:  # no library, or one that lacks the call
        raise EngineError(f"NVRTC: {error}") from error


def _bindings(name: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise EngineError(
            f"CUDA's Python bindings are missing: {error}",
            remedy="install cuda-bindings of the CUDA version that torch is built for",
        ) from error


def _made(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    """What an NVRTC call gives besides its result."""
    if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"NVRTC: {answer[0].name}")
    return answer[1]


def _read(nvrtc: Any, what: str, program: Any) -> bytes:
    data = bytearray(_made(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program)))
    (result,) = getattr(nvrtc, f"nvrtcGet{what}")(program, data)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"NVRTC: nvrtcGet{what}: {result.name}")
    return bytes(data)


def _bytes_of(structure: Any, size: int) -> bytes:
    """Of an opaque structure of the bindings."""
    return ctypes.string_at(structure.getPtr(), size)
