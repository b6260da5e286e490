"""A keeper with the patience of a test: ``hasty_keeper.py SPEC``."""

import sys
from pathlib import Path

from llx.cluster.ray.keeper import Keeper, Patience
from llx.environment import Environment
from llx.log import configure_logging
from llx.specs import HostSpec, load_spec

if __name__ == "__main__":
    configure_logging()
    path = Path(sys.argv[1])
    patience = Patience(
        pause_s=0.05, max_pause_s=0.05, quiet_s=0.5, settle_s=1.0, ask_s=0.2, max_ask_s=0.4
    )
    Keeper(load_spec(path, HostSpec), path, Environment.current(), patience).run()
