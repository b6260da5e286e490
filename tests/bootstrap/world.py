"""A make-believe machine for `up` and `down`: processes are names, the clock is a number."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llx.api import (
    ClusterState,
    ClusterStatus,
    GatewayStatus,
    InstanceState,
    InstanceStatus,
    KeysStatus,
    ModelStatus,
    StopReport,
)
from llx.bootstrap.cluster_dir import PROCS
from llx.bootstrap.contexts import SETTINGS_FILE
from llx.bootstrap.facts import Facts, ModelFact, NodeFact, VllmArguments
from llx.bootstrap.local_ports import LocalPorts
from llx.bootstrap.plan import make_plan
from llx.bootstrap.preflight import GIB
from llx.cluster.driving.desired import desired_instances
from llx.cluster_file import ClusterSettings
from llx.curve import KEYS_FILE, ClusterKeys, parse_ring
from llx.environment import Environment
from llx.errors import UnreachableError
from llx.settings import dump_cluster

URL = "http://127.0.0.1:8000"


@dataclass
class FakeProcess:
    name: str
    is_running: bool = True
    ending: str = ""

    def is_alive(self):
        return self.is_running

    def status(self):
        return self


@dataclass
class World:
    """`interrupt` names the call (and its count) at which Ctrl-C is pressed."""

    root: Path
    interrupt: tuple[str, int] | None = None
    shielded: bool = False
    pending: bool = False
    now: float = 0.0
    calls: list[str] = field(default_factory=list)
    events: list = field(default_factory=list)
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    states: dict[str, list[InstanceState]] = field(default_factory=dict)
    is_head_deaf: bool = False
    facts: dict = field(default_factory=dict)
    first_token_errors: list = field(default_factory=list)
    stopped: list = field(default_factory=list)
    keys_awaited: list[list[str]] = field(default_factory=list)
    key_files: list = field(default_factory=list)
    inherited: dict = field(default_factory=dict)

    def environment(self, **variables):
        return Environment({"HOME": str(self.root), "PATH": "/bin", **variables}, self.root)

    def plan(self, environment=None, **changes):
        values = {
            "cluster": "c",
            "models": [{"name": "m", "model": "llx/tiny", "instances": {"min": 2}}],
            "runtime": {"platform": "cpu", "start_timeout_s": 30},
            **changes,
        }
        settings = ClusterSettings.model_validate(values)
        return make_plan(settings, environment or self.environment())

    @property
    def state_dir(self):
        return self.environment().cluster_dir("c")

    @property
    def alive(self):
        return sorted(name for name, each in self.processes.items() if each.is_running)

    def steps(self):
        """(step, state) in order, repetitions left out."""
        seen = [(each.step, str(each.state)) for each in self.events]
        return list(dict.fromkeys(seen))

    def ports(self):
        return LocalPorts(
            gather=self.gather,
            arguments=lambda: VllmArguments(frozenset({"max_model_len"}), frozenset()),
            install=self.install,
            make_tiny_model=lambda python, out: self.call("make_tiny_model"),
            launch_head=self.launch_head,
            stop_everything=self.stop_everything,
            attach=lambda folder: self.processes.get(folder.name),
            list_processes=lambda folder: list(self.processes.values()),
            control=self.control,
            first_token=self.first_token,
            shield=self.shield,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def call(self, name):
        self.calls.append(name)
        if self.interrupt == (name, self.calls.count(name)):
            if self.shielded:
                self.pending = True
            else:
                raise KeyboardInterrupt

    @contextmanager
    def shield(self):
        self.shielded = True
        yield
        self.shielded = False
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    def gather(self, plan, own_ports):
        self.call("gather")
        known = ModelFact(is_directory=True, has_config=True)
        facts = {
            "hostname": "here",
            "gpus": (),
            "cpu_count": 2,
            "memory_available_bytes": 64 * GIB,
            "disk_free_bytes": 64 * GIB,
            "node": NodeFact(is_installed=True, place=Path("/n")),
            "models": {str(plan.environment.tiny_model): known},
        }
        return Facts(**{**facts, **self.facts})

    def install(self, node, say):
        self.call("install")
        say("unpacking")
        return Path("/n/bin/python")

    def launch_head(self, plan, python, variables):
        self.call("launch_head")
        self.inherited = dict(variables)
        (plan.state_dir / SETTINGS_FILE).write_text(dump_cluster(plan.settings))
        if not (keys := plan.state_dir / KEYS_FILE).exists():
            ClusterKeys.create().save(keys)
        instances = [each.name for each in desired_instances(plan.settings)]
        for name in ("head", "gateway-0", *instances):
            if name not in self.alive:
                folder = plan.state_dir / PROCS / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "log").write_text(f"{name} says hello\n")
                (folder / "shim.json").touch()
                self.processes[name] = FakeProcess(name)

    def stop_everything(self, state_dir, grace_s):
        names = self.alive
        for each in self.processes.values():
            each.is_running = False
        self.stopped += names
        return names

    @contextmanager
    def control(self, state_dir):
        self.call("control")
        if self.is_head_deaf or "head" not in self.alive:
            raise UnreachableError("its head is not running")
        yield self

    def sleep(self, seconds):
        self.call("sleep")
        self.now += seconds

    def first_token(self, status, model, key):
        self.call("first_token")
        assert status.url == URL
        if self.first_token_errors:
            raise self.first_token_errors.pop(0)

    # ---- the control API

    def status(self):
        self.call("status")
        instances = [
            InstanceStatus(
                name=name, model="m", host="here", engine="vllm",
                state=self.state_of(name), detail=f"{name} detail",
            )
            for name in ("m-0", "m-1")
        ]  # fmt: skip
        gateway = GatewayStatus(
            name="gateway-0", host="here", url=URL, state=self.state_of("gateway-0")
        )
        ready = sum(each.state is InstanceState.READY for each in instances)
        model = ModelStatus(
            name="m", source="/m", engine="vllm", instances_min=2, instances_max=2,
            instances_wanted=2, instances_ready=ready,
        )  # fmt: skip
        return ClusterStatus(
            cluster="c", state=ClusterState.READY, url=URL, term=1, started_at=0.0,
            llx_version="0", vllm_version="0", platform="cpu",
            models=[model], instances=instances, gateways=[gateway],
        )  # fmt: skip

    def state_of(self, name):
        """The next of the states scripted for it; the last one stays."""
        script = self.states.get(name, [InstanceState.READY])
        return script.pop(0) if len(script) > 1 else script[0]

    def keys(self):
        self.call("keys")
        text = (self.state_dir / KEYS_FILE).read_text()
        self.key_files.append(parse_ring(text))
        return KeysStatus(
            made_at=None,
            is_changing=True,
            awaited=self.keys_awaited.pop(0) if self.keys_awaited else [],
        )

    def restart_instance(self, name, *, user=""):
        self.call(f"restart {name}")
        self.states[name] = [InstanceState.STARTING, InstanceState.READY]

    def stop(self, *, deadline_s=60.0, user=""):
        self.call(f"stop {deadline_s:.0f}")
        self.stop_everything(self.state_dir, 0)
        return StopReport(finished=2, cut=1)
