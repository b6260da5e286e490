"""Checks and measures the GPU data path: needs torch, cuda-bindings and one GPU, nothing else.

    python -m tests.gpu.check [--json FILE] [SECTION …]

Sections: kernels, load, nccl, ipc. Prints a table; exits with 8 if a claim is not met.
"""

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Run the sections asked for, all by default."""
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    import torch

    from tests.gpu import ipc, kernels, load, nccl
    from tests.gpu.report import Report

    sections = {
        "kernels": kernels.run,
        "load": load.run,
        "nccl": nccl.run,
        "ipc": ipc.run,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*sections, []], metavar="SECTION")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU here", file=sys.stderr)
        return 1
    report = Report()
    properties = torch.cuda.get_device_properties(0)
    report.machine = {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    print(report.machine, flush=True)
    for name in arguments.sections or sections:
        report.run(name, sections[name])
    if arguments.json:
        arguments.json.write_text(report.json())
    return 0 if report.is_met else 8


if __name__ == "__main__":
    sys.exit(main())
