"""`up --rotate` on hosts: every host's file of CURVE keys."""

from llx.bootstrap.fan_out import FanOutError, fan_out
from llx.bootstrap.host_lock import Held
from llx.bootstrap.hosts_plan import HostsPlan
from llx.bootstrap.hosts_world import Crew, HostsWorld
from llx.bootstrap.key_rotation import replace_keys
from llx.bootstrap.local_ports import Observer
from llx.bootstrap.readiness import step
from llx.client import Cluster
from llx.curve import KEYS_FILE, ClusterKeys, parse_ring
from llx.errors import ConfigError, ConflictError, LlxError
from llx.secret import Secret


def rotate_keys(
    plan: HostsPlan,
    crew: Crew,
    held: Held,
    keys: Secret,
    control: Cluster,
    world: HostsWorld,
    observe: Observer,
) -> bool:
    """Replace those of the cluster's sockets; also if an `up` before this one has begun with it.

    Returns whether they were. With a host that failed they stay as they are: `crew.errors` says so
    if it was asked for.

    Args:
        plan: Says whether it was asked for.
        crew: Connections to the hosts, and which have failed.
        held: The head's lock.
        keys: What the head's file says now.
        control: The head's control API.
        world: Clock and sleep.
        observe: Told what goes on.

    Raises:
        ConfigError: The head's file holds no keys.
        DeadlineError: Somebody did not change over.
        LlxError: A host did not get its file, or the head does not answer any more.
    """
    ring = _ring(keys)
    if not plan.rotates and len(ring) == 1:
        return False
    with step("keys", observe) as say:
        if absent := _absent(plan, crew):
            why = f"as before, since {absent} would not get the new ones"
            say.conclude(why)
            if plan.rotates:
                remedy = "`llx up --rotate` again when all hosts are well, or without the lost ones"
                crew.errors["keys"] = ConflictError(why, remedy=remedy)
            return False
        replace_keys(
            ring,
            lambda text: _lay(plan, crew, held, text),
            control.keys,
            clock=world.clock,
            sleep=world.sleep,
            say=say,
        )
        say.conclude("replaced: the former ones are refused")
    return True


def _ring(keys: Secret) -> tuple[ClusterKeys, ...]:
    try:
        return parse_ring(keys.reveal())
    except ValueError:
        raise ConfigError(
            f"the head's {KEYS_FILE} holds no keys", remedy="llx down; llx up"
        ) from None


def _absent(plan: HostsPlan, crew: Crew) -> str:
    """Hosts that failed: without the new keys they could speak to nobody any more."""
    names = {each.name for each in plan.settings.hosts}
    return ", ".join(sorted(names - set(crew.good)))


def _lay(plan: HostsPlan, crew: Crew, held: Held, text: Secret) -> None:
    """Have every host's file say that.

    A later `up` goes by the head's: it is the first to have both sets, and the last to have one.
    """
    head, others = plan.head.name, [each for each in crew.good if each != plan.head.name]

    def lay(name: str) -> None:
        held.require()
        path = f"{crew.layouts[name].state}/{KEYS_FILE}"
        crew.shells[name].put(text.reveal().encode(), path)

    is_last = len(_ring(text)) == 1
    if not is_last:
        lay(head)
    done = fan_out(others, lay).items()
    errors = {name: each for name, each in done if isinstance(each, LlxError)}
    if errors:
        raise FanOutError(
            f"keys: not replaced everywhere: {', '.join(errors)}",
            errors,
            is_partial=True,
            remedy="`llx up` goes on with it; until then everybody can speak to everybody",
        )
    if is_last:
        lay(head)
