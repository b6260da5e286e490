"""The machine that measures, as far as a reader of the results must know it."""

import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llx import __version__
from llx.pins import RAY_VERSION, VLLM_VERSION


def about_machine() -> Mapping[str, Any]:
    """Versions, processor, memory, and how busy the machine was when it was asked."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "llx_version": __version__,
        "vllm_pin": VLLM_VERSION,
        "ray_pin": RAY_VERSION,
        "python": sys.version.split()[0],
        "machine": {
            "name": socket.gethostname(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_before": round(os.getloadavg()[0], 2),
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
