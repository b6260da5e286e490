"""The process of one instance: ``python -m llx.agent.instance SPEC``."""

import logging
import signal
import sys
from pathlib import Path

from llx.errors import LlxError
from llx.log import configure_logging
from llx.specs import EngineKind, InstanceSpec, Phase, StatusFile, load_spec

log = logging.getLogger("llx.agent.instance")


def main(argv: list[str]) -> int:
    """Run the instance that the spec file describes; returns the exit code."""
    configure_logging()
    spec = load_spec(Path(argv[0]), InstanceSpec)
    status = StatusFile(Path(spec.status_path))
    status.write(Phase.STARTING, f"importing {spec.engine.value}")
    try:
        return _run(spec, status)
    except LlxError as error:
        log.error("instance.failed instance=%s error=%s", spec.name, error)
        status.write(Phase.FAILED, error.message)
        return int(error.exit_code)
    except Exception as error:
        log.exception("instance.failed instance=%s", spec.name)
        status.write(Phase.FAILED, f"{type(error).__name__}: {error}"[:2000])
        return 1


def _run(spec: InstanceSpec, status: StatusFile) -> int:
    match spec.engine:
        case EngineKind.VLLM:
            from llx.agent.vllm.engine import run_vllm

            return run_vllm(spec, status)
        case EngineKind.SIM:
            from llx.agent.sim_engine import run_sim

            return run_sim(spec, status)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main(sys.argv[1:]))
