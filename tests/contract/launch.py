"""``python launch.py SPEC LEASE_S``: a simulated instance with a lease short enough to outwait."""

import ctypes
import signal
import sys
from pathlib import Path

from llx.agent.sim_engine import run_sim
from llx.specs import InstanceSpec, StatusFile, load_spec

PR_SET_PDEATHSIG = 1


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # not to outlive a killed test run
    spec = load_spec(Path(sys.argv[1]), InstanceSpec)
    return run_sim(spec, StatusFile(Path(spec.status_path)), lease_s=float(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
