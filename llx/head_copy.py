"""What a head leaves to one on another host: files between a head, node agents and `llx up`.

A running head gives every node agent a copy of the little that it must remember, so that it is not
lost with the head's host. `llx up --head` puts the newest on the host that becomes the head.
"""

from collections.abc import Mapping

import msgspec

from llx.core.model import Term

COPY_FILE = "head-copy.json"
"""In a cluster's state directory, on every host but the head's: `HeadCopy`."""
MOVED_FILE = "moved.json"
"""Likewise on a host that has become the head, until that has started: `HeadMoved`."""
ROLLOUTS_FILE = "rollouts.json"
STATE_FILES = ("cluster.yaml", "placement.json", ROLLOUTS_FILE, "cordons.json", "policies.json")
"""What is copied, if it is there."""


class HeadCopy(msgspec.Struct, frozen=True):
    """A head's files at one moment.

    Attributes:
        term: The head's.
        number: Counts the copies of that head.
        files: Content by name, of `STATE_FILES`.
    """

    term: Term
    number: int
    files: dict[str, str]


class _Rollout(msgspec.Struct):
    state: str


class _Generation(msgspec.Struct):
    rollout: _Rollout | None = None


def rolling(files: Mapping[str, str]) -> list[str]:
    """Models of which a rollout is under way, by a head's files (`llx.cluster.rollout_file`)."""
    try:
        found = msgspec.json.decode(files.get(ROLLOUTS_FILE, "{}"), type=dict[str, _Generation])
    except msgspec.DecodeError:  # the next head cannot read it either, and goes on without
        return []
    under_way = {name: each.rollout for name, each in found.items() if each.rollout is not None}
    return [name for name, each in under_way.items() if each.state != "done"]


class HeadMoved(msgspec.Struct, frozen=True):
    """How a head came to its host.

    Attributes:
        former: The host where it was.
        user: Who moved it.
        away: Hosts that were lost then: what was there is to run elsewhere.
    """

    former: str
    user: str
    away: list[str]
