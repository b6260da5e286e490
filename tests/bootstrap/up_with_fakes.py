"""`up` with a real head, real shims and pretended engines: a command for the tests to interrupt.

python up_with_fakes.py HOME FAKES BEHAVIOUR
"""

import sys
from dataclasses import replace
from pathlib import Path

from llx.bootstrap.facts import Facts, NodeFact, VllmArguments
from llx.bootstrap.local import up
from llx.bootstrap.local_ports import real_ports
from llx.bootstrap.plan import make_plan
from llx.bootstrap.preflight import GIB
from llx.cli.failures import Interruptions, command
from llx.cluster.launch import launch_head, stop_everything
from llx.cluster.state_dir import HeadSpec
from llx.cluster_file import ClusterSettings
from llx.environment import Environment
from llx.settings import dump_cluster


def main(home, fakes, behaviour):
    interruptions = Interruptions()

    def launch(plan, python, variables):
        spec = HeadSpec(
            cluster="c", state_dir=str(plan.state_dir), python=sys.executable, platform="cpu",
            instance_command=[sys.executable, f"{fakes}/fake_instance.py"],
            gateway_command=[sys.executable, f"{fakes}/fake_gateway.py"],
        )  # fmt: skip
        return launch_head(spec, dump_cluster(plan.settings), variables)

    facts = Facts("here", (), 2, 64 * GIB, 64 * GIB, NodeFact(True, Path("/n")))
    ports = replace(
        real_ports(launch, stop_everything, shield=interruptions.shield, sleep=interruptions.sleep),
        gather=lambda plan, own: facts,
        arguments=lambda: VllmArguments(frozenset({"fake"}), frozenset()),
        install=lambda node, say: Path(sys.executable),
    )
    variables = {**Environment.current().variables, "HOME": home, "XDG_STATE_HOME": f"{home}/state"}
    settings = ClusterSettings.model_validate(
        {
            "cluster": "c",
            "models": [
                {
                    "name": "m",
                    "model": "org/name",
                    "engine": "sim",
                    "instances": {"min": 2},
                    "engine_args": {"fake": behaviour},
                }
            ],
            "control": {"port": 0},
            "gateway": {"api_keys": [{"tenant": "t", "sha256": "ab" * 32}]},
            "runtime": {"platform": "cpu"},
        }
    )
    plan = make_plan(settings, Environment(variables, Path(home)))

    def tell(event):
        print(event.step, event.state, flush=True)

    with interruptions.installed():
        up(plan, ports, tell)


if __name__ == "__main__":
    import typer

    try:
        command(main)(*sys.argv[1:])
    except typer.Exit as ending:
        sys.exit(ending.exit_code)
