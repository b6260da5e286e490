"""What new settings change of a running cluster, in words, and what they may not: pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from llx.settings import ClusterSettings, InstanceRange, differing_keys

_LIVE = frozenset(
    {
        "gateway.count",
        "runtime.start_timeout_s",
        "runtime.cpu_threads",
        "runtime.prefix",
        "runtime.wheelhouse",
    }
)
"""Taken up by a running cluster as they are."""
_GATEWAY_ONLY = (
    "gateway.max_requests",
    "gateway.tenants",
    "priority_classes",
)
"""A gateway that is started again takes them up."""
_KEYS = ("gateway.api_keys",)
"""Gateways that run hear of them at once."""
_CERTIFICATE = ("gateway.tls",)
"""Gateways that run take up another certificate; with TLS or without it they have to be started."""
_INSTANCE_ONLY = ("migration", "runtime.silent_limit_s", "runtime.step_limit_s")
"""An instance that is started takes them up; those that run go on as they were."""
_HOST_FIXED = ("cluster_address", "python")
_LIVE_OF_CLASS = ("headroom_blocks", "headroom_share", "queue_limit", "max_wait_s", "slo")
"""Of a priority class; the scheduler takes these up."""
_MODEL_LIVE = ("instances.min", "instances.max")
_MODEL_SCHEDULING = ("scheduling",)
"""Likewise of a model."""
_MODEL_GATEWAY_ONLY = ("serve_args",)


@dataclass(slots=True)
class Changes:
    """What changes.

    Attributes:
        words: One line each.
        refused: Keys that a running cluster cannot change.
        gateway_keys: Keys for which gateways have to be started again.
    """

    words: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    gateway_keys: list[str] = field(default_factory=list)


def compare(old: ClusterSettings, new: ClusterSettings) -> Changes:
    """The way from the one to the other."""
    found = Changes()
    _compare_hosts(old, new, found)
    _compare_models(old, new, found)
    for key in differing_keys(_bare(old), _bare(new)):
        if _is_below(key, _KEYS):
            continue  # told below, at once
        if _is_below(key, _CERTIFICATE):
            continue  # likewise
        if key in _LIVE or _is_live_of_class(key):
            found.words.append(f"{key} changes")
        elif _is_below(key, _GATEWAY_ONLY):
            found.gateway_keys.append(key)
        elif _is_below(key, _INSTANCE_ONLY):
            found.words.append(f"{key} changes, for instances that are started from now on")
        else:
            found.refused.append(key)
    if new.gateway.tenants and old.num_gateways != new.num_gateways:
        found.gateway_keys.append("gateway.tenants")  # each gateway's share is another one
    found.words += _compare_keys(old, new)
    if (old.gateway.tls is None) != (new.gateway.tls is None):
        found.gateway_keys.append("gateway.tls")
    elif old.gateway.tls != new.gateway.tls:
        found.words.append("gateways show another certificate")
    if found.gateway_keys:
        found.words.append(f"gateways start again: {', '.join(found.gateway_keys)}")
    more = new.num_gateways - old.num_gateways
    if more:
        found.words.append(f"gateways: {old.num_gateways} → {new.num_gateways}")
    return found


def _compare_keys(old: ClusterSettings, new: ClusterSettings) -> list[str]:
    """Of each key whose tenant it is, never what it is."""
    before, after = ({each.sha256: each for each in it.gateway.api_keys} for it in (old, new))
    added = [after[key].tenant for key in after if key not in before]
    revoked = [before[key].tenant for key in before if key not in after]
    words = [f"api key of {tenant} is let in" for tenant in added]
    words += [f"api key of {tenant} is revoked" for tenant in revoked]
    if not words and old.gateway.api_keys != new.gateway.api_keys:
        words.append("gateway.api_keys changes")
    if before and not after:
        words.append("no api key is left: gateways let in everybody")
    return words


def _compare_hosts(old: ClusterSettings, new: ClusterSettings, found: Changes) -> None:
    before = {each.name: each for each in old.hosts}
    after = {each.name: each for each in new.hosts}
    if bool(before) != bool(after):
        found.refused.append("hosts")
        return
    if old.head_host and new.head_host and old.head_host.name != new.head_host.name:
        found.refused.append("head")
        return
    found.words += [f"host {name} is added" for name in after if name not in before]
    found.words += [f"host {name} is removed" for name in before if name not in after]
    for name in sorted(before.keys() & after.keys()):
        for key in differing_keys(before[name], after[name]):
            if key in _HOST_FIXED:
                found.refused.append(f"hosts.{name}.{key}")
            else:
                found.words.append(f"hosts.{name}.{key} changes")


def _compare_models(old: ClusterSettings, new: ClusterSettings, found: Changes) -> None:
    before = {each.name: each for each in old.models}
    after = {each.name: each for each in new.models}
    for name in after:
        if name not in before:
            found.words.append(f"model {name} is added")
            found.gateway_keys.append(f"models.{name}")
    for name in before:
        if name not in after:
            found.words.append(f"model {name} is removed")
            found.gateway_keys.append(f"models.{name}")
    for name in (each for each in after if each in before):
        for key in differing_keys(before[name], after[name]):
            if key in _MODEL_LIVE:
                continue
            if _is_below(key, _MODEL_SCHEDULING):
                found.words.append(f"models.{name}.{key} changes")
            elif _is_below(key, _MODEL_GATEWAY_ONLY):
                found.gateway_keys.append(f"models.{name}.{key}")
            else:
                found.refused.append(f"models.{name}.{key}")
        one, other = before[name].instances, after[name].instances
        if one != other:
            found.words.append(f"model {name}: {_count(one)} → {_count(other)} instances")


def _count(instances: InstanceRange) -> str:
    least, most = instances.min, instances.max
    return f"{least}" if least == most else f"{least} to {most}"


def _is_live_of_class(key: str) -> bool:
    parts = key.split(".", 2)
    return (
        len(parts) == 3 and parts[0] == "priority_classes" and _is_below(parts[2], _LIVE_OF_CLASS)
    )


def _bare(settings: ClusterSettings) -> ClusterSettings:
    """Without what is compared by name."""
    return settings.model_copy(update={"hosts": (), "models": (), "head": None})


def _is_below(key: str, roots: Iterable[str]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)
