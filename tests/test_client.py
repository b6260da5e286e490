"""The control API's client: what it sends, what it makes of answers, how it finds a cluster."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from llx.api import ErrorBody, MigrateRequest, StopReport
from llx.client import Cluster
from llx.errors import (
    ConfigError,
    ConflictError,
    DeadlineError,
    LlxError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)
from llx.secret import Secret
from llx.specs import Phase, ProcessStatus, save_spec

Answer = Callable[[httpx.Request], httpx.Response]


def client(answer: Answer) -> Cluster:
    transport = httpx.MockTransport(answer)
    return Cluster("http://head", Secret("the-token"), transport=transport)


def test_what_is_sent() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"finished": 2, "cut": 1})

    with client(answer) as control:
        assert control.stop(deadline_s=7, user="ann") == StopReport(finished=2, cut=1)
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", "/v1/stop")
    assert request.headers["authorization"] == "Bearer the-token"
    assert json.loads(request.content) == {"deadline_s": 7.0, "user": "ann"}
    assert request.extensions["timeout"]["read"] > 60  # a stop may take its deadline and more


def test_a_note_is_cut_to_what_the_head_takes() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"api_version": "v1"})

    with client(answer) as control:
        control.note("play " + "x" * 200, "y" * 9999, user="ann")
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", "/v1/events")
    body = json.loads(request.content)
    assert (len(body["verb"]), len(body["text"]), body["user"]) == (100, 2000, "ann")


def test_names_are_one_path_segment() -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(404, json={"error": "not_found", "message": "no"})

    with client(answer) as control:
        for call in (control.instance, control.restart_instance, control.logs):
            with pytest.raises(NotFoundError):
                call("../a b?")
    assert seen == [
        b"/v1/instances/..%2Fa%20b%3F",
        b"/v1/instances/..%2Fa%20b%3F/restart?user=&deadline_s=60.0",
        b"/v1/logs/..%2Fa%20b%3F?offset=-1&limit=65536&tail=200",
    ]


def test_what_is_sent_about_migrations() -> None:
    seen: list[httpx.Request] = []
    move = {"id": "m1-1", "request": "r", "name": "", "source": "a", "target": "b",
            "state": "ordered", "begun_at": 1.0}  # fmt: skip

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        match request.method, request.url.path.split("/")[2:]:
            case "GET", ["requests", *_]:
                return httpx.Response(200, json={"requests": []})
            case _, ["migrations"]:
                return httpx.Response(200, json={"migrations": [move]})
            case _, ["instances", _, "drain"]:
                return httpx.Response(200, json={"finished": 0, "cut": 0, "moved": 2})
        return httpx.Response(200, json=move)

    with client(answer) as control:
        assert control.requests().requests == []
        ask = MigrateRequest(source="a", target="b", count=2, by="oldest", user="ann")
        assert control.migrate(ask).migrations[0].id == "m1-1"
        assert control.migrations(["m1-1", "m1-2"])[0].outcome is None
        assert len(control.migrations()) == 1
        assert len(control.migrations(["m1-1"] * 501)) == 2, "asked in parts"
        assert control.migration("m1/1").id == "m1-1"
        assert control.cancel_migration("m1-1", user="ann").id == "m1-1"
        assert control.drain_instance("a", deadline_s=7).moved == 2
        assert control.request("a/b").requests == []
        control.requests(instance="a", is_pinned=False, offset=20, limit=10)
    del seen[4:6]
    assert [(each.method, each.url.raw_path) for each in seen] == [
        ("GET", b"/v1/requests"),
        ("POST", b"/v1/migrations"),
        ("GET", b"/v1/migrations?id=m1-1&id=m1-2"),
        ("GET", b"/v1/migrations"),
        ("GET", b"/v1/migrations/m1%2F1"),
        ("POST", b"/v1/migrations/m1-1/cancel?user=ann"),
        ("POST", b"/v1/instances/a/drain"),
        ("GET", b"/v1/requests/a%2Fb"),
        ("GET", b"/v1/requests?instance=a&offset=20&pinned=false&limit=10"),
    ]
    assert MigrateRequest.model_validate_json(seen[1].content) == ask
    assert seen[6].extensions["timeout"]["read"] > 60


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config", ConfigError),
        ("not_found", NotFoundError),
        ("conflict", ConflictError),
        ("deadline", DeadlineError),
        ("internal", RemoteError),
        ("unauthorized", RemoteError),
        ("of-a-later-version", RemoteError),
    ],
)
def test_errors_come_back_as_what_they_were(name: str, kind: type[LlxError]) -> None:
    body = ErrorBody(error=name, message="what", remedy="do", detail="more")
    control = client(lambda _: httpx.Response(400, json=body.model_dump()))
    with control, pytest.raises(kind) as caught:
        control.status()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.remedy, caught.value.detail) == (
        "what", "do", "more",
    )  # fmt: skip


def test_answers_that_make_no_sense() -> None:
    control = client(lambda _: httpx.Response(200, text="<html>"))
    with control, pytest.raises(RemoteError, match="something else than ClusterStatus"):
        control.status()
    control = client(lambda _: httpx.Response(502, text="<html>"))
    with control, pytest.raises(RemoteError, match='502: "<html>"'):
        control.status()


def test_nothing_there() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client(refuse) as control, pytest.raises(UnreachableError, match="http://head") as caught:
        control.status()
    assert "the-token" not in str(caught.value)
    with Cluster("http://127.0.0.1:1", Secret("t")) as control, pytest.raises(LlxError):
        control.status()


def write_head(state: Path, status: ProcessStatus, token: str = "t") -> None:
    (state / "procs" / "head").mkdir(parents=True)
    save_spec(state / "procs" / "head" / "status.json", status)
    (state / "token").write_text(token)


def test_a_cluster_is_found_by_its_files(tmp_path: Path) -> None:
    write_head(tmp_path, ProcessStatus(Phase.READY, addresses=["http://127.0.0.1:8900"]))
    with Cluster.for_cluster(tmp_path) as control:
        assert control.url == "http://127.0.0.1:8900"


def test_no_such_cluster(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match='no cluster "gone"'):
        Cluster.for_cluster(tmp_path / "gone")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ProcessStatus(Phase.STARTING), "not running yet"),
        (ProcessStatus(Phase.FAILED, "port taken"), "not running"),
        (ProcessStatus(Phase.STOPPING, "ended"), "not running"),
    ],
)
def test_a_head_that_is_not_up(tmp_path: Path, status: ProcessStatus, words: str) -> None:
    write_head(tmp_path, status)
    with pytest.raises(UnreachableError, match=words) as caught:
        Cluster.for_cluster(tmp_path)
    assert caught.value.detail == status.detail


def test_a_state_directory_without_a_head(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="not running"):
        Cluster.for_cluster(tmp_path)
