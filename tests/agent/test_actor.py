"""The node agent behind one method of bytes: what it obeys, what it refuses, how errors travel."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llx.agent.actor import TICKET_S, Desk, NodeAgentActor, host_environment
from llx.agent.actor_calls import (
    AgentCall,
    Answer,
    Failure,
    Forget,
    Observe,
    ReadLog,
    Release,
    Request,
    StartGateway,
    StartInstance,
    Stop,
)
from llx.agent.devices import Need
from llx.agent.host_view import decode, encode
from llx.agent.log_file import LogPart
from llx.agent.processes import ProcessState, ShimRecord
from llx.core.model import Term
from llx.errors import ConflictError, HostError, RemoteError, UnreachableError
from llx.specs import EngineKind, GatewaySpec, HostSpec, InstanceSpec

INSTANCE = InstanceSpec("m-0", "m", EngineKind.SIM, "/m", {"a": 1}, 1, "", "", "")
GATEWAY = GatewaySpec("gateway-0", "", 8000, [], [], [], 9, "tcp://h:1", "", "")
RECORD = ShimRecord(1, 2, 3, 4, ProcessState.EXITED, 5.0, "mark", exit_code=0)


class FakeNode:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.place = SimpleNamespace(host="h1")
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def view(self) -> dict[str, str]:
        return {"host": "h1"}

    def start_instance(self, *arguments: Any) -> list[str]:
        self.calls.append(("start_instance", *arguments))
        if self.error is not None:
            raise self.error
        return ["cpu:0"]

    def start_gateway(self, spec: GatewaySpec) -> None:
        self.calls.append(("start_gateway", spec))

    def stop(self, name: str, grace_s: float) -> ShimRecord:
        self.calls.append(("stop", name, grace_s))
        return RECORD

    def release(self, name: str) -> None:
        self.calls.append(("release", name))

    def forget(self, name: str) -> None:
        self.calls.append(("forget", name))

    def read_log(self, *arguments: Any) -> LogPart:
        self.calls.append(("read_log", *arguments))
        return LogPart("text", 4)


class Rig:
    def __init__(self, directory: Path, cluster_id: str = "1d") -> None:
        self.node = FakeNode()
        self.directory = directory
        self.desk = Desk(self.node, directory, cluster_id)

    def ask(self, call: AgentCall, term: int = 1, ticket: str | None = None) -> Answer:
        if ticket is None:
            ticket = self.say(Request(Term(term), Observe())).ticket
        return self.say(Request(Term(term), call, ticket))

    def say(self, request: Request) -> Answer:
        return decode(self.desk.call(encode(request)), Answer)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


class TestCalls:
    @pytest.mark.parametrize(
        ("call", "told", "value"),
        [
            (
                StartInstance(INSTANCE, [Need("m-0", 1)], 2),
                ("start_instance", INSTANCE, [Need("m-0", 1)], 2),
                ["cpu:0"],
            ),
            (StartGateway(GATEWAY), ("start_gateway", GATEWAY), None),
            (Stop("m-0", 3.5), ("stop", "m-0", 3.5), msgspec.to_builtins(RECORD)),
            (Release("m-0"), ("release", "m-0"), None),
            (Forget("m-0"), ("forget", "m-0"), None),
            (
                ReadLog("m-0", None, 100, 10),
                ("read_log", "m-0", None, 100, 10),
                {"text": "text", "next_offset": 4},
            ),
        ],
    )
    def test_each_reaches_the_node(self, rig, call, told, value):
        answer = rig.ask(call)
        assert answer.failure is None
        assert rig.node.calls == [told]
        assert decode(bytes(answer.value), object) == value

    def test_observe_gives_the_view(self, rig):
        answer = rig.say(Request(Term(1), Observe()))
        assert decode(bytes(answer.value), dict) == {"host": "h1"}

    def test_each_call_is_a_sign_of_life_of_the_head(self, rig):
        heard = rig.directory / "heard"
        assert not heard.exists()
        rig.ask(Observe())
        assert heard.exists()


class TestFences:
    def test_an_older_head_is_not_obeyed(self, rig):
        rig.ask(Observe(), term=5)
        answer = rig.ask(Release("m-0"), term=4)
        assert rig.node.calls == []
        with pytest.raises(UnreachableError, match=r"h1: obeys a newer head \(term 5, not 4\)"):
            answer.failure.throw()

    def test_nor_after_a_restart(self, rig):
        rig.ask(Observe(), term=5)
        again = Rig(rig.directory)
        assert again.ask(Observe(), term=4).failure is not None
        assert again.ask(Observe(), term=5).failure is None

    def test_another_cluster_of_that_name_begins_at_one_again(self, rig):
        rig.ask(Observe(), term=5)
        assert Rig(rig.directory, "0ther").ask(Observe(), term=1).failure is None

    def test_an_older_head_is_no_sign_of_life(self, rig):
        rig.ask(Observe(), term=5)
        (rig.directory / "heard").unlink()
        rig.ask(Observe(), term=4)
        assert not (rig.directory / "heard").exists()

    @pytest.mark.parametrize("ticket", ["", "rubbish", "00 0.0", "nan nan"])
    def test_a_change_without_a_ticket_of_this_agent_is_refused(self, rig, ticket):
        answer = rig.ask(Stop("m-0", 0), ticket=ticket)
        assert rig.node.calls == []
        assert answer.failure.kind == "UnreachableError"

    def test_a_call_that_lay_about_too_long_is_refused(self, rig, monkeypatch):
        ticket = rig.ask(Observe()).ticket
        life, _, at = ticket.partition(" ")
        late = f"{life} {float(at) - TICKET_S - 0.1:.3f}"
        assert rig.ask(Stop("m-0", 0), ticket=late).failure is not None
        assert rig.ask(Stop("m-0", 0), ticket=ticket).failure is None
        assert rig.node.calls == [("stop", "m-0", 0)]

    def test_a_ticket_ends_with_the_process_that_gave_it(self, rig):
        ticket = rig.ask(Observe()).ticket
        again = Rig(rig.directory)
        assert again.ask(Stop("m-0", 0), ticket=ticket).failure is not None


class TestErrors:
    def test_an_error_arrives_whole(self, rig):
        rig.node.error = ConflictError("taken", remedy="wait", detail="evidence")
        answer = rig.ask(StartInstance(INSTANCE, [], None))
        with pytest.raises(ConflictError) as caught:
            answer.failure.throw()
        assert caught.value.message == "taken"
        assert caught.value.remedy == "wait"
        assert caught.value.detail == "evidence"

    def test_one_that_needs_more_than_a_message_becomes_a_remote_error(self):
        error = HostError("bad", host="h1", step="gpus", remedy="look")
        with pytest.raises(RemoteError, match="h1: gpus: bad") as caught:
            Failure.of(error).throw()
        assert caught.value.remedy == "look"

    @pytest.mark.parametrize("kind", ["SystemExit", "LlxError2", "ExitCode", "IntEnum"])
    def test_only_our_errors_are_raised(self, kind):
        with pytest.raises(RemoteError, match="text"):
            Failure(kind, "text").throw()

    def test_a_fault_of_the_program_is_reported_and_logged(self, rig, caplog):
        rig.node.error = ZeroDivisionError("oops")
        answer = rig.ask(StartInstance(INSTANCE, [], None))
        with pytest.raises(RemoteError, match="h1: ZeroDivisionError: oops"):
            answer.failure.throw()
        assert "agent.failed" in caplog.text

    def test_rubbish_is_answered(self, rig):
        assert decode(rig.desk.call(b"rubbish"), Answer).failure.kind == "WireError"

    def test_an_agent_that_cannot_work_says_why(self, monkeypatch, tmp_path):
        monkeypatch.delenv("LLX_HOST_SPEC", raising=False)
        answer = decode(NodeAgentActor().call(encode(Request(Term(1), Observe()))), Answer)
        assert "LLX_HOST_SPEC is not set" in answer.failure.message
        monkeypatch.setenv("LLX_HOST_SPEC", str(tmp_path / "none.json"))
        answer = decode(NodeAgentActor().call(encode(Request(Term(1), Observe()))), Answer)
        assert "none.json" in answer.failure.message


class TestHostEnvironment:
    def spec(self, directory: Path) -> HostSpec:
        return HostSpec(
            "c", "1d", "h1", "10.0.0.1", "h1", "10.0.0.1", str(directory), "/models",
            "/cache", "/python", "cpu", 20000, True, "/tmp/r",
        )  # fmt: skip

    def test_nothing_of_ray_or_ours_is_inherited(self, tmp_path):
        inherited = {"PATH": "/bin", "RAY_AUTH_MODE": "x", "LLX_SHIM": "x", "LLX_HOST_SPEC": "x"}
        found = host_environment(self.spec(tmp_path), inherited)
        assert found["PATH"] == "/bin"
        assert not [name for name in found if name.startswith(("RAY_", "LLX_"))]

    def test_caches_lie_in_llxs_directory_unless_said_otherwise(self, tmp_path):
        found = host_environment(self.spec(tmp_path), {"TRITON_CACHE_DIR": "/mine"})
        assert found["TRITON_CACHE_DIR"] == "/mine"
        for name in ("VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE", "XDG_CACHE_HOME"):
            assert found[name].startswith("/cache/")
        assert found["HF_HOME"] == "/models/.hub"

    def test_who_logged_in_to_the_hub_there_stays_logged_in(self, tmp_path):
        token = tmp_path / ".cache/huggingface/token"
        token.parent.mkdir(parents=True)
        token.write_text("s3cret")
        found = host_environment(self.spec(tmp_path), {"HOME": str(tmp_path)})
        assert found["HF_TOKEN_PATH"] == str(token)
        own = {"HOME": str(tmp_path), "HF_TOKEN_PATH": "/mine"}
        assert host_environment(self.spec(tmp_path), own)["HF_TOKEN_PATH"] == "/mine"

    def test_the_hub_token_is_named_by_its_file(self, tmp_path):
        assert "HF_TOKEN_PATH" not in host_environment(self.spec(tmp_path), {})
        token = tmp_path / "hf.token"
        token.write_text("s3cret")
        found = host_environment(self.spec(tmp_path), {})
        assert found["HF_TOKEN_PATH"] == str(token)
        assert "s3cret" not in str(found)
