"""As what each model was rolled out last, and what is under way: on disk for the next head.

A *revision* is one more whenever a model's instances are to be started with something else. A
*generation* is the first revision of those between which requests can move; each generation is a
pool of its own (`llx.specs.generation_key`).
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from llx.cluster.state_dir import write_private
from llx.core.model import PoolName
from llx.log import get_log
from llx.settings import ModelSettings
from llx.specs import generation_key

log = get_log(__name__)


class RolloutState(StrEnum):
    """Where a rollout is."""

    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    DONE = "done"


class Rollout(msgspec.Struct, frozen=True):
    """A rollout of a model: from what, and how far it is.

    Attributes:
        wanted: The model as it is to be, as in cluster.yaml.
        former: As it was.
        former_revision: Of the instances that are replaced.
        former_generation: Theirs.
        count: So many instances there are to be.
        deadline_s: So long an instance that is replaced may have requests.
        steady_s: So long a new one must have been ready before the next step.
        user: Who began it.
        begun_at: In Unix seconds.
        state: Whether it goes on.
        reason: Why it does not.
        is_back: It goes back to what was before another one.
        is_switched: New requests go to the new generation.
        ends: When instances that are replaced end at the latest, by name, in Unix seconds.
        moved: Requests that were moved off them.
        finished: Those that finished there.
        cut: Those that had not at the deadline.
        attempt: How often what has failed was to be tried anew.
    """

    wanted: dict[str, Any]
    former: dict[str, Any]
    former_revision: int
    former_generation: int
    count: int
    deadline_s: float
    steady_s: float
    user: str
    begun_at: float
    state: RolloutState = RolloutState.RUNNING
    reason: str = ""
    is_back: bool = False
    is_switched: bool = False
    ends: dict[str, float] = {}
    moved: int = 0
    finished: int = 0
    cut: int = 0
    attempt: int = 0

    def former_model(self) -> ModelSettings:
        """The model as it was."""
        return ModelSettings.model_validate(self.former)


class Generation(msgspec.Struct, frozen=True):
    """What a model's instances are to be.

    Attributes:
        revision: Of the instances that are to run.
        generation: Theirs.
        newest: The highest revision that was ever given.
        rollout: The last one, under way or done; None: there was none.
    """

    revision: int = 0
    generation: int = 0
    newest: int = 0
    rollout: Rollout | None = None

    @property
    def under_way(self) -> Rollout | None:
        """A rollout that is not done."""
        found = self.rollout
        return found if found is not None and found.state is not RolloutState.DONE else None

    def pools(self, model: str) -> list[PoolName]:
        """Of this model, those that there are; the one for new requests comes first."""
        new = PoolName(generation_key(model, self.generation))
        rollout = self.under_way
        if rollout is None or rollout.former_generation == self.generation:
            return [new]
        former = PoolName(generation_key(model, rollout.former_generation))
        return [new, former] if rollout.is_switched else [former, new]


Generations = Mapping[str, Generation]
"""By model; one that is missing was never rolled out."""

FIRST = Generation()


def load_generations(path: Path) -> dict[str, Generation]:
    """What the file says; nothing if it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Generation])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        log.warning("rollouts.unreadable", path=path, error=error)
        return {}


def save_generations(path: Path, generations: Generations) -> None:
    """Write the file; blocking, quick."""
    data = msgspec.json.format(msgspec.json.encode(dict(generations)), indent=1)
    write_private(path, data.decode())
