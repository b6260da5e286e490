"""What `up` and `down` reach out with: processes, installer, control API, first token, clock.

`real_ports` is the one for use; tests give their own.
"""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from llx.agent import processes
from llx.api import ClusterStatus, GatewayStatus, InstanceStatus, KeysStatus, StopReport
from llx.bootstrap import facts, node_env
from llx.bootstrap.facts import Facts, VllmArguments
from llx.bootstrap.plan import NodeChoice, Plan
from llx.client import Cluster
from llx.errors import InstallError
from llx.openai_client import ChatRequest, Message, OpenAIClient
from llx.pinned_tls import trusting
from llx.secret import Secret

_TINY_MODEL_TIMEOUT_S = 300.0
_FIRST_TOKEN_TIMEOUT_S = 60.0


class StepState(StrEnum):
    """How a step stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class StepEvent:
    """News of one step of `up` or `down`."""

    step: str
    state: StepState
    detail: str = ""


Observer = Callable[[StepEvent], None]


class Ending(Protocol):
    """How a process ended, in words."""

    @property
    def ending(self) -> str:
        """Empty while it runs."""


class RunningProcess(Protocol):
    """A process under a shim."""

    @property
    def name(self) -> str:
        """Such as ``head``."""

    def is_alive(self) -> bool:
        """Whether it runs."""

    def status(self) -> Ending:
        """What its shim recorded."""


class Control(Protocol):
    """The control API, as far as `up` and `down` use it."""

    def status(self) -> ClusterStatus:
        """The whole cluster."""

    def keys(self) -> KeysStatus:
        """Those of the cluster's sockets."""

    def restart_instance(self, name: str, *, user: str = "") -> InstanceStatus | GatewayStatus:
        """Start an instance anew."""

    def stop(self, *, deadline_s: float = 60.0, user: str = "") -> StopReport:
        """Stop the cluster."""


LaunchHead = Callable[[Plan, Path, Mapping[str, str]], object]
StopEverything = Callable[[Path, float], list[str]]


@dataclass(frozen=True, slots=True)
class LocalPorts:
    """The outside world of `up` and `down`.

    Attributes:
        gather: Facts for a plan; the ports given are the cluster's own.
        arguments: vLLM's argument names.
        install: Make or check the node environment; returns its Python.
        make_tiny_model: With that Python, at that place, unless it is there.
        launch_head: Write the cluster's files and start its head, with that Python and
            environment.
        stop_everything: Stop all processes of a directory without the head's help, within so many
            seconds; returns their names.
        attach: The process of a directory.
        list_processes: All processes of a ``procs`` directory.
        control: The control API of a cluster's directory; raises UnreachableError.
        first_token: Ask a model of the cluster for one token.
        shield: While in it, an interruption waits.
        clock: Monotonic seconds.
        sleep: Wait so many seconds.
    """

    gather: Callable[[Plan, frozenset[int]], Facts]
    arguments: Callable[[], VllmArguments]
    install: Callable[[NodeChoice, Callable[[str], None]], Path]
    make_tiny_model: Callable[[Path, Path], None]
    launch_head: LaunchHead
    stop_everything: StopEverything
    attach: Callable[[Path], RunningProcess | None]
    list_processes: Callable[[Path], Sequence[RunningProcess]]
    control: Callable[[Path], AbstractContextManager[Control]]
    first_token: Callable[[ClusterStatus, str, Secret | None], None]
    shield: Callable[[], AbstractContextManager[None]] = nullcontext
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def real_ports(
    launch_head: LaunchHead,
    stop_everything: StopEverything,
    *,
    shield: Callable[[], AbstractContextManager[None]] = nullcontext,
    sleep: Callable[[float], None] = time.sleep,
) -> LocalPorts:
    """The ports of this machine; what belongs to `llx.cluster` is handed in by whoever may."""
    return LocalPorts(
        gather=_gather,
        arguments=facts.load_vllm_arguments,
        install=_install,
        make_tiny_model=_make_tiny_model,
        launch_head=launch_head,
        stop_everything=stop_everything,
        attach=processes.attach,
        list_processes=processes.list_processes,
        control=Cluster.for_cluster,
        first_token=_first_token,
        shield=shield,
        sleep=sleep,
    )


def _gather(plan: Plan, own_ports: frozenset[int]) -> Facts:
    node = facts.node_fact(plan.node.python, plan.node.prefix)
    found = facts.gather(plan.settings, node=node, gpus=facts.list_gpus(), ignored_ports=own_ports)
    return found if plan.tiny_model is None else facts.with_tiny_model(found, plan.tiny_model)


def _install(node: NodeChoice, say: Callable[[str], None]) -> Path:
    if node.python is not None:
        node_env.verify(node_env.inspect_python(node.python))
        return node.python
    made = node_env.install(node.prefix, node.platform, report=say, wheelhouse=node.wheelhouse)
    return made.python


def _make_tiny_model(python: Path, out: Path) -> None:
    if (out / "config.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "llx.agent.vllm.tiny_model", "--out", str(out)]
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=_TINY_MODEL_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        raise InstallError(
            f"the tiny model cannot be made at {out}", detail=error.stderr[-2000:]
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"the tiny model cannot be made at {out}: {error}") from None


def _first_token(status: ClusterStatus, model: str, key: Secret | None) -> None:
    gateway = status.first_gateway
    tls = None if gateway is None else trusting(gateway.certificate)
    request = ChatRequest(model, (Message("user", "Hello"),), max_tokens=1, temperature=0.0)
    with OpenAIClient(status.url, key, timeout_s=_FIRST_TOKEN_TIMEOUT_S, tls=tls) as client:
        client.chat(request)
