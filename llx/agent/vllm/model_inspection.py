"""What vLLM has to know of a model's class before it makes a configuration, found out cheaply.

vLLM imports the class in a process of its own, so that the import cannot initialise CUDA in the one
that asks, and keeps what it found in its cache. That process imports all of vLLM again: 13 s of a
core, on every host that sees a model for the first time, in each gateway and engine that starts
then. Where there is no CUDA the class can as well be imported at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vllm.model_executor.models import registry
from vllm.platforms import current_platform

T = TypeVar("T")


@contextmanager
def inspecting_here() -> Iterator[None]:
    """Within the block vLLM finds it out in this process, if it computes on the CPU.

    Not for a process that serves meanwhile: an import holds up all its threads.
    """
    elsewhere = registry._run_in_subprocess
    if current_platform.is_cpu():
        registry._run_in_subprocess = _at_once
    try:
        yield
    finally:
        registry._run_in_subprocess = elsewhere


def _at_once(inspect: Callable[[], T]) -> T:
    return inspect()
