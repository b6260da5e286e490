"""Lists the pinned vLLM's argument names, so that cluster.yaml can be checked without vLLM.

python -m llx.agent.vllm.argument_names > llx/vllm_args.json      (with the node's Python)
"""

import json
import sys

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

_NOT_YOURS = {
    "help", "model", "served_model_name", "tensor_parallel_size", "scheduling_policy",
    "host", "port", "uds", "api_key", "scheduler_cls", "worker_extension_cls",
}  # fmt: skip
"""Set by llx itself, or meaningless behind its gateway."""


def argument_names() -> dict[str, list[str]]:
    """``engine``: what an engine takes; ``serve``: what its API server takes besides."""
    engine = _names(AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()))
    everything = _names(make_arg_parser(FlexibleArgumentParser()))
    return {"engine": sorted(engine), "serve": sorted(everything - engine)}


def _names(parser: FlexibleArgumentParser) -> set[str]:
    names = {
        option.removeprefix("--").replace("-", "_")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and not option.startswith("--no-")
    }
    return names - _NOT_YOURS


if __name__ == "__main__":
    json.dump(argument_names(), sys.stdout, indent=1)
    sys.stdout.write("\n")
