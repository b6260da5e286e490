"""An instance whose messages can be held and lost: the real main of a simulated engine."""

from pathlib import Path

from llx.agent.sim_engine import run_sim
from llx.log import configure_logging
from llx.specs import InstanceSpec, Phase, StatusFile, load_spec
from tests.chaos.control import Control
from tests.chaos.faults import Faults, wrap_copies, wrap_messages

LEASE_S = 3.0
"""Short enough to outwait, and three pings long, for a noisy machine."""


class _ToldStatus(StatusFile):
    """Tells the test too, so that nobody has to look at a file again and again."""

    control: Control

    def write(self, phase: Phase, detail: str = "", addresses: list[str] | None = None) -> None:
        super().write(phase, detail, addresses)
        self.control.tell("phase", phase=phase.value, addresses=addresses or [])


def main(control: Control, spec_path: str) -> int:
    """Run it; returns the exit code."""
    configure_logging()
    faults = Faults(control)
    wrap_messages(faults)
    wrap_copies(faults)
    control.serve(faults.obey)
    spec = load_spec(Path(spec_path), InstanceSpec)
    status = _ToldStatus(Path(spec.status_path))
    status.control = control
    return run_sim(spec, status, lease_s=LEASE_S)
