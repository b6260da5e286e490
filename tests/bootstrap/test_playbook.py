"""Playbooks as data: what may be said, what it comes to, and how mistakes are named."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx import __version__
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.play import standard_values
from llx.bootstrap.playbook import (
    compile_playbook,
    load_playbook,
    playbook_names,
    read_playbook,
)
from llx.bootstrap.work import Put, Run, described
from llx.cluster_file import ClusterSettings
from llx.errors import ConfigError, NotFoundError
from llx.secret import Secret

LAYOUT = HostLayout(PurePosixPath("/home/ann"), 1000, "prod")
SETTINGS = ClusterSettings.model_validate(
    {
        "cluster": "prod",
        "hosts": [{"name": "h1", "address": "10.0.0.1"}],
        "models": [{"name": "m", "model": "/m"}],
    }
)
STANDARD = standard_values(
    LAYOUT,
    SETTINGS,
    SETTINGS.hosts[0],
    platform="cpu",
    cluster_addresses=["10.0.0.1", "10.0.0.2", "fd00::1"],
)
TOKEN = Secret("f00dfacef00dface")
GIVEN = {
    "wheel_file": "/operator/llx.whl",
    "wheel": "/home/ann/.llx/wheels/llx.whl",
    "wheelhouse_dir": "/operator/wheelhouse",
    "base_python": "/usr/bin/python3",
    "cluster_id": "1234abcd",
    "spec_text": '{"host": "h1"}\n',
    "keys": TOKEN,
    "ray_token": TOKEN,
    "ca_cert": "-----BEGIN CERTIFICATE-----\n",
    "ca_key": TOKEN,
    "gateway_ca_cert": "-----BEGIN CERTIFICATE-----\n",
    "gateway_ca_key": TOKEN,
    "host_cert": "-----BEGIN CERTIFICATE-----\n",
    "host_key": TOKEN,
    "control_token": TOKEN,
    "hub_token": TOKEN,
    "certificate": TOKEN,
    "settings": "cluster: prod\n",
    "tiny_model": "tiny-1",
    "grace_s": "10",
    "to": "/operator/logs",
}


def write(tmp_path, steps, parameters=""):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\ndescription: d\nparameters: {{{parameters}}}\nsteps:\n{steps}")
    return path


def compiled(tmp_path, steps, parameters="", **values):
    return compile_playbook(read_playbook(write(tmp_path, steps, parameters)), values)


@pytest.mark.cases
@pytest.mark.golden
@pytest.mark.parametrize("name", playbook_names())
def test_commands_of_the_shipped_playbooks(name, golden):
    playbook = load_playbook(name)
    assert playbook.name == name
    lines = []
    for work in compile_playbook(playbook, STANDARD | GIVEN):
        lines += [f"- {work.step}", *(f"    {line}" for line in described(work))]
    text = "\n".join(lines) + "\n"
    assert TOKEN.reveal() not in text
    golden(f"playbooks/{name}.txt", text.replace(__version__, "VERSION"))


def test_a_playbook_that_does_not_exist_is_named_with_its_neighbour():
    with pytest.raises(NotFoundError, match=r'no playbook "bootstrp"; did you mean "bootstrap"\?'):
        load_playbook("bootstrp")
    for name in ("../secrets", "", "/etc/passwd", "bootstrap.yaml"):
        with pytest.raises(NotFoundError):
            load_playbook(name)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "  - name: a\n    directory: {path: /x}\n  - name: b\n    directry: {path: /y}\n",
            r':8: unknown key "directry" in steps\[1\]; did you mean "directory"\?',
        ),
        (
            "  - name: a\n    file: {path: /x, content: c, mod: '0600'}\n",
            r':6: unknown key "mod" in steps\[0\].file; did you mean "mode"\?',
        ),
        ("  - name: a\n    file: {path: /x}\n", r':6: required key "steps\[0\].file.content"'),
        ("", ": steps: there is no step|steps: Input should be a valid tuple"),
        ("  - name: a\n", r":5: steps\[0\]: a step has one of directory, file, upload, "),
        (
            "  - name: a\n    directory: {path: /x}\n    absent: {path: /x}\n",
            r":5: steps\[0\]: a step has one of",
        ),
        ("  - name: a\n    directory: {path: /x, mode: 700}\n", r":6: steps\[0\].directory.mode"),
        ("  - name: a\n    run: {check: [], apply: [x]}\n", r":6: steps\[0\].run.check"),
        ("  - name: a\n    run: {check: [sleep, 5], apply: [x]}\n", r"run.check\[1\].*string"),
        ("  - name: a\n    run: {check: sleep, apply: [x]}\n", r":6: steps\[0\].run.check"),
        (
            "  - name: a\n    absent: {path: '{root}/x'}\n",
            r'line 5: steps\[0\]: step "a": no parameter "ray_tmp"',
        ),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, steps, message):
    with pytest.raises(ConfigError, match=message):
        read_playbook(write(tmp_path, steps))


@pytest.mark.parametrize(
    ("parameters", "steps", "message"),
    [
        (
            "place: where, root: r, ray_tmp: t",
            "  - {name: a, absent: {path: '{place}'}}\n  - {name: b, absent: {path: '{plac}'}}\n",
            r':6: steps\[1\]: step "b": no parameter "plac"; did you mean "place"\?',
        ),
        (
            "place: where, other: what",
            "  - {name: a, directory: {path: '{place}'}}\n",
            r'parameter "other" is not used by any step',
        ),
        ("Place: where", "  - {name: a, directory: {path: /x}}\n", r'"Place" cannot name'),
        (
            "place: where",
            "  - {name: a, directory: {path: '{place}'}}\n  - {name: a, directory: {path: /x}}\n",
            r':6: steps\[1\]: step "a" is there twice',
        ),
    ],
)
def test_parameters_are_declared_and_used(tmp_path, parameters, steps, message):
    with pytest.raises(ConfigError, match=message):
        read_playbook(write(tmp_path, steps, parameters))


def test_a_missing_value_names_playbook_step_and_meaning(tmp_path):
    steps = "  - {name: a, directory: {path: /x}}\n  - {name: b, directory: {path: '{place}'}}\n"
    with pytest.raises(ConfigError) as caught:
        compiled(tmp_path, steps, "place: where it goes")
    assert 'playbook mine, step "b": parameter "place" has no value' in caught.value.message
    assert "where it goes" in caught.value.message
    assert caught.value.remedy == "llx play … --set place=VALUE"


@given(value=st.text(min_size=1))
def test_a_value_never_splits_a_word_nor_is_filled_in_itself(value, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("playbook")
    steps = (
        "  - {name: a, run: {check: [test, '{value}'], apply: [echo, 'x={value}y', '{ awk }']}}\n"
    )
    (work,) = compiled(tmp_path, steps, "value: any", value=value)
    assert work.check.argv == ("test", value)
    assert work.deed.argv == ("echo", f"x={value}y", "{ awk }")


@pytest.mark.parametrize(
    "step",
    [
        "directory: {path: '/x/{token}'}",
        "file: {path: '/x/{token}', content: c}",
        "run: {check: ['{token}'], apply: [x]}",
        "run: {check: [x], apply: [x, '--token={token}']}",
        "run: {check: [x], apply: [x], verify: ['{token}']}",
        "run: {check: [x], apply: [x], stdin: '{token}'}",
        "upload: {source: '{token}', to: /x}",
        "upload: {source: /x, to: '/{token}'}",
        "fetch: {path: /x, to: '{token}', names: [log]}",
        "fetch: {path: /x, to: y, names: ['{token}']}",
    ],
)
def test_a_secret_is_the_content_of_a_file_and_nothing_else(tmp_path, step):
    with pytest.raises(ConfigError) as caught:
        compiled(tmp_path, f"  - name: a\n    {step}\n", "token: a secret", token=TOKEN)
    assert 'playbook mine, step "a"' in caught.value.message
    assert "is a secret: it may only be the content of a file" in caught.value.message
    assert TOKEN.reveal() not in str(caught.value)


def test_a_file_of_a_secret_shows_no_secret(tmp_path):
    steps = "  - {name: a, file: {path: /x, content: 'token: {token}'}}\n"
    (work,) = compiled(tmp_path, steps, "token: a secret", token=TOKEN)
    assert isinstance(work.deed, Put)
    assert work.deed.content == Secret(f"token: {TOKEN.reveal()}")
    for text in (*described(work), repr(work)):
        assert TOKEN.reveal() not in text


@pytest.mark.parametrize(
    "path", ["/home/ann", "/home/ann/.llx/../x", "/", "/etc", "/tmp", "/home/ann/.llxx", "rel"]
)
def test_nothing_outside_of_llx_is_removed(tmp_path, path):
    steps = f"  - {{name: a, absent: {{path: '{path}'}}}}\n"
    with pytest.raises(ConfigError, match='playbook mine, step "a"'):
        compiled(tmp_path, steps, "root: r, ray_tmp: t", **STANDARD)


@pytest.mark.parametrize(("name", "value"), [("root", "/home"), ("ray_tmp", "/tmp")])
def test_what_is_llxs_own_cannot_be_talked_into_more(tmp_path, name, value):
    steps = "  - {name: a, absent: {path: /home/ann/.llx/x}}\n"
    with pytest.raises(ConfigError, match="not llx's own directory"):
        compiled(tmp_path, steps, "root: r, ray_tmp: t", **{**STANDARD, name: value})


@pytest.mark.parametrize("path", ["x", "./x", "/x/../y", "/x\n", "/"])
def test_paths_on_a_host_are_absolute_and_plain(tmp_path, path):
    steps = "  - {name: a, directory: {path: '{path}'}}\n"
    with pytest.raises(ConfigError, match="not an absolute path"):
        compiled(tmp_path, steps, "path: any", path=path)


def test_a_source_is_beside_its_playbook(tmp_path):
    (work,) = compiled(tmp_path, "  - {name: a, upload: {source: files/x, to: /x}}\n")
    assert work.deed.source == tmp_path / "files" / "x"


def nftables(tmp_path, rules="[tcp dport 1 drop]", table="llx_x", uid="0"):
    steps = f"  - {{name: a, nftables: {{table: '{table}', rules: {rules}}}}}\n"
    return compiled(tmp_path, steps, "uid: u", uid=uid)[0]


def test_the_packet_filter_is_worked_on_as_root(tmp_path):
    assert nftables(tmp_path).check.argv[0] == "nft"
    work = nftables(tmp_path, uid="1000")
    assert work.check.argv[:3] == ("sudo", "-n", "nft")
    assert isinstance(work.deed, Run)
    assert work.deed.argv[:3] == ("sudo", "-n", "nft")


def test_other_tables_of_the_packet_filter_are_not_touched(tmp_path):
    for table in ("filter", "llx", "llx_x; flush ruleset", "llx_x y"):
        with pytest.raises(ConfigError, match="its name begins with"):
            nftables(tmp_path, table=table)
    for rule in ('drop; add table x"', "drop\\n}", "accept; drop"):
        with pytest.raises(ConfigError, match="one rule"):
            nftables(tmp_path, rules=f'["{rule}"]' if '"' not in rule else f"['{rule}']")


def test_standard_values_follow_the_settings():
    assert STANDARD["python"] == f"/home/ann/.llx/node/{__version__}-cpu/bin/python"
    assert (STANDARD["first_port"], STANDARD["last_port"]) == ("20000", "20999")
    assert STANDARD["cluster_addresses"] == "127.0.0.1, 10.0.0.1, 10.0.0.2"
    assert STANDARD["cluster_addresses_v6"] == "::1, fd00::1"
    own = SETTINGS.hosts[0].model_copy(update={"python": Path("/env/bin/python")})
    values = standard_values(LAYOUT, SETTINGS, own, platform="cpu")
    assert values["python"] == "/env/bin/python"
