"""The plan of a cluster on hosts, in words."""

from pathlib import Path

from llx.bootstrap.hosts_look import Outlook, describe
from llx.bootstrap.hosts_plan import make_hosts_plan
from llx.bootstrap.hosts_world import Crew
from llx.settings import Environment, Platform
from tests.bootstrap.host_said import hosts
from tests.bootstrap.preflight_of_hosts import settings


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
