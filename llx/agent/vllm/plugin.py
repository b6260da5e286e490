"""llx's vLLM plugin (`vllm.general_plugins`): loaded by vLLM in an instance's core and workers.

It acts only in processes of an llx instance; any other vLLM in the same environment is untouched.
"""

import os
import time

INSTANCE_VARIABLE = "LLX_INSTANCE"
"""Set by `run_vllm` for itself and the workers it starts."""

_CPU_WAIT_S = 50e-6


def register() -> None:
    """vLLM's entry point, called once in each of its processes."""
    if INSTANCE_VARIABLE not in os.environ:
        return
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        wait_without_spinning()


def wait_without_spinning() -> None:
    """Have core and worker sleep, not spin, while one waits for the other.

    vLLM spins on ``sched_yield`` for up to a second after the last message. With GPUs that is a
    core well spent. On a CPU the spinner competes with the model, with the gateway and with other
    instances; and because the kernel groups processes by session (autogroup) it does not even
    yield to a gateway in another one: streams stalled for 200 to 600 ms at a time.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = lambda: time.sleep(_CPU_WAIT_S)
