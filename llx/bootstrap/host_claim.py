"""Whose a host is, by the claim that ``playbooks/claim.yaml`` has laid there."""

from enum import Enum, auto

import msgspec

from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.shell import Shell


class Owner(Enum):
    """Which cluster uses a host."""

    NOBODY = auto()
    US = auto()
    NAMESAKE = auto()
    """Another cluster of this one's name: it keeps its things where ours would be."""
    OTHER = auto()


class _Claim(msgspec.Struct):
    cluster: str = ""
    id: str = ""


def owner_of(shell: Shell, layout: HostLayout, cluster_id: str) -> Owner:
    """Who uses the host; `cluster_id` is ours, empty if this machine does not know it."""
    content = shell.read(str(layout.claim))
    if content is None:
        return Owner.NOBODY
    try:
        claim = msgspec.json.decode(content, type=_Claim)
    except msgspec.DecodeError:
        return Owner.US  # damaged, and nobody else's word
    if claim.cluster not in {"", layout.cluster}:
        return Owner.OTHER
    is_known = bool(claim.id and cluster_id)
    return Owner.NAMESAKE if is_known and claim.id != cluster_id else Owner.US
