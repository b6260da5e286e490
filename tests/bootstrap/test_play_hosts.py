"""A playbook on several hosts at once: values, the lock, who failed. Hosts are directories here."""

import json
import os
import threading

import pytest

from llx.bootstrap.host_lock import hold
from llx.bootstrap.hosts_world import Asker, HostsWorld, layout_of
from llx.bootstrap.local_ports import StepState
from llx.bootstrap.play import PlayResult
from llx.bootstrap.play_hosts import (
    Performance,
    PlayError,
    chosen_hosts,
    parse_values,
    play_on_hosts,
    require_all,
)
from llx.bootstrap.playbook import load_playbook, read_playbook
from llx.cluster_file import ClusterSettings
from llx.errors import ConfigError, ConflictError, ExitCode, NotFoundError, UnreachableError
from llx.secret import Secret
from tests.bootstrap.fake_shell import LocalShell

HOSTS = ("h1", "h2", "h3")


def settings(**changes):
    hosts = [{"name": name, "address": f"{name}.example"} for name in HOSTS]
    models = [{"name": "m", "model": "/m"}]
    return ClusterSettings.model_validate(
        {"cluster": "prod", "hosts": hosts, "models": models, **changes}
    )


class Farm:
    """Three homes; `away` hosts cannot be reached."""

    def __init__(self, root):
        self.root = root
        self.away = set()
        self.events = []
        self.world = HostsWorld(
            connect=self.connect, control=None, first_token=None, asker=Asker("ann", "desk", 7)
        )
        for index, name in enumerate(HOSTS, 1):
            (root / name).mkdir()
            setattr(self, name, LocalShell(name, self.variables(name, index)))

    def variables(self, name, index):
        address = f"10.9.0.9 40000 10.9.0.{index} 22"
        return {
            "HOME": str(self.root / name),
            "PATH": os.environ["PATH"],
            "SSH_CONNECTION": address,
        }

    def connect(self, host):
        if host.name in self.away:
            raise UnreachableError(f"{host.name}: connect: no route")
        return getattr(self, host.name)

    def playbook(self, steps, parameters="root: r"):
        path = self.root / "mine.yaml"
        path.write_text(
            f"name: mine\ndescription: d\nparameters: {{{parameters}}}\nsteps:\n{steps}"
        )
        return read_playbook(path)

    def play(self, playbook, *, hosts="*", of=None, given=None, dry_run=False):
        of = of or settings()
        performance = Performance(
            playbook=load_playbook(playbook) if isinstance(playbook, str) else playbook,
            settings=of,
            hosts=chosen_hosts(of, hosts),
            given=given or {},
            log_dir=self.root / "logs",
            dry_run=dry_run,
        )
        return play_on_hosts(performance, self.world, self.events.append)

    def paths(self, name):
        home = self.root / name
        return {path.relative_to(home).as_posix() for path in home.rglob("*")}


@pytest.fixture
def farm(tmp_path):
    return Farm(tmp_path)


def test_on_all_at_once_and_again(farm):
    meeting = threading.Barrier(3, timeout=20)
    for name in HOSTS:
        getattr(farm, name).run = together(getattr(farm, name), meeting)
    first = farm.play("bootstrap")
    assert set(first) == set(HOSTS)
    assert all("llx's wheel" in each.changed for each in first.values())
    for name in HOSTS:
        getattr(farm, name).__dict__.pop("run")
    second = farm.play("bootstrap")
    assert [each.changed for each in second.values()] == [(), (), ()]
    final = {each.step: each for each in farm.events}
    assert final["host h2"].state is StepState.DONE
    assert final["host h2"].detail == "nothing to do"
    assert (farm.root / "logs" / "h3.log").is_file()
    for name in HOSTS:
        assert any(path.endswith(".whl") for path in farm.paths(name))


def together(shell, meeting):
    """Its `run`, which at the first step waits for the other hosts to be there, too."""
    run, is_first = shell.run, [True]

    def waiting(argv, **options):
        if "mkdir" in " ".join(argv) and ".llx" in argv[-2] and is_first:
            is_first.pop()
            meeting.wait()
        return run(argv, **options)

    return waiting


def test_some_hosts_only(farm):
    assert set(farm.play("bootstrap", hosts="h3,h2")) == {"h2", "h3"}
    assert farm.paths("h1") == set()


def test_one_that_fails_does_not_stop_the_others(farm):
    farm.away.add("h2")
    (farm.root / "h3" / ".llx").write_text("in the way")
    results = farm.play(farm.playbook("  - {name: a, directory: {path: '{root}/d'}}\n"))
    assert results["h1"] == PlayResult(("a",), ())
    with pytest.raises(PlayError) as caught:
        require_all(load_playbook("bootstrap"), results)
    assert caught.value.exit_code is ExitCode.PARTIAL
    assert "failed on h2, h3:" in caught.value.message
    assert "  h2: connect: no route" in caught.value.message
    assert "  h3: mine: a: exit code 1" in caught.value.message
    assert str(farm.root / "logs" / "h3.log") in caught.value.remedy


def test_when_none_is_reached_that_is_the_exit_code(farm):
    farm.away.update(HOSTS)
    results = farm.play(farm.playbook("  - {name: a, directory: {path: '{root}/d'}}\n"))
    with pytest.raises(PlayError) as caught:
        require_all(load_playbook("bootstrap"), results)
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_a_dry_run_leaves_no_trace(farm):
    results = farm.play("bootstrap", dry_run=True)
    assert len(results["h1"].changed) == 6
    assert farm.paths("h1") == set()
    assert not (farm.root / "logs").exists()


def test_a_value_that_is_missing_is_said_before_anything_is_done(farm):
    with pytest.raises(ConfigError, match='parameter "to" has no value'):
        farm.play("collect-logs")
    assert farm.events == []


SEEN = """
  - name: a
    run:
      check: [test, -e, '{root}/seen']
      apply: [cp, '{root}/prod.lock', '{root}/seen']
"""


def test_the_lock_is_held_meanwhile_and_respected(farm):
    playbook = farm.playbook(SEEN)
    assert farm.play(playbook, hosts="h1")["h1"] == PlayResult(("a",), ())
    record = json.loads((farm.root / "h1" / ".llx" / "seen").read_text())
    assert (record["verb"], record["user"], record["machine"]) == ("play mine", "ann", "desk")
    assert "h1/.llx/prod.lock" not in farm.paths("h1")
    with hold(farm.h1, layout_of(farm.h1, "prod"), "up", "bob", "other", 8):
        with pytest.raises(ConflictError, match="llx up of bob@other"):
            farm.play(playbook, hosts="h2")
        assert farm.play(playbook, hosts="h2", dry_run=True)["h2"].changed == ("a",)
    assert farm.paths("h2") == set()


def test_without_its_head_a_cluster_can_still_be_worked_on(farm):
    farm.away.add("h1")
    playbook = farm.playbook("  - {name: a, directory: {path: '{root}/d'}}\n")
    assert set(farm.play(playbook, hosts="h2")) == {"h2"}
    notes = [each.detail for each in farm.events if each.step == "lock"]
    assert notes == ["the head, h1, cannot be reached: going on without"]


ECHO = """
  - name: a
    run:
      check: [test, -e, '{root}/x']
      apply: [sh, -c, 'mkdir -p "$1"; echo "$2" > "$1/x"', sh, '{root}', '%s']
"""


def written(farm, name):
    return (farm.root / name / ".llx" / "x").read_text().strip()


def test_addresses_of_all_hosts_are_known_to_each(farm):
    known = settings(
        hosts=[
            {"name": "h1", "address": "x", "cluster_address": "10.1.1.1"},
            {"name": "h2", "address": "x"},
            {"name": "h3", "address": "x"},
        ]
    )
    state = farm.root / "h3" / ".llx" / "clusters" / "prod"
    state.mkdir(parents=True)
    (state / "host.spec.json").write_text(spec(address="fd00::3"))
    playbook = farm.playbook(
        ECHO % "{cluster_addresses}; {cluster_addresses_v6}",
        "root: r, cluster_addresses: a, cluster_addresses_v6: b",
    )
    farm.play(playbook, of=known, hosts="h2")
    assert written(farm, "h2") == "127.0.0.1, 10.1.1.1, 10.9.0.2; ::1, fd00::3"
    farm.away.add("h3")
    with pytest.raises(UnreachableError, match="h3: its address among the hosts is not known"):
        farm.play(playbook, of=known, hosts="h2")


def spec(**changes):
    values = {
        "cluster": "prod",
        "cluster_id": "1",
        "host": "h3",
        "address": "10.0.0.3",
        "head": "h1",
        "head_address": "10.0.0.1",
        "state_dir": "/s",
        "models_dir": "/m",
        "cache_dir": "/k",
        "python": "/their/python",
        "platform": "cuda",
        "first_port": 20000,
        "is_tls": True,
        "ray_tmp": "/tmp/llx-0-prod",
    }
    return json.dumps(values | changes)


def test_the_environment_is_the_one_the_host_runs_with(farm):
    state = farm.root / "h3" / ".llx" / "clusters" / "prod"
    state.mkdir(parents=True)
    (state / "host.spec.json").write_text(spec())
    playbook = farm.playbook(ECHO % "{platform} {python}", "root: r, platform: p, python: q")
    farm.play(playbook, hosts="h2,h3", of=settings(runtime={"platform": "cpu"}))
    assert written(farm, "h3") == "cuda /their/python"
    assert written(farm, "h2").startswith(f"cpu {farm.root}/h2/.llx/node/")
    (state / "host.spec.json").write_text("{}")  # of another release
    (farm.root / "h3" / ".llx" / "x").unlink()
    farm.play(playbook, hosts="h3", of=settings(runtime={"platform": "cpu"}))
    assert written(farm, "h3").startswith("cpu ")


def test_hosts_are_named_rightly(farm):
    assert chosen_hosts(settings(), "*") == HOSTS
    assert chosen_hosts(settings(), "h3, h1") == ("h1", "h3")
    with pytest.raises(NotFoundError, match='no host "h33" in cluster prod; did you mean "h3"'):
        chosen_hosts(settings(), "h33")
    with pytest.raises(ConfigError, match="names no host"):
        chosen_hosts(settings(), ",")
    with pytest.raises(ConfigError, match="has no hosts"):
        chosen_hosts(settings(hosts=[]), "*")


def test_values_that_are_set(tmp_path):
    playbook = load_playbook("collect-logs")
    (tmp_path / "token").write_text("s3cret")
    assert parse_values(playbook, ["to=a=b"]) == {"to": "a=b"}
    assert parse_values(playbook, [f"to=@{tmp_path}/token"]) == {"to": Secret("s3cret")}
    for words, message in {
        "to": "write --set NAME=VALUE",
        "too=x": 'no parameter "too"; did you mean "to"',
        "state=/x": '"state" follows from the host',
        "to=@/nowhere": "cannot read /nowhere",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse_values(playbook, [words])
