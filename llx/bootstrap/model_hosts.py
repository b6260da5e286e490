"""Doing something about models on several hosts at once: who is told what, who failed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from llx.bootstrap.fan_out import FanOutError, fan_out
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.hosts_world import HostsWorld, connect_all
from llx.bootstrap.local_ports import Observer, StepEvent, StepState
from llx.bootstrap.model_files import size_text
from llx.bootstrap.models import HostModel
from llx.bootstrap.shell import OnProgress, Shell
from llx.errors import LlxError
from llx.settings import ClusterSettings, HostSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A connected host, and whom to tell how far it is."""

    host: HostSettings
    shell: Shell
    layout: HostLayout
    on_progress: OnProgress


class ModelOnHost(BaseModel):
    """One model on one host, as `llx model ls` shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    name: str
    is_complete: bool
    size_bytes: int
    source: str


class ModelsError(FanOutError):
    """It failed on some hosts; it was done on the others."""

    def __init__(self, what: str, errors: Mapping[str, LlxError], *, is_partial: bool) -> None:
        headline = f"{what} failed on {', '.join(errors)}:"
        super().__init__(headline, errors, is_partial=is_partial)


def on_hosts(
    settings: ClusterSettings,
    names: Sequence[str],
    world: HostsWorld,
    observe: Observer,
    work: Callable[[Place], T],
    outcome: Callable[[T], str],
) -> dict[str, T | LlxError]:
    """`work` on the hosts of these names, all at once; a host's failure is its result.

    Args:
        settings: The cluster's.
        names: Of its hosts.
        world: What to reach them with.
        observe: Told of each host.
        work: What is to be done on one.
        outcome: What came of it, in words.
    """
    hosts = {each.name: each for each in settings.hosts if each.name in names}
    for name in hosts:
        observe(StepEvent(_row(name), StepState.RUNNING, "connecting"))
    crew = connect_all(list(hosts.values()), settings.cluster, world.connect)

    def one(name: str) -> T:
        place = Place(hosts[name], crew.shells[name], crew.layouts[name], _teller(name, observe))
        result = work(place)
        observe(StepEvent(_row(name), StepState.DONE, outcome(result)))
        return result

    try:
        results: dict[str, T | LlxError] = {**crew.errors, **fan_out(list(crew.shells), one)}
    finally:
        crew.close()
    for name, result in results.items():
        if isinstance(result, LlxError):
            observe(StepEvent(_row(name), StepState.FAILED, result.message))
    return {name: results[name] for name in hosts}


def rows_of(results: Mapping[str, Sequence[HostModel] | LlxError]) -> list[ModelOnHost]:
    """What the hosts that answered have."""
    return [
        ModelOnHost(
            host=name,
            name=each.name,
            is_complete=each.is_complete,
            size_bytes=each.size_bytes,
            source=each.source,
        )
        for name, found in results.items()
        if not isinstance(found, LlxError)
        for each in found
    ]


def require_all(what: str, results: Mapping[str, T | LlxError]) -> dict[str, T]:
    """The results, none of which is a failure.

    Raises:
        ModelsError: Some are.
    """
    errors = {name: each for name, each in results.items() if isinstance(each, LlxError)}
    if errors:
        raise ModelsError(what, errors, is_partial=len(errors) < len(results))
    return {name: each for name, each in results.items() if not isinstance(each, LlxError)}


def _teller(name: str, observe: Observer) -> OnProgress:
    def tell(num_done: int, total: int) -> None:
        detail = f"{size_text(num_done)} of {size_text(total)}"
        observe(StepEvent(_row(name), StepState.RUNNING, detail))

    return tell


def _row(name: str) -> str:
    return f"host {name}"
