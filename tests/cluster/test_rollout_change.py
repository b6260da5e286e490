"""What a rollout changes, and whether requests can move to what comes of it."""

import pytest

from llx.cluster.driving.rollout_change import (
    changed_keys,
    in_words,
    keys_apart,
    read_model,
    with_changes,
)
from llx.errors import ConfigError
from llx.settings import ModelSettings, to_dict

MODEL = ModelSettings.model_validate(
    {
        "name": "m",
        "model": "/m",
        "engine_args": {"max-num-seqs": 8, "hf_overrides": {"a": 1}},
        "instances": 3,
    }
)
SIM = ModelSettings.model_validate({"name": "m", "model": "/m", "engine": "sim"})


def apart(model: ModelSettings, /, **changes: str) -> list[str]:
    return keys_apart(changed_keys(model, with_changes(model, changes)))


def test_a_bare_key_is_an_argument_and_keeps_the_spelling_that_is_there() -> None:
    new = with_changes(MODEL, {"max_num_seqs": "16", "engine_args.enforce_eager": "true"})
    assert new.engine_args == {
        "max-num-seqs": 16, "hf_overrides": {"a": 1}, "enforce_eager": True
    }  # fmt: skip
    keys = changed_keys(MODEL, new)
    assert in_words(MODEL, new, keys) == [
        "engine_args.enforce_eager: default → True",
        "engine_args.max-num-seqs: 8 → 16",
    ]
    assert keys_apart(keys) == []


def test_null_takes_a_key_out_and_keys_go_below() -> None:
    new = with_changes(MODEL, {"max_num_seqs": "null", "hf_overrides.b": "2"})
    assert new.engine_args == {"hf_overrides": {"a": 1, "b": 2}}
    with pytest.raises(ConfigError, match="no keys below"):
        with_changes(MODEL, {"max_num_seqs.a": "1"})


def test_where_requests_cannot_move() -> None:
    assert apart(MODEL, model="/other") == ["model"]
    assert apart(MODEL, tensor_parallel="2") == ["tensor_parallel"]
    assert apart(MODEL, dtype="float32", max_num_seqs="4") == ["engine_args.dtype"]
    assert apart(MODEL, max_model_len="99") == ["engine_args.max_model_len"], "gateways go by it"
    assert apart(SIM, **{"sim.block_size": "32", "sim.num_blocks": "9"}) == ["sim.block_size"]


def test_of_a_file_only_what_is_rolled_out_counts() -> None:
    values = to_dict(MODEL) | {"model": "/other", "instances": {"min": 9, "max": 9}}
    new = read_model(MODEL, values)
    assert (new.model, new.instances) == ("/other", MODEL.instances)
    with pytest.raises(ConfigError, match="unknown key"):
        read_model(MODEL, {"modle": "/other"})
