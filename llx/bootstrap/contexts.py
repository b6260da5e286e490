"""The clusters that are known here, and which of them a verb means.

Looks at files' names and times only: what is in them is `llx.bootstrap.cluster_dir`'s. Nearly every
verb comes through here, so little is imported.
"""

from dataclasses import dataclass
from pathlib import Path

from llx.environment import Environment
from llx.errors import NotFoundError

SETTINGS_FILE = "cluster.yaml"
"""In a cluster's directory while it is up."""
ID_FILE = "id"
"""There: of a cluster on hosts alone; tells it from another of its name."""
CHOICE_FILE = "context"


@dataclass(frozen=True, slots=True)
class Context:
    """A cluster known here."""

    name: str
    state_dir: Path
    is_up: bool
    changed_at: float


def contexts(environment: Environment) -> list[Context]:
    """Clusters with a state directory, by name; those taken down are kept for their logs."""
    if not environment.clusters_dir.is_dir():
        return []
    found = []
    for each in sorted(environment.clusters_dir.iterdir()):
        if each.is_dir():
            settings = each / SETTINGS_FILE
            is_up = settings.exists()
            found.append(
                Context(each.name, each, is_up, (settings if is_up else each).stat().st_mtime)
            )
    return found


def choose_context(environment: Environment, name: str) -> Context:
    """Make a cluster the one meant by default (`llx context use`).

    Raises:
        NotFoundError: There is none of that name.
    """
    chosen = pick_context(environment, name)
    path = environment.state_home / CHOICE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n")
    return chosen


def _chosen(environment: Environment) -> str | None:
    try:
        return (environment.state_home / CHOICE_FILE).read_text().strip()
    except OSError:
        return None


def pick_context(environment: Environment, name: str | None) -> Context:
    """The cluster called `name`, else the chosen one, else the latest that is up, else the latest.

    Raises:
        NotFoundError: There is none.
    """
    known = contexts(environment)
    if name is not None:
        for each in known:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in known) or "none"
        raise NotFoundError(
            f'no cluster "{name}" (known here: {names})', remedy="llx context ls; llx up"
        )
    if not known:
        raise NotFoundError("no cluster was started here", remedy="llx up")
    chosen = _chosen(environment)
    for each in known:
        if each.name == chosen:
            return each
    return max(known, key=lambda each: (each.is_up, each.changed_at))
