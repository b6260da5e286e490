"""Communicators of two ranks through NCCL's C interface: joined, used and ended under a deadline.

torch's and vLLM's own communicators block without a limit and belong to them; these are ours alone.
Each is *non-blocking*: no call waits for the peer, its state is asked for until it is settled, and
whoever has waited long enough aborts it. One thread at a time uses a communicator, so that nobody
is inside a call of it when it is aborted, and nothing is called on it afterwards.
"""

import ctypes
import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Protocol

from llx.cuda.driver import Driver
from llx.errors import EngineError

UNIQUE_ID_BYTES: Final = 128
MAX_CTAS: Final = 4
"""CTAs of a transfer: each is an SM that the model beside it has to do without."""
JOIN_S: Final = 20.0
STALL_S: Final = 10.0
"""Nothing of a transfer has got on for so long: the peer is dead or stuck."""

_UNSET: Final = -(2**31)
_MAGIC: Final = 0xCAFEBEEF
_CONFIG_VERSION: Final = 21800
"""The fields below are those of 2.18; a later NCCL takes its own defaults for the others."""
_OLDEST: Final = 21800
_INT8: Final = 0  # ncclInt8: bytes
_SPINS: Final = 64
_PAUSE_S: Final = 50e-6
_LOOK_EVERY: Final = 16
"""Polls between two looks at what costs a system call."""


class Result(IntEnum):
    """`ncclResult_t`, as far as it is told apart."""

    SUCCESS = 0
    IN_PROGRESS = 7


class NcclApi(Protocol):
    """NCCL, as a communicator uses it; every method raises `EngineError` for a failure of NCCL's.

    A communicator is an int. `init`, `send`, `receive` and `end_group` may return before they are
    done: `is_settled` says when they are.
    """

    @property
    def version(self) -> str:
        """For instance ``2.28.9``."""

    def unique_id(self) -> bytes:
        """Names a communicator to be; valid as long as this process lives."""

    def init(self, unique_id: bytes, rank: int) -> int:
        """Begin to join one of two ranks, on the GPU that is current."""

    def is_settled(self, communicator: int) -> bool:
        """Whether what was begun is done."""

    def start_group(self) -> None:
        """What follows, up to `end_group`, is one launch."""

    def end_group(self) -> None:
        """Launch it."""

    def send(self, address: int, size: int, communicator: int, stream: int) -> None:
        """Send bytes to the other rank."""

    def receive(self, address: int, size: int, communicator: int, stream: int) -> None:
        """Receive them."""

    def abort(self, communicator: int) -> None:
        """End it, and every kernel of it, without the other rank; it is freed then."""


class Communicator:
    """One of two ranks. One thread at a time, within `Driver.current`.

    Args:
        api: NCCL.
        unique_id: The same at both ends.
        is_source: Rank 0; else rank 1. Bytes go from 0 to 1.
        is_cancelled: Asked while it waits.

    Raises:
        EngineError: Here and in every method: NCCL failed, the peer did not come, or it was
            cancelled. The communicator is aborted then, and good for nothing.
    """

    def __init__(
        self,
        api: NcclApi,
        unique_id: bytes,
        *,
        is_source: bool,
        is_cancelled: Callable[[], bool],
        join_s: float = JOIN_S,
        stall_s: float = STALL_S,
    ) -> None:
        self._api = api
        self._is_source = is_source
        self._stall_s = stall_s
        self._handle: int | None = api.init(unique_id, 0 if is_source else 1)
        self._settle("the peer to join", join_s, is_cancelled)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._handle is not None

    def transfer(
        self,
        runs: Sequence[tuple[int, int]],
        stream: int,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Send or receive runs of memory (address, bytes), in order, as one launch on the stream.

        Returns when it has been launched; the other end has to do the same with as many bytes.
        """
        move = self._api.send if self._is_source else self._api.receive
        with self._aborting():
            handle = self._require()
            self._api.start_group()
            try:
                for address, size in runs:
                    move(address, size, handle, stream)
            finally:
                self._api.end_group()
        self._settle("a transfer to be launched", self._stall_s, is_cancelled)

    def wait(self, driver: Driver, events: Sequence[int], is_cancelled: Callable[[], bool]) -> None:
        """Until these events have passed, each within `stall_s` of the one before."""
        for event in events:
            has_passed = functools.partial(driver.has_passed, event)
            self._poll(has_passed, "a transfer to be done", self._stall_s, is_cancelled)

    def abort(self) -> None:
        """End it; nothing of it runs any more then. Again is nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._api.abort(handle)

    # ------------------------------------------------------------------ waiting

    def _settle(self, what: str, limit_s: float, is_cancelled: Callable[[], bool]) -> None:
        self._poll(lambda: True, what, limit_s, is_cancelled)

    def _poll(
        self,
        is_done: Callable[[], bool],
        what: str,
        limit_s: float,
        is_cancelled: Callable[[], bool],
    ) -> None:
        deadline = time.monotonic() + limit_s
        with self._aborting():
            for polls in itertools.count(1):
                if self._api.is_settled(self._require()) and is_done():
                    return
                if polls % _LOOK_EVERY == 0:
                    if is_cancelled():
                        raise EngineError(f"NCCL: gave up waiting for {what}")
                    if time.monotonic() > deadline:
                        raise EngineError(f"NCCL: waited {limit_s:g} s for {what}")
                time.sleep(0 if polls < _SPINS else _PAUSE_S)

    def _require(self) -> int:
        if self._handle is None:
            raise EngineError("NCCL: the communicator has been aborted")
        return self._handle

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """What fails inside ends the communicator."""
        try:
            yield
        except BaseException:
            self.abort()
            raise


# ---------------------------------------------------------------- the library


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_char * UNIQUE_ID_BYTES),)


class _Config(ctypes.Structure):
    """`ncclConfig_t` up to the fields of 2.18."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cga_cluster_size", ctypes.c_int),
        ("min_ctas", ctypes.c_int),
        ("max_ctas", ctypes.c_int),
        ("net_name", ctypes.c_char_p),
        ("split_share", ctypes.c_int),
    )


class Nccl:
    """`NcclApi` over libnccl, as torch brings it along.

    Raises:
        EngineError: There is none, or it is older than 2.18.
    """

    def __init__(self) -> None:
        self._library = _load()
        for name, types in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, ctypes.c_int
        self._library.ncclGetErrorString.argtypes = [ctypes.c_int]
        self._library.ncclGetErrorString.restype = ctypes.c_char_p
        number = ctypes.c_int()
        self._call("ncclGetVersion", ctypes.byref(number))
        if number.value < _OLDEST:
            raise EngineError(f"NCCL {number.value} is too old: it has to be 2.18 or newer")
        major, rest = divmod(number.value, 10_000)
        self._version = f"{major}.{rest // 100}.{rest % 100}"

    @property
    def version(self) -> str:
        """See `NcclApi`, as all that follows."""
        return self._version

    def unique_id(self) -> bytes:
        """Begins to listen for the other rank, in a thread of NCCL's."""
        made = _UniqueId()
        self._call("ncclGetUniqueId", ctypes.byref(made))
        return ctypes.string_at(ctypes.byref(made), UNIQUE_ID_BYTES)

    def init(self, unique_id: bytes, rank: int) -> int:
        """Of two ranks; few CTAs, and no call blocks."""
        if len(unique_id) != UNIQUE_ID_BYTES:
            raise EngineError(f"NCCL: an id of {len(unique_id)} bytes")
        named = _UniqueId.from_buffer_copy(unique_id)
        config = _Config(
            size=ctypes.sizeof(_Config),
            magic=_MAGIC,
            version=_CONFIG_VERSION,
            blocking=0,
            cga_cluster_size=_UNSET,
            min_ctas=1,
            max_ctas=MAX_CTAS,
            net_name=None,
            split_share=_UNSET,
        )
        handle = ctypes.c_void_p()
        self._call(
            "ncclCommInitRankConfig", ctypes.byref(handle), 2, named, rank, ctypes.byref(config)
        )
        if handle.value is None:
            raise EngineError("NCCL: no communicator was made")
        return handle.value

    def is_settled(self, communicator: int) -> bool:
        """`ncclCommGetAsyncError`."""
        state = ctypes.c_int()
        self._call("ncclCommGetAsyncError", communicator, ctypes.byref(state))
        return self._check("ncclCommGetAsyncError", state.value)

    def start_group(self) -> None:
        """Of this thread."""
        self._call("ncclGroupStart")

    def end_group(self) -> None:
        """Of this thread."""
        self._call("ncclGroupEnd")

    def send(self, address: int, size: int, communicator: int, stream: int) -> None:
        """To the other rank, from rank 0."""
        self._call("ncclSend", address, size, _INT8, 1, communicator, stream)

    def receive(self, address: int, size: int, communicator: int, stream: int) -> None:
        """From rank 0."""
        self._call("ncclRecv", address, size, _INT8, 0, communicator, stream)

    def abort(self, communicator: int) -> None:
        """Waits for its kernels, which it ends, and for nobody else."""
        self._call("ncclCommAbort", communicator)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, result: int) -> bool:
        """Whether it is done; it may go on in the background."""
        if result not in {Result.SUCCESS, Result.IN_PROGRESS}:
            said = self._library.ncclGetErrorString(result).decode(errors="replace")
            raise EngineError(f"NCCL: {name}: {said}")
        return result == Result.SUCCESS


_POINTER, _STREAM = ctypes.c_void_p, ctypes.c_void_p
_SIGNATURES: Final[dict[str, list[Any]]] = {
    "ncclGetVersion": [ctypes.POINTER(ctypes.c_int)],
    "ncclGetUniqueId": [ctypes.POINTER(_UniqueId)],
    "ncclCommInitRankConfig": [
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int,
        _UniqueId,
        ctypes.c_int,
        ctypes.POINTER(_Config),
    ],
    "ncclCommGetAsyncError": [_POINTER, ctypes.POINTER(ctypes.c_int)],
    "ncclGroupStart": [],
    "ncclGroupEnd": [],
    "ncclSend": [_POINTER, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, _POINTER, _STREAM],
    "ncclRecv": [_POINTER, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, _POINTER, _STREAM],
    "ncclCommAbort": [_POINTER],
}


def _load() -> ctypes.CDLL:
    """The one that torch has loaded, or would load."""
    name = "libnccl.so.2"
    tried = []
    for candidate in (name, *_beside_torch(name)):
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            tried.append(str(error))
    raise EngineError(f"NCCL cannot be loaded: {'; '.join(tried)}"[:500])


def _beside_torch(name: str) -> list[str]:
    """Where the package lies that torch depends on."""
    try:
        found = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    folders = found.submodule_search_locations if found is not None else None
    return [str(Path(folder) / "lib" / name) for folder in folders or ()]
