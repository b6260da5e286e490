"""`up --rotate` on hosts: other secrets for Ray, by which its processes know each other.

    all hosts are well → the next secrets are noted on the head → Ray ends on every host
    → they are laid on the head, then on the others → Ray starts everywhere → the note goes

Ray's processes with the former and with the next ones could not speak to each other, so none of the
one kind runs when the first of the other starts. Instances and gateways go on meanwhile, as when
the head moves. The note, one file, is what an interrupted `up` leaves to the next:

- nothing of it has been laid: the former secrets are whole. The next `up` begins again, or drops
  it if a host is missing;
- the head has something of it: it counts (`cluster_secrets.read_secrets`), and every `up` gives
  it to whoever does not have it yet.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llx.bootstrap.cluster_secrets import RAY_NOTE, ClusterSecrets, RaySecrets
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.host_lock import Held
from llx.bootstrap.hosts_plan import HostsPlan
from llx.bootstrap.hosts_world import Crew
from llx.bootstrap.key_checks import RaySight
from llx.bootstrap.local_ports import Observer
from llx.bootstrap.play import Proceed, play
from llx.bootstrap.playbook import load_playbook
from llx.bootstrap.readiness import step
from llx.bootstrap.shell import Shell
from llx.bootstrap.tls import ends_at, made_at
from llx.errors import ConflictError, HostError, LlxError

_STEP = "Ray's secrets"


def has_note(shell: Shell, layout: HostLayout) -> bool:
    """Whether an `up --rotate` has not come to its end; asked of the head's host."""
    note = shell.read(f"{layout.state}/{RAY_NOTE}") or b""
    return RaySecrets.parse(note.decode(errors="replace")) is not None


def sight(crew: Crew, head: str, *, has_tls: bool) -> RaySight:
    """What hosts and head have of Ray's secrets; who cannot be asked is left out."""

    def read(name: str) -> list[float]:
        tls = f"{crew.layouts[name].state}/tls"
        pems = [crew.shells[name].read(f"{tls}/{each}.pem") or b"" for each in ("ca", "host")]
        return [end for pem in pems if (end := ends_at(pem.decode(errors="replace"))) is not None]

    found = fan_out(list(crew.shells), read) if has_tls else {}
    ends = {name: min(each) for name, each in found.items() if isinstance(each, list) and each}
    made, is_half = None, False
    with contextlib.suppress(LlxError):
        if head in crew.shells:
            shell, layout = crew.shells[head], crew.layouts[head]
            authority = shell.read(f"{layout.state}/tls/ca.pem") or b""
            made = made_at(authority.decode(errors="replace"))
            is_half = has_note(shell, layout)
    return RaySight(made, ends, is_half)


def begin_renewal(
    plan: HostsPlan, crew: Crew, held: Held, cluster: ClusterSecrets, observe: Observer
) -> ClusterSecrets:
    """End Ray on every host, if its secrets are to be replaced; returns those that are to be laid.

    With a host that failed they are as before: `crew.errors` says so if it was asked for.

    Args:
        plan: Says whether it was asked for.
        crew: Connections to the hosts, and which have failed. Gets who fails here.
        held: The head's lock.
        cluster: As read from the head.
        observe: Told what goes on.

    Raises:
        LlxError: The head's host failed.
    """
    if cluster.is_ray_being_laid or (cluster.next_ray is None and not plan.rotates):
        return cluster
    shell = crew.shells[plan.head.name]
    note = f"{crew.layouts[plan.head.name].state}/{RAY_NOTE}"
    with step(_STEP, observe) as say:
        missing = sorted({each.name for each in plan.settings.hosts} - set(crew.good))
        if not missing:
            following = cluster.next_ray or RaySecrets.create()
            held.require()
            shell.put(following.dump().reveal().encode(), note)
            say("Ray ends on all hosts; what serves goes on")
            failed = _rest_all(plan, crew, held)
            if not failed:
                say.conclude("the former ones end with Ray's processes")
                return replace(cluster.with_ray(following), next_ray=following)
            crew.errors |= failed
            missing = sorted(failed)
        held.require()
        _forget(shell, note)
        why = f"as before, since {', '.join(missing)} would not get the new ones"
        say.conclude(why)
        if plan.rotates:
            remedy = "`llx up --rotate` again when all hosts are well, or without the lost ones"
            crew.errors[_STEP] = ConflictError(why, remedy=remedy)
    return replace(cluster, next_ray=None)


def end_renewal(plan: HostsPlan, crew: Crew, held: Held, cluster: ClusterSecrets) -> bool:
    """Take the note away if every host has what it says; returns whether it was."""
    if not cluster.is_ray_being_laid or {e.name for e in plan.settings.hosts} - set(crew.good):
        return False
    head = plan.head.name
    held.require()
    _forget(crew.shells[head], f"{crew.layouts[head].state}/{RAY_NOTE}")
    return True


def rest(shell: Shell, layout: HostLayout, log_dir: Path, proceed: Proceed) -> None:
    """End Ray on a host, and with it a control plane; instances and gateways go on.

    Raises:
        HostError: It cannot be ended.
        UnreachableError: The host does not answer any more.
    """
    log = log_dir / f"{shell.host}.log"
    values = {"spec": str(layout.spec)}
    play(load_playbook("rest"), shell, values, layout=layout, log=log, proceed=proceed)


def _rest_all(plan: HostsPlan, crew: Crew, held: Held) -> Mapping[str, LlxError]:
    """All at once: a node that is left alone would try in vain to join again."""
    log_dir = plan.state_dir / "hosts"

    def work(name: str) -> None:
        rest(crew.shells[name], crew.layouts[name], log_dir, held.require)

    done = fan_out(crew.good, work).items()
    return {name: each for name, each in done if isinstance(each, LlxError)}


def _forget(shell: Shell, note: str) -> None:
    done = shell.run(["rm", "-f", "--", note])
    if not done.is_success:
        raise HostError(
            f"cannot remove {note}", host=shell.host, step=_STEP,
            process_exit_code=done.exit_code, stderr_tail=done.stderr_tail,
            remedy="see what it says, then repeat the command",
        )  # fmt: skip
