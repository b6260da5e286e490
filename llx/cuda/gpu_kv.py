"""A rank's KV cache on a GPU, as other GPUs are joined to it: `llx.ports.DeviceKv`."""

from collections.abc import Callable

from llx.cuda.gpu_blocks import GpuBlocks
from llx.cuda.nccl import Communicator, Nccl, NcclApi
from llx.cuda.pairs import CHUNK_BYTES, Buffers, Pair
from llx.cuda.peers import GpuPeer
from llx.errors import EngineError


class GpuKv:
    """Ways from this cache to others.

    Args:
        blocks: The cache.
        api: NCCL; what torch brings along if it is not given.
    """

    def __init__(self, blocks: GpuBlocks, api: NcclApi | None = None) -> None:
        self._blocks = blocks
        self._api = api
        self._lacks = ""
        if api is None:
            try:
                self._api = Nccl()
            except EngineError as error:
                self._lacks = error.message
        size = max(CHUNK_BYTES, blocks.block_bytes)
        self._sending = Buffers(blocks.driver, size)
        self._receiving = Buffers(blocks.driver, size)

    @property
    def gpu(self) -> str:
        """UUID of the GPU."""
        return self._blocks.gpu

    @property
    def nccl(self) -> str:
        """See `llx.ports.DeviceKv`, as all that follows: of whole blocks if they go as they lie."""
        if self._api is None:
            return ""
        return self._api.version + (" of whole blocks" if self._blocks.is_contiguous else "")

    def share(self) -> bytes:
        """Handles of CUDA's inter-process communication."""
        return self._blocks.share()

    def open_peer(self, shared: bytes) -> GpuPeer:
        """Map them."""
        return self._blocks.open_peer(shared)

    def new_pair(self) -> bytes:
        """NCCL's unique id."""
        return self._require().unique_id()

    def join(self, pair: bytes, *, is_source: bool, is_cancelled: Callable[[], bool]) -> Pair:
        """Join, and speak once: NCCL connects the two when they first do."""
        api, driver = self._require(), self._blocks.driver
        buffers = self._sending if is_source else self._receiving
        with driver.current():
            if not self._blocks.is_contiguous:
                buffers.at(0)  # no memory for them is a reason not to join
            communicator = Communicator(api, pair, is_source=is_source, is_cancelled=is_cancelled)
        joined = Pair(driver, self._blocks, communicator, buffers, is_source=is_source)
        try:
            joined.connect(is_cancelled)
        except BaseException:
            joined.close()
            raise
        return joined

    def close(self) -> None:
        """Free the buffers; every pair has to be closed before."""
        with self._blocks.driver.current():
            self._sending.close()
            self._receiving.close()

    def _require(self) -> NcclApi:
        if self._api is None:
            raise EngineError(self._lacks)
        return self._api
