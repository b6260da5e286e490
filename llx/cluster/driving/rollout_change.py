"""What a rollout changes of a model, and whether requests can move to what comes of it: pure."""

from collections.abc import Mapping
from typing import Any

import yaml

from llx.cluster.rollout_file import FIRST, Generations
from llx.errors import ConfigError
from llx.settings import ClusterSettings, ModelSettings, differing_keys, to_dict
from llx.yaml_reader import nearest, read_yaml

_ROLLED_OUT = ("model", "engine", "tensor_parallel", "engine_args", "sim")
"""What instances are started with; the rest of a model is changed by other verbs."""
_ELSEWHERE = {
    "instances": "llx scale",
    "scheduling": "llx policy set",
    "serve_args": "llx up FILE: gateways take them up",
}
_IN_PLACE_ARGS = frozenset(
    {
        "async_scheduling",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_cascade_attn",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "num_gpu_blocks_override",
        "optimization_level",
        "performance_mode",
        "prefix_caching_hash_algo",
    }
)
"""Arguments of vLLM that change neither what a request's KV is nor what gateways make of one."""
_APART_SIM = frozenset({"block_size", "kv_bytes_per_token"})
"""Of `sim`; all others change times and sizes alone."""


def with_changes(model: ModelSettings, changes: Mapping[str, str]) -> ModelSettings:
    """The model with other values: dotted key → YAML; null leaves the key out.

    A key that no model has is an argument of the engine: ``max_num_seqs`` is
    ``engine_args.max_num_seqs``.

    Raises:
        ConfigError: A key or a value is wrong, or is changed by another verb.
    """
    values = to_dict(model)
    for given, text in changes.items():
        key = given.strip()
        first, _, rest = key.partition(".")
        if first in _ELSEWHERE or first == "name":
            how = _ELSEWHERE.get(first, "llx up FILE")
            raise ConfigError(f"{key} is not rolled out", remedy=how)
        if first not in _ROLLED_OUT:
            first, rest = "engine_args", key
        if (first in ("engine_args", "sim")) is not bool(rest):
            raise ConfigError(f"{key}: {'no such key' if rest else 'name a key below it'}")
        value = _value(key, text)
        if not rest:
            values[first] = value
        else:
            values[first] = _with(values[first], rest, value)
    return read_model(model, values)


def read_model(running: ModelSettings, values: Mapping[str, Any]) -> ModelSettings:
    """A model of these values, as far as they can be rolled out; the rest is as it is running.

    Raises:
        ConfigError: They are wrong.
    """
    kept = {key: value for key, value in to_dict(running).items() if key not in _ROLLED_OUT}
    known = ModelSettings.model_fields
    for key in values:
        if key not in known:
            raise ConfigError(f'{running.name}: unknown key "{key}"{nearest(key, known)}')
    return read_yaml(f"model {running.name}", ModelSettings, values={**values, **kept})


def settled(settings: ClusterSettings, generations: Generations) -> ClusterSettings:
    """The settings in which models that are being rolled out are what they are to be.

    A head writes the record of a rollout first; if it fell before it had written the settings,
    these say what was before.
    """
    models = []
    for model in settings.models:
        rollout = generations.get(model.name, FIRST).under_way
        models.append(model if rollout is None else read_model(model, rollout.wanted))
    return settings.model_copy(update={"models": tuple(models)})


def changed_keys(former: ModelSettings, new: ModelSettings) -> list[str]:
    """The keys that a rollout from the one to the other changes."""
    keys = differing_keys(former, new)
    return [key for key in keys if key.partition(".")[0] in _ROLLED_OUT]


def keys_apart(keys: list[str]) -> list[str]:
    """Those of the changed keys for which requests could not move, or gateways would misread them.

    What an instance says of itself (`InstanceInfo.compatibility`) is looked at besides.
    """
    return [key for key in keys if not _is_in_place(key)]


def in_words(former: ModelSettings, new: ModelSettings, keys: list[str]) -> list[str]:
    """A line for each changed key."""
    one, other = to_dict(former), to_dict(new)
    return [f"{key}: {_at(one, key)} → {_at(other, key)}" for key in keys]


def _is_in_place(key: str) -> bool:
    first, _, rest = key.partition(".")
    name = rest.partition(".")[0].replace("-", "_")
    if first == "sim":
        return name not in _APART_SIM
    return first == "engine_args" and name in _IN_PLACE_ARGS


def _with(values: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """Arguments may be written with ``-`` or ``_``: the spelling that is there stays."""
    first, _, rest = key.partition(".")
    plain = first.replace("-", "_")
    name = next((each for each in values if each.replace("-", "_") == plain), first)
    changed = dict(values)
    if rest:
        below = values.get(name, {})
        if not isinstance(below, Mapping):
            raise ConfigError(f"{name} has no keys below it")
        changed[name] = _with(below, rest, value)
    elif value is None:
        changed.pop(name, None)
    else:
        changed[name] = value
    return changed


def _at(values: object, key: str) -> str:
    place = values
    for each in key.split("."):
        place = place.get(each) if isinstance(place, Mapping) else None
    return "default" if place is None else str(place)


def _value(key: str, text: str) -> object:
    try:
        value: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key}: not valid YAML: {error}") from None
    return value
