"""cluster.yaml's vLLM arguments as a command line for vLLM's own parsers.

Going through the parsers gives each value vLLM's own conversion and error message. Keys may be
written with ``_`` or ``-``; ``true`` becomes ``--flag``, ``false`` ``--no-flag``, mappings JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from llx.specs import EngineKind, InstanceSpec, PoolSpec


def to_argv(arguments: Mapping[str, Any]) -> list[str]:
    """`arguments` as command-line words; a null value means "vLLM's default" and is left out."""
    argv: list[str] = []
    for key, value in arguments.items():
        flag = key.replace("_", "-")
        match value:
            case None:
                continue
            case True:
                argv.append(f"--{flag}")
            case False:
                argv.append(f"--no-{flag}")
            case dict():
                argv.append(f"--{flag}={json.dumps(value)}")
            case list() | tuple():
                argv.append(f"--{flag}")
                argv.extend(str(item) for item in value)
            case _:
                argv.append(f"--{flag}={value}")
    return argv


def instance_argv(spec: InstanceSpec) -> list[str]:
    """Engine arguments of an instance."""
    return [
        *_model_argv(spec.model, spec.pool, spec.tensor_parallel),
        *to_argv(spec.engine_args),
    ]


def front_end_argv(pool: PoolSpec) -> list[str]:
    """Engine and API-server arguments of a pool's front end in a gateway."""
    engine_args = dict(pool.engine_args)
    if pool.engine is EngineKind.SIM:
        engine_args["enforce_eager"] = True
    return [
        *_model_argv(pool.model, pool.name, pool.tensor_parallel),
        *to_argv(engine_args),
        *to_argv(pool.serve_args),
    ]


def _model_argv(model: str, served_name: str, tensor_parallel: int) -> list[str]:
    return [
        f"--model={model}",
        f"--served-model-name={served_name}",
        f"--tensor-parallel-size={tensor_parallel}",
        "--scheduling-policy=priority",
    ]
