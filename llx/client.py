"""Typed client of the control API. The CLI is built on it; scripts can be too.

Also what both sides of that API must agree on: the files by which a client finds it and the names
of errors. No logic about clusters lives here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from llx import api
from llx.api import API_VERSION, MAX_NOTE_CHARS, MAX_VERB_CHARS
from llx.environment import Environment
from llx.errors import (
    CheckError,
    ConfigError,
    ConflictError,
    DeadlineError,
    EngineError,
    LlxError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)
from llx.lean_httpx import httpx
from llx.secret import Secret
from llx.specs import Phase, ProcessStatus, load_spec

HEAD_STATUS_FILE = Path("procs/head/status.json")
"""The head's status in a cluster's state directory; `addresses[0]` is the control API's URL."""
TOKEN_FILE = Path("token")
"""The control API's bearer token in a cluster's state directory."""

ERROR_NAMES: MappingProxyType[str, type[LlxError]] = MappingProxyType(
    {
        "config": ConfigError,
        "not_found": NotFoundError,
        "conflict": ConflictError,
        "deadline": DeadlineError,
        "engine": EngineError,
        "unreachable": UnreachableError,
        "check": CheckError,
        "remote": RemoteError,
    }
)
"""`ErrorBody.error` and the exception it stands for; any other name is a `RemoteError`."""

_STOP_MARGIN_S = 90.0
_IDS_AT_A_TIME = 500
"""More would make too long a URL."""

R = TypeVar("R", bound=BaseModel)


class Cluster:
    """A cluster, by its control API: one method per endpoint.

    Every method raises `UnreachableError` when nothing answers at the URL, `RemoteError` when what
    answers does not make sense or refuses the token, and the errors it names.

    Args:
        url: Such as ``http://127.0.0.1:8900``.
        token: The bearer token.
        timeout_s: Time for one answer.
        transport: How requests travel; None: over HTTP.
        name: Who answers, to be named when nobody does; default: the URL.
        remedy: What to do then.
    """

    def __init__(
        self,
        url: str,
        token: Secret,
        *,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
        name: str = "",
        remedy: str = "llx up",
    ) -> None:
        self.url = url
        self._name = name or f"the control API at {url}"
        self._remedy = remedy
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token.reveal()}"},
            timeout=timeout_s,
            trust_env=False,  # the token goes to the head, never through a proxy
            transport=transport,
        )

    @classmethod
    def open(cls, name: str | None = None, environment: Environment | None = None) -> Cluster:
        """A client of a cluster that is known on this machine, as `llx --context` knows it.

        On hosts it goes through SSH to the head's, as the verbs do.

            with Cluster.open() as cluster:
                print(cluster.status().state)

        Args:
            name: Of the cluster; None: the one that verbs mean by default.
            environment: Where to look; None: this process's.

        Raises:
            ConfigError: A file that says which cluster is meant is wrong.
            NotFoundError: There is no such cluster.
            UnreachableError: It is down, or its head is.
        """
        from llx.bootstrap.opening import open_cluster

        return open_cluster(name, environment or Environment.current())

    @classmethod
    def for_cluster(cls, state_dir: Path, *, timeout_s: float = 10.0) -> Self:
        """A client of the cluster whose state lies in `state_dir`.

        Raises:
            NotFoundError: There is no such cluster.
            UnreachableError: Its head is not up, or not yet.
        """
        if not state_dir.is_dir():
            raise NotFoundError(f'no cluster "{state_dir.name}"', remedy="llx up")
        down = f'cluster "{state_dir.name}": its head is not running'
        try:
            status = load_spec(state_dir / HEAD_STATUS_FILE, ProcessStatus)
            token = (state_dir / TOKEN_FILE).read_text().strip()
        except (ConfigError, OSError):
            raise UnreachableError(down, remedy="llx up") from None
        if status.phase in {Phase.FAILED, Phase.STOPPING}:
            raise UnreachableError(down, detail=status.detail, remedy="llx up")
        if not status.addresses or not token:
            raise UnreachableError(f"{down} yet", remedy="wait for `llx up` to finish")
        return cls(status.addresses[0], Secret(token), timeout_s=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def status(self) -> api.ClusterStatus:
        """The whole cluster."""
        return self._request("GET", "status", api.ClusterStatus)

    def keys(self) -> api.KeysStatus:
        """The keys on the cluster's own sockets."""
        return self._request("GET", "keys", api.KeysStatus)

    def instance(self, name: str) -> api.InstanceStatus:
        """One instance.

        Raises:
            NotFoundError: There is no such instance.
        """
        return self._request("GET", f"instances/{_quoted(name)}", api.InstanceStatus)

    def steps(self, name: str, first: int = 0) -> api.InstanceSteps:
        """What the last steps of an instance cost, from number `first` on, as one answer holds.

        Raises:
            NotFoundError: There is no such instance.
            UnreachableError: It is not connected.
        """
        path, params = f"instances/{_quoted(name)}/steps", {"first": first}
        return self._request("GET", path, api.InstanceSteps, params=params)

    def restart_instance(
        self, name: str, *, user: str = "", deadline_s: float = 60.0
    ) -> api.InstanceStatus | api.GatewayStatus:
        """Stop an instance, if it runs, and start it anew; returns as soon as that has begun.

        Its requests move to other instances first, or finish until the deadline. It may be a
        gateway, too, whose streams may finish likewise.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: It is stopping, or the cluster is.
        """
        path = f"instances/{_quoted(name)}/restart"
        params = {"user": user, "deadline_s": deadline_s}
        return self._request("POST", path, api.UnitStatus, params=params).root

    def cordon_instance(self, name: str, *, is_on: bool, user: str = "") -> api.InstanceStatus:
        """Give an instance nothing new from now on, or use it again; what it has goes on.

        Raises:
            NotFoundError: There is no such instance.
        """
        path = f"instances/{_quoted(name)}/{'cordon' if is_on else 'uncordon'}"
        return self._request("POST", path, api.InstanceStatus, params={"user": user})

    def drain_instance(
        self, name: str, *, deadline_s: float = 60.0, user: str = ""
    ) -> api.StopReport:
        """Cordon an instance and empty it: its requests move to others, what cannot may finish.

        It stays up and cordoned. Returns when it is empty, or at the deadline.

        Raises:
            NotFoundError: There is no such instance.
            ConflictError: It is not ready, or is being drained; or the cluster stops.
        """
        return self._drain(f"instances/{_quoted(name)}/drain", deadline_s, user)

    def requests(
        self,
        *,
        instance: str = "",
        model: str = "",
        state: str = "",
        priority_class: str = "",
        match: str = "",
        is_pinned: bool | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> api.RequestList:
        """Requests, with the instance that has each, the oldest first; by default all.

        Args:
            instance: Only those of this instance.
            model: Only those of this model.
            state: Only those in this state.
            priority_class: Only those of this class; its name, or vLLM's integer.
            match: Only those with this in an id or in one of the words above.
            is_pinned: Only those that cannot move; False: that can.
            offset: Leave out so many of these.
            limit: Give at most so many.
        """
        wanted = {
            "instance": instance, "model": model, "state": state,
            "priority_class": priority_class, "match": match, "offset": offset,
        }  # fmt: skip
        params = {key: value for key, value in wanted.items() if value}
        if is_pinned is not None:
            params["pinned"] = is_pinned
        if limit is not None:
            params["limit"] = limit
        return self._request("GET", "requests", api.RequestList, params=params)

    def request(self, request: str) -> api.RequestList:
        """One request by any of its ids, with all its generations.

        Raises:
            NotFoundError: There is none.
            ConflictError: The id is that of several requests.
        """
        return self._request("GET", f"requests/{_quoted(request)}", api.RequestList)

    def change_requests(
        self, verb: api.RequestVerb, ask: api.RequestChange
    ) -> api.RequestChangeReport:
        """Do something to requests, or say to which it would be done with `is_dry_run`.

        What was not done, and why, is in the report, for each request that was meant.

        Raises:
            NotFoundError: There is no priority class of that name.
        """
        return self._request(
            "POST", f"requests/changes/{verb}", api.RequestChangeReport, json=ask.model_dump()
        )

    def snapshot(self, *, max_requests: int, max_over: int, match: str = "") -> api.Snapshot:
        """The cluster, its requests and its migrations at one moment.

        Args:
            max_requests: So many requests at most, the oldest.
            max_over: So many at most of the migrations that are over, the last ones.
            match: Only requests with this in an id, instance, model, class or state.
        """
        params = {"max_requests": max_requests, "max_over": max_over, "match": match}
        return self._request("GET", "snapshot", api.Snapshot, params=params)

    def migrate(self, request: api.MigrateRequest) -> api.MigrateReport:
        """Move requests; returns when that has begun, or what would be with `is_dry_run`.

        Raises:
            NotFoundError: There is no such request or instance.
            ConflictError: Nothing can move between these instances, or several requests are meant.
            ConfigError: The question contradicts itself.
            UnreachableError: The source does not say what it has.
        """
        return self._request("POST", "migrations", api.MigrateReport, json=request.model_dump())

    def migrations(self, ids: Sequence[str] = ()) -> list[api.MigrationStatus]:
        """Migrations, the oldest first: those of `ids`, by default all that the head knows of."""
        if not ids:
            return self._request("GET", "migrations", api.MigrationList).migrations
        found = []
        for start in range(0, len(ids), _IDS_AT_A_TIME):
            params = {"id": list(ids[start : start + _IDS_AT_A_TIME])}
            found += self._request("GET", "migrations", api.MigrationList, params=params).migrations
        return found

    def migration(self, migration: str) -> api.MigrationStatus:
        """One migration.

        Raises:
            NotFoundError: There is none of that id, or it is long over.
        """
        return self._request("GET", f"migrations/{_quoted(migration)}", api.MigrationStatus)

    def cancel_migration(self, migration: str, *, user: str = "") -> api.MigrationStatus:
        """Ask for a migration to be given up, if it still can be; how it ends shows later.

        Raises:
            NotFoundError: There is none of that id, or it is long over.
            ConflictError: It is over.
            UnreachableError: Its source is not connected.
        """
        path = f"migrations/{_quoted(migration)}/cancel"
        return self._request("POST", path, api.MigrationStatus, params={"user": user})

    def queues(self) -> api.QueueList:
        """All central queues."""
        return self._request("GET", "queues", api.QueueList)

    def policies(self) -> api.PolicyList:
        """How each model is scheduled."""
        return self._request("GET", "policies", api.PolicyList)

    def update_policies(self, update: api.PolicyUpdate) -> api.PolicyList:
        """Schedule models by other rules, from now on and after a restart of the head.

        Returns how they are scheduled then, or would be with `is_dry_run`.

        Raises:
            NotFoundError: There is no such model.
            ConfigError: A key or value is wrong; then nothing has changed.
        """
        return self._request("PUT", "policies", api.PolicyList, json=update.model_dump())

    def steer(self, verb: str, model: str = "", *, user: str = "") -> api.PolicyList:
        """``pause`` or ``resume`` moves by rule, or ``step``: one round of them, also when paused.

        Of `model`, or of all if that is empty.

        Raises:
            NotFoundError: There is no such model.
        """
        params = {"model": model, "user": user}
        return self._request("POST", f"policies/{_quoted(verb)}", api.PolicyList, params=params)

    def scale(self, model: str, request: api.ScaleRequest) -> api.ScaleReport:
        """Change how many instances a model has; returns when that has begun.

        Raises:
            NotFoundError: There is no such model.
            ConfigError: The numbers contradict each other.
            ConflictError: There is no room for so many, or the cluster stops.
        """
        path = f"models/{_quoted(model)}/instances"
        return self._request("PUT", path, api.ScaleReport, json=request.model_dump())

    def rollout(self, model: str, request: api.RolloutRequest) -> api.RolloutReport:
        """Replace the instances of a model by other ones; returns when that has begun.

        Raises:
            NotFoundError: There is no such model.
            ConfigError: What it is to be makes no sense.
            ConflictError: A rollout of it is under way, there is no room, or the cluster stops.
        """
        path = f"models/{_quoted(model)}/rollout"
        return self._request("PUT", path, api.RolloutReport, json=request.model_dump())

    def steer_rollout(self, model: str, verb: str, *, user: str = "") -> api.RolloutReport:
        """``pause`` a rollout, ``resume`` it, or ``abort`` it: back to what was before.

        Raises:
            NotFoundError: There is no such model.
            ConflictError: None is under way, or that is so already.
        """
        path = f"models/{_quoted(model)}/rollout/{_quoted(verb)}"
        return self._request("POST", path, api.RolloutReport, params={"user": user})

    def rollouts(self) -> list[api.RolloutStatus]:
        """As what each model was rolled out last, and how far that is."""
        return self._request("GET", "rollouts", api.RolloutList).rollouts

    def recording(self, last_s: float | None, into: IO[bytes]) -> int:
        """What the scheduler was told and answered over the last `last_s`, or somewhat more.

        Written as a recording (`llx.recording`), a few megabytes up to some 30. None: since the
        scheduler began, up to 64 megabytes from there.

        Returns:
            How many bytes that are; 0: nothing was recorded yet.

        Raises:
            NotFoundError: Nothing is recorded there.
        """
        size = 0
        params = {"whole": "true"} if last_s is None else {"last_s": str(last_s)}
        try:
            with self._http.stream("GET", f"/{API_VERSION}/recording", params=params) as response:
                if not response.is_success:
                    response.read()
                    raise _error_of(response)
                for chunk in response.iter_bytes():
                    size += into.write(chunk)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        return size

    def explain(self, request: str) -> api.Explanation:
        """What was decided about a request, by any of its ids.

        Raises:
            NotFoundError: Nothing is known of it, or no longer.
        """
        return self._request("GET", f"explain/{_quoted(request)}", api.Explanation)

    def events(
        self,
        *,
        last_s: float | None = None,
        after: str = "",
        kinds: Sequence[str] = (),
        match: str = "",
        limit: int = 1000,
    ) -> api.EventList:
        """What has happened and what was done, the oldest first: the last `limit` at most.

        Args:
            last_s: Not older than that, by the head's clock; None: however old.
            after: The `cursor` of an earlier answer: only what has come since.
            kinds: ``instance.failed``, or all kinds below ``instance``; empty: all.
            match: That contain this.
            limit: How many.

        Raises:
            ConfigError: `after` is no cursor.
        """
        params: dict[str, Any] = {
            "after": after, "kind": list(kinds), "match": match, "limit": limit,
        }  # fmt: skip
        if last_s is not None:
            params["last_s"] = last_s
        return self._request("GET", "events", api.EventList, params=params)

    def logs(
        self, name: str, *, offset: int | None = None, limit: int = 65536, tail: int = 200
    ) -> api.LogSlice:
        """Part of the log of the head, a gateway or an instance.

        Args:
            name: ``head``, ``gateway-0``, an instance's name; a host's for its agent's log.
            offset: Where to read on, as a former answer said; None: the last `tail` lines.
            limit: At most so many bytes.
            tail: Lines from the end when `offset` is None.

        Raises:
            NotFoundError: There is no such process.
        """
        params = {"offset": -1 if offset is None else offset, "limit": limit, "tail": tail}
        return self._request("GET", f"logs/{_quoted(name)}", api.LogSlice, params=params)

    def stop(self, *, deadline_s: float = 60.0, user: str = "") -> api.StopReport:
        """Stop the cluster: streams may finish until the deadline. Returns when all is stopped.

        A second stop with a shorter deadline cuts the first one short.
        """
        return self._drain("stop", deadline_s, user)

    def cordon_host(self, name: str, *, is_on: bool, user: str = "") -> api.HostStatus:
        """Give a host nothing new from now on, or use it again; what runs there goes on.

        Raises:
            NotFoundError: There is no such host.
        """
        verb = "cordon" if is_on else "uncordon"
        path = f"hosts/{_quoted(name)}/{verb}"
        return self._request("POST", path, api.HostStatus, params={"user": user})

    def drain_host(self, name: str, *, deadline_s: float = 60.0, user: str = "") -> api.StopReport:
        """Cordon a host, move its requests to others, stop what runs there.

        What cannot move may finish until the deadline. What there is room for starts elsewhere.
        Returns when the host is empty.

        Raises:
            NotFoundError: There is no such host.
            ConflictError: It is the only usable one, or being drained; or the cluster stops.
        """
        return self._drain(f"hosts/{_quoted(name)}/drain", deadline_s, user)

    def settings(self) -> str:
        """What the cluster should be: a whole cluster.yaml."""
        return self._request("GET", "settings", api.SettingsDocument).yaml

    def put_settings(self, yaml: str, *, user: str = "", is_dry_run: bool = False) -> list[str]:
        """Make the cluster match these settings from now on; with `is_dry_run` only ask.

        Returns what changes, in words; empty if nothing does. It has begun by then, `status` tells
        when it is done.

        Raises:
            ConfigError: The settings are wrong.
            ConflictError: They differ in what a running cluster cannot change, which is named; or
                an earlier change is still under way.
        """
        body = api.SettingsUpdate(yaml=yaml, user=user, is_dry_run=is_dry_run)
        return self._request("PUT", "settings", api.ChangeReport, json=body.model_dump()).changes

    def note(self, verb: str, text: str, *, user: str = "") -> None:
        """Leave an event in the audit trail, of what was done to the cluster past its head.

        Args:
            verb: Of ``llx``, such as ``model add``.
            text: To what, in words; cut where it is too long.
            user: Who did it.
        """
        body = api.NoteRequest(verb=verb[:MAX_VERB_CHARS], text=text[:MAX_NOTE_CHARS], user=user)
        self._request("POST", "events", api.NoteReport, json=body.model_dump())

    def _drain(self, path: str, deadline_s: float, user: str) -> api.StopReport:
        body = api.StopRequest(deadline_s=deadline_s, user=user)
        return self._request(
            "POST",
            path,
            api.StopReport,
            json=body.model_dump(),
            timeout=deadline_s + _STOP_MARGIN_S,
        )

    def metrics(self) -> str:
        """The head's metrics, in Prometheus' text format."""
        return self._send("GET", "/metrics").text

    def _request(self, method: str, path: str, kind: type[R], **options: Any) -> R:
        response = self._send(method, f"/{API_VERSION}/{path}", **options)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise RemoteError(
                f"the control API at {self.url} answers something else than {kind.__name__}",
                remedy="run the same llx version here and on the head",
                detail=str(error),
            ) from None

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_success:
            return response
        raise _error_of(response)

    def _unreachable(self, error: httpx.HTTPError) -> UnreachableError:
        return UnreachableError(
            f"{self._name} does not answer ({type(error).__name__}: {error})",
            remedy=self._remedy,
        )


def _error_of(response: httpx.Response) -> LlxError:
    try:
        body = api.ErrorBody.model_validate_json(response.content)
    except ValidationError:
        text = json.dumps(response.text[:500], ensure_ascii=False)
        return RemoteError(f"the control API answers {response.status_code}: {text}")
    kind = ERROR_NAMES.get(body.error, RemoteError)
    return kind(body.message, remedy=body.remedy, detail=body.detail)


def _quoted(name: str) -> str:
    """`name` as one path segment."""
    return quote(name, safe="")
