"""What `llx up` makes of a cluster.yaml with hosts."""

import json
from pathlib import Path, PurePosixPath

import msgspec
import pytest

from llx import __version__
from llx.agent.place import Place
from llx.agent.vllm.arguments import front_end_argv, instance_argv
from llx.bootstrap.cluster_secrets import new_secrets
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_plan import (
    copied_name,
    head_settings,
    host_spec,
    make_hosts_plan,
    spec_text,
)
from llx.bootstrap.model_files import HubModel
from llx.bootstrap.play import standard_values
from llx.cluster.driving.desired import desired_gateways, desired_instances
from llx.environment import Environment
from llx.errors import ConfigError
from llx.settings import Platform, dump_cluster, load_cluster
from llx.specs import HostSpec


@pytest.fixture
def plan_of(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")

    def make(**changes):
        values = {
            "hosts": ["a", {"name": "b", "address": "10.0.0.2", "identity_file": "./key"}],
            "models": [{"name": "m", "model": "llx/tiny"}],
            **changes,
        }
        path = tmp_path / "c.yaml"
        path.write_text(json.dumps(values))
        environment = Environment({"HOME": str(tmp_path), "KEY": "s3cret"}, tmp_path)
        return make_hosts_plan(load_cluster(path), environment)

    return make


def test_what_models_are_on_the_hosts(plan_of, tmp_path):
    """A directory here is copied, an id of the hub fetched, any other path is one there."""
    models = [
        {"name": "mine", "model": "./weights"},
        {"name": "theirs", "model": "/data/llama"},
        {"name": "hub", "model": "org/name"},
        {"name": "old", "model": "org/name", "engine_args": {"revision": "v1"}},
        {"name": "noise", "model": "org/other", "engine": "sim"},
        {"name": "put", "model": "@models/other"},
        {"name": "tiny", "model": "llx/tiny"},
    ]
    plan = plan_of(models=models)
    name = copied_name(tmp_path / "weights")
    assert plan.copies == {name: tmp_path / "weights"}
    assert plan.pulls == {
        "org--name": HubModel("org/name"),
        "org--name--v1": HubModel("org/name", "v1"),
    }
    on_hosts = head_settings(plan, Platform.CPU, {"a": "10.0.0.1", "b": "10.0.0.2"})
    assert [each.model for each in on_hosts.models] == [
        f"@models/{name}",
        "/data/llama",
        "@models/org--name",
        "@models/org--name--v1",
        "org/other",
        "@models/other",
        "@models/tiny-1",
    ]


def test_a_home_on_hosts_is_that_of_their_own_user(plan_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    models = [{"name": "mine", "model": "~/weights"}, {"name": "theirs", "model": "~/llama"}]
    plan = plan_of(models=models, runtime={"python": "~/venv/bin/python"})
    name = copied_name(tmp_path / "weights")
    assert plan.copies == {name: tmp_path / "weights"}
    on_hosts = head_settings(plan, Platform.CPU, {"a": "10.0.0.1", "b": "10.0.0.2"})
    assert [each.model for each in on_hosts.models] == [f"@models/{name}", "~/llama"]
    layout = HostLayout(PurePosixPath("/home/u"), 1000, plan.settings.cluster)
    values = standard_values(layout, plan.settings, plan.settings.hosts[0], platform="cpu")
    assert values["python"] == "/home/u/venv/bin/python"
    addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
    python = PurePosixPath(values["python"])
    spec = host_spec(plan, layout, "b", python, Platform.CPU, addresses, new_secrets())
    assert Place.of_host(spec).home == "/home/u"


def test_clients_see_the_names_of_cluster_yaml_wherever_the_weights_lie(plan_of):
    models = [
        {"name": "mine", "model": "./weights"},
        {"name": "hub", "model": "org/name", "engine_args": {"revision": "v1"}},
        {"name": "tiny-one", "model": "llx/tiny"},
    ]
    settings = head_settings(plan_of(models=models), Platform.CPU, {})
    gateway = desired_gateways(settings, "tcp://h:1")[0]
    for pool, instance, named in zip(
        gateway.pools, desired_instances(settings), models, strict=True
    ):
        for argv in (front_end_argv(pool), instance_argv(instance)):
            assert f"--served-model-name={named['name']}" in argv
            assert [word for word in argv if word.startswith("--model=@models/")]
    assert "--revision=v1" in front_end_argv(gateway.pools[1])


def test_two_directories_of_one_name_stay_two(tmp_path):
    assert copied_name(tmp_path / "x" / "w") != copied_name(tmp_path / "y" / "w")
    assert copied_name(Path("/a b/ü$w")).isascii()


def test_the_head_learns_nothing_of_the_operators_machine(plan_of, tmp_path):
    plan = plan_of(
        gateway={"api_keys": [{"tenant": "t", "key_env": "KEY"}]},
        runtime={"wheelhouse": "./wheels"},
    )
    text = dump_cluster(head_settings(plan, Platform.CPU, {"a": "10.0.0.1", "b": "10.0.0.2"}))
    assert str(tmp_path) not in text
    assert "s3cret" not in text
    assert "cluster_address: 10.0.0.2" in text
    assert "platform: cpu" in text
    assert "head: a" in text


def test_a_hosts_spec_survives_its_file(plan_of):
    plan = plan_of()
    layout = HostLayout(PurePosixPath("/home/u"), 1000, plan.settings.cluster)
    addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
    secrets = new_secrets()
    spec = host_spec(
        plan, layout, "b", PurePosixPath("/p/python"), Platform.CUDA, addresses, secrets
    )
    assert msgspec.json.decode(spec_text(spec), type=HostSpec) == spec
    assert not spec.is_head
    assert spec.llx_version == __version__
    assert (spec.address, spec.head_address) == ("10.0.0.2", "10.0.0.1")
    text = spec_text(spec)
    for secret in (secrets.keys, secrets.ray_token, secrets.control_token):
        assert secret.reveal() not in text


def test_a_prefix_does_not_go_with_hosts(plan_of):
    with pytest.raises(ConfigError, match=r"runtime\.prefix"):
        plan_of(runtime={"prefix": "./node"})
