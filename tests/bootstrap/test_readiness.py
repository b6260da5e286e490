"""When a status has all that `llx up` waits for."""

from llx.bootstrap.readiness import lists_all
from llx.settings import ClusterSettings
from tests.cli.servers import cluster_status


def settings(least: int) -> ClusterSettings:
    model = {"name": "tiny", "model": "/m", "instances": {"min": least, "max": 8}}
    return ClusterSettings.model_validate({"models": [model]})


def test_the_minimum_is_counted_whichever_instances_scaling_has_kept() -> None:
    status = cluster_status()
    renamed = [
        each.model_copy(update={"name": f"tiny-{number}"})
        for each, number in zip(status.instances, (4, 7), strict=True)
    ]
    status = status.model_copy(update={"instances": renamed})
    assert lists_all(status, settings(1))
    assert lists_all(status, settings(2))
    assert not lists_all(status, settings(3))
    assert not lists_all(status.model_copy(update={"gateways": []}), settings(1))
