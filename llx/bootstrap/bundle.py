"""`llx debug bundle`: what can be had of a cluster, for whoever is to find out what is wrong.

Everything is tried, nothing is needed: a head, a gateway or a host that does not answer is named in
the bundle, with the reason, and the rest is taken. No prompt and no output of a model is in what
llx keeps; what an engine may have written into its log is left out by `Mask`.
"""

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel, JsonValue

from llx import __version__
from llx.api import ClusterStatus, GatewayStatus
from llx.bootstrap.bundle_file import BundleFile
from llx.bootstrap.bundle_host import WHOLE_BYTES, Found, HostSource
from llx.bootstrap.fan_out import fan_out
from llx.bootstrap.masking import Mask
from llx.client import Cluster
from llx.errors import LlxError, NotFoundError, UnreachableError
from llx.openai_client import OpenAIClient
from llx.pins import RAY_VERSION, VLLM_VERSION

RECORDING_BYTES: Final = 16 << 20
_MAX_REQUESTS: Final = 1000
_MAX_OVER: Final = 1000
_MAX_EVENTS: Final = 5000
_MAX_EXPLAINED: Final = 50
"""Requests of which the decisions are asked for, one by one."""

Observe = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a cluster can be asked.

    Attributes:
        cluster: Its name.
        here: Its state directory on this machine.
        hosts: Those that are reached.
        errors: Why others are not.
        open_head: A client of the control API; None: the cluster is down, nobody is there to ask.
        open_gateway: A client of one gateway.
        secrets: Known on this machine.
    """

    cluster: str
    here: Path
    hosts: Sequence[HostSource]
    errors: Mapping[str, LlxError]
    open_head: Callable[[], Cluster] | None
    open_gateway: Callable[[GatewayStatus], OpenAIClient]
    secrets: frozenset[str]


def planned(sources: Sources, log_bytes: int) -> dict[str, list[Found] | LlxError]:
    """What would be taken of each host; the head's and the gateways' answers besides."""
    by_name = {each.name: each for each in sources.hosts}
    found: dict[str, list[Found] | LlxError] = {}
    found |= fan_out(list(by_name), lambda name: by_name[name].listing(log_bytes, RECORDING_BYTES))
    return found | dict(sources.errors)


def collect(
    sources: Sources, bundle: BundleFile, log_bytes: int, observe: Observe, *, with_prompts: bool
) -> None:
    """Take everything that can be had into `bundle`."""
    by_name = {each.name: each for each in sources.hosts}
    secrets = set(sources.secrets)
    unmasked = dict(sources.errors)
    for name, known in fan_out(list(by_name), lambda name: by_name[name].secrets()).items():
        if isinstance(known, LlxError):
            unmasked[name] = known
        else:
            secrets |= known
    mask = Mask(secrets, with_prompts=with_prompts)
    taking = _Taking(sources, bundle, mask, observe)
    taking.of_here(log_bytes)
    taking.of_head()
    for name, error in unmasked.items():
        taking.lacks(f"host {name}", error)
    # A host that would not say which secrets it has is asked for nothing else.
    fan_out(
        [name for name in by_name if name not in unmasked],
        lambda name: taking.of_host(by_name[name], log_bytes),
    )
    bundle.add_contents({"cluster": sources.cluster, "has_prompts": with_prompts})


@dataclass(frozen=True, slots=True)
class _Taking:
    """One bundle being filled."""

    sources: Sources
    bundle: BundleFile
    mask: Mask
    observe: Observe

    def lacks(self, what: str, error: LlxError) -> None:
        """Something could not be had."""
        self.observe(f"{what}: not taken: {error.message}")
        self.bundle.lacks(self.mask, what, error.message)

    # ------------------------------------------------------------------ this machine

    def of_here(self, log_bytes: int) -> None:
        """Versions, the settings as this machine has them, what was done to hosts."""
        self._add_json("operator/versions.json", _versions(), "this machine")
        here = self.sources.here
        for name in ("cluster.yaml", "down.yaml"):
            self._add_file(f"operator/{name}", here / name, WHOLE_BYTES)
        for path in sorted(here.glob("hosts/*.log")):
            self._add_file(f"operator/hosts/{path.name}", path, log_bytes)

    def _add_file(self, name: str, path: Path, limit: int) -> None:
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                file.seek(max(0, size - limit))
                text = file.read(limit).decode(errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            self.lacks(str(path), LlxError(f"{path}: {error.strerror}"))
            return
        text = text.partition("\n")[2] if size > limit else text
        self.bundle.add(self.mask, name, text, str(path), is_tail=size > limit)

    # ------------------------------------------------------------------ the head

    def of_head(self) -> None:
        """What the control API and the gateways say."""
        if self.sources.open_head is None:
            self.bundle.lacks(self.mask, "head", "the cluster is down")
            return
        status: ClusterStatus | None = None
        try:
            with self.sources.open_head() as head:
                status = head.status()
                self._add_answer("status", status)
                self._ask_all(head)
        except LlxError as error:
            self.lacks("head", error)
        else:
            self.observe("head: taken")
        if status is not None:
            for gateway in status.gateways:
                self._of_gateway(gateway)

    def _ask_all(self, head: Cluster) -> None:
        """One answer after the other, until the head is gone."""
        for name, ask in _questions(head):
            try:
                self._add_answer(name, ask())
            except UnreachableError:
                raise
            except LlxError as error:
                self.lacks(f"head: {name}", error)

    def _add_answer(self, name: str, answer: str | BaseModel | JsonValue) -> None:
        if isinstance(answer, str):
            kind = "yaml" if name == "settings" else "txt"
            self.bundle.add(self.mask, f"head/{name}.{kind}", answer, "head")
        elif isinstance(answer, BaseModel):
            self._add_json(f"head/{name}.json", answer.model_dump(mode="json"), "head")
        else:
            self._add_json(f"head/{name}.json", answer, "head")

    def _of_gateway(self, gateway: GatewayStatus) -> None:
        try:
            if not gateway.url:
                raise NotFoundError(f"{gateway.name} is {gateway.state}")
            with self.sources.open_gateway(gateway) as client:
                page = client.metrics()
        except LlxError as error:
            self.lacks(f"metrics of {gateway.name}", error)
        else:
            name = f"gateways/{gateway.name}.metrics.txt"
            self.bundle.add(self.mask, name, page, gateway.name)

    # ------------------------------------------------------------------ hosts

    def of_host(self, host: HostSource, log_bytes: int) -> None:
        """Its files and facts; what cannot be read is named, and so is a host that is lost."""
        top = f"hosts/{host.name}"
        try:
            facts = self._tried(f"{host.name}: facts", host.facts)
            found = host.listing(log_bytes, RECORDING_BYTES)
        except LlxError as error:
            self.lacks(f"host {host.name}", error)
            return
        if facts is not None:
            self.bundle.add(self.mask, f"{top}/facts.txt", facts, host.name)
        for each in found:
            try:
                text = self._tried(f"{host.name}: {each.name}", partial(host.read, each))
            except UnreachableError as error:
                self.lacks(f"{host.name}: {each.name} and what follows", error)
                return
            if text is not None:
                name = f"{top}/{each.name}"
                self.bundle.add(self.mask, name, text, host.name, is_tail=each.is_tail)
        self.observe(f"{host.name}: {len(found)} files")

    def _tried(self, what: str, ask: Callable[[], str]) -> str | None:
        """What is said; None if that fails, unless nobody answers any more: that is raised."""
        try:
            return ask()
        except UnreachableError:
            raise
        except LlxError as error:
            self.lacks(what, error)
            return None

    def _add_json(self, name: str, value: JsonValue, source: str) -> None:
        self.bundle.add(self.mask, name, json.dumps(value), source)


def _questions(
    head: Cluster,
) -> Iterator[tuple[str, Callable[[], str | BaseModel | JsonValue]]]:
    yield "settings", head.settings
    yield "snapshot", lambda: head.snapshot(max_requests=_MAX_REQUESTS, max_over=_MAX_OVER)
    yield "events", lambda: head.events(limit=_MAX_EVENTS)
    yield "queues", head.queues
    yield "policies", head.policies
    yield "rollouts", lambda: [each.model_dump(mode="json") for each in head.rollouts()]
    yield "decisions", lambda: _decisions(head)
    yield "metrics", head.metrics


def _decisions(head: Cluster) -> JsonValue:
    """What was decided of the last requests that are there."""
    told: list[JsonValue] = []
    for request in head.requests(limit=_MAX_REQUESTS).requests[-_MAX_EXPLAINED:]:
        try:
            told.append(head.explain(request.id).model_dump(mode="json"))
        except NotFoundError:
            continue  # it has ended meanwhile
    return told


def _versions() -> JsonValue:
    return {
        "llx": __version__,
        "vllm": VLLM_VERSION,
        "ray": RAY_VERSION,
        "python": sys.version,
        "platform": platform.platform(),
    }
