"""Steps asked of an instance by way of the head."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llx.cluster.fleet.step_book import read_steps
from llx.errors import DeadlineError, RemoteError, UnreachableError
from llx.specs import EngineKind, InstanceSpec

SIZES = {
    "pool": "m", "num_blocks": 9, "block_size": 16, "max_model_len": 64, "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
}  # fmt: skip
INFO = SimpleNamespace(**SIZES)
SPEC = InstanceSpec("m-0", "m", EngineKind.SIM, "/m", {}, 1, "", "", "")


def fleet(answer: Any, info: Any = INFO) -> Any:
    """An instance m-0 that answers so."""

    async def call(instance: str, method: str, payload: Any, _timeout: float) -> Any:
        assert (instance, method) == ("m-0", "llx_steps")
        if isinstance(answer, Exception):
            raise answer
        return [memoryview(answer)]

    loads = SimpleNamespace(info=lambda _: info, call=call)
    return SimpleNamespace(
        instance_unit=lambda name: SimpleNamespace(name=name, spec=SPEC), loads=loads
    )


def kept(first: int, count: int) -> bytes:
    rows = [(n, 1, n, 0, n, 1000 + n) for n in range(first, first + count)]
    return msgspec.msgpack.encode({"first": first, "rows": rows})


async def test_they_are_told_from_a_number_on_as_many_as_an_answer_holds() -> None:
    found = await read_steps(fleet(kept(700, 2500)), "m-0", 1000)
    assert (found.first, found.end, len(found.steps)) == (1000, 3200, 1000)
    assert found.steps[0] == (1000, 1, 1000, 0, 1000, 2000)
    assert (found.model, found.max_model_len) == ("m", 64)
    lost = await read_steps(fleet(kept(700, 3)), "m-0", 0)
    assert (lost.first, len(lost.steps)) == (700, 3), "the ring has lost those before"
    assert (await read_steps(fleet(kept(0, 3)), "m-0", 2**62)).steps == []


@pytest.mark.parametrize(
    ("answer", "info", "error"),
    [
        (kept(0, 1), None, UnreachableError),
        (TimeoutError(), INFO, DeadlineError),
        (b"\xc1", INFO, RemoteError),
    ],
)
async def test_who_does_not_answer_is_said(answer: Any, info: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="m-0"):
        await read_steps(fleet(answer, info), "m-0", 0)
