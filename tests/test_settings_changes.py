"""The way from one cluster.yaml to another, in words."""

from typing import Any

from llx.settings import ClusterSettings
from llx.settings_changes import compare


def cluster(**changes: Any) -> ClusterSettings:
    values = {
        "hosts": ["h1", "h2"],
        "models": [{"name": "m", "model": "org/m", "instances": {"min": 2, "max": 4}}],
        **changes,
    }
    return ClusterSettings.model_validate(values)


def model(**changes: Any) -> dict[str, Any]:
    return {"name": "m", "model": "org/m", "instances": {"min": 2, "max": 4}, **changes}


def test_nothing() -> None:
    found = compare(cluster(), cluster())
    assert (found.words, found.refused, found.gateway_keys) == ([], [], [])


def test_what_changes_live() -> None:
    found = compare(
        cluster(),
        cluster(
            hosts=["h1", {"name": "h3", "address": "10.0.0.3"}],
            models=[model(instances={"min": 3, "max": 5})],
            runtime={"start_timeout_s": 9},
        ),
    )
    assert found.words == [
        "host h3 is added",
        "host h2 is removed",
        "model m: 2 to 4 → 3 to 5 instances",
        "runtime.start_timeout_s changes",
    ]
    assert found.refused == found.gateway_keys == []


def test_another_order_of_hosts_is_none_if_the_head_stays() -> None:
    assert compare(cluster(head="h1"), cluster(hosts=["h2", "h1"], head="h1")).words == []
    assert compare(cluster(), cluster(head="h1")).words == []
    assert compare(cluster(), cluster(hosts=["h2", "h1"])).refused == ["head"]


def test_how_a_host_is_reached_may_change_where_it_is_may_not() -> None:
    other = {"name": "h2", "address": "10.0.0.2", "user": "ann"}
    assert compare(cluster(), cluster(hosts=["h1", other])).words == [
        "hosts.h2.address changes",
        "hosts.h2.user changes",
    ]
    moved = {"address": "h2", "cluster_address": "10.0.0.2", "python": "/p"}
    assert compare(cluster(), cluster(hosts=["h1", moved])).refused == [
        "hosts.h2.cluster_address",
        "hosts.h2.python",
    ]


def test_what_only_gateways_take_up() -> None:
    found = compare(
        cluster(),
        cluster(
            models=[model(serve_args={"chat_template": "/t"}), {"name": "n", "model": "org/n"}],
            gateway={"max_requests": 7, "api_keys": [{"tenant": "t", "sha256": "0" * 64}]},
            priority_classes=[{"name": "only", "priority": 1, "default": True}],
        ),
    )
    assert found.refused == []
    assert found.gateway_keys[:2] == ["models.n", "models.m.serve_args.chat_template"]
    assert "gateway.max_requests" in found.gateway_keys
    assert "gateway.api_keys.0.sha256" not in found.gateway_keys
    assert "api key of t is let in" in found.words
    assert found.words[0] == "model n is added"
    assert found.words[-1].startswith("gateways start again: models.n, ")


def test_shares_of_tenants_are_others_when_gateways_come_and_go() -> None:
    limits = {"tenants": [{"name": "anonymous", "max_requests": 4}]}
    found = compare(cluster(gateway=limits), cluster(hosts=["h1"], gateway=limits))
    assert found.gateway_keys == ["gateway.tenants"]
    assert compare(cluster(), cluster(hosts=["h1"])).gateway_keys == []


def test_what_instances_take_up_as_they_are_started() -> None:
    found = compare(cluster(), cluster(migration={"max_out": 2, "bandwidth_mib_s": 100}))
    assert found.words == [
        "migration.bandwidth_mib_s changes, for instances that are started from now on",
        "migration.max_out changes, for instances that are started from now on",
    ]
    assert found.refused == found.gateway_keys == []


def test_what_is_refused() -> None:
    found = compare(
        cluster(),
        cluster(
            models=[model(model="org/x", tensor_parallel=2, engine_args={"a": 1})],
            gateway={"port": 1},
            network={"tls": False},
            runtime={"platform": "cuda"},
        ),
    )
    assert found.refused == [
        "models.m.engine_args.a",
        "models.m.model",
        "models.m.tensor_parallel",
        "gateway.port",
        "network.tls",
        "runtime.platform",
    ]
    assert compare(cluster(hosts=[]), cluster()).refused == ["hosts"]


def test_what_the_scheduler_takes_up() -> None:
    classes = [{"name": "a", "priority": 1, "default": True}]
    old = cluster(priority_classes=classes)
    more = [{**classes[0], "queue_limit": 7, "slo": {"ttft_ms": 1, "tpot_ms": 1}}]
    scheduled = model(scheduling={"dispatch": "round_robin"})
    found = compare(old, cluster(priority_classes=more, models=[scheduled]))
    assert not found.refused
    assert not found.gateway_keys
    assert "models.m.scheduling.dispatch changes" in found.words
    assert "priority_classes.0.queue_limit changes" in found.words


def test_another_certificate_is_taken_up_tls_itself_is_not() -> None:
    files = {"certificate": "/c.pem", "key": "/k.pem"}
    one, other = cluster(gateway={"tls": "generated"}), cluster(gateway={"tls": files})
    found = compare(one, other)
    assert (found.words, found.gateway_keys) == (["gateways show another certificate"], [])
    for before, after in ((cluster(), one), (other, cluster())):
        found = compare(before, after)
        assert found.gateway_keys == ["gateway.tls"]
        assert found.words == ["gateways start again: gateway.tls"]
        assert found.refused == []
