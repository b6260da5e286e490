"""The driver: makes what runs match what should run, again and again.

Level-triggered: each round looks at what the hosts' agents last said of their processes, compares
with what is desired and acts on the difference; nothing depends on having seen a change happen. So
a driver that starts beside running processes adopts them, and one that is killed leaves them
serving.

One asyncio loop owns all state. Hosts are watched and acted on by tasks of their own, at most one
action per unit at a time; a host that does not answer holds up nobody else.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from llx.agent.log_file import read_log
from llx.agent.names import AGENT, HEAD
from llx.api import (
    ClusterStatus,
    GatewayStatus,
    HostState,
    HostStatus,
    InstanceState,
    InstanceStatus,
    KeysStatus,
    LogSlice,
    StopReport,
)
from llx.cluster.driving.actions import DRAIN_S, GRACE_S, Actions
from llx.cluster.driving.converge import Converging
from llx.cluster.driving.copies import Copies
from llx.cluster.driving.desired import desired_api_keys, pool_offers
from llx.cluster.driving.draining import Draining
from llx.cluster.driving.emptying import Emptying
from llx.cluster.driving.ending import Ending
from llx.cluster.driving.instance_verbs import InstanceVerbs, figures
from llx.cluster.driving.judging import Judging
from llx.cluster.driving.placing import Placing
from llx.cluster.driving.rolling import Rolling
from llx.cluster.driving.rollout_verb import RolloutVerb
from llx.cluster.driving.rollouts import Rollouts
from llx.cluster.driving.scale_verb import ScaleVerb
from llx.cluster.driving.scaling import Scaling
from llx.cluster.events.audit import AuditTrail
from llx.cluster.fleet.agents import AgentsSource
from llx.cluster.fleet.fleet import Fleet
from llx.cluster.fleet.host_unit import HostUnit, HostWatch
from llx.cluster.fleet.keys import keys_status
from llx.cluster.fleet.unit import Unit
from llx.cluster.metrics.head import HeadMetrics
from llx.cluster.moves.migrations import Migrations
from llx.cluster.placement_file import Placements, load_moved, save_cordons, save_placements
from llx.cluster.requests.requests import Requests
from llx.cluster.requests.stream_changes import StreamChanges
from llx.cluster.requests.verbs import RequestVerbs
from llx.cluster.rollout_file import save_generations
from llx.cluster.scheduling.configs import desired_config
from llx.cluster.scheduling.live import LiveScheduler
from llx.cluster.scheduling.moves import PolicyMoves
from llx.cluster.scheduling.policy_book import PolicyBook
from llx.cluster.scheduling.recordings import open_recordings
from llx.cluster.scheduling.steering import Steering
from llx.cluster.state_dir import StateDir, write_private
from llx.core.model import is_of_later_seat
from llx.errors import ConflictError, LlxError, UnreachableError
from llx.log import get_log
from llx.scheduling_settings import installed_policies
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import GatewaySpec
from llx.yaml_reader import no_such

log = get_log(__name__)

_POLL_S = 0.5
_COALESCE_S = 0.01
"""News that comes close together makes one round."""
_PAUSE: Final = 10
"""Times as long as a round takes: there are as many agents that tell news as it has to look at."""
_LONGEST_PAUSE_S = 0.25
_START_S = 5.0
_FIRST_LIST_S = 5.0
"""So long a new head waits for every host's word before it tells gateways of instances."""


class ClusterDriver:
    """Drives one cluster.

    Args:
        fleet: Hosts and units; the driver alone changes them.
        agents: Reaches hosts.
        audit: Where what happens is written down.
        state: Where the head keeps what the next one must know.
    """

    def __init__(
        self, fleet: Fleet, agents: AgentsSource, audit: AuditTrail, state: StateDir
    ) -> None:
        self.fleet = fleet
        self._audit = audit
        self.events_path = state.events
        """Where the trail lies."""
        self._state = state
        self._actions = Actions(fleet, audit, self._publish)
        self._judging = Judging(fleet, self._actions)
        self._placing = Placing(fleet, self._actions)
        self.requests = Requests(fleet, lambda: self.scheduler.waiting())
        """All there are, for operators."""
        streams = StreamChanges(fleet.line, fleet.term, fleet.running_gateways)
        self.request_verbs = RequestVerbs(fleet, self.requests, streams, audit)
        """What is done to requests, moves apart."""
        self.migrations = Migrations(fleet, audit, self.requests)
        """Moves of requests, as operators ask for them."""
        fleet.loads.listen(self.migrations)
        moves = PolicyMoves(fleet, self.migrations)
        policies = installed_policies()
        self._policy_book = PolicyBook(state.policies)
        recordings = open_recordings(state.recordings, fleet.term)
        self.scheduler = LiveScheduler(fleet.term, fleet.line.tell, moves, policies, recordings)
        """Places requests."""
        self.steering = Steering(
            fleet,
            self.scheduler,
            self._policy_book,
            policies,
            audit,
            self._schedule,
            state.recordings,
        )
        """What operators see of the scheduler, and do to it."""
        self.migrations.tell_over(self.scheduler.on_move_over)
        fleet.loads.tell_loads(self.scheduler)
        fleet.line.tell_placement(self.scheduler)
        fleet.line.tell_moves(self.migrations.on_seen)
        draining = Draining(fleet, self.migrations, self._publish)
        self._emptying = Emptying(fleet, self._actions, draining, self._publish)
        self._rolling = Rolling(fleet, self._actions)
        self._converging = Converging(
            fleet, agents, self._actions, self._emptying, self._rolling, self._watch
        )
        self._scaling = Scaling(
            fleet,
            self.scheduler,
            self._placing,
            self._converging,
            self._actions,
            self._policy_book,
        )
        self.scheduler.tell_scaling(self._scaling)
        self.instances = InstanceVerbs(fleet, self._actions, draining, self._scaling.keep)
        """What is done to one instance."""
        self._rollouts = Rollouts(
            fleet,
            self._placing,
            self._converging,
            self._actions,
            self.scheduler,
            audit,
            lambda: save_generations(state.rollouts, fleet.generations),
        )
        self.rollouts = RolloutVerb(fleet, self._rollouts, self._converging, self._save_settings)
        """What models' instances are started with, as operators say."""
        self.scale = ScaleVerb(fleet, self._converging, self._placing, audit, self._save_settings)
        """How many instances a model has, as operators say."""
        self.metrics = HeadMetrics(fleet, self.scheduler, self.steering, self.rollouts, audit)
        self._strays: set[tuple[str, str]] = set()
        self._saved: Placements | None = None
        self._saving = asyncio.Lock()
        self._since = time.monotonic()
        self._copies = Copies(fleet, self._actions, state.path)
        self._ending = Ending(fleet, self._actions, audit, state, self._save)
        self.stopped = self._ending.done
        """Set when everything is stopped: the head's cue to end."""

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Reconcile until cancelled. What was started goes on running."""
        self._audit.record("head.started", term=self.fleet.term)
        self._since = time.monotonic()
        line = asyncio.create_task(self.fleet.line.run())
        rounds = asyncio.create_task(self.scheduler.run())
        self._ending.go_on()
        self._converging.begin()
        try:
            while not line.done() and not rounds.done():
                used = time.thread_time()
                try:
                    await self._round()
                except (LlxError, OSError) as error:  # no descriptor, no space: try again
                    log.error("driver.round_failed", error=error)
                await self._wait(pause_s(time.thread_time() - used))
            (line if line.done() else rounds).result()
        finally:
            # Whoever clears up after this head should find every process that it began to start.
            starting = [u.task for u in self.fleet.units() if u.task and _is_starting(u)]
            if starting:
                await asyncio.wait(starting, timeout=_START_S)
            line.cancel()
            rounds.cancel()
            await asyncio.gather(line, rounds, return_exceptions=True)
            await self._actions.cancel()

    def _note_move(self) -> None:
        """What was away is placed anew, and that is kept: the next head here need not know."""
        moved = load_moved(self._state.moved)
        if moved is not None:
            head = self.fleet.settings.head or ""
            self._audit.record("head.moved", user=moved.user, name=head, former=moved.former)
            log.info("head.moved", head=head, former=moved.former, user=moved.user)
            self._state.moved.unlink(missing_ok=True)

    async def _round(self) -> None:
        now = time.monotonic()
        for unit in self.fleet.units():
            self._judging.listen(unit, now)
        for host in list(self.fleet.hosts.values()):
            self._judging.judge(host, now)
        if not self.fleet.is_stopping:
            self._rollouts.look()
            self._scaling.look()
            self._placing.place()
            await self._save()  # before anything starts: a new head must know where
        for unit in self.fleet.units():
            self._judging.look_at(unit, now)
        if not self.fleet.is_stopping:
            self._end_strays()
            self._rolling.look()
            await self._copies.look()
        self.migrations.sweep()
        self.fleet.line.sweep()
        self._stand_down_if_superseded()
        await self._publish()
        self.fleet.has_served = self.fleet.has_served or self.fleet.is_ready()

    def _stand_down_if_superseded(self) -> None:
        """A head on another host has taken over: to end, and stay so, is all that is left to do."""
        newer = self.fleet.loads.newer_term()
        if is_of_later_seat(newer, self.fleet.term) and not self.stopped.is_set():
            log.warning("head.superseded", term=self.fleet.term, by=newer)
            self._audit.record("head.superseded", term=self.fleet.term, by=newer)
            self.stopped.set()

    async def _wait(self, pause_s: float) -> None:
        wake = self.fleet.line.changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await wake.wait()
            await asyncio.sleep(pause_s)
        wake.clear()

    def _watch(self, host: HostUnit) -> Callable[[], None]:
        def is_changing() -> bool:
            if not host.answers:
                return host.state is HostState.STARTING
            return any(not unit.is_settled for unit in self.fleet.units_on(host.name))

        watch = HostWatch(host, is_changing, self._actions.wake)
        task = self._actions.own(watch.run(), f"watch-{host.name}")
        return lambda: None if task.done() else _cancel(task)

    async def _publish(self) -> None:
        members = self.fleet.members()
        self.fleet.loads.follow(members)
        self._schedule()
        self.scheduler.follow(self.fleet.present(members))
        if self.fleet.line.version or self._knows_enough():
            offers = pool_offers(self.fleet.settings, self.fleet.generations)
            keys = desired_api_keys(self.fleet.settings)
            self.fleet.line.publish(members, self.scheduler.by_prefix, offers, keys)
            self.scheduler.open()

    def _schedule(self) -> None:
        """Have the scheduler go by the settings, and by what operators have changed of them."""
        settings, infos = self.fleet.settings, self.fleet.loads.infos()
        book = self._policy_book
        self.scheduler.configure(
            desired_config(
                settings,
                model,
                book.scheduling(model),
                [each for each in infos if each.pool == pool],
                self.fleet.generation(model.name),
                pool,
            )
            for model in settings.models
            for pool in self.fleet.pools(model.name)
        )
        self.fleet.loads.want_prefixes(self.scheduler.by_prefix)
        paused = book.paused(model.name for model in settings.models)
        self.scheduler.pause(pool for each in paused for pool in self.fleet.pools(each))

    def _knows_enough(self) -> bool:
        """Whether a first list would take away nothing that was merely not looked for yet."""
        unknown = any(host.state is HostState.STARTING for host in self.fleet.hosts.values())
        return not unknown or time.monotonic() > self._since + _FIRST_LIST_S

    async def remember(self) -> None:
        """Write what the next head is to know of units: what an operator was told is done is there.

        Not before the first round, which finds out where they are.

        Raises:
            OSError: The disk refuses.
        """
        if self._saved is not None:
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            placements = self._placing.remembered()
            if placements != self._saved:
                await asyncio.to_thread(save_placements, self._state.placements, placements)
                is_first, self._saved = self._saved is None, placements
                if is_first:
                    self._note_move()

    # ------------------------------------------------------------------ strays

    def _end_strays(self) -> None:
        """End what runs on a host and is not asked for there.

        What nobody knows may yet be taken in (`Scaling`) when all hosts have said what runs there.
        """
        for host in self.fleet.hosts.values():
            if host.view is None or not host.answers:
                continue
            for name, seen in host.view.processes.items():
                unit = self.fleet.unit(name)
                key = host.name, name
                if unit is None and self._placing.is_looking():
                    continue
                is_ours = unit is not None and unit.host in {host.name, ""}
                is_news = host.viewed_at >= self._actions.ended_at.get(key, 0.0)
                if seen.is_running and not is_ours and is_news and key not in self._strays:
                    self._strays.add(key)
                    self._audit.record("process.removed", name=name, host=host.name)
                    self._actions.own(self._end_stray(*key), f"stray-{name}")

    async def _end_stray(self, host: str, name: str) -> None:
        try:
            await self._actions.end_process(host, name, GRACE_S)
        except LlxError as error:
            log.error("process.not_removed", name=name, host=host, error=error)
        finally:
            self._strays.discard((host, name))

    # ------------------------------------------------------------------ what the API asks

    def status(self) -> ClusterStatus:
        """Everything, now."""
        return self.fleet.status()

    def keys(self) -> KeysStatus:
        """Of the cluster's sockets."""
        return keys_status(self.fleet.line, self.fleet.loads)

    def instance(self, name: str) -> InstanceStatus:
        """One instance.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self.fleet.instance(name)

    def restart(
        self, name: str, user: str, deadline_s: float = DRAIN_S
    ) -> InstanceStatus | GatewayStatus:
        """Begin to stop an instance or a gateway, if it runs, and to start it anew.

        The requests of an instance move to others first, or finish until the deadline; likewise
        the streams of a gateway.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: It is being stopped or started, it has no host, or the cluster stops.
            UnreachableError: Its host's agent does not answer.
        """
        unit = self.fleet.named_unit(name)
        self._refuse_while_stopping()
        is_ending = unit.state in {InstanceState.STOPPING, InstanceState.DRAINING}
        if unit.is_busy or is_ending or unit.is_leaving:
            raise ConflictError(f"{name} is being stopped or started", remedy="try again shortly")
        if not unit.host and unit.refusals:  # ask the hosts again that refused it
            unit.refusals.clear()
            self._actions.wake()
            return self.fleet.unit_status(unit)
        if not unit.host:
            raise ConflictError(f"{name} has no host: {unit.detail}")
        if not self.fleet.is_near(unit):
            raise UnreachableError(
                f"{name}: the agent of {unit.host} does not answer", remedy="llx host ls"
            )
        self._actions.note("restarting", unit, user=user)
        unit.is_cordoned = False
        if isinstance(unit.spec, GatewaySpec):
            unit.state, unit.detail = InstanceState.STOPPING, "restart asked for"
            self._actions.act(unit, self._actions.renew(unit, deadline_s))
        else:
            self.instances.begin_restart(unit, user, deadline_s)
        return self.fleet.unit_status(unit)

    def cordon(self, name: str, *, is_on: bool, user: str) -> HostStatus:
        """Give a host nothing new from now on, or use it again; outlives the head.

        Raises:
            NotFoundError: There is none of that name.
        """
        host = self.fleet.host_unit(name)
        if host.is_cordoned is not is_on:
            host.is_cordoned = is_on
            cordoned = frozenset(n for n, each in self.fleet.hosts.items() if each.is_cordoned)
            save_cordons(self._state.cordons, cordoned)
            self._actions.note_host("cordoned" if is_on else "uncordoned", name, user=user)
            self._actions.wake()
        return self.fleet.host(name)

    async def drain_host(self, name: str, deadline_s: float, user: str) -> StopReport:
        """Cordon a host and empty it; its requests move, what there is room for starts elsewhere.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: No other host could take over, it is being emptied, or the cluster stops.
        """
        host = self.fleet.host_unit(name)
        self._refuse_while_stopping()
        others = [each for each in self.fleet.hosts.values() if each is not host]
        if not any(each.state is HostState.READY and not each.is_cordoned for each in others):
            raise ConflictError(f"{name} is the only host in use", remedy="llx down")
        if host.is_draining or host.is_leaving:
            raise ConflictError(f"{name} is being emptied already")
        self.cordon(name, is_on=True, user=user)
        self._actions.note_host("drain_asked", name, user=user, deadline_s=deadline_s)
        host.is_draining = True
        return await asyncio.shield(
            self._actions.own(self._drain(host, deadline_s, user), f"drain-{name}")
        )

    async def _drain(self, host: HostUnit, deadline_s: float, user: str) -> StopReport:
        try:
            done = await self._emptying.empty(self.fleet.units_on(host.name), deadline_s, user)
        finally:
            host.is_draining = False
        report = done.report()
        self._actions.note_host("drained", host.name, user=user, **figures(report))
        return report

    def note(self, verb: str, text: str, user: str) -> None:
        """An operator has done something to the cluster past its head: for the audit trail."""
        log.info("operator.note", verb=verb, text=text, user=user)
        self._audit.record("operator.note", user=user, verb=verb, text=text)

    def settings(self) -> str:
        """What the cluster should be, as YAML."""
        return dump_cluster(self.fleet.settings)

    def reconfigure(
        self, settings: ClusterSettings, user: str, *, is_dry_run: bool = False
    ) -> list[str]:
        """Begin to make the cluster match new settings; returns what changes, in words.

        With `is_dry_run` nothing is changed.

        Raises:
            ConfigError: An API key is not given by its hash.
            ConflictError: They differ in what a running cluster cannot change, or something of an
                earlier change is still under way, or the cluster stops.
        """
        self._refuse_while_stopping()
        if settings == self.fleet.settings:
            return self._rolling.words()
        if is_dry_run:
            return self._converging.plan(settings)
        changes = self._converging.apply(settings, self._save_settings)
        self._audit.record("settings.changed", user=user, changes="; ".join(changes))
        log.info("settings.changed", user=user, changes="; ".join(changes))
        return changes

    def _save_settings(self, settings: ClusterSettings) -> None:
        write_private(self._state.settings, dump_cluster(settings))

    async def read_log(self, name: str, offset: int | None, limit: int, tail: int) -> LogSlice:
        """Part of the log of the head, a gateway, an instance, or a host's agent.

        Raises:
            NotFoundError: There is no such process, or it has no log yet.
            UnreachableError: Its host's agent does not answer.
        """
        unit = self.fleet.unit(name)
        hosts = [each for each in self.fleet.hosts if self.fleet.settings.hosts]
        if name == HEAD:
            path = self._state.head / "log"
            part = await asyncio.to_thread(read_log, path, offset, limit=limit, tail=tail)
        elif unit is not None and unit.host:
            agent = self.fleet.hosts[unit.host].agent
            part = await agent.read_log(name, offset, limit, tail)
        elif name in hosts:
            part = await self.fleet.hosts[name].agent.read_log(AGENT, offset, limit, tail)
        else:
            known = [HEAD, *(each.name for each in self.fleet.units()), *hosts]
            raise no_such("process", name, known)
        return LogSlice(name=name, text=part.text, next_offset=part.next_offset)

    # ------------------------------------------------------------------ the end

    async def stop(self, deadline_s: float, user: str) -> StopReport:
        """Stop everything: the gateways first, their streams may finish until the deadline.

        See `Ending.ask`.
        """
        return await self._ending.ask(deadline_s, user)

    def _refuse_while_stopping(self) -> None:
        if self.fleet.is_stopping:
            raise ConflictError(f"{self.fleet.settings.cluster} is being stopped")


def pause_s(round_s: float) -> float:
    """How long news waits for more of it, after a round during which the loop worked so long.

    That includes what others did while the round waited for a disk or a socket: so it is bounded.
    """
    return min(_LONGEST_PAUSE_S, max(_COALESCE_S, _PAUSE * round_s))


def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()


def _is_starting(unit: Unit) -> bool:
    return unit.is_busy and unit.state is InstanceState.STARTING
