"""Hosts that a cluster has left and where files of llx still lie: a purge has to visit them, too.

They stand in the operator's state directory of the cluster, for as long as that is so.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from llx.bootstrap.cluster_dir import DOWN_FILE, LEFT_FILE, write_private
from llx.cluster_file import Settings
from llx.errors import ConfigError
from llx.settings import ClusterSettings, HostSettings, load_cluster, to_dict
from llx.yaml_reader import read_yaml


class _File(Settings):
    hosts: tuple[HostSettings, ...]


def load_left(state_dir: Path) -> tuple[HostSettings, ...]:
    """The hosts that were left.

    Raises:
        ConfigError: The file was damaged.
    """
    path = state_dir / LEFT_FILE
    return read_yaml(path, _File).hosts if path.exists() else ()


def save_left(state_dir: Path, hosts: Iterable[HostSettings]) -> None:
    """Have exactly these, each once."""
    kept: list[HostSettings] = []
    for each in hosts:
        if not any(is_same_place(each, other) for other in kept):
            kept.append(each)
    path = state_dir / LEFT_FILE
    if kept:
        write_private(path, yaml.safe_dump(to_dict(_File(hosts=tuple(kept))), sort_keys=False))
    else:
        path.unlink(missing_ok=True)


def take_over_down_file(state_dir: Path, settings: ClusterSettings) -> None:
    """Before a cluster that was down comes up again: which hosts does it have no longer?

    Those of `settings` are none that were left, whatever stood there.
    """
    found = list(load_left(state_dir))
    down = state_dir / DOWN_FILE
    with contextlib.suppress(ConfigError):  # of another release: kept, for that one's purge
        if down.exists():
            found += load_cluster(down).hosts
            down.unlink()
    save_left(state_dir, [each for each in found if not is_among(each, settings.hosts)])


def is_among(host: HostSettings, hosts: Sequence[HostSettings]) -> bool:
    """Whether one of `hosts` is reached as `host` is."""
    return any(is_same_place(host, each) for each in hosts)


def is_same_place(one: HostSettings, other: HostSettings) -> bool:
    """Whether both are the same user's on the same machine, as far as settings tell."""
    return (one.address, one.port, one.user) == (other.address, other.port, other.user)


def named_apart(left: Sequence[HostSettings], hosts: Sequence[HostSettings]) -> list[HostSettings]:
    """`left` without those that are among `hosts`, under names that no other has."""
    taken = [each.name for each in hosts]
    apart = []
    for each in left:
        if is_among(each, hosts):
            continue
        name = each.name
        while name in taken:
            name = f"{name}-left"
        taken.append(name)
        apart.append(each.model_copy(update={"name": name}))
    return apart
