"""By which medium a connection's KV goes: what the source offers, what the target takes of it.

The target tries what is offered in order, the best first, and says of each better one than the one
it takes why it was not that. No bytes move here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from llx.agent.transport.frames import MAX_SHARED_BYTES, Hello, line_of
from llx.agent.transport.pairs import Pairs
from llx.errors import EngineError, WireError
from llx.ports import KvStore, PeerKv

AUTO = "auto"
NOT_ONE_HOST = "not within one host"


class Medium(StrEnum):
    """How the bytes of a chunk travel, the best first."""

    CUDA_IPC = "cuda-ipc"
    NCCL = "nccl"
    SHM = "shm"
    TCP = "tcp"


def offer(hello: Hello, store: KvStore, pairs: Pairs, *, is_local: bool) -> Hello:
    """Source: the hello, and what its GPU offers."""
    device = store.device
    if device is None or hello.asked in (Medium.SHM, Medium.TCP):
        return hello
    shared, lacks = b"", dict[str, str]()
    if is_local and hello.asked in (AUTO, Medium.CUDA_IPC):
        try:
            shared = device.share()
        except EngineError as error:
            lacks[Medium.CUDA_IPC] = line_of(_said(error))
        if len(shared) > MAX_SHARED_BYTES:
            shared, lacks[Medium.CUDA_IPC] = b"", f"{len(shared)} bytes of handles"
    return msgspec.structs.replace(
        hello,
        gpu=device.gpu,
        shared=shared,
        rank=pairs.identity,
        nccl=device.nccl,
        lacks=lacks,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What the target takes.

    Attributes:
        medium: That.
        why_not: Of each better medium, why it is not that.
        peer: Of CUDA IPC: the source's cache; the caller closes it.
    """

    medium: Medium
    why_not: dict[str, str]
    peer: PeerKv | None = None


def choose(hello: Hello, store: KvStore, pairs: Pairs, *, is_local: bool) -> Choice:
    """Target: the best medium of those that are offered and possible.

    Raises:
        WireError: One was asked for, and is not possible.
    """
    opened: list[PeerKv] = []
    tries: dict[Medium, Callable[[], str]] = {
        Medium.CUDA_IPC: lambda: _try_ipc(hello, store, opened, is_local=is_local),
        Medium.NCCL: lambda: _try_nccl(hello, store, pairs),
        Medium.SHM: lambda: "" if is_local else NOT_ONE_HOST,
        Medium.TCP: lambda: "it was connected to within the host" if is_local else "",
    }
    why_not: dict[str, str] = {}
    for medium, attempt in tries.items():
        if hello.asked not in (AUTO, medium):
            continue
        refusal = attempt()
        if not refusal:
            return Choice(medium, why_not, opened[0] if opened else None)
        why_not[medium] = line_of(refusal)
    raise WireError(f"{hello.asked} is asked for, but {why_not.get(hello.asked, 'not known here')}")


def reason_of(why_not: dict[str, str]) -> str:
    """``cuda-ipc: no GPU; nccl: no GPU``."""
    return "; ".join(f"{medium}: {why}" for medium, why in why_not.items())


def _no_gpu(hello: Hello, store: KvStore) -> str:
    is_here = store.device is not None
    if not hello.gpu and not is_here:
        return "no GPU"
    if not hello.gpu:
        return "no GPU at the source"
    return "" if is_here else "no GPU at the target"


def _try_ipc(hello: Hello, store: KvStore, opened: list[PeerKv], *, is_local: bool) -> str:
    if refusal := _no_gpu(hello, store):
        return refusal
    if not is_local:
        return NOT_ONE_HOST
    if not hello.shared:
        return hello.lacks.get(Medium.CUDA_IPC, "not offered")
    assert store.device is not None, "else it was refused"
    try:
        opened.append(store.device.open_peer(hello.shared))
    except EngineError as error:
        return _said(error)
    return ""


def _said(error: EngineError) -> str:
    """What is wrong, and what to do about it."""
    return f"{error.message} ({error.remedy})" if error.remedy else error.message


def _try_nccl(hello: Hello, store: KvStore, pairs: Pairs) -> str:
    if refusal := _no_gpu(hello, store):
        return refusal
    assert store.device is not None, "else it was refused"
    here = store.device.nccl
    if not hello.nccl or not here:
        where = (
            "" if not hello.nccl and not here else f" at the {'target' if hello.nccl else 'source'}"
        )
        return f"no NCCL{where}"
    if hello.nccl != here:
        return f"NCCL {hello.nccl} at the source, {here} at the target"
    return pairs.shunned(hello.rank)
