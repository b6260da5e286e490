"""Keys of a cluster on hosts replaced, with somebody failing at every point of it."""

from types import SimpleNamespace

import pytest

from llx.api import KeysStatus
from llx.bootstrap.hosts_keys import rotate_keys
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hosts_world import Crew, HostsWorld
from llx.curve import ClusterKeys, KeyTurns, parse_ring
from llx.environment import Environment
from llx.errors import ConflictError, DeadlineError, LlxError, UnreachableError
from llx.secret import Secret
from llx.settings import ClusterSettings
from tests.bootstrap.fake_shell import FakeShell, Kept

NAMES = ("h1", "h2", "h3")


class Cluster:
    """Three hosts with a key file each; the `fails_at`th file that is laid is not."""

    def __init__(self, tmp_path):
        settings = ClusterSettings.model_validate(
            {
                "cluster": "c",
                "hosts": list(NAMES),
                "models": [{"name": "m", "model": "x", "engine": "sim"}],
            }
        )
        environment = Environment({"HOME": str(tmp_path)}, tmp_path)
        self.plan = make_hosts_plan(settings, environment)
        self.first = ClusterKeys.create()
        layouts = {name: SimpleNamespace(state=f"/{name}") for name in NAMES}
        self.crew = Crew({name: self.shell(name) for name in NAMES}, layouts)
        self.fails_at, self.num_laid, self.now, self.awaited = 0, 0, 0.0, []
        self.seen = []

    def shell(self, name):
        shell = FakeShell(name)
        shell.files[f"/{name}/keys.json"] = Kept(self.first.dump().encode(), 0o600)
        put = shell.put

        def counted(content, path, *, mode=0o600):
            self.num_laid += 1
            if self.num_laid == self.fails_at:
                raise UnreachableError(f"{name}: no answer")
            put(content, path, mode=mode)
            self.seen.append(self.rings())

        shell.put = counted
        return shell

    def rings(self):
        files = [self.crew.shells[name].files[f"/{name}/keys.json"] for name in NAMES]
        assert {each.mode for each in files} == {0o600}
        return [parse_ring(each.content.decode()) for each in files]

    def sleep(self, seconds):
        self.now += seconds

    def rotate(self, *, rotates=True):
        world = HostsWorld(
            connect=None, control=None, first_token=None, clock=lambda: self.now, sleep=self.sleep
        )
        plan = SimpleNamespace(
            settings=self.plan.settings, head=self.plan.head, rotates=rotates
        )  # fmt: skip
        rotate_keys(
            plan, self.crew, SimpleNamespace(require=lambda: None),
            Secret(self.crew.shells["h1"].files["/h1/keys.json"].content.decode()),
            SimpleNamespace(keys=self.keys), world, lambda _: None,
        )  # fmt: skip

    def keys(self):
        awaited = self.awaited.pop(0) if self.awaited else []
        return KeysStatus(made_at=None, is_changing=True, awaited=awaited)

    def everybody_can_dial_everybody(self):
        return all(
            listener[0] in dialer
            for rings in self.seen
            for dialer in rings
            for listener in rings
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.mark.parametrize("fails_at", range(10))
def test_whoever_fails_everybody_can_dial_everybody_and_a_repetition_ends_it(cluster, fails_at):
    cluster.fails_at = fails_at
    if fails_at:
        with pytest.raises(LlxError, match="no answer"):
            cluster.rotate()
        cluster.rotate(rotates=len(set(cluster.rings())) == 1 and len(cluster.rings()[0]) == 1)
    else:
        cluster.rotate()
    assert cluster.everybody_can_dial_everybody()
    rings = cluster.rings()
    assert len(set(rings)) == 1
    assert len(rings[0]) == 1
    assert rings[0] != (cluster.first,)


def test_the_old_keys_are_forgotten_only_when_all_have_changed_over(cluster):
    cluster.awaited = [["m-0"]] * 1000
    with pytest.raises(DeadlineError, match="m-0 did not change over"):
        cluster.rotate()
    assert [len(each) for each in cluster.rings()] == [2, 2, 2]
    assert all(each[1] == cluster.first for each in cluster.rings())
    cluster.awaited = []
    cluster.rotate(rotates=False)
    assert [len(each) for each in cluster.rings()] == [1, 1, 1]


def test_a_host_that_failed_keeps_the_others_from_it(cluster):
    cluster.crew.errors["h2"] = UnreachableError("h2: no answer")
    cluster.rotate()
    assert cluster.seen == []
    assert isinstance(cluster.crew.errors["keys"], ConflictError)
    assert "h2" in cluster.crew.errors["keys"].message


def test_nothing_is_done_unasked(cluster):
    cluster.rotate(rotates=False)
    assert cluster.seen == []


def test_a_refusal_of_keys_that_are_no_longer_the_next_changes_nothing() -> None:
    """The ring is turned while a dialer that knows the former one's first is being refused."""
    old, new = ClusterKeys.create(), ClusterKeys.create()
    rings = [(old, new)]

    class Source:
        def ring(self) -> tuple[ClusterKeys, ...]:
            return rings[-1]

    turns = KeyTurns(Source())
    assert turns.now() == old
    rings.append((new, old))
    turns.refuse(old)
    assert turns.now() == new
    turns.refuse(new)
    assert turns.now() == old
