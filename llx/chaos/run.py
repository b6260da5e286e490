"""Does a plan: one fault after another beside streams, each when the cluster is whole again.

references, idle ──► streams begin ──► fault ► whole again ► fault ► … ──► streams end ──► leaks
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llx.api import ClusterState, ClusterStatus
from llx.chaos import inject
from llx.chaos.faults import FaultRecord
from llx.chaos.grounds import Grounds, Place
from llx.chaos.inject import ProcessId
from llx.chaos.integrity import StreamEnd, StreamRecord
from llx.chaos.leaks import HostSight, Idle, cluster_leaks, host_leaks, idle_of, look_at_host
from llx.chaos.plan import ChaosPlan, Fault, FaultKind, Role
from llx.chaos.record import About, RunDirectory
from llx.chaos.strike import strike
from llx.chaos.traffic import Gateways, StreamTraffic, Tokens, prompts_of, take_references
from llx.chaos.verdict import ChaosVerdict, judge
from llx.chaos.victims import Victim, choose, units_of
from llx.client import Cluster
from llx.errors import ConflictError, DeadlineError, LlxError

_POLL_S: Final = 0.2
_FLOW_S: Final = 60.0
_CALM_S: Final = 1.0
"""The cluster must be whole for so long at a stretch."""
_DRAIN_S: Final = 30.0
_MARGIN_S: Final = 1.0
_AIM_S: Final = 10.0
"""So long it is waited for a stream on what is to be hit."""
_TITLES: Final = {
    Role.HEAD: "ray::SchedulerActor",
    Role.AGENT: "ray::NodeAgentActor",
    Role.RAY: "*/raylet/raylet",
}
_CONTROL_STORE: Final = "*/gcs/gcs_server"
_RAY: Final = "ray"
"""The name of the shim under which all of them run."""


@dataclass(slots=True)
class Progress:
    """How far it is."""

    number: int
    total: int
    doing: str = ""
    streams: int = 0
    failed: int = 0


Observe = Callable[[Progress], None]


def run_plan(
    grounds: Grounds,
    gateways: Gateways,
    model: str,
    directory: RunDirectory,
    observe: Observe = lambda _: None,
) -> ChaosVerdict:
    """Do what is left of the directory's plan, and judge all of it.

    Raises:
        CheckError: The model's answers cannot be compared.
        DeadlineError: No streams flow, or the cluster is not whole to begin with.
        LlxError: The cluster does not answer before the first fault.
    """
    plan = directory.plan()
    done = {each.number for each in directory.faults()}
    progress = Progress(len(done), len(plan.faults))
    run = _Run(grounds, directory, progress, observe)
    with contextlib.closing(run):
        progress.doing = "until the cluster is whole"
        run.wait_whole(plan.bounds.healed_s)
        prompts = prompts_of(plan.traffic, plan.seed)
        run.model = model
        about = run.go_on() or _begin(run, gateways, model, plan, prompts)
        traffic = StreamTraffic(
            gateways, model, plan.traffic, prompts, about.references, run.on_stream
        )
        traffic.start()
        try:
            for number, fault in enumerate(plan.faults):
                if number not in done:
                    run.do(number, fault, traffic)
            progress.doing = "the last streams"
            observe(progress)
            traffic.finish()
        finally:
            traffic.abandon()
        leaks = run.leaks(about.idle, plan.bounds.settled_s)
    verdict = judge(plan, directory.faults(), directory.streams(), leaks)
    directory.keep_verdict(verdict)
    return verdict


def _begin(
    run: "_Run", gateways: Gateways, model: str, plan: ChaosPlan, prompts: Sequence[Tokens]
) -> About:
    """What the cluster says and how it is while nothing is wrong; kept for a run that goes on."""
    run.progress.doing = "references"
    run.observe(run.progress)
    references = take_references(gateways[min(gateways)], model, plan.traffic, prompts)
    about = About(
        cluster=run.status().cluster,
        model=model,
        references=references,
        idle=run.idle(plan.bounds.settled_s),
    )
    run.directory.keep_about(about)
    return about


@dataclass(frozen=True, slots=True)
class _Aim:
    """Who will be hit, the streams there, and the cluster as it was then."""

    victim: Victim
    process: ProcessId | None
    hit: list[str]
    status: ClusterStatus


@dataclass(slots=True)
class _Run:
    """The cluster during a run."""

    grounds: Grounds
    directory: RunDirectory
    progress: Progress
    observe: Observe
    model: str = ""
    _client: Cluster | None = None

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()
        self._client = None

    @contextlib.contextmanager
    def control(self) -> Iterator[Cluster]:
        """The head's API; after an error the next call looks for the head anew."""
        if self._client is None:
            self._client = self.grounds.open_control()
        try:
            yield self._client
        except LlxError:
            self.close()
            raise

    def status(self) -> ClusterStatus:
        with self.control() as control:
            return control.status()

    def on_stream(self, record: StreamRecord) -> None:
        self.directory.add_stream(record)
        self.progress.streams += 1
        self.progress.failed += record.end is not StreamEnd.COMPLETE

    def wait_whole(
        self, limit_s: float, is_done: Callable[[ClusterStatus], bool] | None = None
    ) -> None:
        """Until all that should be there serves, and has for a while.

        Raises:
            DeadlineError: It does not in time.
        """
        deadline, since = time.monotonic() + limit_s, None
        seen = "its head does not answer"
        while time.monotonic() < deadline:
            is_whole = False
            with contextlib.suppress(LlxError):
                status = self.status()
                seen = f"it is {status.state}"
                is_whole = status.state is ClusterState.READY and (
                    is_done is None or is_done(status)
                )
            since = (since or time.monotonic()) if is_whole else None
            if since is not None and time.monotonic() - since >= _CALM_S:
                return
            self.observe(self.progress)
            time.sleep(_POLL_S)
        raise DeadlineError(
            f"the cluster is not whole after {limit_s:g} s: {seen}", remedy="llx status"
        )

    def idle(self, limit_s: float) -> Idle:
        """How it is with nothing to do: leaks are what is more than that.

        Raises:
            ConflictError: There is something to do.
        """
        deadline = time.monotonic() + limit_s
        status = self.status()
        while _is_busy(status) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            status = self.status()
        if _is_busy(status):
            raise ConflictError(
                "others use the cluster: what they leave could not be told from what faults leave",
                remedy="llx req ls",
            )
        return idle_of(status, self._sights())

    def go_on(self) -> About | None:
        """What an interrupted run compares with; None: it did not come so far.

        A cluster that was brought up anew meanwhile, none of whose processes it has seen, may have
        them elsewhere: how that is while nothing is wrong is looked at again.

        Raises:
            ConflictError: It was of another model or cluster, or others use the cluster.
        """
        about = self.directory.about()
        if about is None:
            return None
        if (about.cluster, about.model) != (self.status().cluster, self.model):
            raise ConflictError(
                f"{self.directory.path} is of {about.model} on {about.cluster}",
                remedy="another --out",
            )
        running = {mark for sight in self._sights().values() for mark in sight.marks.values()}
        if running & self.directory.marks():
            return about
        settled_s = self.directory.plan().bounds.settled_s
        about = about.model_copy(update={"idle": self.idle(settled_s)})
        self.directory.keep_about(about)
        return about

    def do(self, number: int, fault: Fault, traffic: StreamTraffic) -> None:
        """One fault, from choosing whom to the cluster being whole again; keeps what came of it."""
        self.progress.number, self.progress.doing = number + 1, f"{fault.kind} {fault.target}"
        self.observe(self.progress)
        began_at = time.time()
        try:
            aim = self._aim(fault, traffic)
        except LlxError as error:
            self._keep_skipped(number, fault, began_at, error.message)
            return
        victim = aim.victim
        self.progress.doing = f"{fault.kind} {victim.name}"
        self.observe(self.progress)
        began_at = time.time()
        recovered_s, error_text = self._do_and_wait(fault, aim)
        self.directory.add_fault(
            FaultRecord(
                number=number, kind=fault.kind, role=victim.role, victim=victim.name,
                host=victim.host, pid=None if aim.process is None else aim.process.pid,
                lasts_s=fault.lasts_s, began_at=began_at, ended_at=time.time(),
                recovered_s=recovered_s, hit=aim.hit, instances=sorted(victim.instances),
                gateways=sorted(victim.gateways), error=error_text,
                excuses_all=self._excuses_all(aim),
            )
        )  # fmt: skip

    def _excuses_all(self, aim: _Aim) -> bool:
        """Whether nobody was left to go on with the streams, and that was wanted."""
        able = {each.name for each in aim.status.instances if each.model == self.model}
        return self.directory.plan().hits_last and bool(able) and able <= aim.victim.instances

    def _aim(self, fault: Fault, traffic: StreamTraffic) -> _Aim:
        """Wait until tokens flow, and choose.

        Raises:
            LlxError: Nobody can be hit.
        """
        _wait_flow(traffic)
        time.sleep(fault.after_s)
        traffic.burst(fault.burst, _FLOW_S)
        status = self.status()
        victim = choose(
            fault,
            status,
            self.model,
            hits_last=self.directory.plan().hits_last,
            on_hosts=self.grounds.on_hosts,
        )
        process = self._process(victim, fault)
        self._remember_marks()
        self._note(fault, victim)
        return _Aim(victim, process, self._hit(victim, traffic), status)

    def _do_and_wait(self, fault: Fault, aim: _Aim) -> tuple[float | None, str]:
        """After how many seconds the cluster was whole again (None: not in time), and an error."""
        began = time.monotonic()
        try:
            self._inject(fault, aim.victim, aim.process, aim.status)
            if fault.lasts_s:
                time.sleep(fault.lasts_s + _MARGIN_S)
            limit_s = self.directory.plan().bounds.healed_s
            self.wait_whole(limit_s, self._renewed(fault, aim))
        except DeadlineError:
            return None, ""
        except LlxError as error:
            return None, error.message
        return round(max(0.0, time.monotonic() - began - _CALM_S), 3), ""

    def _renewed(self, fault: Fault, aim: _Aim) -> Callable[[ClusterStatus], bool] | None:
        """What must have become of the victim; the status says `ready` until that is noticed."""
        if fault.kind is FaultKind.KILL and aim.victim.role in {Role.AGENT, Role.RAY}:
            return lambda _: self._process(aim.victim, fault) != aim.process
        return _renewed(fault, aim.victim, aim.status)

    def _keep_skipped(self, number: int, fault: Fault, began_at: float, why: str) -> None:
        record = FaultRecord(
            number=number, kind=fault.kind, role=fault.target,
            began_at=began_at, ended_at=time.time(), skipped=why,
        )  # fmt: skip
        self.directory.add_fault(record)

    def _hit(self, victim: Victim, traffic: StreamTraffic) -> list[str]:
        """Our streams on what will be hit; waits a while for one that will not end before it is."""
        deadline = time.monotonic() + _AIM_S
        while victim.instances:
            found = self._streams_on(victim, traffic.prefix)
            if any(found.values()) or time.monotonic() > deadline:
                return sorted(found)
            time.sleep(_POLL_S / 4)
        return []

    def _streams_on(self, victim: Victim, prefix: str) -> dict[str, bool]:
        """By name, and whether half of its tokens or more are still to come."""
        with self.control() as control:
            there = control.requests().requests
        half = self.directory.plan().traffic.output_tokens / 2
        named = (
            (
                _stream_of(f"{each.id} {each.name}", prefix),
                each.num_tokens - each.num_prompt <= half,
            )
            for each in there
            if each.instance in victim.instances
        )
        return {name: is_young for name, is_young in named if name}

    def _process(self, victim: Victim, fault: Fault) -> ProcessId | None:
        if fault.kind in {FaultKind.PARTITION, FaultKind.RESTART}:
            return None
        grounds = self.grounds
        if victim.role in _TITLES and grounds.on_hosts:
            is_store = victim.role is Role.RAY and victim.host == grounds.head
            title = _CONTROL_STORE if is_store else _TITLES[victim.role]
            place = self._place(victim)
            return inject.find_titled(place.hand, place.procs, _RAY, title)
        place = grounds.place_of(victim.host)
        if victim.role is Role.SHIM:
            return inject.find_shim(place.hand, place.procs, victim.name)
        if victim.role is Role.HEAD:
            return inject.find_kept(place.hand, place.procs, victim.name)
        return inject.find_shimmed(place.hand, place.procs, victim.name)

    def _place(self, victim: Victim) -> Place:
        """Where it is."""
        host = self.grounds.head if victim.role is Role.HEAD else victim.host
        return self.grounds.place_of(host)

    def _note(self, fault: Fault, victim: Victim) -> None:
        """In the audit trail, before it is done: afterwards nobody may be there to be told."""
        lasts = f" for {fault.lasts_s:g} s" if fault.lasts_s else ""
        where = f" on {victim.host}" if victim.host and victim.host != victim.name else ""
        with contextlib.suppress(LlxError), self.control() as control:
            control.note(
                f"chaos {fault.kind}", f"{victim.name}{where}{lasts}", user=self.grounds.user
            )

    def _inject(
        self, fault: Fault, victim: Victim, process: ProcessId | None, status: ClusterStatus
    ) -> None:
        if fault.kind is FaultKind.RESTART:
            with self.control() as control:
                control.restart_instance(victim.name, user=self.grounds.user, deadline_s=_DRAIN_S)
            return
        strike(fault, victim, self._place(victim).hand, process, status)

    def leaks(self, before: Idle, limit_s: float) -> list[str]:
        """What is left, once it has had time to settle."""
        self.progress.doing = "what is left"
        deadline = time.monotonic() + limit_s
        while True:
            found = self._leaks_now(before)
            if not found or time.monotonic() > deadline:
                return found
            self.observe(self.progress)
            time.sleep(_POLL_S)

    def _leaks_now(self, before: Idle) -> list[str]:
        try:
            with self.control() as control:
                found = cluster_leaks(before, control.status(), control.migrations())
        except LlxError as error:
            return [f"processes: {error.message}"]
        if found:
            return found
        for host, place in self.grounds.places.items():
            try:
                sight = look_at_host(place.hand, place.procs, with_processes=True)
            except LlxError as error:
                found.append(f"processes: nobody knows what is left on {host}: {error.message}")
                continue
            self.directory.add_marks(sight.marks.values())
            shims, ours = before.shims.get(host, frozenset()), self.directory.marks()
            found += host_leaks(host, shims, ours, sight)
        return found

    def _sights(self) -> dict[str, HostSight]:
        return {
            host: look_at_host(place.hand, place.procs, with_processes=False)
            for host, place in self.grounds.places.items()
        }

    def _remember_marks(self) -> None:
        """Whose runs there are now: what is left of one later is told by its mark."""
        for place in self.grounds.places.values():
            with contextlib.suppress(LlxError):  # it is looked at again at the end
                sight = look_at_host(place.hand, place.procs, with_processes=False)
                self.directory.add_marks(sight.marks.values())


def _wait_flow(traffic: StreamTraffic) -> None:
    """Until a token comes: a fault in a silence would test nothing."""
    before, deadline = traffic.tokens, time.monotonic() + _FLOW_S
    while traffic.tokens == before:
        if time.monotonic() > deadline:
            raise DeadlineError(f"no token came for {_FLOW_S:g} s", remedy="llx status")
        time.sleep(_POLL_S / 4)


def _renewed(
    fault: Fault, victim: Victim, before: ClusterStatus
) -> Callable[[ClusterStatus], bool] | None:
    """Of what the status names."""
    if fault.kind not in {FaultKind.KILL, FaultKind.RESTART}:
        return None
    if victim.role is Role.HEAD:
        return lambda status: status.term > before.term
    old = units_of(before).get(victim.name)
    if old is None:
        return None

    def is_another(status: ClusterStatus) -> bool:
        new = units_of(status).get(victim.name)
        return new is not None and new.pid is not None and new.pid != old.pid

    return is_another


def _is_busy(status: ClusterStatus) -> bool:
    return any(each.in_flight for each in status.gateways) or any(
        each.load is not None and each.load.running + each.load.waiting > 0
        for each in status.instances
    )


def _stream_of(ids: str, prefix: str) -> str:
    """The name of our stream that these ids are of; empty: of none."""
    start = ids.find(f"{prefix}-")
    end = ids.find("x", start + len(prefix)) if start >= 0 else -1
    return ids[start : end + 1] if end > 0 else ""
