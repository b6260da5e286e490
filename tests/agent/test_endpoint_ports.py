"""Where an instance listens."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from llx import __version__
from llx.agent.endpoint import InstanceEndpoint
from llx.core.model import InstanceId, PoolName
from llx.curve import ClusterKeys
from llx.errors import ConflictError
from llx.wire import InstanceInfo

INFO = InstanceInfo(
    instance=InstanceId("m-0"), pool=PoolName("m"), engine="sim", llx_version=__version__,
    vllm_version="0", model="/m", num_blocks=1, block_size=1, max_model_len=1, max_num_seqs=1,
    max_num_batched_tokens=1, tensor_parallel=1, pid=0,
)  # fmt: skip


class NoEngine:
    def add(self, *_: object) -> None: ...
    def abort(self, *_: object) -> None: ...
    def call(self, *_: object) -> None: ...
    def drop_peer(self, *_: object) -> None: ...


def endpoint(host: str, port_range: tuple[int, int] | None) -> InstanceEndpoint:
    return InstanceEndpoint(
        ClusterKeys.create(), host, info=INFO, engine_ready=b"", sink=NoEngine(),
        allowed_calls=frozenset(), port_range=port_range,
    )  # fmt: skip


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def taken_after_two_free_ones() -> Iterator[int]:
    """A port that is taken."""
    while True:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            taken = other.getsockname()[1]
            if is_free(taken - 2) and is_free(taken - 1):
                yield taken
                return


def test_two_free_ports_of_the_range_are_taken_and_a_full_one_says_so() -> None:
    with taken_after_two_free_ones() as taken:
        whole = (taken - 2, taken)
        first = endpoint("127.0.0.1", whole)
        ports = {int(each.rpartition(":")[2]) for each in first.start()}
        assert ports == {taken - 2, taken - 1}
        second = endpoint("127.0.0.1", whole)
        with pytest.raises(ConflictError, match=f"every port from {taken - 2} to {taken} is taken"):
            second.start()
        first.close("done")


def test_an_address_that_is_not_here_is_named() -> None:
    strange = endpoint("192.0.2.1", (21100, 21101))
    with pytest.raises(ConflictError, match=r"192\.0\.2\.1 cannot be listened on"):
        strange.start()


def test_without_a_range_the_system_chooses() -> None:
    made = endpoint("127.0.0.1", None)
    assert len(set(made.start())) == 2
    made.close("done")
