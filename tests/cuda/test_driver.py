"""What `Driver` makes of CUDA's answers, against bindings that answer as the test says."""

import ctypes
import enum
import sys
import types

import pytest

from llx.cuda import driver as module
from llx.cuda.driver import Driver, compiled
from llx.errors import EngineError

CUresult = enum.Enum("CUresult", "CUDA_SUCCESS CUDA_ERROR_NOT_READY CUDA_ERROR_OUT_OF_MEMORY")
NvrtcResult = enum.Enum("nvrtcResult", "NVRTC_SUCCESS NVRTC_ERROR_COMPILATION")


class Structure:
    def __init__(self) -> None:
        self.data = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:  # noqa: N802 - as the bindings call it
        return ctypes.addressof(self.data)


class FakeCuda(types.SimpleNamespace):
    """`cuda.bindings.driver`: every call succeeds with what `gives` says, and is remembered."""

    def __init__(self) -> None:
        plain = dict.fromkeys(("CU_STREAM_NON_BLOCKING", "CU_EVENT_DISABLE_TIMING"), 1)
        super().__init__(
            CUresult=CUresult,
            CUipcMemHandle=Structure,
            CU_MEMHOSTALLOC_PORTABLE=1,
            CUstreamCaptureMode=types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed"),
            CUstream_flags=types.SimpleNamespace(**plain),
            CUevent_flags=types.SimpleNamespace(**plain),
            CUipcMem_flags=types.SimpleNamespace(CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS=1),
            CUdevice_attribute=types.SimpleNamespace(
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
            ),
        )
        self.calls: list[tuple] = []
        self.fails: dict[str, CUresult] = {}
        self.gives = {
            "cuDeviceGet": (0,),
            "cuDevicePrimaryCtxRetain": ("context",),
            "cuDeviceGetUuid": (Structure(),),
            "cuDeviceGetAttribute": (9,),
            "cuModuleLoadData": ("module",),
            "cuModuleGetFunction": ("function",),
            "cuCtxGetStreamPriorityRange": (0, -5),
            "cuCtxPopCurrent": ("context",),
            "cuThreadExchangeStreamCaptureMode": ("global",),
            "cuMemAlloc": (4096,),
            "cuMemGetAddressRange": (4096, 512),
            "cuIpcGetMemHandle": (Structure(),),
            "cuIpcOpenMemHandle": (8192,),
        }

    def __getattr__(self, name: str):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            return (self.fails.get(name, CUresult.CUDA_SUCCESS), *self.gives.get(name, ()))

        return call

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


class FakeNvrtc(types.SimpleNamespace):
    def __init__(self, known: list[int], *, is_good: bool = True) -> None:
        good = NvrtcResult.NVRTC_SUCCESS
        super().__init__(
            nvrtcResult=NvrtcResult,
            options=[],
            nvrtcGetSupportedArchs=lambda: (good, known),
            nvrtcCreateProgram=lambda *_: (good, "program"),
            nvrtcDestroyProgram=lambda _: (good,),
        )
        self.result = good if is_good else NvrtcResult.NVRTC_ERROR_COMPILATION
        for what in ("CUBIN", "PTX", "ProgramLog"):
            setattr(self, f"nvrtcGet{what}Size", lambda _, what=what: (good, len(what)))
            setattr(self, f"nvrtcGet{what}", lambda _, out, what=what: self._fill(out, what))

    def nvrtcCompileProgram(self, _: str, count: int, options: list[bytes]):  # noqa: N802
        assert count == len(options)
        self.options += options
        return (self.result,)

    def _fill(self, out: bytearray, what: str):
        out[:] = what.encode()
        return (NvrtcResult.NVRTC_SUCCESS,)


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(module, "_bindings", {"driver": fake, "nvrtc": FakeNvrtc([90])}.get)
    monkeypatch.setattr(module, "compiled", compiled.__wrapped__)
    fake.gives["cuDeviceGetAttribute"] = (9,)
    return fake


def test_a_call_that_fails_names_itself_and_the_error(cuda: FakeCuda) -> None:
    driver = Driver(0)
    cuda.fails["cuMemAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with (
        pytest.raises(EngineError, match="cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"),
        driver.current(),
    ):
        driver.allocate(1)
    assert cuda.count("cuCtxPushCurrent") == cuda.count("cuCtxPopCurrent") == 2


def test_a_thread_is_left_as_it_was(cuda: FakeCuda) -> None:
    driver = Driver(0)
    cuda.calls.clear()
    with pytest.raises(KeyError), driver.current():
        raise KeyError
    assert cuda.calls == [
        ("cuCtxPushCurrent", "context"),
        ("cuThreadExchangeStreamCaptureMode", "relaxed"),
        ("cuThreadExchangeStreamCaptureMode", "global"),
        ("cuCtxPopCurrent",),
    ]


def test_waiting_ends_at_its_deadline(cuda: FakeCuda) -> None:
    driver = Driver(0)
    cuda.fails["cuEventQuery"] = CUresult.CUDA_ERROR_NOT_READY
    with pytest.raises(EngineError, match=r"within 0\.05 s"):
        driver.wait(1, 0.05)
    del cuda.fails["cuEventQuery"]
    driver.wait(1, 0.05)


def test_memory_of_a_peer_is_mapped_once_and_unmapped_by_the_last(cuda: FakeCuda) -> None:
    driver = Driver(0)
    handle = driver.export(4096)
    assert [driver.map(handle) for _ in range(3)] == [8192] * 3
    assert cuda.count("cuIpcOpenMemHandle") == 1
    for closed in (0, 0, 1):
        driver.unmap(handle)
        assert cuda.count("cuIpcCloseMemHandle") == closed
    driver.map(handle)
    assert cuda.count("cuIpcOpenMemHandle") == 2


def test_a_mapping_that_fails_is_tried_again(cuda: FakeCuda) -> None:
    driver = Driver(0)
    cuda.fails["cuIpcOpenMemHandle"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(EngineError):
        driver.map(bytes(64))
    del cuda.fails["cuIpcOpenMemHandle"]
    assert driver.map(bytes(64)) == 8192


def test_functions_are_looked_up_once(cuda: FakeCuda) -> None:
    driver = Driver(0)
    for _ in range(2):
        driver.launch("llx_gather_16", 3, (1, 2), 7)
    assert cuda.count("cuModuleGetFunction") == 1
    (_, function, *shape), *_ = (call for call in cuda.calls if call[0] == "cuLaunchKernel")
    pointers = (ctypes.c_void_p, ctypes.c_void_p)
    assert (function, shape) == ("function", [3, 1, 1, 256, 1, 1, 0, 7, ((1, 2), pointers), 0])


@pytest.mark.parametrize(
    ("known", "option", "image"),
    [([80, 90], "sm_90", b"CUBIN"), ([80, 89, 100], "compute_89", b"PTX")],
)
def test_an_old_nvrtc_compiles_for_what_it_knows(monkeypatch, known, option, image) -> None:
    nvrtc = FakeNvrtc(known)
    monkeypatch.setattr(module, "_bindings", lambda _: nvrtc)
    assert compiled.__wrapped__(90) == image
    assert nvrtc.options == [f"--gpu-architecture={option}".encode()]


def test_what_nvrtc_says_is_told(monkeypatch) -> None:
    monkeypatch.setattr(module, "_bindings", lambda _: FakeNvrtc([90], is_good=False))
    with pytest.raises(EngineError, match="sm_90") as caught:
        compiled.__wrapped__(90)
    assert caught.value.detail == "ProgramLog"
    monkeypatch.setattr(module, "_bindings", lambda _: FakeNvrtc([100]))
    with pytest.raises(EngineError, match="as old as 9"):
        compiled.__wrapped__(90)


def test_without_bindings_or_driver_it_is_an_error_of_ours(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(EngineError, match="bindings are missing"):
        Driver(0)

    def missing(*_):
        raise RuntimeError("no libcuda")

    broken = types.SimpleNamespace(cuInit=missing)
    monkeypatch.setattr(module, "_bindings", lambda _: broken)
    with pytest.raises(EngineError, match="cuInit: no libcuda"):
        Driver(0)
