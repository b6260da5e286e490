"""Threads of PyTorch that poll for nothing where an instance has one rank.

vLLM makes a Gloo group for each of its kinds of parallelism, and each has a thread that polls a
hundred times a second whether anybody speaks. Of one rank nobody does. On a machine with few cores
the thirteen of each instance stand in the way all the same: with four instances on two cores, the
thread that carries tokens and answers heartbeats waited for up to three seconds for a core, and
gateways took its instance for frozen. So these threads get a core only when nobody else wants it.
"""

import os
from pathlib import Path

_GLOO = "gloo_tcp_loop"
"""What Gloo calls them."""


def let_gloo_wait() -> None:
    """Put the Gloo threads of this process behind everything else."""
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().strip() == _GLOO:
                os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
        except OSError:  # it has ended, or may not be touched: then it stays as it was
            continue
