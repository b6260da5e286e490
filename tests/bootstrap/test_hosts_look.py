"""The plan of a cluster on hosts, in words."""

from dataclasses import replace
from pathlib import Path

import pytest

from llx.bootstrap.hosts_look import Outlook, _refuse_leaving, describe
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hosts_world import Crew
from llx.environment import Environment
from llx.errors import ConflictError
from llx.settings import Platform
from tests.bootstrap.fake_shell import FakeShell
from tests.bootstrap.host_said import hosts
from tests.bootstrap.preflight_of_hosts import settings

MODEL = {"name": "m", "model": "llx/tiny"}


def rows(known, *models):
    named = [{"name": f"m{number}", **each} for number, each in enumerate(models)]
    plan = make_hosts_plan(settings(*known, models=named), Environment({}, Path("/")))
    return dict(
        describe(
            Outlook(plan, Crew(), Crew(), (), known, Platform.CPU, "3.12", {}, "up", None, False)
        )
    )


def test_who_has_to_fetch_a_model_first_is_said():
    known = {**hosts(2), **hosts(1, models=frozenset({"org--name"}))}
    revision = {"model": "org/name", "engine_args": {"revision": "v1"}}
    found = rows(known, {"model": "org/name"}, revision, {"model": "llx/tiny"})
    assert found["model m0"] == "1 × vllm of org/name; fetched from the hub first: org/name to h2"
    assert found["model m1"].endswith("; fetched from the hub first: org/name@v1 to h1, h2")
    assert found["model m2"] == "1 × vllm of llx/tiny"


def test_that_ray_is_started_anew_is_said_before_it_is_done():
    plan = make_hosts_plan(settings("h1", "h2", models=[MODEL]), Environment({}, Path("/")))

    def row(known):
        args = (plan, Crew(), Crew(), (), known, Platform.CPU, "3.12", {}, "up", None, True)
        return dict(describe(Outlook(*args, renews_ray=True)))["Ray"]

    assert "control is away for about half a minute, streams go on" in row(hosts(2))
    assert row({k: v for k, v in hosts(2).items() if k == "h1"}).endswith("h2 is out of reach")


def test_hosts_that_leave_are_emptied_before_ray_is_started_anew():
    plan = make_hosts_plan(settings("h1", models=[MODEL]), Environment({}, Path("/")))
    _refuse_leaving(replace(plan, rotates=True), Crew())
    leaving = Crew({"h3": FakeShell("h3")})
    for rotates, remedy in ((True, "without --rotate"), (False, "with all hosts")):
        with pytest.raises(ConflictError, match="h3 is to leave") as refused:
            _refuse_leaving(replace(plan, rotates=rotates), leaving)
        assert remedy in refused.value.remedy
