"""cluster.yaml: what it may say, how mistakes are named; options and environment."""

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.choices import OutputFormat
from llx.client_options import load_client_options
from llx.cluster.driving.desired import desired_gateways, desired_instances
from llx.cluster_file import ClusterSettings, ModelSettings
from llx.environment import Environment
from llx.errors import ConfigError, NotFoundError
from llx.migration_settings import MigrationSettings
from llx.settings import (
    Platform,
    TlsSettings,
    differing_keys,
    dump_cluster,
    example_cluster,
    example_with_hosts,
    load_cluster,
    local_cluster,
    resolve_api_keys,
    resolve_model,
    with_hosts,
)
from llx.specs import EngineKind, HangSpec, MigrationSpec, SimSpec
from llx.yaml_reader import read_yaml

EXAMPLE = Path(__file__).parents[1] / "examples" / "cluster.yaml"
MINIMAL = "models: [{name: m, model: ./m}]\n"


def write(folder, text):
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def environment(folder, **variables):
    return Environment({"HOME": str(folder), **variables}, folder)


def mistake(folder, text):
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    assert caught.value.exit_code == 2
    return caught.value.message.removeprefix(f"{path}:")


class TestExample:
    def test_is_what_init_writes(self):
        assert example_cluster() == EXAMPLE.read_text()

    def test_loads(self):
        assert load_cluster(EXAMPLE).models[0].name == "tiny"

    def test_names_every_key_with_its_default(self):
        """All values but the model's own are the defaults; no key is left out."""
        settings = load_cluster(EXAMPLE)
        plain = ClusterSettings(models=settings.models)
        assert differing_keys(settings, plain) == []
        text = EXAMPLE.read_text()
        for model in _models(ClusterSettings):
            for name, field in model.model_fields.items():
                assert f"{field.alias or name}:" in text, f"{model.__name__}.{name}"
        for name in SimSpec.__struct_fields__:
            assert f"#  {name}: {getattr(SimSpec(), name)}" in text


def _models(model, seen=None):
    from llx.yaml_reader import _models_in

    seen = seen if seen is not None else set()
    seen.add(model)
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            if inner not in seen:
                _models(inner, seen)
    return seen


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "models:\n  - name: m\n    model: ./m\n    engin_args: {}\n",
                '4: unknown key "engin_args" in models[0]; did you mean "engine_args"?',
            ),
            ("clutser: a\n" + MINIMAL, '1: unknown key "clutser"; did you mean "cluster"?'),
            (
                MINIMAL + "gateway: {prt: 1}\n",
                '2: unknown key "prt" in gateway; did you mean "port"?',
            ),
            (MINIMAL + "xyzzy: 1\n", '2: unknown key "xyzzy"'),
            ("models: [{name: m}]\n", '1: required key "models[0].model" is missing'),
            ("cluster: a\n", '1: required key "models" is missing'),
            ("models: []\n", '1: "models" is empty: name at least one'),
            ("a: 1\na: 2\n", '2: key "a" is given twice'),
            (MINIMAL + "control: {port: 99999}\n", "2: control.port: Input should be less than"),
            ("models: [\n", "2:1: not valid YAML:"),
            ("models: {a: b: c}\n", "1:14: not valid YAML:"),
            (
                "models: [{name: m, model: ./m, instances: {min: 3, max: 2}}]\n",
                "1: models[0].instances: max (2) is below min (3)",
            ),
            (
                "models: [{name: m, model: ./m, sim: {step_base_ms: 1}}]\n",
                '1: models[0]: "sim" goes with "engine: sim" only',
            ),
            (
                "models: [{name: m, model: ./m, engine: sim, sim: {step_base: 1}}]\n",
                '1: models[0].sim: unknown key "step_base"; did you mean "step_base_ms"?',
            ),
            (
                "models: [{name: gateway, model: ./m}]\n",
                '1: models[0].name: "gateway" cannot name a model',
            ),
            ("models: [{name: a, model: x/y}, {name: a, model: x/y}]\n", '1: models: "a" is used'),
            (MINIMAL + "cluster: A/b\n", '2: cluster: "A/b" cannot name a cluster'),
            (MINIMAL + "control: {port: 8000}\n", "1: gateway and control share port 8000"),
            (
                MINIMAL + "priority_classes: [{name: a, priority: 1}]\n",
                '1: one priority class needs "default: true"',
            ),
            (
                MINIMAL + "gateway: {api_keys: [{tenant: t, key_env: A, key_file: b}]}\n",
                '2: gateway.api_keys[0]: needs one of "key_env", "key_file", "sha256"',
            ),
            (
                MINIMAL + "gateway: {api_keys: [{tenant: t, key_env: A, class: bach}]}\n",
                '1: api key of "t": no priority class "bach"; did you mean "batch"?',
            ),
            *(
                (
                    MINIMAL + f"gateway: {{tls: {tls}}}\n",
                    '2: gateway.tls: must be "generated", or "certificate" and "key"',
                )
                for tls in ("{key: k}", "{}", "{generated: true, key: k, certificate: c}")
            ),
            (
                MINIMAL + "runtime: {python: /p, prefix: /q}\n",
                '2: runtime: "python" uses what is there',
            ),
        ],
    )
    def test_is_named_with_its_line(self, tmp_path, text, expected):
        assert mistake(tmp_path, text).startswith(f"{expected}")

    def test_all_at_once_by_line(self, tmp_path):
        text = "modles: []\n" + MINIMAL + "gateway: {prt: 1}\n"
        path = write(tmp_path, text)
        with pytest.raises(ConfigError) as caught:
            load_cluster(path)
        lines = caught.value.message.splitlines()
        assert lines[0] == f"{path}: 2 mistakes"
        assert [line.split(":")[0] for line in lines[1:]] == ["  line 1", "  line 3"]

    def test_no_file(self, tmp_path):
        with pytest.raises(NotFoundError, match="no such file"):
            load_cluster(tmp_path / "none.yaml")

    def test_not_text(self, tmp_path):
        path = tmp_path / "c.yaml"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="not UTF-8"):
            load_cluster(path)

    @pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
    def test_not_a_mapping(self, tmp_path, text):
        with pytest.raises(ConfigError):
            load_cluster(write(tmp_path, text))

    @given(st.text(max_size=60))
    def test_any_text_is_settings_or_a_config_error(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(ConfigError):
            load_cluster(path)


class TestPaths:
    def test_are_relative_to_the_file(self, tmp_path):
        text = (
            "models: [{name: m, model: ./w, serve_args: {chat_template: ../t.jinja}}]\n"
            "runtime: {wheelhouse: wheels}\n"
            "gateway: {api_keys: [{tenant: a, key_file: a.key}]}\n"
        )
        settings = load_cluster(write(tmp_path, text))
        assert settings.models[0].model == str(tmp_path / "w")
        assert settings.models[0].serve_args == {"chat_template": str(tmp_path.parent / "t.jinja")}
        assert settings.runtime.wheelhouse == tmp_path / "wheels"
        assert settings.gateway.api_keys[0].key_file == tmp_path / "a.key"

    def test_a_home_is_that_of_whoever_uses_the_path(self, tmp_path, monkeypatch):
        """What may lie on hosts keeps its ~; what is the operator's own does not."""
        monkeypatch.setenv("HOME", "/home/op")
        text = (
            "hosts: [{address: a, python: ~/py/bin/python, identity_file: ~/.ssh/k}]\n"
            "models: [{name: m, model: ~/w/, serve_args: {chat_template: ~/t.jinja}}]\n"
            "runtime: {python: ~/venv/bin/python}\n"
            "gateway: {api_keys: [{tenant: a, key_file: ~/a.key}]}\n"
        )
        settings = load_cluster(write(tmp_path, text))
        host, model = settings.hosts[0], settings.models[0]
        assert (str(host.python), str(host.identity_file)) == ("~/py/bin/python", "/home/op/.ssh/k")
        assert str(settings.runtime.python) == "~/venv/bin/python"
        assert (model.model, model.serve_args) == ("~/w", {"chat_template": "~/t.jinja"})
        assert model.model_path == Path("/home/op/w")
        assert settings.gateway.api_keys[0].key_file == Path("/home/op/a.key")
        assert load_cluster(write(tmp_path, dump_cluster(settings))) == settings
        here = resolve_model(model, environment(tmp_path))
        assert here.model == "/home/op/w"
        assert here.serve_args == {"chat_template": "/home/op/t.jinja"}

    def test_nobodys_home(self, tmp_path):
        text = MINIMAL + "runtime: {wheelhouse: ~nobody-of-that-name/w}\n"
        assert "no such home directory" in mistake(tmp_path, text)

    def test_a_hub_id_stays(self):
        model = ModelSettings(name="m", model="org/name")
        assert (model.model, model.model_path) == ("org/name", None)


class TestClusters:
    def test_are_frozen(self, tmp_path):
        settings = load_cluster(write(tmp_path, MINIMAL))
        with pytest.raises(ValueError, match="frozen"):
            settings.cluster = "b"

    def test_max_follows_min(self, tmp_path):
        text = "models: [{name: m, model: ./m, instances: {min: 3}}]\n"
        assert load_cluster(write(tmp_path, text)).models[0].instances.max == 3

    def test_the_certificate_of_gateways(self, tmp_path):
        path = tmp_path / "cluster.yaml"
        path.write_text(MINIMAL + "gateway: {tls: generated}\n")
        assert load_cluster(path).gateway.tls == TlsSettings(generated=True)
        path.write_text(MINIMAL + "gateway: {tls: {certificate: ./c.pem, key: /etc/k.pem}}\n")
        settings = load_cluster(path)
        assert settings.gateway.tls.certificate == tmp_path / "c.pem"
        path.write_text(dump_cluster(settings))
        assert load_cluster(path) == settings

    def test_a_number_of_instances_is_short_for_both_ends(self, tmp_path):
        text = "models: [{name: m, model: ./m, instances: 3}]\n"
        found = load_cluster(write(tmp_path, text)).models[0].instances
        assert (found.min, found.max) == (3, 3)

    def test_dump_loads_back_equal(self, tmp_path):
        settings = load_cluster(EXAMPLE)
        assert load_cluster(write(tmp_path, dump_cluster(settings))) == settings

    def test_differing_keys_are_dotted(self, tmp_path):
        one = local_cluster(environment(tmp_path))
        other = local_cluster(environment(tmp_path), port=9, instances=3)
        assert differing_keys(one, other) == [
            "gateway.port",
            "models.0.instances.max",
            "models.0.instances.min",
        ]

    def test_sim_fields_reach_the_spec(self):
        model = ModelSettings(name="m", model="./m", engine=EngineKind.SIM, sim={"step_base_ms": 2})
        assert model.sim_spec == SimSpec(step_base_ms=2.0)
        assert ModelSettings(name="m", model="./m").sim_spec is None


class TestHangs:
    @pytest.mark.parametrize("limit", ["0", "2", "86400"])
    def test_reach_every_process(self, tmp_path, limit):
        settings = load_cluster(write(tmp_path, MINIMAL + f"runtime: {{step_limit_s: {limit}}}\n"))
        hang = HangSpec(8, float(limit))
        assert [each.hang for each in desired_instances(settings)] == [hang]
        assert [each.hang for each in desired_gateways(settings, "")] == [hang]

    @pytest.mark.parametrize("limit", ["0.1", "-1", "1e10", ".inf", ".nan"])
    def test_limits_that_make_no_sense(self, tmp_path, limit):
        text = MINIMAL + f"runtime: {{silent_limit_s: {limit}}}\n"
        with pytest.raises(ConfigError, match="silent_limit_s: must be 0, or from 2 to 86400"):
            load_cluster(write(tmp_path, text))


class TestMigration:
    def test_the_defaults_are_those_of_the_spec(self):
        assert MigrationSettings().spec == MigrationSpec()

    def test_reaches_every_instance(self, tmp_path):
        text = MINIMAL + "migration: {max_out: 2, bandwidth_mib_s: 1.5, on_divergence: abort}\n"
        settings = load_cluster(write(tmp_path, text))
        expected = MigrationSpec(max_out=2, bandwidth_bytes_s=1_572_864, on_divergence="abort")
        assert [each.migration for each in desired_instances(settings)] == [expected]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{max_out: 0}", "2: migration.max_out: Input should be greater than or equal to 1"),
            ("{on_divergence: give_up}", "2: migration.on_divergence: Input should be 'finish'"),
            ("{bandwidth_mib_s: 0}", "2: migration.bandwidth_mib_s: Input should be greater"),
            ("{max_outs: 1}", '2: unknown key "max_outs" in migration; did you mean "max_out"?'),
        ],
    )
    def test_mistakes(self, tmp_path, text, words):
        assert mistake(tmp_path, f"{MINIMAL}migration: {text}\n").startswith(words)


class TestLocalCluster:
    def test_is_two_instances_of_the_tiny_model(self, tmp_path):
        settings = local_cluster(environment(tmp_path))
        model = settings.models[0]
        assert (settings.cluster, model.name, model.instances.min) == ("local", "tiny", 2)
        resolved = resolve_model(model, environment(tmp_path, XDG_DATA_HOME="/data"))
        assert resolved.model == "/data/llx/models/tiny-1"

    def test_a_directory_here_needs_no_dot(self, tmp_path):
        (tmp_path / "weights").mkdir()
        model = local_cluster(environment(tmp_path), model="weights").models[0]
        assert (model.name, model.model) == ("weights", str(tmp_path / "weights"))
        assert model.engine_args == {}

    def test_a_hub_id_gives_the_name(self, tmp_path):
        model = local_cluster(environment(tmp_path), model="org/Some-Model_1").models[0]
        assert (model.name, model.model) == ("Some-Model_1", "org/Some-Model_1")

    def test_cuda_is_not_made_eager(self, tmp_path):
        settings = local_cluster(environment(tmp_path), platform=Platform.CUDA)
        assert "enforce_eager" not in settings.models[0].engine_args


class TestApiKeys:
    def settings(self, folder, entry):
        return load_cluster(write(folder, f"{MINIMAL}gateway: {{api_keys: [{entry}]}}\n"))

    def test_only_the_hash_stays(self, tmp_path):
        settings = self.settings(tmp_path, "{tenant: a, key_env: A_KEY, class: batch}")
        resolved, key = resolve_api_keys(settings, environment(tmp_path, A_KEY="sesame"))
        entry = resolved.gateway.api_keys[0]
        assert entry.sha256 == hashlib.sha256(b"sesame").hexdigest()
        assert (entry.tenant, entry.priority_class, entry.key_env) == ("a", "batch", None)
        assert key is not None
        assert key.reveal() == "sesame"
        assert "sesame" not in dump_cluster(resolved) + repr(key)

    def test_from_a_file(self, tmp_path):
        (tmp_path / "k").write_text("sesame\n")
        _, key = resolve_api_keys(
            self.settings(tmp_path, "{tenant: a, key_file: k}"), environment(tmp_path)
        )
        assert key is not None
        assert key.reveal() == "sesame"

    def test_a_hash_alone_gives_no_key(self, tmp_path):
        settings = self.settings(tmp_path, f'{{tenant: a, sha256: "{"0" * 64}"}}')
        resolved, key = resolve_api_keys(settings, environment(tmp_path))
        assert (resolved, key) == (settings, None)

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("{tenant: a, key_env: A_KEY}", "environment variable A_KEY is not set"),
            ("{tenant: a, key_file: none}", "cannot read"),
            ("{tenant: a, key_file: empty}", "is empty"),
        ],
    )
    def test_missing(self, tmp_path, entry, words):
        (tmp_path / "empty").touch()
        with pytest.raises(ConfigError, match=words):
            resolve_api_keys(self.settings(tmp_path, entry), environment(tmp_path))


class TestClientOptions:
    def options(self, folder, flags=None, **variables):
        config = folder / "config" / "llx"
        config.mkdir(parents=True, exist_ok=True)
        found = environment(folder, XDG_CONFIG_HOME=str(folder / "config"), **variables)
        return load_client_options(found, **(flags or {}))

    def test_precedence(self, tmp_path):
        assert self.options(tmp_path).output is None
        (tmp_path / "config" / "llx" / "config.yaml").write_text("output: name\ncontext: far\n")
        assert self.options(tmp_path).output is OutputFormat.NAME
        (tmp_path / "llx.yaml").write_text("output: yaml\n")
        assert self.options(tmp_path).output is OutputFormat.YAML
        assert self.options(tmp_path, LLX_OUTPUT="wide").output is OutputFormat.WIDE
        flags = {"output": "json"}
        last = self.options(tmp_path, flags, LLX_OUTPUT="wide")
        assert (last.output, last.context) == (OutputFormat.JSON, "far")

    def test_what_a_file_does_not_say_hides_nothing(self, tmp_path):
        assert self.options(tmp_path).ssh_persist == 60
        (tmp_path / "config" / "llx" / "config.yaml").write_text("ssh_persist: 0\n")
        (tmp_path / "llx.yaml").write_text("context: near\n")
        assert self.options(tmp_path).ssh_persist == 0
        assert self.options(tmp_path, LLX_SSH_PERSIST="90").ssh_persist == 90

    def test_mistakes_name_their_place(self, tmp_path):
        (tmp_path / "llx.yaml").write_text("outptu: name\n")
        with pytest.raises(ConfigError, match=r'llx.yaml:1: unknown key "outptu".*"output"'):
            self.options(tmp_path)
        (tmp_path / "llx.yaml").unlink()
        with pytest.raises(ConfigError, match=r"flags and LLX_\* variables: output"):
            self.options(tmp_path, LLX_OUTPUT="xml")


class TestEnvironment:
    def test_xdg_defaults(self, tmp_path):
        found = environment(tmp_path)
        assert found.state_home == tmp_path / ".local/state/llx"
        assert found.data_home == tmp_path / ".local/share/llx"
        assert found.config_home == tmp_path / ".config/llx"
        assert found.cluster_dir("a") == tmp_path / ".local/state/llx/clusters/a"

    def test_relative_xdg_is_ignored(self, tmp_path):
        assert environment(tmp_path, XDG_STATE_HOME="x").state_home == tmp_path / ".local/state/llx"

    def test_node_prefix_is_taken_from_here(self, tmp_path):
        assert environment(tmp_path).node_prefix is None
        assert environment(tmp_path, LLX_NODE_PREFIX="n").node_prefix == tmp_path / "n"

    @pytest.mark.parametrize(("value", "is_debug"), [("", False), ("0", False), ("1", True)])
    def test_debug(self, tmp_path, value, is_debug):
        assert environment(tmp_path, LLX_DEBUG=value).is_debug is is_debug

    def test_values_do_not_show(self, tmp_path):
        assert "sesame" not in repr(environment(tmp_path, LLX_API_KEY="sesame").api_key)


def test_read_yaml_explains_values_without_lines():
    with pytest.raises(ConfigError, match=r"^here: unknown key"):
        read_yaml(
            "here", ClusterSettings, values={"models": [{"name": "m", "model": "/m"}], "x": 1}
        )


class TestHosts:
    def test_a_plain_address_is_a_host_of_that_name(self, tmp_path):
        settings = load_cluster(
            write(tmp_path, MINIMAL + "hosts: [gpu-1, {address: 10.0.0.2}, gpu_2]\n")
        )
        assert [(each.name, each.address) for each in settings.hosts] == [
            ("gpu-1", "gpu-1"),
            ("10.0.0.2", "10.0.0.2"),
            ("gpu-2", "gpu_2"),
        ]
        assert settings.head_host is settings.hosts[0]
        assert settings.num_gateways == 2

    def test_the_head_may_be_another_one(self, tmp_path):
        text = MINIMAL + "hosts: [a, b, c]\nhead: b\ngateway: {count: 1}\n"
        settings = load_cluster(write(tmp_path, text))
        assert settings.head_host is settings.hosts[1]
        assert settings.num_gateways == 1

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("hosts: [a, a]", '"a" is used twice'),
            ("hosts: [{name: head, address: a}]", '"head" cannot name a host'),
            ("hosts: [{name: a/b, address: a}]", '"a/b" cannot name a host'),
            ("hosts: [{name: a, address: -oProxyCommand=x}]", "is no address or user name"),
            ("hosts: [{name: a, address: b, user: 'x y'}]", "is no address or user name"),
            ("hosts: [{name: a, address: 'b;id'}]", "is no address or user name"),
            ("hosts: [{name: a, address: b, user: '$(id)'}]", "is no address or user name"),
            ("hosts: [{name: a, address: b, cluster_address: b}]", '"b" is no IP address'),
            ("hosts: [a]\nhead: b", 'no host "b"'),
            ("hosts: [a]\ngateway: {count: 2}", "at most one runs on a host"),
        ],
    )
    def test_mistakes(self, tmp_path, text, words):
        assert words in mistake(tmp_path, MINIMAL + text + "\n")

    def test_init_with_hosts_is_a_cluster_of_these(self, tmp_path):
        path = write(tmp_path, example_with_hosts(["gpu-1", "10.0.0.2"]))
        settings = load_cluster(path)
        assert [each.address for each in settings.hosts] == ["gpu-1", "10.0.0.2"]
        assert settings.cluster != local_cluster(environment(tmp_path)).cluster

    @pytest.mark.parametrize(
        ("given", "host"),
        [
            ("gpu-1", ("gpu-1", "gpu-1", None, None)),
            ("ubuntu@gpu-1", ("gpu-1", "gpu-1", "ubuntu", None)),
            ("ubuntu@10.0.0.2:2222", ("10.0.0.2", "10.0.0.2", "ubuntu", 2222)),
            ("gpu_1", ("gpu-1", "gpu_1", None, None)),
            ("2001:db8::1", ("2001-db8-1", "2001:db8::1", None, None)),
            ("u@[fe80::1%eth0]:22", ("fe80-1-eth0", "fe80::1%eth0", "u", 22)),
            ("[::1]", ("1", "::1", None, None)),
            ("1234", ("1234", "1234", None, None)),
            ("1e3", ("1e3", "1e3", None, None)),
            ("null", ("null", "null", None, None)),
            ("yes", ("yes", "yes", None, None)),
            ("head", ("host-head", "head", None, None)),
            ("_", ("host", "_", None, None)),
        ],
    )
    def test_init_takes_hosts_as_ssh_does(self, tmp_path, given, host):
        settings = load_cluster(write(tmp_path, example_with_hosts([given])))
        found = settings.hosts[0]
        assert (found.name, found.address, found.user, found.port) == host

    @pytest.mark.parametrize(
        ("hosts", "words"),
        [
            ([], "names no host"),
            (["a", "a"], '"a" is given twice'),
            (["a", "u@a:2222"], '"u@a:2222" and "a" are both a'),
            (["gpu_1", "gpu-1"], '"gpu-1" and "gpu_1" are both gpu-1'),
            (["a b"], "\"a b\" is no [user@]host[:port] (address: 'a b' is no address"),
            (["-oProxyCommand=x"], "is no address or user name"),
            (["@a"], "(user: '' is no address or user name)"),
            (["a:ssh"], '"a:ssh" is no [user@]host[:port]'),
            (["a:"], '"a:" is no'),
            (["a:99999"], "(port: Input should be less than or equal to 65535)"),
            (["a:" + "9" * 5000], "(port: "),
            (["1:2:3"], '"1:2:3" is no'),
            (["ssh://u@h"], "is no address or user name"),
        ],
    )
    def test_init_refuses_what_is_no_host(self, hosts, words):
        with pytest.raises(ConfigError) as caught:
            example_with_hosts(hosts)
        assert words in caught.value.message
        assert caught.value.remedy

    @given(
        st.lists(st.text("aA1e-_.:@[]%~# '\"{},\\0n\u00e9", max_size=12), min_size=1, max_size=3)
    )
    def test_whatever_init_writes_can_be_read(self, tmp_path_factory, hosts):
        text = ""
        with contextlib.suppress(ConfigError):
            text = example_with_hosts(hosts)
        if text:
            settings = load_cluster(write(tmp_path_factory.getbasetemp(), text))
            pairs = zip(settings.hosts, hosts, strict=True)
            assert all(host.address in given for host, given in pairs)

    def test_other_hosts_are_checked_like_a_file(self, tmp_path):
        settings = load_cluster(write(tmp_path, MINIMAL + "hosts: [a]\n"))
        more = with_hosts(settings, [{"address": "a"}, {"address": "b"}], base=tmp_path)
        assert [each.name for each in more.hosts] == ["a", "b"]
        assert differing_keys(settings, more)[0].startswith("hosts")
        with pytest.raises(ConfigError, match="used twice"):
            with_hosts(settings, [{"address": "a"}, {"address": "a"}], base=tmp_path)
