"""The control plane moves to another host: where it is by what the hosts say, and seating it anew.

    survey → who is the head, by the host that has heard of the newest term
    the former head's host answers: its Ray ends there (instances and gateways go on), its files are
    read; it does not: no other host may reach its ports, the newest copy of its files counts
    → secrets, files and a term beyond all others are put on the new head's host

What follows is an `up` like any other: every host is given its new specification, for which Ray is
started again there, and the new head finds what runs.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import yaml

from llx.agent.names import AGENT
from llx.bootstrap.cluster_secrets import RAY_NOTE, ClusterSecrets, new_secrets, read_secrets
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_world import Crew
from llx.bootstrap.play import Proceed
from llx.bootstrap.ray_renewal import rest
from llx.bootstrap.shell import Shell
from llx.core.model import Term, next_seat
from llx.errors import ConfigError, ConflictError, HostError, LlxError
from llx.head_copy import COPY_FILE, MOVED_FILE, STATE_FILES, HeadCopy, HeadMoved, rolling
from llx.host_ports import HostPorts
from llx.secret import Secret
from llx.settings import ClusterSettings, dump_cluster
from llx.specs import HostSpec
from llx.yaml_reader import read_yaml

_DIAL_S = 3.0
_SETTINGS, *_OTHER_FILES = STATE_FILES


@dataclass(frozen=True, slots=True)
class Sight:
    """What a host knows of the cluster's head.

    Attributes:
        spec: What its processes are told.
        own_term: The last of a head on this host; 0: there was none.
        heard_term: The newest that its node agent has heard.
        copy: Of the head's files, if the head was elsewhere.
    """

    spec: HostSpec
    own_term: Term
    heard_term: Term
    copy: HeadCopy | None

    @property
    def newest_term(self) -> Term:
        """The newest that is known there."""
        copied = Term(0) if self.copy is None else self.copy.term
        return max(self.own_term, self.heard_term, copied)


@dataclass(frozen=True, slots=True)
class HeadMove:
    """A move of the head that is to be made.

    Attributes:
        host: Where to.
        former: The host where it is, or was.
        is_former_near: It can be reached: the control plane there is ended first.
        away: Hosts that are lost: what was there is to run elsewhere. One that merely this machine
            does not reach is none of them; the next head finds out by itself.
        sights: Of the hosts that can be, by name.
    """

    host: str
    former: str
    is_former_near: bool
    away: tuple[str, ...]
    sights: Mapping[str, Sight]

    def describe(self) -> str:
        """What is going to be done, in words."""
        if self.is_former_near:
            how = f"the control plane on {self.former} is ended first"
        else:
            how = f"{self.former} is out of reach, and must not come back before this is done"
        return f"moves from {self.former} to {self.host}: {how}; what serves goes on"


def survey(crew: Crew, names: Sequence[str]) -> dict[str, Sight]:
    """What these hosts know of the head; those that are not part of the cluster are left out."""

    def work(name: str) -> Sight | None:
        return _sight(crew.shells[name], crew.layouts[name])

    found = fan_out([name for name in names if name in crew.shells], work)
    return {name: each for name, each in found.items() if isinstance(each, Sight)}


def head_of(sights: Mapping[str, Sight]) -> HostSpec | None:
    """The specification that names the present head; None: no host is part of the cluster."""
    if not sights:
        return None
    return max(sights.values(), key=lambda each: (each.newest_term, _names_itself(each))).spec


def refuse_stale_head(sights: Mapping[str, Sight], head: str) -> None:
    """See that no host obeys a head elsewhere, to which it has moved since.

    Raises:
        ConflictError: One does: to start another one there would be one too many.
    """
    newest = head_of(sights)
    if newest is not None and newest.head != head:
        raise ConflictError(
            f"cluster {newest.cluster}: its head is {newest.head}, not {head}",
            remedy=f"set `head: {newest.head}`; or `llx up --head {head}` moves it",
        )


def find_move(crew: Crew, sights: Mapping[str, Sight], head: str) -> HeadMove | None:
    """What it takes to have the head on that host; None: it is there, or there is no cluster.

    Raises:
        ConflictError: The host is not part of the running cluster; or the present head's host is
            alive, and only this machine cannot reach it.
    """
    newest = head_of(sights)
    if newest is None or newest.head == head:
        return None
    if head not in sights or sights[head].spec.cluster_id != newest.cluster_id:
        raise ConflictError(
            f"host {head} is not part of the running cluster {newest.cluster}",
            remedy=f"one of {', '.join(sights)} can be its head; another host after `llx up` or "
            "`llx host add`",
        )
    former = newest.head
    is_near = former in crew.shells
    if not is_near:
        _refuse_alive(crew, sights, newest)
    return HeadMove(head, former, is_near, () if is_near else (former,), sights)


def confirm_move(move: HeadMove, crew: Crew, back: Crew) -> HeadMove:
    """The move as it is to be made now that the cluster is locked.

    Args:
        move: What was planned, perhaps minutes ago.
        crew: Connections to the hosts, as then.
        back: A new attempt at the former head's host, if that was out of reach.

    Raises:
        ConflictError: The head was moved meanwhile, or its host is back.
    """
    remedy = "repeat the command: it looks anew"
    if back.shells:
        raise ConflictError(f"host {move.former} can be reached again", remedy=remedy)
    now = find_move(crew, survey(crew, list(move.sights)), move.host)
    if now is None or now.former != move.former:
        where = move.host if now is None else now.former
        raise ConflictError(f"the head is on {where} by now, not {move.former}", remedy=remedy)
    return now


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a head that does not answer.

    Attributes:
        settings: What the cluster was told last; None: nobody kept it, or it cannot be read.
        rolling: Models of which a rollout is under way.
    """

    settings: ClusterSettings | None
    rolling: list[str]


def kept(move: HeadMove, crew: Crew) -> Kept:
    """On the former head's host, or in the newest copy of its files."""
    if move.is_former_near:
        files = _read_files(crew.shells[move.former], crew.layouts[move.former])
    else:
        files = newest_copy(move.sights)
    return Kept(_parsed(files.get(_SETTINGS)), rolling(files))


def seat_head(
    move: HeadMove,
    crew: Crew,
    settings: ClusterSettings,
    *,
    user: str,
    log_dir: Path,
    proceed: Proceed,
) -> None:
    """End the former control plane, if it is near, and lay out its heritage for the next.

    Args:
        move: Of `find_move`.
        crew: Connections to the hosts.
        settings: What the next head begins with if nobody kept those of the former.
        user: Who is at work.
        log_dir: Gets the hosts' logs.
        proceed: Raises when the work must stop.

    Raises:
        HostError: A step failed.
        UnreachableError: A host does not answer any more.
    """
    secrets = None
    if move.is_former_near:
        shell, layout = crew.shells[move.former], crew.layouts[move.former]
        rest(shell, layout, log_dir, proceed)
        secrets = read_secrets(shell, layout)
        files = _read_files(shell, layout)
        sight = _sight(shell, layout)
        terms = [sight.newest_term] if sight is not None else []
    else:
        files, terms = newest_copy(move.sights), []
    terms += [each.newest_term for each in move.sights.values()]
    shell, layout = crew.shells[move.host], crew.layouts[move.host]
    if secrets is None:
        secrets = _inherited(shell, layout, move.sights[move.host].spec)
    proceed()
    files[_SETTINGS] = _settings_text(files.get(_SETTINGS), settings, move.host)
    moved = HeadMoved(move.former, user, list(move.away))
    files[MOVED_FILE] = msgspec.json.encode(moved).decode()
    files["term"] = f"{next_seat(max(terms))}\n"
    _lay_out(shell, layout, secrets, files)


def newest_copy(sights: Mapping[str, Sight]) -> dict[str, str]:
    """The files of the newest copy that any host has; none if nobody has one."""
    copies = [each.copy for each in sights.values() if each.copy is not None]
    if not copies:
        return {}
    return dict(max(copies, key=lambda each: (each.term, each.number)).files)


def _sight(shell: Shell, layout: HostLayout) -> Sight | None:
    """None: the host is not part of the cluster, or of one of another release."""
    try:
        spec = msgspec.json.decode(shell.read(str(layout.spec)) or b"", type=HostSpec)
    except msgspec.DecodeError:
        return None
    heard = (shell.read(f"{layout.procs}/{AGENT}/term") or b"").decode(errors="replace")
    cluster_id, _, term = heard.partition(" ")
    copy = None
    with contextlib.suppress(msgspec.DecodeError):
        content = shell.read(f"{layout.state}/{COPY_FILE}", limit=64 << 20)
        copy = msgspec.json.decode(content or b"", type=HeadCopy)
    return Sight(
        spec,
        own_term=_term((shell.read(f"{layout.state}/term") or b"").decode(errors="replace")),
        heard_term=_term(term) if cluster_id == spec.cluster_id else Term(0),
        copy=copy,
    )


def _term(text: str) -> Term:
    return Term(int(text)) if text.strip().isdecimal() else Term(0)


def _names_itself(sight: Sight) -> bool:
    return sight.spec.is_head


def _refuse_alive(crew: Crew, sights: Mapping[str, Sight], spec: HostSpec) -> None:
    """A head that other hosts reach is not lost, whatever this machine reaches."""
    ports = HostPorts(spec.first_port)

    def work(name: str) -> list[int]:
        return [
            port
            for port in (ports.gcs, ports.scheduler)
            if _answers(crew.shells[name], spec.head_address, port)
        ]

    found = fan_out([name for name in sights if name in crew.shells], work)
    near = [name for name, ports_found in found.items() if ports_found and _is_list(ports_found)]
    if near:
        raise ConflictError(
            f"the head's host {spec.head} is alive: {', '.join(near)} reach it at "
            f"{spec.head_address}, only this machine does not",
            remedy=f"make `ssh` to {spec.head} work from here, and its control plane is moved in "
            "good order; or switch that machine off first",
        )


def _is_list(found: list[int] | LlxError) -> bool:
    return isinstance(found, list)


def _answers(shell: Shell, address: str, port: int) -> bool:
    try:
        shell.dial(address, port, timeout_s=_DIAL_S).close()
    except LlxError:
        return False
    return True


def _read_files(shell: Shell, layout: HostLayout) -> dict[str, str]:
    files = {}
    for name in STATE_FILES:
        content = shell.read(f"{layout.state}/{name}", limit=64 << 20)
        if content is not None:
            files[name] = content.decode(errors="replace")
    return files


def _inherited(shell: Shell, layout: HostLayout, spec: HostSpec) -> ClusterSecrets:
    """What every host has of the cluster's secrets; what the former head alone had is made anew.

    Ray starts again everywhere, with another token and certificates of a new authority. The former
    head is let in by nobody then.
    """
    keys = shell.read(f"{layout.state}/keys.json")
    if not keys:
        raise HostError(
            "it has not the cluster's keys", host=shell.host, step="head", process_exit_code=1,
            stderr_tail="", remedy="choose another host for the head",
        )  # fmt: skip
    return replace(new_secrets(spec.cluster_id), keys=Secret(keys.decode()))


def _settings_text(kept: str | None, wanted: ClusterSettings, head: str) -> str:
    """What the cluster was told last, but for its head; `wanted` if that cannot be read."""
    settings = _parsed(kept)
    if settings is None or head not in {each.name for each in settings.hosts}:
        settings = wanted
    return dump_cluster(settings.model_copy(update={"head": head}))


def _parsed(kept: str | None) -> ClusterSettings | None:
    if kept is not None:
        with contextlib.suppress(ConfigError, yaml.YAMLError):
            values = yaml.safe_load(kept)
            return read_yaml("settings", ClusterSettings, base=Path("/"), values=values)
    return None


def _lay_out(
    shell: Shell, layout: HostLayout, secrets: ClusterSecrets, files: Mapping[str, str]
) -> None:
    """Write all that makes a host the head's; what an earlier head has left there goes."""
    state = layout.state
    gone = [f"{state}/{name}" for name in _OTHER_FILES if name not in files]
    # The host's certificate is the former authority's, and a new one is issued where there is none.
    stale = [f"{state}/tls/host.pem", f"{layout.procs}/head/status.json", f"{state}/gcs"]
    stale += [f"{state}/{COPY_FILE}", f"{state}/{RAY_NOTE}"]
    done = shell.run(["rm", "-rf", "--", *gone, *stale])
    if done.is_success:
        done = shell.run(["mkdir", "-p", "-m", "700", f"{state}/tls"])
    if not done.is_success:
        raise HostError(
            "cannot make room for the head", host=shell.host, step="head",
            process_exit_code=done.exit_code, stderr_tail=done.stderr_tail,
            remedy="see what it says, then repeat the command",
        )  # fmt: skip
    shell.put(secrets.ray_token.reveal().encode(), f"{state}/ray.token")
    for name, authority in (("ca", secrets.authority), ("gateway-ca", secrets.gateway_authority)):
        shell.put(authority.cert_pem.encode(), f"{state}/tls/{name}.pem")
        shell.put(authority.key_pem.reveal().encode(), f"{state}/tls/{name}.key")
    shell.put(secrets.control_token.reveal().encode(), f"{state}/token")
    for name, content in files.items():
        shell.put(content.encode(), f"{state}/{name}")
