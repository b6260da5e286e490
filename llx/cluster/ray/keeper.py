"""The keeper of Ray on one host: starts its processes, and starts them again whenever they end.

    keeper (under a shim)  ──spawns──►  launch, which ends when the node is up
       │ waits on pidfds of            gcs_server (head)   raylet ─► agents, our actors
       └ now and then asks             talks: is our node known? is the scheduler there?

Restarting Ray on a host is harmless: instances and gateways have shims of their own, and a new node
agent takes them back. So the keeper never repairs: whatever looks wrong, everything of Ray on this
host is killed, found by the mark that the shim has put into its environment, and begun anew.

It restarts Ray when one of its processes ends; and, on a worker, when the control store has
forgotten the node (it came up empty, or a partition healed unnoticed): a raylet in that state lives
on and burns the CPU. On the head it also has the scheduler's actor made when its heartbeat stops.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llx.agent import shim
from llx.agent.names import RAY, status_path
from llx.cluster.ray import talks
from llx.cluster.ray.launch import RayNode, RayProcess
from llx.cluster.ray.paths import RayPaths, ray_environment
from llx.environment import Environment
from llx.errors import ConfigError, ConflictError, LlxError
from llx.host_ports import HostPorts
from llx.log import get_log
from llx.specs import HostSpec, Phase, StatusFile, load_spec

log = get_log("llx.cluster.ray")

_POLL_S = 0.5
_CONNECT_S = 1.0
_KNOCK_S = 0.25
_ASK_DEADLINE_S = 300.0
_BAD_STORAGE_AFTER = 2
_LEAVE_S = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a keeper waits for what, in seconds.

    Attributes:
        launch_s: Until a node that does not come up is given up.
        pause_s: Between two lives of Ray, at first; doubled each time up to `max_pause_s`.
        max_pause_s: See there.
        proven_s: A life as long as this was no failed start.
        quiet_s: Without a sign of life for so long, somebody is asked.
        settle_s: A fresh node is given that long to be found by the scheduler.
        ask_s: Between two questions, at first; doubled each time up to `max_ask_s`.
        max_ask_s: See there.
    """

    launch_s: float = 450.0
    pause_s: float = 0.25
    max_pause_s: float = 10.0
    proven_s: float = 30.0
    quiet_s: float = 6.0
    settle_s: float = 20.0
    ask_s: float = 5.0
    max_ask_s: float = 30.0


class _Ending(Exception):
    """The keeper was asked to end."""


class Keeper:
    """Keeps Ray running on this host until it gets a TERM.

    Args:
        spec: The host.
        spec_path: Where `spec` lies.
        environment: What Ray's processes inherit.
        patience: How long it waits for what.
    """

    def __init__(
        self,
        spec: HostSpec,
        spec_path: Path,
        environment: Environment,
        patience: Patience = Patience(),
    ) -> None:
        self.patience = patience
        self._spec = spec
        self._spec_path = spec_path
        self._paths = RayPaths(spec)
        self._mark = environment.get(shim.MARK)
        self._environment = ray_environment(spec, spec_path, environment.variables)
        self._status = StatusFile(status_path(self._paths.procs, RAY))
        self._failures = 0
        self._last = ""
        """What ended the last life, until there is another."""
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Until a TERM; then nothing of Ray is left.

        Raises:
            ConfigError: Not started under a shim.
        """
        if self._mark is None:
            raise ConfigError(
                "the keeper runs under a shim", remedy="python -m llx.cluster.ray.node start SPEC"
            )
        signal.signal(signal.SIGTERM, lambda *_: os.write(self._wake_write, b"x"))
        pause_s = self.patience.pause_s
        try:
            while True:
                began = time.monotonic()
                reason = self._life_or_error()
                if time.monotonic() - began > self.patience.proven_s:
                    pause_s = self.patience.pause_s
                log.warning("ray.ended", reason=reason, again_in_s=pause_s)
                self._last = reason
                with contextlib.suppress(OSError):  # a full disk must not end the keeper
                    self._say(f"again in {pause_s:g} s")
                self._clear()
                self._wait(pause_s)
                pause_s = min(2 * pause_s, self.patience.max_pause_s)
        except _Ending:
            log.info("ray.stopping")
            self._status.write(Phase.STOPPING, "asked to end")
        finally:
            self._clear()
        self._status.write(Phase.STOPPING, "ended")

    # ------------------------------------------------------------------ one life of Ray

    def _life_or_error(self) -> str:
        """A disk that is full, a file that is gone: as good a reason to try again as any."""
        try:
            return self._one_life()
        except ConflictError:
            raise  # a directory that is somebody else's stays so
        except (LlxError, OSError) as error:
            log.error("ray.not_started", error=error)
            return str(error)

    def _one_life(self) -> str:
        """From start to end of Ray; returns what ended it."""
        self._clear()
        self._prepare()
        self._wait_for_head()
        self._say("Ray is starting")
        began = time.monotonic()
        problem = self._launch()
        if problem:
            words = self._raylets_words()
            if not words:
                self._count_failure()
            return words or problem
        self._failures, self._last = 0, ""
        node = load_spec(self._paths.node, RayNode)
        took_s = time.monotonic() - began
        log.info("ray.ready", node=node.node_id, after_s=round(took_s, 2))
        self._status.write(Phase.READY, f"after {took_s:.1f} s", [self._gcs()])
        return self._watch(node)

    def _prepare(self) -> None:
        """Ray's directory, ours alone, with nothing of an earlier life but its logs."""
        tmp = self._paths.tmp
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = tmp.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ConflictError(
                f"{tmp} is not ours", remedy="somebody else made it: remove it, and look who"
            )
        tmp.chmod(0o700)
        self._paths.temp_dir.mkdir(exist_ok=True)
        if self._paths.session_logs.is_dir():
            shutil.rmtree(self._paths.former_logs, ignore_errors=True)
            self._paths.session_logs.rename(self._paths.former_logs)
        shutil.rmtree(self._paths.session, ignore_errors=True)
        self._paths.node.unlink(missing_ok=True)
        self._paths.failure.unlink(missing_ok=True)

    def _wait_for_head(self) -> None:
        """A worker cannot join before the head is there; to knock is cheaper than to try."""
        if self._spec.is_head:
            return
        self._say(f"waits for the head, {self._gcs()}")
        while not self.is_head_listening():
            self._wait(_KNOCK_S)

    def _launch(self) -> str:
        """Start the node; returns what went wrong, empty if nothing did."""
        launcher = self._spawn("llx.cluster.ray.launch", str(self._spec_path))
        if not self._await_end(launcher, self.patience.launch_s):
            return f"no node after {self.patience.launch_s:g} s"
        if launcher.returncode != 0:
            return f"could not be started (exit code {launcher.returncode}); see the lines above"
        return ""

    def _raylets_words(self) -> str:
        """Why the raylet could not go on; empty unless it has said so."""
        try:
            return self._paths.failure.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def _say(self, what: str) -> None:
        """Ray is not there: what is done about it, and what the last attempt met."""
        detail = f"{what}; last: {self._last}" if self._last else what
        self._status.write(Phase.STARTING, detail)

    def _count_failure(self) -> None:
        self._failures += 1
        if self._spec.is_head and self._failures >= _BAD_STORAGE_AFTER:
            # Perhaps it cannot read what it kept. It can do without: the workers join anew.
            log.warning("ray.storage_dropped", failures=self._failures)
            shutil.rmtree(self._paths.storage, ignore_errors=True)

    def _clear(self) -> None:
        """Nothing of Ray is left on this host."""
        assert self._mark is not None, "checked at the start"
        with contextlib.suppress(LlxError):
            node = load_spec(self._paths.node, RayNode)
            self._ask_to_leave(node.processes)
        left = shim.kill_marked(self._mark)
        if left:
            log.warning("ray.unkillable", pids=",".join(map(str, left)))
        self._paths.node.unlink(missing_ok=True)

    def _ask_to_leave(self, processes: Iterable[RayProcess]) -> None:
        """TERM to the raylet: it tells the control store, which else finds out after seconds."""
        for process in processes:
            fd = _open(process) if process.name == "raylet" else None
            if fd is not None:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(fd, signal.SIGTERM)
                select.select([fd], [], [], _LEAVE_S)
                os.close(fd)

    # ------------------------------------------------------------------ watching

    def _watch(self, node: RayNode) -> str:
        """Until one of the node's processes ends, or something else says that it must."""
        fds = {fd: each.name for each in node.processes if (fd := _open(each)) is not None}
        try:
            if len(fds) < len(node.processes):
                return "one of its processes ended at once"
            question = _Question(self)
            while True:
                for fd in self._wait(_POLL_S, fds):
                    return f"{fds[fd]} ended"
                reason = question.reason_to_restart()
                if reason:
                    return reason
        finally:
            for fd in fds:
                os.close(fd)

    def spawn_driver(self, verb: str) -> "subprocess.Popen[bytes]":
        """A short talk with Ray; see `llx.cluster.ray.talks`."""
        return self._spawn("llx.cluster.ray.talks", verb, str(self._spec_path))

    @property
    def paths(self) -> RayPaths:
        """The host's files."""
        return self._paths

    @property
    def is_head(self) -> bool:
        """Whether this is the head's host."""
        return self._spec.is_head

    def is_head_listening(self) -> bool:
        """Whether the control store can be reached at all."""
        address = self._spec.head_address, HostPorts(self._spec.first_port).gcs
        try:
            with socket.create_connection(address, _CONNECT_S):
                return True
        except OSError:
            return False

    # ------------------------------------------------------------------ processes and waiting

    def _gcs(self) -> str:
        return f"{self._spec.head_address}:{HostPorts(self._spec.first_port).gcs}"

    def _spawn(self, *arguments: str) -> "subprocess.Popen[bytes]":
        argv = [self._spec.python, "-m", *arguments]
        return subprocess.Popen(argv, env=self._environment, stdin=subprocess.DEVNULL)

    def _await_end(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
        fd = os.pidfd_open(process.pid)
        try:
            if not self._wait(timeout_s, [fd]):
                return False
        finally:
            os.close(fd)
        process.wait()
        return True

    def _wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        """Those of `fds` that became readable.

        Raises:
            _Ending: The keeper was asked to end.
        """
        poll = select.poll()
        for fd in (self._wake, *fds):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(timeout_s * 1000)]
        if self._wake in ready:
            raise _Ending
        return ready


class _Question:
    """Asks, through a driver of its own, what a keeper cannot see; one question at a time."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._since = time.monotonic()
        self._asking: subprocess.Popen[bytes] | None = None
        self._asked_at = 0.0
        self._pause_s = 0.0

    def reason_to_restart(self) -> str:
        """Looks once; empty unless Ray must be restarted."""
        if self._asking is not None:
            return self._hear(self._asking)
        if self._is_due():
            self._asked_at = time.monotonic()
            patience = self._keeper.patience
            self._pause_s = min(max(patience.ask_s, 2 * self._pause_s), patience.max_ask_s)
            self._asking = self._keeper.spawn_driver("ensure" if self._keeper.is_head else "known")
        return ""

    def _is_due(self) -> bool:
        paths, patience = self._keeper.paths, self._keeper.patience
        now = time.monotonic()
        if _age_s(paths.alive if self._keeper.is_head else paths.heard) < patience.quiet_s:
            self._pause_s = 0.0
            return False
        if now - self._asked_at < self._pause_s:
            return False
        if now - self._since <= (patience.quiet_s if self._keeper.is_head else patience.settle_s):
            return False
        if self._keeper.is_head:
            return not paths.stopped.exists()
        return self._keeper.is_head_listening()

    def _hear(self, asking: "subprocess.Popen[bytes]") -> str:
        code = asking.poll()
        if code is None:
            if time.monotonic() - self._asked_at > _ASK_DEADLINE_S:
                asking.kill()
                asking.wait()
                self._asking = None
            return ""
        self._asking = None
        if not self._keeper.is_head and code == talks.FORGOTTEN:
            return "the head does not know this node any more"
        return ""


def _open(process: RayProcess) -> int | None:
    """A pidfd of exactly that process; None if it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if shim.start_time(process.pid) == process.started:
        return fd
    os.close(fd)
    return None


def _age_s(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return float("inf")


def main(spec_path: Path) -> int:
    """Keep Ray until a TERM; returns the exit code."""
    spec = load_spec(spec_path, HostSpec)
    status = StatusFile(status_path(RayPaths(spec).procs, RAY))
    try:
        Keeper(spec, spec_path, Environment.current()).run()
    except LlxError as error:
        log.error("ray.failed", error=error)
        status.write(Phase.FAILED, str(error))
        return int(error.exit_code)
    except Exception as error:
        log.exception("ray.failed")
        status.write(Phase.FAILED, f"{type(error).__name__}: {error}"[:2000])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
