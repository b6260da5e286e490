"""Ray's secrets replaced, with somebody failing at every point of it."""

import time
from pathlib import PurePosixPath
from types import SimpleNamespace

import msgspec
import pytest

from llx.bootstrap.cluster_secrets import (
    RAY_NOTE,
    RaySecrets,
    host_certificate,
    new_secrets,
    read_secrets,
    rotated,
)
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_world import Crew
from llx.bootstrap.key_checks import RaySight, ray_checks, ray_findings
from llx.bootstrap.ray_renewal import begin_renewal, end_renewal, has_note, sight
from llx.bootstrap.tls import make_authority
from llx.errors import ConflictError, HostError, UnreachableError
from llx.settings import ClusterSettings
from tests.bootstrap.fake_shell import FakeShell, Kept, completed
from tests.bootstrap.test_head_move import spec

NAMES = ("h1", "h2", "h3")
LAYOUT = HostLayout(PurePosixPath("/home/u"), 1000, "c")
STATE = str(LAYOUT.state)
NOTE = f"{STATE}/{RAY_NOTE}"
DAY_S = 86400
HELD = SimpleNamespace(require=lambda: None)


class Cluster:
    """Three hosts, of which the first is the head."""

    def __init__(self, tmp_path):
        settings = ClusterSettings.model_validate(
            {
                "cluster": "c",
                "hosts": list(NAMES),
                "models": [{"name": "m", "model": "x", "engine": "sim"}],
            }
        )
        self.plan = SimpleNamespace(
            settings=settings, head=settings.head_host, rotates=True, state_dir=tmp_path
        )
        (tmp_path / "hosts").mkdir()
        self.crew = Crew({name: self.shell(name) for name in NAMES}, dict.fromkeys(NAMES, LAYOUT))
        self.head = self.crew.shells["h1"]
        first = new_secrets("id")
        self.lay(keys=first.keys, token=first.control_token, ray=RaySecrets.create())
        self.head.put(msgspec.json.encode(spec("h1")), str(LAYOUT.spec))
        self.first = self.read()

    def shell(self, name):
        """Ray runs there, until it is ended."""
        shell = FakeShell(name)
        shell.answer("sh", "-c", by=[completed(exit_code=1), completed()])
        shell.answer("rm", by=lambda argv, _: self.remove(argv))
        return shell

    def remove(self, argv):
        for path in argv[3:]:
            self.head.files.pop(path, None)
        return completed()

    def lay(self, ray, keys=None, token=None, names=("ray.token", "tls/ca.pem", "tls/ca.key")):
        """What the head's playbooks put there, or only some of it."""
        files = {
            "ray.token": ray.token.reveal(),
            "tls/ca.pem": ray.authority.cert_pem,
            "tls/ca.key": ray.authority.key_pem.reveal(),
        }
        wanted = {name: files[name] for name in names}
        if keys is not None:
            wanted |= {"keys.json": keys.reveal(), "token": token.reveal()}
        for name, content in wanted.items():
            self.head.files[f"{STATE}/{name}"] = Kept(content.encode(), 0o600)

    def read(self):
        found = read_secrets(self.head, LAYOUT)
        assert found is not None
        return found

    def begin(self, *, rotates=True):
        self.plan.rotates = rotates
        return begin_renewal(self.plan, self.crew, HELD, self.read(), lambda _: None)

    def end(self, secrets):
        return end_renewal(self.plan, self.crew, HELD, secrets)

    def ended(self):
        """Hosts where Ray was ended."""
        return [
            n
            for n in NAMES
            if any('node rest "' in w for a in self.crew.shells[n].argvs for w in a)
        ]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def of_ray(secrets):
    return RaySecrets(secrets.ray_token, secrets.authority)


def test_ray_ends_everywhere_before_anything_is_laid(cluster):
    found = cluster.begin()
    assert cluster.ended() == list(NAMES)
    assert of_ray(found) != of_ray(cluster.first)
    assert of_ray(cluster.read()) == of_ray(cluster.first), "only noted so far"
    assert cluster.head.files[NOTE].mode == 0o600
    cluster.lay(of_ray(found))
    assert cluster.end(found)
    assert NOTE not in cluster.head.files
    assert cluster.read().next_ray is None
    assert of_ray(cluster.read()) == of_ray(found)


def test_nothing_is_done_unasked(cluster):
    found = cluster.begin(rotates=False)
    assert of_ray(found) == of_ray(cluster.first)
    assert cluster.ended() == []
    assert not cluster.end(found)


def test_who_was_interrupted_before_anything_was_laid_begins_again_with_the_same(cluster):
    following = of_ray(cluster.begin())
    for name in NAMES:
        cluster.crew.shells[name].ran.clear()
        cluster.crew.shells[name].answer("sh", "-c", by=[completed(exit_code=1), completed()])
    assert of_ray(cluster.begin(rotates=False)) == following
    assert cluster.ended() == list(NAMES)


@pytest.mark.parametrize(
    "laid", [("ray.token",), ("tls/ca.pem",), ("tls/ca.key",), ("tls/ca.pem", "tls/ca.key")]
)
def test_something_that_was_laid_is_gone_on_with(cluster, laid):
    """An authority of one certificate and another's key would sign what nobody believes."""
    following = of_ray(cluster.begin())
    cluster.lay(following, names=laid)
    for name in NAMES:
        cluster.crew.shells[name].ran.clear()
    cluster.crew.errors["h3"] = UnreachableError("h3: no answer")
    found = cluster.begin()
    assert of_ray(found) == following, "and not yet other ones, whoever asks"
    assert cluster.ended() == [], "what runs with them runs on"
    assert not cluster.end(found)
    assert NOTE in cluster.head.files, "h3 has not got them"


def test_a_host_that_got_the_authority_and_nothing_more_gets_a_certificate_of_it(cluster):
    """Its own pair of key and certificate fits together, and is of the former authority."""
    former = cluster.first.authority.issue("h1", "10.0.0.1")
    assert former.is_for("10.0.0.1")
    files = {
        "tls/host.pem": former.cert_pem,
        "tls/host.key": former.key_pem.reveal(),
        "tls/ca.pem": cluster.first.authority.cert_pem,
    }
    for name, content in files.items():
        cluster.head.files[f"{STATE}/{name}"] = Kept(content.encode(), 0o600)
    kept = host_certificate(cluster.head, LAYOUT, cluster.first.authority, "10.0.0.1")
    assert kept == former
    following = of_ray(cluster.begin())
    cluster.lay(following, names=("tls/ca.pem",))
    found = host_certificate(cluster.head, LAYOUT, following.authority, "10.0.0.1")
    assert found.is_of(following.authority)
    assert not found.is_of(cluster.first.authority)


def test_a_note_that_says_nothing_is_none(cluster):
    cluster.head.put(b"{", NOTE)
    assert not has_note(cluster.head, LAYOUT)


def test_a_host_that_failed_keeps_the_others_from_it(cluster):
    cluster.crew.errors["h2"] = UnreachableError("h2: no answer")
    assert of_ray(cluster.begin()) == of_ray(cluster.first)
    assert cluster.ended() == []
    error = cluster.crew.errors["Ray's secrets"]
    assert isinstance(error, ConflictError)
    assert "h2" in error.message


def test_an_interrupted_one_is_dropped_where_a_host_is_missing(cluster):
    cluster.begin()
    cluster.crew.errors["h2"] = UnreachableError("h2: no answer")
    found = cluster.begin(rotates=False)
    assert of_ray(found) == of_ray(cluster.first)
    assert NOTE not in cluster.head.files
    assert list(cluster.crew.errors) == ["h2"]


def test_a_host_where_ray_does_not_end_keeps_the_others_from_it(cluster):
    cluster.crew.shells["h3"].answer("sh", "-c", by=completed(exit_code=1, stderr="a zombie"))
    found = cluster.begin()
    assert of_ray(found) == of_ray(cluster.first)
    assert NOTE not in cluster.head.files
    assert isinstance(cluster.crew.errors["h3"], HostError)
    assert "h3" in cluster.crew.errors["Ray's secrets"].message


def test_the_control_token_and_the_gateways_authority_have_nothing_to_do_with_it(cluster):
    kept = make_authority()
    cluster.head.put(kept.cert_pem.encode(), f"{STATE}/tls/gateway-ca.pem")
    cluster.head.put(kept.key_pem.reveal().encode(), f"{STATE}/tls/gateway-ca.key")
    before = cluster.read()
    assert before.gateway_authority == kept
    found = rotated(before)
    assert of_ray(found) == of_ray(before)
    assert found.gateway_authority == kept


def test_a_note_that_is_none_counts_for_nothing(cluster):
    cluster.head.put(b'["half a no', NOTE)
    assert cluster.read().next_ray is None


def test_what_doctor_sees(cluster):
    own = cluster.first.authority.issue("h2", "10.0.0.2").cert_pem
    cluster.crew.shells["h2"].put(own.encode(), f"{STATE}/tls/host.pem")
    cluster.crew.shells["h3"].is_dead = True
    seen = sight(cluster.crew, "h1", has_tls=True)
    assert seen.made_at == pytest.approx(time.time(), abs=60)
    assert set(seen.ends_at) == {"h1", "h2"}
    assert not seen.is_half_replaced
    cluster.head.put(RaySecrets.create().dump().reveal().encode(), NOTE)
    assert sight(cluster.crew, "h1", has_tls=True).is_half_replaced
    assert sight(cluster.crew, "h1", has_tls=False).ends_at == {}
    assert sight(cluster.crew, "h3", has_tls=True).made_at is None


@pytest.mark.parametrize(
    ("age_days", "left_days", "is_half", "words", "is_fatal"),
    [
        (10, 300, False, None, None),
        (400, 300, False, "400 days old", False),
        (10, 20, False, "ends in 20 days", False),
        (10, -1, False, "has ended", True),
        (400, 300, True, "half replaced", False),
    ],
)
def test_what_doctor_says(age_days, left_days, is_half, words, is_fatal):
    now = time.time()
    ends = {"h1": now + left_days * DAY_S + 60, "h2": now + 900 * DAY_S}
    seen = RaySight(now - age_days * DAY_S, ends, is_half)
    found = list(ray_findings(seen, now))
    assert len(found) == (0 if words is None else 1)
    for each in found:
        assert words in each.problem
        assert each.is_fatal is is_fatal
        assert "llx up" in each.remedy
    (good,) = ray_checks(seen, now)
    assert good.detail.startswith(f"{age_days} days old, good for {max(0, left_days)} day")
