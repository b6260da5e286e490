"""The node agent as an actor of Ray: a `NodeAgent` behind one method of bytes.

Nothing here imports Ray: it makes an actor of any class. The process may end at any moment and is
started again by Ray; what it had started lives on under shims, and a new one finds it.
"""

import secrets
import threading
import time
from collections.abc import Mapping
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import assert_never

import msgspec

from llx.agent.actor_calls import (
    AgentCall,
    Answer,
    Failure,
    Forget,
    KeepCopy,
    Observe,
    ReadLog,
    Release,
    Request,
    StartGateway,
    StartInstance,
    Stop,
)
from llx.agent.host_view import decode, encode
from llx.agent.names import AGENT, HOST_SPEC, RAY
from llx.agent.node import NodeAgent
from llx.agent.processes import attach
from llx.agent.shim import MARK
from llx.core.model import Term
from llx.environment import Environment
from llx.errors import ConfigError, LlxError, RemoteError, UnreachableError
from llx.log import configure_logging, get_log
from llx.specs import HostSpec, load_spec

log = get_log(__name__)

TICKET_S = 15.0
"""How long a ticket is good for."""

_LOG_BYTES = 32 << 20
_CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "CUTE_DSL_CACHE_DIR": "cute-dsl",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "HUMMING_CACHE_DIR": "humming",
    "HUMMING_TMP_DIR": "humming-tmp",
    "QUACK_CACHE_DIR": "quack",
    "TILELANG_CACHE_DIR": "tilelang",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "TRITON_HOME": "triton-home",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm-config",
    "XDG_CACHE_HOME": "xdg",
}
"""What vLLM, torch and the makers of kernels it brings would else put into home and /tmp."""
_DROPPED = ("RAY_", "LLX_")


class NodeAgentActor:
    """One host's agent. Its method runs in several threads at once.

    What it is told it finds on its host: a restarted one never acts on an old specification. While
    it cannot work (no device can be listed, say) each call fails and says why.
    """

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._desk: Desk | None = None

    def call(self, request: bytes) -> bytes:
        """Carry out a `Request`; returns an `Answer`. Raises nothing."""
        try:
            with self._opening:
                if self._desk is None:
                    self._desk = _open_desk(Environment.current())
        except LlxError as error:
            return encode(Answer("", failure=Failure.of(error)))
        except Exception as error:
            log.exception("agent.cannot_work")
            problem = RemoteError(f"node agent: {type(error).__name__}: {error}")
            return encode(Answer("", failure=Failure.of(problem)))
        return self._desk.call(request)


def _open_desk(environment: Environment) -> "Desk":
    path = environment.get(HOST_SPEC)
    if path is None:
        raise ConfigError(f"{HOST_SPEC} is not set: not started by a keeper of llx")
    spec = load_spec(Path(path), HostSpec)
    directory = Path(spec.state_dir) / "procs" / AGENT
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_to(directory / "log")
    inherited = _inherited(directory, environment.variables)
    node = NodeAgent.of_host(spec, host_environment(spec, inherited))
    log.info("agent.started", host=spec.host)
    return Desk(node, directory, spec.cluster_id)


class Desk:
    """Takes requests for a node agent: fences, errors, and the sign that somebody called.

    Args:
        node: Who carries them out.
        directory: The agent's own; keeps the newest term and `heard`.
        cluster_id: Whose terms count: another cluster of that name begins at one again.
    """

    def __init__(self, node: NodeAgent, directory: Path, cluster_id: str) -> None:
        self._node = node
        self._cluster_id = cluster_id
        self._term_path = directory / "term"
        self._heard = directory / "heard"
        self._term = _read_term(self._term_path, cluster_id)
        self._life = secrets.token_hex(8)

    def call(self, data: bytes) -> bytes:
        """Carry out a `Request`; returns an `Answer`. Raises nothing."""
        try:
            request = decode(data, Request)
            self._admit(request)
            value = self._carry_out(request.call)
            answer = Answer(self._ticket(), msgspec.Raw(encode(value)))
        except LlxError as error:
            answer = Answer(self._ticket(), failure=Failure.of(error))
        except Exception as error:
            log.exception("agent.failed")
            failed = RemoteError(f"{self._node.place.host}: {type(error).__name__}: {error}")
            answer = Answer(self._ticket(), failure=Failure.of(failed))
        return encode(answer)

    def _admit(self, request: Request) -> None:
        host = self._node.place.host
        if request.term < self._term:
            raise UnreachableError(
                f"{host}: obeys a newer head (term {self._term}, not {request.term})"
            )
        if request.term > self._term:
            self._term = request.term
            self._term_path.write_text(f"{self._cluster_id} {request.term}\n")
            log.info("agent.new_head", term=request.term)
        self._heard.touch(mode=0o600)
        if not isinstance(request.call, Observe | ReadLog) and not self._is_good(request.ticket):
            raise UnreachableError(f"{host}: the call came too late and was not carried out")

    def _carry_out(self, call: AgentCall) -> object:
        node = self._node
        match call:
            case Observe():
                return node.view()
            case StartInstance(spec, needs, cores_each):
                return node.start_instance(spec, needs, cores_each)
            case StartGateway(spec):
                node.start_gateway(spec)
            case Stop(name, grace_s):
                return node.stop(name, grace_s)
            case Release(name):
                node.release(name)
            case Forget(name):
                node.forget(name)
            case KeepCopy(copy):
                node.keep_copy(copy)
            case ReadLog(name, offset, limit, tail):
                return node.read_log(name, offset, limit, tail)
            case _:
                assert_never(call)
        return None

    def _ticket(self) -> str:
        return f"{self._life} {time.monotonic():.3f}"

    def _is_good(self, ticket: str) -> bool:
        life, _, issued = ticket.partition(" ")
        try:
            age_s = time.monotonic() - float(issued)
        except ValueError:
            return False
        return life == self._life and age_s <= TICKET_S


def host_environment(spec: HostSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """What instances and gateways inherit: the host's own environment, without Ray's and ours."""
    environment = {
        key: value
        for key, value in inherited.items()
        if not key.startswith(_DROPPED) and key != MARK
    }
    for name, directory in _CACHES.items():
        environment.setdefault(name, f"{spec.cache_dir}/{directory}")
    own_token = _own_hub_home(inherited) / "token"
    if Path(spec.hub_token_path).exists():
        environment["HF_TOKEN_PATH"] = spec.hub_token_path
    elif own_token.exists():
        environment.setdefault("HF_TOKEN_PATH", str(own_token))
    environment.setdefault("HF_HOME", spec.hub_home)
    return environment


def _own_hub_home(inherited: Mapping[str, str]) -> Path:
    """Where the hub's library would look for the token of who logged in there."""
    cache = inherited.get("XDG_CACHE_HOME") or f"{inherited.get('HOME', '')}/.cache"
    return Path(inherited.get("HF_HOME") or f"{cache}/huggingface")


def _inherited(directory: Path, own: Mapping[str, str]) -> Mapping[str, str]:
    """What the keeper of Ray was started with.

    Ray changes the environment of its processes: it hides GPUs, limits threads, preloads an
    allocator. No engine must inherit that.
    """
    keeper = attach(directory.parent / RAY)
    try:
        pid = keeper.status().child_pid if keeper is not None else 0
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except (OSError, LlxError):
        log.warning("agent.no_keeper")
        return own
    pairs = (each.decode(errors="surrogateescape").partition("=") for each in data.split(b"\0"))
    return {key: value for key, _, value in pairs if key}


def log_to(path: Path) -> None:
    """Send this process's log lines to a file of 0600; a full one is moved to ``.1``."""
    configure_logging(handler=_OwnLog(path, maxBytes=_LOG_BYTES, backupCount=1))


class _OwnLog(RotatingFileHandler):
    """Nobody else may read it."""

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).touch(mode=0o600)
        return super()._open()


def _read_term(path: Path, cluster_id: str) -> Term:
    try:
        cluster, _, term = path.read_text().partition(" ")
        return Term(int(term)) if cluster == cluster_id else Term(0)
    except (OSError, ValueError):
        return Term(0)
