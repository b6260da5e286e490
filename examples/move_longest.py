"""Move the longest request of the fullest instance to the emptiest one, by `llx.client.Cluster`.

    python examples/move_longest.py [CLUSTER]

It finds the cluster as the verbs do: on this machine, or on hosts through SSH. What it says of the
move is what `llx mig get` says.
"""

import argparse
import sys
import time

from llx.api import InstanceState, InstanceStatus, MigrateRequest
from llx.client import Cluster
from llx.errors import LlxError


def used_blocks(instance: InstanceStatus) -> int:
    return instance.load.blocks_used if instance.load is not None else 0


def move_longest(cluster: Cluster) -> int:
    ready = [each for each in cluster.status().instances if each.state is InstanceState.READY]
    if len(ready) < 2:
        print("there is nowhere to move it: fewer than two instances are ready")
        return 1
    fullest, emptiest = max(ready, key=used_blocks), min(ready, key=used_blocks)
    order = MigrateRequest(
        source=fullest.name, target=emptiest.name, count=1, by="longest", user="move_longest.py"
    )
    report = cluster.migrate(order)
    if not report.migrations:
        print(f"nothing on {fullest.name} can be moved to {emptiest.name}")
        return 1
    (begun,) = report.migrations
    while (found := cluster.migration(begun.id)).outcome is None:
        time.sleep(0.1)
    print(f"{found.name}: {found.source} to {found.target}: {found.outcome} {found.reason}".strip())
    return 0 if found.outcome == "moved" else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cluster", nargs="?", help="the one that `llx` means by default")
    arguments = parser.parse_args()
    try:
        with Cluster.open(arguments.cluster) as cluster:
            return move_longest(cluster)
    except LlxError as error:
        print(f"{error.message}; {error.remedy}" if error.remedy else error.message)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
