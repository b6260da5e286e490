"""Playing playbooks: on this machine's real shell in a temporary directory, and on a fake one."""

import base64
import io
import json
import tarfile
from pathlib import PurePosixPath

import pytest

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.local_ports import StepState
from llx.bootstrap.play import PlayResult, layout_values, play
from llx.bootstrap.playbook import load_playbook, read_playbook
from llx.errors import ConfigError, DeadlineError, HostError, LlxError, UnreachableError
from llx.secret import Secret
from tests.bootstrap.fake_shell import FakeShell, LocalShell, completed

PEM = (
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH\nBG0wawIBAQQg\n"
    "-----END PRIVATE KEY-----\n"
)


class Scene:
    """A host's home and an operator's directory, and what is heard of a play."""

    def __init__(self, root):
        self.root = root
        self.home = root / "home"
        self.home.mkdir(mode=0o700)
        self.operator = root / "operator"
        self.operator.mkdir()
        self.layout = HostLayout(PurePosixPath(self.home), 0, f"test-{root.name[-20:]}")
        self.log = self.operator / "logs" / "h1.log"
        self.shell = LocalShell()
        self.events = []

    def playbook(self, steps, parameters=""):
        path = self.operator / "mine.yaml"
        path.write_text(
            f"name: mine\ndescription: d\nparameters: {{{parameters}}}\nsteps:\n{steps}"
        )
        return read_playbook(path)

    def play(self, playbook, values=None, **options):
        if isinstance(playbook, str):
            playbook = load_playbook(playbook) if "\n" not in playbook else self.playbook(playbook)
        options = {"layout": self.layout, "log": self.log, "shell": self.shell} | options
        return play(playbook, values=values or {}, observe=self.events.append, **options)

    @property
    def tree(self):
        return {
            path.relative_to(self.home).as_posix(): f"{path.lstat().st_mode & 0o777:o}"
            for path in sorted(self.home.rglob("*"))
        }


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def twice(scene, steps, spoil, parameters="", **values):
    """Play, play again, spoil it, play: changed, unchanged, mended."""
    playbook = scene.playbook(steps, parameters)
    assert scene.play(playbook, values).changed == ("a",)
    before = scene.tree
    again = scene.play(playbook, values)
    assert (again.changed, again.unchanged) == ((), ("a",))
    spoil()
    assert scene.play(playbook, values).changed == ("a",)
    assert scene.tree == before


def test_directory(scene):
    place = scene.home / "x" / "y"
    steps = f"  - {{name: a, directory: {{path: {place}, mode: '0750'}}}}\n"
    twice(scene, steps, lambda: place.chmod(0o755))
    assert scene.tree == {"x": "700", "x/y": "750"}


def test_directory_may_be_a_link(scene):
    (scene.home / "disk").mkdir(mode=0o700)
    (scene.home / "x").symlink_to(scene.home / "disk")
    steps = f"  - {{name: a, directory: {{path: {scene.home}/x}}}}\n"
    assert scene.play(steps).changed == ()
    assert (scene.home / "x").is_symlink()


@pytest.mark.parametrize("spoil", ["content", "mode", "gone", "link"])
def test_file(scene, spoil):
    path = scene.home / "x"

    def spoiled():
        match spoil:
            case "content":
                path.write_text("other")
            case "mode":
                path.chmod(0o644)
            case "gone":
                path.unlink()
            case "link":
                path.rename(scene.home / "y")
                path.symlink_to(scene.operator / "nowhere")

    steps = f"  - {{name: a, file: {{path: {path}, content: 'one {{word}}'}}}}\n"
    if spoil == "link":
        (scene.home / "y").touch(mode=0o600)
    twice(scene, steps, spoiled, "word: w", word="two")
    assert path.read_text() == "one two"
    assert not path.is_symlink()


def test_upload_sends_what_differs_and_tells_of_it(scene):
    source, to = scene.operator / "wheel", scene.home / "wheel"
    source.write_bytes(b"w" * 1000)
    steps = f"  - {{name: a, upload: {{source: wheel, to: {to}, mode: '0640'}}}}\n"
    twice(scene, steps, lambda: to.write_bytes(b"v" * 1000))
    assert to.read_bytes() == source.read_bytes()
    details = [each.detail for each in scene.events]
    assert "wheel: 0.0 of 0.0 MB" in details
    source.write_bytes(b"n" * 1000)
    assert scene.play(steps).changed == ("a",)
    assert to.read_bytes() == b"n" * 1000
    source.unlink()
    with pytest.raises(ConfigError, match=r"wheel: cannot be read"):
        scene.play(steps)


def test_upload_directory_sends_what_is_missing(scene):
    source = scene.operator / "house"
    (source / "sub").mkdir(parents=True)
    for name in ("a.whl", "b.whl", "sub/c.whl"):
        (source / name).write_text(name)
    to = scene.home / "house"
    steps = f"  - {{name: a, upload_directory: {{source: house, to: {to}}}}}\n"
    assert scene.play(steps).changed == ("a",)
    (to / "theirs").write_text("stays")
    assert scene.play(steps).changed == ()
    (to / "b.whl").write_text("cut")
    scene.shell.put_paths.clear()
    assert scene.play(steps).changed == ("a",)
    assert scene.shell.put_paths == [f"{to}/b.whl"]
    assert (to / "b.whl").read_text() == "b.whl"
    assert (to / "sub" / "c.whl").read_text() == "sub/c.whl"
    assert (to / "theirs").exists()
    with pytest.raises(ConfigError, match="no such directory"):
        scene.play(steps.replace("source: house", "source: hut"))


def test_absent(scene):
    place = scene.home / ".llx" / "x"
    steps = f"  - {{name: a, absent: {{path: {place}}}}}\n"
    path = scene.operator / "absent.yaml"
    path.write_text(
        f"name: n\ndescription: d\nparameters: {{root: r, ray_tmp: t}}\nsteps:\n{steps}"
    )
    playbook = read_playbook(path)
    assert scene.play(playbook).changed == ()
    (place / "y").mkdir(parents=True)
    assert scene.play(playbook).changed == ("a",)
    assert scene.tree == {".llx": "755"}
    place.symlink_to(scene.operator)
    assert scene.play(playbook).changed == ("a",)
    assert scene.operator.is_dir()


def test_the_layout_wins_over_values_given(scene):
    path = scene.operator / "absent.yaml"
    path.write_text(
        "name: n\ndescription: d\nparameters: {root: r, ray_tmp: t}\n"
        "steps:\n  - {name: a, absent: {path: '{root}/x'}}\n"
    )
    other = scene.root / "other" / ".llx"
    (other / "x").mkdir(parents=True)
    scene.play(read_playbook(path), {"root": str(other)})
    assert (other / "x").is_dir()


def test_run_looks_does_and_looks_again(scene):
    path = scene.home / "x"
    steps = f"""
  - name: a
    run:
      check: [grep, -q, two words, {path}]
      apply: [sh, -c, 'cat > "$1"; echo told', sh, {path}]
      stdin: "two words"
"""
    twice(scene, steps, path.unlink)
    assert path.read_text() == "two words"
    states = [(each.state, each.detail) for each in scene.events]
    assert states[:3] == [
        (StepState.RUNNING, ""),
        (StepState.RUNNING, "told"),
        (StepState.DONE, "changed"),
    ]
    assert states[4] == (StepState.DONE, "unchanged")


def test_a_command_that_fails_is_shown_with_its_last_words_and_the_log(scene):
    steps = "  - {name: a b, run: {check: ['false'], apply: [sh, -c, 'echo why >&2; exit 7']}}\n"
    with pytest.raises(HostError) as caught:
        scene.play(steps)
    error = caught.value
    assert error.message == "h1: mine: a b: exit code 7"
    assert (error.host, error.process_exit_code, error.detail) == ("h1", 7, "why")
    assert error.remedy == f"see {scene.log}"
    assert scene.events[-1].state is StepState.FAILED
    log = scene.log.read_text()
    assert "$ sh -c 'echo why >&2; exit 7'" in log
    assert "| why" in log
    assert "= exit code 7" in log
    assert scene.log.stat().st_mode & 0o777 == 0o600


def test_a_deed_that_does_not_do_it_is_a_failure(scene):
    steps = "  - {name: a, run: {check: [sh, -c, 'echo not so; exit 1'], apply: ['true']}}\n"
    with pytest.raises(HostError, match="h1: mine: a: it was done, but is not so") as caught:
        scene.play(steps)
    assert caught.value.detail == "not so"
    with pytest.raises(HostError, match=r"mine: a: it was done, but is not so\n"):
        scene.play("  - {name: a, run: {check: ['false'], apply: ['true'], verify: ['false']}}\n")


def test_later_steps_wait_for_earlier_ones(scene):
    steps = f"""
  - {{name: a, run: {{check: ['false'], apply: ['false']}}}}
  - {{name: b, directory: {{path: {scene.home}/x}}}}
"""
    with pytest.raises(HostError):
        scene.play(steps)
    assert scene.tree == {}


def test_what_takes_a_while_is_looked_at_again(scene):
    shell = FakeShell()
    shell.answer("check", by=[completed(exit_code=1), *[completed(exit_code=1)] * 3, completed()])
    shell.answer("start")
    steps = "  - {name: a, run: {check: [check], apply: [start], wait_s: 60}}\n"
    slept = []
    assert scene.play(steps, shell=shell, sleep=slept.append).changed == ("a",)
    assert len(slept) == 3
    shell.answer("check", by=completed(exit_code=1, stderr="raylet: no"))
    with pytest.raises(HostError, match=r"is not so within 0\.01 s") as caught:
        scene.play(steps.replace("60", "0.01"), shell=shell)
    assert caught.value.detail == "raylet: no"


def test_a_command_without_end_is_named(scene):
    steps = "  - {name: a, run: {check: ['false'], apply: [sleep, '5'], timeout_s: 0.1}}\n"
    with pytest.raises(DeadlineError, match=r"h1: mine: a: no end within 0.1 s: sleep 5"):
        scene.play(steps)


def test_a_host_that_is_gone_ends_the_play(scene):
    shell = FakeShell()
    shell.is_dead = True
    with pytest.raises(UnreachableError):
        scene.play("  - {name: a, directory: {path: /x}}\n", shell=shell)
    assert scene.events[-1].state is StepState.FAILED
    assert "does not answer" in scene.log.read_text()


def test_a_play_can_be_stopped_between_steps(scene):
    steps = f"""
  - {{name: a, directory: {{path: {scene.home}/x}}}}
  - {{name: b, directory: {{path: {scene.home}/y}}}}
"""
    left = [1]

    def proceed():
        if not left:
            raise LlxError("the lock was lost")
        left.pop()

    with pytest.raises(LlxError, match="the lock was lost"):
        scene.play(steps, proceed=proceed)
    assert set(scene.tree) == {"x"}


def test_dry_run_shows_exact_commands_and_changes_nothing(scene):
    (scene.home / "there").mkdir(mode=0o700)
    steps = f"""
  - {{name: a, directory: {{path: {scene.home}/there}}}}
  - {{name: b, run: {{check: [test, -e, "{scene.home}/x y"], apply: [touch, "{scene.home}/x y"]}}}}
"""
    result = scene.play(steps, dry_run=True)
    assert (result.changed, result.unchanged) == (("b",), ("a",))
    assert [each.step for each in result.commands] == ["b"]
    assert result.commands[0].lines == (
        f"check: test -e '{scene.home}/x y'",
        f"apply: touch '{scene.home}/x y'",
    )
    assert set(scene.tree) == {"there"}
    shell = FakeShell()
    assert scene.play(steps, dry_run=True, offline=True, shell=shell).changed == ("a", "b")
    assert shell.ran == []


@pytest.mark.parametrize("content", ["hf_ABCDEFGHIJKLMNOPQRSTUVWX", PEM])
def test_a_secret_is_in_no_command_log_or_message(scene, content):
    """Even where the host says it aloud."""
    path = scene.home / "secret"
    steps = f"""
  - {{name: a, file: {{path: {path}, content: '{{secret}}'}}}}
  - name: b
    run:
      check: ['false']
      apply: [sh, -c, 'cat "$1"; cat "$1" >&2; exit 1', sh, {path}]
"""
    playbook = scene.playbook(steps, "secret: s")
    with pytest.raises(HostError) as caught:
        scene.play(playbook, {"secret": Secret(content)})
    assert path.read_text() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert "***" in caught.value.detail
    seen = [*map(repr, scene.shell.argvs), scene.log.read_text(), str(caught.value)]
    seen += [caught.value.detail, *(each.detail for each in scene.events)]
    for word in [each for each in content.split() if len(each) > 11]:
        assert not any(word in each for each in seen)
    result = scene.play(playbook, {"secret": Secret(content)}, dry_run=True)
    assert content not in repr(result)


def test_logs_are_fetched_and_nothing_else(scene):
    procs = scene.home / ".llx" / "clusters" / "c" / "procs"
    (procs / "m-0").mkdir(parents=True)
    (procs / "m-0" / "log").write_text("hello\n" * 50000)
    (procs / "m-0" / "odd name.log").write_text("odd")
    (procs / "keys.json").write_text("secret")
    (procs / "link").symlink_to("/etc/hostname")
    to = scene.operator / "got"
    steps = f"""
  - name: a
    fetch: {{path: {procs}, to: {to}, names: [log, '*.log', link]}}
"""
    dry = scene.play(steps, dry_run=True)
    assert (dry.changed, [each.step for each in dry.commands]) == ((), ["a"])
    assert not to.exists()
    result = scene.play(steps)
    assert result == PlayResult((), (), ("a (2 files, 0.3 MB)",))
    found = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert found == {"m-0/log", "m-0/odd name.log"}
    assert (to / "m-0" / "log").read_text() == "hello\n" * 50000
    assert (to / "m-0" / "log").stat().st_mode & 0o777 == 0o600
    assert scene.events[-1].detail == "2 files, 0.3 MB"
    scene.play(steps)
    (scene.home / ".llx" / "empty").mkdir()
    for nothing in (scene.home / "nowhere", scene.home / ".llx" / "empty"):
        scene.play(steps.replace(f"path: {procs}", f"path: {nothing}"))
        assert scene.events[-1].detail == "0 files, 0.0 MB"


def archive(*names, cut=0, kind=tarfile.REGTYPE):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, 5, "/etc"
            tar.addfile(member, io.BytesIO(b"evil\n"))
    data = buffer.getvalue()
    lines = base64.encodebytes(data[: len(data) - cut]).decode().splitlines()
    return "".join(f":{line}\n" for line in lines)


@pytest.mark.parametrize(
    "stdout",
    [archive("../evil"), archive("/tmp/llx-test-evil"), archive("x", kind=tarfile.SYMTYPE)],
)
def test_a_host_cannot_write_elsewhere(scene, stdout):
    shell = FakeShell()
    shell.answer("sh", by=completed(stdout))
    to = scene.operator / "a" / "got"
    scene.play(f"  - {{name: a, fetch: {{path: /x, to: {to}, names: [log]}}}}\n", shell=shell)
    assert list(scene.operator.rglob("*evil*")) == []
    assert not to.exists()
    assert scene.events[-1].detail == "0 files, 0.0 MB"


def test_what_a_host_says_besides_is_no_part_of_the_files(scene):
    shell = FakeShell()
    noise = "Welcome!\n"
    shell.answer("sh", by=completed(noise + archive("log").replace("\n", f"\n{noise}", 1)))
    steps = f"  - {{name: a, fetch: {{path: /x, to: {scene.operator}/got, names: [log]}}}}\n"
    scene.play(steps, shell=shell)
    assert (scene.operator / "got" / "log").read_text() == "evil\n"


@pytest.mark.parametrize("stdout", [archive("log", cut=20), ":not base64!\n", ":aGVsbG8=\n"])
def test_logs_that_did_not_come_whole_are_a_failure(scene, stdout):
    shell = FakeShell()
    shell.answer("sh", by=completed(stdout))
    steps = f"  - {{name: a, fetch: {{path: /x, to: {scene.operator}/got, names: [log]}}}}\n"
    with pytest.raises(HostError, match="the files did not come whole"):
        scene.play(steps, shell=shell)


# --- the shipped ones, on a home ---------------------------------------------------------------


def wheel(scene):
    (scene.operator / "llx-1-py3-none-any.whl").write_bytes(b"wheel")
    return {
        "wheel_file": str(scene.operator / "llx-1-py3-none-any.whl"),
        "wheel": f"{scene.layout.wheels}/llx-1-py3-none-any.whl",
    }


def configured(scene):
    scene.play("claim", {"cluster_id": "1f"})
    scene.play("bootstrap", wheel(scene))
    keys = ("keys", "ray_token", "ca_key", "host_key", "control_token", "hub_token")
    values = {name: Secret(f"{name} 0123456789abcdef") for name in keys}
    plain = {"ca_cert": "ca", "host_cert": "host", "settings": "cluster: c\n"}
    values |= plain | {"spec_text": '{\n  "python": "/nowhere/python",\n  "host": "h1"\n}\n'}
    names = ("configure", "configure-tls", "configure-head", "configure-settings", "configure-hub")
    return [scene.play(name, values) for name in names]


def test_bootstrap_and_configure_twice(scene):
    first = configured(scene)
    assert all(
        each.unchanged in ((), ("directory of certificates", "the cluster's authority"))
        for each in first
    )
    assert all(each.changed == () for each in configured(scene))
    tree = scene.tree
    state = f".llx/clusters/{scene.layout.cluster}"
    assert set(tree) == {
        ".llx",
        ".llx/clusters",
        ".llx/host.json",
        ".llx/models",
        ".llx/wheels",
        ".llx/wheels/llx-1-py3-none-any.whl",
        state,
        *(
            f"{state}/{name}"
            for name in "cluster.yaml hf.token host.spec.json keys.json procs ray.token tls token "
            "tls/ca.key tls/ca.pem tls/host.key tls/host.pem".split()
        ),
    }
    for path, mode in tree.items():
        is_directory = (scene.home / path).is_dir()
        assert mode == ("700" if is_directory else "644" if path.endswith(".whl") else "600"), path
    log = scene.log.read_text()
    assert "0123456789abcdef" not in log
    assert not any("0123456789abcdef" in word for argv in scene.shell.argvs for word in argv)


def test_a_host_is_claimed_once_and_by_one_cluster(scene):
    claim = scene.home / ".llx" / "host.json"
    assert scene.play("claim", {"cluster_id": "1f"}).changed == ("llx's directory", "claim")
    name = scene.layout.cluster
    assert json.loads(claim.read_text()) == {"cluster": name, "id": "1f"}
    assert claim.stat().st_mode & 0o777 == 0o600
    assert scene.play("claim", {"cluster_id": "1f"}).changed == ()
    # An `up` that was broken off, and whose secrets never reached the head.
    assert scene.play("claim", {"cluster_id": "2f"}).changed == ("claim",)
    claim.write_text('{"cluster": "theirs", "id": "3f"}')
    with pytest.raises(HostError, match="claim") as caught:
        scene.play("claim", {"cluster_id": "2f"})
    assert "taken by another cluster" in caught.value.detail
    assert "theirs" in caught.value.detail
    assert "theirs" in claim.read_text()


def test_clear_leaves_logs_and_what_must_outlive_a_start(scene):
    configured(scene)
    state = scene.home / ".llx" / "clusters" / scene.layout.cluster
    (state / "procs" / "m-0").mkdir()
    for name in ("procs/m-0/log", "procs/m-0/log.1", "procs/m-0/shim.json", "events.jsonl", "term"):
        (state / name).write_text("x")
    before = scene.play("clear").changed
    assert before == ("files of a start", "claim")
    left = {path.relative_to(state).as_posix() for path in state.rglob("*") if path.is_file()}
    assert left == {"procs/m-0/log", "procs/m-0/log.1", "events.jsonl", "term"}
    assert not (state / "tls").exists()
    assert (scene.home / ".llx" / "wheels").is_dir()
    assert scene.play("clear").changed == ()


def test_a_tiny_model_that_is_not_whole_is_made_anew(scene):
    """As an interrupted removal leaves it: the maker would take its config for a whole one."""
    python = scene.operator / "python"
    python.write_text('#!/bin/sh\ntest ! -e "$4/config.json" && mkdir -p "$4" && touch "$4/new"\n')
    python.chmod(0o755)
    place = scene.home / ".llx/models/tiny-1"
    place.mkdir(parents=True)
    (place / "config.json").touch()
    values = {"python": str(python), "tiny_model": "tiny-1"}
    assert scene.play("tiny-model", values).changed == ("tiny model",)
    assert {path.name for path in place.iterdir()} == {"new", "llx-model.json"}
    assert scene.play("tiny-model", values).changed == ()


@pytest.mark.parametrize("is_linked", [False, True])
def test_purge_leaves_the_home_as_it_was(scene, is_linked):
    (scene.home / "theirs").write_text("x")
    if is_linked:
        (scene.home / "disk").mkdir(mode=0o700)
        (scene.home / ".llx").symlink_to(scene.home / "disk")
    before = scene.tree
    configured(scene)
    for name in ("node", "python", "models/m", "models/.hub", "cache"):
        (scene.home / ".llx" / name).mkdir()
        (scene.home / ".llx" / name / "file").touch()
    scene.play("purge")
    before.pop(".llx", None)
    assert scene.tree == before
    assert scene.play("purge").changed == ()


def test_purge_takes_from_a_disk_that_models_leads_to_what_is_llxs(scene):
    disk = scene.home / "disk"
    for name in ("theirs", "m", ".hub"):
        (disk / name).mkdir(parents=True)
        (disk / name / "weights").touch()
    before = scene.tree
    configured(scene)
    (scene.home / ".llx/models").rmdir()
    (scene.home / ".llx/models").symlink_to(disk)
    (disk / "m/llx-model.json").touch()
    scene.play("purge")
    assert scene.tree.keys() == {n for n in before if not n.startswith(("disk/m", "disk/.hub"))}
    assert scene.play("purge").changed == ()


class FakeNode:
    """A node environment's Python as `stop` and `start` meet it: is it up, what was asked."""

    def __init__(self, scene, *, ends=True):
        self.asked = scene.operator / "asked"
        self.up = scene.operator / "up"
        self.python = scene.operator / "node env" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        end = f'rm -f "{self.up}"' if ends else ":"
        self.python.write_text(
            f"""#!/bin/sh
echo "$@" >> '{self.asked}'
case "$3" in
check) test -e '{self.up}' ;;
gone) test ! -e '{self.up}' ;;
start) touch '{self.up}' ;;
stop) {end} ;;
esac
"""
        )
        self.python.chmod(0o755)
        state = scene.home / ".llx" / "clusters" / scene.layout.cluster
        (state / "procs" / "ray").mkdir(parents=True)
        self.spec = state / "host.spec.json"
        self.spec.write_text(f'{{\n  "cluster": "c",\n  "python": "{self.python}",\n  "x": 1\n}}\n')

    @property
    def words(self):
        return [line.split() for line in self.asked.read_text().splitlines()]


def test_start_and_stop(scene):
    node = FakeNode(scene)
    assert scene.play("start", {"python": str(node.python)}).changed == ("Ray",)
    assert scene.play("start", {"python": str(node.python)}).changed == ()
    assert scene.play("stop", {"grace_s": "7"}).changed == ("processes",)
    assert scene.play("stop", {"grace_s": "7"}).changed == ()
    spec = str(node.spec)
    verbs = [each[2] for each in node.words]
    assert verbs == ["check", "start", "check", "check", "gone", "stop", "gone", "gone"]
    assert ["-m", "llx.cluster.ray.node", "stop", spec, "--grace", "7"] in node.words


def test_stop_says_when_something_goes_on(scene):
    node = FakeNode(scene, ends=False)
    node.up.touch()
    with pytest.raises(HostError, match="h1: stop: processes: it was done, but is not so"):
        scene.play("stop", {"grace_s": "7"})


def test_stop_where_nothing_was_started_or_the_environment_is_gone(scene):
    assert scene.play("stop", {"grace_s": "7"}).changed == ()
    node = FakeNode(scene)
    node.python.unlink()
    assert scene.play("stop", {"grace_s": "7"}).changed == ()
    (node.spec.parent / "procs" / "ray" / "shim.json").touch()
    with pytest.raises(HostError, match=r"exit code 12[67]"):
        scene.play("stop", {"grace_s": "7"})


FIREWALL = {
    "first_port": "20000",
    "last_port": "20999",
    "cluster_addresses": "127.0.0.1, 10.0.0.1",
    "cluster_addresses_v6": "::1",
}


@pytest.mark.parametrize(
    ("stderr", "is_about_sudo"),
    [
        ("sh: 1: exec: sudo: not found", True),
        ("bash: line 1: exec: sudo: not found", True),
        ("sudo: a password is required", True),
        ("ann is not in the sudoers file.", True),
        ("Sorry, user ann is not allowed to execute '/usr/sbin/nft -f -' as root", True),
        ("sudo: nft: command not found", False),
        ("/dev/stdin:1:1-9: Error: Operation not permitted", False),
    ],
)
def test_a_user_who_may_not_set_the_firewall_is_told_what_it_takes(scene, stderr, is_about_sudo):
    shell = FakeShell()
    shell.answer("sudo", by=completed(stderr=stderr, exit_code=1))
    layout = HostLayout(PurePosixPath(scene.home), 1000, "c")
    with pytest.raises(HostError) as caught:
        scene.play("firewall", FIREWALL, shell=shell, layout=layout)
    assert caught.value.detail == stderr
    assert ("is not root and has no sudo" in caught.value.message) is is_about_sudo
    assert ("NOPASSWD" in caught.value.remedy) is is_about_sudo


def test_a_firewall_that_is_there_is_left(scene):
    rules = "".join(f'\t\trule comment "llx:{{}}:{index}"\n' for index in range(4))
    shell = FakeShell()
    values = FIREWALL
    dry = scene.play("firewall", values, dry_run=True, offline=True).commands[0].lines
    digest = next(line for line in dry if "llx:" in line).split("llx:")[1].split(":")[0]
    head = "table inet t {\n\tchain rules {\n\t\ttype filter hook input priority -10;\n"
    listing = head + rules.format(*[digest] * 4) + "\t}\n}\n"
    shell.answer("nft", "list", "table", by=completed(listing))
    assert scene.play("firewall", values, shell=shell).changed == ()
    for spoiled in (
        listing.replace(f'\t\trule comment "llx:{digest}:3"\n', ""),
        listing.replace("\t\trule", "\t\tip saddr 1.2.3.4 accept\n\t\trule", 1),
        listing.replace(digest, "0" * 12),
        "",
    ):
        shell.answer("nft", "list", "table", by=[completed(spoiled), completed(listing)])
        shell.answer("nft", "-f", "-")
        assert scene.play("firewall", values, shell=shell).changed == ("packet filter",)
    more = values | {"cluster_addresses": "127.0.0.1, 10.0.0.1, 10.0.0.2"}
    shell.answer("nft", "list", "table", by=completed(listing))
    assert scene.play("firewall", more, shell=shell, dry_run=True).changed == ("packet filter",)


def test_layout_values_are_those_of_the_layout(scene):
    values = layout_values(scene.layout)
    assert values["spec"] == f"{scene.home}/.llx/clusters/{scene.layout.cluster}/host.spec.json"
    assert values["uid"] == "0"
