"""Models on hosts: what is sent and what is not, what an interruption leaves, what is refused."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pytest

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_plan import copied_name
from llx.bootstrap.hosts_world import HostsWorld
from llx.bootstrap.local_ports import StepEvent, StepState
from llx.bootstrap.model_files import MANIFEST_NAME, Manifest, ModelFile, check_name, hub_name, scan
from llx.bootstrap.model_hosts import ModelsError, on_hosts, require_all, rows_of
from llx.bootstrap.models import (
    HostModel,
    ensure_model,
    list_models,
    remove_model,
    users_of,
)
from llx.bootstrap.shell import Completed, OnProgress, Shell
from llx.errors import (
    ConfigError,
    ExitCode,
    HostError,
    NotFoundError,
    UnreachableError,
)
from llx.settings import ClusterSettings
from tests.bootstrap.fake_shell import LocalShell, completed


@pytest.fixture
def layout(tmp_path) -> HostLayout:
    home = tmp_path / "home"
    home.mkdir()
    return HostLayout(PurePosixPath(home), os.getuid(), "c")


@pytest.fixture
def source(tmp_path) -> Path:
    """A model as it lies around: a link into a cache, an editor's and a version control's files."""
    folder = tmp_path / "src"
    for name, text in {
        "config.json": "{}",
        "weights 1.safetensors": "w" * 100,
        "sub/-tokens.txt": "abc",
        ".git/HEAD": "ref",
        ".hidden": "x",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    blob = tmp_path / "blob"
    blob.write_text("linked")
    (folder / "linked.bin").symlink_to(blob)
    return folder


SENT = {"config.json", "linked.bin", "sub/-tokens.txt", "weights 1.safetensors"}


class Host(LocalShell):
    """This machine; says which files were sent."""

    def __init__(self, layout: HostLayout) -> None:
        super().__init__()
        self.place = Path(layout.models / "m")

    @property
    def sent(self) -> set[str]:
        inside = {Path(path).relative_to(self.place).as_posix() for path in self.put_paths}
        return inside - {MANIFEST_NAME}


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME
    }


def copy(layout: HostLayout, source: Path, on_progress: OnProgress | None = None) -> set[str]:
    """Copies; which files were sent."""
    host = Host(layout)
    ensure_model(host, layout, "m", source, on_progress)
    return host.sent


# --- copying ---------------------------------------------------------------------------------


def test_a_directory_is_copied_with_its_links_followed(layout, source):
    told: list[tuple[int, int]] = []
    host = Host(layout)
    assert ensure_model(host, layout, "m", source, lambda *now: told.append(now))
    assert host.sent == SENT
    assert content(host.place) == {name: (source / name).read_text() for name in SENT}
    assert told[-1] == (111, 111)
    assert host.place.stat().st_mode & 0o777 == 0o700
    assert Path(layout.root).stat().st_mode & 0o777 == 0o700
    manifest = Manifest.load((host.place / MANIFEST_NAME).read_bytes())
    assert (manifest.source, manifest.size_bytes) == (f"copy:{source}", 111)


def test_a_second_time_nothing_is_sent_and_little_is_asked(layout, source):
    copy(layout, source)
    host = Host(layout)
    assert not ensure_model(host, layout, "m", source)
    assert host.put_paths == []
    assert len(host.argvs) == 1


def test_only_what_differs_is_sent(layout, source):
    copy(layout, source)
    (source / "config.json").write_text('{"a": 1}')
    (source / "linked.bin").unlink()
    (source / "new.txt").write_text("new")
    assert copy(layout, source) == {"config.json", "new.txt"}
    assert not Path(layout.models / "m/linked.bin").exists()
    assert copy(layout, source) == set()


def test_other_weights_of_the_same_size_are_sent(layout, source):
    copy(layout, source)
    (source / "weights 1.safetensors").write_text("v" * 100)
    assert copy(layout, source) == {"weights 1.safetensors"}


def test_the_same_files_of_another_machine_are_not_sent_again(layout, source):
    copy(layout, source)
    for path in source.rglob("*"):
        os.utime(path, (1, 1))
    assert copy(layout, source) == set()


def test_what_was_damaged_there_is_sent_again(layout, source):
    copy(layout, source)
    Path(layout.models / "m/config.json").write_text("")
    Path(layout.models / "m/sub/-tokens.txt").unlink()
    assert copy(layout, source) == {"config.json", "sub/-tokens.txt"}


@pytest.mark.parametrize("at", sorted(SENT))
def test_an_interrupted_copy_is_not_complete_and_goes_on_with_its_file(layout, source, at):
    class Cut(Host):
        def put_file(
            self,
            source: Path,
            path: str,
            *,
            mode: int = 0o644,
            on_progress: OnProgress | None = None,
        ) -> None:
            if path.endswith(at):
                target = PurePosixPath(path)
                target_part = target.with_name(f".{target.name}.12ab.part")
                Path(target_part).write_text("half")
                raise UnreachableError("h1: gone")
            super().put_file(source, path, mode=mode, on_progress=on_progress)

    cut = Cut(layout)
    with pytest.raises(UnreachableError):
        ensure_model(cut, layout, "m", source)
    assert [each.is_complete for each in list_models(Host(layout), layout)] == [False]
    assert copy(layout, source) == SENT - cut.sent
    assert set(content(cut.place)) == SENT


def test_an_interrupted_update_does_not_pass_for_the_old_model(layout, source):
    """The new weights have the old size, and some of them are there already."""
    copy(layout, source)
    (source / "weights 1.safetensors").write_text("v" * 100)
    (source / "config.json").write_text("[]")

    class Cut(Host):
        def put_file(self, source: Path, path: str, **options: object) -> None:
            if path.endswith("safetensors"):
                raise UnreachableError("h1: gone")
            super().put_file(source, path)

    with pytest.raises(UnreachableError):
        ensure_model(Cut(layout), layout, "m", source)
    assert [each.is_complete for each in list_models(Host(layout), layout)] == [False]
    assert copy(layout, source) == {"weights 1.safetensors"}


def test_a_file_that_changes_on_the_way_is_noticed(layout, source):
    class Meanwhile(Host):
        def put_file(self, source: Path, path: str, **options: object) -> None:
            super().put_file(source, path)
            if path.endswith("config.json"):
                source.write_text("still being written")

    with pytest.raises(HostError, match=r"config\.json changed while it was copied"):
        ensure_model(Meanwhile(layout), layout, "m", source)
    assert [each.is_complete for each in list_models(Host(layout), layout)] == [False]


def test_too_little_space_is_said_before_anything_is_sent(layout, source):
    class Full(Host):
        def run(self, argv: Sequence[str], **options: object) -> Completed:
            if argv[0] == "df":
                head = "Filesystem 1024-blocks Used Available Capacity Mounted on"
                return completed(f"{head}\n/dev/a disk 100 100 0 100% /\n")
            return super().run(argv, **options)

    host = Full(layout)
    with pytest.raises(HostError) as caught:
        ensure_model(host, layout, "m", source)
    assert "h1: model m: needs 0 MB in" in caught.value.message
    assert "0 MB are free" in caught.value.message
    assert host.put_paths == []
    assert not host.place.exists()


def test_a_manifest_that_names_files_elsewhere_touches_none(layout, source, tmp_path):
    copy(layout, source)
    precious = tmp_path / "home" / "precious"
    precious.touch()
    path = Path(layout.models / "m" / MANIFEST_NAME)
    data = json.loads(path.read_text())
    data["files"] |= {"../../../precious": {"size": 0}, str(precious): {"size": 0}}
    path.write_text(json.dumps(data))
    (source / "config.json").write_text("[1]")
    assert copy(layout, source) == {"config.json"}
    assert precious.exists()


def test_the_manifest_of_a_model_that_was_made_there_says_only_that_it_is_complete(layout):
    place = Path(layout.models / "tiny-1")
    place.mkdir(parents=True)
    (place / MANIFEST_NAME).write_text("{}\n")
    [found] = list_models(Host(layout), layout)
    assert (found.name, found.is_complete, found.source) == ("tiny-1", True, "")


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "../x", "-rf", ".hub", "a b", "a\nb", "a" * 129, "ü"]
)
def test_a_name_that_is_no_plain_directory_is_refused(layout, source, name):
    with pytest.raises(ConfigError, match="cannot name a model"):
        check_name(name)
    shell = LocalShell()
    with pytest.raises(ConfigError):
        ensure_model(shell, layout, name, source)
    with pytest.raises(ConfigError):
        remove_model(shell, layout, name)
    assert shell.argvs == []


@pytest.mark.parametrize(
    ("repository", "name"), [("org/name-1.5B", "org--name-1.5B"), ("gpt2", "gpt2")]
)
def test_a_repository_becomes_one_directory(repository, name):
    assert hub_name(repository) == name


@pytest.mark.parametrize(
    ("revision", "name"),
    [
        ("v1.0", "org--name--v1.0"),
        ("0123456789abcdef" * 2 + "01234567", "org--name--0123456789ab"),
        ("refs/pr/1", "org--name--refs-pr-1-da766fe4"),
        ("refs-pr-1", "org--name--refs-pr-1"),
    ],
)
def test_each_revision_has_a_directory_of_its_own(revision, name):
    assert hub_name("org/name", revision) == name


def test_a_manifest_says_which_commit_of_the_hub_it_has():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert Manifest(f"hub:org/name@{commit}").commit == commit
    for source in ("", f"copy:/models/org/name@{commit}", "hub:org/name@main"):
        assert Manifest(source).commit is None


@pytest.mark.parametrize("repository", ["", "a/b/c", "../x", "org/", "/name", "org/..", "-a/b"])
def test_what_is_no_repository_is_refused(repository):
    with pytest.raises(ConfigError, match="is no model of the hub"):
        hub_name(repository)


def test_what_is_no_model_is_refused(tmp_path, source):
    with pytest.raises(NotFoundError, match="no such directory"):
        scan(tmp_path / "nowhere")
    (source / "broken").symlink_to("nothing")
    with pytest.raises(ConfigError, match="broken: leads nowhere"):
        scan(source)
    (source / "broken").unlink()
    (source / "new\nline").touch()
    with pytest.raises(ConfigError, match="of such a name is not copied"):
        scan(source)
    (source / "new\nline").unlink()
    (source / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        scan(source)


# --- listing, removing -----------------------------------------------------------------------


def test_a_list_says_what_is_complete_and_how_large_it_is(layout, source):
    assert list_models(Host(layout), layout) == []
    ensure_model(LocalShell(), layout, "m", source)
    half = Path(layout.models / "half")
    half.mkdir()
    (half / "w").write_bytes(b"0" * 3_000_000)
    Path(layout.models / ".hub-x").mkdir()
    Path(layout.models / "stray file").touch()
    found = list_models(Host(layout), layout)
    assert [(each.name, each.is_complete, each.source) for each in found] == [
        ("half", False, ""),
        ("m", True, f"copy:{source}"),
    ]
    assert 3_000_000 <= found[0].size_bytes < 3_100_000


def test_removing_removes_all_of_it_and_says_whether_there_was_any(layout, source):
    ensure_model(LocalShell(), layout, "m", source)
    Path(layout.models / ".hub-m").mkdir()  # of a pull that was cut
    assert remove_model(LocalShell(), layout, "m")
    assert list(Path(layout.models).iterdir()) == []
    assert not remove_model(LocalShell(), layout, "m")


def test_the_models_of_a_cluster_are_known_by_their_place(tmp_path):
    folder = tmp_path / "weights"
    settings = ClusterSettings.model_validate(
        {
            "models": [
                {"name": "copied", "model": str(folder)},
                {"name": "named", "model": "@models/org--name"},
                {"name": "tiny", "model": "llx/tiny"},
                {"name": "hub", "model": "org/name"},
                {"name": "old", "model": "org/name", "engine_args": {"revision": "v1"}},
                {"name": "noise", "model": "org/other", "engine": "sim"},
            ]
        }
    )
    assert users_of(copied_name(folder), settings) == ["copied"]
    assert users_of("org--name", settings) == ["named", "hub"]
    assert users_of("org--name--v1", settings) == ["old"]
    assert users_of("org--other", settings) == []
    assert users_of("tiny-1", settings) == ["tiny"]
    assert users_of("name", settings) == []
    only = settings.model_copy(update={"models": settings.models[:1]})
    assert users_of("org--name", only, settings) == ["named", "hub"]


# --- several hosts ---------------------------------------------------------------------------


def world(connect: Callable[[str], Shell]) -> HostsWorld:
    return HostsWorld(
        connect=lambda host: connect(host.name),
        control=lambda shell, layout: pytest.fail("not asked"),
        first_token=lambda *words: pytest.fail("not asked"),
    )


def test_one_host_that_fails_does_not_stop_the_others():
    settings = ClusterSettings.model_validate(
        {"hosts": ["a", "b", "c", "d"], "models": [{"name": "m", "model": "o/n"}]}
    )

    def connect(name: str) -> Shell:
        if name == "b":
            raise UnreachableError("b: connection refused", remedy="start sshd")
        return LocalShell(name)

    def work(place: object) -> int:
        if place.host.name == "c":
            raise HostError("disk full", host="c", step="model m")
        place.on_progress(5_000_000, 9_000_000)
        return 7

    events: list[StepEvent] = []
    results = on_hosts(settings, ["a", "b", "c"], world(connect), events.append, work, str)
    assert list(results) == ["a", "b", "c"]
    assert results["a"] == 7
    assert StepEvent("host a", StepState.RUNNING, "5 MB of 9 MB") in events
    assert StepEvent("host a", StepState.DONE, "7") in events
    assert {e.step for e in events if e.state is StepState.FAILED} == {"host b", "host c"}
    with pytest.raises(ModelsError) as caught:
        require_all("copying m", results)
    assert caught.value.exit_code is ExitCode.PARTIAL
    assert caught.value.message.splitlines() == [
        "copying m failed on b, c:",
        "  b: connection refused",
        "  c: model m: disk full",
    ]
    unreachable = {"b": UnreachableError("b: gone")}
    with pytest.raises(ModelsError) as caught:
        require_all("copying m", unreachable)
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_rows_are_of_the_hosts_that_answered():
    found = {"a": [HostModel("m", 5, True, "hub:o/n@1")], "b": UnreachableError("b: gone")}
    assert [each.model_dump() for each in rows_of(found)] == [
        {"host": "a", "name": "m", "is_complete": True, "size_bytes": 5, "source": "hub:o/n@1"}
    ]


def test_a_manifest_survives_writing_and_reading():
    manifest = Manifest("hub:o/n@1", {"a b": ModelFile(3, "00", 5)})
    assert Manifest.load(manifest.dump()) == manifest
    for broken in (b"", b"[]", b'{"files": {"a": 1}}', b'{"files": {"a": {"sise": 1}}}'):
        assert Manifest.load(broken) == Manifest()
