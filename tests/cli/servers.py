"""A head and a gateway that only pretend, over real HTTP on loopback ports."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

from llx.api import (
    ClusterState,
    ClusterStatus,
    ErrorBody,
    EventList,
    Explanation,
    GatewayStatus,
    InstanceState,
    InstanceStatus,
    InstanceSteps,
    LoadStatus,
    LogSlice,
    MigrateReport,
    MigrateRequest,
    MigrationList,
    MigrationStatus,
    ModelStatus,
    NoteReport,
    PolicyList,
    PolicyUpdate,
    QueueList,
    RequestChange,
    RequestChangeReport,
    RequestList,
    RequestStatus,
    RolloutList,
    RolloutReport,
    RolloutRequest,
    RolloutStatus,
    ScaleReport,
    ScaleRequest,
    SettingsDocument,
    Snapshot,
    StopReport,
)
from llx.specs import Phase, ProcessStatus, save_spec

TOKEN = "the-token"
NOW = 1_800_000_000.0


def cluster_status(url="http://127.0.0.1:8000", *, started_at=NOW - 300):
    load = LoadStatus(
        blocks_total=2048, blocks_used=512, running=3, waiting=1, waiting_demand_blocks=40,
        preempted=0, freeness=498.7, age_s=0.02,
    )  # fmt: skip
    instances = [
        InstanceStatus(
            name="tiny-0", model="tiny", host="here", engine="vllm", state=InstanceState.READY,
            pid=101, devices=["cpu:0"], started_at=started_at, ready_after_s=21.5, load=load,
            log="/state/procs/tiny-0/log", cores_used=1.31, gpu_percent=87.0,
        ),
        InstanceStatus(
            name="tiny-1", model="tiny", host="here", engine="vllm", state=InstanceState.FAILED,
            detail="exit code 1\nRuntimeError: out of memory", started_at=started_at,
            restarts=2, log="/state/procs/tiny-1/log",
        ),
    ]  # fmt: skip
    gateway = GatewayStatus(
        name="gateway-0", host="here", url=url, state=InstanceState.READY, pid=100,
        started_at=started_at, in_flight=4, requests=120, finished=115, failed=1, refused=2,
        output_tokens=54321, connected=["tiny-0"], cores_used=0.87,
    )  # fmt: skip
    model = ModelStatus(
        name="tiny", source="/models/tiny-1", engine="vllm", instances_min=2, instances_max=4,
        instances_wanted=2, instances_ready=1,
    )  # fmt: skip
    return ClusterStatus(
        cluster="local", state=ClusterState.DEGRADED, url=url, term=3, started_at=started_at,
        llx_version="0.1.0", vllm_version="0.32.0", platform="cpu",
        models=[model], instances=instances, gateways=[gateway],
    )  # fmt: skip


def request_status(key, **more):
    values = {
        "id": f"cmpl-{key}-0-0123abcd", "name": f"llx-{key}", "instance": "tiny-0",
        "model": "tiny", "priority": 10, "priority_class": "normal", "state": "running",
        "num_prompt": 20, "num_tokens": 530, "num_blocks": 34, "size_bytes": 8_912_896,
        "arrived_at": NOW - 90, **more,
    }  # fmt: skip
    return RequestStatus(**values)


def migration_status(number, **more):
    values = {
        "id": f"m3-{number}", "request": f"cmpl-r{number}-0-0123abcd", "name": f"llx-r{number}",
        "source": "tiny-0", "target": "tiny-1", "user": "ann", "why": "asked for",
        "state": "copying", "begun_at": NOW - 30, "stage": 2, "blocks_copied": 30,
        "size_bytes": 7_864_320, "rate": 250e6, "elapsed_ms": 41.0, **more,
    }  # fmt: skip
    return MigrationStatus(**values)


class Server:
    """An HTTP server in a thread. `handle` answers (method, path, body) with (code, object)."""

    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self):
                length = int(self.headers.get("content-length") or 0)
                if outer.is_gone:  # a thread of a server that is closed answers no more
                    self.close_connection = True
                    return
                outer.answer(self, self.rfile.read(length))

            do_GET = do_POST = do_PUT = _answer  # noqa: N815 - http.server's names

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.is_gone = False
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.is_gone = True
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def answer(self, handler, body):
        raise NotImplementedError

    @staticmethod
    def send(handler, code, text, kind="application/json", **headers):
        data = text.encode()
        handler.send_response(code)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)


class FakeHead(Server):
    """The control API over one status."""

    def __init__(self, status=None):
        super().__init__()
        self.found = status or cluster_status()
        self.token = TOKEN
        self.asked: list[str] = []
        self.notes: list[dict] = []
        self.log = "one\ntwo\nthree\n"
        self.page = "llx:term 3.0\n"
        self.settings = "cluster: local\n"
        self.drained = StopReport(finished=2, cut=1)
        self.requests = RequestList(requests=[request_status("a")])
        self.changed = RequestChangeReport(changed=[request_status("a")])
        self.changes: list[tuple[str, RequestChange]] = []
        self.moves: list[MigrationStatus] = []
        self.migrated = MigrateReport()
        self.orders: list[MigrateRequest] = []
        self.queues = QueueList(queues=[])
        self.events: list[EventList] = [EventList(events=[])]
        """Answers, one after the other; the last one stays."""
        self.policies = PolicyList(policies=[])
        self.wanted_policies: PolicyList | None = None
        """As a dry run would have them; None: as they are."""
        self.recording = ""
        """What the scheduler has recorded."""
        self.updates: list[PolicyUpdate] = []
        self.scaled: list[ScaleRequest] = []
        self.scale_changes = ["model tiny: 2 to 4 → 3 instances", "tiny-2 is started"]
        self.rolled: list[RolloutRequest] = []
        self.rollout_changes = ["engine_args.max_num_seqs: 8 → 16", "2 instances are replaced"]
        self.steered: list[tuple[str, str]] = []
        self.rollout = [RolloutStatus(model="tiny", revision=0, generation=0)]
        """At each further look; the last one stays."""
        self.explained = Explanation(requests=[])
        self.steps: list[tuple[int, int, int, int, int, int]] = []
        """Of every instance."""
        self.forgets = False
        """It is not the head that began `moves`."""
        self.later: list[dict] = []
        """What becomes of each of `moves` at each further look."""

    def look_at_moves(self, query):
        """Migrations, a step further each time."""
        ids = [value for key, value in parse_qsl(query) if key == "id"]
        if self.forgets:
            return MigrationList(migrations=[])
        if self.later:
            change = self.later.pop(0)
            self.moves = [each.model_copy(update=change.get(each.id, {})) for each in self.moves]
        return MigrationList(migrations=[e for e in self.moves if not ids or e.id in ids])

    def about_requests(self, handler, path, query, body):
        """What is asked about requests and migrations; None: about something else, or nobody."""
        match path:
            case ["requests"]:
                return self.requests
            case ["requests", "changes", verb]:
                self.changes.append((verb, RequestChange.model_validate_json(body)))
                return self.changed
            case ["requests", name]:
                known = [e for e in self.requests.requests if name in {e.id, e.name}]
                return RequestList(requests=known) if known else None
            case ["snapshot"]:
                return Snapshot(
                    at=NOW, status=self.found, requests=self.requests, migrations=self.moves
                )
            case ["migrations"] if handler.command == "POST":
                self.orders.append(MigrateRequest.model_validate_json(body))
                self.moves = [*self.moves, *self.migrated.migrations]
                return self.migrated
            case ["migrations"]:
                return self.look_at_moves(query)
            case ["migrations", name, *_]:
                return next((each for each in self.moves if each.id == name), None)
        return None

    def about_scheduling(self, handler, path, body):
        """What is asked about the scheduler; None: about something else."""
        match path:
            case ["queues"]:
                return self.queues
            case ["events"] if handler.command == "GET":
                return self.events.pop(0) if len(self.events) > 1 else self.events[0]
            case ["policies"] if handler.command == "PUT":
                self.updates.append(PolicyUpdate.model_validate_json(body))
                return self.wanted_policies or self.policies
            case ["policies", *_]:
                return self.policies
            case ["models", "tiny", "instances"]:
                self.scaled.append(ScaleRequest.model_validate_json(body))
                return ScaleReport(changes=self.scale_changes, model=self.found.models[0])
            case ["models", "tiny", "rollout"]:
                self.rolled.append(RolloutRequest.model_validate_json(body))
                return RolloutReport(changes=self.rollout_changes, rollout=self.rollout[0])
            case ["models", "tiny", "rollout", verb]:
                self.steered.append(("tiny", verb))
                return RolloutReport(changes=[], rollout=self.rollout[0])
            case ["rollouts"]:
                found = self.rollout.pop(0) if len(self.rollout) > 1 else self.rollout[0]
                return RolloutList(rollouts=[found])
            case ["settings"]:
                return SettingsDocument(yaml=self.settings)
            case ["explain", given] if any(e.name == given for e in self.explained.requests):
                return self.explained
        return None

    def steps_of(self, name, first):
        """At most 500 of an instance's steps."""
        first = min(first, len(self.steps))
        return InstanceSteps(
            instance=name, model="tiny", num_blocks=600, block_size=16, max_model_len=2048,
            max_num_seqs=16, max_num_batched_tokens=512, first=first, end=len(self.steps),
            steps=self.steps[first : first + 500],
        )  # fmt: skip

    def register(self, state_dir):
        """Be the head of the cluster of that directory."""
        procs = state_dir / "procs" / "head"
        procs.mkdir(parents=True, mode=0o700, exist_ok=True)
        (state_dir / "cluster.yaml").write_text("models: [{name: tiny, model: /m}]\n")
        (state_dir / "token").write_text(self.token)
        save_spec(procs / "status.json", ProcessStatus(Phase.READY, addresses=[self.url]))

    def answer(self, handler, body):
        path, _, query = handler.path.partition("?")
        self.asked.append(f"{handler.command} {handler.path}")
        if handler.headers.get("authorization") != f"Bearer {self.token}":
            error = ErrorBody(error="unauthorized", message="no")
            return self.send(handler, 401, error.model_dump_json())
        plain = {
            "/metrics": (self.page, "text/plain"),
            "/v1/keys": ('{"made_at": null, "is_changing": false}', "application/json"),
            "/v1/recording": (self.recording, "application/x-ndjson"),
        }
        if path in plain:
            return self.send(handler, 200, *plain[path])
        words = path.split("/")[2:]
        found = self.about_requests(handler, words, query, body)
        found = found or self.about_scheduling(handler, words, body)
        match words:
            case _ if found is not None:
                pass
            case ["status"]:
                found = self.found
            case ["events"]:
                self.notes.append(json.loads(body))
                found = NoteReport()
            case ["stop"]:
                found = StopReport(finished=1, cut=0)
            case ["hosts", _, "drain"] | ["instances", _, "drain"]:
                found = self.drained
            case ["logs", "head" | "gateway-0" | "tiny-0"]:
                lines = self.log.splitlines(keepends=True)
                asked = {key: int(value) for key, value in parse_qsl(query)}
                offset, tail = asked["offset"], asked["tail"]
                text = "".join(lines[-tail:]) if offset < 0 else self.log[offset:]
                found = LogSlice(name="x", text=text, next_offset=len(self.log))
            case ["instances", name, "steps"]:
                found = self.steps_of(name, int(dict(parse_qsl(query))["first"]))
            case ["instances", name, *_] if name in {i.name for i in self.found.instances}:
                found = next(i for i in self.found.instances if i.name == name)
            case [*_, name]:
                error = ErrorBody(error="not_found", message=f'no "{name}"', remedy="look")
                return self.send(handler, 404, error.model_dump_json())
        self.send(handler, 200, found.model_dump_json())
        return None


class FakeGateway(Server):
    """Answers chats with words that count up; a prompt may ask for trouble."""

    def __init__(self, models=("tiny",)):
        super().__init__()
        self.models = models
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.count = itertools.count(1)

    def answer(self, handler, body):
        if handler.path == "/metrics":
            return self.send(handler, 200, "llx:requests_total 1.0\n", "text/plain")
        if handler.path.endswith("/models"):
            data = [{"id": name} for name in self.models]
            return self.send(handler, 200, json.dumps({"data": data}))
        request = json.loads(body)
        self.bodies.append(request)
        self.headers.append({k.lower(): v for k, v in handler.headers.items()})
        instance = f"tiny-{next(self.count) % 2}"
        prompt = request["messages"][-1]["content"]
        refusals = {"401": 401, "404": 404, "429": 429, "400": 400, "500": 500}
        if prompt in refusals:
            error = json.dumps({"error": {"message": f"because {prompt}", "type": "x"}})
            return self.send(handler, refusals[prompt], error, retry_after="7")
        words = [f"word{n} " for n in range(request.get("max_completion_tokens") or 3)]
        if not request.get("stream"):
            answer = {
                "choices": [{"message": {"content": "".join(words)}, "finish_reason": "length"}],
                "usage": {"completion_tokens": len(words)},
            }
            return self.send(handler, 200, json.dumps(answer), x_llx_instance=instance)
        text = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks(words, prompt))
        text = ": a comment\n\n" + text
        if prompt != "cut":
            text += "data: [DONE]\n\n"
        return self.send(handler, 200, text, "text/event-stream", x_llx_instance=instance)


def chunks(words, prompt):
    """The events of one streamed answer."""
    for number, word in enumerate(words, start=1):
        if prompt == "break" and number == 2:
            yield {"error": {"message": "EngineDead", "code": 500}}
            return
        done = "length" if number == len(words) else None
        yield {
            "choices": [{"delta": {"content": word}, "finish_reason": done}],
            "usage": {"completion_tokens": number},
        }
    yield {"choices": [], "usage": {"completion_tokens": len(words)}}
