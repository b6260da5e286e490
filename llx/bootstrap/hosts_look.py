"""The look before the leap, on hosts: connect, gather facts, refuse what cannot work, say the plan.

Changes nothing on any host. Acting on what was found is `llx.bootstrap.hosts_up`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llx import __version__
from llx.bootstrap import host_preflight
from llx.bootstrap.facts import load_vllm_arguments
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.gateway_tls import describe_certificate
from llx.bootstrap.head_move import (
    HeadMove,
    find_move,
    kept,
    refuse_stale_head,
    survey,
)
from llx.bootstrap.host_facts import HostFacts, gather
from llx.bootstrap.hosts_plan import HostsPlan, head_settings, hub_model_of
from llx.bootstrap.hosts_world import Crew, HostsWorld, connect_all, settings_of
from llx.bootstrap.left_hosts import is_same_place
from llx.bootstrap.local_ports import Observer
from llx.bootstrap.preflight import GIB, PreflightError, find_arguments
from llx.bootstrap.ray_renewal import has_note
from llx.bootstrap.reachability import Route, find_blocked, find_forbidden, probe_routes
from llx.bootstrap.readiness import step
from llx.bootstrap.upgrade import (
    plan_upgrade,
    refuse_other_release,
    refuse_other_release_of,
)
from llx.errors import ConflictError, LlxError, UnreachableError
from llx.settings import (
    ClusterSettings,
    HostSettings,
    ModelSettings,
    Platform,
    differing_keys,
    dump_cluster,
)
from llx.settings_changes import compare

_QUIET = frozenset({"sudo"})
"""What `llx doctor` warns of and `up` need not: only the firewall playbook wants it."""


@dataclass(slots=True)
class Outlook:
    """What `look` found. Close it.

    Attributes:
        plan: What is asked for.
        crew: Connections to the hosts asked for.
        leaving: To those that are no longer, whose settings are in `leaving_hosts`.
        facts: Of the hosts that can be reached.
        platform: What engines compute on.
        python_version: The release of Python that all hosts use (`host_python.common_version`).
        addresses: By which hosts reach each other.
        verb: What the operator called.
        before: The settings the cluster runs with, as this machine remembers them.
        is_running: Its head's host says that it is up.
        changes: What the head says that the settings change, in words; None: it was not asked.
        move: How the head gets to its host, if it is elsewhere.
        renews_ray: Ray's secrets are to be replaced, or an `up` before has begun with it.
        keeps_settings: A running cluster keeps those it has: `plan` says where its hosts are, and
            the rest of it may be out of date.
        warnings: What does not stand in the way but should be known.
    """

    plan: HostsPlan
    crew: Crew
    leaving: Crew
    leaving_hosts: tuple[HostSettings, ...]
    facts: dict[str, HostFacts]
    platform: Platform
    python_version: str | None
    addresses: dict[str, str]
    verb: str
    before: ClusterSettings | None
    is_running: bool
    changes: list[str] | None = None
    move: HeadMove | None = None
    renews_ray: bool = False
    keeps_settings: bool = False
    warnings: list[host_preflight.HostFinding] = field(default_factory=list)

    def close(self) -> None:
        """End the connections."""
        self.crew.close()
        self.leaving.close()


def look(
    plan: HostsPlan,
    before: ClusterSettings | None,
    world: HostsWorld,
    observe: Observer,
    verb: str = "up",
    *,
    moves_head: bool = False,
    keeps_settings: bool = False,
) -> Outlook:
    """Connect, gather facts, and refuse what cannot work. Changes nothing on any host.

    A `verb` other than ``up`` changes hosts alone: it goes by the settings that this machine
    remembers. With `moves_head` the head may be elsewhere so far; for `keeps_settings` see
    `Outlook`.

    Raises:
        PreflightError: With all findings, of all hosts.
        ConflictError: The cluster runs and the change asked for needs `down` first.
    """
    settings = plan.settings
    if not moves_head:
        refuse_other_head(before, plan)
    refuse_arguments(settings)
    leaving_hosts = _leaving(before, settings)
    _refuse_twins(leaving_hosts, settings, {})
    with step("connect", observe) as say:
        crew = connect_all(settings.hosts, settings.cluster, world.connect)
        say.conclude(f"{len(crew.shells)} of {len(settings.hosts)} hosts")
    leaving = connect_all(leaving_hosts, settings.cluster, world.connect)
    try:
        with step("preflight", observe) as say:
            found = _facts(crew, plan)
            facts = {name: each for name, each in found.items() if isinstance(each, HostFacts)}
            head = facts.get(plan.head.name)
            is_running = head is not None and head.is_cluster_running
            platform = host_preflight.decide_platform(settings, facts)
            findings = host_preflight.find(
                settings,
                found,
                platform=platform,
                has_tiny_model=plan.has_tiny_model,
                copies=host_preflight.copy_sizes(settings),
                running=_expected(before, settings, is_running=is_running, moves_head=moves_head),
            )
            addresses = _addresses(settings, facts, before)
            _refuse_twins(leaving_hosts, settings, addresses)
            findings += find_blocked(_new_routes(settings, crew, facts, addresses))
            findings += find_forbidden(settings, crew.shells)
            fatal = [each for each in findings if each.is_fatal]
            if fatal:
                raise host_preflight.HostPreflightError(fatal)
            move = _head_move(plan, crew, facts, moves_head=moves_head)
            say.conclude(_in_short(facts))
        outlook = Outlook(
            plan=plan,
            crew=crew,
            leaving=leaving,
            leaving_hosts=leaving_hosts,
            facts=facts,
            platform=platform,
            python_version=host_preflight.python_version(settings, facts, platform),
            addresses=addresses,
            verb=verb,
            before=before,
            is_running=is_running or move is not None,
            move=move,
            renews_ray=_renews_ray(plan, crew, move, is_running=is_running or move is not None),
            keeps_settings=keeps_settings,
            warnings=[e for e in findings if not e.is_fatal and e.subject not in _QUIET],
        )
        if outlook.renews_ray:
            _refuse_leaving(plan, leaving)
        if outlook.is_running or plan.upgrade_deadline_s is not None:
            outlook.changes = ask_head(outlook, world)
        else:
            refuse_other_release_of(facts, settings.cluster)
    except BaseException:
        crew.close()
        leaving.close()
        raise
    crew.errors |= {name: each for name, each in found.items() if isinstance(each, LlxError)}
    if plan.upgrade_deadline_s is not None and crew.errors:
        outlook.close()
        raise ConflictError(
            f"out of reach: {', '.join(sorted(crew.errors))}: a host that misses an upgrade is of"
            " no use after it",
            remedy="llx doctor; bring them back, or llx host rm NAME --forget",
        )
    return outlook


def ask_head(outlook: Outlook, world: HostsWorld) -> list[str] | None:
    """May the running cluster become that, and what does it change? None: nothing says so.

    One that is upgraded must say so itself.

    A head that is to be moved is asked where it is. For one that does not answer the settings count
    that it has left; if it stays where it is it reads ours when it starts.

    Raises:
        ConflictError: It may not; it has hosts that this machine does not know; or it is of another
            release of llx, or of this one and is to be brought to it.
        UnreachableError: It is to be brought to this release, and its head does not answer.
    """
    plan, move = outlook.plan, outlook.move
    head = plan.head.name if move is None else move.former
    wanted = head_settings(plan, outlook.platform, outlook.addresses)
    wanted = wanted.model_copy(update={"head": head})
    changes = None
    try:
        if head not in outlook.crew.shells:
            raise UnreachableError(f"{head}: out of reach")
        with world.control(outlook.crew.shells[head], outlook.crew.layouts[head]) as control:
            if plan.upgrade_deadline_s is not None:
                changes = plan_upgrade(control, plan.upgrade_deadline_s)
            else:
                refuse_other_release(control.status())
            if not outlook.keeps_settings:
                changes = control.put_settings(dump_cluster(wanted), is_dry_run=True)
            running = settings_of(control)
    except UnreachableError:
        if plan.upgrade_deadline_s is not None:  # of what release it is nobody could say
            raise
        refuse_other_release_of(outlook.facts, plan.settings.cluster)
        left = None if move is None else kept(move, outlook.crew)
        if left is None or left.settings is None:
            return None
        running = left.settings.model_copy(update={"head": head})
        if not outlook.keeps_settings:
            changes = _foresee(running, wanted, left.rolling)
    _refuse_strangers(running, plan.settings, outlook.leaving_hosts)
    if outlook.verb != "up" and not outlook.keeps_settings:
        _refuse_other_settings(running, wanted)
    return changes


def describe(outlook: Outlook) -> list[tuple[str, str]]:
    """The plan in words: (what, how), in the order of doing."""
    plan, settings = outlook.plan, outlook.plan.settings
    rows = [("cluster", f"{settings.cluster}, llx {__version__}, {outlook.platform}")]
    if outlook.move is not None:
        rows.append(("head", outlook.move.describe()))
    if outlook.renews_ray:
        rows.append(("Ray", _renewal(outlook)))
    for host in settings.hosts:
        role = "head, " if host.name == plan.head.name else ""
        facts = outlook.facts.get(host.name)
        what = _host_in_short(facts) if facts is not None else "out of reach: left alone"
        rows.append((f"host {host.name}", f"{role}{host.address}: {what}"))
    rows += [
        (f"host {each.name}", "is to leave the cluster: emptied, stopped")
        for each in outlook.leaving_hosts
    ]
    rows += [
        (
            f"model {model.name}",
            f"{model.instances.min} × {model.engine} of {model.model}"
            + (f", tensor parallel {model.tensor_parallel}" if model.tensor_parallel > 1 else "")
            + _fetching(outlook, model),
        )
        for model in settings.models
    ]
    keys = len(settings.gateway.api_keys)
    access = f"{keys} API keys" if keys else "no API keys: open to whoever reaches it"
    gateway = settings.gateway
    rows.append(("gateways", f"{settings.num_gateways} × {gateway.host}:{gateway.port}, {access}"))
    if gateway.tls is not None:
        is_kept = plan.certificate is None and not gateway.tls.generated
        what = "as it is" if is_kept else describe_certificate(plan.certificate)
        rows.append(("certificate", what))
    first = settings.network.first_port
    secured = "TLS and token" if settings.network.tls else "token, no TLS"
    rows.append(("ports", f"{first}-{first + 999} between hosts; Ray with {secured}"))
    if outlook.changes is not None:
        rows += [("change", each) for each in outlook.changes or ["nothing"]]
    return rows


def _expected(
    before: ClusterSettings | None,
    settings: ClusterSettings,
    *,
    is_running: bool,
    moves_head: bool,
) -> list[str]:
    """Hosts that a running cluster has: one of them out of reach stops nothing."""
    if moves_head:
        return [each.name for each in (before or settings).hosts]
    return [each.name for each in before.hosts] if before and is_running else []


def _head_move(
    plan: HostsPlan, crew: Crew, facts: Mapping[str, HostFacts], *, moves_head: bool
) -> HeadMove | None:
    """What it takes to have the head where it is to be; None: it is there.

    Raises:
        ConflictError: It is elsewhere and shall stay there, or cannot be moved.
    """
    head = plan.head.name
    running = [name for name, each in facts.items() if each.is_cluster_running]
    sights = survey(crew, [*running, *(name for name in [head] if name not in running)])
    ids = {sights[name].spec.cluster_id for name in running if name in sights}
    if ids:
        sights = {n: each for n, each in sights.items() if each.spec.cluster_id in ids}
    if not moves_head:
        refuse_stale_head(sights, head)
        return None
    return find_move(crew, sights, head)


def _renews_ray(plan: HostsPlan, crew: Crew, move: HeadMove | None, *, is_running: bool) -> bool:
    head = plan.head.name if move is None else move.former
    if head in crew.shells and has_note(crew.shells[head], crew.layouts[head]):
        return True  # also where nothing runs on the head's host: `up --rotate` has ended Ray there
    return is_running and plan.rotates


def _refuse_leaving(plan: HostsPlan, leaving: Crew) -> None:
    """Without Ray's next secrets nobody there could be told to move its requests away."""
    if leaving.shells:
        raise ConflictError(
            f"Ray's secrets cannot be replaced while {', '.join(leaving.shells)} is to leave",
            remedy="`llx up` first, without --rotate"
            if plan.rotates
            else "`llx up` first, with all hosts: it goes on with the `up --rotate` before it; or "
            "switch it off and `llx host rm --forget` it",
        )


def _renewal(outlook: Outlook) -> str:
    missing = [e.name for e in outlook.plan.settings.hosts if e.name not in outlook.facts]
    if missing:
        return f"its token and certificates stay, since {', '.join(missing)} is out of reach"
    return (
        "started anew on every host, with another token, authority and certificates: control is "
        "away for about half a minute, streams go on"
    )


def _fetching(outlook: Outlook, model: ModelSettings) -> str:
    """Who has to fetch it from the hub first; its size only the hub knows."""
    hub_model = hub_model_of(model)
    if hub_model is None:
        return ""
    missing = [n for n, each in outlook.facts.items() if hub_model.name not in each.models]
    return f"; fetched from the hub first: {hub_model} to {', '.join(missing)}" if missing else ""


def _host_in_short(facts: HostFacts) -> str:
    gpus = f", {len(facts.gpus)} GPUs" if facts.gpus else ""
    memory = f"{(facts.memory_available_bytes or 0) / GIB:.0f} GiB free"
    return f"{facts.cpu_count} cores, {memory}{gpus}"


def _in_short(facts: Mapping[str, HostFacts]) -> str:
    cores = sum(each.cpu_count or 0 for each in facts.values())
    gpus = sum(len(each.gpus) for each in facts.values())
    memory = sum(each.memory_available_bytes or 0 for each in facts.values()) / GIB
    return f"{cores} cores, {memory:.0f} GiB free" + (f", {gpus} GPUs" if gpus else "")


def _facts(crew: Crew, plan: HostsPlan) -> dict[str, HostFacts | LlxError]:
    by_name = {each.name: each for each in plan.settings.hosts}

    def work(name: str) -> HostFacts:
        return gather(crew.shells[name], by_name[name], plan.settings)

    return {**crew.errors, **fan_out(list(crew.shells), work)}


def _addresses(
    settings: ClusterSettings, facts: Mapping[str, HostFacts], before: ClusterSettings | None
) -> dict[str, str]:
    """Cluster addresses; of hosts out of reach, what was said or remembered."""
    remembered = {each.name: each.cluster_address for each in before.hosts} if before else {}
    found = {}
    for host in settings.hosts:
        seen = facts[host.name].server_address if host.name in facts else None
        address = host.cluster_address or seen or remembered.get(host.name)
        if address:
            found[host.name] = address
    return found


def _leaving(before: ClusterSettings | None, settings: ClusterSettings) -> tuple[HostSettings, ...]:
    if before is None:
        return ()
    kept = {each.name for each in settings.hosts}
    return tuple(each for each in before.hosts if each.name not in kept)


def _new_routes(
    settings: ClusterSettings,
    crew: Crew,
    facts: Mapping[str, HostFacts],
    addresses: Mapping[str, str],
) -> list[Route]:
    """Between hosts that the cluster does not run on yet and the others."""
    new = {name for name, each in facts.items() if not each.is_cluster_running}
    if not new or len(facts) < 2:
        return []
    shells = {name: crew.shells[name] for name in facts}
    routes = probe_routes(settings, shells, addresses)
    return [each for each in routes if each.source in new or each.target in new]


def _refuse_twins(
    leaving: Sequence[HostSettings], settings: ClusterSettings, addresses: Mapping[str, str]
) -> None:
    """A machine under a new name would be brought up as the one and taken down as the other."""
    for old in leaving:
        for new in settings.hosts:
            address = addresses.get(new.name)
            is_one = is_same_place(old, new) or (address and address == old.cluster_address)
            if is_one and old.user == new.user:
                raise ConflictError(
                    f"host {new.name} is the machine that the cluster calls {old.name}",
                    remedy=f"keep the name {old.name}; or `llx host rm {old.name}` first",
                )


def _foresee(
    running: ClusterSettings, wanted: ClusterSettings, rolling: Sequence[str]
) -> list[str]:
    """What a head that is yet to be seated will change, once it is told these settings.

    Raises:
        ConflictError: It will refuse them: then it is not seated with them.
    """
    if running == wanted:
        return []
    remedy = "without FILE, `llx up --head` moves the head and changes nothing else"
    if rolling:
        raise ConflictError(
            f"cluster {wanted.cluster} has other settings than these, and cannot be given them"
            f" while {', '.join(rolling)} is being rolled out",
            remedy=remedy,
        )
    found = compare(running, wanted)
    if found.refused:
        raise ConflictError(
            f"cluster {wanted.cluster} runs with other settings than these, and these keys cannot"
            f" be changed while it does: {', '.join(found.refused)}",
            remedy=f"bring the file up to date; {remedy}",
        )
    return found.words


def _refuse_strangers(
    running: ClusterSettings, wanted: ClusterSettings, leaving: Sequence[HostSettings]
) -> None:
    """Hosts that this machine knows nothing of would be emptied and never left."""
    known = {each.name for each in (*wanted.hosts, *leaving)}
    strange = [each.name for each in running.hosts if each.name not in known]
    if strange:
        raise ConflictError(
            f"cluster {wanted.cluster} has hosts that this machine does not know:"
            f" {', '.join(strange)}",
            remedy="add them to cluster.yaml; to remove them, `llx host rm` after an `up` that"
            " has them",
        )


def _refuse_other_settings(running: ClusterSettings, wanted: ClusterSettings) -> None:
    """`host add` and `host rm` go by what this machine remembers: it may be out of date."""
    ours, theirs = (
        each.model_copy(update={"hosts": (), "head": None}) for each in (wanted, running)
    )
    keys = differing_keys(ours, theirs)
    if keys:
        raise ConflictError(
            f"cluster {wanted.cluster} was changed from another machine: {', '.join(keys)}",
            remedy="llx up FILE, with a file that has both that change and this one",
        )


def refuse_arguments(settings: ClusterSettings) -> None:
    """See that vLLM knows all `engine_args` and `serve_args`.

    Raises:
        PreflightError: Some it does not; with the nearest that it does.
    """
    arguments = load_vllm_arguments()
    findings = [each for model in settings.models for each in find_arguments(model, arguments)]
    if findings:
        raise PreflightError(findings)


def refuse_other_head(before: ClusterSettings | None, plan: HostsPlan) -> None:
    """See that the head stays where it is.

    Raises:
        ConflictError: It would not.
    """
    was = before.head_host if before is not None else None
    if was is not None and (was.name, was.address) != (plan.head.name, plan.head.address):
        raise ConflictError(
            f"cluster {plan.settings.cluster}: its head is {was.name}, not {plan.head.name}",
            remedy=f"set `head: {was.name}`; or `llx up --head {plan.head.name}` moves it",
        )
