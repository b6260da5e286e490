"""Is this the host it was? The key it shows against known_hosts, and what to do about a new one."""

import shlex
import threading
from collections.abc import Callable

from llx.bootstrap.known_hosts import HostKey, KnownKey, known_keys, remember
from llx.bootstrap.ssh_target import HostKeyError, SshTarget, StrictHostKeys

AskHostKey = Callable[[str, str, str], bool]
"""``ask(host, key type, fingerprint)``: is this its key? Called from the thread that connects, one
question at a time.
"""

_ASKING = threading.Lock()  # there is one person


def wanted_types(target: SshTarget) -> frozenset[str]:
    """Types of the keys known of the host; it is to show one of those."""
    return frozenset(known.key.type for known in _known(target) if not known.is_revoked)


def is_known(target: SshTarget, key: HostKey) -> bool:
    """Whether `key` is the host's; False if nothing is known of it.

    Raises:
        HostKeyError: Another key is known, or this one is revoked.
    """
    known = _known(target)
    revoked = [each for each in known if each.is_revoked and each.key == key]
    if revoked:
        raise HostKeyError(
            f"{target.label}its {key.type} key {key.fingerprint} is revoked "
            f"({revoked[0].path}:{revoked[0].line})",
            host=target.name,
            remedy="give the host new host keys before you use it again",
        )
    current = [each for each in known if not each.is_revoked]
    if any(each.key == key for each in current):
        return True
    if not current:
        return False
    old = next((each for each in current if each.key.type == key.type), current[0])
    raise HostKeyError(
        f"{target.label}its host key changed: it is {key.type} {key.fingerprint}, but "
        f"{old.path}:{old.line} has {old.key.type} {old.key.fingerprint}. "
        "Somebody may be listening in, or the host was installed anew",
        host=target.name,
        remedy=f"if the new key is right: {_forget(target, old)}",
    )


def accept_new(target: SshTarget, key: HostKey, ask: AskHostKey) -> None:
    """Have an unknown key confirmed, and write it down.

    Raises:
        HostKeyError: It was not confirmed, or cannot be written down.
    """
    with _ASKING:  # hosts behind one jump host all come with its key
        if not is_known(target, key):
            _accept(target, key, ask)


def _accept(target: SshTarget, key: HostKey, ask: AskHostKey) -> None:
    if not _is_accepted(target, key, ask):
        raise HostKeyError(
            f"{target.label}its {key.type} key {key.fingerprint} is unknown and was not accepted",
            host=target.name,
            remedy=f"compare it with the host's, then accept it, by `ssh {_words(target)}` say",
        )
    if target.known_hosts:
        try:
            remember(target.known_as, key, target.known_hosts[0], hashed=target.hashes_names)
        except OSError as error:
            raise HostKeyError(
                f"its key cannot be written down: {error}",
                host=target.name,
                remedy=f"make {target.known_hosts[0]} writable",
            ) from None


def _is_accepted(target: SshTarget, key: HostKey, ask: AskHostKey) -> bool:
    match target.strict_host_keys:
        case StrictHostKeys.ACCEPT_NEW:
            return True
        case StrictHostKeys.YES:
            return False
        case StrictHostKeys.ASK:
            return ask(f"{target.name} ({target.known_as})", key.type, key.fingerprint)


def _known(target: SshTarget) -> list[KnownKey]:
    return known_keys(target.known_as, (*target.known_hosts, *target.global_known_hosts))


def _forget(target: SshTarget, old: KnownKey) -> str:
    return shlex.join(["ssh-keygen", "-R", target.known_as, "-f", str(old.path)])


def _words(target: SshTarget) -> str:
    port = [] if target.port == 22 else ["-p", str(target.port)]
    return shlex.join([*port, f"{target.user}@{target.address}"])
