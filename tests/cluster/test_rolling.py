"""Gateways that are started again: asked for, or because of new settings; two hosts, one each."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llx.api import ClusterState, GatewayStatus, InstanceState, InstanceStatus
from llx.errors import ConflictError, NotFoundError
from llx.settings import ClusterSettings
from llx.specs import GatewaySpec, load_spec
from tests.cluster.hosts_rig import HostsRig, make_rig, put

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HostsRig]:
    yield from make_rig(tmp_path)


def settings(rig: HostsRig, max_requests: int = 100, **serve_args: Any) -> ClusterSettings:
    return rig.settings(
        models=[rig.model("m", 2, serve_args=serve_args)],
        gateway={"host": "0.0.0.0", "max_requests": max_requests},
    )


def run_with(rig: HostsRig) -> list[int]:
    """`max_requests` of both gateways."""
    return [
        load_spec(rig.hosts[f"h{n + 1}"].state.procs / f"gateway-{n}" / "spec.json", GatewaySpec)
        .max_requests
        for n in range(2)
    ]  # fmt: skip


def finish(rig: HostsRig) -> None:
    """Have the requests of gateways end as soon as they are told to stop."""
    for n in range(2):
        (rig.hosts[f"h{n + 1}"].state.procs / f"gateway-{n}" / "finish").touch()


def test_a_gateway_is_restarted_when_asked_for_and_its_streams_finish(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig, in_flight=3, finish_s=600)) as client:
        rig.reaches(client, ClusterState.READY)
        pids = [rig.hosts["h1"].pid("gateway-0"), rig.hosts["h1"].pid("m-0")]
        begun = client.restart_instance("gateway-0", user="bob")
        assert isinstance(begun, GatewayStatus)
        with pytest.raises(ConflictError, match="gateway-0 is being stopped or started"):
            client.restart_instance("gateway-0")
        rig.eventually(
            lambda: client.status().gateways[0].state is InstanceState.DRAINING, "it drains"
        )
        assert client.status().gateways[0].in_flight == 3
        finish(rig)
        rig.eventually(lambda: client.status().gateways[0].restarts == 1, "it is restarted")
        status = rig.reaches(client, ClusterState.READY)
        assert status.gateways[0].last_failure == ""
        assert rig.hosts["h1"].pid("gateway-0") != pids[0]
        assert rig.hosts["h1"].pid("m-0") == pids[1]
        with pytest.raises(NotFoundError, match='no instance or gateway "gateway-9"'):
            client.restart_instance("gateway-9")


def test_gateways_that_have_failed_are_started_again_with_better_settings(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig, fake="taken")) as client:
        rig.reaches(client, ClusterState.FAILED)
        begun: list[GatewayStatus | InstanceStatus] = []

        def restart() -> bool:
            with suppress(ConflictError):  # what is left of it is being ended
                begun.append(client.restart_instance("gateway-1"))
            return bool(begun)

        rig.eventually(restart, "it can be restarted")
        assert begun[0].state in {InstanceState.STOPPING, InstanceState.DRAINING}
        rig.reaches(client, ClusterState.FAILED)
        words = put(client, settings(rig))
        assert words == ["gateways start again: models.m.serve_args.fake"]
        rig.reaches(client, ClusterState.READY)
        assert put(client, settings(rig)) == []


def test_bad_settings_cost_one_gateway_and_the_rest_is_told(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig)) as client:
        rig.reaches(client, ClusterState.READY)
        put(client, settings(rig, fake="taken"))
        rig.eventually(
            lambda: "Address already in use" in client.status().gateways[0].detail, "it fails"
        )
        assert client.status().gateways[1].state is InstanceState.READY
        assert (
            client.status().gateways[1].detail == "runs with older settings until it is restarted"
        )
        assert put(client, settings(rig, fake="taken")) == [
            "gateway-1 starts again as soon as gateway-0 can take over: it runs with older settings"
        ]
        put(client, settings(rig, max_requests=7))
        rig.eventually(lambda: run_with(rig) == [7, 7], "both have the new settings")
        status = rig.reaches(client, ClusterState.READY)
        assert status.gateways[1].restarts == 1
        assert put(client, settings(rig, max_requests=7)) == []


def test_a_roll_goes_on_under_the_next_head(rig) -> None:
    rig.add("h1", "h2")
    with rig.up(settings(rig, in_flight=1, finish_s=600)) as client:
        rig.reaches(client, ClusterState.READY)
        put(client, settings(rig, max_requests=7, in_flight=1, finish_s=600))
        rig.eventually(
            lambda: client.status().gateways[0].state is InstanceState.DRAINING, "it drains"
        )
    rig.end_head()
    assert run_with(rig) != [7, 7]
    finish(rig)
    with rig.up() as client:
        rig.eventually(lambda: run_with(rig) == [7, 7], "both have the new settings")
        rig.reaches(client, ClusterState.READY)
        assert client.status().gateways[1].restarts == 1


def test_the_only_gateway_is_never_started_again_by_itself(rig) -> None:
    rig.add("h1")
    with rig.up(settings(rig)) as client:
        rig.reaches(client, ClusterState.READY)
    rig.end_head()
    other = settings(rig, max_requests=7)
    with rig.up(other) as client:
        status = rig.reaches(client, ClusterState.READY)
        assert status.gateways[0].detail == "runs with older settings until it is restarted"
        (words,) = put(client, other)
        assert words == (
            "gateway-0 runs with older settings, and no other can take over:"
            " llx inst restart gateway-0"
        )
        assert client.status().gateways[0].restarts == 0
        client.restart_instance("gateway-0")
        rig.eventually(lambda: put(client, other) == [], "it has the new settings")


def test_a_revoked_key_is_told_to_all_gateways_and_none_starts_again(rig) -> None:
    def keyed(*tenants: str) -> ClusterSettings:
        keys = [{"tenant": each, "sha256": each.encode().hex().zfill(64)} for each in tenants]
        return rig.settings(gateway={"host": "0.0.0.0", "api_keys": keys})

    def last_told() -> list[str]:
        logs = [rig.hosts[f"h{n + 1}"].log(f"gateway-{n}") for n in range(2)]
        return [log.rpartition("let in: ")[2].partition("\n")[0] for log in logs]

    rig.add("h1", "h2")
    with rig.up(keyed("ada", "bob")) as client:
        rig.reaches(client, ClusterState.READY)
        pids = [rig.hosts[f"h{n + 1}"].pid(f"gateway-{n}") for n in range(2)]
        rig.eventually(lambda: last_told() == ["ada,bob"] * 2, lambda: str(last_told()))
        assert put(client, keyed("bob", "eve")) == [
            "api key of eve is let in", "api key of ada is revoked",
        ]  # fmt: skip
        rig.eventually(lambda: last_told() == ["bob,eve"] * 2, lambda: str(last_told()))
        assert put(client, keyed())[-1] == "no api key is left: gateways let in everybody"
        rig.eventually(lambda: last_told() == [""] * 2, lambda: str(last_told()))
        assert [rig.hosts[f"h{n + 1}"].pid(f"gateway-{n}") for n in range(2)] == pids
        assert [each.restarts for each in client.status().gateways] == [0, 0]
    # A head that comes back, and a gateway that it did not know, say the same.
    assert rig.end_head() is False
    rig.up()
    rig.eventually(lambda: "term=2" in rig.hosts["h1"].log("gateway-0"), "the new head is heard")
    assert last_told()[0] == ""
