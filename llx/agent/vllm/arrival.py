"""What a worker has to know of a request that began elsewhere, before it is first scheduled here.

It rides on vLLM's own message of a step (`SchedulerOutput`), to every rank, as one more attribute:
so it arrives exactly when the request does, and costs no round trip of its own. Pickled by vLLM
between the processes of one instance; imports no vLLM.
"""

from dataclasses import dataclass
from typing import Any, Final

ATTRIBUTE: Final = "llx_arrivals"
"""Of `SchedulerOutput`: a list of `Arrival`."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that a migration brought.

    `request` is vLLM's own id of it, `prompt` and `outputs` are token ids, the rest is vLLM's. An
    arrival that `is_gone` ended before it was ever scheduled: what was kept for its migration can
    be forgotten.
    """

    request: str
    migration: str
    is_gone: bool = False
    prompt: list[int] | None = None
    outputs: tuple[int, ...] = ()
    sampling_params: Any = None
    lora_request: Any = None
    mm_features: Any = ()
